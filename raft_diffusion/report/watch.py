"""The page of a run that goes on: written again whenever the run folder has something new."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from ..core.looks import FILE as LOOK
from .page import write_report
from .reader import Thumbnails

EVALUATION = "evaluation/evaluation.json"
WATCHED = ("config.toml", "environment.json", "metrics.jsonl", LOOK, f"start/{LOOK}", EVALUATION)
EACH_ROUND = ("round.json", LOOK)
State = dict[str, tuple[int, int]]  # file -> (time of its last change in ns, size in bytes)


def watch(run: Path, *, every: int, tell: Callable[[Path], None], sleep: Callable[[float], None] = time.sleep) -> None:
    """Keep RUN/report.html up to date until the run has ended, which its evaluation shows, or Ctrl-C.

    every: seconds between two looks at the folder; the open page loads itself again as often, and stops with the last
        page, as that has no such order. tell: called with the page's path whenever it was written.
    Raises ValueError when `run` is no run folder.
    """
    thumbnails: Thumbnails = {}
    seen: State | None = None
    while True:
        state = _state(run)
        ended = EVALUATION in state
        if ended or state != seen:
            tell(write_report(run, refresh=None if ended else every, thumbnails=thumbnails))
        if ended:
            return
        seen = state
        sleep(every)


def _state(run: Path) -> State:
    places = [run / name for name in WATCHED]
    places += [path for name in EACH_ROUND for path in sorted(run.glob(f"rounds/[0-9]*/{name}"))]
    state: State = {}
    for place in places:
        try:
            found = place.stat()
        except FileNotFoundError:
            continue
        state[place.relative_to(run).as_posix()] = found.st_mtime_ns, found.st_size
    return state
