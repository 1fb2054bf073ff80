"""Fewer evaluations: a contest is thinned out before its candidates are finished, so that the UNet goes on with those
that look best (successive halving, see `core.halving`). Some of the others are spared, by lot, so that every round says
how far the early ranking can be trusted; where it cannot, pruning ends itself.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checks import ranks_by_log_ratio
from .core.config import Config
from .core.halving import SPARED, SPARED_EVERY, Phase, agreement, best, early_name, lot, phases, preview_interval
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
Rank = Callable[[Sequence[Sample]], Mapping[str, float]]
"""How good pictures look, by sample id; higher is better within a contest."""
Contest = tuple[str, int]
"""Prompt id and group."""


@dataclass(frozen=True, slots=True)
class Decision:
    """kept: the ids that went on after each stop. early: of the last of them, the score at each stop. spared: those
    that chance alone lets go on."""

    kept: list[list[str]]
    early: dict[str, list[float]]
    spared: list[str]


class PrunePolicy:
    """A Policy that hands back fewer candidates than it was asked for: the survivors of each contest.

    policy: the `DiffusionPolicy` that samples. at, keep: see `core.halving.phases`. judge: ranks at each stop.
    preview: ranks pictures of fewer steps, which then are the first stop.
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
        preview: Rank | None = None,
        guided: bool,
        why_off: Callable[[], str | None],
        progress: Progress | None = None,
    ) -> None:
        self._policy, self._at, self._keep, self._judge, self._guided = policy, at, keep, judge, guided
        self._preview = preview
        self._why_off, self._progress = why_off, progress
        self._told = False

    def generate(self, draws: Sequence[Draw], settings: Settings | None = None) -> list[Sample]:
        """The survivors, in the order of the draws, each with its early scores. settings: other than the policy's."""
        how: Settings = self._policy.settings if settings is None else settings
        contests = list(_contests(draws).values())
        if not contests or not self._is_on(how):
            return self._policy.generate(draws, how)
        quick = self._policy.calls(preview_settings(how, self._at[0])) if self._preview else None
        plan = phases(self._policy.calls(how), len(contests[0]), at=self._at, keep=self._keep, preview=quick)
        if len(plan) == 1:
            return self._policy.generate(draws, how)
        samples: list[Sample] = []
        each = max(1, how.batch_size // plan[-1].alive)
        done = 0
        lots = {_key(contest[0]) for contest in contests[::SPARED_EVERY]}
        for first in range(0, len(contests), each):
            window = [draw for contest in contests[first : first + each] for draw in contest]
            samples += self._sample(window, plan, how, lots, lambda: self._tell(done, len(draws)))  # noqa: B023
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
        self,
        draws: Sequence[Draw],
        plan: Sequence[Phase],
        settings: Settings,
        lots: set[Contest],
        tell: Callable[[], None],
    ) -> list[Sample]:
        """The survivors of some contests. lots: where one is spared. tell: called after each batch that is no result
        yet."""
        shelf = self._policy.shelf
        name, found, parts = "", None, {}
        if shelf:
            asked = [[draw.id, draw.group, draw.seed, draw.prompt.text, draw.prompt.negative] for draw in draws]
            name = shelf.key(["pruned", asked, self._policy.made_of(settings)])
            found = shelf.read(f"{name}.pruned")
        if found is not None:
            decision = Decision(**json.loads(found))
        else:
            parts, decision = self._halve(draws, plan, settings, lots, None, tell)
            if shelf:
                shelf.write(f"{name}.pruned", json.dumps(asdict(decision)).encode())
        left, spared = [draw for draw in draws if draw.id in decision.early], set(decision.spared)
        samples: list[Sample] = []

        def finish(batch: Sequence[Draw]) -> list[Sample]:
            nonlocal parts
            if not parts:  # decided before a stop: the same pictures once more, and the same ones of them
                parts, _ = self._halve(draws, plan, settings, lots, decision, tell)
            return self._policy.finish([parts[draw.id] for draw in batch], settings)

        for batch in _batches(left, settings.batch_size):
            make = partial(finish, batch)
            samples += shelf.batch(batch, ["pruned", name], make) if shelf else make()
            tell()
        return [
            replace(
                sample, data=replace(sample.data, early=tuple(decision.early[sample.id]), spared=sample.id in spared)
            )
            for sample in samples
        ]

    def _halve(
        self,
        draws: Sequence[Draw],
        plan: Sequence[Phase],
        settings: Settings,
        lots: set[Contest],
        decision: Decision | None,
        tell: Callable[[], None],
    ) -> tuple[dict[str, Partway], Decision]:
        """(the survivors after the last stop by id, what was decided). decision: of an earlier try, to be followed."""
        parts = {part.draws[0].id: part for part in self._policy.start(draws, settings)}
        early: dict[str, list[float]] = {draw.id: [] for draw in draws}
        going: list[list[str]] = []
        spared: dict[Contest, str] = {}
        for number, (phase, after) in enumerate(pairwise(plan)):
            if not phase.preview:
                looked: list[Partway] = []
                for batch in _batches(list(parts.values()), settings.batch_size):
                    looked += self._policy.go_on(batch, phase.end, settings)
                    tell()
                parts = {part.draws[0].id: part for part in looked}
            if decision is not None:
                parts = {draw_id: part for draw_id, part in parts.items() if draw_id in decision.kept[number]}
                continue
            scores = (
                self._previewed(draws, settings, tell) if phase.preview else self._judge([*parts.values()], settings)
            )
            on: set[str] = set()
            for key, contest in _contests([part.draws[0] for part in parts.values()]).items():
                going_on = best(contest, scores, count=after.alive, spared=spared.get(key))
                if key in lots and key not in spared:
                    spared[key] = lot(contest, going_on)
                    going_on.add(spared[key])
                on |= going_on
            parts = {draw_id: part for draw_id, part in parts.items() if draw_id in on}
            going.append(list(parts))
            early = {draw_id: [*early[draw_id], scores[draw_id]] for draw_id in parts}
        return parts, decision or Decision(going, early, list(spared.values()))

    def _previewed(self, draws: Sequence[Draw], settings: Settings, tell: Callable[[], None]) -> Mapping[str, float]:
        assert self._preview is not None
        quick, samples = preview_settings(settings, self._at[0]), []
        for batch in _batches(draws, settings.batch_size):
            samples += self._policy.answer(batch, quick)
            tell()
        return self._preview(samples)


