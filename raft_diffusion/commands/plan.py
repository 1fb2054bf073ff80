"""`raft-diffusion plan`: the arithmetic before the hours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.config import Config
from .options import (
    ConfigName,
    Device,
    Generators,
    HeldOut,
    Json,
    Model,
    Prediction,
    Prompts,
    RankBy,
    Recipe,
    Revision,
    Set,
    Threads,
    Variant,
    collected,
    make_console,
)

if TYPE_CHECKING:
    from rich.console import Console

    from ..llm.config import TextConfig
    from ..planning.forecast import Forecast


def plan(
    config: ConfigName,
    model: Model = None,
    revision: Revision = None,
    variant: Variant = None,
    prediction_type: Prediction = None,
    prompts: Prompts = None,
    held_out: HeldOut = None,
    reward: RankBy = None,
    generators: Generators = None,
    recipe: Recipe = None,
    device: Device = None,
    threads: Threads = None,
    changes: Set = None,
    measured: Annotated[
        bool, typer.Option("--measure", help="Load the model, run two UNet steps and two of finetuning, and correct.")
    ] = False,
    json_file: Json = None,
) -> None:
    """Say what `train` would make and take with the same settings, and refuse what it would refuse. Loads nothing but
    for --measure.

    Images and steps are exact. Time, memory and disk are estimates; --measure corrects the time. Of a run that writes
    texts the counts alone are known.

    Example: raft-diffusion plan pocket-monet --set rounds=6

    Example: raft-diffusion plan resolution-256 --model model.safetensors

    Example: raft-diffusion plan pocket-resolution --measure

    Example: raft-diffusion plan pocket-monet --json -
    """
    from .. import jobs
    from ..modality import modality_of

    resolved = jobs.load_config(
        config,
        threads=threads,
        device=device,
        model=model,
        revision=revision,
        variant=variant,
        prediction_type=prediction_type,
        prompts=prompts,
        held_out=held_out,
        reward=reward,
        generators=generators or [],
        recipe=recipe,
        changes=changes or [],
    )
    modality_of(resolved).check(resolved)
    folder = jobs.default_folder(resolved)
    with collected(json_file) as numbers:
        console = make_console(json_file)
        if isinstance(resolved, Config):
            numbers.update(_of_pictures(resolved, console, folder, measured=measured))
        else:
            numbers.update(_of_texts(resolved, console, folder, measured=measured))


def _of_pictures(config: Config, console: Console, folder: Path, *, measured: bool) -> dict[str, Any]:
    from ..planning.forecast import forecast, this_machine

    result = forecast(config, machine=this_machine())
    if measured:
        from ..planning.measure import measure

        with console.status("loading the model, and running a few steps of it"):
            rates = measure(config)
        result = forecast(config, machine=this_machine(), measured=rates)
    timed = "time is corrected by a measurement; memory and disk are estimates"
    guessed = "time, memory and disk are estimates"
    exact = f"Images and steps are exact; {timed if result.measured else guessed}."
    show(console, rows(result, folder), exact, (result.basis, *result.notes))
    return to_json(result, folder)


def _of_texts(config: TextConfig, console: Console, folder: Path, *, measured: bool) -> dict[str, Any]:
    from ..llm.outlook import count

    if measured:
        raise ValueError("--measure times the parts of an image model, and this run writes texts; leave it out")
    result = count(config)
    told = [*result.rows(), ("time", "unknown"), ("memory", "unknown"), ("folder", str(folder))]
    show(console, told, "Texts and steps are exact.", result.notes)
    return {**asdict(result), "texts_per_round": result.texts_per_round, "folder": str(folder)}


def to_json(result: Forecast, folder: Path) -> dict[str, Any]:
    """Every number of the forecast, in all unless its name says otherwise."""
    return {
        **asdict(result),
        "groups": result.groups,
        "images_per_round": result.images_per_round,
        "seconds": result.seconds,
        "folder": str(folder),
    }


def show(console: Console, told: Sequence[tuple[str, str]], exact: str, notes: Sequence[str]) -> None:
    """A table with one line for each thing that a newcomer asks, what is exact of it, and the notes."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for what, words in told:
        table.add_row(what, Text(words))
    console.print(table)
    console.print(exact, highlight=False)
    for note in notes:
        console.print(Text(f"- {note}"), soft_wrap=True)


def rows(result: Forecast, folder: Path) -> list[tuple[str, str]]:
    """What the table says."""
    from ..core.timing import clock
    from ..planning.forecast import size

    many = "" if result.groups_per_prompt == 1 else f" x {result.groups_per_prompt} groups"
    prompts = f"{result.prompts} prompt{'s' * (result.prompts > 1)}"
    evaluation = f"{result.evaluation_images:,} images: the same seeds before and after"
    looks = result.rounds + 1
    seen = f"{looks} x {result.guard_images // looks} = {result.guard_images:,} images: the same seeds again and again"
    return [
        ("a round", f"{prompts}{many} x {result.candidates} candidates = {result.images_per_round:,} images"),
        ("all rounds", f"{result.rounds} x {result.images_per_round:,} = {result.images:,} images"),
        ("images", f"{result.width} x {result.height} px in {result.steps} steps"),
        ("UNet", f"{result.unet_evaluations:,} evaluations (a guided image takes two a step)"),
        ("finetuning", f"{result.tuning_steps:,} steps on {result.tuning_samples:,} pictures, repeats counted"),
        ("guard", seen if result.guard_images else "none"),
        ("evaluation", evaluation),
        ("time", f"about {clock(result.seconds)} on {result.device}, {clock(result.seconds_per_round)} a round"),
        ("memory", f"about {size(result.peak_memory_bytes)} at most"),
        ("disk", f"about {size(result.disk_bytes)}"),
        ("folder", str(folder)),
    ]
