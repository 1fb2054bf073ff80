"""`raft-diffusion merge`: a model with its LoRA baked in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Revision, Threads, Variant, make_console

if TYPE_CHECKING:
    from rich.console import Console


def merge(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="pocket, a folder, a .safetensors checkpoint, or a hub id.")
    ],
    lora: Annotated[
        Path, typer.Argument(metavar="LORA", help="A LoRA of kohya's, diffusers' or peft's format, or a run.")
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="PATH", help="NAME.safetensors for one checkpoint file, else a folder.")
    ],
    strength: Annotated[
        float, typer.Option("--strength", metavar="X", help="0: the base; 1: the LoRA as trained.")
    ] = 1.0,
    dtype: Annotated[str, typer.Option("--dtype", metavar="NAME", help="fp16, bf16 or fp32.")] = "fp16",
    revision: Revision = None,
    variant: Variant = None,
    threads: Threads = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there already.")] = False,
) -> None:
    """Write a model that has the LoRA in its weights: a diffusers folder, or one checkpoint file for a WebUI.

    Stable Diffusion 1.5 takes 2.1 GB of disk in fp16 and 7 GB of memory on the
    way. What is written is whole or not there.

    Example: raft-diffusion merge model.safetensors runs/mine --out mine.safetensors --strength 0.8

    Example: raft-diffusion merge pocket runs/mine --out merged
    """
    from .. import assemble
    from ..lora import merge as merging
    from ..terminal import clean

    plan = merging.plan_merge(
        model, lora, out, strength=strength, dtype=dtype, revision=revision, variant=variant, force=force
    )
    console = make_console()
    with console.status("loading the model"):
        assemble.prepare(threads)
        components = merging.load_model(plan)
    size = merging.merge_size(plan, components) / 1e6
    console.print(clean(f"{len(plan.lora.layers)} layers at {strength:g}; {size:.0f} MB of {dtype} to write"))
    if plan.lora.note:
        console.print(clean(f"note: {plan.lora.note}"), soft_wrap=True)
    with _bar(console) as progress:
        merging.bake(plan, components, progress)
        merging.write(plan, components, progress)
    console.print(clean(str(out)), soft_wrap=True)


@contextmanager
def _bar(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    names = {"merge": "merging", "write": "writing"}
    columns = (TextColumn("{task.description:8}"), BarColumn(30), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        tasks = {}

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(names[stage], total=total)
            bar.update(tasks[stage], completed=done)

        yield progress
