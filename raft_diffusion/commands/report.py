"""`raft-diffusion report`: the page of a run."""

from __future__ import annotations

from .options import Run, file_of


def report(run: Run) -> None:
    """Write RUN/report.html from the run folder alone.

    Example: raft-diffusion report runs/mine
    """
    from ..report import write_report

    file_of(run, "config.toml")
    print(write_report(run))
