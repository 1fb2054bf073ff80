"""When to stop. RAFT (Dong et al. 2023, arXiv:2304.06767) repeats its three steps until the reward converges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def is_flat(metrics: Sequence[Mapping[str, Any]], weights: Mapping[str, float], patience: int) -> bool:
    """Whether none of the last `patience` rounds was better than the best round before them.

    metrics: the rounds' plain numbers in order, each with "mean" and "deviation" by reward (see `read_metrics`).
    weights: the ranking rewards; a negative weight counts a falling reward as progress.
    patience: in rounds, at least 1; a run of no more rounds than that is never flat.

    A round is judged by its progress: the sum over the rewards of weight * (mean - mean of round 1) / deviation of
    round 1, so that rewards of any unit add up. A reward that was constant in round 1 adds 0.
    Raises ValueError for a weight of a reward that the rounds did not score.
    """
    if patience < 1:
        raise ValueError(f"patience must be at least 1 round, not {patience}")
    progress = [_progress(row, metrics[0], weights) for row in metrics]
    return len(progress) > patience and max(progress[-patience:]) <= max(progress[:-patience])


def _progress(row: Mapping[str, Any], first: Mapping[str, Any], weights: Mapping[str, float]) -> float:
    for name in weights:
        if name not in row["mean"]:
            known = ", ".join(sorted(row["mean"]))
            raise ValueError(f"the weights name the reward {name!r}, which scored nothing; known: {known}")
    deviations = first.get("deviation", {})  # rounds of an older version have none: their rewards count as they are
    return sum(
        weight * (row["mean"][name] - first["mean"][name]) / deviation
        for name, weight in weights.items()
        if (deviation := deviations.get(name, 1.0))
    )
