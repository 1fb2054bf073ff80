"""The guard of a run: it looks at the same draws before the first round and after each, and judges what it sees.

`core.guard` holds the rule. Nothing here imports torch before a picture is looked at, and nothing here ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from .checks import HELD_OUT_PREFIX, POCKET
from .core.config import Config
from .core.guard import Look, Verdict, guard_draws, judge
from .core.looks import Ending, adapter_of, read_look, write_ending
from .core.loop import score
from .core.records import Draw, Sample
from .core.store import RunFolder
from .rewards import PREFERENCES

CARRIED = "pocket-held-out"
"""The tower that guards the carried model where the settings name none."""
Measure = Callable[[Sequence[Draw]], tuple[Sequence[float], Sequence[float]]]
"""(scores, distances) of the present policy on these draws; see `core.guard.Look`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """What every look of a run is made of. model: the tower or the preference model that judges; judge: the same with
    all that may change in a run; reward: its score's name; others: the ids of the prompts that are not trained."""

    model: str
    judge: str
    reward: str
    draws: tuple[Draw, ...]
    others: frozenset[str]

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(draw.id for draw in self.draws)

    def made(self, look: Look) -> bool:
        """Whether this look is one of the run's."""
        return (look.judge, look.reward, look.draws) == (self.judge, self.reward, self.ids)


def held_out_score(model: str) -> str:
    """The name of the first score of a tower or a preference model that never ranks."""
    return HELD_OUT_PREFIX + (model if model in PREFERENCES else "text_image")


def watch_of(config: Config) -> Watch | None:
    """None where the guard is off, and where no reward is left for it."""
    guard, rewards = config.guard, config.rewards
    model = guard.reward or rewards.held_out
    if model is None and config.model == POCKET and rewards.scorer == POCKET:
        model = CARRIED
    if model is None or not guard.enabled:
        return None
    strength, others = config.sampling.lora_scale, config.held_out_prompts()
    return Watch(
        model=model,
        judge=model if strength == 1 else f"{model}, LoRA at {strength:g}",
        reward=held_out_score(model),
        draws=tuple(guard_draws(config.train_prompts(), others, guard.pairs, seed=config.seed)),
        others=frozenset(prompt.id for prompt in others),
    )


def why_off(config: Config) -> str | None:
    """What to say of a run whose guard is on and has nothing to judge by."""
    if watch_of(config) is not None or not config.guard.enabled:
        return None
    return (
        "no guard watches this run, for it has no reward that does not rank: set rewards.held_out or guard.reward to a "
        "CLIP tower of its own, such as ViT-B-32:laion2b_s34b_b79k"
    )


def verdict_of(config: Config, root: Path, done: int) -> Verdict | None:
    """The judgement of the last of `done` rounds, from the looks that lie in `root`; None where one is missing."""
    return last_verdict(watch_of(config), config.guard, root, rounds=config.rounds, done=done)


class Limits(Protocol):
    """What a guard lets pass; see `core.guard.judge`."""

    @property
    def max_drop(self) -> float: ...
    @property
    def min_diversity(self) -> float: ...
    @property
    def max_forgotten(self) -> float: ...


def last_verdict(watch: Watch | None, limits: Limits, root: Path, *, rounds: int, done: int) -> Verdict | None:
    """The judgement of the last of `done` rounds of `rounds`; None without a watch, or where one of its looks is
    missing."""
    looks = looks_of(watch, root, done)
    if watch is None or not done or len(looks) <= done:
        return None
    return judge(
        looks,
        rounds=rounds,
        max_drop=limits.max_drop,
        min_diversity=limits.min_diversity,
        max_forgotten=limits.max_forgotten,
        others=watch.others,
    )


def looks_of(watch: Watch | None, root: Path, done: int) -> list[Look]:
    """What this watch saw at the start and after each of `done` rounds, as far as it was stored."""
    found = [read_look(root, index) for index in range(done + 1)] if watch else []
    return [look for look in found if look is not None and watch is not None and watch.made(look)]


def measure(
    draws: Sequence[Draw], *, generate: Callable[[Sequence[Draw]], Sequence[Sample]], reward: Any, name: str
) -> tuple[list[float], list[float]]:
    """The scores of these draws by `name`, and each picture's mean distance to the others of its prompt, by the
    embeddings of the same tower.

    reward: a `Reward` with `embed_images`.
    """
    from .rewards.clip import mean_distances

    samples = generate(draws)
    scores = [scored.scores[name] for scored in score(samples, [reward])]
    distances = [0.0] * len(draws)
    for prompt in dict.fromkeys(draw.prompt.id for draw in draws):
        places = [place for place, draw in enumerate(draws) if draw.prompt.id == prompt]
        embeddings = reward.embed_images([samples[place].data.image for place in places])
        for place, distance in zip(places, mean_distances(embeddings), strict=True):
            distances[place] = distance
    return scores, distances


class Guard:
    """Looks, and keeps what it saw in the run folder, so that a resumed run judges the same.

    watch: what to look at; measure: how. policy: stands where the run starts until `catch_up` has been called.
    """

    def __init__(self, *, watch: Watch, measure: Measure, policy: Any, store: RunFolder) -> None:
        self._watch, self._measure, self._policy, self._store = watch, measure, policy, store

    def catch_up(self) -> None:
        """Look at the start and at every complete round that was not looked at as the settings say now."""
        for index in range(self._store.completed() + 1):
            look = read_look(self._store.root, index)
            if look is not None and self._watch.made(look):
                continue
            adapter = adapter_of(self._store.root, index)
            if index:
                self._policy.load(adapter)
            else:
                adapter.mkdir(parents=True, exist_ok=True)
                self._policy.save(adapter)
            self.look(index)

    def look(self, index: int) -> Look:
        """Measure the policy as it stands after round `index`, and store it."""
        scores, distances = self._measure(self._watch.draws)
        look = Look(
            round=index,
            judge=self._watch.judge,
            reward=self._watch.reward,
            draws=self._watch.ids,
            scores=tuple(scores),
            distances=tuple(distances),
        )
        self._store.save_look(look)
        return look

    def finish(self, verdict: Verdict) -> None:
        """Set the policy to the round that is kept, and write down how the run ended."""
        root = self._store.root
        if verdict.keep != verdict.look.round:
            self._policy.load(adapter_of(root, verdict.keep))
        ending = Ending(after=verdict.look.round, stopped=verdict.fired, keep=verdict.keep, sentence=verdict.sentence)
        write_ending(root, ending)
