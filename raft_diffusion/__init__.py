"""RAFT for Stable Diffusion: sample K pictures a prompt, rank them, finetune a LoRA on the winners, repeat.

The names below are the public ones. Each is imported when it is first used, so that `import raft_diffusion` is instant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers and editors see; `__getattr__` below is what runs
    from .core.config import Config as Config
    from .core.loop import raft as raft
    from .core.loop import score as score
    from .core.prompts import draw_round as draw_round
    from .core.prompts import find_prompts as find_prompts
    from .core.records import Draw as Draw
    from .core.records import Prompt as Prompt
    from .core.records import Sample as Sample
    from .core.select import Select as Select
    from .core.store import RunFolder as RunFolder
    from .core.store import stored_rounds as stored_rounds
    from .diffusion.load import load as load_model  # noqa: F401
    from .diffusion.pictures import PictureCodec as PictureCodec
    from .diffusion.sampler import DiffusionPolicy as DiffusionPolicy
    from .diffusion.settings import Settings as Settings
    from .diffusion.sheet import grid as grid
    from .diffusion.tuner import DiffusionTuner as DiffusionTuner
    from .jobs import load_config as load_config
    from .rewards.clip import ClipTower as ClipTower
    from .runs import Run as Run

_HOMES = {
    "core.config": ("Config",),
    "core.loop": ("raft", "score"),
    "core.prompts": ("draw_round", "find_prompts"),
    "core.records": ("Draw", "Prompt", "Sample"),
    "core.select": ("Select",),
    "core.store": ("RunFolder", "stored_rounds"),
    "diffusion.load": ("load_model",),
    "diffusion.pictures": ("PictureCodec",),
    "diffusion.sampler": ("DiffusionPolicy",),
    "diffusion.settings": ("Settings",),
    "diffusion.sheet": ("grid",),
    "diffusion.tuner": ("DiffusionTuner",),
    "jobs": ("load_config",),
    "rewards.clip": ("ClipTower",),
    "runs": ("Run",),
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    home = next((module for module, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__dir__())}")
    value = getattr(import_module(f".{home}", __name__), "load" if name == "load_model" else name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(name for names in _HOMES.values() for name in names)
