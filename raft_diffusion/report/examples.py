"""The evaluation's pictures on the report's page: each seed before and after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .reader import Picture, Reader, rows

EXAMPLE = 256  # px, the longer side of a picture of the evaluation


@dataclass(frozen=True, slots=True)
class Example:
    """One seed before and after. The labels are the judge's words, or empty: "right", or what it sees."""

    text: str
    seed: str
    before: Picture
    after: Picture
    before_label: str
    after_label: str

    def right(self, label: str) -> bool:
        return label in ("right", self.text)


def read_examples(reader: Reader, evaluation: Mapping[str, Any]) -> list[Example]:
    def picture(row: dict[str, Any], side: str) -> Picture:
        name = str(row.get(side)).removeprefix(f"{side}/")
        return reader.picture(f"evaluation/{side}", name, side=EXAMPLE, lossless=True)

    return [
        Example(
            text=str(row.get("text", "")),
            seed=str(row.get("seed", "")),
            before=picture(row, "before"),
            after=picture(row, "after"),
            before_label=str(row.get("before_label") or ""),
            after_label=str(row.get("after_label") or ""),
        )
        for row in rows(evaluation.get("examples"))
    ]


def galleries(examples: list[Example], trained: set[str]) -> dict[str, list[Example]]:
    """The examples under a heading: those of the trained prompts before those of others."""
    if not trained & {e.text for e in examples}:
        return {"All prompts": examples} if examples else {}
    here = [e for e in examples if e.text in trained]
    others = [e for e in examples if e.text not in trained]
    return {"Prompts of the run": here} | ({"Other prompts": others} if others else {})
