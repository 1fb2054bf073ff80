"""The geometry of the report's small line charts; the template draws them as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MINUS = "\N{MINUS SIGN}"
LEFT, RIGHT, TOP, BOTTOM = 52.0, 344.0, 14.0, 186.0  # of the plot, in a viewBox of 360 x 230


@dataclass(frozen=True, slots=True)
class Point:
    """A place in the viewBox and what it stands for."""

    x: float
    y: float
    index: int
    value: float


@dataclass(frozen=True, slots=True)
class Chart:
    """Curves over the rounds, by label; ticks are (position, label), spans the ends of intervals, from low to high;
    marks are (position, word): rounds that something is to be said of."""

    name: str
    held_out: bool
    lines: dict[str, list[Point]]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    spans: list[tuple[Point, Point]]
    marks: list[tuple[float, str]]


def chart(
    name: str,
    curves: Mapping[str, Sequence[tuple[int, float]]],
    *,
    held_out: bool,
    spans: Sequence[tuple[int, float, float]] = (),
    marks: Mapping[int, str] | None = None,
) -> Chart:
    """Lay out curves of (round, value) and intervals (round, low, high); an empty curve is left out, at least one is
    not empty. marks: round -> a word about it, left out where the curves have no such round."""
    indices = [index for curve in curves.values() for index, _ in curve]
    values = [value for curve in curves.values() for _, value in curve]
    values += [value for _, *ends in spans for value in ends]
    first, last = min(indices), max(indices)
    ticks = _ticks(min(values), max(values))
    low, high = ticks[0][0], ticks[-1][0]

    def x(index: int) -> float:
        return (
            round(LEFT + (RIGHT - LEFT) * (index - first) / (last - first), 1) if last > first else (LEFT + RIGHT) / 2
        )

    def y(value: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * (value - low) / (high - low), 1)

    return Chart(
        name=name,
        held_out=held_out,
        lines={label: [Point(x(i), y(v), i, v) for i, v in curve] for label, curve in curves.items() if curve},
        x_ticks=[(x(index), str(index)) for index in range(first, last + 1, math.ceil((last - first + 1) / 10))],
        y_ticks=[(y(value), label) for value, label in ticks],
        spans=[(Point(x(i), y(low), i, low), Point(x(i), y(high), i, high)) for i, low, high in spans],
        marks=[(x(index), word) for index, word in (marks or {}).items() if first <= index <= last],
    )


def _ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Two to seven round numbers that enclose [low, high], 1, 2 or 5 times a power of ten apart, with their labels."""
    spread = max(high - low, abs(high) * 1e-3, 1e-6)
    power = 10.0 ** math.floor(math.log10(spread / 4))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor > 0.999 * spread / 4)
    start, end = math.floor(low / step), math.ceil(high / step)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    marks = [step * index for index in range(start, max(end, start + 1) + 1)]
    return [(mark, f"{mark:,.{digits}f}".replace("-", MINUS)) for mark in marks]
