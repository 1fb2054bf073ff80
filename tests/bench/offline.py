"""A run learned from a folder of pictures alone, none of them sampled from the model: the judge's gain.

    uv run python tests/bench/offline.py --out runs/offline

The folder holds true pictures of the carried model's world, in the imagefolder layout. The run is the preset
pocket-monet with that folder as its only source; its evaluation compares base and tuned on the same seeds, by a judge
that took no part.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from raft_diffusion import Run, load_config
from raft_diffusion.planning.nfe import evaluations
from raft_diffusion.pocket.world import true_pictures

PROMPT = "monet style cat"


def write_pictures(folder: Path, count: int, *, seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, picture in enumerate(true_pictures(PROMPT, count, size=64, seed=seed)):
        picture.save(folder / f"{number:04d}.png")
        lines.append(json.dumps({"file_name": f"{number:04d}.png", "text": PROMPT}) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")


def learn(out: Path, *, pictures: int, changes: list[str], seed: int = 0) -> dict:
    """The evaluation of a run on `pictures` true pictures."""
    write_pictures(out / "pictures", pictures, seed=seed)
    config = load_config("pocket-monet", seed=seed, generators=[f"folder:{out / 'pictures'}"], changes=changes)
    assert evaluations(config, config.rounds).sampling == 0
    run = Run(config, out / "run")
    for round_ in run.rounds():
        print(f"round {round_.index}: {dict(round_.figures)}", flush=True)
    return run.evaluate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=160)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], dest="changes")
    given = parser.parse_args()
    result = learn(given.out, pictures=given.pictures, changes=given.changes, seed=given.seed)
    for kind, measures in result["judge"].items():
        print(kind, json.dumps(measures))


if __name__ == "__main__":
    main()
