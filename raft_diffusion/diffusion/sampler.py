"""Sample pictures from a frozen Stable Diffusion model under the live adapter: the Policy of the loop.

Legend: B pictures a batch, C latent channels, (h, w) the latent's size, T tokens, D the text width.
"""

from __future__ import annotations

import difflib
import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from PIL import Image

from ..core.records import Draw, Sample
from .adapter import Adapter
from .load import Components
from .pictures import Picture

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total) as the work goes on."""

SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {}),
    "DPM++ 2M Karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "DPM++ 2M SDE": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "DPM++ 2M SDE Karras": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
    ),
    "UniPC": ("UniPCMultistepScheduler", {}),
    "Euler": ("EulerDiscreteScheduler", {}),
    "Euler a": ("EulerAncestralDiscreteScheduler", {}),
    "Heun": ("HeunDiscreteScheduler", {}),
    "PNDM": ("PNDMScheduler", {}),
    # Latents leave [-1, 1]; these two clip to it unless the model's own configuration forbids it.
    "DDIM": ("DDIMScheduler", {"clip_sample": False}),
    "DDPM": ("DDPMScheduler", {"clip_sample": False}),
}
"""The samplers by the names that WebUIs give them: diffusers' class and its settings, the plain form first."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to sample.

    width, height: of the picture in pixels, multiples of the VAE's factor (8 for Stable Diffusion).
    num_inference_steps: denoising steps.
    guidance_scale: of classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598) in diffusers' convention:
        1 or less means none, and half the work.
    scheduler: a name of `SCHEDULERS` or the diffusers class behind it.
    batch_size: pictures sampled at once; it does not change them.
    eta: the noise of DDIM, 0 to 1 (Song et al. 2020, arXiv:2010.02502, equation 16).
    """

    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    scheduler: str
    batch_size: int
    eta: float = 0.0

    def __post_init__(self) -> None:
        for name in ("width", "height", "num_inference_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.guidance_scale < math.inf:
            raise ValueError(f"guidance_scale is {self.guidance_scale}; it must be 0 or more")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta is {self.eta}; it must lie between 0 and 1")


def make_scheduler(name: str, config: Mapping[str, Any]) -> Any:
    """A fresh diffusers scheduler with the model's own noise schedule. Raises ValueError for an unknown name."""
    known = {kind: (kind, changes) for kind, changes in reversed(SCHEDULERS.values())} | SCHEDULERS
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.3)
        hint = f"; nearest: {', '.join(nearest)}" if nearest else ""
        raise ValueError(f"unknown scheduler {name!r}{hint}; known: {', '.join(SCHEDULERS)}")
    kind, changes = known[name]
    return getattr(diffusers, kind).from_config(config, **changes)


