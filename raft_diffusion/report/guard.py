"""The guard on the report's page: what it saw in every round, and how the run ended."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.guard import Look, curve
from ..core.looks import FILE, read_ending
from .charts import Chart, chart
from .reader import Reader


@dataclass(frozen=True, slots=True)
class Seen:
    """One look: the score with the interval of its change since the start, and the diversity as a share of the
    start's."""

    index: int
    score: float
    low: float
    high: float
    diversity: float


@dataclass(frozen=True, slots=True)
class GuardView:
    """Everything that the page says of the guard. keep: the round whose LoRA is the run's, None while it goes on;
    sentence: what happened, or empty; marks: round -> the verdict on it in a word, for every chart."""

    judge: str
    draws: int
    chart: Chart
    rows: list[Seen]
    stopped: bool
    keep: int | None
    sentence: str
    marks: dict[int, str]


def read_guard(reader: Reader, rounds: list[int]) -> GuardView | None:
    """None where nothing was looked at. rounds: the finished ones; looks that were measured otherwise than the start's
    are left out."""
    places = {0: f"start/{FILE}"} | {index: f"rounds/{index:03d}/{FILE}" for index in rounds}
    found = [look for place in places.values() if (look := _look(reader, place)) is not None]
    if not found or found[0].round != 0:
        return None
    looks = [look for look in found if look.fits(found[0])]
    start = looks[0].diversity
    points = curve(looks)
    ending = read_ending(reader.run, after=max(rounds, default=0))
    marks = {} if ending is None else {ending.after: "stopped"} if ending.stopped else {}
    marks |= {} if ending is None else {ending.keep: "kept"}
    return GuardView(
        judge=looks[0].judge,
        draws=len(looks[0].draws),
        chart=chart(
            looks[0].reward,
            {"the guard's pictures": [(index, interval.mean) for index, interval in points]},
            held_out=True,
            spans=[(index, interval.low, interval.high) for index, interval in points],
            marks=marks,
        ),
        rows=[
            Seen(index, interval.mean, interval.low, interval.high, look.diversity / start if start else 1.0)
            for look, (index, interval) in zip(looks, points, strict=True)
        ],
        stopped=ending is not None and ending.stopped,
        keep=None if ending is None else ending.keep,
        sentence="" if ending is None else ending.sentence,
        marks=marks,
    )


def _look(reader: Reader, place: str) -> Look | None:
    if not reader.has(place):
        return None
    values = reader.json(place)
    try:
        return Look.from_json(values) if values else None
    except ValueError:
        reader.notes[f"{place} is damaged and was left out."] += 1
        return None
