"""The guard, provoked and left alone, on the carried model.

    uv run python tests/bench/guard.py provoke --out guard    rewards that can be gamed: does it stop in time?
    uv run python tests/bench/guard.py calm --out guard       the standard jobs over ten seeds: does it keep still?

A provoked run that was stopped goes on in a copy, watched and not stopped, so that the turn can be seen.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

JOBS = ("pocket-monet", "pocket-resolution")
ROUNDS = 8
WATCH_ONLY = ("guard.max_drop=1000", "guard.max_forgotten=1000", "guard.min_diversity=0")
HACKS = {
    "compressibility": ("rewards.weights={ compressibility = 1.0 }",),
    "clip": ("rewards.weights={ text_image = 1.0 }",),  # and few prompts, and ten times the learning rate
}
FEW = ("cat", "ship")


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    job: str
    hack: str | None
    seed: int
    out: Path

    @property
    def folder(self) -> Path:
        return self.out / f"{self.job}-{self.hack or 'standard'}-{self.seed}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """scores, diversity: what the guard saw in rounds 0, 1, 2, ...; fired: the round that it stopped at, or None."""

    name: str
    scores: list[float]
    diversity: list[float]
    turn: int
    fired: int | None
    keep: int
    sentence: str


def changes_of(task: Task) -> list[str]:
    changes = [f"seed={task.seed}", "threads=1"]
    if task.hack is None:
        return changes
    changes += [f"rounds={ROUNDS}", *HACKS[task.hack]]
    if task.hack == "clip":
        from raft_diffusion import load_config

        preset = load_config(task.job)
        changes.append(f"tuning.learning_rate={10 * preset.tuning.learning_rate}")
        if len(preset.prompts.train) > len(FEW):
            changes += [f"prompts.train={json.dumps(FEW)}", "sampling.groups_per_prompt=4"]
    return changes


def perform(task: Task) -> Outcome:
    """Runs in a process of its own; what is done already is not done again."""
    import raft_diffusion as rd
    from raft_diffusion.core.looks import read_ending, read_look

    config, root = rd.load_config(task.job, changes=changes_of(task)), task.folder
    run = rd.Run(config, root)
    for _ in run.rounds():
        pass
    verdict = run.verdict
    assert verdict is not None
    done = verdict.look.round
    ending = read_ending(root, after=done)
    fired = done if verdict.fired else None
    if fired is not None and task.hack:
        root = task.out / f"{task.folder.name}-watched"
        if not root.is_dir():
            shutil.copytree(task.folder, root)
        for _ in rd.Run(config.with_overrides(WATCH_ONLY), root).rounds():
            pass
    looks = [look for index in range(config.rounds + 1) if (look := read_look(root, index)) is not None]
    return Outcome(
        name=task.folder.name,
        scores=[round(look.score, 2) for look in looks],
        diversity=[round(look.diversity, 3) for look in looks],
        turn=max(looks, key=lambda look: look.score).round,
        fired=fired,
        keep=verdict.keep,
        sentence=ending.sentence if ending else "",
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("what", choices=("provoke", "calm"))
    parser.add_argument("--jobs", nargs="+", default=JOBS, choices=JOBS)
    parser.add_argument("--hacks", nargs="+", default=list(HACKS), choices=HACKS, help="to provoke with")
    parser.add_argument("--seeds", nargs="+", type=int, default=None, help="default: 0 to provoke, 0 to 9 for calm")
    parser.add_argument("--workers", type=int, default=multiprocessing.cpu_count())
    parser.add_argument(
        "--out", type=Path, default=Path("runs") / "guard", help="the runs; a second call goes on there"
    )
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args(arguments)
    hacks = given.hacks if given.what == "provoke" else [None]
    seeds = given.seeds or ([0] if given.what == "provoke" else list(range(10)))
    tasks = [Task(job=job, hack=h, seed=seed, out=given.out) for seed in seeds for job in given.jobs for h in hacks]
    console, outcomes = Console(width=160), []
    with ProcessPoolExecutor(given.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for future in as_completed([pool.submit(perform, task) for task in tasks]):
            found = future.result()
            outcomes.append(found)
            console.print(f"{found.name}: held-out {found.scores}, diversity {found.diversity}", highlight=False)
            when = f"stopped after round {found.fired}" if found.fired else "never stopped"
            console.print(f"  best in round {found.turn}, {when}, keeps round {found.keep}", highlight=False)
            console.print(f"  {found.sentence}", highlight=False, markup=False)
    fired = sum(outcome.fired is not None for outcome in outcomes)
    console.print(f"{fired} of {len(outcomes)} runs were stopped", highlight=False)
    if given.json:
        given.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
