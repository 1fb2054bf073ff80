"""Make the carried weights again from nothing: `python -m raft_diffusion.pocket.build`.

Stages run side by side where they do not need each other, each in a process of its own; a killed build goes on where
it stopped when the same command is given again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

NEEDS: dict[str, tuple[str, ...]] = {
    "vae": (),
    "clip": (),
    "judge": (),
    "held_out": (),
    "unet": ("vae", "clip"),
}
THREADS = {"vae": 1, "clip": 1, "judge": 1, "held_out": 1, "unet": 2}
CORES = 2
# glibc gives every large tensor back to the kernel and faults it in again; these keep it (others ignore them).
MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000", "MALLOC_TOP_PAD_": "100000000"}
SMOKE_SCALE = 0.002


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m raft_diffusion.pocket.build", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/pocket"), help="where stages keep their state")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "weights", help="where the weights go")
    parser.add_argument("--smoke", action="store_true", help="run every stage, tiny, to see that it works")
    parser.add_argument("--stage", choices=tuple(NEEDS), help="run this stage alone, in this process")
    options = parser.parse_args(arguments)
    scale = SMOKE_SCALE if options.smoke else 1.0
    if options.smoke and options.out == parser.get_default("out"):
        parser.error("--smoke makes useless weights: name another folder with --out")
    if options.stage:
        run_stage(options.stage, options.work, scale)
        return 0
    options.work.mkdir(parents=True, exist_ok=True)
    if not run_all(options.work, options.smoke):
        return 1
    from .package import write_package

    manifest = write_package(options.work, options.out)
    total = sum(file["bytes"] for file in manifest["files"].values())
    print(f"wrote {options.out}: {total / 1e6:.2f} MB, {manifest['seconds'] / 60:.0f} minutes of training")
    return 0


def run_stage(stage: str, work: Path, scale: float) -> None:
    """Train one stage here; `progress.json` says how far it is and what it has cost so far."""
    import torch

    from .recipe import TRAIN

    torch.set_num_threads(THREADS[stage])
    folder = work / stage
    folder.mkdir(parents=True, exist_ok=True)
    began, before = time.monotonic(), read_progress(folder).get("seconds", 0.0)

    def report(step: int, steps: int, loss: float) -> None:
        row = {"step": step, "steps": steps, "loss": loss, "seconds": before + time.monotonic() - began}
        temporary = folder / "progress.tmp"
        temporary.write_text(json.dumps(row), encoding="utf-8")
        os.replace(temporary, folder / "progress.json")

    TRAIN[stage](folder, scale, report)


def read_progress(folder: Path) -> dict[str, Any]:
    path = folder / "progress.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def run_all(work: Path, smoke: bool) -> bool:
    """Every stage that is not done yet, as many at a time as there are cores. False when one failed."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    running: dict[str, subprocess.Popen[bytes]] = {}
    columns = (TextColumn("{task.description:9}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f}"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn()) as bars:
        tasks = {stage: bars.add_task(stage, total=1, start=False) for stage in NEEDS}
        while True:
            for stage in NEEDS:
                row = read_progress(work / stage)
                if row:
                    bars.start_task(tasks[stage])
                    bars.update(tasks[stage], completed=row["step"], total=row["steps"])
            for stage, process in list(running.items()):
                if process.poll() is not None:
                    del running[stage]
                    if process.returncode:
                        for other in running.values():
                            other.terminate()
                        print(f"stage {stage} failed: see {work / stage / 'log.txt'}", file=sys.stderr)
                        return False
            done = {stage for stage in NEEDS if (work / stage / "figures.json").exists()}
            if len(done) == len(NEEDS) and not running:
                return True
            for stage, needs in NEEDS.items():
                busy = sum(THREADS[other] for other in running)
                ready = stage not in done and stage not in running and done.issuperset(needs)
                if ready and busy + THREADS[stage] <= CORES:
                    running[stage] = start(stage, work, smoke)
            time.sleep(0.5)


def start(stage: str, work: Path, smoke: bool) -> subprocess.Popen[bytes]:
    (work / stage).mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "raft_diffusion.pocket.build", "--stage", stage, "--work", str(work)]
    if smoke:
        command += ["--smoke", "--out", str(work / "smoke")]
    environment = {**os.environ, **MALLOC, "OMP_NUM_THREADS": str(THREADS[stage])}
    with (work / stage / "log.txt").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment)


if __name__ == "__main__":
    sys.exit(main())
