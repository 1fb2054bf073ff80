"""What judges texts and trains nothing: the evaluation's alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..core.loop import Reward
from ..core.records import Sample
from . import data, pocket
from .config import EXACT, TextConfig
from .examples import truths
from .pocket.judge import Judge
from .rewards import ExactAnswer

POSITIVE = "positive"


def make_judges(config: TextConfig, rows: Sequence[Mapping[str, str]]) -> list[Reward]:
    """Reviews have the carried judge of praise; questions whose answers are known are right or wrong."""
    judges: list[Reward] = []
    if config.prompts.train == data.REVIEWS:
        judge = Judge.load(pocket.JUDGE)

        def positive(samples: Sequence[Sample]) -> dict[str, list[float]]:
            return {POSITIVE: judge.positive([sample.data.text for sample in samples])}

        judges.append(positive)
    if all("answer" in row for row in rows):
        judges.append(ExactAnswer(truths(rows), name=EXACT))
    return judges
