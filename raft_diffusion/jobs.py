"""From a preset or a TOML file and the command line's options to the settings of a run."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import recipes
from .core.config import Config
from .core.prompts import find_prompts
from .core.toml import format_value
from .llm.config import TextConfig
from .lora.start import agree_with_lora
from .modality import AnyConfig, identity_of, is_text
from .places import located
from .rewards import score_name

PRESETS = Path(__file__).parent / "presets"


def load_config(
    source: str,
    *,
    seed: int | None = None,
    threads: int | None = None,
    device: str | None = None,
    model: str | None = None,
    revision: str | None = None,
    variant: str | None = None,
    prediction_type: str | None = None,
    lora: str | None = None,
    prompts: str | None = None,
    held_out: float | None = None,
    reward: str | None = None,
    generators: Sequence[str] = (),
    recipe: str | None = None,
    changes: Sequence[str] = (),
) -> AnyConfig:
    """A preset by name or a TOML file, of a run that makes pictures or texts, with the command line's changes.

    prompts: a carried list, a file or one prompt (see `find_prompts`); held_out: the share of them never trained on.
    lora: where the tuning starts; its rank, alpha and layers are taken where the user's own settings do not say them.
    reward: what ranks, alone: a known one, "module:function", or "human" for the person at the screen.
    generators: who makes the candidates, in equal shares: "policy", "folder:PATH", "module:function".
    recipe: one of `recipes.RECIPES`, put on top of the job that all the rest describes.
    Of a text run, prompts is its JSONL file, and what pictures alone have is refused.
    Raises ValueError for everything that is not as it must be.
    """
    options = {"seed": seed, "threads": threads, "device": device, "model": model, "revision": revision}
    of_pictures = {"variant": variant, "prediction_type": prediction_type, "lora": lora}
    file = _config_file(source)
    loaded = config_of(file)
    if isinstance(loaded, TextConfig):
        _refuse_of_pictures(of_pictures | {"held_out": held_out, "recipe": recipe, "generator": generators or None})
        return located(loaded.with_overrides([*changes, *_given(options | {"prompts.train": prompts})]), Path.cwd())
    if held_out is not None and prompts is None:
        raise ValueError("--held-out splits the prompts of --prompts; give both")
    given = _given(options | of_pictures)
    ranking = [] if reward is None else _ranked_by(reward)
    mixed = [f"sampling.sources={format_value(dict.fromkeys(generators, 1.0))}"] if generators else []
    config = located(loaded.with_overrides([*ranking, *mixed, *changes, *given]), Path.cwd())
    if prompts is not None:
        config = _with_prompts(config, prompts, held_out)
    changed = [change.partition("=")[0].strip() for change in changes]
    if recipe is not None:
        config = recipes.apply(config, recipe, given=changed)
    # What a preset says of its LoRA was not chosen for the one to start from.
    own = [] if file.parent == PRESETS else [f"tuning.{key}" for key in loaded.tuning.model_fields_set]
    return agree_with_lora(config, {*changed, *own})


def _ranked_by(reward: str) -> list[str]:
    """The changes that let one reward rank alone."""
    name = score_name(reward)
    changes = {"rewards.weights": {name: 1.0}, "rewards.custom": [reward] if name != reward else []}
    return [f"{key}={format_value(value)}" for key, value in changes.items()]


def config_of(path: Path) -> AnyConfig:
    """The settings in a TOML file, of either kind; paths in it are looked for beside it first.

    Raises ValueError with every problem at once.
    """
    if is_text(path):
        return located(TextConfig.load(path), path.parent)
    config = Config.load(path)
    return config if path.parent == PRESETS else located(config, path.parent)


def _given(options: Mapping[str, Any]) -> list[str]:
    """Those that were given, as `with_overrides` takes them."""
    return [f"{key}={format_value(value)}" for key, value in options.items() if value is not None]


def _refuse_of_pictures(options: Mapping[str, Any]) -> None:
    if given := [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]:
        raise ValueError(f"{given[0]} is for runs that make pictures, and this one writes texts; leave it out")


def _with_prompts(config: Config, prompts: str, held_out: float | None) -> Config:
    found = find_prompts(prompts)
    config = config.with_prompts(found, held_out)
    dropped = len(found) - len(config.prompts.train)
    if held_out is None and dropped:
        warnings.warn(f"{dropped} of {len(found)} prompts are held out by the settings, not trained on", stacklevel=3)
    return config


def _config_file(source: str) -> Path:
    if Path(source).suffix == ".toml":
        return Path(source)
    presets = sorted(preset.stem for preset in PRESETS.glob("*.toml"))
    if source not in presets:
        near = difflib.get_close_matches(source, presets, n=2, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"use one of {', '.join(presets)}."
        raise ValueError(f"unknown preset {source!r}: {hint} A file NAME.toml will do, too")
    return PRESETS / f"{source}.toml"


def default_folder(config: AnyConfig) -> Path:
    """runs/<name>-<hash>: the same settings find the same run; what may change in a run does not count."""
    return Path("runs") / f"{config.name}-{identity_of(config)[:8]}"
