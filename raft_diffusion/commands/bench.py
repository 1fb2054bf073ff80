"""`raft-diffusion bench`: how fast this machine is, and how near to what it could be at best."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Device, Json, Model, Set, Threads, collected, make_console

if TYPE_CHECKING:
    from rich.console import Console

    from ..bench.result import Result

Random = Annotated[
    bool, typer.Option("--random-weights", help="Stable Diffusion 1.5's size without its weights: nothing is needed.")
]
Size = Annotated[
    int | None, typer.Option("--size", metavar="PX", min=8, help="Side of the pictures. Default: 512; pocket: 64.")
]
Images = Annotated[
    int | None, typer.Option("--images", metavar="N", min=2, help="Candidates of the round. Default: 16; pocket: 256.")
]
Repeats = Annotated[int, typer.Option("--repeats", metavar="N", min=1, help="How often it is measured.")]


def bench(
    model: Model = None,
    random_weights: Random = False,
    size: Size = None,
    images: Images = None,
    repeats: Repeats = 5,
    device: Device = None,
    threads: Threads = None,
    changes: Set = None,
    json_file: Json = None,
) -> None:
    """Measure one round on this machine: images a second sampled, scored and tuned, memory, and the floor ratio: the
    round's time over that of the bare networks that it cannot do without.

    Both are measured in turns, so that other programs slow them alike; the middle of the repeats counts, and their
    ends stand beside it. The settings are those of pocket-monet, or of monet-style-cat for any other model, whose CLIP
    tower has random weights: nothing but the model is downloaded.

    Example: raft-diffusion bench

    Example: raft-diffusion bench --random-weights --size 256 --device cuda

    Example: raft-diffusion bench --model model.safetensors --set sampling.batch_size=8 --json -
    """
    from ..bench.laps import bench as measure
    from ..bench.setup import bench_config, seconds_needed
    from ..checks import check_device, check_model_here, run_all
    from ..planning.forecast import clock, this_machine
    from ..process import environment
    from ..sd15 import HUB_ID

    if random_weights and model is not None:
        raise ValueError("--random-weights is of Stable Diffusion 1.5's size and takes no model; leave out --model")
    config = bench_config(
        model=HUB_ID if random_weights else model,
        device=device,
        threads=threads,
        size=size,
        images=images,
        changes=changes or [],
    )
    here = None if random_weights else config.model
    run_all([lambda: check_device(config.device), lambda: check_model_here(here) if here else None])
    machine = this_machine()
    with collected(json_file) as numbers:
        console = make_console(json_file)
        seconds = seconds_needed(config, repeats=repeats, machine=machine)
        told = settings_of(config, random_weights=random_weights)
        console.print(f"{sentence(told)}, {repeats} times, and its networks alone: about {clock(seconds)}")
        with _bar(console) as tell:
            result = measure(config, repeats=repeats, random_weights=random_weights, machine=machine, tell=tell)
        show(console, result)
        ran_on = environment(config.device, torch_threads())
        numbers.update({**result.to_json(), "settings": told, "environment": ran_on})


def torch_threads() -> int:
    """CPU threads that were used."""
    import torch

    return torch.get_num_threads()


def settings_of(config: Any, *, random_weights: bool) -> dict[str, Any]:
    """What was measured, without a path of this machine."""
    from ..planning.nfe import images_per_round

    sampling, tuning = config.sampling, config.tuning
    return {
        "model": "Stable Diffusion 1.5's size, random weights" if random_weights else Path(config.model).name,
        "device": config.device,
        "images": images_per_round(config),
        "width": sampling.width,
        "height": sampling.height,
        "steps": sampling.num_inference_steps,
        "guidance_scale": config.collect_guidance(1),
        "batch_size": sampling.batch_size,
        "tuning_steps": tuning.steps,
        "tuning_batch_size": tuning.batch_size * tuning.gradient_accumulation,
    }


def sentence(told: dict[str, Any]) -> str:
    return (
        f"a round of {told['images']} images of {told['width']} x {told['height']} px in {told['steps']} steps, "
        f"{told['batch_size']} at once, and {told['tuning_steps']} tuning steps of {told['tuning_batch_size']}"
    )


@contextmanager
def _bar(console: Console) -> Iterator[Callable[[int, int], None]]:
    """A bar with the time that is left; gives the function that moves it."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(30), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("loading", total=None)
        yield lambda done, total: bar.update(task, description="measuring", completed=done, total=total)


def show(console: Console, result: Result) -> None:
    """The answer, and where a round's time goes: the floor's parts, then what comes above it."""
    from rich import box
    from rich.table import Table

    answer = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    answer.add_column(style="bold", no_wrap=True)
    answer.add_column(overflow="fold")
    for row in result.rows():
        answer.add_row(*row)
    console.print(answer)
    profile = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head, side in (("where a round's time goes", "left"), ("seconds", "right"), ("of the floor", "right")):
        profile.add_column(head, justify=side)  # pyright: ignore[reportArgumentType]
    for row in result.profile():
        profile.add_row(*row)
    console.print(profile)
