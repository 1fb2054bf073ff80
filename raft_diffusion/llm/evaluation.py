"""Before and after on the same prompts and seeds, measured by a judge that took no part in the ranking.

Legend: N texts, P prompts of k samples each, in the draws' order; base and tuned texts share draws.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..core.files import write_atomically
from ..core.looks import adapter_of
from ..core.loop import Reward, score
from ..core.records import Draw, Prompt, Sample, derive_seed
from ..core.stats import paired_bootstrap
from ..core.store import complete_rounds
from .completion import Completion
from .config import EXACT
from .log_prob import perplexity
from .metrics import diversity, pass_at, win_lose_tie
from .policy import TextPolicy, TextSettings

EXAMPLES = 24
Scores = dict[str, list[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is compared. prompts: P of them; samples: k of each. sampling: how the texts are written.

    references: texts of the world by the name of their perplexity. asked: the settings that the result answers.
    """

    prompts: Sequence[Prompt]
    samples: int
    sampling: TextSettings
    references: Mapping[str, Sequence[Completion]]
    asked: Mapping[str, Any]
    seed: int


def evaluate_texts(
    policy: TextPolicy, rewards: Sequence[Reward], judges: Sequence[Reward], plan: Plan, *, run: Path
) -> dict[str, Any]:
    """Write the texts of base and tuned model on the same draws, measure both, and keep the result in
    `run`/evaluation/evaluation.json.

    judges: rewards that took no part in the ranking. run: the folder with the rounds and the result, `run`/lora, which
    the policy is left with.

    Returns what evaluation.json holds: by score "base", "tuned", "difference", "ci95" (a paired bootstrap over
    prompts), "pairs" and the shares "win", "lose" and "tie"; "pass_at_1" and "pass_at_k" of a judge "exact";
    "perplexity" and every number of `metrics.Diversity` with "base" and "tuned"; "curve", each judge's mean of the base
    and after every round; and "examples", texts side by side.
    """
    began = time.monotonic()
    draws = question_draws(plan.prompts, samples=plan.samples, seed=plan.seed)
    with policy.base():
        base = policy.generate(draws, settings=plan.sampling)
        known = {name: perplexity(policy, texts) for name, texts in plan.references.items()}
    with policy.tuned():
        tuned = policy.generate(draws, settings=plan.sampling)
        after = {name: perplexity(policy, texts) for name, texts in plan.references.items()}
    settings = {**asdict(plan.sampling), "seed": plan.seed}
    result: dict[str, Any] = {"texts": 2 * len(draws), "settings": settings, "asked": dict(plan.asked)}
    for part, scorers in (("judge", judges), ("rewards", rewards)):
        sides = [_scores(samples, scorers) for samples in (base, tuned)]
        result[part] = {name: _compare(sides[0][name], sides[1][name], name, draws, plan.seed) for name in sides[0]}
        if part == "judge" and EXACT in sides[0]:
            result |= _pass_at(sides[0][EXACT], sides[1][EXACT], draws)
    result |= {name: {"base": value, "tuned": after[name]} for name, value in known.items()}
    varied = [asdict(diversity([sample.data.text for sample in samples])) for samples in (base, tuned)]
    result |= {name: {"base": value, "tuned": varied[1][name]} for name, value in varied[0].items()}
    result["curve"] = _curve(policy, judges, base, plan, run)
    result["examples"] = [
        {"text": one.prompt.text, "seed": one.draw.seed, "before": one.data.text, "after": other.data.text}
        for one, other in list(zip(base, tuned, strict=True))[:EXAMPLES]
    ]
    result["seconds"] = round(time.monotonic() - began, 2)
    (run / "evaluation").mkdir(parents=True, exist_ok=True)
    written = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    write_atomically(run / "evaluation" / "evaluation.json", written.encode("utf-8", "replace").decode())
    return result


def _curve(
    policy: TextPolicy, judges: Sequence[Reward], base: Sequence[Sample], plan: Plan, run: Path
) -> dict[str, list[float]]:
    """The mean of each judge's scores on the base's draws: of the base, then after every round."""
    if not judges:
        return {}
    curve = {name: [statistics.fmean(values)] for name, values in _scores(base, judges).items()}
    for index in complete_rounds(run):
        policy.load(adapter_of(run, index))
        samples = policy.generate([sample.draw for sample in base], settings=plan.sampling)
        for name, values in _scores(samples, judges).items():
            curve[name].append(statistics.fmean(values))
    policy.load(run / "lora")
    return curve


def question_draws(prompts: Sequence[Prompt], *, samples: int, seed: int) -> list[Draw]:
    """k = `samples` requests of each prompt, from the evaluation's stream of seeds, which no candidate's meet."""
    return [Draw(prompt, k, derive_seed(seed, "evaluate", prompt.id, k)) for prompt in prompts for k in range(samples)]


def _pass_at(base: Sequence[float], tuned: Sequence[float], draws: Sequence[Draw]) -> dict[str, dict[str, float]]:
    """pass@1, which is avg@k over the k samples of a prompt, and pass@k."""
    rows: dict[str, list[int]] = {}
    for place, draw in enumerate(draws):
        rows.setdefault(draw.prompt.id, []).append(place)
    result = {}
    for k in sorted({1, min(map(len, rows.values()))}):
        sides = [[[scores[place] for place in places] for places in rows.values()] for scores in (base, tuned)]
        result[f"pass_at_{k}"] = {"base": pass_at(sides[0], k), "tuned": pass_at(sides[1], k)}
    return result


def _scores(samples: Sequence[Sample], rewards: Sequence[Reward]) -> Scores:
    """By reward, in the samples' order."""
    rows = score(samples, rewards)
    return {name: [row.scores[name] for row in rows] for name in rows[0].scores}


def _compare(
    base: Sequence[float], tuned: Sequence[float], name: str, draws: Sequence[Draw], seed: int
) -> dict[str, Any]:
    clusters = [draw.prompt.id for draw in draws]
    interval = paired_bootstrap(base, tuned, seed=derive_seed(seed, "bootstrap", name), clusters=clusters)
    win, lose, tie = win_lose_tie(base, tuned)
    return {
        "base": statistics.fmean(base),
        "tuned": statistics.fmean(tuned),
        "difference": interval.mean,
        "ci95": [interval.low, interval.high],
        "pairs": len(base),
        "win": win,
        "lose": lose,
        "tie": tie,
    }
