"""`raft-diffusion train`: run RAFT."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import Json, Out, Seed, Set, Threads, collected, make_console


def train(
    config: Annotated[str, typer.Argument(metavar="PRESET|CONFIG.toml", help="A preset's name or a TOML file.")],
    out: Out = None,
    seed: Seed = None,
    threads: Threads = None,
    changes: Set = None,
    json_file: Json = None,
) -> None:
    """Run RAFT; the same command starts a run and goes on with it.

    Example: raft-diffusion train pocket-monet --out runs/mine --set rounds=6 --set tuning.rank=8
    """
    from .. import runs

    resolved = runs.load_config(config, seed=seed, threads=threads, changes=changes or [])
    with collected(json_file) as numbers:
        numbers.update(runs.finish_run(resolved, out or runs.default_folder(resolved), make_console(json_file)))
