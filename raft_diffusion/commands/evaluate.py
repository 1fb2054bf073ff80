"""`raft-diffusion evaluate`: the base against the tuned model, once more."""

from __future__ import annotations

from .options import Json, Run, Threads, collected, file_of, make_console


def evaluate(run: Run, threads: Threads = None, json_file: Json = None) -> None:
    """Compare the base and the tuned model again on the run's evaluation seeds.

    Example: raft-diffusion evaluate runs/mine --json -
    """
    from .. import runs
    from ..core.config import Config

    config = Config.load(file_of(run, "config.toml"))
    with collected(json_file) as numbers:
        numbers.update(runs.evaluate_run(config, run, make_console(json_file), threads=threads))
