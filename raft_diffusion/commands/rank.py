"""`raft-diffusion rank`: other winners from the same candidates."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Device, Json, Threads, collected, make_console
from .score import (
    PromptText,
    RewardNames,
    Scorer,
    Sources,
    cut,
    file_names,
    formatted,
    parse_sources,
    plain_table,
    score_pictures,
)

if TYPE_CHECKING:
    from rich.console import Console

    from ..core.records import Group, Selection
    from ..core.select import Select
    from ..rank import RankedRound


def rank(
    target: Annotated[Path, typer.Argument(metavar="RUN|FOLDER", help="A run, or a folder of pictures.")],
    weights: Annotated[
        list[str] | None,
        typer.Option("--weight", metavar="NAME=VALUE", help="Rank by these weights and no others; repeatable."),
    ] = None,
    method: Annotated[str | None, typer.Option(metavar="zscore|fixed", help="How rewards are combined.")] = None,
    best: Annotated[int | None, typer.Option(metavar="M", help="Winners a group.")] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Copy the winners there.")] = None,
    rewards: RewardNames = None,
    scorer: Scorer = "pocket",
    sources: Sources = None,
    prompt: PromptText = None,
    device: Device = None,
    threads: Threads = None,
    json_file: Json = None,
) -> None:
    """Rank a run's stored candidates again, without any model, or rank the pictures of a folder.

    A run is ranked as it was made but for the options. In a folder the pictures of one prompt compete.
    --out writes pictures, captions and metadata.jsonl, ready to train on.

    Example: raft-diffusion rank runs/mine --weight aesthetic=1

    Example: raft-diffusion rank runs/mine --best 1 --method fixed --out best

    Example: raft-diffusion rank pictures --weight text_image=1 --weight aesthetic=0.5
    """
    from ..rank import refuse_occupied

    given = _parse_weights(weights or [])
    console = make_console(json_file)
    if not os.path.isdir(target):
        raise ValueError(f"{target} is no folder; give a run, or a folder of pictures")
    if out is not None:
        refuse_occupied(out)
    with collected(json_file) as numbers:
        if os.path.isfile(target / "config.toml"):
            _refuse_scoring(target, {"--reward": rewards, "--prompt": prompt, "--source": sources})
            numbers.update(_rank_run(target, _run_select(target, given, method, best), out, console))
        else:
            names, given = _folder_weights(rewards or [], given)
            select = _make_select(given, method or "zscore", 1 if best is None else best)
            found = parse_sources(sources or [], names)
            scoring = {"scorer": scorer, "sources": found, "device": device, "threads": threads}
            numbers.update(_rank_folder(target, names, select, prompt, scoring, out, console))


def _parse_weights(texts: Sequence[str]) -> dict[str, float]:
    weights = {}
    for text in texts:
        name, _, value = text.rpartition("=")
        try:
            weights[name.strip()] = float(value)
        except ValueError:
            name = ""
        if not name.strip():
            raise ValueError(f"--weight {text}: write NAME=VALUE, such as aesthetic=0.5")
    return weights


def _refuse_scoring(run: Path, options: dict[str, Any]) -> None:
    if asked := [name for name, value in options.items() if value]:
        raise ValueError(
            f"{run} is a run, which is ranked by its stored scores; with {asked[0]} rank its pictures instead, "
            f"such as those in {run / 'rounds' / '001' / 'candidates'}"
        )


def _run_select(run: Path, given: dict[str, float], method: str | None, best: int | None) -> Select:
    """The run's own ranking, but for the options."""
    from ..assemble import make_select
    from ..checks import HELD_OUT_PREFIX
    from ..core.config import Config
    from ..rewards import score_name

    if judges := [name for name in given if name.startswith(HELD_OUT_PREFIX)]:
        raise ValueError(f"--weight {judges[0]}: the held-out reward judges the winners and never ranks; leave it out")
    own = make_select(Config.load(run / "config.toml"))
    if own.tau is not None and best is None:
        raise ValueError(
            f"in {run} every candidate wins by weight (selection.tau), so that no other ranking changes the winners; "
            "give --best M to let the best M of a group win"
        )
    changes: dict[str, Any] = {"weights": {score_name(name): value for name, value in given.items()} or own.weights}
    changes |= {"method": method} if method is not None else {}
    changes |= {"best": best, "tau": None} if best is not None else {}
    changes |= {"above": None} if given else {}  # that is a person's, who ranks without weights
    return replace(own, **changes)


def _folder_weights(rewards: Sequence[str], given: dict[str, float]) -> tuple[list[str], dict[str, float]]:
    """The rewards to compute, and their weights; a reward without a weight has 1, and text_image is the default."""
    from ..rewards import check_names, score_name

    known = {score_name(name) for name in rewards}
    names = list(dict.fromkeys([*rewards, *(name for name in given if name not in known)])) or ["text_image"]
    check_names(names)
    weights = {score_name(name): 1.0 for name in names}
    return names, weights | {score_name(name): value for name, value in given.items()}


