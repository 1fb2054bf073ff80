"""`raft-diffusion watch`: the page of a run while it goes on."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import Run, file_of, make_console


def watch(
    run: Run,
    every: Annotated[int, typer.Option("--every", metavar="SECONDS", min=1, help="How often to look.")] = 10,
) -> None:
    """Keep RUN/report.html up to date while the run goes on; open it once, and it refreshes itself.

    Ends when the run ends, or with Ctrl-C; the run itself takes no notice.

    Example: raft-diffusion watch runs/mine
    """
    from ..report import write_report
    from ..report.watch import watch as keep_up
    from ..terminal import clean

    file_of(run, "config.toml")
    console = make_console()
    page = (run / "report.html").resolve().as_uri()
    console.print(clean(f"open {page}; Ctrl-C ends the watch, not the run"), soft_wrap=True)
    try:
        keep_up(run, every=every, tell=lambda path: console.print(clean(f"written: {path}"), soft_wrap=True))
    except KeyboardInterrupt:
        write_report(run)  # without the order to load itself again
        console.print("stopped watching")
        return
    console.print("the run has ended; this was its last page")
