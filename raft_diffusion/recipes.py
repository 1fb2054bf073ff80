"""Published ways to learn from ranked samples, as changes on top of a job, so that they are compared on the same job.

A recipe says how candidates become winners and how they are learned from. What is asked for, the model, its sampler,
the rewards, the LoRA and, but for `quick`, the learning rate are the job's.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .core.config import PRUNING, Config
from .core.records import OWN
from .core.toml import format_value
from .rewards import KNOWN

PAPER_GROUPS = 10  # prompts a round in the authors' notebook; with one prompt, contests of it
PAPER_K = 10
PAPER_KEPT = 0.8  # its best 8 of 10
PAPER_STEPS = 80
PAPER_BATCH = 8
QUICK_LEFT = 2  # candidates of a contest that are sampled to the end
QUICK_RATE = 4  # of the job's learning rate
QUICK_STEPS = 0.5  # of a round's, each of half as many pictures
QUICK_PAIRS = 32  # what the guard looks at, at most


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """changes: the settings that the recipe puts on a job, by dotted key; None clears one.
    budget: those among them that it derives from the job's own, which may therefore be set beside the recipe.
    """

    summary: str
    source: str
    changes: Callable[[Config], Mapping[str, Any]]
    budget: tuple[str, ...] = ()


def apply(config: Config, name: str, *, given: Sequence[str] = ()) -> Config:
    """The job of `config` by the recipe of this name, which the run's name then holds.

    given: dotted keys that the user set by hand.
    Raises ValueError for an unknown recipe, and for a setting that both the user and the recipe fix.
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"unknown recipe {name!r}: {hint}Known are {', '.join(RECIPES)}")
    recipe = RECIPES[name]
    changes = dict(recipe.changes(config))
    if both := [key for key in given if key in changes and key not in recipe.budget]:
        raise ValueError(
            f"the recipe {name} sets {both[0]} itself; leave out --set {both[0]}=..., or the recipe and set all by hand"
        )
    if not changes:
        return config
    changes["name"] = f"{config.name}-{name}"
    return config.with_overrides(
        [f"{key}={'none' if value is None else format_value(value)}" for key, value in changes.items()]
    )


def _paper(config: Config) -> dict[str, Any]:
    prompts = min(_prompts(config), PAPER_GROUPS)
    batch = max(size for size in (1, 2, 4, PAPER_BATCH) if size <= config.tuning.batch_size)
    return {
        **_PLAIN_SAMPLING,
        **_PLAIN_SELECTION,
        "prompts.per_round": None if prompts == len(config.prompts.train) else prompts,
        "sampling.samples_per_prompt": PAPER_K,
        "sampling.groups_per_prompt": max(1, round(PAPER_GROUPS / prompts)),
        "rewards.method": "fixed",
        "rewards.weights": _across(config),
        "selection.top_fraction": PAPER_KEPT,
        "selection.replay": 0,
        "tuning.steps": PAPER_STEPS,
        "tuning.learning_rate_decay": 1.0,
        "tuning.batch_size": batch,
        "tuning.gradient_accumulation": PAPER_BATCH // batch,
        "tuning.condition_drop": 0.0,
        "tuning.snr_gamma": None,
        "tuning.warmup_steps": 0,
        "tuning.restart": False,
        "tuning.anti_drift": 0.0,
    }


def _across(config: Config) -> dict[str, float]:
    """The job's weights. Where winners of several prompts compete, only what compares across prompts can rank: the
    notebook's own reward is the aesthetic score."""
    weights = config.rewards.weights
    if len(config.prompts.train) == 1:
        return weights
    within = [info.name for info in KNOWN if not info.comparable_across_prompts]
    left = {name: weight for name, weight in weights.items() if name not in within and weight}
    return left or {"aesthetic": 1.0}


