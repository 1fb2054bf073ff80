"""What the report's page is made of: sentences, numbers, charts."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raft_diffusion.report.charts import BOTTOM, LEFT, RIGHT, TOP, chart
from raft_diffusion.report.result import headline, read_measures, signed, written

RUNS = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("report_runs.py"))))
CONFIG, Page, make_evaluation, make_round = RUNS.CONFIG, RUNS.Page, RUNS.make_evaluation, RUNS.make_round
paint, row, write = RUNS.paint, RUNS.row, RUNS.write


@pytest.mark.parametrize(
    ("evaluation", "sentence", "note"),
    [
        ({"judge": {"object": row(0.5, 0.6, 0.47, -0.09, 0.03)}}, "change: −9 to +3 points", "The interval holds 0"),
        (
            {"judge": {"object": {"base": 0.2, "tuned": 0.4}}},
            "It is now in 40 % of the pictures; before it was 20 %.",
            "",
        ),
        ({"judge": {"object": {"base": 0.2, "tuned": 0.4}}}, "It is now", "No interval was measured"),
        (
            {
                "judge": {"object_ood": row(0, 0, 1, 0, 1)},
                "rewards": {
                    "held_out.x_ood": row(0, 0, 1, 0, 1),
                    "aesthetic": row(5, 6, 5.5, 0.4, 0.6),
                    "held_out.x": row(-1, 0, 1234.4, 0.2, 1500),
                },
            },
            "held_out.x is now 1,234 on average; before it was −1.00 (95 % interval of the gain: +0.200 to +1,500)",
            "It took no part in the ranking.",
        ),
        ({"rewards": {"aesthetic": row(5, 6, 5.5, 0.4, 0.6)}}, "aesthetic is now 5.50", "It ranked the candidates"),
    ],
)
def test_headlines(evaluation: dict[str, Any], sentence: str, note: str) -> None:
    result = headline(read_measures(evaluation), "It")
    assert result is not None
    assert sentence in result.sentence and note in result.note


def test_numbers_are_written_for_people() -> None:
    assert [written(x) for x in (0.20123, 6.0, 60, -0.5, 123456.7, None, float("nan"))] == (
        ["0.201", "6.00", "60", "−0.500", "123,457", "–", "–"]
    )
    assert signed(0.25) == "+0.250" and signed(-2.5) == "−2.50"


def test_a_chart_spans_its_plot() -> None:
    drawn = chart("x", {"all": [(1, 0.21), (2, 0.3), (3, 0.39)], "none": []}, held_out=False)
    points = drawn.lines["all"]
    assert [label for _, label in drawn.y_ticks] == ["0.20", "0.25", "0.30", "0.35", "0.40"]
    assert list(drawn.lines) == ["all"] and [label for _, label in drawn.x_ticks] == ["1", "2", "3"]
    assert (points[0].x, points[-1].x) == (LEFT, RIGHT)
    assert points[1].y == pytest.approx((TOP + BOTTOM) / 2)
    assert points[0].y == pytest.approx(BOTTOM - 0.05 * (BOTTOM - TOP), abs=0.06)


@pytest.mark.parametrize("value", [0.0, -3.0, 1e9, 1e-9])
def test_a_chart_of_one_point_is_a_point(value: float) -> None:
    drawn = chart("x", {"all": [(4, value)]}, held_out=True)
    (point,) = drawn.lines["all"]
    assert point.x == (LEFT + RIGHT) / 2 and TOP <= point.y <= BOTTOM


def test_a_long_run_keeps_its_axis_readable() -> None:
    drawn = chart("x", {"all": [(i, i) for i in range(1, 101)]}, held_out=False)
    assert len(drawn.x_ticks) <= 10 and 3 <= len(drawn.y_ticks) <= 7


def test_intervals_lie_within_the_chart():
    drawn = chart("x", {"all": [(0, 2.0), (1, 3.0)]}, held_out=True, spans=[(0, 2.0, 2.0), (1, 1.0, 6.0)])
    (low, high), points = drawn.spans[1], drawn.lines["all"]
    assert (low.x, low.value, high.value) == (points[1].x, 1.0, 6.0)
    assert TOP <= high.y < points[1].y < low.y <= BOTTOM
    assert drawn.spans[0][0].y == points[0].y
