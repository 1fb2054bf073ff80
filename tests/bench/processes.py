"""One run on one process and on two (gloo), side by side: the winners, the adapters; and a helper that dies half-way.

    uv run python tests/bench/processes.py

The helper is killed in the second round's sampling, and the run goes on alone.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIG = """
name = "processes"
rounds = 2
threads = 1
device = "cpu"
[prompts]
train = ["monet style cat", "monet style dog"]
held_out = ["photo house"]
[sampling]
width = 32
height = 32
num_inference_steps = 8
samples_per_prompt = 8
groups_per_prompt = 4
batch_size = 4
[rewards]
weights = { text_image = 1.0, aesthetic = 0.5 }
[tuning]
rank = 4
alpha = 4
steps = 8
batch_size = 5
[guard]
pairs = 8
[evaluation]
pairs = 4
ood_pairs = 4
best_of = 2
"""
LORA = "pytorch_lora_weights.safetensors"
NEAR = 1e-4
"""Two candidates whose scores differ by less may change places."""
COMMAND = (sys.executable, "-m", "raft_diffusion.cli", "train")


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """winners: of all rounds. changed: those that only one of the two runs chose, with what they lacked in score.
    adapter: the largest difference of a weight, by round. scores: the largest difference of a score, by round."""

    winners: int
    changed: list[tuple[str, float]]
    adapter: list[float]
    scores: list[float]


def start(config: Path, out: Path, processes: int) -> list[subprocess.Popen[str]]:
    """The processes of a run, the first one first."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [*COMMAND, str(config), "--out", str(out)],
            env=os.environ | (words | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(processes)
    ]


def finish(processes: list[subprocess.Popen[str]]) -> tuple[list[int], str]:
    """Exit codes, and what the first process said."""
    said = processes[0].communicate()[0]
    for process in processes[1:]:
        process.communicate()
    return [process.returncode for process in processes], said


def compare(one: Path, two: Path) -> Comparison:
    """Two runs of the same settings."""
    import torch
    from safetensors.torch import load_file

    changed: list[tuple[str, float]] = []
    winners, adapter, scores = 0, [], []
    for folder in sorted((one / "rounds").iterdir()):
        pair = [rows(root / "rounds" / folder.name) for root in (one, two)]
        assert [row["id"] for row in pair[0]] == [row["id"] for row in pair[1]]
        scores.append(
            max(abs(a["scores"][name] - b["scores"][name]) for a, b in zip(*pair, strict=True) for name in a["scores"])
        )
        chosen = [{row["id"] for row in part if row["winner"]} for part in pair]
        winners += len(chosen[0])
        by_id = {row["id"]: row for row in pair[0]}
        for name in sorted(chosen[0] ^ chosen[1]):
            row = by_id[name]
            contest = [r for r in pair[0] if (r["prompt_id"], r["group"]) == (row["prompt_id"], row["group"])]
            best = max(r["key"] for r in contest)
            changed.append((f"{folder.name} {name}", best - row["key"]))
        weights = [load_file(root / "rounds" / folder.name / "adapter" / LORA) for root in (one, two)]
        adapter.append(max(float((weights[0][k] - weights[1][k]).abs().max()) for k in weights[0]))
        assert all(torch.isfinite(value).all() for value in weights[1].values())
    return Comparison(winners=winners, changed=changed, adapter=adapter, scores=scores)


def rows(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "candidates" / "metadata.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def kept_batches(out: Path) -> Iterator[Path]:
    return (out / "unfinished" / "round").glob("*.batch")


def kill_helper(processes: list[subprocess.Popen[str]], out: Path) -> None:
    """Once the first round is complete and batches of the second are kept."""
    while processes[0].poll() is None and not (
        (out / "rounds" / "001" / "guard.json").is_file() and any(kept_batches(out))
    ):
        time.sleep(0.01)
    processes[1].send_signal(signal.SIGKILL)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, default=None, help="where the runs are kept; default: nowhere")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        root = given.out or Path(scratch)
        root.mkdir(parents=True, exist_ok=True)
        config = root / "config.toml"
        config.write_text(CONFIG, encoding="utf-8")
        for count in (1, 2):
            codes, said = finish(start(config, root / f"on-{count}", count))
            if any(codes):
                sys.exit(f"a run on {count} ended with {codes}:\n{said}")
        found = compare(root / "on-1", root / "on-2")
        print(f"winners {found.winners}, of which another candidate won: {len(found.changed)} {found.changed}")
        for index, (weight, score) in enumerate(zip(found.adapter, found.scores, strict=True), start=1):
            print(f"round {index}: scores differ by {score:.2g} at most, weights of the adapter by {weight:.2g}")
        processes = start(config, root / "killed", 2)
        kill_helper(processes, root / "killed")
        codes, said = finish(processes)
        print(f"helper killed: exit codes {codes}; {said.strip().splitlines()[-1]}")
        left = len(list(kept_batches(root / "killed")))
        codes, said = finish(start(config, root / "killed", 1))
        again = compare(root / "on-1", root / "killed")
        print(f"gone on alone with {left} kept batches: exit code {codes[0]}, winners changed: {len(again.changed)}")
        print(f"the last round's adapter differs from that of the run on 1 by {again.adapter[-1]:.2g}")
        return 0 if not codes[0] and all(gap < NEAR for _, gap in [*found.changed, *again.changed]) else 1


if __name__ == "__main__":
    sys.exit(main())
