"""The rounds side by side on the report's page: what judges saw of each on the same draws (see `compare`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .charts import Chart, chart
from .reader import Reader

FILE = "evaluation/rounds.json"


@dataclass(frozen=True, slots=True)
class RoundsView:
    """One sampler step count: a chart for each score, in the page's order."""

    steps: str
    pairs: int
    charts: list[Chart]


def read_rounds(reader: Reader, marks: Mapping[int, str]) -> list[RoundsView]:
    """Empty where the rounds were not compared, or where what lies there is damaged. marks: round -> the guard's
    verdict."""
    if not reader.has(FILE):
        return []
    result = reader.json(FILE)
    try:
        return [
            RoundsView(steps=str(steps), pairs=int(result["settings"]["pairs"]), charts=_charts(found["rounds"], marks))
            for steps, found in result["steps"].items()
        ]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        reader.notes[f"{FILE} is damaged and was left out."] += 1
        return []


def _charts(rows: list[dict[str, Any]], marks: Mapping[int, str]) -> list[Chart]:
    names = [name for name in rows[0]["scores"] if not name.endswith("_ood")]
    judged = [name for name in names if name in ("object", "style")]
    held_out = [name for name in names if name.startswith("held_out.")]
    return [_chart(rows, name, marks, judged=name in judged) for name in (*judged, *held_out[:1])]


def _chart(rows: list[dict[str, Any]], name: str, marks: Mapping[int, str], *, judged: bool) -> Chart:
    unit = 100.0 if judged else 1.0
    base = unit * float(rows[0]["scores"][name]["mean"])
    curves = {"trained prompts": _curve(rows, name, unit)}
    if f"{name}_ood" in rows[0]["scores"]:
        curves["other prompts"] = _curve(rows, f"{name}_ood", unit)
    ends = [(int(row["round"]), row["scores"][name]["ci95"]) for row in rows[1:]]
    top = 100.0 if judged else math.inf  # no share is larger, though base and change may add up to more
    spans = [(index, base + unit * float(low), min(top, base + unit * float(high))) for index, (low, high) in ends]
    return chart(f"{name}, %" if judged else name, curves, held_out=True, spans=spans, marks=marks)


def _curve(rows: list[dict[str, Any]], name: str, unit: float) -> list[tuple[int, float]]:
    return [(int(row["round"]), unit * float(row["scores"][name]["mean"])) for row in rows]
