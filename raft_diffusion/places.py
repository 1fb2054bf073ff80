"""Settings that are paths: made absolute, so that they lead to the same place from wherever a run is gone on with.

What a TOML file says is looked for beside that file, then in the present folder; what a command line says, in the
present folder. What is there under neither name (a hub id, a carried model) stays as it is written.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from .checks import POCKET, TOWERS
from .core.config import Config
from .core.toml import format_value
from .llm.config import EXACT, TextConfig
from .llm.pocket import CARRIED
from .rewards import PREFERENCES
from .sources import FOLDER

PLAIN = (
    *("model", "vae", "lora", "teacher", "teacher_lora", "prompts.train", "prompts.held_out", "prompts.reference"),
    *("sampling.tiny_decoder", "rewards.scorer", "rewards.held_out", "rewards.classifier", "guard.reward"),
    "tuning.examples",
)
"""Keys whose value may be a path; the prompts of a picture run are lists, and no paths."""
NAMES = {POCKET, EXACT, *TOWERS, *CARRIED, *PREFERENCES}
Settings = TypeVar("Settings", Config, TextConfig)


def located(config: Settings, folder: Path) -> Settings:
    """The settings with every relative path that is there, seen from `folder`, made absolute."""
    changes = [f"{key}={format_value(value)}" for key, value in _moved(config.flat(), folder)]
    return config.with_overrides(changes) if changes else config


def places_of(config: Config | TextConfig) -> dict[str, str]:
    """Dotted key -> where it leads, for the settings that are paths."""
    flat = config.flat()
    found = {key: value for key in PLAIN if isinstance(value := flat.get(key), str) and Path(value).is_absolute()}
    found |= {f"rewards.sources.{name}": path for name, path in flat.get("rewards.sources", {}).items()}
    folders = [source for source in flat.get("sampling.sources", {}) if source.startswith(FOLDER)]
    return found | {"sampling.sources": ", ".join(folders)} if folders else found


def _moved(flat: Mapping[str, Any], folder: Path) -> Iterator[tuple[str, Any]]:
    """(key, its value with absolute paths) for what changes."""
    for key in PLAIN:
        if isinstance(value := flat.get(key), str) and (there := _absolute(value, folder)) != value:
            yield key, there
    weights = {name: _absolute(value, folder) for name, value in flat.get("rewards.sources", {}).items()}
    if weights != flat.get("rewards.sources", {}):
        yield "rewards.sources", weights
    shares = flat.get("sampling.sources", {})
    moved = {_absolute_source(source, folder): share for source, share in shares.items()}
    if moved != shares:
        yield "sampling.sources", moved


def _absolute_source(source: str, folder: Path) -> str:
    return FOLDER + _absolute(source.removeprefix(FOLDER), folder) if source.startswith(FOLDER) else source


def _absolute(value: str, folder: Path) -> str:
    if value in NAMES or not value:
        return value
    try:
        path = folder / Path(os.path.expanduser(value))
        return os.path.abspath(path) if os.path.exists(path) else value  # a link keeps the name that its owner gave it
    except (OSError, RuntimeError, ValueError):  # no name that a file could have, or no such user's home
        return value
