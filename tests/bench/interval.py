"""Guidance in a part of the steps alone: what it saves, and what the rewards say of the same seeds.

    uv run python tests/bench/interval.py --jobs pocket-monet pocket-resolution       about three minutes of one core

The base model draws a round's candidates at the job's guidance; each interval is compared with guidance in all steps,
picture by picture, with a 95 % interval.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace

from raft_diffusion import assemble, load_config
from raft_diffusion.core.loop import score
from raft_diffusion.core.stats import paired_bootstrap

INTERVALS = ((0.0, 1.0), (0.25, 0.75), (0.0, 0.5), (0.5, 1.0), (0.0, 0.0001))


def measure(job: str, seed: int) -> None:
    config = load_config(job, changes=[f"seed={seed}", "threads=1"])
    assemble.prepare(1)
    policy, rewards = assemble.make_policy(config), assemble.make_rewards(config)
    draws, how = assemble.make_draws(config, 1), assemble.collecting(config)
    found: dict[tuple[float, float], dict[str, list[float]]] = {}
    for interval in INTERVALS:
        rows: list[int] = []
        hook = policy.components.unet.register_forward_pre_hook(lambda _, given, rows=rows: rows.append(len(given[0])))
        scored = score(policy.generate(draws, replace(how, guidance_interval=interval)), rewards)
        hook.remove()
        found[interval] = {name: [one.scores[name] for one in scored] for name in scored[0].scores}
        told = [f"{sum(rows) / len(draws):.1f} evaluations a picture"]
        for name, values in found[interval].items():
            change = paired_bootstrap(found[0.0, 1.0][name], values, seed=0, resamples=4000)
            told.append(f"{name} {statistics.fmean(values):.2f} ({change.low:+.2f} {change.high:+.2f})")
        print(f"{job}, guidance {how.guidance_scale:g} from {interval[0]:g} to {interval[1]:g}: {', '.join(told)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--jobs", nargs="+", default=["pocket-monet", "pocket-resolution"])
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    for job in given.jobs:
        measure(job, given.seed)


if __name__ == "__main__":
    main()
