"""RAFT (Dong et al. 2023, arXiv:2304.06767, algorithm 1): sample K a prompt, rank, finetune on the best, repeat.

draw -> policy.generate -> score -> select -> tune -> store -> (next round)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, Protocol

from .records import Draw, Group, Round, Sample, Scored, Selection, Winner, derive_seed
from .select import aged

Reward = Callable[[Sequence[Sample]], Mapping[str, Sequence[float]]]
"""Scores of a batch of samples by reward name, one finite number a sample, higher is better."""

Selector = Callable[[Sequence[Group]], Selection]
"""The ranking keys of all candidates and the winners among them."""


class Policy(Protocol):
    """The model that samples. It owns its weights: nobody else can hold a stale copy."""

    def generate(self, draws: Sequence[Draw]) -> list[Sample]: ...
    def save(self, folder: Path) -> None: ...
    def load(self, folder: Path) -> None: ...


class Tuner(Protocol):
    """Maximum likelihood on the winners, in place. Returns figures such as the mean loss."""

    def __call__(self, policy: Any, winners: Sequence[Winner], *, seed: int) -> Mapping[str, float]: ...


class Store(Protocol):
    """Where finished rounds live. `resume` loads the last round's adapter into the policy; rounds that are too old to
    be learned again may come without their winners."""

    def resume(self, policy: Any) -> list[Round]: ...
    def save(self, round_: Round, policy: Any) -> None: ...


def raft(
    policy: Policy,
    rewards: Sequence[Reward],
    select: Selector,
    tune: Tuner,
    store: Store,
    draws: Callable[[int], Sequence[Draw]],
    *,
    rounds: int,
    seed: int,
    replay: int | None = None,
    replay_decay: float = 1.0,
) -> Iterator[Round]:
    """Yield each new Round once it is safely stored; a run that was interrupted goes on where it stopped.

    draws: the N = P * K requests of a round, by its index.
    rounds: the last round's index. Rounds that the store already holds are not repeated.
    replay: how many rounds before the present one lend their winners to the tuning; None means all of them, 0 none.
    replay_decay: an earlier winner's weight is multiplied by this for every round that it is old.
    """
    done = store.resume(policy)
    recent = [round_.selection.winners for round_ in done]
    for index in range(len(done) + 1, rounds + 1):
        groups = group(score(policy.generate(draws(index)), rewards))
        selection = select(groups)
        recent = [*recent, selection.winners][0 if replay is None else -1 - replay :]
        figures = tune(policy, aged(recent, replay_decay), seed=derive_seed(seed, "tune", index))
        round_ = Round(index, groups, selection, figures)
        store.save(round_, policy)
        yield round_


def score(samples: Sequence[Sample], rewards: Sequence[Reward]) -> list[Scored]:
    """Every reward's raw score of every sample. Raises ValueError for two rewards of one name, for a wrong number
    of scores, and for a score that is no finite number, naming its sample."""
    scores: list[dict[str, float]] = [{} for _ in samples]
    for reward in rewards:
        for name, values in reward(samples).items():
            if any(name in row for row in scores):
                raise ValueError(f"two rewards are named {name!r}, so one would replace the other; rename one")
            if len(values) != len(samples):
                raise ValueError(
                    f"reward {name!r} returned {len(values)} scores for {len(samples)} samples "
                    f"(first sample: {samples[0].id}); it must return one number for each, in order"
                )
            for sample, row, value in zip(samples, scores, values, strict=True):
                if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
                    raise ValueError(
                        f"reward {name!r} scored sample {sample.id} ({sample.prompt.text!r}) as {value!r}; "
                        "a score must be a finite number: mend the reward, no sample is skipped or counted as 0"
                    )
                row[name] = float(value)
    return [Scored(sample, row) for sample, row in zip(samples, scores, strict=True)]


def group(scored: Sequence[Scored]) -> tuple[Group, ...]:
    """Consecutive candidates of one draw group: the same prompt and the same block of k (see `Draw.group`)."""
    groups: dict[tuple[str, int], list[Scored]] = {}
    for item in scored:
        groups.setdefault((item.sample.prompt.id, item.sample.draw.group), []).append(item)
    return tuple(Group(members[0].sample.prompt, tuple(members)) for members in groups.values())
