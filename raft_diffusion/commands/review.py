"""`raft-diffusion review`: a person's eye ranks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Run, file_of

if TYPE_CHECKING:
    from rich.console import Console


def review(
    run: Run,
    round_: Annotated[
        int | None,
        typer.Option("--round", metavar="N", min=1, help="A finished round. Default: the one that waits, or the last."),
    ] = None,
    port: Annotated[
        int, typer.Option(metavar="N", min=0, max=65535, help="The page's port on 127.0.0.1. Default: any free one.")
    ] = 0,
) -> None:
    """Choose the best pictures of a round on a page in your browser, without seeing their scores.

    Where a run of `train --reward human` waits, it goes on with what you chose. In a finished round your choice
    overrules the ranking: `train` then tunes that round again and makes the later ones anew; what was there is kept in
    RUN/replaced. Every click is kept at once, and the same command goes on where you stopped.

    Example: raft-diffusion review runs/mine

    Example: raft-diffusion review runs/mine --round 1
    """
    import shlex
    import time

    from rich.console import Console

    from ..core.overrule import what_follows
    from ..core.store import complete_rounds
    from ..human import PAUSE
    from ..review.server import ReviewServer

    config = file_of(run, "config.toml")
    index = round_to_review(run, round_)
    console = Console()
    with ReviewServer(run, index=index, port=port) as server:
        if index is not None:
            _say(console, f"When you have finished, {what_follows(complete_rounds(run), index)}.")
        _say(console, "Open this page in your browser, on this machine; Ctrl-C loses nothing:")
        _say(console, f"  {server.address}")
        before = server.desk.finished()  # who comes back to a finished round wants to change it
        while (now := server.desk.finished()) is None or now == before:
            time.sleep(PAUSE)
    if index is None:
        _say(console, "The round is chosen. A run that waits goes on by itself; one that was stopped goes on with:")
    else:
        _say(console, f"Round {index} is chosen. To tune it again on what you chose:")
    _say(console, f"  raft-diffusion train {shlex.quote(str(config))} --out {shlex.quote(str(run))}")


def round_to_review(run: Path, asked: int | None) -> int | None:
    """The finished round to overrule; None for the one that waits. Raises ValueError where there is nothing to see."""
    from ..core.store import complete_rounds, stored_round, waiting_round

    waiting = waiting_round(run)
    if waiting is not None and asked in (None, waiting.index):
        return None
    index = asked if asked is not None else len(complete_rounds(run))
    stored_round(run, max(1, index))
    return index


def _say(console: Console, words: str) -> None:
    from ..terminal import clean

    console.print(clean(words), soft_wrap=True, highlight=False)
