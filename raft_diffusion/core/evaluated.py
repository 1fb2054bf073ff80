"""The evaluation of a run as it lies on disk, every part checked that anything is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .rows import expect, is_number, is_numbers, read_object

FILE = "evaluation/evaluation.json"


def read_evaluation(root: Path) -> dict[str, Any] | None:
    """What the evaluation of a finished run found; None before it. Raises ValueError for a damaged file."""
    path = root / FILE
    if not path.is_file():
        return None
    result, place = read_object(path), str(path)
    for key in ("settings", "asked"):
        expect(isinstance(result.get(key, {}), dict), place, f"{key} is no table")
    curve = result.get("curve", {})
    expect(isinstance(curve, dict) and all(map(_is_list, curve.values())), place, "curve holds no numbers by judge")
    expect(is_numbers(result.get("diversity") or {}), place, "diversity holds no numbers")
    for key in ("judge", "rewards"):
        rows = result.get(key)
        expect(isinstance(rows, dict) and all(map(_is_row, rows.values())), place, f"{key} holds no comparison")
    examples = result.get("examples")
    expect(isinstance(examples, list) and all(map(_is_example, examples)), place, "examples are no pairs")
    return result


def _is_row(row: Any) -> bool:
    """Base and tuned on the same draws, and the interval of their difference."""
    if not isinstance(row, dict) or not all(is_number(row.get(key)) for key in ("base", "tuned", "difference")):
        return False
    ends = row.get("ci95")
    return isinstance(ends, list) and len(ends) == 2 and _is_list([*ends, row.get("oracle", 0)])


def _is_list(values: Any) -> bool:
    return isinstance(values, list) and all(map(is_number, values))


def _is_example(pair: Any) -> bool:
    return isinstance(pair, dict) and all(isinstance(pair.get(key), str) for key in ("text", "before", "after"))
