"""Finetune the policy's LoRA on the winners' latents by the model's own denoising loss: the Tuner of the loop.

Legend: W winners, B pictures a batch, C latent channels, (h, w) the latent's size, T tokens, D the text width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from ..core.records import Winner
from ..crew import Crew
from ..room import Room
from ..skips import Skips
from ..tuning_state import TuningState, learned
from .load import Components
from .sampler import DiffusionPolicy, Progress
from .settings import make_scheduler

PRECISIONS = ("no", "fp16", "bf16")


@dataclass(frozen=True, kw_only=True)
class DiffusionTuner:
    """Maximum likelihood on the winners (Dong et al. 2023, arXiv:2304.06767) as Ho et al. 2020's simple loss.

    steps: optimizer steps, each over gradient_accumulation batches of batch_size pictures.
    learning_rate: of a fresh AdamW at every call, constant after `warmup_steps` of linear warm-up.
    snr_gamma: caps a noise level's weight (min-SNR, Hang et al. 2023, arXiv:2303.09556); None for none.
    condition_drop: the probability that a picture is shown with the empty prompt, for guidance's sake.
    max_grad_norm: gradients are scaled down to this norm at most.
    mixed_precision: "no", "fp16" (needs a GPU) or "bf16". Weights that are fp16 themselves are always tuned as "fp16",
        with a scaled loss: their gradients would vanish without.
    gradient_checkpointing: compute the UNet's activations a second time instead of keeping them: less memory, about a
        third more time, the same gradients (Chen et al. 2016, arXiv:1604.06174).
    anti_drift: >= 0; times the mean squared difference between the UNet's predictions with and without the adapter, on
        the same noisy latents and prompts, is added to the loss. The mean of two Gaussians' distance is their KL
        divergence but for a factor: the diffusion form of the KL term of arXiv:2304.06767, here in the loss.
    restart: learn from the adapter's initial weights each time instead of from its present ones.
    progress: called with ("tune", steps done, steps in all) after each step.
    Raises ValueError for a number out of its range.
    """

    steps: int
    batch_size: int
    learning_rate: float
    gradient_accumulation: int = 1
    snr_gamma: float | None = None
    condition_drop: float = 0.0
    max_grad_norm: float = 1.0
    mixed_precision: str = "no"
    warmup_steps: int = 0
    anti_drift: float = 0.0
    restart: bool = False
    gradient_checkpointing: bool = False
    progress: Progress | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "gradient_accumulation"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("learning_rate", "max_grad_norm", "snr_gamma"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}; it must be more than 0")
        if not 0 <= self.condition_drop <= 1:
            raise ValueError(f"condition_drop is {self.condition_drop}; a probability lies between 0 and 1")
        if not 0 <= self.anti_drift < math.inf:
            raise ValueError(f"anti_drift is {self.anti_drift}; it must be a finite number, 0 or more")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps is {self.warmup_steps}; it must be 0 or more")
        if self.mixed_precision not in PRECISIONS:
            raise ValueError(f"mixed_precision is {self.mixed_precision!r}; choose from {', '.join(PRECISIONS)}")

    def __call__(self, policy: DiffusionPolicy, winners: Sequence[Winner], *, seed: int) -> dict[str, float]:
        """Train the policy's adapter in place; the same winners and seed give the same weights, byte for byte.

        Every winner is used equally often, give or take one; its weight multiplies its loss, after the weights are
        brought to a mean of 1. Winners of weight 0 are left out.
        Returns the mean "loss" and the mean "grad_norm" (before clipping) over the steps; with anti_drift also the mean
        "drift", the squared difference from the base, which "loss" leaves out so that it compares with other runs'.
        A step whose loss or gradient is not finite is left out and counted in "skipped". A pass that the device has no
        memory for is split.
        Raises ValueError for winners it cannot learn from, `Diverged` when three steps in a row were left out.
        """
        if self.restart:
            policy.trained.reset()
        batches = _Batches(winners, condition_drop=self.condition_drop, seed=seed)
        learner = self.learner(policy, batches.texts)
        accelerator, parameters = learner.accelerator, learner.parameters
        optimizer = torch.optim.AdamW(parameters, lr=self.learning_rate)
        prepared: Any = accelerator.prepare(optimizer)
        state = TuningState(
            policy.shelf,
            policy.trained.parameters(),
            optimizer,
            made_of=[seed, repr(replace(self, progress=None)), learned(winners)],
            steps=self.steps,
            scaler=accelerator.scaler,
        )
        before, (losses, drifts, norms, left_out) = state.restore(4)
        skips, size = Skips.of(left_out), self.batch_size * self.gradient_accumulation
        for _ in range(before):
            batches.draw(size, learner.noise_levels)
        for step in range(before + 1, self.steps + 1):
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate * min(1.0, step / max(1, self.warmup_steps))
            loss, drift = self._gradients(policy.crew, learner, batches.draw(size, learner.noise_levels))
            norm = self._clip(accelerator, parameters) if math.isfinite(loss) else loss
            scaled = math.isfinite(loss) and accelerator.scaler is not None
            if math.isfinite(norm):
                losses.append(loss)
                drifts.append(drift)
                norms.append(norm)
                skips.reset()
            else:
                skips.add(step, "gradient" if math.isfinite(loss) else "loss", scaled=scaled)
            if math.isfinite(norm) or scaled:
                prepared.step()  # with a scaled gradient that is not finite it tunes nothing and lowers the scale
            prepared.zero_grad()
            state.done(step, (losses, drifts, norms, skips.numbers), self.progress)
        skipped = skips.figures(self.steps)
        loss, drift, norm = (sum(values) / len(values) for values in (losses, drifts, norms))
        return {"loss": loss, "grad_norm": norm} | ({"drift": drift} if self.anti_drift else {}) | skipped

    def learner(self, policy: DiffusionPolicy, texts: Sequence[str]) -> Learner:
        """What computes the gradients of pictures of these texts, in any process of a run."""
        return Learner(self, policy, texts)

    def _gradients(self, crew: Crew | None, learner: Learner, drawn: Batch) -> tuple[float, float]:
        """The gradients of one step's loss; that loss and the drift, both nan where one of the two is not finite."""
        whole, scale = len(drawn.texts), learner.loss_scale()
        if crew is None:
            return learner.gradients(drawn, whole, scale)
        how = replace(self, progress=None), learner.texts, whole, scale
        parts = list(drawn.split(-(-whole // crew.size)))
        loss, drift = (sum(values) for values in zip(*crew.gradients(parts, how, learner.parameters), strict=True))
        return loss, drift

    def _clip(self, accelerator: Accelerator, parameters: list[torch.nn.Parameter]) -> float:
        """The norm of the gradients before they were scaled down."""
        norm: Any = accelerator.clip_grad_norm_(parameters, self.max_grad_norm)
        return float(norm)

    def accelerator(self, components: Components) -> Accelerator:
        """Of the precision that these components are tuned in. Raises ValueError where their device has none such."""
        on_cpu = components.device.type == "cpu"
        precision = "fp16" if components.dtype == torch.float16 else self.mixed_precision
        if on_cpu and precision == "fp16":
            raise ValueError('mixed_precision "fp16" needs a GPU; on the CPU choose "no" or "bf16"')
        # accelerate keeps one precision a process and refuses another; a later tuner may want its own.
        AcceleratorState._reset_state()
        return Accelerator(
            cpu=on_cpu,
            mixed_precision=precision,
        )


class Learner:
    """Forward and backward passes of a tuning, as large as the device has memory for.

    parameters: those that learn. texts: all that pictures may be shown with. accelerator: holds the precision.
    """

    def __init__(self, tuner: DiffusionTuner, policy: DiffusionPolicy, texts: Sequence[str]) -> None:
        self._tuner, self.texts = tuner, tuple(texts)
        self.accelerator = tuner.accelerator(policy.components)
        self.parameters = list(policy.trained.parameters().values())
        self._objective = _Objective(policy, tuner.snr_gamma, texts)
        self._room = Room("tuning on", setting="tuning.batch_size")
        self._device = policy.components.device

    @property
    def noise_levels(self) -> int:
        return self._objective.noise_levels

    def loss_scale(self) -> float:
        """What the loss is multiplied with, so that a gradient in fp16 does not vanish."""
        scaler = self.accelerator.scaler
        return 1.0 if scaler is None else float(scaler.scale(torch.ones((), device=self._device)))

    def gradients(self, drawn: Batch, whole: int, scale: float) -> tuple[float, float]:
        """Leave the gradients of these pictures' part of a step's loss, times `scale`, in the parameters.

        whole: how many pictures the step has. Returns the part's share of the loss and of the drift, both nan where one
        of the two is not finite.
        """
        return self._room.fitted(self._tuner.batch_size, partial(self._backward, drawn, whole, scale))

    def _backward(self, drawn: Batch, whole: int, scale: float, size: int) -> tuple[float, float]:
        """In forward passes of `size` pictures. A step that failed before starts anew."""
        for parameter in self.parameters:
            parameter.grad = None
        anti_drift, loss, drift = self._tuner.anti_drift, 0.0, 0.0
        for batch in drawn.split(size):
            share = len(batch.texts) / whole
            with self._checkpointing():
                with self.accelerator.autocast():
                    part, drifted = self._objective(batch, against_base=anti_drift > 0)
                total = share * (part + anti_drift * drifted)
                if not math.isfinite(total.item()):
                    return math.nan, math.nan
                (total * scale).backward()
            loss += share * part.item()
            drift += share * drifted.item()
        return loss, drift

    @contextmanager
    def _checkpointing(self) -> Iterator[None]:
        """Around a forward and a backward pass alone: whoever samples from this UNet next finds it as it was."""
        if not self._tuner.gradient_checkpointing:
            yield
            return
        unet = self._objective.unet
        unet.enable_gradient_checkpointing()
        try:
            yield
        finally:
            unet.disable_gradient_checkpointing()


@dataclass(frozen=True, eq=False)
class Batch:
    """latents and noise (B, C, h, w), timesteps and weights (B,), B texts; all on the CPU."""

    latents: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor
    weights: torch.Tensor
    texts: tuple[str, ...]

    def split(self, size: int) -> Iterator[Batch]:
        for start in range(0, len(self.texts), size):
            part = slice(start, start + size)
            yield Batch(
                self.latents[part], self.noise[part], self.timesteps[part], self.weights[part], self.texts[part]
            )


class _Batches:
    """Draws what a step trains on. A step is drawn whole, so that accumulation does not change the draws."""

    def __init__(self, winners: Sequence[Winner], *, condition_drop: float, seed: int) -> None:
        for winner in winners:
            if not 0 <= winner.weight < math.inf:
                raise ValueError(f"winner {winner.sample.id} has weight {winner.weight}; it must be finite, 0 or more")
        winners = [winner for winner in winners if winner.weight > 0]
        if not winners:
            raise ValueError("there is no winner with a weight above 0 to learn from")
        sizes = {tuple(winner.sample.data.latent.shape) for winner in winners}
        if len(sizes) > 1:
            raise ValueError(f"the winners' latents differ in size, {sorted(sizes)}; train on pictures of one size")
        self.texts = ["", *dict.fromkeys(winner.sample.prompt.text for winner in winners)]
        self._winners_texts = [winner.sample.prompt.text for winner in winners]
        self._latents = torch.stack([winner.sample.data.latent for winner in winners])
        weights = torch.tensor([winner.weight for winner in winners])
        self._weights = weights / weights.mean()
        self._condition_drop = condition_drop
        self._generator = torch.Generator("cpu").manual_seed(seed)
        self._order = self._epochs()

    def draw(self, count: int, noise_levels: int) -> Batch:
        """The next `count` pictures of the shuffled epochs, each with its own noise, noise level and drop."""
        chosen = list(islice(self._order, count))
        latents = self._latents[chosen]
        noise = torch.randn(latents.shape, generator=self._generator)
        timesteps = torch.randint(noise_levels, (count,), generator=self._generator)
        dropped = torch.rand(count, generator=self._generator) < self._condition_drop
        texts = tuple("" if drop else self._winners_texts[i] for i, drop in zip(chosen, dropped.tolist(), strict=True))
        return Batch(latents, noise, timesteps, self._weights[chosen], texts)

    def _epochs(self) -> Iterator[int]:
        while True:
            yield from torch.randperm(len(self._latents), generator=self._generator).tolist()


class _Objective:
    """The weighted denoising loss of a batch under the policy as it is now."""

    def __init__(self, policy: DiffusionPolicy, snr_gamma: float | None, texts: Sequence[str]) -> None:
        self._policy = policy
        self._components = policy.components
        self.unet: Any = policy.components.unet
        self._scheduler = make_scheduler("DDPM", self._components.scheduler_config)
        self._predicts_velocity = self._components.prediction_type == "v_prediction"
        if self._components.prediction_type not in ("epsilon", "v_prediction"):
            raise ValueError(f"cannot tune a model that predicts {self._components.prediction_type!r}")
        self.noise_levels: int = self._scheduler.config.num_train_timesteps
        self._level_weights = self._min_snr(snr_gamma).to(self._components.device)
        self._learns_text = policy.trained.trains_text_encoder
        if not self._learns_text:
            policy.embed(texts)  # cached here, in full precision: under autocast the cache would keep rounded states

    def __call__(self, batch: Batch, *, against_base: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss and, if wanted, the mean squared difference of the prediction from the base's; else 0."""
        device = self._components.device
        latents, noise, timesteps = (part.to(device) for part in (batch.latents, batch.noise, batch.timesteps))
        noisy = self._scheduler.add_noise(latents, noise, timesteps)
        target = self._scheduler.get_velocity(latents, noise, timesteps) if self._predicts_velocity else noise
        base = None
        if against_base:  # first: switching the adapter off and on touches what the graph of the gradients holds
            with torch.no_grad(), self._policy.base():
                base = self._predict(noisy, timesteps, self._policy.embed(batch.texts))
        text = self._policy.encode(batch.texts) if self._learns_text else self._policy.embed(batch.texts)
        predicted = self._predict(noisy, timesteps, text)
        errors = (predicted - target).square().mean(dim=(1, 2, 3))
        loss = (errors * self._level_weights[timesteps] * batch.weights.to(device)).mean()
        return loss, loss.new_zeros(()) if base is None else (predicted - base).square().mean()

    def _predict(self, noisy: torch.Tensor, timesteps: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        dtype = self._components.dtype
        return self._components.unet(
            noisy.to(dtype), timesteps, encoder_hidden_states=text.to(dtype), return_dict=False
        )[0].float()

    def _min_snr(self, gamma: float | None) -> torch.Tensor:
        """(T,): min(snr, gamma) over snr for noise and over snr + 1 for velocity (arXiv:2303.09556, section 3.4)."""
        signal = self._scheduler.alphas_cumprod
        if gamma is None:
            return torch.ones_like(signal)
        snr = signal / (1 - signal)
        if self._predicts_velocity:
            return snr.clamp(max=gamma) / (snr + 1)
        return (gamma / snr).clamp(max=1)  # so written it is finite where there is no signal
