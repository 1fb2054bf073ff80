"""`raft-diffusion sample`: pictures for prompts, with and without a LoRA."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Device, Json, Lora, Model, Prediction, Revision, Threads, Variant, collected, make_console

if TYPE_CHECKING:
    from rich.console import Console

_SHOWN = 20  # paths that are printed; the rest are counted

Texts = Annotated[
    list[str] | None,
    typer.Argument(metavar="PROMPT...", help="Words, a prompt file, or a carried list. Default with --run: its own."),
]
RunFolder = Annotated[
    Path | None, typer.Option("--run", metavar="RUN", help="Take model, settings and LoRA from a run, finished or not.")
]
LoraScale = Annotated[
    float | None,
    typer.Option("--lora-scale", metavar="X", help="0: the base; 1: the LoRA as trained. Default: the run's, or 1."),
]
Count = Annotated[int, typer.Option("-n", "--count", metavar="N", min=1, help="Pictures a prompt.")]
FirstSeed = Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Seed of the first; the next add 1 each.")]
Width = Annotated[int | None, typer.Option("--width", metavar="PX", min=8, help="Default: 512; pocket: 64.")]
Height = Annotated[int | None, typer.Option("--height", metavar="PX", min=8, help="Default: 512; pocket: 64.")]
Steps = Annotated[int | None, typer.Option("--steps", metavar="N", min=1, help="Default: 25; pocket: 12.")]
CfgScale = Annotated[
    float | None, typer.Option("--cfg-scale", metavar="X", min=0, help="Guidance. Default: 7.5; pocket: 2.")
]
Sampler = Annotated[
    str | None, typer.Option("--sampler", metavar="NAME", help='As in a WebUI: "Euler a". Default: "DPM++ 2M".')
]
Negative = Annotated[
    str | None, typer.Option("--negative-prompt", metavar="TEXT", help="For prompts without one of their own.")
]
ClipSkip = Annotated[int | None, typer.Option("--clip-skip", metavar="N", min=1, help="1: the last layer.")]
Vae = Annotated[
    str | None, typer.Option("--vae", metavar="PATH", help="Another VAE: a .safetensors file or a diffusers folder.")
]
BatchSize = Annotated[
    int | None, typer.Option("--batch-size", metavar="N", min=1, help="Pictures at once; it does not change them.")
]
Compare = Annotated[bool, typer.Option("--compare", help="Each seed by the base and with the LoRA.")]
OutFolder = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where to; nothing there is overwritten.")]
Grid = Annotated[bool, typer.Option("--grid/--no-grid", help="Write a sheet of all pictures too.")]


def sample(
    prompts: Texts = None,
    run: RunFolder = None,
    model: Model = None,
    revision: Revision = None,
    variant: Variant = None,
    prediction_type: Prediction = None,
    lora: Lora = None,
    lora_scale: LoraScale = None,
    count: Count = 4,
    seed: FirstSeed = 0,
    width: Width = None,
    height: Height = None,
    steps: Steps = None,
    cfg_scale: CfgScale = None,
    sampler: Sampler = None,
    negative_prompt: Negative = None,
    clip_skip: ClipSkip = None,
    vae: Vae = None,
    batch_size: BatchSize = None,
    compare: Compare = False,
    out: OutFolder = Path("samples"),
    grid: Grid = True,
    device: Device = None,
    threads: Threads = None,
    json_file: Json = None,
) -> None:
    """Draw pictures. Each PNG carries its settings as a WebUI writes and reads them.

    Example: raft-diffusion sample "monet style cat" --count 8

    Example: raft-diffusion sample "monet style cat" "photo dog" --run runs/mine --compare

    Example: raft-diffusion sample "photo cat" --width 96 --height 64 --sampler "Euler a" --negative-prompt "sketch dog"
    """
    from .. import sampling

    given = {"model": model, "lora": lora, "width": width, "height": height, "steps": steps, "cfg_scale": cfg_scale}
    given |= {"lora_scale": lora_scale, "revision": revision, "variant": variant, "prediction_type": prediction_type}
    given |= {"sampler": sampler, "clip_skip": clip_skip, "vae": vae, "batch_size": batch_size}
    order = sampling.make_order(
        prompts or [],
        run,
        given,
        negative=negative_prompt,
        count=count,
        seed=seed,
        compare=compare,
    )
    sampling.check(order, out)
    console = make_console(json_file)
    with collected(json_file) as numbers:
        with console.status("loading the model"):
            policy = sampling.load_policy(order, device=device or "auto", threads=threads)
        with _bar(console, order.pictures) as progress:
            rows = sampling.sample_pictures(order, policy, out, progress)
        numbers.update({"pictures": rows, "grid": None})
        if grid and len(rows) > 1:
            numbers["grid"] = str(sampling.write_grid(order, rows, out))
    _show(console, [row["path"] for row in rows], numbers["grid"], out)


def _show(console: Console, paths: list[str], grid: str | None, out: Path) -> None:
    from ..terminal import clean

    if len(paths) > _SHOWN:
        paths = [*paths[: _SHOWN - 1], f"... and {len(paths) - _SHOWN + 1} more in {out}"]
    for path in [*paths, *([grid] if grid else [])]:
        console.print(clean(path), soft_wrap=True)


@contextmanager
def _bar(console: Console, total: int) -> Iterator[Callable[[int], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("sampling"), BarColumn(30), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=total)
        yield lambda done: bar.update(task, completed=done)
