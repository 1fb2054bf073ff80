"""NFE: how often a run evaluates its UNet. It is the cost of a run on any machine, so that recipes compare by it.

Legend: N candidates a round, over all its prompts and groups.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..checks import ranks_by_log_ratio
from ..core.config import Config
from ..core.halving import guided_calls, phases, preview_interval, spared_contests
from ..guarding import watch_of
from ..rewards import LOG_RATIO_LEVELS
from ..sources import own_share
from ..webui import find_scheduler
from .networks import Networks, find_networks

SECOND_ORDER = ("HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluations:
    """Evaluations of the UNet on one picture each. sampling: of all candidates, two a step where guidance is on, as far
    as they were sampled.
    tuning: forward passes of the training, each but those of the anti-drift loss with its backward pass."""

    sampling: int
    tuning: int


def evaluations(config: Config, rounds: int) -> Evaluations:
    """What the first `rounds` rounds cost; the pictures of the guard and of an evaluation are not counted."""
    calls = unet_calls(config.sampling.scheduler, config.sampling.num_inference_steps, find_networks(config.model))
    each = sum(per_candidate(config, calls, share) for share in guided_shares(config)[:rounds])
    tuning = config.tuning
    seen = tuning.steps * tuning.batch_size * tuning.gradient_accumulation
    return Evaluations(
        sampling=round(images_per_round(config) * each),
        tuning=rounds * seen * (2 if tuning.anti_drift else 1),
    )


def guided_shares(config: Config) -> list[float]:
    """For each round the share of its candidates that are collected with guidance, which takes the UNet twice. Those
    of the base are guided as in round 1."""
    fresh = config.sampling.base_share
    first, *_ = guided = [config.collect_guidance(index) > 1 for index in range(1, config.rounds + 1)]
    return [fresh * first + (1 - fresh) * now for now in guided]


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the sampling: which share of the candidates sees it, in how many calls of the UNet on one row each and
    in how many on two."""

    alive: float
    once: int
    twice: int


def stages(config: Config, calls: int, *, guided: bool) -> list[Stage]:
    """What candidates go through in a round that is guided, or not: one stage where nothing is pruned."""
    sampling, k = config.sampling, config.sampling.samples_per_prompt
    prunes = sampling.prune is not None and (guided or sampling.prune != "guidance")
    at, keep = sampling.stops if prunes else ((), ())
    preview = _preview_calls(config) if sampling.prune == "preview" else None
    found = []
    for phase in phases(calls, k, at=at, keep=keep, preview=preview):
        interval = sampling.guidance_interval
        within = guided_calls(phase.end, preview_interval(interval)) if phase.preview else guided_calls(calls, interval)
        twice = len(set(within) & set(range(phase.first, phase.end))) if guided else 0
        alive = phase.alive + (_spared(config) if found else 0)
        found.append(Stage(alive / k, phase.end - phase.first - twice, twice))
    return found


def _preview_calls(config: Config) -> int:
    sampling = config.sampling
    steps = max(1, round(sampling.stops[0][0] * sampling.num_inference_steps))
    return unet_calls(sampling.scheduler, steps, find_networks(config.model))


def _spared(config: Config) -> float:
    """Candidates that are spared by lot, a contest."""
    contests = images_per_round(config) // config.sampling.samples_per_prompt
    fresh = int(contests * config.sampling.base_share)
    return (spared_contests(fresh) + spared_contests(contests - fresh)) / contests


def per_candidate(config: Config, calls: int, share: float) -> float:
    """Evaluations of the UNet for a candidate, as a mean. share: of those that are guided."""

    def mean(guided: bool) -> float:
        gone = stages(config, calls, guided=guided)
        sampled = sum(stage.alive * (stage.once + 2 * stage.twice) for stage in gone)
        return own_share(config) * sampled + gone[-1].alive * log_ratio_looks(config)

    return share * mean(True) + (1 - share) * mean(False)


def log_ratio_looks(config: Config) -> int:
    """How often the UNet looks at a finished picture to score it, with the adapter and without."""
    return 2 * LOG_RATIO_LEVELS * ranks_by_log_ratio(config.rewards)


def images_per_round(config: Config) -> int:
    """N."""
    prompts = config.prompts.per_round or len(config.prompts.train)
    return prompts * config.sampling.groups_per_prompt * config.sampling.samples_per_prompt


def look_images(config: Config) -> int:
    """Pictures that the guard looks at before the first round and after each."""
    watch = watch_of(config)
    return 0 if watch is None else len(watch.draws)


def sampling_rows(config: Config) -> int:
    """The rows of a full batch of candidates in the UNet: a guided picture takes two."""
    own = max(1, round(own_share(config) * images_per_round(config)))  # one where none is: a measurement needs it
    return min(config.sampling.batch_size, own) * (2 if any(guided_shares(config)) else 1)


def unet_calls(scheduler: str, steps: int, networks: Networks) -> int:
    """How often the UNet runs for one picture, guidance left out: once a step, but some samplers look twice.

    Heun's and DPM2's second look is left out at the last step; PNDM starts with four steps of three more looks
    (Liu et al. 2022, arXiv:2202.09778), or with one more where the model's configuration skips those.
    """
    found = find_scheduler(scheduler)
    if found.kind in SECOND_ORDER:
        return 2 * steps - 1
    if found.kind == "PNDMScheduler":
        skips = {**networks.scheduler, **found.changes}.get("skip_prk_steps", False)
        return steps + (1 if skips else 9)
    return steps
