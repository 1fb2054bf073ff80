"""Runs side by side on the report's page: what judges saw of each on the same draws (see `beside`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.timing import clock
from .reader import Reader
from .result import Measure

FILE = "evaluation/beside.json"
JUDGED = ("object", "style")


@dataclass(frozen=True, slots=True)
class RunView:
    """One run, or the base: its measures, by score, as changes from the base, and what it took.

    behind: this page's run minus this one, by score, as sentences; empty for the base and for this page's run.
    """

    name: str
    kept: int
    rounds: int
    evaluations: int
    took: str
    measures: dict[str, Measure]
    behind: dict[str, str]
    wins: int | None


@dataclass(frozen=True, slots=True)
class RunsView:
    """All runs of a comparison. decided: the score that a win was counted by."""

    pairs: int
    scores: list[str]
    runs: list[RunView]
    decided: str


def read_runs(reader: Reader) -> RunsView | None:
    """None where no runs were compared, or where what lies there is damaged."""
    if not reader.has(FILE):
        return None
    result = reader.json(FILE)
    try:
        rows, counts = result["rows"], result["win_count"]
        names = [name for name in rows[0]["scores"] if not name.endswith("_ood")]
        shown = [name for name in names if name in JUDGED] + [n for n in names if n.startswith("held_out.")][:1]
        views = [_view(row, rows[0], result, shown) for row in rows]
        return RunsView(int(result["settings"]["pairs"]), shown, views, str(counts["score"]))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        reader.notes[f"{FILE} is damaged and was left out."] += 1
        return None


def _view(row: Mapping[str, Any], base: Mapping[str, Any], result: Mapping[str, Any], shown: list[str]) -> RunView:
    name, spent, pairs = str(row["run"]), row["unet_evaluations"], int(result["settings"]["pairs"])
    measures = {}
    for score in shown:
        before, found = float(base["scores"][score]["mean"]), row["scores"][score]
        kind, (low, high) = "judge" if score in JUDGED else "reward", (float(end) for end in found["ci95"])
        measures[score] = Measure(kind, score, before, before, float(found["mean"]), low, high, pairs)
    behind = {
        score: _ahead(score, found["difference"], found["ci95"], pairs)
        for score, found in result["against"].get(name, {}).items()
        if score in shown
    }
    return RunView(
        name=name,
        kept=int(row.get("kept", 0)),
        rounds=int(row.get("rounds", 0)),
        evaluations=int(spent["sampling"]) + int(spent["tuning"]),
        took=clock(float(row["seconds"])) if row["seconds"] else "",
        measures=measures,
        behind=behind,
        wins=result["win_count"]["wins"].get(name),
    )


def _ahead(score: str, difference: float, ends: Sequence[float], pairs: int) -> str:
    """Such as "+6 points (+2 to +10)"."""
    kind, (low, high) = "judge" if score in JUDGED else "reward", (float(end) for end in ends)
    m = Measure(kind, score, 0.0, 0.0, float(difference), low, high, pairs)
    unit = " points" if kind == "judge" else ""
    return f"{m.change(m.difference)}{unit} ({m.change(m.low)} to {m.change(m.high)})"
