"""What several commands share: their options, and where their numbers go."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ..core.files import write_atomically


def preset_names(incomplete: str) -> list[str]:
    """What the shell completes a preset's name with."""
    folder = Path(__file__).parents[1] / "presets"
    return sorted(path.stem for path in folder.glob(f"{incomplete}*.toml"))


Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="The run folder. Default: runs/<name>-<hash>.")]
Json = Annotated[str | None, typer.Option("--json", metavar="FILE", help="Write the numbers as JSON; - is stdout.")]
Seed = Annotated[int | None, typer.Option("--seed", metavar="N", min=0, help="The run's seed.")]
Threads = Annotated[int | None, typer.Option("--threads", metavar="N", min=1, help="CPU threads. Default: all cores.")]
Device = Annotated[str | None, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda or mps.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; repeatable.")]
ConfigName = Annotated[
    str,
    typer.Argument(metavar="PRESET|CONFIG.toml", help="A preset's name or a TOML file.", autocompletion=preset_names),
]
Model = Annotated[
    str | None, typer.Option("--model", metavar="M", help="pocket, a folder, a .safetensors checkpoint, or a hub id.")
]
Lora = Annotated[
    Path | None,
    typer.Option("--lora", metavar="PATH", help="A LoRA of kohya's, diffusers' or peft's format, or a run."),
]
Revision = Annotated[str | None, typer.Option("--revision", metavar="REF", help="A hub id's branch, tag or commit.")]
Variant = Annotated[str | None, typer.Option("--variant", metavar="NAME", help="Which weights are read, as fp16.")]
Prediction = Annotated[str | None, typer.Option("--prediction-type", metavar="KIND", help="epsilon or v_prediction.")]
Prompts = Annotated[
    str | None, typer.Option("--prompts", metavar="FILE|TEXT", help="A .txt, .csv or .toml, a carried list, or a text.")
]
HeldOut = Annotated[
    float | None, typer.Option("--held-out", metavar="SHARE", help="Share of --prompts that is never trained on.")
]
RankBy = Annotated[
    str | None,
    typer.Option("--reward", metavar="NAME", help="What ranks, alone; human: you do, on a page in your browser."),
]
Generators = Annotated[
    list[str] | None,
    typer.Option(
        "--generator",
        metavar="SOURCE",
        help="Who makes candidates: policy, folder:PATH or MODULE:FUNCTION; repeat it to mix them in equal shares.",
    ),
]
Recipe = Annotated[
    str | None,
    typer.Option("--recipe", metavar="NAME", help="How to learn: default, paper, one-shot or reward-weighted."),
]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]


def make_console(json_file: str | None = None) -> Console:
    """What people read goes to stderr when stdout carries the numbers."""
    return Console(stderr=json_file == "-")


def check_writable(path: Path | None, *, option: str) -> None:
    """Refuse a file that cannot be written, before the work that fills it."""
    if path is not None and (
        (os.path.exists(path) and not os.path.isfile(path)) or not os.access(path.parent, os.W_OK)
    ):
        raise ValueError(f"{option} {path}: cannot write there; name a file in a folder that exists")


@contextmanager
def collected(target: str | None) -> Iterator[dict[str, Any]]:
    """Collects a command's numbers and writes them at the end; an unwritable place is refused before the work."""
    numbers: dict[str, Any] = {}
    path = Path(target) if target not in (None, "-") else None
    check_writable(path, option="--json")
    yield numbers
    if target == "-":
        sys.stdout.write(json.dumps(numbers, indent=1) + "\n")
    elif path is not None:
        write_atomically(path, json.dumps(numbers, indent=1) + "\n")


def file_of(run: Path, name: str) -> Path:
    """RUN/name, which must be there."""
    path = run / name
    if not os.path.isfile(path):
        raise ValueError(f"{run} holds no {name}: give the folder of a run that `train` or `demo` has finished")
    return path