class DiffusionPolicy:
    """The model that samples, and the LoRA on it that learns. It satisfies `core.loop.Policy`.

    components: the frozen model; the policy puts its adapter into it, so it belongs to one policy.
    settings: how candidates are collected.
    progress: called with ("sample", pictures done, pictures in all) after each batch.
    Raises ValueError when the settings do not fit the model.
    """

    def __init__(self, components: Components, *, settings: Settings, progress: Progress | None = None) -> None:
        self.components = components
        self.settings = settings
        self.adapter: Adapter | None = None
        self._progress = progress
        self._embeddings: dict[str, torch.Tensor] = {}
        self._scheduler(settings)

    def add_adapter(
        self,
        *,
        rank: int,
        alpha: float,
        targets: Sequence[str] = ("attention",),
        text_encoder: bool = False,
        seed: int = 0,
    ) -> None:
        """Put a fresh LoRA on the model (see `Adapter`); it changes nothing until it is trained or loaded."""
        self.adapter = Adapter(
            self.components, rank=rank, alpha=alpha, targets=targets, text_encoder=text_encoder, seed=seed
        )

    @property
    def trained(self) -> Adapter:
        """The adapter. Raises ValueError when there is none."""
        if self.adapter is None:
            raise ValueError("this policy has no adapter to train, save or load; call add_adapter first")
        return self.adapter

    def save(self, folder: Path) -> None:
        """Write the adapter into `folder` (see `Adapter.save`)."""
        self.trained.save(folder)

    def load(self, folder: Path) -> None:
        """Set the adapter to the one in `folder`, bit by bit (see `Adapter.load`)."""
        self.trained.load(folder)

    @contextmanager
    def base(self) -> Iterator[None]:
        """Within this context the policy is the untouched base model."""
        if self.adapter is None:
            yield
            return
        self.adapter.enable(False)
        try:
            yield
        finally:
            self.adapter.enable(True)

    @torch.no_grad()
    def generate(self, draws: Sequence[Draw], settings: Settings | None = None) -> list[Sample]:
        """One picture for each draw, in order, from the weights as they are now.

        A picture follows from its draw's prompt and seed and the settings alone, never from its neighbours.
        settings: other than the policy's own, say for an evaluation.
        Raises ValueError when the settings do not fit the model, RuntimeError when a picture is not finite.
        """
        settings = settings or self.settings
        scheduler = self._scheduler(settings)
        samples: list[Sample] = []
        for start in range(0, len(draws), settings.batch_size):
            batch = draws[start : start + settings.batch_size]
            latents = self._denoise(batch, settings, scheduler)
            for draw, latent in zip(batch, latents, strict=True):
                if not latent.isfinite().all():
                    raise RuntimeError(f"sample {draw.id} ({draw.prompt.text!r}) is not finite; tune more gently")
            pictures = zip(latents.cpu(), self.decode(latents), strict=True)
            samples += [
                Sample(draw, Picture(latent.clone(), image))
                for draw, (latent, image) in zip(batch, pictures, strict=True)
            ]
            if self._progress:
                self._progress("sample", len(samples), len(draws))
        return samples

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> list[Image.Image]:
        """The RGB pictures of latents (B, C, h, w) scaled as the UNet sees them."""
        vae = self.components.vae
        pixels = vae.decode((latents / vae.config["scaling_factor"]).to(vae.device, vae.dtype), return_dict=False)[0]
        pixels = ((pixels.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        return [Image.fromarray(array) for array in pixels.permute(0, 2, 3, 1).cpu().numpy()]

    def encode(self, texts: Sequence[str]) -> torch.Tensor:
        """The text encoder's states (B, T, D), with gradients where it is trained. Warns of a text that is cut."""
        tokenizer, encoder = self.components.tokenizer, self.components.text_encoder
        limit = tokenizer.model_max_length
        for text in texts:
            length = len(tokenizer(text, verbose=False).input_ids)
            if length > limit:
                warnings.warn(f"{text!r} has {length} tokens, and the model reads the first {limit}", stacklevel=2)
        tokens = tokenizer(list(texts), padding="max_length", max_length=limit, truncation=True, return_tensors="pt")
        mask = tokens.attention_mask if getattr(encoder.config, "use_attention_mask", False) else None
        return encoder(tokens.input_ids.to(encoder.device), attention_mask=mask, return_dict=False)[0]

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> torch.Tensor:
        """As `encode`, without gradients, each text by itself and, unless the encoder learns, only once ever."""
        cache = {} if self.adapter and self.adapter.trains_text_encoder else self._embeddings
        for text in texts:
            if text not in cache:
                cache[text] = self.encode([text])[0]
        return torch.stack([cache[text] for text in texts])

    def _scheduler(self, settings: Settings) -> Any:
        factor = self.components.scale_factor
        for name in ("width", "height"):
            pixels = getattr(settings, name)
            if pixels % factor:
                near = max(factor, round(pixels / factor) * factor)
                raise ValueError(f"{name} is {pixels}; this model needs a multiple of {factor}, such as {near}")
        scheduler = make_scheduler(settings.scheduler, self.components.scheduler_config)
        if settings.num_inference_steps > scheduler.config.num_train_timesteps:
            raise ValueError(
                f"num_inference_steps is {settings.num_inference_steps}; "
                f"the model knows only {scheduler.config.num_train_timesteps} noise levels"
            )
        if settings.eta and "eta" not in inspect.signature(scheduler.step).parameters:
            raise ValueError(f"eta is {settings.eta}, but the scheduler {settings.scheduler!r} has none; set it to 0")
        return scheduler

    def _denoise(self, draws: Sequence[Draw], settings: Settings, scheduler: Any) -> torch.Tensor:
        """The latents (B, C, h, w), float32 on the device. All noise comes from one CPU generator a picture."""
        unet, device, dtype = self.components.unet, self.components.device, self.components.dtype
        factor = self.components.scale_factor
        shape = (1, unet.config["in_channels"], settings.height // factor, settings.width // factor)
        generators = [torch.Generator("cpu").manual_seed(draw.seed) for draw in draws]
        scheduler.set_timesteps(settings.num_inference_steps, device=device)
        noise = torch.cat([torch.randn(shape, generator=generator) for generator in generators])
        latents = noise.to(device) * scheduler.init_noise_sigma
        known = inspect.signature(scheduler.step).parameters
        extra = {k: v for k, v in {"eta": settings.eta, "generator": generators}.items() if k in known}
        guided = settings.guidance_scale > 1
        negatives = [draw.prompt.negative for draw in draws] if guided else []
        text = self.embed([*negatives, *(draw.prompt.text for draw in draws)]).to(dtype)
        for timestep in scheduler.timesteps:
            inputs = scheduler.scale_model_input(latents, timestep).to(dtype)
            inputs = torch.cat([inputs, inputs]) if guided else inputs
            output = unet(inputs, timestep, encoder_hidden_states=text, return_dict=False)[0].float()
            if guided:
                negative, positive = output.chunk(2)
                output = negative + settings.guidance_scale * (positive - negative)
            latents = scheduler.step(output, timestep, latents, **extra, return_dict=False)[0]
        return latents
