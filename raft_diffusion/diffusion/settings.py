"""How pictures are sampled: the settings, and the diffusers scheduler that follows them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import diffusers

from ..webui import SCHEDULERS, check_eta, find_scheduler
from .load import Components

ZERO_SNR = "rescale_betas_zero_snr"
"""diffusers' setting for a noise schedule whose last level is pure noise."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to sample.

    width, height: of the picture in pixels, multiples of the VAE's factor (8 for Stable Diffusion).
    num_inference_steps: denoising steps.
    guidance_scale: of classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598) in diffusers' convention:
        1 or less means none, and half the work.
    guidance_interval: where guidance is on, two shares of the steps from 0 (noise) to 1 (the picture); outside of it a
        step is not guided, which is half the work (Kynkäänniemi et al. 2024, arXiv:2404.07724, who give the interval
        as noise levels).
    scheduler: a name of `webui.SCHEDULERS` or the diffusers class behind it.
    batch_size: pictures sampled at once; it does not change them.
    eta: the noise of DDIM, 0 to 1 (Song et al. 2020, arXiv:2010.02502, equation 16), or of TCD.
    noise_scale: the deviation of the initial latent relative to the scheduler's: below 1 for tamer pictures, above for
        wilder ones, as a temperature does it for text.
    tiny_decoder: decode with the components' tiny decoder instead of their VAE; enough for scoring.
    """

    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    scheduler: str
    batch_size: int
    eta: float = 0.0
    noise_scale: float = 1.0
    tiny_decoder: bool = False
    guidance_interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        for name in ("width", "height", "num_inference_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.guidance_scale < math.inf:
            raise ValueError(f"guidance_scale is {self.guidance_scale}; it must be 0 or more")
        low, high = self.guidance_interval
        if not 0 <= low < high <= 1:
            raise ValueError(
                f"guidance_interval is {low} to {high}; it needs two shares of the steps, 0 <= low < high <= 1"
            )
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta is {self.eta}; it must lie between 0 and 1")
        if not 0 < self.noise_scale < math.inf:
            raise ValueError(f"noise_scale is {self.noise_scale}; it must be a finite number above 0")


def make_scheduler(name: str, config: Mapping[str, Any]) -> Any:
    """A fresh diffusers scheduler with the model's own noise schedule.

    Raises ValueError for an unknown name, and for one that cannot take a schedule that ends without any signal.
    """
    found = find_scheduler(name)
    kind = getattr(diffusers, found.kind)
    changes = dict(found.changes)
    if config.get(ZERO_SNR):
        if not _knows_zero_snr(kind):
            known = [name for name, other in SCHEDULERS.items() if _knows_zero_snr(getattr(diffusers, other.kind))]
            plain = ", ".join(name for name in known if SCHEDULERS[name].sampler == name)
            raise ValueError(
                f"the scheduler {name!r} cannot start from pure noise, as this model's zero-terminal-SNR schedule "
                f"asks for; choose from {plain}"
            )
        changes["timestep_spacing"] = "trailing"  # Lin et al. 2023 (arXiv:2305.08891), section 3.3
    return kind.from_config(config, **changes)


def _knows_zero_snr(kind: Any) -> bool:
    return ZERO_SNR in inspect.signature(kind.__init__).parameters


def scheduler_of(settings: Settings, components: Components) -> Any:
    """The sampler of these settings, ready for its first step. Raises ValueError for what does not fit the model."""
    factor = components.scale_factor
    for name in ("width", "height"):
        pixels = getattr(settings, name)
        if pixels % factor:
            near = max(factor, round(pixels / factor) * factor)
            raise ValueError(f"{name} is {pixels}; this model needs a multiple of {factor}, such as {near}")
    if settings.tiny_decoder and components.tiny_decoder is None:
        raise ValueError("these settings decode with a tiny decoder, and the model was loaded without one")
    scheduler = make_scheduler(settings.scheduler, components.scheduler_config)
    if settings.num_inference_steps > scheduler.config.num_train_timesteps:
        raise ValueError(
            f"num_inference_steps is {settings.num_inference_steps}; "
            f"the model knows only {scheduler.config.num_train_timesteps} noise levels"
        )
    check_eta(settings.eta, settings.scheduler)
    try:
        scheduler.set_timesteps(settings.num_inference_steps)
    except ValueError:
        raise ValueError(
            f"the scheduler {settings.scheduler!r} cannot take {settings.num_inference_steps} steps: "
            "LCM and TCD take 50 at most, PNDM 4 at least"
        ) from None
    return scheduler
