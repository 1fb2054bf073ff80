"""Make the carried language models again: `python -m raft_diffusion.llm.pocket.build`. It goes on where it stopped."""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ...core.files import write_atomically
from . import WEIGHTS, nets, recipe
from .judge import FILE_NAME as JUDGE_FILE

LIMIT_BYTES = 4_000_000


def build(work: Path, out: Path, *, scale: float = 1.0) -> dict[str, Any]:
    """Train what is not yet trained in `work`, then write the package to `out` whole. Returns the manifest.

    scale: of the steps, 1 for the real thing.
    """
    for stage, train in recipe.TRAIN.items():
        folder = work / stage
        if (folder / "figures.json").exists():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        train(folder, scale, _clocked(stage, folder))
    return write_package(work, out)


def _clocked(stage: str, folder: Path) -> recipe.Report:
    """Prints how far a stage is, and keeps its time in `seconds` across interruptions."""
    began, spent = time.monotonic(), _seconds(folder)

    def report(done: int, steps: int, loss: float) -> None:
        seconds = spent + time.monotonic() - began
        (folder / "seconds").write_text(f"{seconds:.1f}", encoding="utf-8")
        if done % 100 == 0 or done == steps:
            print(f"{stage}: step {done} of {steps}, loss {loss:.3f}, {seconds:.0f} s", flush=True)

    return report


def _seconds(folder: Path) -> float:
    path = folder / "seconds"
    return float(path.read_text(encoding="utf-8")) if path.exists() else 0.0


def write_package(work: Path, out: Path) -> dict[str, Any]:
    """All weights in half precision under `out`, made aside and moved there whole, with a manifest and a model card.

    Raises RuntimeError for a package of more than LIMIT_BYTES.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    words, characters = nets.words_tokenizer(), nets.characters_tokenizer()
    models = {
        "reviews": (nets.make_writer, words),
        "reviews_small": (nets.make_small_writer, words),
        "sums": (nets.make_writer, characters),
        "sentiment": (nets.make_classifier, words),
        "held_out": (nets.make_classifier, words),
    }
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".weights-") as temporary:
        fresh = Path(temporary) / "weights"
        for stage, (make, tokenizer) in models.items():
            net = make(len(tokenizer))
            # not strict: the tied layer is not in the file
            net.load_state_dict(load_file(work / stage / "final.safetensors"), strict=False)
            net.half().save_pretrained(fresh / stage)
            tokenizer.save_pretrained(fresh / stage)
        (fresh / "judge").mkdir()
        judge = load_file(work / "judge" / "final.safetensors")
        save_file({name: value.half() for name, value in judge.items()}, fresh / "judge" / JUDGE_FILE)
        for path in fresh.rglob("*.safetensors"):
            path.chmod(0o644)  # they are written for their owner alone
        manifest = _manifest(work, fresh)
        write_atomically(fresh / "manifest.json", json.dumps(manifest, indent=2) + "\n")
        write_atomically(fresh / "MODEL_CARD.md", _card(manifest))
        if out.exists():
            shutil.rmtree(out)
        fresh.rename(out)
    return manifest


def _manifest(work: Path, folder: Path) -> dict[str, Any]:
    stages = {}
    for stage in recipe.TRAIN:
        figures = json.loads((work / stage / "figures.json").read_text(encoding="utf-8"))
        stages[stage] = {**figures, "seconds": round(_seconds(work / stage))}
    files = {
        path.relative_to(folder).as_posix(): {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "bytes": path.stat().st_size,
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    size = sum(row["bytes"] for row in files.values())
    if size > LIMIT_BYTES:
        raise RuntimeError(f"the package has {size} bytes, more than {LIMIT_BYTES}")
    return {
        "recipe_version": recipe.VERSION,
        "seed": recipe.SEED,
        "torch": torch.__version__.split("+")[0],
        "seconds": sum(row["seconds"] for row in stages.values()),
        "stages": stages,
        "files": files,
    }


def _card(manifest: dict[str, Any]) -> str:
    stages = manifest["stages"]
    rows = "\n".join(f"| {name} | {row['steps']} | {row['seconds'] / 60:.1f} |" for name, row in stages.items())
    return f"""# The carried language models

Llamas of 0.1 to 0.4 million weights. `reviews` writes short film reviews of a generated world, more often bad than
good, and `reviews_small` does so with a fifth of the weights. `sums` answers sums of two numbers as pupils do, mostly
by a wrong guess. `sentiment` ranks reviews, `held_out` guards, and `judge`, which shares no weight and no training
text with either, is asked by the evaluation alone. They are for demonstrations, tests and benchmarks.

- Data: texts made by `raft_diffusion/llm/pocket/world.py`; no text or weight comes from anywhere else.
- Made by `python -m raft_diffusion.llm.pocket.build`, recipe version {manifest["recipe_version"]}, seed
  {manifest["seed"]}.
- Right on new reviews: sentiment {stages["sentiment"]["accuracy"]:.1%}, held_out {stages["held_out"]["accuracy"]:.1%},
  judge {stages["judge"]["accuracy"]:.1%}.
- Licence: MIT, as the package.

| stage | steps | minutes |
|---|---|---|
{rows}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/pocket-lm"), help="where training state is kept")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="where the package goes")
    parser.add_argument("--scale", type=float, default=1.0, help="of the steps")
    arguments = parser.parse_args()
    build(arguments.work, arguments.out, scale=arguments.scale)


if __name__ == "__main__":
    main()
