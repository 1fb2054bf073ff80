"""Before and after on the same seeds, measured by judges that took no part in the ranking.

Legend: N pictures of one prompt set, in the draws' order; base, oracle and tuned pictures share draws.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from .core.files import write_atomically
from .core.loop import Reward, score
from .core.prompts import evaluation_draws
from .core.records import Draw, Group, Prompt, Sample, derive_seed
from .core.select import combine
from .core.stats import paired_bootstrap

Measures = Mapping[str, Sequence[float]]


class Judge(Protocol):
    """An independent judge: shares of what a caption asks for, and features (N, D) of unit length for diversity."""

    def measure(self, images: Sequence[Any], texts: Sequence[str]) -> Measures: ...
    def embed(self, images: Sequence[Any]) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is compared. target: the prompts that were trained; ood: prompts that were not, for what was lost or won.

    best_of: K of the oracle, the best of K base pictures by the run's own ranking: what selection alone would give.
    """

    target: Sequence[Prompt]
    ood: Sequence[Prompt]
    pairs: int
    ood_pairs: int
    best_of: int
    seed: int
    weights: Mapping[str, float]
    method: Any = "zscore"

    @property
    def images(self) -> int:
        """Pictures to sample: base and tuned."""
        return 2 * (self.pairs + (self.ood_pairs if self.ood else 0))


@dataclass(frozen=True, kw_only=True)
class Side:
    """All measures of one set of pictures, N numbers each."""

    samples: Sequence[Sample]
    rewards: Measures
    judged: Measures = field(default_factory=dict)

    @property
    def images(self) -> list[Any]:
        return [sample.data.image for sample in self.samples]

    @property
    def texts(self) -> list[str]:
        return [sample.prompt.text for sample in self.samples]


