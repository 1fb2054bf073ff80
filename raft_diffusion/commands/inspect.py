"""`raft-diffusion inspect`: what a LoRA file is, and where it would not load."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Json, collected, make_console

if TYPE_CHECKING:
    from ..lora.inspection import Inspection

_LONGEST = 100  # characters of a value that are shown; --json holds all


def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Any LoRA as a .safetensors file.")],
    json_file: Json = None,
) -> None:
    """Say what a LoRA is: format, layers, rank, alpha, base model, strength by block, metadata; and what would not
    load it, and why.

    Example: raft-diffusion inspect cat.safetensors

    Example: raft-diffusion inspect cat.safetensors --json -
    """
    from rich.table import Table

    from ..lora.inspection import NO_LORA, inspect_file
    from ..terminal import clean

    with collected(json_file) as numbers:
        found = inspect_file(file)
        numbers |= found.to_json()
    console = make_console(json_file)
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for rows in _sections(found) if found.format != NO_LORA else ():
        for name, value in rows.items():
            table.add_row(clean(name), clean(value))
        table.add_row()
    if table.row_count:
        console.print(table)
    for problem in found.problems:
        console.print(clean(f"problem: {problem}"), soft_wrap=True)
    if not found.problems:
        console.print(
            "no problem: AUTOMATIC1111, Forge, ComfyUI, InvokeAI, Draw Things, kohya's scripts and diffusers load it"
        )


def _sections(found: Inspection) -> list[dict[str, str]]:
    """What is told of a LoRA: the file, its strength by block, its metadata."""
    text = sum(name.startswith(("lora_te", "text_encoder", "base_model.model.text_model")) for name in found.modules)
    file = {
        "format": found.format,
        "made for": found.base,
        "layers": f"{len(found.modules)}: {len(found.modules) - text} in the UNet, {text} in the text encoder",
        "rank": ", ".join(map(str, found.ranks)),
        "alpha": ", ".join(f"{alpha:g}" for alpha in found.alphas) or "not said",
        "numbers": ", ".join(found.dtypes),
    }
    largest = max(found.norms.values(), default=0.0) or 1.0
    strength = {
        f"strength, {block}": f"{norm:<8.3g}{'#' * round(20 * norm / largest)}" for block, norm in found.norms.items()
    }
    said = {
        name: value if len(value) <= _LONGEST else f"{value[:_LONGEST]}... ({len(value)} characters)"
        for name, value in sorted(found.metadata.items())
        if name != "format"  # safetensors' own: which library wrote it
    }
    return [rows for rows in (file, strength, said) if rows]
