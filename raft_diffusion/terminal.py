"""What a run shows while it goes on: one table with a row a round, and a bar for the stage at work."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from .core.guard import Look
from .core.records import Round

STAGES = {
    "sample": "sampling",
    "score": "scoring",
    "choose": "you choose",
    "tune": "finetuning",
    "guard": "guarding",
    "track": "drawing for the trackers",
    "evaluate": "evaluating",
}


def clean(text: str) -> Text:
    """Words from a user: shown literally, without markup or control characters."""
    return Text("".join(c if c.isprintable() else "�" for c in text))


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    return f"{minutes}:{rest:02d}"


class LiveTable:
    """The rounds so far. `progress(stage, done, total)` moves the bar; `add(round)` appends a row.

    ranking: the reward whose mean and best are shown; held_out: the one that never ranks, or None.
    guarded: show what the guard sees instead, in every round the same pictures, and first how it began.
    noun: what a candidate is, in the plural.
    """

    def __init__(
        self,
        console: Console,
        *,
        rounds: int,
        ranking: str,
        held_out: str | None,
        guarded: bool = False,
        noun: str = "images",
    ) -> None:
        self._noun = noun
        self._rounds, self._ranking, self._held_out, self._guarded = rounds, ranking, held_out, guarded
        self._rows: list[tuple[str, ...]] = []
        self._costs: list[float] = []
        self._began = time.monotonic()  # of the present round
        self._sampling = 0.0  # seconds that the present round has sampled for
        self._bar = Progress(
            TextColumn("{task.description:11}"),
            BarColumn(30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
        )
        self._task = self._bar.add_task("starting", total=None)
        self._stage = ""
        self._live = Live(self._render(), console=console, refresh_per_second=6, transient=False)

    def loaded(self) -> None:
        """The models are there: the first round begins now."""
        self._began = time.monotonic()

    @contextmanager
    def shown(self) -> Iterator[LiveTable]:
        with self._live:
            try:
                yield self
            finally:
                self._bar.remove_task(self._task)
                self._live.update(self._render())

    def progress(self, stage: str, done: int, total: int) -> None:
        if stage == "sample":
            self._sampling = time.monotonic() - self._began
        elif stage in ("guard", "track") and not self._sampling:  # of the start: the first round begins after it
            self._began = time.monotonic()
        if stage != self._stage or done <= 0:
            self._stage = stage
            self._bar.reset(self._task, description=STAGES.get(stage, stage), total=total, completed=done)
        self._bar.update(self._task, completed=done, total=total)
        self._live.update(self._render())

    def add(self, round_: Round, *, start: Look | None = None, look: Look | None = None) -> None:
        """One finished round. start, look: what the guard saw before the first round and after this one."""
        now = time.monotonic()
        self._costs.append(now - self._began)
        if start and not self._rows:
            self._rows.append(("start", "", "", *_seen(start, start), "", "", ""))
        candidates = [c for group in round_.groups for c in group.candidates]
        winners = [w.candidate for w in round_.selection.winners]
        left = (self._rounds - round_.index) * statistics.fmean(self._costs)
        cells = [str(round_.index), *self._means(self._ranking, candidates, winners)]
        if self._guarded:
            cells += _seen(look, start)
        elif self._held_out:
            cells.append(f"{statistics.fmean(c.scores[self._held_out] for c in candidates):.2f}")
        loss = round_.figures.get("loss")
        cells += [
            f"{loss:.3f}" if loss is not None else "",
            f"{len(candidates) / max(self._sampling, 1e-9):.1f}",
            clock(left),
        ]
        self._rows.append(tuple(cells))
        self._began, self._sampling = now, 0.0
        self._live.update(self._render())

    @staticmethod
    def _means(name: str, candidates: Sequence[Any], winners: Sequence[Any]) -> tuple[str, str]:
        best = f"{statistics.fmean(c.scores[name] for c in winners):.2f}" if winners else ""
        return f"{statistics.fmean(c.scores[name] for c in candidates):.2f}", best

    def _render(self) -> Group:
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
        heads = ["round", self._ranking, "winners"]
        heads += ["held-out", "diversity"] if self._guarded else ["held-out"] if self._held_out else []
        for head in [*heads, "loss", f"{self._noun}/s", "time left"]:
            table.add_column(clean(head), justify="right", no_wrap=True)
        for row in self._rows:
            table.add_row(*row)
        return Group(table, self._bar)


def _seen(look: Look | None, start: Look | None) -> tuple[str, str]:
    """The score, and the diversity as a share of the start's."""
    if look is None or start is None:
        return "", ""
    share = f"{100 * look.diversity / start.diversity:.0f} %" if start.diversity else "100 %"
    return f"{look.score:.2f}", share


def say_where(console: Console, address: str) -> None:
    """At what address a person ranks the run that waits."""
    lines = ("", "You rank this run. Choose the best pictures on this page; the run waits for you:", f"  {address}")
    for line in (*lines, "It is open on this machine alone. Ctrl-C loses nothing: the same command goes on.", ""):
        console.print(line, highlight=False, soft_wrap=True)


def show_evaluation(console: Console, result: dict[str, Any]) -> None:
    """The evaluation as a table: base, oracle, tuned, and the paired interval of the difference."""
    settings = result["settings"]
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("before and after", no_wrap=True)
    for head in ("base", f"best of {settings['best_of']}", "tuned", "change, 95 % interval"):
        table.add_column(head, justify="right", no_wrap=True)
    for kind, share in (("judge", True), ("rewards", False)):
        for name, row in result[kind].items():
            if name.endswith("_ood") and not share:
                continue  # the report has them all
            unit, digits = (100, 0) if share else (1, 2)
            numbers = [f"{row[side] * unit:.{digits}f}{' %' if share else ''}" for side in ("base", "oracle", "tuned")]
            low, high = (value * unit for value in row["ci95"])
            change = f"{row['difference'] * unit:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"
            plain = name.removesuffix("_ood") + (", other prompts" if name.endswith("_ood") else "")
            table.add_row(clean(plain), *numbers, change)
    console.print()
    console.print(table)
    if result["judge"]:
        console.print(
            f"object, style: what a judge that took no part in the ranking sees in {settings['pairs']} same-seed pairs"
            + (f" ({settings['ood_pairs']} of other prompts)" if settings["ood_pairs"] else ""),
            highlight=False,
        )
    if len(result.get("diversity", {})) > 1:
        parts = [f"{name} {value:.3f}" for name, value in result["diversity"].items()]
        whose = "diversity of the rightly named pictures" if result["judge"] else "diversity"
        console.print(f"{whose}: {', '.join(parts)}", highlight=False)
