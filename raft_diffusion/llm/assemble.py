"""From the settings of a text run to its objects; a `modality.Modality`. torch is imported inside the functions."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.files import rename_whole
from ..core.loop import Reward, Selector
from ..core.prompts import draw_round
from ..core.records import Draw, Group, Progress, Prompt, Sample, Selection, derive_seed
from ..core.select import Select
from ..core.store import RunFolder
from ..guarding import Guard
from ..rewards import LOG_RATIO
from . import data, pocket
from .checks import check as check
from .config import CLASSIFIER, EXACT, TextConfig
from .guarding import distances_within, watch_of
from .guarding import verdict_of as verdict_of
from .outlook import outlook as outlook

if TYPE_CHECKING:
    from .policy import TextPolicy, TextSettings

NOUN = "texts"
ADAPTER = "adapter_model.safetensors"
MAY_CHANGE = (
    "rounds",
    "stop_when_flat",
    "device",
    "threads",
    "trackers",
    "guard",
    "sampling.batch_size",
    "rewards.timeout",
    "evaluation",
)
WARM = "warm_up"
"""The folder of the adapter after the supervised warm-up."""


def held_out_name(config: TextConfig) -> None:
    """The guard's classifier is the one that never ranks; it scores no candidates."""


def prepare(threads: int | None) -> int:
    """As `process.prepare`, without the libraries of pictures."""
    from .. import process

    return process.prepare(threads, libraries=("transformers",))


# --- the models -------------------------------------------------------------------------------------------------------


def make_policy(config: TextConfig, progress: Progress | None = None) -> TextPolicy:
    """The model of the settings with the LoRA that learns."""
    policy = _load(config, config.model, progress, revision=config.revision)
    tuning = config.tuning
    name = config.model if not os.path.exists(config.model) else ""
    targets = {"targets": tuning.targets} if tuning.targets else {}
    policy.add_adapter(rank=tuning.rank, alpha=tuning.alpha, seed=config.seed, name=name, **targets)
    return policy


def make_sampler(
    config: TextConfig,
    policy: TextPolicy,
    progress: Progress | None = None,
    *,
    rewards: Sequence[Reward] = (),
    root: Path | None = None,
) -> Any:
    """What the loop samples from and stores: the policy, or the pair with its teacher."""
    from .examples import Distillation

    if config.teacher is None:
        return policy
    teacher = _load(config, config.teacher, progress)
    teacher.shelf = policy.shelf
    if config.teacher_lora:
        teacher.attach(Path(config.teacher_lora))
    return Distillation(teacher=teacher, student=policy)


def _load(
    config: TextConfig, source: str, progress: Progress | None = None, *, revision: str | None = None
) -> TextPolicy:
    from .policy import TextPolicy, TextSettings

    device, dtype = _place(config)
    sampling = config.sampling
    model, tokenizer = TextPolicy.load_model(_source(source), device=device, dtype=dtype, revision=revision)
    settings = TextSettings(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_new_tokens=sampling.max_new_tokens,
        batch_size=sampling.batch_size,
    )
    return TextPolicy(
        model, tokenizer, settings=settings, chat=sampling.chat, system=sampling.system, progress=progress
    )


def _place(config: TextConfig) -> tuple[str, Any]:
    """(device, dtype)."""
    from ..diffusion.load import choose_dtype
    from ..process import pick_device

    device = pick_device(config.device)
    return device, choose_dtype(config.precision, device)


def _source(name: str) -> str:
    return str(pocket.CARRIED.get(name, name))


def begin(config: TextConfig, policy: TextPolicy, folder: Path, progress: Progress | None = None) -> None:
    """Learn the examples, once; every later start of the run finds the adapter in its folder."""
    from .examples import as_winners, read_examples

    if config.tuning.examples is None:
        return
    done = folder / WARM
    if not os.path.exists(done):
        winners = as_winners(policy, read_examples(Path(config.tuning.examples)))
        make_tuner(config, progress, index=0)(policy, winners, seed=derive_seed(config.seed, "warm up"))
        partly = folder / f".{WARM}.partial"
        policy.save(partly)
        rename_whole(partly, done)
    policy.load(done)


# --- the rewards, the ranking, the tuning -----------------------------------------------------------------------------


def run_rewards(config: TextConfig, policy: TextPolicy) -> list[Reward]:
    """What scores candidates."""
    from ..rewards.custom import load_custom
    from .log_prob import TextLogRatio
    from .rewards import ExactAnswer

    settings = config.rewards
    rewards: list[Reward] = []
    if settings.classifier is not None:
        rewards.append(_classifier(config, settings.classifier, settings.label, CLASSIFIER))
    if EXACT in settings.weights:
        rewards.append(ExactAnswer(data.truths_of(config)))
    if LOG_RATIO in settings.weights:
        rewards.append(TextLogRatio(policy))
    return rewards + [load_custom(name, datum="text", timeout=settings.timeout) for name in settings.custom]


def _classifier(config: TextConfig, source: str, label: str | None, name: str) -> Reward:
    from .rewards import SequenceClassifier

    device, dtype = _place(config)
    return SequenceClassifier.load(
        _source(source), device=device, dtype=dtype, name=name, label=label, reads=config.rewards.reads
    )


