"""Tables 3, 5, 6, 7 and 8 of RAFT (arXiv:2304.06767) on the carried reviews, one factor at a time.

    uv run python tests/bench/text.py --rows K=8                         one row, one seed: a minute of a CPU core
    uv run python tests/bench/text.py --seeds 0 1 2 --out text-tables    all of them; it goes on where it stopped

It measures and asserts nothing. Every row is the preset `pocket-reviews` with one setting changed. The texts compared
are written at temperature 1 whatever the candidates were sampled at. The student is the same class of model with a
fifth of the weights; its teacher is the result of the row K=8.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import raft_diffusion as rd
from raft_diffusion.training import finish_run

STUDENT = ("model=pocket-reviews-small",)
ROWS: dict[str, tuple[str, ...]] = {
    **{f"K={k}": (f"sampling.samples_per_prompt={k}",) for k in (4, 8, 16, 32)},
    **{f"temperature={t}": (f"sampling.temperature={t}",) for t in (0.7, 0.85, 1.0)},
    **{f"beta={beta}": (f"rewards.weights.log_ratio={-beta}",) for beta in (0.0, 0.005, 0.01, 0.1)},
    "student": STUDENT,
    "distilled": (*STUDENT, "teacher=pocket-reviews"),
}
TEACHER = "K=8"
FIGURES = (
    "perplexity", "perplexity_both_kinds", "msttr_100", "distinct_1", "distinct_2", "unique_1", "unique_2", "length",
)  # fmt: skip
COLUMNS = ("reward", "positive", *FIGURES)


def run(row: str, seed: int, out: Path) -> tuple[dict[str, Any], float]:
    """The evaluation of one row, trained where it is not yet, and the processor seconds that this call took."""
    changes = [*ROWS[row], f"seed={seed}", "threads=1", "guard.enabled=false", "evaluation.temperature=1.0"]
    if row == "distilled":
        run(TEACHER, seed, out)
        changes.append(f"teacher_lora={out / f'{TEACHER}-{seed}' / 'lora'}")
    began = time.process_time()
    config = rd.load_config("pocket-reviews", changes=changes)
    result = finish_run(config, out / f"{row}-{seed}", Console(stderr=True, quiet=True))
    return result, time.process_time() - began


def numbers(result: dict[str, Any], side: str) -> dict[str, float]:
    """The columns of one side, "base" or "tuned"."""
    row = {"reward": result["rewards"]["classifier"][side], "positive": result["judge"]["positive"][side]}
    return row | {name: result[name][side] for name in FIGURES}


def pooled(results: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The means over the seeds: of the base, and after RAFT."""
    sides = {side: [numbers(result, side) for result in results] for side in ("base", "tuned")}
    return {
        side: {name: statistics.fmean(row[name] for row in rows) for name in COLUMNS} for side, rows in sides.items()
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS, metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--out", type=Path, default=Path("runs/text-tables"), help="the runs; a second call goes on")
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args(arguments)
    console, table = Console(width=180), Table(box=None, padding=(0, 2, 0, 0))
    for head in ("row", *COLUMNS):
        table.add_column(head.replace("_", " "), justify="left" if head == "row" else "right")
    found: dict[str, Any] = {}
    for row in given.rows:
        results, seconds = zip(*(run(row, seed, given.out) for seed in given.seeds), strict=True)
        found[row] = {**pooled(list(results)), "seeds": given.seeds, "seconds": statistics.fmean(seconds)}
        console.print(f"{row}: {found[row]['seconds']:.0f} processor seconds a seed", highlight=False)
        for side in ("base", "tuned"):
            table.add_row(f"{row}, {side}", *(f"{found[row][side][name]:.3f}" for name in COLUMNS))
    console.print(table)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
