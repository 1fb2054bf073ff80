"""What is refused before anything is loaded: settings of a text run that lead nowhere. Nothing here imports torch."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from pathlib import Path

from ..checks import check_device, check_trackers, run_all
from ..rewards import split_custom
from . import data, pocket
from .config import EXACT, TextConfig
from .examples import read_examples, truths


def check(config: TextConfig) -> None:
    """Refuse names and files that lead nowhere. Raises ValueError with every problem."""
    prompts, rewards, tuning, guard = config.prompts, config.rewards, config.tuning, config.guard
    named = (config.model, config.teacher, rewards.classifier, guard.reward if guard.reward != EXACT else None)
    checks: list[Callable[[], object]] = [
        lambda: check_device(config.device),
        lambda: check_trackers(config.trackers),
        *(lambda name=name: check_model(name) for name in named if name is not None),
        *(lambda name=name: split_custom(name) for name in rewards.custom),
        lambda: _check_guard(config),
        lambda: _check_prompts(config),
        lambda: prompts.reference and data.references(prompts.reference),
        lambda: tuning.examples and read_examples(Path(tuning.examples)),
        lambda: config.teacher_lora and _check_lora(Path(config.teacher_lora)),
    ]
    run_all(checks)


def check_model(name: str) -> None:
    """Refuse a carried model's name that is misspelt. A folder or a hub id is tried when it is loaded."""
    if name.startswith("pocket") and name not in pocket.CARRIED and not os.path.isdir(name):
        near = difflib.get_close_matches(name, pocket.CARRIED, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"no carried language model {name!r}: {hint}Known are {', '.join(pocket.CARRIED)}")


def _check_guard(config: TextConfig) -> None:
    guard = config.guard
    if guard.enabled and guard.reward is not None and guard.reward == config.rewards.classifier:
        raise ValueError(
            f"guard.reward is {guard.reward}, which ranks: a guard must take no part in the ranking, so give another "
            "classifier, or leave it out"
        )


def _check_prompts(config: TextConfig) -> None:
    train, held_out = data.train_rows(config), data.held_out_rows(config)
    if (count := config.prompts.per_round) is not None and count > len(train):
        raise ValueError(f"prompts.per_round is {count}, more than the {len(train)} prompts; lower it")
    if shared := {row["prompt"] for row in train} & {row["prompt"] for row in held_out}:
        raise ValueError(f"{sorted(shared)[0][:80]!r} is both trained and held out; keep it on one side")
    if EXACT in config.rewards.weights or config.guard.reward == EXACT:
        truths([*train, *held_out])


def _check_lora(folder: Path) -> None:
    if not os.path.isfile(folder / "adapter_config.json"):
        raise ValueError(f"{folder} holds no adapter of a text run; give its lora folder")