def _one_shot(config: Config) -> dict[str, Any]:
    """One round draws the groups of all, over as many prompts as divide them evenly."""
    groups = config.rounds * _prompts(config) * config.sampling.groups_per_prompt
    known = len(config.prompts.train)
    prompts = max(count for count in range(1, known + 1) if groups % count == 0)
    return {
        "rounds": 1,
        "stop_when_flat": None,
        "prompts.per_round": None if prompts == known else prompts,
        "sampling.groups_per_prompt": groups // prompts,
        "tuning.steps": config.rounds * config.tuning.steps,
    }


def _quick(config: Config) -> dict[str, Any]:
    """One round, and as little work in it as measured to do."""
    sampling, tuning = config.sampling, config.tuning
    prunes = sampling.samples_per_prompt > QUICK_LEFT + 1 and set(sampling.sources) == {OWN}
    previews = {
        "sampling.prune": "preview",
        "sampling.prune_at": PRUNING["preview"][0][:1],
        "sampling.prune_keep": [QUICK_LEFT / sampling.samples_per_prompt],
    }
    return {
        **_PLAIN_SELECTION,
        **(previews if prunes else {}),
        "rounds": 1,
        "stop_when_flat": None,
        "tuning.steps": max(1, round(QUICK_STEPS * tuning.steps)),
        "tuning.batch_size": max(1, tuning.batch_size // 2),
        "tuning.learning_rate": float(f"{QUICK_RATE * tuning.learning_rate:.2g}"),
        "guard.pairs": min(QUICK_PAIRS, config.guard.pairs),
    }


def _reward_weighted(config: Config) -> dict[str, Any]:
    return {**_PLAIN_SELECTION, "rewards.method": "zscore", "selection.tau": 1.0}


def _prompts(config: Config) -> int:
    """P: prompts a round."""
    return config.prompts.per_round or len(config.prompts.train)


_PLAIN_SAMPLING = {
    "sampling.collect_guidance_scale": None,
    "sampling.collect_guidance_decay": 1.0,
    "sampling.base_share": 0.0,
    "sampling.eta": 0.0,
    "sampling.noise_scale": 1.0,
}
_PLAIN_SELECTION = {
    "selection.best": 1,
    "selection.top_fraction": None,
    "selection.top_count": None,
    "selection.tau": None,
    "selection.min_spread": 0.0,
    "selection.diversity": 0.0,
}

RECIPES: dict[str, Recipe] = {
    "default": Recipe(
        summary="the job as its preset has it",
        source="chosen by measurement, see tests/bench/JOURNAL.md",
        changes=lambda config: {},
    ),
    "quick": Recipe(
        summary="one round: previews choose which two of a contest are sampled to the end, the best one is learned"
        " from, in a quarter of the tuning at four times the rate",
        source="chosen by measurement, see tests/bench/JOURNAL.md",
        changes=_quick,
        budget=("tuning.steps", "tuning.batch_size", "tuning.learning_rate", "guard.pairs"),
    ),
    "paper": Recipe(
        summary="best of 10 in ten groups a round, the better 8 of the 10 winners by raw reward, 80 steps on those 8"
        " alone, candidates at the user's guidance",
        source="RAFT, arXiv:2304.06767, section 4.2, and the authors' notebook for Stable Diffusion",
        changes=_paper,
        budget=("prompts.per_round", "rewards.weights", "tuning.batch_size"),
    ),
    "one-shot": Recipe(
        summary="all the images and all the tuning steps of the run in a single round",
        source="data set filtering, the stronger baseline of ImageReward, arXiv:2304.05977, table 4",
        changes=_one_shot,
        budget=("rounds", "stop_when_flat", "prompts.per_round", "sampling.groups_per_prompt", "tuning.steps"),
    ),
    "reward-weighted": Recipe(
        summary="every candidate is learned from, with the weight exp(z / tau), tau = 1",
        source="reward-weighted regression as in DDPO, arXiv:2305.13301, section 4.2",
        changes=_reward_weighted,
    ),
}
