"""Tuning steps whose loss or gradient is no finite number: left out, counted, and too many of them in a row."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

IN_A_ROW = 3


class Diverged(ValueError):
    """The weights cannot be tuned on; the rounds before this one are as they were."""


@dataclass(slots=True)
class Skips:
    """total: steps of this round that were left out; row: how many of them were the last ones."""

    total: int = 0
    row: int = 0

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Skips:
        """From `numbers`; none were left out where there are none."""
        return cls(*map(int, numbers))

    @property
    def numbers(self) -> list[float]:
        """What a tuning that is cut off must keep."""
        return [self.total, self.row]

    def add(self, step: int, what: str, *, scaled: bool = False) -> None:
        """Step `step` was left out, for its `what` was not finite.

        scaled: a scaled loss overflowed, as it often does before its scale is found; such a step does not count for the
        row. Raises Diverged at the third in a row.
        """
        self.total += 1
        self.row += not scaled
        if self.row == IN_A_ROW and not scaled:
            raise Diverged(
                f"the {what} was not finite in {IN_A_ROW} tuning steps in a row, the last of them step {step}; lower "
                "tuning.learning_rate in a new run"
            )

    def reset(self) -> None:
        """A step was good."""
        self.row = 0

    def figures(self, steps: int) -> dict[str, float]:
        """What a round of `steps` steps tells of them; nothing where none was left out.

        Raises Diverged where all were. Warns where some were.
        """
        if self.total == steps:
            raise Diverged(
                f"none of the {steps} tuning steps had a finite loss and gradient; tune more steps, or choose bf16"
            )
        if not self.total:
            return {}
        warnings.warn(
            f"{self.total} of {steps} tuning steps were skipped, for their loss or gradient was not finite",
            stacklevel=3,
        )
        return {"skipped": self.total}
