"""`raft-diffusion score`: what any reward says of pictures."""

from __future__ import annotations

import csv
import io
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Device, Json, Threads, check_writable, collected, make_console

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ..core.records import Sample, Scored

DEFAULT_REWARDS = ("text_image", "aesthetic")

RewardNames = Annotated[
    list[str] | None,
    typer.Option("--reward", metavar="NAME|MODULE:FUNCTION", help="A known reward or your own; repeatable."),
]
Scorer = Annotated[
    str, typer.Option("--scorer", metavar="TOWER", help="The CLIP tower: pocket, a folder, or MODEL:PRETRAINED.")
]
Sources = Annotated[
    list[str] | None,
    typer.Option("--source", metavar="REWARD=PATH", help="A reward's weights, instead of the download; repeatable."),
]
PromptText = Annotated[
    str | None, typer.Option("--prompt", metavar="TEXT", help="The prompt of all pictures, whatever they carry.")
]


def score(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Pictures, and folders of pictures.")],
    prompt: PromptText = None,
    rewards: RewardNames = None,
    scorer: Scorer = "pocket",
    sources: Sources = None,
    sort: Annotated[str | None, typer.Option("--sort", metavar="REWARD", help="Best first, by this reward.")] = None,
    csv_file: Annotated[str | None, typer.Option("--csv", metavar="FILE", help="Write a table of values.")] = None,
    device: Device = None,
    threads: Threads = None,
    json_file: Json = None,
) -> None:
    """Score pictures with any reward, by default text_image and aesthetic.

    A picture's prompt comes from metadata.jsonl or a caption file beside it, or from what a WebUI wrote into it.

    Example: raft-diffusion score pictures

    Example: raft-diffusion score pictures --prompt "monet style cat" --reward text_image --sort text_image

    Example: raft-diffusion score pictures --reward compressibility --csv scores.csv

    Example: raft-diffusion score pictures --reward pickscore --source pickscore=models/PickScore_v1
    """
    from ..gallery import read_gallery
    from ..rewards import check_names, score_name

    names = list(dict.fromkeys(rewards or DEFAULT_REWARDS))
    check_names(names)
    columns = [score_name(name) for name in names]
    found = parse_sources(sources or [], names)
    _check_sort(sort, columns)
    table_path = Path(csv_file) if csv_file is not None else None
    check_writable(table_path, option="--csv")
    console = make_console(json_file)
    with collected(json_file) as numbers:
        with console.status("reading the pictures"):
            samples = read_gallery(paths, prompt=prompt)
        scored = score_pictures(
            samples, names, scorer=scorer, sources=found, device=device, threads=threads, console=console
        )
        if sort is not None:
            scored.sort(key=lambda item: -item.scores[sort])
        numbers["scores"] = [
            {"file": str(item.sample.data.path), "prompt": item.sample.prompt.text, "scores": dict(item.scores)}
            for item in scored
        ]
        numbers["mean"] = {name: statistics.fmean(item.scores[name] for item in scored) for name in columns}
        _show(console, scored, numbers["mean"])
        if table_path is not None:
            _write_csv(table_path, numbers["scores"], columns)


def score_pictures(
    samples: Sequence[Sample],
    names: Sequence[str],
    *,
    scorer: str,
    sources: Mapping[str, str],
    device: str | None,
    threads: int | None,
    console: Console,
) -> list[Scored]:
    """Scores by these rewards alone, though a tower gives more in its one pass; a bar shows how far it is.

    Raises ValueError for a picture without a prompt where a reward needs one.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from .. import assemble
    from ..core.records import Scored
    from ..gallery import score_gallery
    from ..rewards import PREFERENCES, TOWER_REWARDS, score_name

    require_prompts(samples, names)
    with console.status("loading the rewards"):
        if threads or {*TOWER_REWARDS, *PREFERENCES} & set(
            names
        ):  # the others may do without torch, which takes its time
            assemble.prepare(threads)
        rewards = assemble.make_scorers(names, scorer=scorer, device=device or "auto", sources=sources)
    parts = (TextColumn("scoring"), BarColumn(30), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*parts, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=len(samples))
        scored = score_gallery(samples, rewards, progress=lambda done: bar.update(task, completed=done))
    columns = [score_name(name) for name in names]
    return [Scored(item.sample, {name: item.scores[name] for name in columns}) for item in scored]


def parse_sources(texts: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Reward -> file or folder, from REWARD=PATH. Raises ValueError for another form or a reward not asked for."""
    sources = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or not path.strip():
            raise ValueError(f"--source {text}: write REWARD=PATH, such as aesthetic_v2=head.pth")
        if name.strip() not in names:
            raise ValueError(f"--source {text}: {name.strip()!r} does not score here; choose {' or '.join(names)}")
        sources[name.strip()] = path.strip()
    return sources


