"""Maximum likelihood on the winners' completions: the last step of a RAFT round (arXiv:2304.06767, algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

import torch

from ..core.records import Winner
from ..crew import Crew, in_parts
from ..room import Room
from ..skips import Skips
from ..tuning_state import TuningState, learned
from .log_prob import log_probs
from .policy import TextPolicy

NEGLIGIBLE = 1e-6
"""A winner of a smaller share of the mean weight would cost its forward pass and teach nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTuner:
    """Trains the policy's adapter in place; it satisfies `core.loop.Tuner`.

    steps: of AdamW. batch_size: winners a forward pass; gradient_accumulation: forward passes a step.
    learning_rate: after `warmup_steps` of linear warm-up it is constant. max_grad_norm: gradient clipping.
    progress: called with ("tune", step, steps).
    """

    steps: int
    batch_size: int
    learning_rate: float
    gradient_accumulation: int = 1
    max_grad_norm: float = 1.0
    warmup_steps: int = 0
    progress: Callable[[str, int, int], None] | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "gradient_accumulation"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        for name in ("learning_rate", "max_grad_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be a finite number above 0")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps is {self.warmup_steps}; it must be 0 or more")

    def __call__(self, policy: TextPolicy, winners: Sequence[Winner], *, seed: int) -> dict[str, float]:
        """The same winners and seed give the same weights. Every winner is used equally often, give or take one.

        The loss of a step is the sum of weight x minus log p over its completions' tokens, divided by their number:
        how a step is split into forward passes changes nothing. Prompt and padding have no loss.
        Returns the mean "loss" and the mean "grad_norm" (before clipping) over the steps.
        A step whose loss or gradient is not finite is left out and counted in "skipped". A pass that the device has no
        memory for is split.
        Raises ValueError for winners that it cannot learn from, `Diverged` when three steps in a row were left out.
        """
        usable = _usable(winners)
        order = _epochs(len(usable), torch.Generator("cpu").manual_seed(seed))
        learner = self.learner(policy, ())
        optimizer = torch.optim.AdamW(learner.parameters, lr=self.learning_rate, weight_decay=0.0)
        state = TuningState(
            policy.shelf,
            policy.trained.parameters(),
            optimizer,
            made_of=[seed, repr(replace(self, progress=None)), learned(winners)],
            steps=self.steps,
        )
        before, (losses, norms, left_out) = state.restore(3)
        for _ in range(before * self.batch_size * self.gradient_accumulation):
            next(order)
        skips = Skips.of(left_out)
        with policy.tuned():
            for step in range(before + 1, self.steps + 1):
                for group in optimizer.param_groups:
                    group["lr"] = self.learning_rate * min(1.0, step / max(1, self.warmup_steps))
                drawn = [usable[i] for i in islice(order, self.batch_size * self.gradient_accumulation)]
                loss = norm = self._gradients(policy.crew, learner, drawn)
                if math.isfinite(loss):
                    norm = torch.nn.utils.clip_grad_norm_(learner.parameters, self.max_grad_norm).item()
                if math.isfinite(norm):
                    losses.append(loss)
                    norms.append(norm)
                    skips.reset()
                    optimizer.step()
                else:
                    skips.add(step, "gradient" if math.isfinite(loss) else "loss")
                optimizer.zero_grad()
                state.done(step, (losses, norms, skips.numbers), self.progress)
        skipped = skips.figures(self.steps)
        return {"loss": sum(losses) / len(losses), "grad_norm": sum(norms) / len(norms), **skipped}

    def learner(self, policy: TextPolicy, _: object) -> Learner:
        """What computes the gradients of completions, in any process of a run."""
        return Learner(self, policy)

    def _gradients(self, crew: Crew | None, learner: Learner, drawn: Sequence[Winner]) -> float:
        """The gradients of one step's loss, and that loss; nan where a part of it is not finite."""
        tokens = sum(len(winner.sample.data.ids) for winner in drawn)
        if crew is None:
            return learner.gradients(drawn, tokens, 1.0)[0]
        how = replace(self, progress=None), (), tokens, 1.0
        return sum(loss for (loss,) in crew.gradients(in_parts(drawn, crew.size), how, learner.parameters))


class Learner:
    """Forward and backward passes of a tuning, as large as the device has memory for. parameters: those that learn."""

    def __init__(self, tuner: TextTuner, policy: TextPolicy) -> None:
        self._tuner, self._policy = tuner, policy
        self.parameters = list(policy.trained.parameters().values())
        self._room = Room("tuning on", noun="texts", setting="tuning.batch_size")

    def gradients(self, drawn: Sequence[Winner], tokens: int, scale: float) -> tuple[float]:
        """Leave the gradients of these completions' part of a step's loss, times `scale`, in the parameters.

        tokens: of the completions of the whole step. Returns the part's share of the loss; nan where it is not finite.
        """
        return (self._room.fitted(self._tuner.batch_size, partial(self._backward, drawn, tokens, scale)),)

    def _backward(self, drawn: Sequence[Winner], tokens: int, scale: float, size: int) -> float:
        """In forward passes of `size` completions. A step that failed before starts anew."""
        for parameter in self.parameters:
            parameter.grad = None
        policy, total = self._policy, 0.0
        for start in range(0, len(drawn), size):
            part = drawn[start : start + size]
            told, _ = log_probs(policy.model, [winner.sample.data for winner in part], pad=policy.pad)
            weights = torch.tensor([winner.weight for winner in part], device=told.device)
            loss = -(told.sum(dim=1) * weights).sum() / tokens
            if not math.isfinite(loss.item()):
                return math.nan
            (loss * scale).backward()
            total += loss.item()
        return total


def _usable(winners: Sequence[Winner]) -> list[Winner]:
    """Those whose weight says anything, scaled to mean 1."""
    for winner in winners:
        if not 0 <= winner.weight < math.inf:
            raise ValueError(f"winner {winner.sample.id} has weight {winner.weight}; it must be finite, 0 or more")
    total = math.fsum(winner.weight for winner in winners)
    usable = [winner for winner in winners if winner.weight > NEGLIGIBLE * total / len(winners)]
    if not usable:
        raise ValueError("there is no winner with a weight above 0 to learn from")
    mean = math.fsum(winner.weight for winner in usable) / len(usable)
    return [replace(winner, weight=winner.weight / mean) for winner in usable]


def _epochs(count: int, generator: torch.Generator) -> Iterator[int]:
    while True:
        yield from torch.randperm(count, generator=generator).tolist()
