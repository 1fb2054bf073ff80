"""Recipes side by side on the carried model: do repeated rounds keep improving, by judges that never ranked?

    uv run python tests/bench/recipes.py --quick           one job, one seed, four rounds
    uv run python tests/bench/recipes.py --out ablation    both jobs, three seeds, twelve rounds; hours, and it goes on

Every run has the same images and tuning steps a round (but for `paper`, which is as published), and `one-shot` has
those of all its rounds in one. A setting of your own is a recipe, too: --variant "restart:tuning.restart=true".
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

JOBS = ("pocket-monet", "pocket-resolution")
RECIPES = ("default", "paper", "one-shot", "reward-weighted")
COLUMNS = {"judge_object": "object", "judge_style": "style", "held_out_reward": "held_out.text_image"}
OTHERS = {"ood_object": "object_ood", "ood_style": "style_ood"}
UNSEEN = "evaluation/unseen.json"
FIGURES = ("diversity", "frechet", "drift")
QUICK = ("sampling.num_inference_steps=6", "tuning.steps=30")


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One run. changes: settings on top of the recipe, for a variant."""

    job: str
    recipe: str
    changes: tuple[str, ...]
    seed: int
    rounds: int
    pairs: int
    ood_pairs: int
    measured: tuple[int, ...]
    unseen: int
    out: Path

    @property
    def folder(self) -> Path:
        return self.out / f"{self.job}-{self.recipe}-{self.seed}"


def perform(task: Task) -> Task:
    """Train and measure; what is done already is not done again. Runs in a process of its own."""
    import raft_diffusion as rd
    from raft_diffusion.compare import compare_rounds

    changes = [f"rounds={task.rounds}", f"seed={task.seed}", "threads=1", "guard.enabled=false", *task.changes]
    config = rd.load_config(task.job, changes=changes, recipe=task.recipe if task.recipe in RECIPES else None)
    for _ in rd.Run(config, task.folder).rounds():
        pass
    numbers = [number for number in task.measured if number <= config.rounds] or None
    compare_rounds(config, task.folder, pairs=task.pairs, ood_pairs=task.ood_pairs, numbers=numbers)
    if task.unseen and not (task.folder / UNSEEN).is_file():
        measure_unseen(config, task.folder, task.unseen)
    return task


def quick(job: str, recipe: str) -> tuple[str, ...]:
    """What makes a run small, as far as the recipe leaves it open."""
    import raft_diffusion as rd
    from raft_diffusion import recipes

    known, config = recipes.RECIPES.get(recipe), rd.load_config(job)
    assert isinstance(config, rd.Config)
    fixed = set(known.changes(config)) - set(known.budget) if known else set()
    return tuple(change for change in QUICK if change.partition("=")[0] not in fixed)


def measure_unseen(config: Any, root: Path, pairs: int) -> None:
    """The base against the last round on every caption of the world that was not trained: all objects, all styles."""
    from raft_diffusion.assemble import make_policy, user_settings
    from raft_diffusion.compare import measure
    from raft_diffusion.core.prompts import evaluation_draws
    from raft_diffusion.core.records import Prompt
    from raft_diffusion.pocket.world import CAPTIONS
    from raft_diffusion.scales import make_scales

    trained = {prompt.text for prompt in config.train_prompts()}
    others = [Prompt(text) for text in CAPTIONS if text not in trained]
    draws = evaluation_draws(others, pairs, seed=config.seed)
    policy, scales = make_policy(config), make_scales(config)
    generate = partial(policy.generate, settings=user_settings(config))
    with policy.base():
        base, _ = measure(0, generate, [], draws, scales, None)
    policy.load(root / "lora")
    tuned, _ = measure(1, generate, [], draws, scales, None)
    scores = {side: one.scores for side, one in (("base", base), ("tuned", tuned))}
    (root / UNSEEN).write_text(json.dumps({"captions": [draw.prompt.text for draw in draws], **scores}) + "\n")


def pooled(tasks: Sequence[Task]) -> list[dict[str, Any]]:
    """The rows of one recipe on one job: every number over the pictures of all seeds, paired with the base's."""
    rounds = []
    for number in _rounds(tasks[0]):
        measured = [_read(task, number) for task in tasks]
        base = [_read(task, 0) for task in tasks]
        row: dict[str, Any] = {"round": number}
        for name, score in {**COLUMNS, **OTHERS}.items():
            if not all(score in one["scores"] for one in measured):
                continue
            values, before = ([x for one in side for x in one["scores"][score]] for side in (measured, base))
            row[name] = statistics.fmean(values)
            row[f"{name}_ci95"] = interval(before, values)
        row |= {name: statistics.fmean(one["figures"][name] for one in measured) for name in FIGURES}
        row["pairs"] = sum(len(one["scores"]["object"]) for one in measured)
        rounds.append(row)
    return rounds


def against(tasks: Sequence[Task], others: Sequence[Task]) -> dict[str, Any]:
    """The last round of one recipe minus that of another, on the same draws."""
    pairs = {}
    for name, score in {**COLUMNS, **OTHERS}.items():
        mine, theirs = (
            [x for task in side for x in _read(task, _rounds(task)[-1])["scores"][score]] for side in (tasks, others)
        )
        pairs[name] = {"difference": statistics.fmean(mine) - statistics.fmean(theirs), "ci95": interval(theirs, mine)}
    return pairs


def unseen(tasks: Sequence[Task]) -> dict[str, Any]:
    """The last round minus the base where nothing was asked for, pooled over the seeds."""
    found = [json.loads((task.folder / UNSEEN).read_text(encoding="utf-8")) for task in tasks]
    change: dict[str, Any] = {}
    for name in ("object", "style"):
        before, after = ([x for one in found for x in one[side][f"{name}_ood"]] for side in ("base", "tuned"))
        base, tuned = statistics.fmean(before), statistics.fmean(after)
        change[name] = {"base": base, "tuned": tuned, "ci95": interval(before, after), "pairs": len(before)}
    return change


