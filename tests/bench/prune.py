"""What pruning of candidates costs and saves: whole contests and pruned ones of the same seeds, in turns in one run.

    uv run python tests/bench/prune.py --jobs pocket-monet pocket-resolution       about nine minutes of one core
    uv run python tests/bench/prune.py --rounds 5 --out runs/prune                 the judge after five rounds

The gain is the winners' mean ranking key minus that of all candidates, both by the keys of the whole contests: 100 % is
what best-of-K has. UNet evaluations are counted by a hook. Each repeat takes other draws, of the base model with the
candidates' guidance of round 1; the order of the variants turns from repeat to repeat.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VARIANTS = {
    "whole": (),
    "preview of 33 % of the steps, stop at 42 %": ("sampling.prune=preview",),
    "predicted_x0, stops 25 % and 50 %": ("sampling.prune=predicted_x0",),
    "guidance, stops 25 % and 50 %": ("sampling.prune=guidance",),
}


@dataclass(frozen=True, slots=True)
class Taken:
    """One round's sampling and ranking. keys: of each candidate by its id; winners: their ids."""

    seconds: float
    evaluations: int
    keys: Mapping[str, float]
    winners: Sequence[str]
    figures: Mapping[str, float]


def gain(winners: Sequence[str], keys: Mapping[str, float]) -> float:
    return statistics.fmean(keys[name] for name in winners) - statistics.fmean(keys.values())


def compared(whole: Sequence[Taken], pruned: Sequence[Taken]) -> dict[str, Any]:
    """Ratios repeat by repeat, as [median, lowest, highest], and the mean of each figure."""
    pairs = list(zip(whole, pruned, strict=True))
    return {
        "gain": _spread([gain(p.winners, w.keys) / gain(w.winners, w.keys) for w, p in pairs]),
        "evaluations": _spread([p.evaluations / w.evaluations for w, p in pairs]),
        "time": _spread([p.seconds / w.seconds for w, p in pairs]),
        "figures": {name: statistics.fmean(p.figures[name] for p in pruned) for name in pruned[0].figures},
    }


def _spread(values: Sequence[float]) -> list[float]:
    return [statistics.median(values), min(values), max(values)]


def take(config: Any, policy: Any, rewards: Sequence[Any], index: int) -> Taken:
    from raft_diffusion import assemble
    from raft_diffusion.core.loop import group, score
    from raft_diffusion.prune import early_reward

    rows: list[int] = []
    hook = policy.components.unet.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    scored_by = [*rewards, early_reward(config.sampling.stops[0])]
    sampler = assemble.make_sampler(config, policy, rewards=scored_by)
    policy.settings = assemble.collecting(config)
    began = time.perf_counter()
    groups = group(score(sampler.generate(assemble.make_draws(config, index)), scored_by))
    selection = assemble.make_select(config)(groups)
    seconds = time.perf_counter() - began
    hook.remove()
    pairs = zip(groups, selection.keys, strict=True)
    keys = {c.sample.id: key for one, row in pairs for c, key in zip(one.candidates, row, strict=True)}
    return Taken(
        seconds,
        sum(rows),
        keys,
        [winner.sample.id for winner in selection.winners],
        assemble.figures(config, groups, selection),
    )


def measure(
    job: str, *, seed: int, repeats: int, changes: Sequence[str], tell: Callable[[str], None]
) -> dict[str, Any]:
    from raft_diffusion import assemble, load_config

    # The held-out reward takes no part: what is compared is sampling and ranking.
    own = [f"seed={seed}", "threads=1", "rewards.held_out=none", "guard.enabled=false", *changes]
    configs = {name: load_config(job, changes=[*own, *more]) for name, more in VARIANTS.items()}
    plain = configs["whole"]
    assemble.prepare(1)
    policy, rewards = assemble.make_policy(plain), assemble.make_rewards(plain)
    take(plain.with_overrides(["sampling.samples_per_prompt=2", "selection.best=1"]), policy, rewards, 1)  # warms up
    taken: dict[str, list[Taken]] = {name: [] for name in configs}
    names = list(configs)
    for repeat in range(repeats):
        turn = repeat % len(names)
        for name in [*names[turn:], *names[:turn]]:
            taken[name].append(take(configs[name], policy, rewards, repeat + 1))
        latest = {name: compared(taken["whole"][-1:], taken[name][-1:]) for name in names[1:]}
        tell(f"{job}: {repeat + 1} of {repeats}: {json.dumps(latest)}")
    whole = taken.pop("whole")
    return {name: compared(whole, some) for name, some in taken.items()}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--jobs", nargs="+", default=["pocket-monet", "pocket-resolution"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], dest="changes")
    parser.add_argument("--rounds", type=int, default=None, help="compare the judge after so many rounds instead")
    parser.add_argument("--pairs", type=int, default=176, help="same-seed pairs of that comparison")
    parser.add_argument("--out", type=Path, default=Path("runs/prune"), help="its runs; a second call goes on there")
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args(arguments)
    if given.rounds:
        import recipes

        told = ["--rounds", str(given.rounds), "--measure", str(given.rounds), "--pairs", str(given.pairs)]
        told += ["--jobs", *given.jobs, "--seeds", str(given.seed), "--out", str(given.out), "--recipes", "default"]
        told += ["--variant", "pruned:" + ";".join(["sampling.prune=preview", *given.changes])]
        return recipes.main(told + (["--json", str(given.json)] if given.json else []))
    results = {
        job: measure(
            job,
            seed=given.seed,
            repeats=given.repeats,
            changes=given.changes,
            tell=lambda line: print(line, file=sys.stderr, flush=True),
        )
        for job in given.jobs
    }
    for job, rows in results.items():
        for name, row in rows.items():
            told = [f"{what} {m:.3f} ({low:.3f} to {high:.3f})" for what, (m, low, high) in list(row.items())[:3]]
            figures = ", ".join(f"{key} {value:.3f}" for key, value in row["figures"].items())
            print(f"{job}, {name}: {', '.join(told)}; {figures}")
    if given.json:
        given.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
