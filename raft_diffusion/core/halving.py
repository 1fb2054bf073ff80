"""Successive halving of contests while their candidates are still being sampled: the arithmetic, and what it says of
itself (Karnin, Koren and Somekh 2013, "Almost Optimal Exploration in Multi-Armed Bandits").

Legend: K candidates a contest, `calls` of the UNet for one picture, stops after some of them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .records import Draw, Group, derive_seed

PRUNED = "pruned"
"""The figure that says which share of a round's candidates was left out: 0 where pruning is off."""


@dataclass(frozen=True, slots=True)
class Phase:
    """Calls `first` to `end` (without it), which `alive` candidates of a contest see."""

    alive: int
    first: int
    end: int


def guided_calls(calls: int, interval: Sequence[float]) -> range:
    """Which of the calls are guided. interval: its two ends as shares of the calls."""
    low, high = interval
    return range(round(low * calls), round(high * calls))


def phases(calls: int, k: int, *, at: Sequence[float] = (), keep: Sequence[float] = ()) -> list[Phase]:
    """What the candidates of a contest of `k` go through.

    at: the stops, as shares of the calls, rising. keep: the share of the k candidates that goes on after each, of which
    there is one at least; one more is always spared. A stop that would leave nobody out is none.
    """
    found, first, alive = [], 0, k
    for share, kept in zip(at, keep, strict=True):
        stop, left = round(share * calls), max(1, round(kept * k)) + 1
        if first < stop < calls and left < alive:
            found.append(Phase(alive, first, stop))
            first, alive = stop, left
    return [*found, Phase(alive, first, calls)]


def kept(draws: Sequence[Draw], scores: Mapping[str, float], *, count: int, spared: str | None) -> tuple[set[str], str]:
    """(the ids of the `count` of a contest that go on, the one among them that is spared).

    scores: by id, higher is better; equal ones go to the lower k. spared: the id that an earlier stop has spared, None
    at the first one, where it is drawn by lot among those that would be left out.
    """
    ranked = sorted((draw for draw in draws if draw.id != spared), key=lambda draw: (-scores[draw.id], draw.k))
    best, others = ranked[: count - 1], ranked[count - 1 :]
    if spared is None:
        spared = min(others, key=lambda draw: derive_seed(draw.seed, "spared")).id
    return {spared, *(draw.id for draw in best)}, spared


def early_name(share: float) -> str:
    """The name of the score at the stop after this share of the steps; no reward that ranks."""
    return f"early_{100 * share:g}"


def correlation_name(share: float) -> str:
    """The figure with the rank correlation of `early_name` and the final ranking."""
    return f"rank_correlation_{100 * share:g}"


def figures(
    groups: Sequence[Group], keys: Sequence[Sequence[float]], *, k: int, at: Sequence[float]
) -> dict[str, float]:
    """What a round says of its pruning; of one that was not pruned, that alone.

    "pruned"; for each stop Spearman's rank correlation with the final ranking, within the contests and over those that
    are left, as a mean; "spared_wins": the share of contests whose best candidate is the one that was spared.
    """
    candidates = sum(len(group.candidates) for group in groups)
    shares = [share for share in at if all(early_name(share) in c.scores for g in groups for c in g.candidates)]
    if not shares:
        return {PRUNED: 0.0}
    told = {PRUNED: 1 - candidates / (k * len(groups))}
    for share in shares:
        scores = [[candidate.scores[early_name(share)] for candidate in group.candidates] for group in groups]
        found = [rank_correlation(early, row) for early, row in zip(scores, keys, strict=True)]
        if known := [rho for rho in found if rho is not None]:
            told[correlation_name(share)] = statistics.fmean(known)
    # The spared one was below all others at the first stop.
    first = [[candidate.scores[early_name(shares[0])] for candidate in group.candidates] for group in groups]
    wins = [row.index(max(row)) == early.index(min(early)) for early, row in zip(first, keys, strict=True)]
    return {**told, "spared_wins": statistics.fmean(wins)}


def agreement(rounds: Iterable[Mapping[str, float]], at: Sequence[float]) -> float | None:
    """The mean over these rounds' figures of the rank correlation at the last stop; None where no round tells it."""
    known = [told[name] for told in rounds if (name := correlation_name(at[-1])) in told]
    return statistics.fmean(known) if known else None


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rho, equal numbers sharing their mean rank; None where one side is all equal."""
    one, other = _ranks(first), _ranks(second)
    if min(one) == max(one) or min(other) == max(other):
        return None
    return statistics.correlation(one, other)


def _ranks(values: Sequence[float]) -> list[float]:
    return [
        math.fsum((other < value) + 0.5 * (other == value) for other in values) for value in values
    ]  # up to a constant, which a correlation ignores
