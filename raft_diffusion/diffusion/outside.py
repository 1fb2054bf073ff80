"""Pictures that the policy did not make, as if it had: brought to the run's size and encoded by its VAE."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from .load import Components
from .pictures import Picture


class Outside:
    """Encodes pictures for the tuner, each once and alone.

    components: the frozen model. width, height: of the run's pictures in pixels.

    The latent is the mean of the VAE's posterior, not a draw from it: it is the same whenever a run is resumed, and a
    draw that is cached would teach one and the same noise in every round. A batch's other pictures would show in its
    last bits, so none is encoded with others.
    """

    def __init__(self, components: Components, *, width: int, height: int) -> None:
        self._components, self._size = components, (width, height)
        self._latents: dict[Hashable, torch.Tensor] = {}

    def picture(self, image: Image.Image, *, name: str, key: Hashable = None) -> Picture:
        """An RGB image of any size: enlarged or shrunk until it covers the run's size, and the middle cut out.

        The picture is scored as it is, not as the VAE would give it back. key: of its latent, which is kept; None:
        it is not asked for again. Raises ValueError, with its name, for a picture whose latent is not finite.
        """
        fitted = ImageOps.fit(image, self._size, Image.Resampling.LANCZOS)
        fitted.info = {}
        latent = self._latents.get(key) if key is not None else None
        if latent is None:
            latent = self._encode(fitted)
            if not latent.isfinite().all():
                raise ValueError(f"{name} cannot be learned: its latent is not finite; set precision to fp32")
            if key is not None:
                self._latents[key] = latent
        return Picture(latent, fitted)

    @torch.no_grad()
    def _encode(self, image: Image.Image) -> torch.Tensor:
        """(C, h, w), float32 on the CPU, scaled as the UNet sees it."""
        vae: Any = self._components.vae
        pixels = torch.from_numpy(np.asarray(image).astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
        mean = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode()[0]
        return (mean.float() * vae.config["scaling_factor"]).cpu()
