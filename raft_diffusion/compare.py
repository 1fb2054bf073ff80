"""The base against every round of a run, on the same prompts and seeds: does it keep improving, and what is lost?

What a round measured is kept in RUN/evaluation/rounds/<steps>/NNN.json, so that a comparison that was interrupted, or
that is widened to more rounds, goes on. Round 000 is the base.
Legend: N pictures of one round, in the draws' order.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .checks import HELD_OUT_PREFIX
from .core.config import Config
from .core.files import write_atomically
from .core.looks import adapter_of
from .core.loop import score
from .core.prompts import evaluation_draws
from .core.records import Draw, Progress, Sample, derive_seed
from .core.stats import paired_bootstrap, win_rate
from .core.store import complete_rounds
from .core.timing import seconds_until
from .lora.file import FILE_NAME
from .planning.nfe import evaluations
from .scales import Scales

SAMPLER = ("scheduler", "num_inference_steps", "guidance_scale", "width", "height")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One round at one number of sampler steps: N numbers of each name, on the trained prompts and on others (`_ood`).

    figures: one number each, such as "diversity", "drift" and "frechet".
    """

    round: int
    scores: Mapping[str, Sequence[float]]
    figures: Mapping[str, float]


def measure(
    number: int,
    generate: Callable[[Sequence[Draw]], Sequence[Sample]],
    target: Sequence[Draw],
    ood: Sequence[Draw],
    scales: Scales,
    base: Sequence[Any] | None,
) -> tuple[Measured, list[Any]]:
    """Sample both sets of draws and measure them. base: the base's latents of `target`, None for the base itself.

    Returns the latents of `target` too.
    """
    scores: dict[str, list[float]] = {}
    figures: dict[str, float] = {}
    latents: list[Any] = []
    for suffix, draws in (("", target), ("_ood", ood)):
        if not draws:
            continue
        samples = generate(draws)
        for row in score(samples, scales.rewards):
            for name, value in row.scores.items():
                scores.setdefault(name + suffix, []).append(value)
        images, texts = [sample.data.image for sample in samples], [sample.prompt.text for sample in samples]
        if scales.judge is not None:
            scores |= {name + suffix: list(values) for name, values in scales.judge.measure(images, texts).items()}
        right = scores.get("object", [1.0] * len(samples))
        if not suffix:
            if scales.embed is not None:
                features = np.asarray(scales.embed(images), dtype=float)
                figures["diversity"] = diversity_within(features, texts, right)
                if scales.truth is not None:
                    figures["frechet"] = frechet_distance(features, np.asarray(scales.truth(texts), dtype=float))
            latents = [sample.data.latent for sample in samples]
            figures["drift"] = 0.0 if base is None else drift(base, latents)
    return Measured(round=number, scores=scores, figures=figures), latents


def diversity_within(features: np.ndarray, texts: Sequence[str], right: Sequence[float]) -> float:
    """Mean over prompts of the mean cosine distance of two pictures of one prompt; 0 where no prompt has two.

    features: (N, D), of unit length. right: N numbers, 0 for a picture that is left out: where a judge saw that it is
        not what was asked for, its strangeness is no variety.
    """
    import torch

    from .rewards.clip import diversity

    values = []
    for text in dict.fromkeys(texts):
        rows = features[[bool(other == text and sound) for other, sound in zip(texts, right, strict=True)]]
        if len(rows) > 1:
            values.append(diversity(torch.from_numpy(rows)))
    return statistics.fmean(values) if values else 0.0


