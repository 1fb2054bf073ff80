"""Bad samples never win: what a rule finds malformed is discarded before the ranking, as LMFlow's RAFT aligner does.

Without such a rule a flaw that the reward likes spreads: in the authors' runs "#" did (their docs/raft.md).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..core.loop import Selector
from ..core.records import Group, Sample, Scored, Selection


@dataclass(frozen=True, slots=True, kw_only=True)
class Discard:
    """A Selector around another one, which sees the candidates that every rule keeps.

    A candidate that was discarded gets the lowest key of its group's others. A group with fewer than `least` candidates
    left is out of the contest; its keys are all 0. Raises ValueError where no group is left.
    """

    select: Selector
    rules: Sequence[Callable[[Sample], bool]]
    least: int = 2

    def __call__(self, groups: Sequence[Group]) -> Selection:
        kept = [tuple(c for c in group.candidates if self._keeps(c.sample)) for group in groups]
        contests = [Group(g.prompt, some) for g, some in zip(groups, kept, strict=True) if len(some) >= self.least]
        if not contests:
            raise ValueError(
                f"the filter leaves no prompt {self.least} candidates, so nothing can win this round; "
                "loosen it, or sample more candidates"
            )
        chosen = self.select(contests)
        ranked = iter(chosen.keys)
        keys = []
        for group, some in zip(groups, kept, strict=True):
            row = next(ranked) if len(some) >= self.least else (0.0,) * len(some)
            keys.append(_all_keys(group.candidates, some, row))
        return Selection(tuple(keys), chosen.winners)

    def _keeps(self, sample: Sample) -> bool:
        return all(rule(sample) for rule in self.rules)


def at_least(words: int) -> Callable[[Sample], bool]:
    """Keeps completions of this many words or more."""
    return lambda sample: len(sample.data.text.split()) >= words


def lacks(pattern: re.Pattern[str]) -> Callable[[Sample], bool]:
    """Keeps completions in which this is nowhere found."""
    return lambda sample: pattern.search(sample.data.text) is None


def _all_keys(candidates: Sequence[Scored], kept: Sequence[Scored], row: Sequence[float]) -> tuple[float, ...]:
    by_id = {candidate.sample.id: key for candidate, key in zip(kept, row, strict=True)}
    lowest = min(row, default=0.0)
    return tuple(by_id.get(candidate.sample.id, lowest) for candidate in candidates)
