"""The result of a text run for people at a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

FIGURES = ("perplexity", "perplexity_both_kinds", "distinct_1", "distinct_2", "msttr_100", "length")
EXAMPLES = 3


def show_evaluation(console: Console, result: dict[str, Any]) -> None:
    """The evaluation as a table, the judges' curves, and some pairs of texts."""
    from rich.table import Table

    from ..terminal import clean

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for head in ("before and after", "base", "tuned", "change, 95 % interval"):
        table.add_column(head, justify="left" if head.startswith("before") else "right", no_wrap=True)
    for kind, unit, digits in (("judge", 100, 1), ("rewards", 1, 2)):
        end = " %" if kind == "judge" else ""
        for name, row in result[kind].items():
            base, tuned = (f"{row[side] * unit:.{digits}f}{end}" for side in ("base", "tuned"))
            low, high = (f"{value * unit:+.{digits}f}" for value in row["ci95"])
            change = f"{row['difference'] * unit:+.{digits}f} ({low} to {high})"
            table.add_row(clean(f"{name}, judge" if kind == "judge" else name), base, tuned, change)
    for name in (*FIGURES, *(key for key in result if key.startswith("pass_at_"))):
        row = result.get(name)
        if row and row["base"] is not None and row["tuned"] is not None:
            share = f"{100 * (row['tuned'] / row['base'] - 1):+.1f} %" if row["base"] else ""
            table.add_row(name, f"{row['base']:.3f}", f"{row['tuned']:.3f}", share)
    console.print()
    console.print(table)
    for name, points in result.get("curve", {}).items():
        told = ", ".join(f"{100 * point:.0f}" for point in points)
        console.print(clean(f"{name} by round, in %, the base first: {told}"), soft_wrap=True)
    for pair in result["examples"][:EXAMPLES]:
        for side in ("before", "after"):
            console.print(clean(f"{side + ':':8}{pair['text']}{pair[side]}"), soft_wrap=True)
