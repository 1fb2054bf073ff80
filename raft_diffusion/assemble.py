"""From a configuration to the concrete objects of a run that makes pictures; a `modality.Modality`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from .checks import check as check
from .checks import published, ranks_by_log_ratio, ranks_by_person
from .core import halving
from .core.choices import select_chosen
from .core.config import Config
from .core.guard import guard_draws
from .core.loop import Reward
from .core.prompts import draw_round
from .core.records import Draw, Group, Progress, Prompt, Sample, Selection
from .core.select import Select
from .core.store import RunFolder
from .guarding import Guard, held_out_score, measure, watch_of
from .guarding import verdict_of as verdict_of
from .process import pick_device
from .process import prepare as prepare
from .scorers import make_held_out, make_scorers
from .sources import shared_out, with_sources
from .tracking import TRACKED

NOUN = "images"
ADAPTER = "pytorch_lora_weights.safetensors"
MAY_CHANGE = (
    "rounds",
    "stop_when_flat",
    "device",
    "threads",
    "trackers",
    "guard",
    "sampling.batch_size",
    "sampling.lora_scale",
    "rewards.timeout",
    "tuning.gradient_checkpointing",
    "evaluation",
)


def outlook(config: Config) -> list[str]:
    """What to say before a run: what it makes and takes, and what is worth a note."""
    from .guarding import why_off
    from .planning.forecast import forecast, this_machine

    result, unwatched = forecast(config, machine=this_machine()), why_off(config)
    notes = [*result.notes, *([unwatched] if unwatched else [])]
    return [result.sentence(), *(f"note: {note}" for note in notes)]


def held_out_name(config: Config) -> str | None:
    """The score of each candidate that never ranks, if there is one."""
    return held_out_score(config.rewards.held_out) if config.rewards.held_out else None


def make_policy(config: Config, progress: Progress | None = None, *, components: Any = None) -> Any:
    """The model of the configuration with the LoRA that learns, set to collect candidates. components: see
    `make_base`."""
    policy = make_base(config, progress, components=components)
    tuning = config.tuning
    policy.add_adapter(
        rank=tuning.rank,
        alpha=tuning.alpha,
        targets=tuning.targets,
        text_encoder=tuning.text_encoder,
        seed=config.seed,
        start=Path(config.lora) if config.lora else None,
    )
    return policy


def make_base(config: Config, progress: Progress | None = None, *, components: Any = None) -> Any:
    """The model of the configuration without any LoRA. components: its frozen parts, where they need no loading."""
    from .diffusion import DiffusionPolicy

    return DiffusionPolicy(
        load_components(config) if components is None else components,
        settings=collecting(config),
        clip_skip=config.sampling.clip_skip,
        compiled=config.sampling.compile,
        progress=progress,
    )


def load_components(config: Config) -> Any:
    """The frozen parts of the configuration's model."""
    from .diffusion import choose_dtype, load

    device = pick_device(config.device)
    return load(
        config.model,
        device=device,
        dtype=choose_dtype(config.precision, device),
        vae=config.vae,
        revision=config.revision,
        variant=config.variant,
        prediction_type=config.prediction_type,
        tiny_decoder=config.sampling.tiny_decoder,
    )


def user_settings(config: Config) -> Any:
    """How the user samples, and how the evaluation is made."""
    from .diffusion import Settings

    sampling = config.sampling
    return Settings(
        width=sampling.width,
        height=sampling.height,
        num_inference_steps=sampling.num_inference_steps,
        guidance_scale=sampling.guidance_scale,
        scheduler=sampling.scheduler,
        batch_size=sampling.batch_size,
        guidance_interval=(sampling.guidance_interval[0], sampling.guidance_interval[1]),
    )


def collecting(config: Config, index: int = 1) -> Any:
    """How the candidates of round `index` are collected: as the user samples, but for the guidance, the noise and a
    tiny decoder where they are set."""
    sampling, settings = config.sampling, user_settings(config)
    return replace(
        settings,
        guidance_scale=config.collect_guidance(index),
        eta=sampling.eta,
        noise_scale=sampling.noise_scale,
        tiny_decoder=sampling.tiny_decoder is not None,
    )


