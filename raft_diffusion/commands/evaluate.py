"""`raft-diffusion evaluate`: the base against the tuned model, once more; or against every round of the run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.config import Config
from ..llm.config import TextConfig
from .options import Json, Lora, Run, Threads, collected, file_of, make_console

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

EachRound = Annotated[bool, typer.Option("--each-round", help="Measure the base and the LoRA after every round.")]
Steps = Annotated[
    str | None, typer.Option("--steps", metavar="N,N,...", help="With --each-round: at these sampler step counts.")
]
Pairs = Annotated[
    int | None,
    typer.Option("--pairs", metavar="N", min=2, help="With --each-round: pictures a round. Default: the run's."),
]


def evaluate(
    run: Run,
    lora: Lora = None,
    each_round: EachRound = False,
    steps: Steps = None,
    pairs: Pairs = None,
    threads: Threads = None,
    json_file: Json = None,
) -> None:
    """Compare the base and the tuned model again on the run's evaluation seeds; or the base and another LoRA; or the
    base and every round.

    With --lora the numbers and pictures go to RUN/evaluations/<name>, and the run's own stay as they are. With
    --each-round they go to RUN/evaluation/rounds.json; what was measured before is not measured again.

    Example: raft-diffusion evaluate runs/mine --json -

    Example: raft-diffusion evaluate runs/mine --lora other.safetensors

    Example: raft-diffusion evaluate runs/mine --each-round --steps 6,12 --pairs 16
    """
    from .. import runs
    from ..lora.file import find_lora, read_lora

    config = runs.config_of(file_of(run, "config.toml"))
    if isinstance(config, TextConfig) and (lora is not None or each_round):
        raise ValueError(
            f"{'--lora' if lora else '--each-round'} is for runs that make pictures; the evaluation of a run that "
            "writes texts holds the curve over its rounds"
        )
    if lora is not None:
        read_lora(find_lora(lora))
    if lora is not None and each_round:
        raise ValueError("--each-round measures the run's own rounds and --lora another file; give one of them")
    if not each_round and (steps or pairs):
        raise ValueError(f"{'--steps' if steps else '--pairs'} belongs to --each-round; give both, or neither")
    counts = parse_steps(steps)
    with collected(json_file) as numbers:
        console = make_console(json_file)
        if each_round and isinstance(config, Config):
            numbers.update(_each_round(config, run, console, counts, pairs, threads))
        else:
            numbers.update(runs.evaluate_run(config, run, console, threads=threads, lora=lora))


def parse_steps(text: str | None) -> list[int]:
    """Step counts from "10,20,50". Raises ValueError for anything else."""
    parts = [part.strip() for part in text.split(",")] if text is not None else []
    if not all(part.isdecimal() and 1 <= int(part) <= 1000 for part in parts):
        raise ValueError(f"--steps {text}: write numbers from 1 to 1000 with commas between, such as 10,20,50")
    return [int(part) for part in parts]


def _each_round(
    config: Config, run: Path, console: Console, steps: list[int], pairs: int | None, threads: int | None
) -> dict[str, Any]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from .. import assemble
    from ..compare import compare_rounds, rounds_of
    from ..report import write_report

    rounds_of(run, None)  # before torch is loaded
    with console.status("loading the model"):
        assemble.prepare(threads or config.threads)
    parts = (TextColumn("rounds"), BarColumn(30), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*parts, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        result = compare_rounds(
            config,
            run,
            steps=steps,
            pairs=pairs,
            progress=lambda _, done, total: bar.update(task, completed=done, total=total),
        )
    for count, found in result["steps"].items():
        console.print(table(found["rounds"], title=f"{count} sampler steps"))
        wins = ", ".join(f"{name}: {won}" for name, won in found["win_count"]["wins"].items())
        console.print(f"prompts won by each round, 0 being the base, on {found['win_count']['score']}: {wins}")
    write_report(run)
    return result


def table(rows: list[dict[str, Any]], *, title: str) -> Table:
    """A line for each round: what judge and held-out reward say, the first with the 95 % interval of its change
    from the base; how alike the pictures of one prompt are; how far the pictures moved."""
    from rich.table import Table

    from ..terminal import clean

    names = list(rows[0]["scores"])
    judged = [name for name in names if name.startswith(("object", "style"))]
    held_out = [name for name in names if name.startswith("held_out.") and not name.endswith("_ood")][:1]
    shown = [*judged, *held_out] or [name for name in names if not name.endswith("_ood")]
    figures = [name for name in ("diversity", "drift") if name in rows[0]]
    result = Table(
        title=title, title_justify="left", box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0)
    )
    heads = (name.removeprefix("held_out.").replace("_ood", "\nothers") for name in shown)
    for head in ("round", *heads, *figures):
        result.add_column(clean(head), justify="right", no_wrap=True)
    for row in rows:
        cells = []
        for name in shown:
            score, (unit, sign) = row["scores"][name], (100, " %") if name in judged else (1, "")
            cells.append(f"{unit * score['mean']:.0f}{sign}")
            if name == shown[0] and row["round"]:
                low, high = (unit * end for end in score["ci95"])
                cells[-1] += f" ({low:+.0f} to {high:+.0f})"
        result.add_row(str(row["round"]), *cells, *(f"{row[name]:.2f}" for name in figures))
    return result
