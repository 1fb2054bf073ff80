"""One HTML page of a text run, from its folder alone: no model, no network. Every text is escaped by the template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..core.evaluated import read_evaluation
from ..core.files import write_atomically
from ..core.records import Group
from ..core.store import StoredRound, read_metrics, stored_rounds
from ..report.charts import Chart, chart
from ..report.guard import read_guard
from ..report.reader import Reader
from .config import TextConfig
from .console import FIGURES

CONTESTS = 6
"""Prompts of a round whose best and worst answer are shown."""


@dataclass(frozen=True, slots=True)
class Contest:
    """The winner and the last of one prompt's candidates, with their keys."""

    prompt: str
    winner: str
    winner_key: float
    loser: str
    loser_key: float


def write_report(root: Path) -> Path:
    """Write `root`/report.html. Raises ValueError for a folder that holds no complete round of a text run."""
    config = TextConfig.load(root / "config.toml")
    rounds = list(stored_rounds(root))
    evaluation = read_evaluation(root)
    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = pages.get_template("report.html.j2").render(
        name=config.name,
        settings=config.flat(),
        charts=_charts(read_metrics(root), config.rewards.weights),
        curves=_curves(evaluation.get("curve", {})) if evaluation else [],
        contests=[(round_.index, _contests(round_)) for round_ in rounds],
        evaluation=evaluation,
        figures=[*FIGURES, *(key for key in evaluation or {} if key.startswith("pass_at_"))],
        guard=read_guard(Reader(root), [round_.index for round_ in rounds]),
    )
    write_atomically(root / "report.html", page)
    return root / "report.html"


def _curves(curve: Mapping[str, Sequence[float]]) -> list[Chart]:
    """What the judges see by round, in percent, the base being round 0."""
    return [
        chart(f"{name}, %", {"judge": [(index, 100 * mean) for index, mean in enumerate(means)]}, held_out=True)
        for name, means in curve.items()
    ]


def _charts(metrics: Sequence[Mapping[str, Any]], weights: Mapping[str, float]) -> list[Chart]:
    """The mean of all candidates and of the winners by round, one chart a reward."""
    return [
        chart(
            name,
            {
                "all candidates": [(row["round"], row["mean"][name]) for row in metrics],
                "winners": [(row["round"], row["best"][name]) for row in metrics],
            },
            held_out=name not in weights,
        )
        for name in metrics[0]["mean"]
    ]


def _contests(round_: StoredRound) -> list[Contest]:
    """Of the first prompts whose group has a winner."""
    pairs = zip(round_.groups, round_.keys, strict=True)
    decided = [_contest(group, keys, round_.winners) for group, keys in pairs]
    return [contest for contest in decided if contest is not None][:CONTESTS]


def _contest(group: Group, keys: Sequence[float], winners: frozenset[str]) -> Contest | None:
    won = [k for k, candidate in enumerate(group.candidates) if candidate.sample.id in winners]
    if not won:
        return None
    first, last = max(won, key=lambda k: keys[k]), min(range(len(keys)), key=lambda k: keys[k])
    texts = [group.candidates[k].sample.data.read_text(encoding="utf-8", errors="replace") for k in (first, last)]
    return Contest(group.prompt.text, texts[0], keys[first], texts[1], keys[last])