def make_rewards(config: Config) -> list[Reward]:
    """What scores candidates: what ranks, and the held-out one, which is stored beside and never ranks. What needs the
    policy is left to `run_rewards`."""
    settings = config.rewards
    ranking = [*published(settings), *settings.custom]
    rewards = make_scorers(
        ranking,
        scorer=settings.scorer,
        device=config.device,
        sources=settings.sources,
        timeout=settings.timeout,
    )
    if settings.held_out:
        rewards.append(make_held_out(config, settings.held_out))
    return rewards


def make_guard(config: Config, policy: Any, rewards: Sequence[Reward], store: RunFolder) -> Guard | None:
    """What looks at the run's rounds, at the user's settings; None where the settings have none.

    rewards: those of `make_rewards`, whose held-out one is used again. policy: with its adapter as the run starts.
    """
    from .rewards.clip import ClipTower

    watch = watch_of(config)
    if watch is None:
        return None
    name, model = watch.reward, watch.model
    loaded = [reward for reward in rewards if isinstance(reward, ClipTower) and reward.names[0] == name]
    reward = loaded[0] if loaded and model == config.rewards.held_out else make_held_out(config, model)
    settings = user_settings(config)

    def look(draws: Sequence[Draw]) -> tuple[list[float], list[float]]:
        with policy.at_strength(config.sampling.lora_scale):
            return measure(draws, generate=partial(policy.generate, settings=settings), reward=reward, name=name)

    return Guard(watch=watch, measure=look, policy=policy, store=store)


def run_rewards(config: Config, policy: Any) -> list[Reward]:
    """Everything that scores the candidates of a run, the policy itself too where the settings say so."""
    rewards = make_rewards(config)
    if ranks_by_log_ratio(config.rewards):
        from .diffusion.log_ratio import LogRatio

        rewards.append(LogRatio(policy))
    if config.sampling.prune:
        from .prune import early_reward

        rewards.append(early_reward(config.sampling.stops[0]))
    return rewards


def sample_tracked(config: Config, policy: Any) -> list[Sample]:
    """The same few pictures whenever asked for, as the user would sample them, of the guard's prompts and seeds."""
    draws = guard_draws(config.train_prompts(), config.held_out_prompts(), TRACKED, seed=config.seed)
    with policy.at_strength(config.sampling.lora_scale):
        return policy.generate(draws, settings=user_settings(config))


def sample(
    config: Config, policy: Any, prompt: str, seeds: Sequence[int], *, base: bool, changes: Mapping[str, Any]
) -> list[Sample]:
    """As the user samples, but for `changes`, by the names of `Settings`."""
    settings = replace(user_settings(config), **changes)
    words = Prompt(prompt, negative=config.sampling.negative_prompt)
    draws = [Draw(words, k, seed) for k, seed in enumerate(seeds)]
    with policy.base() if base else policy.at_strength(config.sampling.lora_scale):
        return policy.generate(draws, settings=settings)


def make_select(config: Config) -> Select:
    from .distance import picture_distance

    selection = config.selection
    if ranks_by_person(config.rewards.weights):
        return select_chosen(selection.best)
    return Select(
        weights=config.rewards.weights,
        method=config.rewards.method,
        best=selection.best,
        top_fraction=selection.top_fraction,
        top_count=selection.top_count,
        tau=selection.tau,
        min_spread=selection.min_spread,
        diversity=selection.diversity,
        distance=picture_distance if selection.diversity else None,
    )


def make_tuner(config: Config, progress: Progress | None = None, *, index: int = 1) -> Any:
    """The tuner of round `index`: the later the round, the smaller the steps, where the learning rate decays."""
    from .diffusion import DiffusionTuner

    tuning = config.tuning
    return DiffusionTuner(
        steps=tuning.steps,
        batch_size=tuning.batch_size,
        learning_rate=tuning.learning_rate * tuning.learning_rate_decay ** (index - 1),
        gradient_accumulation=tuning.gradient_accumulation,
        snr_gamma=tuning.snr_gamma,
        condition_drop=tuning.condition_drop,
        max_grad_norm=tuning.max_grad_norm,
        mixed_precision=tuning.mixed_precision,
        warmup_steps=tuning.warmup_steps,
        anti_drift=tuning.anti_drift,
        restart=tuning.restart,
        gradient_checkpointing=tuning.gradient_checkpointing,
        progress=progress,
    )


