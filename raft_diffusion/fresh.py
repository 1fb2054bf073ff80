"""Fresh candidates: a share of every round's contests is drawn from the base and never from what was tuned.

A model that learns from its own samples alone loses their variety and keeps its faults; samples from outside the loop
stop that (Alemohammad et al. 2023, arXiv:2307.01850, the fresh data loop).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from .core.loop import Policy
from .core.records import Draw, Sample

Generate = Callable[[Sequence[Draw]], list[Sample]]


class FreshPolicy:
    """A Policy whose samples are the base's in a share of the contests, and the tuned model's in the others.

    tuned: the policy that learns. from_base: draws without the adapter. share: 0 to 1.
    A contest is drawn from one of the two as a whole, so that neither is ranked against the other.
    """

    def __init__(self, tuned: Policy, *, from_base: Generate, share: float) -> None:
        self._tuned, self._from_base, self._share = tuned, from_base, share

    def generate(self, draws: Sequence[Draw]) -> list[Sample]:
        fresh = fresh_contests(draws, self._share)
        parts = [[draw for draw in draws if ((draw.prompt.id, draw.group) in fresh) is side] for side in (True, False)]
        samples = [*self._from_base(parts[0]), *self._tuned.generate(parts[1])]
        made = {sample.id: sample for sample in samples}
        return [made[draw.id] for draw in draws if draw.id in made]  # some may be pruned

    def save(self, folder: Path) -> None:
        self._tuned.save(folder)

    def load(self, folder: Path) -> None:
        self._tuned.load(folder)


def fresh_contests(draws: Sequence[Draw], share: float) -> set[tuple[str, int]]:
    """(prompt id, group) of the contests that the base is asked for: `share` of them, spread evenly over their order.

    Where the row starts follows from the first draw's seed, so that each prompt gets its turn over the rounds.
    """
    contests = list(dict.fromkeys((draw.prompt.id, draw.group) for draw in draws))
    start = draws[0].seed % len(contests) if draws else 0
    return {
        contest for place, contest in enumerate(contests, start=start) if int((place + 1) * share) > int(place * share)
    }
