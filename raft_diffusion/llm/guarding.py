"""What the guard of a text run looks at, and how it judges. `guarding` keeps the looks."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from ..core.guard import Verdict, guard_draws
from ..core.records import Sample
from ..guarding import Watch, last_verdict
from . import data
from .config import EXACT, TextConfig
from .metrics import text_distance

HELD_OUT = "held_out"


def watch_of(config: TextConfig) -> Watch | None:
    """None where the guard is off or has no reward."""
    guard = config.guard
    if guard.reward is None or not guard.enabled:
        return None
    draws = guard_draws(data.train_prompts(config), data.held_out_prompts(config), guard.samples, seed=config.seed)
    temperature = config.evaluation.temperature or config.sampling.temperature
    return Watch(
        model=guard.reward,
        judge=f"{guard.reward}, temperature {temperature:g}",
        reward=EXACT if guard.reward == EXACT else HELD_OUT,
        draws=tuple(draws),
    )


def verdict_of(config: TextConfig, root: Path, done: int) -> Verdict | None:
    """The judgement of the last of `done` rounds, from the looks that lie in `root`; None where one is missing."""
    return last_verdict(watch_of(config), config.guard, root, rounds=config.rounds, done=done)


def distances_within(samples: Sequence[Sample]) -> list[float]:
    """Each text's mean distance to the others of its prompt; 0 for a prompt's only one."""
    distances = []
    for sample in samples:
        others = [other for other in samples if other.prompt.id == sample.prompt.id and other is not sample]
        distances.append(statistics.fmean(text_distance(sample, other) for other in others) if others else 0.0)
    return distances
