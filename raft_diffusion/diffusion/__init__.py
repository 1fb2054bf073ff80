"""Stable Diffusion as a modality of the loop: load a model, sample from it, tune its LoRA, keep its pictures."""

from .adapter import Adapter
from .load import Components, load, resolve_model
from .pictures import Picture, PictureCodec, before_after
from .sampler import DiffusionPolicy, Settings
from .tuner import DiffusionTuner

__all__ = [
    "Adapter",
    "Components",
    "DiffusionPolicy",
    "DiffusionTuner",
    "Picture",
    "PictureCodec",
    "Settings",
    "before_after",
    "load",
    "resolve_model",
]
