"""NFE: how often a run evaluates its UNet. It is the cost of a run on any machine, so that recipes compare by it."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.config import Config
from .forecast import guided_shares, images_per_round, per_candidate, unet_calls
from .networks import find_networks


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
