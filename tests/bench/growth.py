"""How a round's time and memory grow with K and with the number of prompts, on the carried model.

    uv run python tests/bench/growth.py --quick      a look at whether it works
    uv run python tests/bench/growth.py              K from 4 to 64 of 4 prompts, then 4 to 256 prompts of 4

Each round runs in a process of its own, so that its peak of memory is its own, and after one that does not count. What
grows is sampling, scoring, ranking and writing; the tuning steps stay the same and are left out. The numbers are
medians over the repeats, which take turns; `apart` is how far the slowest time for one picture lies above the fastest.
What is done lies in --out, and a second call goes on there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from curves import kept, middle, told
from rich.console import Console
from rich.table import Table

SIDE = 4  # of whatever does not grow
BATCH = 16  # divides every round, so that all batches are full


def one(prompts: int, k: int, *, steps: int, threads: int) -> dict[str, float]:
    """Seconds of a round without its tuning, and the process's peak of memory."""
    from raft_diffusion import assemble
    from raft_diffusion.bench.models import make_subject
    from raft_diffusion.bench.setup import bench_config
    from raft_diffusion.bench.watch import peak_memory
    from raft_diffusion.bench.whole import run_round

    texts = [f"monet style cat {number}" for number in range(prompts)]
    changes = [
        f"prompts.train={json.dumps(texts)}",
        "prompts.held_out=[]",
        f"sampling.samples_per_prompt={k}",
        "sampling.groups_per_prompt=1",
        f"sampling.num_inference_steps={steps}",
        f"sampling.batch_size={BATCH}",
        "tuning.steps=1",
    ]
    config = bench_config(device="cpu", threads=threads, changes=changes)
    assemble.prepare(threads)
    policy, towers = make_subject(config, random_weights=False)
    first = config.with_overrides([f"prompts.train={json.dumps(texts[:SIDE])}", f"sampling.samples_per_prompt={SIDE}"])
    run_round(policy, towers, first)
    stages, _ = run_round(policy, towers, config)
    seconds = sum(spent for stage, spent in stages.items() if stage != "tune")
    return {"seconds": seconds, "peak_memory_bytes": peak_memory(policy.components.device)}


def measured(given: argparse.Namespace, prompts: int, k: int, repeat: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", str(prompts), str(k), "--steps", str(given.steps)]
    command += ["--threads", str(given.threads)]

    def run() -> dict[str, float]:
        answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        return json.loads(answer.strip().splitlines()[-1])

    return kept(given.out / f"{prompts}-{k}-{given.steps}-{repeat}.json", run)


def row(prompts: int, k: int, laps: Sequence[dict[str, float]]) -> dict[str, Any]:
    images = prompts * k
    return {
        "prompts": prompts,
        "k": k,
        "images": images,
        "seconds": middle([lap["seconds"] for lap in laps]),
        "seconds_an_image": middle([lap["seconds"] / images for lap in laps]),
        "peak_memory_bytes": middle([lap["peak_memory_bytes"] for lap in laps]),
    }


def apart(rows: Sequence[dict[str, Any]], name: str) -> float:
    """How far the largest median lies above the smallest, as a share of it."""
    values = [found[name][0] for found in rows]
    return max(values) / min(values) - 1


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    add = parser.add_argument
    add("--quick", action="store_true", help="two sizes each, once")
    add("--repeats", type=int, default=None, help="5, quick 1")
    add("--steps", type=int, default=4, help="of a picture")
    add("--threads", type=int, default=1)
    add("--out", type=Path, default=None, help="what is done; a second call goes on there")
    add("--json", type=Path, default=None)
    add("--one", type=int, nargs=2, default=None, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.one:
        print(json.dumps(one(*given.one, steps=given.steps, threads=given.threads)))
        return 0
    given.repeats = given.repeats or (1 if given.quick else 5)
    given.out = given.out or Path("runs") / "growth"
    axes = {
        "K": [(SIDE, k) for k in ((4, 8) if given.quick else (4, 8, 16, 32, 64))],
        "prompts": [(count, SIDE) for count in ((4, 8) if given.quick else (4, 16, 64, 256))],
    }
    points = list(dict.fromkeys(point for axis in axes.values() for point in axis))
    laps: dict[tuple[int, int], list[dict[str, float]]] = {point: [] for point in points}
    for repeat in range(given.repeats):
        for point in points:
            laps[point].append(measured(given, *point, repeat))
    result: dict[str, Any] = {}
    console = Console(width=120)
    for name, axis in axes.items():
        rows = [row(*point, laps[point]) for point in axis]
        spread = {key: apart(rows, key) for key in ("seconds_an_image", "peak_memory_bytes")}
        result[name] = {"rows": rows, "apart": spread}
        table = Table(box=None, padding=(0, 2, 0, 0))
        for column in ("prompts", "K", "images", "seconds", "ms an image", "peak, GB"):
            table.add_column(column, justify="right")
        for found in rows:
            cells = [str(found[key]) for key in ("prompts", "k", "images")]
            each = told([1000 * value for value in found["seconds_an_image"]])
            peak = told([value / 1e9 for value in found["peak_memory_bytes"]])
            table.add_row(*cells, told(found["seconds"]), each, peak)
        console.print(table)
        time, memory = (100 * share for share in spread.values())
        console.print(f"{name}: time an image {time:.1f} % apart, memory {memory:.1f} %", highlight=False)
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
