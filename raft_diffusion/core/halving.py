"""Successive halving of contests while their candidates are still being sampled: the arithmetic, and what it says of
itself (Karnin, Koren and Somekh 2013, "Almost Optimal Exploration in Multi-Armed Bandits").

Legend: K candidates a contest, `calls` of the UNet for one picture, stops after some of them. In one contest of
`SPARED_EVERY` one of those that would be left out is spared, by lot: it tells what the early ranking gets wrong.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .records import Draw, Group, derive_seed

PRUNED = "pruned"
"""The figure that says which share of a round's candidates was left out: 0 where pruning is off."""
SPARED = "spared"
"""Among a pruned candidate's scores: 1 where it goes on by lot alone, else 0. It never ranks."""
SPARED_EVERY = 4


@dataclass(frozen=True, slots=True)
class Phase:
    """Calls `first` to `end` (without it), which `alive` candidates of a contest see, one that is spared left out.

    preview: these are calls for other pictures of the same noise, which are finished after them and only rank.
    """

    alive: int
    first: int
    end: int
    preview: bool = False


def guided_calls(calls: int, interval: Sequence[float]) -> range:
    """Which of the calls are guided. interval: its two ends as shares of the calls."""
    low, high = interval
    return range(round(low * calls), round(high * calls))


def preview_interval(interval: Sequence[float]) -> tuple[float, float]:
    """Which share of a preview's steps is guided. interval: of the pictures themselves. Those that are guided in all
    steps have previews that are guided in the middle half, which cost a quarter less and rank nearly as well."""
    low, high = interval
    return (0.25, 0.75) if (low, high) == (0, 1) else (low, high)


def phases(
    calls: int, k: int, *, at: Sequence[float] = (), keep: Sequence[float] = (), preview: int | None = None
) -> list[Phase]:
    """What the candidates of a contest of `k` go through.

    at: the stops, as shares of the calls, rising. keep: the share of the k candidates that goes on after each, of which
    there is one at least. preview: the calls of a preview, which takes the place of the first stop. A stop that would
    leave nobody out, and nobody to be spared, is none.
    """
    found, first, alive = [], 0, k
    for number, (share, kept) in enumerate(zip(at, keep, strict=True)):
        looks = preview if number == 0 else None
        stop, left = round(share * calls) if looks is None else looks, max(1, round(kept * k))
        if first < stop < calls and left + (not found) < alive:
            found.append(Phase(alive, first, stop, preview=looks is not None))
            first, alive = stop if looks is None else 0, left
    return [*found, Phase(alive, first, calls)]


def best(draws: Sequence[Draw], scores: Mapping[str, float], *, count: int, spared: str | None) -> set[str]:
    """The ids of the `count` of a contest that go on by their scores, and of the one that is spared, if there is one.

    scores: by id, higher is better; equal ones go to the lower k.
    """
    ranked = sorted((draw for draw in draws if draw.id != spared), key=lambda draw: (-scores[draw.id], draw.k))
    return {*(draw.id for draw in ranked[:count]), *([spared] if spared else [])}


def lot(draws: Sequence[Draw], going: set[str]) -> str:
    """Whom chance spares among a contest's draws that would be left out: the same one each time."""
    return min((draw for draw in draws if draw.id not in going), key=lambda draw: derive_seed(draw.seed, SPARED)).id


def spared_contests(contests: int) -> int:
    """In how many of so many contests one is spared: the first of every `SPARED_EVERY`."""
    return math.ceil(contests / SPARED_EVERY)


def early_name(share: float) -> str:
    """The name of the score at the stop after this share of the steps; no reward that ranks."""
    return f"early_{100 * share:.3g}"


def correlation_name(share: float) -> str:
    """The figure with the rank correlation of `early_name` and the final ranking."""
    return f"rank_correlation_{100 * share:.3g}"


def figures(
    groups: Sequence[Group], keys: Sequence[Sequence[float]], *, k: int, at: Sequence[float]
) -> dict[str, float]:
    """What a round says of its pruning; of one that was not pruned, that alone.

    "pruned"; for each stop Spearman's rank correlation with the final ranking, within the contests and over those that
    are left, as a mean; "spared_wins": of the contests with one that was spared, the share in which it is the best.
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
    wins = [
        bool(group.candidates[row.index(max(row))].scores[SPARED])
        for group, row in zip(groups, keys, strict=True)
        if any(candidate.scores[SPARED] for candidate in group.candidates)
    ]
    return told | ({"spared_wins": statistics.fmean(wins)} if wins else {})


def agreement(rounds: Iterable[Mapping[str, float]], at: float) -> float | None:
    """The mean over these rounds' figures of the rank correlation at this stop; None where no round tells it."""
    known = [told[name] for told in rounds if (name := correlation_name(at)) in told]
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