def make_select(config: TextConfig) -> Selector:
    from .filter import Discard, at_least, lacks
    from .metrics import text_distance

    selection, rewards = config.selection, config.rewards
    select = Select(
        weights=rewards.weights,
        method=rewards.method,
        best=selection.best,
        top_fraction=selection.top_fraction,
        top_count=selection.top_count,
        tau=selection.tau,
        min_spread=selection.min_spread,
        diversity=selection.diversity,
        distance=text_distance if selection.diversity else None,
    )
    rules = [at_least(rewards.min_words)] if rewards.min_words else []
    rules += [lacks(re.compile(rewards.discard))] if rewards.discard else []
    return Discard(select=select, rules=rules, least=max(2, selection.best)) if rules else select


def figures(config: TextConfig, groups: Sequence[Group], selection: Selection) -> dict[str, float]:
    """Nothing beside the tuner's numbers."""
    return {}


def make_tuner(config: TextConfig, progress: Progress | None = None, *, index: int = 1) -> Any:
    """The tuner of round `index`; 0 is the supervised warm-up."""
    from .tuner import TextTuner

    tuning = config.tuning
    return TextTuner(
        steps=tuning.steps if index else tuning.example_steps,
        batch_size=tuning.batch_size,
        learning_rate=tuning.learning_rate * tuning.learning_rate_decay ** max(0, index - 1),
        gradient_accumulation=tuning.gradient_accumulation,
        max_grad_norm=tuning.max_grad_norm,
        warmup_steps=tuning.warmup_steps,
        progress=progress,
    )


def sample_tracked(config: TextConfig, policy: TextPolicy) -> list[Sample]:
    """Nothing: trackers are shown pictures, and the texts lie in the report."""
    return []


def sample(
    config: TextConfig, policy: TextPolicy, prompt: str, seeds: Sequence[int], *, base: bool, changes: Mapping[str, Any]
) -> list[Sample]:
    """As the user samples, but for `changes`, by the names of `TextSettings`."""
    settings = replace(user_settings(config, policy), **changes)
    draws = [Draw(Prompt(prompt), k, seed) for k, seed in enumerate(seeds)]
    with policy.base() if base else nullcontext():
        return policy.generate(draws, settings=settings)


def make_codec() -> Any:
    """How samples lie on disk."""
    from .codec import TextCodec

    return TextCodec()


def round_draws(config: TextConfig, policy: TextPolicy, index: int) -> list[Draw]:
    """The requests of a round by its index."""
    return draw_round(
        data.train_prompts(config),
        index=index,
        seed=config.seed,
        per_round=config.prompts.per_round,
        k=config.sampling.samples_per_prompt,
        groups_per_prompt=config.sampling.groups_per_prompt,
    )


# --- what looks at the result -----------------------------------------------------------------------------------------


def make_guard(config: TextConfig, policy: TextPolicy, rewards: Sequence[Reward], store: RunFolder) -> Guard | None:
    """What looks at the run's rounds, at the user's settings; None where the settings have none."""
    from ..core.loop import score
    from .rewards import ExactAnswer

    watch = watch_of(config)
    if watch is None:
        return None
    if watch.model == EXACT:
        reward: Reward = ExactAnswer(data.truths_of(config))
    else:
        reward = _classifier(config, watch.model, config.guard.label, watch.reward)
    settings = user_settings(config, policy)

    def look(draws: Sequence[Draw]) -> tuple[list[float], list[float]]:
        samples = policy.generate(draws, settings=settings)
        return [scored.scores[watch.reward] for scored in score(samples, [reward])], distances_within(samples)

    return Guard(watch=watch, measure=look, policy=policy, store=store)


def user_settings(config: TextConfig, policy: TextPolicy) -> TextSettings:
    """How texts are written for the user, the guard and the evaluation: as candidates are, but for the temperature."""
    return replace(policy.settings, temperature=config.evaluation.temperature or config.sampling.temperature)


def run_evaluation(config: TextConfig, policy: TextPolicy, rewards: Sequence[Reward], folder: Path) -> dict[str, Any]:
    """Before and after, on the evaluation's own seeds, and the judges' curve over the rounds."""
    from .evaluation import Plan, evaluate_texts
    from .judges import make_judges

    rows = data.evaluated(config)
    texts = data.references(config.prompts.reference) if config.prompts.reference else {}
    plan = Plan(
        prompts=data.prompts_of(rows),
        samples=config.evaluation.samples,
        sampling=user_settings(config, policy),
        references={
            name: [policy.completion(row["prompt"], row["completion"]) for row in some] for name, some in texts.items()
        },
        asked=config.evaluation.model_dump(),
        seed=config.seed,
    )
    return evaluate_texts(policy, rewards, make_judges(config, rows), plan, run=folder.parent)


def is_evaluated(config: TextConfig, result: Mapping[str, Any]) -> bool:
    """Whether this evaluation is the one that the settings ask for."""
    return result.get("asked") == config.evaluation.model_dump()


def show_evaluation(console: Any, result: dict[str, Any]) -> None:
    from .console import show_evaluation as show

    show(console, result)
