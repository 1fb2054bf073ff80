"""What a set of texts is like, in numbers: table 3 of arXiv:2304.06767, and the shares of right answers.

Plain functions of texts and scores; no model. Words are what white space separates, in lower case.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..core.records import Sample

SEGMENT = 100
"""Words of a segment of MSTTR-100."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diversity:
    """How varied texts are, as RL4LMs measures it (Ramamurthy et al. 2022, arXiv:2210.01241).

    msttr_100: mean share of different words in consecutive segments of 100 words of all texts joined (Johnson 1944);
        None where there are fewer words. distinct_n: different n-grams by all n-grams. unique_n: how many n-grams
        occur once. length: mean words a text. No n-gram spans two texts.
    """

    msttr_100: float | None
    distinct_1: float
    distinct_2: float
    unique_1: int
    unique_2: int
    length: float


def diversity(texts: Sequence[str]) -> Diversity:
    """Raises ValueError where there is no text. A share of nothing is 0."""
    if not texts:
        raise ValueError("there is no text to measure; give at least one")
    rows = [text.lower().split() for text in texts]
    one, two = Counter(_grams(rows, 1)), Counter(_grams(rows, 2))
    return Diversity(
        msttr_100=_msttr([word for row in rows for word in row]),
        distinct_1=_distinct(one),
        distinct_2=_distinct(two),
        unique_1=sum(count == 1 for count in one.values()),
        unique_2=sum(count == 1 for count in two.values()),
        length=statistics.fmean(map(len, rows)),
    )


def pass_at(scores: Sequence[Sequence[float]], k: int) -> float:
    """The chance that one of k answers to a question is right, by n >= k answers each; mean over the questions (P, n).

    1 - C(n - c, k) / C(n, k) with c right answers (Chen et al. 2021, arXiv:2107.03374, equation 1). A score of 1 is
    right, 0 wrong. With k = 1 it is the mean over all answers, which tables call avg@n.
    Raises ValueError for no question, for fewer than k answers, and for a score that is neither 0 nor 1.
    """
    if not scores:
        raise ValueError("there is no question; give at least one")
    chances = []
    for row in scores:
        if not 1 <= k <= len(row):
            raise ValueError(
                f"pass@{k} needs {k} answers or more to each question, k at least 1, and one has {len(row)}"
            )
        if set(row) - {0, 1}:
            raise ValueError(f"pass@{k} counts right (1) and wrong (0) answers, and a score is {max(row)}")
        wrong = len(row) - sum(map(int, row))
        chances.append(1 - math.comb(wrong, k) / math.comb(len(row), k))
    return statistics.fmean(chances)


def win_lose_tie(base: Sequence[float], tuned: Sequence[float], *, margin: float = 0.0) -> tuple[float, float, float]:
    """The shares of pairs that the tuned model wins, loses and ties by a judge's scores; they add up to 1.

    margin: a difference of at most this is a tie. Raises ValueError for uneven or empty scores.
    """
    if len(base) != len(tuned) or not base:
        raise ValueError(f"{len(base)} and {len(tuned)} scores make no pairs; give the same number, at least 1")
    differences = [after - before for before, after in zip(base, tuned, strict=True)]
    wins = sum(difference > margin for difference in differences) / len(base)
    losses = sum(difference < -margin for difference in differences) / len(base)
    return wins, losses, 1 - wins - losses


def text_distance(first: Sample, second: Sample) -> float:
    """How unlike two completions are: the share of their pairs of words that only one of them has, 0 to 1."""
    one, other = (set(_grams([_text(sample).lower().split()], 2)) for sample in (first, second))
    return 1 - len(one & other) / (len(one | other) or 1)


def _text(sample: Sample) -> str:
    """A sample's data is a completion, or the path of its file, as `core.store.stored_rounds` gives it."""
    return sample.data.read_text(encoding="utf-8") if isinstance(sample.data, Path) else sample.data.text


def _grams(rows: Sequence[Sequence[str]], n: int) -> Iterator[tuple[str, ...]]:
    return (tuple(row[i : i + n]) for row in rows for i in range(len(row) - n + 1))


def _distinct(counts: Counter[tuple[str, ...]]) -> float:
    return len(counts) / (counts.total() or 1)


def _msttr(words: Sequence[str]) -> float | None:
    """The rest after the last whole segment is left out: a short segment has fewer repetitions."""
    starts = range(0, len(words) - SEGMENT + 1, SEGMENT)
    return statistics.fmean(len(set(words[i : i + SEGMENT])) / SEGMENT for i in starts) if starts else None
