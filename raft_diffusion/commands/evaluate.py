"""`raft-diffusion evaluate`: the base against the tuned model, once more; or against every round of the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.config import Config
from ..core.lock import RunLock
from ..llm.config import TextConfig
from ..modality import AnyConfig, modality_of
from .options import Json, Lora, Run, Threads, collected, file_of, make_console

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

JUDGED = ("object", "style")
WIDE = 100
"""Characters in a line that the whole table needs."""
EachRound = Annotated[bool, typer.Option("--each-round", help="Measure the base and the LoRA after every round.")]
Steps = Annotated[
    str | None, typer.Option("--steps", metavar="N,N,...", help="With --each-round: at these sampler step counts.")
]
Pairs = Annotated[
    int | None,
    typer.Option("--pairs", metavar="N", min=2, help="With these two: pictures of each. Default: the run's."),
]
Beside = Annotated[
    list[Path] | None,
    typer.Option("--beside", metavar="RUN", help="Measure another run on the same draws, too; may be given again."),
]


def evaluate(
    run: Run,
    lora: Lora = None,
    each_round: EachRound = False,
    steps: Steps = None,
    beside: Beside = None,
    pairs: Pairs = None,
    threads: Threads = None,
    json_file: Json = None,
) -> None:
    """Compare the base and the tuned model again on the run's evaluation seeds; or the base and another LoRA; or the
    base and every round; or this run and others.

    With --lora the numbers and pictures go to RUN/evaluations/<name>, and the run's own stay as they are. With
    --each-round they go to RUN/evaluation/rounds.json; what was measured before is not measured again.
    With --beside they go to RUN/evaluation/beside.json.

    Example: raft-diffusion evaluate runs/mine --json -

    Example: raft-diffusion evaluate runs/mine --lora other.safetensors

    Example: raft-diffusion evaluate runs/mine --each-round --steps 6,12 --pairs 16

    Example: raft-diffusion evaluate runs/mine --beside runs/one-shot
    """
    from .. import jobs, training
    from ..lora.file import find_lora, read_lora

    config = jobs.config_of(file_of(run, "config.toml"))
    ways = {"--lora": lora is not None, "--each-round": each_round, "--beside": bool(beside)}
    chosen = [way for way, given in ways.items() if given]
    if isinstance(config, TextConfig) and chosen:
        raise ValueError(
            f"{chosen[0]} is for runs that make pictures; the evaluation of a run that writes texts holds the curve "
            "over its rounds"
        )
    if lora is not None:
        read_lora(find_lora(lora))
    if len(chosen) > 1:
        raise ValueError(f"{chosen[0]} and {chosen[1]} measure different things; give one of them")
    if steps and not each_round:
        raise ValueError("--steps belongs to --each-round; give both, or neither")
    if pairs and not (each_round or beside):
        raise ValueError("--pairs belongs to --each-round or --beside; give it with one of them, or leave it out")
    counts = parse_steps(steps)
    with collected(json_file) as numbers:
        console = make_console(json_file)
        _check_there(config, run, lora, each_round, beside or [])
        _lock = RunLock.take(run)
        if each_round and isinstance(config, Config):
            numbers.update(_each_round(config, run, console, counts, pairs, threads))
        elif beside and isinstance(config, Config):
            numbers.update(_beside(config, run, beside, console, pairs, threads))
        else:
            numbers.update(training.evaluate_run(config, run, console, threads=threads, lora=lora))


def parse_steps(text: str | None) -> list[int]:
    """Step counts from "10,20,50". Raises ValueError for anything else."""
    parts = [part.strip() for part in text.split(",")] if text is not None else []
    if not all(part.isdecimal() and 1 <= int(part) <= 1000 for part in parts):
        raise ValueError(f"--steps {text}: write numbers from 1 to 1000 with commas between, such as 10,20,50")
    return [int(part) for part in parts]


def _check_there(config: AnyConfig, run: Path, lora: Path | None, each_round: bool, beside: list[Path]) -> None:
    """Refuse what cannot be measured, before the lock leaves a file in its folder and torch is loaded."""
    from ..beside import check_runs
    from ..compare import rounds_of

    if each_round:
        rounds_of(run, None)
    elif beside and isinstance(config, Config):
        check_runs(config, run, beside)
    elif lora is None:
        file_of(run, f"lora/{modality_of(config).ADAPTER}")


def _each_round(
    config: Config, run: Path, console: Console, steps: list[int], pairs: int | None, threads: int | None
) -> dict[str, Any]:
    from ..compare import compare_rounds
    from ..report import write_report

    with _measuring(config, console, threads, "rounds") as progress:
        result = compare_rounds(config, run, steps=steps, pairs=pairs, progress=progress)
    for count, found in result["steps"].items():
        console.print(table(found["rounds"], title=f"{count} sampler steps", width=console.width))
        wins = ", ".join(f"{name}: {won}" for name, won in found["win_count"]["wins"].items())
        console.print(f"prompts won by each round, 0 being the base, on {found['win_count']['score']}: {wins}")
    write_report(run)
    return result


def _beside(
    config: Config, run: Path, others: list[Path], console: Console, pairs: int | None, threads: int | None
) -> dict[str, Any]:
    from ..beside import check_runs, compare_runs
    from ..report import write_report
    from ..terminal import clean

    first, *rest = check_runs(config, run, others)
    with _measuring(config, console, threads, "runs") as progress:
        result = compare_runs(config, run, others, pairs=pairs, progress=progress)
    console.print(table(result["rows"], title="the LoRA that each run keeps, on the same draws", width=console.width))
    judged, wins = result["win_count"]["score"], result["win_count"]["wins"]
    decisive, unit = (JUDGED[0], 100) if JUDGED[0] in result["rows"][0]["scores"] else (judged, 1)
    for name in rest:
        change = result["against"][name][decisive]
        low, high = (unit * end for end in change["ci95"])
        what = f"{first} against {name}, {decisive}: {unit * change['difference']:+.1f} ({low:+.1f} to {high:+.1f})"
        console.print(clean(what))
    console.print(clean(f"prompts won on {judged}: " + ", ".join(f"{name} {won}" for name, won in wins.items())))
    write_report(run)
    return result


@contextmanager
def _measuring(config: Config, console: Console, threads: int | None, what: str) -> Iterator[Callable[..., None]]:
    """Loads the libraries, then shows a bar over the rounds or runs that are measured."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from .. import assemble

    with console.status("loading the model"):
        assemble.prepare(threads or config.threads)
    parts = (TextColumn(what), BarColumn(30), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*parts, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda _, done, total: bar.update(task, completed=done, total=total)


def table(rows: list[dict[str, Any]], *, title: str, width: int) -> Table:
    """A line for each round or run: what judge and held-out reward say, the first with the 95 % interval of its change
    from the base; how alike the pictures of one prompt are; how far the pictures moved; and the cost until there.

    width: of the terminal. A narrow one is not told of the drift and the evaluations.
    """
    from rich.table import Table

    from ..terminal import clean, clock

    names = list(rows[0]["scores"])
    judged = [name for name in names if name.startswith(JUDGED)]
    held_out = [name for name in names if name.startswith("held_out.") and not name.endswith("_ood")][:1]
    shown = [*judged, *held_out] or [name for name in names if not name.endswith("_ood")]
    wide = width >= WIDE
    figures = [name for name in ("diversity", "drift")[: 1 + wide] if name in rows[0]]
    result = Table(
        title=title, title_justify="left", box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0)
    )
    heads = [_head(name) for name in (*shown, *figures)]
    first, side = ("run", "left") if "run" in rows[0] else ("round", "right")
    result.add_column(first, justify=side, no_wrap=first == "round")
    for head in (*heads, *(["UNet\nevaluations"] if wide else []), "time"):
        result.add_column(head, justify="right", no_wrap=True)
    for place, row in enumerate(rows):
        cells = []
        for name in shown:
            score, (unit, sign) = row["scores"][name], (100, " %") if name in judged else (1, "")
            cells.append(f"{unit * score['mean']:.0f}{sign}")
            if name == shown[0] and place:
                low, high = (unit * end for end in score["ci95"])
                cells[-1] += f" ({low:+.0f} to {high:+.0f})"
        cells += [f"{row[name]:.2f}" for name in figures]
        spent, seconds = row["unet_evaluations"], row["seconds"]
        cells += [f"{sum(spent.values()):,}"] * wide + ["" if seconds is None else clock(seconds)]
        result.add_row(clean(str(row.get("run", row.get("round")))), *cells)
    return result


def _head(name: str) -> Text:
    """A column's name; that of the prompts that were not trained has a second line."""
    from rich.text import Text

    from ..terminal import clean

    first = clean(name.removeprefix("held_out.").removesuffix("_ood"))
    return first + Text("\nothers") if name.endswith("_ood") else first