def frechet_distance(found: np.ndarray, true: np.ndarray) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of two sets of features (N, D) and (M, D), Heusel et al. 2017
    (arXiv:1706.08500, equation 6). It falls with N and M, so compare only sets of the same sizes."""
    means = found.mean(axis=0), true.mean(axis=0)
    first, second = (x - m for x, m in zip((found, true), means, strict=True))
    first, second = first / np.sqrt(len(found) - 1), second / np.sqrt(len(true) - 1)
    # the trace of the root of C1 C2 is the sum of the singular values of A B', where C1 = A'A and C2 = B'B, and these
    # are those of the R of both, which has no more than D rows
    upper, other = (np.asarray(np.linalg.qr(x, mode="r")) for x in (first, second))
    root = np.linalg.svd(upper @ other.T, compute_uv=False).sum()
    return float(np.square(means[0] - means[1]).sum() + np.square(first).sum() + np.square(second).sum() - 2 * root)


def drift(base: Sequence[Any], latents: Sequence[Any]) -> float:
    """Mean squared distance of same-seed latents, over that of two of the base's own: 0 is the base's own picture, 1 is
    as far from it as another of its pictures."""
    before, after = (np.stack([np.asarray(x, dtype=float).ravel() for x in side]) for side in (base, latents))
    apart = 2 * before.var(axis=0, ddof=1).sum()  # the mean squared distance of two is twice the variance
    return float(np.square(after - before).sum(axis=1).mean() / apart)


def stored(folder: Path, number: int, identity: Mapping[str, Any]) -> Measured | None:
    """What round `number` measured earlier in the same way, or None."""
    try:
        row = json.loads((folder / f"{number:03d}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(row, dict) or row.get("settings") != json.loads(json.dumps(identity)):
        return None
    return Measured(round=number, scores=row["scores"], figures=row["figures"])


def store(folder: Path, measured: Measured, identity: Mapping[str, Any]) -> None:
    """identity: everything that the numbers follow from, such as seed, pairs, sampler and the adapter's hash."""
    folder.mkdir(parents=True, exist_ok=True)
    row = {"settings": identity, "scores": measured.scores, "figures": measured.figures}
    write_atomically(folder / f"{measured.round:03d}.json", json.dumps(row) + "\n")


def table(
    rounds: Sequence[Measured], *, clusters: Sequence[str], ood_clusters: Sequence[str], seed: int
) -> list[dict[str, Any]]:
    """A row for each round: every mean, its change from the base (round 0) with the 95 % interval, and the win rate.

    clusters, ood_clusters: the prompt of each picture; intervals are over prompts where there are several.
    """
    base, rows = rounds[0], []
    for measured in rounds:
        row: dict[str, Any] = {"round": measured.round, "scores": {}, **measured.figures}
        for name, values in measured.scores.items():
            before = base.scores[name]
            labels = ood_clusters if name.endswith("_ood") else clusters
            grouped = labels if len(set(labels)) > 1 else None
            change = paired_bootstrap(before, values, seed=derive_seed(seed, "bootstrap", name), clusters=grouped)
            row["scores"][name] = {
                "mean": statistics.fmean(values),
                "difference": change.mean,
                "ci95": [change.low, change.high],
                "win_rate": win_rate(before, values),
            }
        rows.append(row)
    return rows


def win_count(contenders: Mapping[str, Sequence[float]], texts: Sequence[str]) -> dict[str, int]:
    """For how many prompts each contender's mean score is the highest of all: the win count of ImageReward's Table 4
    (arXiv:2304.05977). Equal means are nobody's win."""
    wins = dict.fromkeys(contenders, 0)
    for text in dict.fromkeys(texts):
        means = {
            name: statistics.fmean(v for v, other in zip(values, texts, strict=True) if other == text)
            for name, values in contenders.items()
        }
        best = max(means.values())
        if len(winners := [name for name, mean in means.items() if mean == best]) == 1:
            wins[winners[0]] += 1
    return wins


def cost_until(root: Path, config: Config, rounds: int) -> dict[str, Any]:
    """What the first `rounds` rounds of the run in `root` took: evaluations of the UNet, and seconds where known."""
    spent = evaluations(config, rounds)
    return {
        "unet_evaluations": {"sampling": spent.sampling, "tuning": spent.tuning},
        "seconds": seconds_until(root, rounds),
    }


def deciding(scores: Mapping[str, Sequence[float]]) -> str:
    """The score that a win is counted by: the first held-out one; without one, the first of all."""
    return next((name for name in scores if name.startswith(HELD_OUT_PREFIX)), next(iter(scores)))


