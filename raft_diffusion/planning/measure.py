"""A short look at how fast this machine really is: the run's model, at the run's size."""

from __future__ import annotations

import time
from typing import Any

from ..core.config import Config
from ..core.records import Draw, Prompt, Sample, Scored, Winner
from .nfe import sampling_rows
from .speed import Measured


def measure(config: Config) -> Measured:
    """Load the model, and time a UNet call on a full batch of candidates and a step of finetuning.

    Each is done twice and the second time counts: the first one also sets up kernels and memory. Imports torch; for a
    model on the hub it downloads what is not yet there.
    Raises ValueError for a model or a device that cannot be used.
    """
    from .. import assemble

    assemble.prepare(config.threads)
    policy = assemble.make_policy(config)
    return Measured(unet_seconds=_unet(policy, sampling_rows(config)), tuning_seconds=_tuning(policy, config))


def _unet(policy: Any, rows: int) -> float:
    import torch

    parts, settings = policy.components, policy.settings
    size = (settings.height // parts.scale_factor, settings.width // parts.scale_factor)
    latents = torch.zeros(rows, parts.unet.config["in_channels"], *size, device=parts.device, dtype=parts.dtype)
    seconds = 0.0
    with torch.no_grad():
        text = policy.embed([""] * rows).to(parts.dtype)
        for _ in range(2):
            start = time.perf_counter()
            output = parts.unet(latents, torch.tensor(500), encoder_hidden_states=text, return_dict=False)[0]
            output.sum().item()  # a card works on while Python goes ahead; this waits for it
            seconds = time.perf_counter() - start
    return seconds


def _tuning(policy: Any, config: Config) -> float:
    import torch
    from PIL import Image

    from .. import assemble
    from ..diffusion import Picture

    parts, settings = policy.components, policy.settings
    size = (settings.height // parts.scale_factor, settings.width // parts.scale_factor)
    prompt, image = Prompt("measured"), Image.new("RGB", (1, 1))
    latents = torch.zeros(config.tuning.batch_size, parts.unet.config["in_channels"], *size)
    pictures = [Sample(Draw(prompt, k, k), Picture(latent, image)) for k, latent in enumerate(latents)]
    winners = [Winner(Scored(picture, {}), key=0.0) for picture in pictures]
    ends: list[float] = []
    changed = config.with_overrides(["tuning.steps=2", "tuning.gradient_accumulation=1"])
    tuner = assemble.make_tuner(changed, lambda *_: ends.append(time.perf_counter()))
    tuner(policy, winners, seed=0)
    return ends[1] - ends[0]