def require_prompts(samples: Sequence[Sample], names: Sequence[str]) -> None:
    from ..rewards import KNOWN

    wanting = next((info.name for info in KNOWN if info.needs_prompt and info.name in names), None)
    bare = next((sample.data.path for sample in samples if not sample.data.has_prompt), None)
    if wanting and bare:
        raise ValueError(
            f"{wanting} needs the prompt of {bare}: give --prompt, or a line in metadata.jsonl, or a caption file "
            f"{bare.stem}.txt beside it; or choose other rewards with --reward, such as aesthetic"
        )


def cut(text: str) -> Text:
    """Words from a file for a cell of a table: one line, literal, with an ellipsis where the cell ends."""
    from ..terminal import clean

    shown = clean(text)
    shown.no_wrap, shown.overflow = True, "ellipsis"
    return shown


def plain_table() -> Table:
    from rich.table import Table

    return Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))


def formatted(values: Sequence[float]) -> list[str]:
    """Numbers of one column with the digits that tell them apart: four significant ones of the largest."""
    largest = max((abs(value) for value in values), default=0)
    digits = 3 - math.floor(math.log10(largest)) if largest else 2
    style = f".{max(0, digits)}f" if -4 < digits < 9 else ".3e"
    return [f"{value:{style}}" for value in values]


def file_names(samples: Sequence[Sample]) -> list[str]:
    """How the pictures are shown: without the folder that they share."""
    paths = [sample.data.path for sample in samples]
    try:
        shared = os.path.commonpath([path.parent for path in paths])
    except ValueError:  # no folder in common, as on two drives
        return [str(path) for path in paths]
    return [str(path.relative_to(shared)) if shared else str(path) for path in paths]


def _show(console: Console, scored: Sequence[Scored], mean: Mapping[str, float]) -> None:
    table = plain_table()
    table.add_column("file")
    texts = {item.sample.prompt.text for item in scored}
    if len(texts) > 1:
        table.add_column("prompt")
    for name in mean:
        table.add_column(cut(name), justify="right", no_wrap=True)
    columns = [formatted([*(item.scores[name] for item in scored), mean[name]]) for name in mean]
    names = file_names([item.sample for item in scored])
    for row, (name, item) in enumerate(zip(names, scored, strict=True)):
        prompt = [cut(item.sample.prompt.text)] if len(texts) > 1 else []
        table.add_row(cut(name), *prompt, *(column[row] for column in columns))
    table.add_section()
    table.add_row("mean", *([""] if len(texts) > 1 else []), *(column[-1] for column in columns), style="bold")
    if len(texts) == 1 and "" not in texts:
        console.print(cut(f"prompt: {scored[0].sample.prompt.text}"))
    console.print(table)


def _check_sort(sort: str | None, columns: Sequence[str]) -> None:
    if sort is not None and sort not in columns:
        raise ValueError(f"--sort {sort}: no such score is asked for; choose {' or '.join(columns)}, or add --reward")


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    from ..core.files import write_atomically

    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "prompt", *columns])
    writer.writerows([row["file"], row["prompt"], *(row["scores"][name] for name in columns)] for row in rows)
    write_atomically(path, text.getvalue())