def make_sampler(
    config: Config,
    policy: Any,
    progress: Progress | None = None,
    *,
    rewards: Sequence[Reward] = (),
    root: Path | None = None,
) -> Any:
    """What candidates come from: the policy that learns, the base where the settings ask for it, and other sources.

    rewards: those of `run_rewards`, which pruning may need. root: the run's folder, whose rounds say whether it goes
    on.
    """
    from .prune import pruned

    share = config.sampling.base_share
    own = pruned(config, policy, rewards, root=root, progress=progress) if config.sampling.prune else policy
    if not share:
        return with_sources(config, own, policy, progress)
    from .fresh import FreshPolicy

    def from_base(draws: Sequence[Draw]) -> list[Sample]:
        with policy.base():
            return own.generate(draws, settings=collecting(config))

    return with_sources(config, FreshPolicy(own, from_base=from_base, share=share), policy, progress)


def figures(config: Config, groups: Sequence[Group], selection: Selection) -> dict[str, float]:
    """What a round's numbers say beside the tuner's: how its contests were pruned, if that is asked for."""
    sampling = config.sampling
    if not sampling.prune:
        return {}
    return halving.figures(groups, selection.keys, k=sampling.samples_per_prompt, at=sampling.stops[0])


def begin(config: Config, policy: Any, folder: Path, progress: Progress | None = None) -> None:
    """Nothing comes before the first round."""


def make_codec() -> Any:
    """How samples lie on disk."""
    from .diffusion import PictureCodec

    return PictureCodec()


def round_draws(config: Config, policy: Any, index: int) -> list[Draw]:
    """The requests of a round. They are asked for right before they are sampled, so the guidance of the round is set
    here."""
    policy.settings = collecting(config, index)
    return make_draws(config, index)


def make_draws(config: Config, index: int) -> list[Draw]:
    """The requests of a round by its index."""
    drawn = draw_round(
        config.train_prompts(),
        index=index,
        seed=config.seed,
        per_round=config.prompts.per_round,
        k=config.sampling.samples_per_prompt,
        groups_per_prompt=config.sampling.groups_per_prompt,
    )
    return shared_out(drawn, config, index)


def run_evaluation(config: Config, policy: Any, rewards: Sequence[Reward], folder: Path) -> dict[str, Any]:
    """Before and after, on the evaluation's own seeds. The carried model has a judge and a true world."""
    from .diffusion import before_after
    from .evaluate import Plan, evaluate
    from .rewards.clip import ClipTower, diversity
    from .scales import make_judge

    # Where a person ranks, nobody ranks the evaluation's pictures: the best of 1 is shown.
    by_person = ranks_by_person(config.rewards.weights)
    plan = Plan(
        target=config.train_prompts(),
        ood=config.held_out_prompts(),
        pairs=config.evaluation.pairs,
        ood_pairs=config.evaluation.ood_pairs,
        best_of=1 if by_person else config.evaluation.best_of,
        seed=config.seed,
        weights={} if by_person else config.rewards.weights,
        method=config.rewards.method,
    )
    judge, truth = make_judge(config)
    settings = user_settings(config)
    towers = [reward for reward in rewards if isinstance(reward, ClipTower)]
    with policy.at_strength(config.sampling.lora_scale):
        result = evaluate(
            policy,
            partial(policy.generate, settings=settings),
            rewards,
            plan,
            folder=folder,
            judge=judge,
            diversity=diversity,
            embed=towers[-1].embed_images if towers else None,
            truth=truth,
            settings={
                "guidance_scale": settings.guidance_scale,
                "num_inference_steps": settings.num_inference_steps,
                "scheduler": settings.scheduler,
                "width": settings.width,
                "height": settings.height,
                "best_of": plan.best_of,
                "lora_scale": config.sampling.lora_scale,
            },
        )
    before_after(folder, result["examples"][:16], folder.parent / "before_after.png")
    return result


def is_evaluated(config: Config, result: Mapping[str, Any]) -> bool:
    """Whether this evaluation is the one that the configuration asks for."""
    settings = result.get("settings", {})
    strength = settings.get("lora_scale", 1.0)  # an older version knew no other
    wanted = config.evaluation.model_dump(exclude={"best_of"} if ranks_by_person(config.rewards.weights) else None)
    same = all(settings.get(key) == value for key, value in wanted.items())
    return same and strength == config.sampling.lora_scale and "best_of" in settings


def show_evaluation(console: Any, result: dict[str, Any]) -> None:
    from .terminal import show_evaluation as show

    show(console, result)
