"""Stable Diffusion as a modality of the loop: load a model, sample from it, tune its LoRA, keep its pictures."""

from ..webui import PromptWarning
from .adapter import Adapter
from .load import Components, choose_dtype, load, resolve_model
from .pictures import Picture, PictureCodec, before_after, save_png
from .sampler import DiffusionPolicy
from .settings import Settings
from .sheet import grid
from .tuner import DiffusionTuner

__all__ = [
    "Adapter",
    "Components",
    "DiffusionPolicy",
    "DiffusionTuner",
    "Picture",
    "PictureCodec",
    "PromptWarning",
    "Settings",
    "before_after",
    "choose_dtype",
    "grid",
    "load",
    "resolve_model",
    "save_png",
]