def interval(before: Sequence[float], after: Sequence[float]) -> list[float]:
    """95 % of the mean of after - before, by a paired bootstrap over the pictures."""
    from raft_diffusion.core.stats import paired_bootstrap

    found = paired_bootstrap(before, after, seed=0, resamples=4000)
    return [found.low, found.high]


def _read(task: Task, number: int) -> dict[str, Any]:
    (folder,) = (task.folder / "evaluation" / "rounds").iterdir()
    return json.loads((folder / f"{number:03d}.json").read_text(encoding="utf-8"))


def _rounds(task: Task) -> list[int]:
    (folder,) = (task.folder / "evaluation" / "rounds").iterdir()
    return sorted(int(path.stem) for path in folder.glob("*.json"))


def show(console: Console, job: str, recipes: dict[str, Any]) -> None:
    for name, result in recipes.items():
        table = Table(title=f"{job}: {name} ({result['seeds']} seeds)", box=None, padding=(0, 2, 0, 0))
        for column in ("round", *COLUMNS, *OTHERS, *FIGURES):
            table.add_column(column.replace("_", " "), justify="right")
        for row in result["rounds"]:
            cells = [str(row["round"])]
            for column in (*COLUMNS, *OTHERS):
                unit = 1 if column == "held_out_reward" else 100
                low, high = (unit * end for end in row.get(f"{column}_ci95", (0, 0)))
                cells.append(f"{unit * row[column]:.1f} ({low:+.1f} {high:+.1f})" if column in row else "")
            table.add_row(*cells, *(f"{row[name]:.3f}" for name in FIGURES))
        console.print(table)
        for other, change in result.get("against", {}).items():
            parts = (
                f"{k} {100 * v['difference']:+.1f} ({100 * v['ci95'][0]:+.1f} {100 * v['ci95'][1]:+.1f})"
                for k, v in change.items()
                if k in ("judge_object", "judge_style")
            )
            console.print(f"  last round against {other}: {', '.join(parts)}", highlight=False)
        for what, found in result.get("unseen", {}).items():
            low, high = (100 * end for end in found["ci95"])
            line = f"{what} {100 * found['base']:.1f} -> {100 * found['tuned']:.1f} % ({low:+.1f} {high:+.1f})"
            console.print(f"  captions never trained, all styles, {found['pairs']} pairs: {line}", highlight=False)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    add = parser.add_argument
    add("--quick", action="store_true", help="one job, one seed, four small rounds: minutes on two cores")
    add("--jobs", nargs="+", default=None, choices=JOBS)
    add("--recipes", nargs="*", default=list(RECIPES), choices=RECIPES)
    add("--variant", action="append", default=[], metavar="NAME:KEY=VALUE[;KEY=VALUE]")
    add("--seeds", nargs="+", type=int, default=None)
    add("--rounds", type=int, default=None)
    add("--pairs", type=int, default=None, help="same-seed pairs a seed and round")
    add("--ood-pairs", type=int, default=None, help="on the job's held-out prompts")
    add("--unseen", type=int, default=0, help="pairs a seed on all other captions of the world, at the end")
    add("--measure", nargs="+", type=int, default=[], help="these rounds alone; none: all")
    add("--workers", type=int, default=multiprocessing.cpu_count())
    add("--out", type=Path, default=None, help="the runs; a second call goes on there")
    add("--json", type=Path, default=None)
    given = parser.parse_args(arguments)
    given.jobs = given.jobs or (["pocket-monet"] if given.quick else list(JOBS))
    given.seeds = given.seeds or ([0] if given.quick else [0, 1, 2])
    given.rounds = given.rounds or (4 if given.quick else 12)
    given.pairs = given.pairs or (24 if given.quick else 176)
    given.ood_pairs = given.ood_pairs or (8 if given.quick else None)
    given.out = given.out or Path("runs") / ("recipes-quick" if given.quick else "recipes")
    return given


def main(arguments: list[str] | None = None) -> int:
    given = parse(arguments)
    variants = {name: tuple(rest.split(";")) for name, _, rest in (text.partition(":") for text in given.variant)}
    names = {**dict.fromkeys(given.recipes, ()), **variants}
    tasks = [
        Task(
            job=job,
            recipe=name,
            changes=(*(quick(job, name) if given.quick else ()), *changes),
            seed=seed,
            rounds=given.rounds,
            pairs=given.pairs,
            ood_pairs=given.ood_pairs or given.pairs // 2,
            measured=tuple(given.measure),
            unseen=given.unseen,
            out=given.out,
        )
        for seed in given.seeds
        for job in given.jobs
        for name, changes in names.items()
    ]
    console = Console(width=180)
    with ProcessPoolExecutor(given.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(perform, task) for task in tasks]
        for done, future in enumerate(as_completed(futures), start=1):
            console.print(f"{done} of {len(tasks)}: {future.result().folder.name}", highlight=False)
    results: dict[str, Any] = {}
    for job in given.jobs:
        mine = {name: [task for task in tasks if (task.job, task.recipe) == (job, name)] for name in names}
        results[job] = {
            name: {
                "seeds": len(given.seeds),
                "rounds": pooled(group),
                "against": {other: against(group, mine[other]) for other in names if other != name},
                "unseen": unseen(group) if given.unseen else {},
            }
            for name, group in mine.items()
        }
        show(console, job, results[job])
    if given.json:
        given.json.write_text(json.dumps({"recipes": results[given.jobs[0]], "jobs": results}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
