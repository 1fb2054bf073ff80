"""Fewer evaluations: a contest is halved while its candidates are still being sampled, so that the UNet goes on with
those that look best (successive halving, see `core.halving`). One of the others is always spared, by lot, so that every
round says how far the early ranking can be trusted; where it cannot, pruning ends itself.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .checks import ranks_by_log_ratio
from .core.config import Config
from .core.halving import Phase, agreement, early_name, kept, phases
from .core.loop import Reward, group, score
from .core.records import Draw, Progress, Sample
from .core.select import Method, combine
from .core.store import complete_rounds, read_metrics
from .rewards import LOG_RATIO

if TYPE_CHECKING:
    from .diffusion.partway import Partway
    from .diffusion.settings import Settings

Judge = Callable[[Sequence["Partway"], "Settings"], Mapping[str, float]]
"""How good unfinished pictures look, by sample id; higher is better within a contest."""


@dataclass(frozen=True, slots=True)
class Decision:
    """kept: the ids that went on after each stop. early: of the last of them, the score at each stop."""

    kept: list[list[str]]
    early: dict[str, list[float]]


class PrunePolicy:
    """A Policy that hands back fewer candidates than it was asked for: the survivors of each contest.

    policy: the `DiffusionPolicy` that samples. at, keep: see `core.halving.phases`. judge: ranks at each stop.
    guided: whether the judge needs guidance; rounds without any are sampled whole.
    why_off: a sentence where pruning has ended. progress: as the policy's.

    A survivor is the picture that it would have been, to rounding. Contests are taken together so that the survivors
    fill a batch. What was decided is kept on the policy's shelf, so that a run that was stopped goes on with it.
    """

    def __init__(
        self,
        policy: Any,
        *,
        at: Sequence[float],
        keep: Sequence[float],
        judge: Judge,
        guided: bool,
        why_off: Callable[[], str | None],
        progress: Progress | None = None,
    ) -> None:
        self._policy, self._at, self._keep, self._judge, self._guided = policy, at, keep, judge, guided
        self._why_off, self._progress = why_off, progress
        self._told = False

    def generate(self, draws: Sequence[Draw], settings: Settings | None = None) -> list[Sample]:
        """The survivors, in the order of the draws, each with its early scores. settings: other than the policy's."""
        how: Settings = self._policy.settings if settings is None else settings
        contests = list(_contests(draws).values())
        if not contests or not self._is_on(how):
            return self._policy.generate(draws, how)
        plan = phases(self._policy.calls(how), len(contests[0]), at=self._at, keep=self._keep)
        if len(plan) == 1:
            return self._policy.generate(draws, how)
        samples: list[Sample] = []
        each = max(1, how.batch_size // plan[-1].alive)
        done = 0
        for first in range(0, len(contests), each):
            window = [draw for contest in contests[first : first + each] for draw in contest]
            samples += self._sample(window, plan, how, lambda: self._tell(done, len(draws)))  # noqa: B023
            done += len(window)
            self._tell(done, len(draws))
        made = {sample.id: sample for sample in samples}
        return [made[draw.id] for draw in draws if draw.id in made]

    def save(self, folder: Path) -> None:
        self._policy.save(folder)

    def load(self, folder: Path) -> None:
        self._policy.load(folder)

    def _is_on(self, settings: Settings) -> bool:
        reason = self._why_off()
        if reason is not None and not self._told:
            self._told = True
            warnings.warn(reason, stacklevel=3)
        return reason is None and not (self._guided and settings.guidance_scale <= 1)

    def _tell(self, done: int, total: int) -> None:
        if self._progress:
            self._progress("sample", done, total)

    def _sample(
        self, draws: Sequence[Draw], plan: Sequence[Phase], settings: Settings, tell: Callable[[], None]
    ) -> list[Sample]:
        """The survivors of some contests. tell: called after each batch that is no result yet."""
        shelf = self._policy.shelf
        name, found, parts = "", None, {}
        if shelf:
            asked = [[draw.id, draw.group, draw.seed, draw.prompt.text, draw.prompt.negative] for draw in draws]
            name = shelf.key(["pruned", asked, self._policy.made_of(settings)])
            found = shelf.read(f"{name}.pruned")
        if found is not None:
            decision = Decision(**json.loads(found))
        else:
            parts, decision = self._halve(draws, plan, settings, None, tell)
            if shelf:
                shelf.write(f"{name}.pruned", json.dumps(asdict(decision)).encode())
        left = [draw for draw in draws if draw.id in decision.early]
        samples: list[Sample] = []

        def finish(batch: Sequence[Draw]) -> list[Sample]:
            nonlocal parts
            if not parts:  # decided before a stop: the same pictures once more, and the same ones of them
                parts, _ = self._halve(draws, plan, settings, decision, tell)
            return self._policy.finish([parts[draw.id] for draw in batch], settings)

        for batch in _batches(left, settings.batch_size):
            make = partial(finish, batch)
            samples += shelf.batch(batch, ["pruned", name], make) if shelf else make()
            tell()
        return [
            replace(sample, data=replace(sample.data, early=tuple(decision.early[sample.id]))) for sample in samples
        ]

    def _halve(
        self,
        draws: Sequence[Draw],
        plan: Sequence[Phase],
        settings: Settings,
        decision: Decision | None,
        tell: Callable[[], None],
    ) -> tuple[dict[str, Partway], Decision]:
        """(the survivors after the last stop by id, what was decided). decision: of an earlier try, to be followed."""
        parts = {part.draws[0].id: part for part in self._policy.start(draws, settings)}
        early: dict[str, list[float]] = {draw.id: [] for draw in draws}
        going: list[list[str]] = []
        spared: dict[tuple[str, int], str] = {}
        for number, (phase, after) in enumerate(pairwise(plan)):
            looked: list[Partway] = []
            for batch in _batches(list(parts.values()), settings.batch_size):
                looked += self._policy.go_on(batch, phase.end, settings)
                tell()
            parts = {part.draws[0].id: part for part in looked}
            if decision is not None:
                parts = {draw_id: part for draw_id, part in parts.items() if draw_id in decision.kept[number]}
                continue
            scores = self._judge(looked, settings)
            on: set[str] = set()
            for key, contest in _contests([part.draws[0] for part in looked]).items():
                some, spared[key] = kept(contest, scores, count=after.alive, spared=spared.get(key))
                on |= some
            parts = {draw_id: part for draw_id, part in parts.items() if draw_id in on}
            going.append(list(parts))
            early = {draw_id: [*early[draw_id], scores[draw_id]] for draw_id in parts}
        return parts, decision or Decision(going, early)


def _contests(draws: Sequence[Draw]) -> dict[tuple[str, int], list[Draw]]:
    found: dict[tuple[str, int], list[Draw]] = {}
    for draw in draws:
        found.setdefault((draw.prompt.id, draw.group), []).append(draw)
    return found


def _batches(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def pruned(
    config: Config, policy: Any, rewards: Sequence[Reward], *, root: Path | None, progress: Progress | None
) -> PrunePolicy:
    """The policy with the settings' pruning. rewards: all of the run's. root: the run's folder.

    Before the end neither the held-out reward is asked nor what the tuned model itself likes (`log_ratio`), which would
    cost more of the UNet than pruning saves.
    """
    sampling, settings = config.sampling, config.rewards
    assert sampling.prune is not None
    by_policy = ranks_by_log_ratio(settings)
    weights = {name: w for name, w in settings.weights.items() if not (by_policy and name == LOG_RATIO)}
    last = bool(settings.held_out) + by_policy + 1  # the held-out one, the policy's own, the early scores themselves
    return PrunePolicy(
        policy,
        at=sampling.prune_at,
        keep=sampling.prune_keep,
        judge=make_judge(sampling.prune, policy, rewards=rewards[:-last], weights=weights, method=settings.method),
        guided=sampling.prune == "guidance",
        why_off=lambda: why_off(root, at=sampling.prune_at, least=sampling.prune_min_correlation) if root else None,
        progress=progress,
    )


def make_judge(
    kind: Literal["predicted_x0", "guidance"],
    policy: Any,
    *,
    rewards: Sequence[Reward],
    weights: Mapping[str, float],
    method: Method,
) -> Judge:
    """What ranks unfinished pictures.

    "predicted_x0": the rewards, combined as in the ranking, on the picture that the last call foresees. Early decodes
        are its price (compare TTSnap, arXiv:2511.22242).
    "guidance": the divergence of the predictions with and without the prompt so far, which costs nothing
        (arXiv:2505.23343).
    rewards: those that `weights` names.
    """

    def by_rewards(parts: Sequence[Partway], settings: Settings) -> dict[str, float]:
        groups = group(score(policy.foreseen(parts, settings), rewards))
        keys = combine(groups, weights=weights, method=method)
        pairs = zip(groups, keys, strict=True)
        return {c.sample.id: key for one, row in pairs for c, key in zip(one.candidates, row, strict=True)}

    def by_guidance(parts: Sequence[Partway], settings: Settings) -> dict[str, float]:
        return {part.draws[0].id: part.divergence.item() for part in parts}

    return by_rewards if kind == "predicted_x0" else by_guidance


def early_reward(at: Sequence[float]) -> Reward:
    """The early scores of pruned candidates, stored beside the others; they never rank."""

    def reward(samples: Sequence[Sample]) -> dict[str, list[float]]:
        if not all(sample.data.early for sample in samples):
            return {}
        columns = zip(*(sample.data.early for sample in samples), strict=True)
        return {early_name(share): list(column) for share, column in zip(at, columns, strict=False)}

    return reward


def why_off(root: Path, *, at: Sequence[float], least: float) -> str | None:
    """Why pruning has ended in the run of this folder: by the numbers of its complete rounds alone."""
    if not complete_rounds(root):
        return None
    found = agreement([row["figures"] for row in read_metrics(root)], at)
    if found is None or found >= least:
        return None
    return (
        "pruning is off for the rest of this run, and whole contests are sampled: the early ranking agrees with the "
        f"final one by a rank correlation of {found:.2f}, less than sampling.prune_min_correlation = {least:g}"
    )
