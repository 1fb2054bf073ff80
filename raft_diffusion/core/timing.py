"""How long each round took: rounds/001/time.json in the run folder. Nothing that a run does depends on it.

And how a length of time is said.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from .files import write_atomically

FILE = "time.json"


def write_seconds(root: Path, index: int, seconds: float) -> None:
    """Wall time of round `index`, the guard's look left out; of its last attempt where it was interrupted."""
    write_atomically(_place(root, index), json.dumps({"seconds": round(seconds, 2)}) + "\n")


def read_seconds(root: Path, index: int) -> float | None:
    """None where it was not written, or is damaged."""
    try:
        seconds = float(json.loads(_place(root, index).read_text(encoding="utf-8"))["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def seconds_until(root: Path, index: int) -> float | None:
    """Of rounds 1 to `index` together; None where one of them is not known."""
    known = [read_seconds(root, done) for done in range(1, index + 1)]
    return None if None in known else sum(filter(None, known))


def _place(root: Path, index: int) -> Path:
    return root / "rounds" / f"{index:03d}" / FILE


def clock(seconds: float) -> str:
    """About how long, as a person would say it: "45 s", "1 min 35 s", "12 min", "2 h 10 min", "4 days"."""
    if seconds < 59.5:
        return f"{max(1, round(seconds))} s"
    if seconds < 597.5:
        minutes, rest = divmod(round(seconds / 5) * 5, 60)
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} min"
    if seconds < 48 * 3600:
        hours, minutes = divmod(round(seconds / 600) * 10, 60)
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{round(seconds / 86400)} days"
