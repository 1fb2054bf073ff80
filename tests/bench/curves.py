"""What the comparisons share: the judge's score of a LoRA, the time to a level, and curves as JSON and SVG.

The judge takes no part in what any of the methods does; it is asked afterwards, of LoRAs that lie on disk, and the time
that this takes is nobody's.
"""

from __future__ import annotations

import json
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

JOB = "pocket-monet"
COLOURS = ("#1b6ca8", "#c4572b", "#3f8f4f", "#7a4fa3")
LEFT, RIGHT, TOP, BOTTOM, WIDTH, HEIGHT = 56, 620, 20, 300, 760, 350

Curve = Sequence[tuple[float, float]]
"""(seconds of training so far, share of held-out pictures in which the judge sees what was asked for)."""


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """What is in `path`, or what `make` gives, which is then kept there: a second call goes on where one stopped."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.partial")
        partial.write_text(json.dumps(make(), indent=1) + "\n", encoding="utf-8")
        partial.replace(path)
    return json.loads(path.read_text(encoding="utf-8"))


def judge(lora: Path | None, *, seed: int, pairs: int) -> float:
    """The share of `pairs` pictures, sampled as the user of the job samples, with the right object and style.

    lora: a folder with the weights; None is the base. The draws are those of the evaluation, the same for all methods.
    """
    from raft_diffusion import assemble, pocket
    from raft_diffusion.core.prompts import evaluation_draws
    from raft_diffusion.pocket.judge import Judge

    config = settings(seed=seed)
    assemble.prepare(1)
    policy = assemble.make_base(config)
    if lora is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other programs write no alpha; here it is the rank, as is assumed then
            policy.attach(lora)
    draws = evaluation_draws(config.train_prompts(), pairs, seed=seed)
    samples = policy.generate(draws, settings=assemble.user_settings(config))
    images, texts = [sample.data.image for sample in samples], [sample.prompt.text for sample in samples]
    seen = Judge.load(pocket.JUDGE).measure(images, texts)
    return statistics.fmean(o * s for o, s in zip(seen["object"], seen["style"], strict=True))


def settings(*, seed: int, recipe: str | None = None, changes: Sequence[str] = ()) -> Any:
    """Those of the job, on one thread, without a guard."""
    import raft_diffusion as rd

    plain = ["threads=1", "device=cpu", "guard.enabled=false", *changes]
    return rd.load_config(JOB, seed=seed, recipe=recipe, changes=plain)


def time_to(curve: Curve, level: float) -> float | None:
    """Seconds after which the score was first at `level` or above; None where it never was."""
    return next((seconds for seconds, score in curve if score >= level), None)


def compared(mine: Sequence[Curve], theirs: Sequence[Curve], levels: Sequence[float]) -> list[dict[str, Any]]:
    """For each level: the times of either to it, and theirs over mine, pair by pair; a pair in which one never got
    there is counted, and has no ratio."""
    rows = []
    for level in levels:
        times = [(time_to(a, level), time_to(b, level)) for a, b in zip(mine, theirs, strict=True)]
        rows.append({"level": level, **_ratios(times)})
    return rows


def to_their_best(mine: Sequence[Curve], theirs: Sequence[Curve]) -> dict[str, Any]:
    """As `compared`, each pair at the best score that theirs ever reached."""
    levels = [max(score for _, score in curve) for curve in theirs]
    times = [(time_to(a, level), time_to(b, level)) for a, b, level in zip(mine, theirs, levels, strict=True)]
    return {"level": statistics.median(levels), **_ratios(times)}


def _ratios(times: Sequence[tuple[float | None, float | None]]) -> dict[str, Any]:
    ratios = [theirs / mine for mine, theirs in times if mine and theirs]
    return {
        "mine": middle([mine for mine, _ in times if mine is not None]),
        "theirs": middle([theirs for _, theirs in times if theirs is not None]),
        "mine_never": sum(mine is None for mine, _ in times),
        "theirs_never": sum(theirs is None for _, theirs in times),
        "ratio": middle(ratios),
    }


def middle(values: Sequence[float]) -> list[float] | None:
    """[median, lowest, highest, number]; None for no values."""
    return [statistics.median(values), min(values), max(values), len(values)] if values else None


def told(numbers: Sequence[float] | None, digits: int = 3) -> str:
    """`middle` for people."""
    if numbers is None:
        return "-"
    centre, low, high, _ = (f"{number:.{digits}g}" for number in numbers)
    return centre if low == high else f"{centre} ({low} to {high})"


def write_svg(path: Path, curves: Mapping[str, Sequence[Curve]], *, title: str) -> None:
    """All curves of each method in its colour: the judge's score against the logarithm of the training time."""
    import math

    points = [point for runs in curves.values() for curve in runs for point in curve if point[0] > 0]
    low, high = (math.log10(end(seconds for seconds, _ in points)) for end in (min, max))
    span = max(high - low, 1e-9)

    def x(seconds: float) -> float:
        return LEFT + (RIGHT - LEFT) * (math.log10(seconds) - low) / span

    def y(score: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * score

    parts = [f'<text x="{LEFT}" y="14">{escape(title)}</text>']
    for tenth in range(0, 11, 2):
        parts.append(f'<path d="M{LEFT} {y(tenth / 10):.1f}H{RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(tenth / 10) + 4:.1f}" text-anchor="end">{10 * tenth} %</text>')
    for seconds in (1, 3, 10, 30, 100, 300, 1000, 3000, 10000):
        if low <= math.log10(seconds) <= high:
            parts.append(f'<text x="{x(seconds):.1f}" y="{BOTTOM + 16}" text-anchor="middle">{seconds}</text>')
    parts.append(f'<text x="{RIGHT}" y="{BOTTOM + 34}" text-anchor="end">seconds of training</text>')
    for place, (name, runs) in enumerate(curves.items()):
        colour = COLOURS[place % len(COLOURS)]
        parts.append(f'<text x="{RIGHT + 10}" y="{TOP + 18 * place + 10}" fill="{colour}">{escape(name)}</text>')
        for curve in runs:
            line = " ".join(f"{x(seconds):.1f},{y(score):.1f}" for seconds, score in curve if seconds > 0)
            parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif"'
    path.write_text(f'{head} font-size="12">{"".join(parts)}</svg>\n', encoding="utf-8")
