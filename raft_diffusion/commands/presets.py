"""`raft-diffusion presets`: the settings that come with the package."""

from __future__ import annotations

import difflib
import sys
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import make_console, preset_names

if TYPE_CHECKING:
    from rich.table import Table


def presets(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="Print this preset's TOML.", autocompletion=preset_names),
    ] = None,
) -> None:
    """List the presets, or print one: the start of a file of your own.

    Example: raft-diffusion presets

    Example: raft-diffusion presets pocket-monet > mine.toml
    """
    from ..jobs import PRESETS

    paths = {path.stem: path for path in sorted(PRESETS.glob("*.toml"))}
    if name is None:
        console = make_console()
        console.print(listing(paths))
        console.print("Print one with: raft-diffusion presets NAME > mine.toml", highlight=False)
        return
    if name not in paths:
        near = difflib.get_close_matches(name, paths, n=2, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(paths)}"
        raise ValueError(f"unknown preset {name!r}: {hint}")
    sys.stdout.write(paths[name].read_text(encoding="utf-8"))


def listing(paths: dict[str, Path]) -> Table:
    """Name, what it does, what all rounds make, time here by `planning.forecast` where that knows it."""
    from rich import box
    from rich.table import Table

    from ..core.timing import clock
    from ..jobs import load_config
    from ..llm.config import TextConfig
    from ..llm.outlook import count
    from ..planning.forecast import forecast, this_machine

    machine = this_machine()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("preset", style="bold", no_wrap=True)
    table.add_column("what it does")
    table.add_column("makes", justify="right", no_wrap=True)
    table.add_column("time here", justify="right", no_wrap=True)
    for name, path in paths.items():
        config, what = load_config(name), purpose(path.read_text(encoding="utf-8"))
        if isinstance(config, TextConfig):
            makes, takes = f"{count(config).texts:,} texts", "unknown"
        else:
            result = forecast(config, machine=machine)
            makes, takes = f"{result.images:,} images", clock(result.seconds)
        table.add_row(name, what, makes, takes, end_section=True)
    return table


def purpose(text: str) -> str:
    """What a preset says of itself: the comment at its top, up to an empty line of it."""
    lines = (line.removeprefix("#").strip() for line in takewhile(lambda line: line.startswith("#"), text.splitlines()))
    return " ".join(takewhile(bool, lines))