def _make_select(weights: dict[str, float], method: Any, best: int) -> Select:
    from ..core.select import Select

    return Select(weights=weights, method=method, best=best)


def _rank_run(root: Path, select: Select, out: Path | None, console: Console) -> dict[str, Any]:
    from ..rank import rank_run, write_winners

    rounds = list(rank_run(root, select))
    changed, winners = sum(r.changed for r in rounds), sum(len(r.selection.winners) for r in rounds)
    _say_ranking(console, select)
    _show_rounds(console, rounds)
    console.print(f"{changed} of {winners} winners change", highlight=False)
    if out is not None:
        write_winners(out, [(f"{r.index:03d}-", w.sample.data, w) for r in rounds for w in r.selection.winners])
        _say_written(console, winners, out)
    return {
        "rounds": [
            {
                "round": r.index,
                "candidates": len(r.candidates),
                "winners": len(r.selection.winners),
                "changed": r.changed,
                "mean": r.mean(r.before),
                "mean_new": r.mean(r.after),
                "winner_ids": [winner.sample.id for winner in r.selection.winners],
            }
            for r in rounds
        ],
        "changed": changed,
        "winners": winners,
    }


def _rank_folder(
    folder: Path,
    names: Sequence[str],
    select: Select,
    prompt: str | None,
    scoring: dict[str, Any],
    out: Path | None,
    console: Console,
) -> dict[str, Any]:
    from ..core.loop import group
    from ..gallery import read_gallery
    from ..rank import competitors, write_winners

    with console.status("reading the pictures"):
        samples, alone = competitors(read_gallery([folder], prompt=prompt))
    groups = group(score_pictures(samples, names, console=console, **scoring))
    selection = select(groups)
    _say_ranking(console, select)
    _show_groups(console, groups, selection)
    if alone:
        shown = ", ".join(sample.data.path.name for sample in alone[:3]) + (", ..." if len(alone) > 3 else "")
        console.print(cut(f"left out, alone with their prompt: {len(alone)} ({shown})"))
    if out is not None:
        write_winners(out, [("", w.sample.data.path, w) for w in selection.winners])
        _say_written(console, len(selection.winners), out)
    won = {winner.sample.id for winner in selection.winners}
    return {
        "groups": [
            {
                "prompt": members.prompt.text,
                "candidates": [
                    {
                        "file": str(candidate.sample.data.path),
                        "key": key,
                        "scores": dict(candidate.scores),
                        "winner": candidate.sample.id in won,
                    }
                    for candidate, key in zip(members.candidates, keys, strict=True)
                ],
            }
            for members, keys in zip(groups, selection.keys, strict=True)
        ],
        "left_out": [str(sample.data.path) for sample in alone],
    }


def _say_ranking(console: Console, select: Select) -> None:
    parts = ", ".join(f"{name} x {weight:g}" for name, weight in select.weights.items())
    console.print(cut(f"ranked by {parts} ({select.method}), best {select.best} of each group"))


def _say_written(console: Console, count: int, out: Path) -> None:
    from ..terminal import clean

    console.print(clean(f"{count} pictures with captions and metadata.jsonl in {out}"), soft_wrap=True)


def _show_rounds(console: Console, rounds: Sequence[RankedRound]) -> None:
    table = plain_table()
    for head in ("round", "winners", "changed", "mean of the winners", "before", "now", "gain"):
        table.add_column(head, justify="left" if head.startswith("mean") else "right", no_wrap=True)
    for r in rounds:
        before, after = r.mean(r.before), r.mean(r.after)
        sizes = f"{len(r.before)}" if len(r.before) == len(r.after) else f"{len(r.before)} to {len(r.after)}"
        left = [str(r.index), f"{sizes} of {len(r.candidates)}", str(r.changed)]
        for name in before:
            then, now, gain = formatted([before[name], after[name], after[name] - before[name]])
            table.add_row(*left, cut(name), then, now, gain if gain.startswith("-") else f"+{gain}")
            left = ["", "", ""]
    console.print(table)


def _show_groups(console: Console, groups: Sequence[Group], selection: Selection) -> None:
    won = {winner.sample.id for winner in selection.winners}
    for group, keys in zip(groups, selection.keys, strict=True):
        order = sorted(range(len(keys)), key=lambda k: -keys[k])
        rows = [group.candidates[k] for k in order]
        names = list(rows[0].scores)
        table = plain_table()
        for head in ("", "file", "key", *names):
            table.add_column(cut(head), justify="left" if head in ("", "file") else "right", no_wrap=head != "file")
        columns = [formatted([keys[k] for k in order])]
        columns += [formatted([row.scores[name] for row in rows]) for name in names]
        for place, (row, file) in enumerate(zip(rows, file_names([row.sample for row in rows]), strict=True)):
            mark = "*" if row.sample.id in won else ""
            table.add_row(mark, cut(file), *(column[place] for column in columns))
        console.print()
        console.print(cut(group.prompt.text or "(no prompt)"), style="bold")
        console.print(table)
    console.print("\n* wins", highlight=False)
