"""The result of an evaluation in words and numbers: its rows, its one sentence, and how the report writes a number."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .charts import MINUS
from .reader import is_number, numbers, table


@dataclass(frozen=True, slots=True)
class Measure:
    """One row of the evaluation. `low` and `high` bound tuned - base at 95 %; nan stands for "not measured".

    A judge's numbers are shares of the pictures, written in percent and in points; a reward has units of its own.
    """

    kind: str  # "judge" or "reward"
    name: str
    base: float
    oracle: float
    tuned: float
    low: float
    high: float
    pairs: int

    @property
    def difference(self) -> float:
        return self.tuned - self.base

    @property
    def measured(self) -> bool:
        """Whether there is an interval."""
        return not math.isnan(self.low)

    @property
    def other_prompts(self) -> bool:
        """Whether it was measured on prompts that the run did not train on."""
        return self.name.endswith("_ood")

    @property
    def what(self) -> str:
        """Its name without the mark of the other prompts."""
        return self.name.removesuffix("_ood")

    @property
    def held_out(self) -> bool:
        """Whether it took no part in the ranking: a judge, or a reward under the name of `held_out`."""
        return self.kind == "judge" or is_held_out(self.name)

    @property
    def verdict(self) -> str:
        if not self.measured:
            return ""
        return "better" if self.low > 0 else "worse" if self.high < 0 else "no clear change"

    @property
    def span(self) -> float:
        """What the end of its interval bar stands for: 100 points, or a little more than the interval reaches."""
        reach = max(abs(self.low), abs(self.high), abs(self.difference))
        return max(reach, 1.0) if self.kind == "judge" else 1.1 * reach or 1.0

    def value(self, number: float) -> str:
        return percent(number) if self.kind == "judge" else written(number)

    def change(self, number: float) -> str:
        if self.kind == "reward":
            return signed(number)
        points = round(100 * number)
        return f"{points:+d}".replace("-", MINUS) if points else "0"


def is_held_out(reward: str) -> bool:
    """Whether a reward of this name never ranked."""
    return reward.removesuffix("_ood").split(".")[0] == "held_out"


def read_measures(evaluation: Mapping[str, Any]) -> list[Measure]:
    """The rows of evaluation.json that hold at least `base` and `tuned`, the judge's first."""
    measures = []
    for kind, key in (("judge", "judge"), ("reward", "rewards")):
        for name, row in table(evaluation.get(key)).items():
            values = numbers(row)
            if not {"base", "tuned"} <= values.keys():
                continue
            interval = row.get("ci95")
            whole = isinstance(interval, list) and len(interval) == 2 and all(map(is_number, interval))
            low, high = interval if whole else (math.nan, math.nan)
            oracle, pairs = values.get("oracle", math.nan), int(values.get("pairs", 0))
            measures.append(Measure(kind, name, values["base"], oracle, values["tuned"], low, high, pairs))
    return measures


@dataclass(frozen=True, slots=True)
class Headline:
    """The result in one sentence, and what a reader must know to judge it."""

    sentence: str
    note: str


def headline(measures: list[Measure], subject: str) -> Headline | None:
    """By the judge's view of the object (`subject`), else by a reward, rather one that never ranked; None without."""
    judged = next((m for m in measures if m.kind == "judge" and m.name == "object"), None)
    rewards = [m for m in measures if m.kind == "reward" and not m.other_prompts]
    reward = min(rewards, key=lambda m: not m.held_out, default=None)
    if judged:
        best, unit, said = judged, " points", f"{subject} is now in {percent(judged.tuned)} of the pictures"
        note = "The judge that looked for it took no part in the ranking."
    elif reward:
        best, unit, said = reward, "", f"The reward {reward.name} is now {written(reward.tuned)} on average"
        note = "It took no part in the ranking." if reward.held_out else "It ranked the candidates: judge by eye too."
    else:
        return None
    said = f"{said}; before it was {best.value(best.base)}"
    if not best.measured:
        return Headline(f"{said}.", f"{note} No interval was measured: this may be chance.")
    if best.verdict == "no clear change":
        note = f"The interval holds 0: this evaluation shows no clear change. {note}"
    change = "gain" if best.difference >= 0 else "change"
    interval = f"{best.change(best.low)} to {best.change(best.high)}{unit}"
    return Headline(f"{said} (95 % interval of the {change}: {interval}).", note)


def written(number: float | None) -> str:
    """Three digits that matter, counts whole, a real minus sign, a dash for what was not measured."""
    if number is None or not math.isfinite(number):
        return "–"
    whole = abs(number) >= 1000 or (number == int(number) and abs(number) >= 10)
    text = f"{number:,.0f}" if whole else f"{number:#.3g}".rstrip(".")
    return text.replace("-", MINUS)


def signed(number: float) -> str:
    """As `written`, with its sign."""
    return ("+" if number > 0 else "") + written(number)


def percent(share: float) -> str:
    """A share in whole percent."""
    return f"{100 * share:.0f} %" if math.isfinite(share) else "–"
