"""`raft-diffusion export`: the LoRA of a run as one file."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Annotated

import typer

from .options import Run, file_of, make_console


def export(
    run: Run,
    round_: Annotated[
        int | None, typer.Option("--round", metavar="N", min=1, help="The LoRA after this round. Default: the last.")
    ] = None,
    format_: Annotated[str, typer.Option("--format", metavar="NAME", help="diffusers.")] = "diffusers",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Default: RUN/export/<name>.safetensors.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it is there.")] = False,
) -> None:
    """Write a run's LoRA as one .safetensors file in the diffusers format, with its rank and alpha.

    Example: raft-diffusion export runs/mine

    Example: raft-diffusion export runs/mine --round 2 --out cat.safetensors --force
    """
    from ..core.config import Config
    from ..terminal import clean

    if format_ != "diffusers":
        raise ValueError(f"unknown format {format_!r}: the one that can be written is diffusers")
    config = Config.load(file_of(run, "config.toml"))
    source = _adapter(run, round_)
    target = out or run / "export" / f"{config.name}.safetensors"
    if target.suffix != ".safetensors":
        raise ValueError(f"--out {target}: name a file that ends in .safetensors")
    if target.exists() and not (force and target.is_file()):
        raise ValueError(f"{target} is there already: give --force to replace it, or another name with --out")
    if out is None:
        target.parent.mkdir(exist_ok=True)
    partial = target.with_name(f"{target.name}.partial")
    shutil.copyfile(source, partial)
    os.replace(partial, target)
    console = make_console()
    console.print(clean(f"{target}  ({target.stat().st_size / 1e6:.1f} MB, rank {config.tuning.rank})"), soft_wrap=True)
    console.print(clean(f'pipe.load_lora_weights("{target.parent}", weight_name="{target.name}")'), soft_wrap=True)


def _adapter(run: Path, number: int | None) -> Path:
    """The adapter after a round; the last one there is when no round is named."""
    from ..lora_file import FILE_NAME, find_lora

    if number is None:
        return find_lora(run)
    path = run / "rounds" / f"{number:03d}" / "adapter" / FILE_NAME
    if not path.is_file():
        there = sorted(int(folder.name) for folder in (run / "rounds").glob("[0-9]*") if folder.is_dir())
        known = f"it has {there[0]} to {there[-1]}" if there else "it has none yet"
        raise ValueError(f"{run} has no round {number}: {known}")
    return path
