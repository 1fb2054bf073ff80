"""`raft-diffusion doctor`: is this machine ready?"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Json, Model, collected, make_console

if TYPE_CHECKING:
    from rich.console import Console

    from ..doctor import Check

STYLES = {"ok": "green", "look": "yellow", "missing": "bold red"}


def doctor(
    model: Model = None,
    online: Annotated[
        bool, typer.Option("--online", help="Ask the hub for what is not here; nothing is downloaded.")
    ] = False,
    json_file: Json = None,
) -> None:
    """Look at Python, packages, torch, the graphics card, the disk, the carried model, and what Stable Diffusion 1.5
    needs from the hub; say what to do.

    It imports torch, which takes some seconds, and needs no network. Exit code 1 where something needed is missing or
    broken, else 0.

    Example: raft-diffusion doctor

    Example: raft-diffusion doctor --online

    Example: raft-diffusion doctor --model model.safetensors
    """
    from ..doctor import examine

    console = make_console(json_file)
    with collected(json_file) as numbers:
        with console.status("looking around; torch takes some seconds"):
            checks = examine(Path.cwd(), model=model, online=online)
        show(console, checks)
        numbers["ready"] = all(check.verdict != "missing" for check in checks)
        numbers["checks"] = [asdict(check) for check in checks]
    if not numbers["ready"]:
        raise typer.Exit(1)


def show(console: Console, checks: list[Check]) -> None:
    """The table, and under it what to do."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from ..terminal import clean

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("what", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("found", overflow="fold")
    for check in checks:
        table.add_row(check.what, Text(check.verdict, style=STYLES[check.verdict]), clean(check.found))
    console.print(table)
    for check in checks:
        if check.advice:
            console.print(clean(f"{check.what}: {check.advice}"), soft_wrap=True)
    if all(check.verdict == "ok" for check in checks):
        console.print("All is well. Next: raft-diffusion demo", highlight=False)
