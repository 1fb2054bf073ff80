"""`raft-diffusion demo`: the whole job on the carried model."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import Json, Out, Seed, Threads, collected, make_console

DEMOS = {
    "monet": "pocket-monet",
    "resolution": "pocket-resolution",
    "text": "pocket-reviews",
    "sums": "pocket-sums",
}
INTRO = {
    "monet": 'The base paints "monet style cat" as Monets without a cat. RAFT learns from the best of its pictures.',
    "resolution": "The base was made for 64 px and is nearly broken at 32 px, where pictures are cheap. RAFT mends it.",
    "text": "The base writes film reviews, more often bad than good. RAFT learns from the kindest of its own.",
    "sums": "The base answers sums mostly by a guess that forgets the carry. RAFT learns from its right answers alone.",
}


def demo(
    which: Annotated[
        str,
        typer.Argument(
            help="Pictures: monet or resolution. Language models: text or sums.", metavar=f"[{'|'.join(DEMOS)}]"
        ),
    ] = "monet",
    out: Out = None,
    seed: Seed = None,
    threads: Threads = None,
    json_file: Json = None,
) -> None:
    """The whole job on a small model that the package carries: minutes on a CPU, nothing to download.

    Example: raft-diffusion demo monet --seed 1

    Example: raft-diffusion demo text --json -
    """
    from .. import crew, jobs, training

    if which not in DEMOS:
        *others, last = DEMOS
        raise ValueError(f"unknown demo {which!r}: use {', '.join(others)} or {last}")
    config = jobs.load_config(DEMOS[which], seed=seed, threads=threads)
    if crew.is_helper():
        return training.help_with(config)
    console = make_console(json_file)
    console.print(INTRO[which])
    with collected(json_file) as numbers:
        numbers.update(training.finish_run(config, out or jobs.default_folder(config), console))