def preview_settings(settings: Settings, share: float) -> Settings:
    """The same sampler in `share` of the steps."""
    return replace(
        settings,
        num_inference_steps=max(1, round(share * settings.num_inference_steps)),
        guidance_interval=preview_interval(settings.guidance_interval),
    )


def _key(draw: Draw) -> Contest:
    return (draw.prompt.id, draw.group)


def _contests(draws: Sequence[Draw]) -> dict[Contest, list[Draw]]:
    found: dict[Contest, list[Draw]] = {}
    for draw in draws:
        found.setdefault(_key(draw), []).append(draw)
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
    rank = partial(by_rewards, rewards=rewards[:-last], weights=weights, method=settings.method)
    (at, keep), by_preview, by_guidance = sampling.stops, sampling.prune == "preview", sampling.prune == "guidance"
    trusted = at[0] if by_preview else at[-1]  # where most of the ranking is done
    return PrunePolicy(
        policy,
        at=at,
        keep=keep,
        judge=divergence if by_guidance else lambda parts, how: rank(policy.foreseen(parts, how)),
        preview=rank if by_preview else None,
        guided=by_guidance,
        why_off=lambda: why_off(root, at=trusted, least=sampling.prune_min_correlation) if root else None,
        progress=progress,
    )


def by_rewards(
    samples: Sequence[Sample], *, rewards: Sequence[Reward], weights: Mapping[str, float], method: Method
) -> dict[str, float]:
    """The rewards of pictures as the ranking combines them: of previews, or of what the last call of the UNet foresees
    (compare TTSnap, arXiv:2511.22242), whose price is one more decode.

    rewards: those that `weights` names.
    """
    groups = group(score(samples, rewards))
    keys = combine(groups, weights=weights, method=method)
    pairs = zip(groups, keys, strict=True)
    return {c.sample.id: key for one, row in pairs for c, key in zip(one.candidates, row, strict=True)}


def divergence(parts: Sequence[Partway], settings: Settings) -> dict[str, float]:
    """How far the predictions with and without the prompt have been apart so far, which costs nothing
    (arXiv:2505.23343)."""
    return {part.draws[0].id: part.divergence.item() for part in parts}


def early_reward(at: Sequence[float]) -> Reward:
    """The early scores of pruned candidates, stored beside the others; they never rank."""

    def reward(samples: Sequence[Sample]) -> dict[str, list[float]]:
        if not all(sample.data.early for sample in samples):
            return {}
        columns = zip(*(sample.data.early for sample in samples), strict=True)
        scores = {early_name(share): list(column) for share, column in zip(at, columns, strict=False)}
        return {**scores, SPARED: [float(sample.data.spared) for sample in samples]}

    return reward


def why_off(root: Path, *, at: float, least: float) -> str | None:
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
