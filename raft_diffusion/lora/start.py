"""A run that starts from a LoRA: its settings agree with the file's. Nothing here imports torch."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ..core.config import Config
from ..core.toml import format_value
from .file import StoredLora, find_lora, read_lora


def agree_with_lora(config: Config, chosen: Collection[str]) -> Config:
    """The configuration with the rank, alpha and layers of `config.lora`, which warns of what it took from the file.

    chosen: settings, such as "tuning.rank", that are the user's own. They stay, and must go with the LoRA: the same
        rank and alpha, and at least its layers.
    Raises ValueError for a LoRA that cannot be used, and for settings of the user's that do not go with it.
    """
    if config.lora is None:
        return config
    stored = read_lora(find_lora(Path(config.lora)))
    wanted, problems = _settings(config, stored), []
    present = config.flat()
    for key, value in list(wanted.items()):
        if key not in chosen:
            continue
        del wanted[key]
        if not _goes_with(present[key], value):
            problems.append(f"{key} is {format_value(present[key])} and that of the LoRA {format_value(value)}")
    if problems:
        them = "it" if len(problems) == 1 else "them"
        raise ValueError(
            f"{'; '.join(problems)}: to start from {config.lora}, leave {them} out or set what the LoRA has"
        )
    if not wanted:
        return config
    taken = [f"{key}={format_value(value)}" for key, value in wanted.items()]
    warnings.warn(f"the run starts from {config.lora} and takes from it: {', '.join(taken)}", stacklevel=2)
    return config.with_overrides(taken)


def _settings(config: Config, stored: StoredLora) -> dict[str, Any]:
    """What the file says. One of the text encoder alone says nothing of the UNet's layers."""
    return {
        "tuning.rank": stored.rank,
        "tuning.alpha": stored.alpha,
        "tuning.targets": list(stored.targets) or list(config.tuning.targets),
        "tuning.text_encoder": stored.text_encoder,
    }


def _goes_with(present: Any, of_lora: Any) -> bool:
    if isinstance(of_lora, list):
        return set(present) >= set(of_lora)
    return present or not of_lora if isinstance(of_lora, bool) else present == of_lora
