"""500 rounds of the carried model at a tiny size: memory, open files, and what going on costs.

    uv run python tests/crash/many_rounds.py --rounds 500

Prints the memory after round 20 and after the last one, the open files at both, and the seconds that a start takes,
imports and models left out, at round 5 and at the last one.
"""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import tempfile
import time
from pathlib import Path

CONFIG = """
name = "many"
rounds = {rounds}
threads = 1
device = "cpu"
[prompts]
train = ["monet style cat"]
[sampling]
width = 16
height = 16
num_inference_steps = 1
guidance_scale = 1.0
samples_per_prompt = 2
batch_size = 2
[rewards]
weights = {{ text_image = 1.0 }}
[selection]
replay = {replay}
[tuning]
rank = 2
alpha = 2
steps = 1
batch_size = 1
[guard]
enabled = false
"""
RECENT = 4


def memory() -> float:
    """MB that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def going_on(root: Path, upto: int) -> float:
    """Seconds from a loaded model to the first batch of the round after `upto`, in a copy of the run cut there."""
    from raft_diffusion.core.config import Config
    from raft_diffusion.core.store import RunFolder
    from raft_diffusion.diffusion import PictureCodec

    copy = shutil.copytree(root, root.with_name(f"cut-{upto}"))
    for folder in (copy / "rounds").iterdir():
        if int(folder.name) > upto:
            shutil.rmtree(folder)
    config = Config.load(copy / "config.toml")
    began = time.monotonic()
    RunFolder.check(copy, config=config)
    store = RunFolder.open(copy, codec=PictureCodec(), config=config, environment={}, replay=config.selection.replay)
    store.resume(_NoPolicy())
    return time.monotonic() - began


class _NoPolicy:
    def load(self, folder: Path) -> None:
        assert folder.is_dir()


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--rounds", type=int, default=500)
    arguments.add_argument("--replay", type=int, default=RECENT)
    asked = arguments.parse_args()
    from raft_diffusion.core.config import Config
    from raft_diffusion.runs import Run

    root = Path(tempfile.mkdtemp(prefix="raft-rounds-")) / "run"
    run = Run(Config.parse(CONFIG.format(rounds=asked.rounds, replay=asked.replay)), root)
    marks: dict[int, tuple[float, int, float]] = {}
    for round_ in run.rounds():
        if round_.index in (5, 20, 100, 250, asked.rounds):
            gc.collect()
            marks[round_.index] = memory(), open_files(), time.monotonic()
            print(f"round {round_.index}: {memory():.1f} MB, {open_files()} open files", flush=True)
    growth = marks[asked.rounds][0] / marks[20][0] - 1
    seconds = {upto: going_on(root, upto) for upto in (5, asked.rounds)}
    print(f"memory from round 20 to {asked.rounds}: {100 * growth:+.1f} %")
    print(f"going on: {seconds[5]:.2f} s after round 5, {seconds[asked.rounds]:.2f} s after round {asked.rounds}")
    shutil.rmtree(root.parent)
    assert growth < 0.05 and marks[asked.rounds][1] == marks[20][1]
    assert seconds[asked.rounds] - seconds[5] < 2


if __name__ == "__main__":
    main()
