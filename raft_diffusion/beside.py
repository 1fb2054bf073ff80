"""Runs of one job side by side: which recipe does better on the same prompts and seeds, and at what cost?

The LoRA that each run keeps is measured as the first run's user samples.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from .compare import Measured, Progress, cost_until, deciding, evaluation_sets, measure, table, win_count
from .core.config import Config
from .core.files import write_atomically
from .core.looks import read_ending
from .core.records import derive_seed
from .core.stats import paired_bootstrap
from .core.store import complete_rounds
from .lora.file import FILE_NAME

RESULT = "evaluation/beside.json"
BASE = "base"


def check_runs(config: Config, root: Path, others: Sequence[Path]) -> dict[str, tuple[Path, Config]]:
    """The runs by name, the one in `root` first. Raises ValueError where one cannot be compared with it."""
    runs: dict[str, tuple[Path, Config]] = {}
    for folder in (root, *others):
        if not os.path.isfile(folder / "lora" / FILE_NAME):
            raise ValueError(f"{folder} holds no finished run; train it first, or leave it out")
        other = Config.load(folder / "config.toml")
        if other.model != config.model:
            raise ValueError(
                f"{folder} is a run of {other.model} and {root} of {config.model}; compare runs of one model"
            )
        for key in ("rank", "alpha", "targets", "text_encoder"):
            mine, its = (getattr(side.tuning, key) for side in (config, other))
            if mine != its:
                raise ValueError(
                    f"tuning.{key} is {its} in {folder} and {mine} in {root}; compare runs whose LoRAs are alike"
                )
        name = folder.resolve().name
        if name in runs or name == BASE:
            raise ValueError(f"{name} is the name of two things to compare; give each run once, or rename a folder")
        runs[name] = folder, other
    return runs


def compare_runs(
    config: Config,
    root: Path,
    others: Sequence[Path],
    *,
    pairs: int | None = None,
    ood_pairs: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure the base, the run in `root` and others on its prompts and seeds, and write RUN/evaluation/beside.json.

    Returns {"settings": ..., "rows": those of `compare.table` with "run", "rounds", "kept" and `cost_until`,
    "against": {run: {score: difference of the first run to it, with its interval}}, "win_count": ...}.
    Raises ValueError for what `check_runs` refuses.
    """
    from .assemble import make_policy, user_settings
    from .scales import make_scales

    runs = check_runs(config, root, others)
    target, ood = evaluation_sets(config, pairs, ood_pairs)
    policy, scales = make_policy(config), make_scales(config)
    generate = partial(policy.generate, settings=user_settings(config))
    with policy.base():
        base, latents = measure(0, generate, target, ood, scales, None)
    found = [base]
    for place, (folder, other) in enumerate(runs.values(), start=1):
        policy.load(folder / "lora")
        with policy.at_strength(other.sampling.lora_scale):
            measured, _ = measure(place, generate, target, ood, scales, latents)
        found.append(measured)
        if progress:
            progress("measure", place, len(runs))
    labels, ood_labels = ([draw.prompt.text for draw in draws] for draws in (target, ood))
    rows = table(found, clusters=labels, ood_clusters=ood_labels, seed=config.seed)
    costs = {BASE: cost_until(root, config, 0), **{name: _cost(*run) for name, run in runs.items()}}
    rows = [{"run": name, **row, **cost} for row, (name, cost) in zip(rows, costs.items(), strict=True)]
    for row in rows:
        del row["round"]  # only its place among the runs
    judged, names = deciding(base.scores), list(runs)
    result = {
        "settings": {"seed": config.seed, "pairs": len(target), "ood_pairs": len(ood)},
        "rows": rows,
        "against": {name: _against(found[1], it, config.seed) for name, it in zip(names[1:], found[2:], strict=True)},
        "win_count": {
            "score": judged,
            "wins": win_count({n: m.scores[judged] for n, m in zip([BASE, *names], found, strict=True)}, labels),
        },
    }
    (root / RESULT).parent.mkdir(exist_ok=True)
    write_atomically(root / RESULT, json.dumps(result, indent=1) + "\n")
    return result


def _cost(folder: Path, config: Config) -> dict[str, Any]:
    """What it took to make the LoRA that the run keeps: all of its rounds, the ones after the best among them."""
    done = len(complete_rounds(folder))
    ending = read_ending(folder, after=done)
    return {"rounds": done, "kept": ending.keep if ending else done, **cost_until(folder, config, done)}


def _against(first: Measured, other: Measured, seed: int) -> dict[str, dict[str, Any]]:
    """The first run minus the other, on the same draws."""
    found = {}
    for name, values in first.scores.items():
        change = paired_bootstrap(other.scores[name], values, seed=derive_seed(seed, "bootstrap", name))
        found[name] = {"difference": change.mean, "ci95": [change.low, change.high]}
    return found
