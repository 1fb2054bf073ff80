"""`raft-diffusion export`: the LoRA of a run as a file for WebUIs or diffusers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Run, make_console

if TYPE_CHECKING:
    from rich.console import Console

    from ..lora.export import Export


def export(
    run: Run,
    round_: Annotated[
        int | None, typer.Option("--round", metavar="N", min=1, help="The LoRA after this round. Default: the last.")
    ] = None,
    format_: Annotated[
        str, typer.Option("--format", metavar="NAME", help="kohya, for WebUIs, or diffusers.")
    ] = "kohya",
    dtype: Annotated[str, typer.Option("--dtype", metavar="NAME", help="fp16, bf16 or fp32.")] = "fp16",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Default: RUN/export/<name>.safetensors.")
    ] = None,
    install: Annotated[
        Path | None, typer.Option("--install", metavar="WEBUI", help="Copy it into the WebUI in this folder.")
    ] = None,
    tags: Annotated[bool, typer.Option("--tags/--no-tags", help="Whether the files tell the prompts.")] = True,
    preview: Annotated[bool, typer.Option("--preview/--no-preview", help="A picture, beside it and inside.")] = True,
    sidecar: Annotated[bool, typer.Option("--sidecar/--no-sidecar", help="The .json that WebUIs read.")] = True,
    card: Annotated[bool, typer.Option("--card/--no-card", help="The model card.")] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
) -> None:
    """Write a run's LoRA as one .safetensors file that WebUIs load, with a preview, a sidecar and a card beside it.

    Example: raft-diffusion export runs/mine

    Example: raft-diffusion export runs/mine --round 2 --no-tags --dtype fp32 --force

    Example: raft-diffusion export runs/mine --format diffusers --out cat.safetensors --force

    Example: raft-diffusion export runs/monet-style-cat --install ~/stable-diffusion-webui
    """
    from ..lora import export as exports
    from ..lora.install import check_install, find_place
    from ..lora.install import install as copy
    from ..terminal import clean

    sides = [ending for ending, wanted in ((".png", preview), (".json", sidecar), (".md", card)) if wanted]
    plan = exports.plan_export(
        run, last_round=round_, format_=format_, dtype=dtype, out=out, tags=tags, sides=sides, force=force
    )
    goes = [path for path in plan.files if path.suffix != ".md"]
    if install is not None:
        exports.check_installable(plan)
        check_install([path.name for path in goes], install, force=force)
    result = exports.write_export(plan)
    console = make_console()
    facts = f"rank {result.rank}, alpha {result.alpha:g}, {result.layers} layers, {dtype}, {format_}'s format"
    _show_files(console, plan.files, facts)
    for note in [*plan.notes, *result.notes]:
        console.print(clean(f"note: {note}"), soft_wrap=True)
    if install is not None:
        place = find_place(install)
        copy(goes, place)
        there = f"installed in {place.program}, press Refresh there: {place.folder / plan.target.name}"
        console.print(clean(there), soft_wrap=True)
    console.print()
    for line in _uses(plan, result.trigger, f"{result.weight:g}"):
        console.print(clean(line), soft_wrap=True)


def _show_files(console: Console, files: Sequence[Path], facts: str) -> None:
    """The files with their sizes and what they are; facts: of the LoRA itself."""
    from ..terminal import clean

    what = {".safetensors": facts, ".png": "before and after", ".json": "what WebUIs show", ".md": "model card"}
    width = max(len(str(path)) for path in files)
    for path in files:
        console.print(clean(f"{path!s:{width}}  {_size(path):>8}  {what[path.suffix]}"), soft_wrap=True)


def _size(path: Path) -> str:
    size = path.stat().st_size
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{max(1, round(size / 1e3))} kB"


def _uses(plan: Export, trigger: str, weight: str) -> list[str]:
    """How the file is used, in the words of the program that loads it."""
    if plan.format == "diffusers":
        return [f'pipe.load_lora_weights("{plan.target.parent.as_posix()}", weight_name="{plan.target.name}")']
    if plan.is_pocket:
        return [f"See it at work: raft-diffusion sample --run {plan.run} --compare"]
    words = f"{trigger} " if trigger else ""
    return [
        f"AUTOMATIC1111, Forge   in the prompt: {words}<lora:{plan.target.stem}:{weight}>",
        f"ComfyUI                node Load LoRA: {plan.target.name}, strength {weight}",
        "InvokeAI, Draw Things  import the file in the model manager",
    ]