def evaluate(
    policy: Any,
    generate: Callable[[Sequence[Draw]], Sequence[Sample]],
    rewards: Sequence[Reward],
    plan: Plan,
    *,
    folder: Path,
    judge: Judge | None = None,
    diversity: Callable[[Any], float],
    embed: Callable[[Sequence[Any]], Any] | None,
    truth: Callable[[str, int], Sequence[Any]] | None = None,
    settings: Mapping[str, Any],
    examples: int = 24,
) -> dict[str, Any]:
    """Sample base and tuned pictures of the same draws, measure both, and write `folder`/evaluation.json and pictures.

    generate: samples at the settings at which the user samples. policy.base(): the adapter is off in this context.
    embed: features (N, D) for diversity where there is no judge; None: it is not measured. truth: true pictures of a
        prompt, if there are any.
    Returns what evaluation.json holds. Every interval is a paired bootstrap over prompts, or over pictures where there
    is one prompt.
    """
    began = time.monotonic()
    result: dict[str, Any] = {"images": plan.images, "seconds": 0.0}
    result["settings"] = {**settings, "seed": plan.seed, "pairs": plan.pairs, "ood_pairs": plan.ood_pairs}
    result["judge"], result["rewards"] = {}, {}
    shown: list[tuple[Side, Side, int]] = []
    for suffix, prompts, count in (("", plan.target, plan.pairs), ("_ood", plan.ood, plan.ood_pairs)):
        if not prompts or not count:
            continue
        draws = evaluation_draws(prompts, count, seed=plan.seed)
        with policy.base():
            base = _measure(generate(draws), rewards, judge)
        tuned = _measure(generate(draws), rewards, judge)
        chosen = oracle(base, plan)
        for name in base.judged:
            result["judge"][name + suffix] = _compare(base.judged, tuned.judged, name, chosen, base, plan)
        for name in base.rewards:
            result["rewards"][name + suffix] = _compare(base.rewards, tuned.rewards, name, chosen, base, plan)
        if not suffix:
            features = judge.embed if judge else embed
            result["diversity"] = _diversity(base, tuned, features, diversity, truth) if features else {}
        shown += [(base, tuned, i) for i in range(min(examples if not suffix else examples // 2, count))]
    folder.mkdir(parents=True, exist_ok=True)
    result["examples"] = [_write_example(folder, k, *item, judge) for k, item in enumerate(shown)]
    result["seconds"] = round(time.monotonic() - began, 2)
    write_atomically(folder / "evaluation.json", json.dumps(result, indent=1) + "\n")
    return result


def _measure(samples: Sequence[Sample], rewards: Sequence[Reward], judge: Judge | None) -> Side:
    scored = score(samples, rewards)
    names = list(scored[0].scores)
    side = Side(samples=samples, rewards={name: [row.scores[name] for row in scored] for name in names})
    if judge is None:
        return side
    return Side(samples=samples, rewards=side.rewards, judged=judge.measure(side.images, side.texts))


def oracle(base: Side, plan: Plan) -> list[int]:
    """For each draw the index of the best, by the run's own ranking, of K base pictures of its prompt: itself and the
    K - 1 after it (cyclic), so that the oracle costs no picture more."""
    members: dict[str, list[int]] = {}
    for index, sample in enumerate(base.samples):
        members.setdefault(sample.prompt.id, []).append(index)
    scored = score(base.samples, [lambda _: base.rewards])
    groups = [Group(base.samples[rows[0]].prompt, tuple(scored[i] for i in rows)) for rows in members.values()]
    keys = combine(groups, weights=plan.weights, method=plan.method)
    chosen = [0] * len(base.samples)
    for rows, row_keys in zip(members.values(), keys, strict=True):
        for place, index in enumerate(rows):
            window = [(place + step) % len(rows) for step in range(min(plan.best_of, len(rows)))]
            chosen[index] = rows[max(window, key=lambda w: row_keys[w])]
    return chosen


def _compare(
    base: Measures, tuned: Measures, name: str, chosen: Sequence[int], side: Side, plan: Plan
) -> dict[str, Any]:
    """One number before and after: means, and the 95 % interval of tuned - base."""
    before, after = base[name], tuned[name]
    clusters = [sample.prompt.id for sample in side.samples]
    seed = derive_seed(plan.seed, "bootstrap", name)
    interval = paired_bootstrap(before, after, seed=seed, clusters=clusters if len(set(clusters)) > 1 else None)
    means = statistics.fmean(before), statistics.fmean(after)
    return {
        "base": means[0],
        "oracle": statistics.fmean(before[i] for i in chosen),
        "tuned": means[1],
        "difference": means[1] - means[0],
        "ci95": [interval.low, interval.high],
        "pairs": len(before),
    }


def _diversity(
    base: Side,
    tuned: Side,
    embed: Callable[[Sequence[Any]], Any],
    diversity: Callable[[Any], float],
    truth: Callable[[str, int], Sequence[Any]] | None,
) -> dict[str, float]:
    """Mean over prompts of the pictures' mean pairwise distance; where a judge saw them, of the rightly named only,
    so that failures do not count as variety. A side with fewer than two such pictures of every prompt is left out."""
    result = {}
    for name, side in (("base", base), ("tuned", tuned)):
        right = side.judged.get("object", [1.0] * len(side.samples))
        values = []
        for text in dict.fromkeys(side.texts):
            images = [i for i, t, r in zip(side.images, side.texts, right, strict=True) if t == text and r]
            if len(images) > 1:
                values.append(diversity(embed(images)))
        if values:
            result[name] = statistics.fmean(values)
    if truth:
        texts = list(dict.fromkeys(base.texts))
        count = max(32, len(base.samples) // len(texts))
        result["true"] = statistics.fmean(diversity(embed(truth(text, count))) for text in texts)
    return result


def _write_example(
    folder: Path, number: int, base: Side, tuned: Side, index: int, judge: Judge | None
) -> dict[str, Any]:
    from .diffusion import save_png

    draw = base.samples[index].draw
    row: dict[str, Any] = {"text": draw.prompt.text, "seed": draw.seed}
    for place, side in (("before", base), ("after", tuned)):
        path = folder / place / f"{number:03d}.png"
        path.parent.mkdir(exist_ok=True)
        save_png(side.images[index], path)
        row[place] = f"{place}/{number:03d}.png"
        if judge is not None:
            row[f"{place}_label"] = "right" if side.judged["object"][index] else "not seen"
    return row
