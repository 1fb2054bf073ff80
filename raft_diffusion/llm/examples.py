"""Texts that the model did not write: examples for the supervised warm-up, and a teacher's for distillation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.files import read_text
from ..core.records import Draw, Prompt, Sample, Scored, Winner

if TYPE_CHECKING:
    from .policy import TextPolicy


def read_examples(path: Path) -> list[dict[str, str]]:
    """The lines of a JSONL file, each with the texts "prompt" and "completion" or "answer", or both.

    Raises ValueError for a file that cannot be read or is empty, and for a line that is damaged, by its number.
    """
    text = read_text(path, what="examples file", advice="give the path of a JSONL file")
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines breaks at characters that a text may hold
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not _is_example(row):
            raise ValueError(
                f'{path}, line {number}: write {{"prompt": "...", "completion": "..."}} (or "answer"), each a text'
            )
        rows.append(row)
    if not rows:
        raise ValueError(f"{path} holds no example; write one JSON object a line")
    return rows


def _is_example(row: Any) -> bool:
    texts = row.keys() & {"prompt", "completion", "answer"} if isinstance(row, dict) else set()
    return "prompt" in texts and len(texts) > 1 and all(_is_text(row[key]) for key in texts)


def _is_text(value: Any) -> bool:
    """Whether it is a text that a file can hold: JSON may spell half a character."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def truths(rows: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """prompt -> its right answer. Raises ValueError for a line without one."""
    if missing := next((row["prompt"] for row in rows if "answer" not in row), None):
        raise ValueError(f'the example {missing[:60]!r} has no "answer"; add it')
    return {row["prompt"]: row["answer"] for row in rows}


def as_winners(policy: TextPolicy, rows: Sequence[Mapping[str, str]]) -> list[Winner]:
    """Examples as winners of weight 1, so that `TextTuner` learns them: the supervised warm-up before RAFT.

    Raises ValueError for a line without a completion.
    """
    winners = []
    for k, row in enumerate(rows):
        if "completion" not in row:
            raise ValueError(f'the example {row["prompt"][:60]!r} has no "completion"; add it')
        completion = policy.completion(row["prompt"], row["completion"])
        sample = Sample(Draw(Prompt(row["prompt"]), k, 0), completion)
        winners.append(Winner(Scored(sample, {}), 0.0))
    return winners


class Distillation:
    """A Policy whose samples are the teacher's and whose weights are the student's (arXiv:2304.06767, distillation).

    The teacher's texts are cut into the student's tokens, so that the two may have different vocabularies. Where the
    teacher was cut off, the student is taught no end. A tuner for the loop tunes `student`.
    """

    def __init__(self, *, teacher: TextPolicy, student: TextPolicy) -> None:
        self.teacher, self.student = teacher, student

    def generate(self, draws: Sequence[Draw]) -> list[Sample]:
        return [
            Sample(
                sample.draw,
                self.student.completion(
                    sample.prompt.text, sample.data.text, ended=self.teacher.has_ended(sample.data)
                ),
            )
            for sample in self.teacher.generate(draws)
        ]

    def save(self, folder: Path) -> None:
        self.student.save(folder)

    def load(self, folder: Path) -> None:
        self.student.load(folder)
