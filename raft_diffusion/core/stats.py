"""Is the tuned model better than the base? Paired comparisons on the same prompts and seeds."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

_ROWS = 500
"""Resamples drawn at once: bounds the memory, changes no number."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean difference and the two ends of its confidence interval."""

    mean: float
    low: float
    high: float


def paired_bootstrap(
    base: Sequence[float],
    tuned: Sequence[float],
    *,
    seed: int,
    resamples: int = 10_000,
    level: float = 0.95,
    clusters: Sequence[Hashable] | None = None,
) -> Interval:
    """Mean of tuned - base over n pairs, with its percentile bootstrap interval (Efron and Tibshirani 1993, ch. 13).

    clusters: a label a pair, such as its prompt's id. Pictures of one prompt are no independent evidence, so whole
        clusters are drawn where there are at least two; a lone cluster falls back to single pairs.
    level: the share of intervals that hold the true mean, in (0, 1).

    Raises ValueError for uneven, empty or not finite input.
    """
    import numpy as np

    difference = _differences(base, tuned)
    if not 0 < level < 1:
        raise ValueError(f"the confidence level must lie between 0 and 1, not {level}")
    if resamples < 1:
        raise ValueError(f"the bootstrap needs at least 1 resample, not {resamples}")
    if clusters is not None and len(clusters) != len(difference):
        raise ValueError(f"{len(clusters)} cluster labels cannot belong to {len(difference)} pairs; give one a pair")
    labels = {label: i for i, label in enumerate(dict.fromkeys(clusters or ()))}
    member = np.arange(len(difference))
    if clusters is not None and len(labels) > 1:
        member = np.array([labels[label] for label in clusters])
    sums = np.bincount(member, weights=difference)
    sizes = np.bincount(member)

    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    for start in range(0, resamples, _ROWS):
        picks = rng.integers(len(sums), size=(min(_ROWS, resamples - start), len(sums)))
        means[start : start + len(picks)] = sums[picks].sum(axis=1) / sizes[picks].sum(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(difference.mean()), float(low), float(high))


def win_rate(base: Sequence[float], tuned: Sequence[float]) -> float:
    """The share of pairs that the tuned model wins; a tie counts half. Raises ValueError as `paired_bootstrap`."""
    import numpy as np

    difference = _differences(base, tuned)
    return float(np.mean((difference > 0) + 0.5 * (difference == 0)))


def _differences(base: Sequence[float], tuned: Sequence[float]) -> np.ndarray:
    import numpy as np  # here, so that what only plans does not wait for it

    if len(base) != len(tuned):
        raise ValueError(f"{len(base)} base scores and {len(tuned)} tuned scores make no pairs; give the same number")
    if not len(base):
        raise ValueError("there is no pair to compare; give at least one score of each model")
    difference = np.asarray(tuned, dtype=float) - np.asarray(base, dtype=float)
    if not np.isfinite(difference).all():
        raise ValueError(f"pair {int(np.argmin(np.isfinite(difference)))} holds a score that is no finite number")
    return difference