def compare_rounds(
    config: Config,
    root: Path,
    *,
    steps: Sequence[int] = (),
    pairs: int | None = None,
    ood_pairs: int | None = None,
    numbers: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure the base and the rounds of the run in `root`, and write RUN/evaluation/rounds.json.

    steps: sampler step counts; none is the run's own. pairs: pictures a round on the trained prompts, ood_pairs: on the
        held-out ones; None is the run's own number. numbers: the rounds, None is all of them.
    progress: called with ("measure", rounds done, rounds in all).
    Returns {"settings": {...}, "steps": {count: {"rounds": rows of `table` and `cost_until`, "win_count": {...}}}}.
    Raises ValueError for a run without a complete round, and for rounds that it does not have.
    """
    from .assemble import make_policy, user_settings
    from .scales import make_scales

    wanted = rounds_of(root, numbers)
    target, ood = evaluation_sets(config, pairs, ood_pairs)
    policy, own, scales = make_policy(config), user_settings(config), make_scales(config)
    counts = list(dict.fromkeys(steps or [own.num_inference_steps]))
    settings = {"seed": config.seed, "pairs": len(target), "ood_pairs": len(ood)}
    result: dict[str, Any] = {"settings": settings, "steps": {}}
    labels, ood_labels = ([draw.prompt.text for draw in draws] for draws in (target, ood))
    for place, count in enumerate(counts):
        series = _Series(root, policy, replace(own, num_inference_steps=count), target, ood, scales)
        rounds = []
        for done, number in enumerate((0, *wanted), start=1):
            rounds.append(series.measured(number, config.sampling.lora_scale, settings))
            if progress:
                progress("measure", place * (len(wanted) + 1) + done, len(counts) * (len(wanted) + 1))
        judged = deciding(rounds[0].scores)
        contenders = {str(m.round): m.scores[judged] for m in rounds}
        result["steps"][str(count)] = {
            "rounds": [
                row | cost_until(root, config, row["round"])
                for row in table(rounds, clusters=labels, ood_clusters=ood_labels, seed=config.seed)
            ],
            "win_count": {"score": judged, "wins": win_count(contenders, labels)},
        }
    write_atomically(root / "evaluation" / "rounds.json", json.dumps(result, indent=1) + "\n")
    return result


def rounds_of(root: Path, numbers: Sequence[int] | None) -> list[int]:
    """The complete rounds of a run, or those asked for. Raises ValueError for one that it does not have."""
    there = complete_rounds(root)
    if not there:
        raise ValueError(f"{root} has no complete round to compare with the base; train it first")
    wanted = sorted(set(numbers)) if numbers else there
    if missing := [number for number in wanted if number not in there]:
        raise ValueError(f"{root} has no round {missing[0]}; it has 1 to {there[-1]}")
    return wanted


def evaluation_sets(config: Config, pairs: int | None, ood_pairs: int | None) -> tuple[list[Draw], list[Draw]]:
    """The draws of the trained prompts and of the held-out ones; None for the run's own numbers."""
    evaluation = config.evaluation
    others = (evaluation.ood_pairs if ood_pairs is None else ood_pairs) if config.prompts.held_out else 0
    target = evaluation_draws(config.train_prompts(), pairs or evaluation.pairs, seed=config.seed)
    return target, evaluation_draws(config.held_out_prompts(), others, seed=config.seed)


class _Series:
    """The rounds of one run at one sampler setting, each measured once and kept in `folder`."""

    def __init__(
        self, root: Path, policy: Any, settings: Any, target: Sequence[Draw], ood: Sequence[Draw], scales: Scales
    ) -> None:
        self._root, self._policy, self._settings, self._scales = root, policy, settings, scales
        self._target, self._ood = target, ood
        self._folder = root / "evaluation" / "rounds" / f"{settings.num_inference_steps:03d}"
        self._base_latents: list[Any] = []

    def measured(self, number: int, strength: float, identity: Mapping[str, Any]) -> Measured:
        """Round `number` with its LoRA at `strength`; 0 is the base. identity: what else the numbers follow from."""
        adapter = adapter_of(self._root, number)
        identity = {
            **identity,
            "sampler": [str(getattr(self._settings, name)) for name in SAMPLER],
            "adapter": [_digest(adapter / FILE_NAME), strength] if number else None,
        }
        found = stored(self._folder, number, identity)
        if found is not None:
            return found
        if number == 0:
            with self._policy.base():
                found, self._base_latents = measure(0, self._generate, self._target, self._ood, self._scales, None)
        else:
            if not self._base_latents:  # the base was measured by an earlier call
                with self._policy.base():
                    self._base_latents = [sample.data.latent for sample in self._generate(self._target)]
            self._policy.load(adapter)
            with self._policy.at_strength(strength):
                found, _ = measure(number, self._generate, self._target, self._ood, self._scales, self._base_latents)
        store(self._folder, found, identity)
        return found

    def _generate(self, draws: Sequence[Draw]) -> Sequence[Sample]:
        return self._policy.generate(draws, settings=self._settings)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
