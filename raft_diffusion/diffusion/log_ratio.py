"""How much more the tuned model likes a picture than its base does: an estimate of log(p_theta / p_0)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..core.records import Sample, derive_seed
from ..rewards import LOG_RATIO
from ..rewards import LOG_RATIO_LEVELS as LEVELS
from ..room import Room
from .sampler import DiffusionPolicy
from .settings import make_scheduler


class LogRatio:
    """A reward that is bound to the policy it looks at: the mean over fixed noise levels t and a fixed noise eps of

        ||eps - eps_0(x_t, t, c)||^2 - ||eps - eps_theta(x_t, t, c)||^2

    where theta is the policy with its adapter and 0 without. Up to the levels' weights it is the difference of the two
    models' evidence lower bounds, as in Diffusion-DPO (Wallace et al. 2023, arXiv:2311.12908, equation 14). With a
    negative weight it is the KL term of RAFT's ranking key r - beta log(p_theta / p_0) (arXiv:2304.06767, section 3).

    The levels lie in the middle of equal parts of the schedule. The noise follows from a sample's own seed, so that a
    score depends on no other sample and is the same each time. It is exactly 0 for an adapter that has not learned yet.
    """

    in_parts = True
    """Several processes may score parts of the samples."""

    def __init__(self, policy: DiffusionPolicy) -> None:
        self._policy, self._room = policy, Room("scoring", setting="sampling.batch_size")
        self._scheduler = make_scheduler("DDPM", policy.components.scheduler_config)
        total: int = self._scheduler.config.num_train_timesteps
        self._levels = [(2 * part + 1) * total // (2 * LEVELS) for part in range(LEVELS)]

    @torch.no_grad()
    def __call__(self, samples: Sequence[Sample]) -> dict[str, list[float]]:
        """One number a sample, larger where the tuned model likes the picture more than the base does."""
        size = self._policy.settings.batch_size
        scores: list[float] = []
        for _, ratios in self._room.batches(samples, size, self._ratios):
            scores += ratios.tolist()
        return {LOG_RATIO: scores}

    def _ratios(self, samples: Sequence[Sample]) -> torch.Tensor:
        """(B,), float64 on the CPU: the sums of squares are large beside their difference."""
        clean = torch.stack([sample.data.latent for sample in samples])
        noise = torch.stack([self._noise(sample, clean.shape[1:]) for sample in samples], dim=1)  # (LEVELS, B, C, h, w)
        texts = [sample.prompt.text for sample in samples]
        ratio = torch.zeros(len(samples), dtype=torch.float64)
        for level, drawn in zip(self._levels, noise, strict=True):
            with self._policy.base():
                base = self._errors(clean, drawn, level, texts)
            with self._policy.tuned():
                ratio += base - self._errors(clean, drawn, level, texts)
        return ratio / LEVELS

    def _noise(self, sample: Sample, shape: Any) -> torch.Tensor:
        generator = torch.Generator("cpu").manual_seed(derive_seed(sample.draw.seed, "log_ratio"))
        return torch.randn((LEVELS, *shape), generator=generator)

    def _errors(self, clean: torch.Tensor, noise: torch.Tensor, level: int, texts: Sequence[str]) -> torch.Tensor:
        """||eps - eps_hat||^2, (B,). A model that predicts v errs in eps by sqrt(alpha_bar) times its error in v."""
        parts = self._policy.components
        timesteps = torch.full((len(clean),), level)
        noisy = self._scheduler.add_noise(clean, noise, timesteps)
        text = self._policy.embed(texts).to(parts.dtype)
        predicted = parts.unet(
            noisy.to(parts.device, parts.dtype),
            timesteps.to(parts.device),
            encoder_hidden_states=text,
            return_dict=False,
        )[0]
        velocity = parts.prediction_type == "v_prediction"
        target = self._scheduler.get_velocity(clean, noise, timesteps) if velocity else noise
        scale = self._scheduler.alphas_cumprod[level].double() if velocity else 1.0
        return (predicted.cpu().double() - target.double()).square().sum(dim=(1, 2, 3)) * scale
