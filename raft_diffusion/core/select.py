"""From raw scores to winners. Pure functions of stored numbers: a run can be ranked again without a GPU.

    raw scores -> combine -> keys (P, K) -> best of K | global top | weighted -> winners

Legend: P groups a round, K candidates a group, m winners a group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from .records import Group, Sample, Selection, Winner

Method = Literal["zscore", "fixed"]
Keys = tuple[tuple[float, ...], ...]
Distance = Callable[[Sample, Sample], float]
"""How unlike two samples of one prompt are, 0 or more."""


def combine(groups: Sequence[Group], *, weights: Mapping[str, float], method: Method = "zscore") -> Keys:
    """One ranking key a candidate, `(P, K)`: the weighted sum of the rewards that `weights` names.

    "zscore": each reward is first standardised within its group, (x - mean) / population deviation, so that weights
    do not depend on a reward's scale; a reward that is equal for the whole group adds 0. Such keys rank within one
    prompt and compare nothing across prompts.
    "fixed": the raw scores, `sum(weight * score)`, comparable across prompts where the rewards are.

    A reward that `weights` leaves out is stored beside the others and never ranks.
    Raises ValueError for a reward that did not score these groups and for a key that is no finite number.
    """
    _known_method(method)
    known = sorted(groups[0].candidates[0].scores) if groups else []
    for name in weights:
        if groups and name not in known:
            raise ValueError(f"the weights name the reward {name!r}, which scored nothing; known: {', '.join(known)}")
    keys = []
    for group in groups:
        columns = []
        for name, weight in weights.items():
            values = [candidate.scores[name] for candidate in group.candidates]
            columns.append([weight * x for x in (_standardise(values) if method == "zscore" else values)])
        keys.append(tuple(math.fsum(column[k] for column in columns) for k in range(len(group.candidates))))
    if method == "zscore":  # rewards that cancel must tie, not be ranked by the last bit of a rounding
        keys = [tuple(round(key, 12) for key in row) for row in keys]
    _check_keys(groups, keys)
    return tuple(keys)


def best_of_k(groups: Sequence[Group], keys: Sequence[Sequence[float]], *, best: int = 1) -> tuple[Winner, ...]:
    """The m = `best` candidates of each group with the highest keys, best first (RAFT, arXiv:2304.06767, has m = 1).

    Equal keys go to the lower k. A group whose keys are all equal has no winner: its choice would be chance, and
    such prompts teach noise (the lesson of arXiv:2504.11343).
    Raises ValueError where a group holds fewer than m candidates, where every group is all-equal, and for a key that
    is no finite number.
    """
    _check_keys(groups, keys)
    _check_spread(keys)
    return _finalists(groups, keys, best, drop_equal=True)


def global_top(winners: Sequence[Winner], *, count: int) -> tuple[Winner, ...]:
    """The `count` highest keys of the whole round, best first; equal keys keep their order.

    Only for keys that compare across prompts (method "fixed"). After every candidate it is the global ranking in the
    appendix of arXiv:2304.06767; after best-of-K it is the rule of the authors' diffusion notebook (top 8 of 10).
    """
    return tuple(sorted(winners, key=lambda winner: -winner.key)[:count])


def weighted(groups: Sequence[Group], keys: Sequence[Sequence[float]], *, tau: float) -> tuple[Winner, ...]:
    """All candidates win with the weight exp(key / tau), scaled to mean 1 over the round.

    Reward-weighted regression as in arXiv:2305.13301, here on the combined key; tau -> 0 tends to the single best,
    large tau to plain finetuning on everything. Groups whose keys are all equal are left out as in `best_of_k`.
    """
    _check_keys(groups, keys)
    _check_spread(keys)
    winners = [
        Winner(candidate, key)
        for group, row in zip(groups, keys, strict=True)
        if max(row) > min(row)
        for candidate, key in zip(group.candidates, row, strict=True)
    ]
    top = max(winner.key for winner in winners)  # taken off first: exp never overflows
    raw = [math.exp((winner.key - top) / tau) for winner in winners]
    mean = math.fsum(raw) / len(raw)
    return tuple(replace(winner, weight=x / mean) for winner, x in zip(winners, raw, strict=True))


def spreads(groups: Sequence[Group], *, weights: Mapping[str, float]) -> tuple[float, ...]:
    """How much the rewards of each group vary, `(P,)`; 1 is typical of the round.

    Each reward's population deviation within the group, divided by the root mean square of that deviation over all
    groups; then the mean over the rewards by |weight|. A reward that varies in no group has no say.
    """
    shares: list[tuple[float, list[float]]] = []
    for name, weight in weights.items():
        deviations = [_deviation([candidate.scores[name] for candidate in group.candidates]) for group in groups]
        typical = math.sqrt(math.fsum(x * x for x in deviations) / len(groups))
        if weight and typical:
            shares.append((abs(weight), [x / typical for x in deviations]))
    total = math.fsum(weight for weight, _ in shares)
    return tuple(math.fsum(weight * column[p] for weight, column in shares) / (total or 1) for p in range(len(groups)))


def aged(rounds: Sequence[Sequence[Winner]], decay: float) -> list[Winner]:
    """The winners of these rounds, the present one last, each weight times decay ** (age in rounds).

    What the tuner sees of earlier rounds fades instead of ending at once. decay = 1 leaves every weight as it is.
    """
    last = len(rounds) - 1
    return [
        winner if decay == 1 else replace(winner, weight=winner.weight * decay ** (last - place))
        for place, winners in enumerate(rounds)
        for winner in winners
    ]


@dataclass(frozen=True, kw_only=True)
class Select:
    """The loop's Selector: `combine`, then one of three ways to win.

    weights: reward name -> weight; a negative one ranks low scores first. Rewards not named do not rank.
    method: "zscore" (within each group) or "fixed" (raw scores).
    best: m winners a group, 1 <= m <= K. m = K hands every candidate to the global ranking below.
    top_fraction: of those winners the highest share of the round stays, in (0, 1], rounded, at least one.
    top_count: the same as a number. Either needs method "fixed": z-scores do not compare across prompts.
        Here a group with equal keys may win, for it is ranked against the other groups.
    tau: > 0; instead of all this every candidate wins, weighted by exp(key / tau) (see `weighted`).
    min_spread: groups whose rewards vary less than this share of the round's typical (see `spreads`) have no winner:
        among candidates that are as good as equal the choice is chance, and teaches it (arXiv:2504.11343). The group
        that varies most always stays.
    diversity: >= 0; among the candidates whose keys lie at most this far below the best one left, the one wins that is
        farthest by `distance` from the nearest winner of its prompt in this round. 0: the best key always wins.
    above: only a key above this wins, so that a group may have fewer than m winners, or none: the keys are an absolute
        judgement, and candidates that are equally good all tell something.

    Raises ValueError for a combination that means nothing.
    """

    weights: Mapping[str, float]
    method: Method = "zscore"
    best: int = 1
    top_fraction: float | None = None
    top_count: int | None = None
    tau: float | None = None
    min_spread: float = 0.0
    diversity: float = 0.0
    distance: Distance | None = None
    above: float | None = None

    def __post_init__(self) -> None:
        _known_method(self.method)
        if not all(math.isfinite(weight) for weight in self.weights.values()) or not any(self.weights.values()):
            raise ValueError(f"weights must be finite and one of them other than 0, not {dict(self.weights)}")
        if self.best < 1:
            raise ValueError(f"best must be at least 1, not {self.best}: it is the number of winners a prompt")
        if self.top_fraction is not None and self.top_count is not None:
            raise ValueError("top_fraction and top_count say the same thing twice; give one of them")
        if self.top_fraction is not None and not 0 < self.top_fraction <= 1:
            raise ValueError(f"top_fraction must be above 0 and at most 1, not {self.top_fraction}")
        if self.top_count is not None and self.top_count < 1:
            raise ValueError(f"top_count must be at least 1, not {self.top_count}")
        if self._across and self.method != "fixed":
            raise ValueError(
                "top_fraction and top_count compare prompts with each other, which z-scores do not allow; "
                'choose method "fixed" or leave them out'
            )
        if self.tau is not None and not (self.tau > 0 and math.isfinite(self.tau)):
            raise ValueError(f"tau must be a finite number above 0, not {self.tau}")
        if self.tau is not None and (self.best != 1 or self._across):
            raise ValueError("tau lets every candidate win by weight; leave out best, top_fraction and top_count")
        self._check_levers()

    def _check_levers(self) -> None:
        for name in ("min_spread", "diversity"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a finite number, 0 or more, not {getattr(self, name)}")
        if self.min_spread and self._across:
            raise ValueError(
                "min_spread leaves out prompts, which top_fraction and top_count do by their own rule; choose one"
            )
        if self.diversity and self.tau is not None:
            raise ValueError("tau lets every candidate win, so diversity chooses nothing; leave one of them out")
        if self.diversity and self.distance is None:
            raise ValueError("diversity needs a distance between two samples; give one, or set diversity to 0")
        others = self.tau is not None or self._across or self.min_spread or self.diversity
        if self.above is not None and (self.method != "fixed" or others):
            raise ValueError('above judges each raw key by itself: set method "fixed", and of the rest best alone')

    @property
    def _across(self) -> bool:
        return self.top_fraction is not None or self.top_count is not None

    def __call__(self, groups: Sequence[Group]) -> Selection:
        """Keys `(P, K)` of all candidates and the winners. Raises ValueError as `combine` and `best_of_k` do."""
        keys = combine(groups, weights=self.weights, method=self.method)
        if self._across:
            _check_spread([[key for row in keys for key in row]])
            finalists = _finalists(groups, keys, self.best, drop_equal=False, choose=self._choose)
            count = self.top_count or max(1, round((self.top_fraction or 1) * len(finalists)))
            return Selection(keys, global_top(finalists, count=count))
        if self.above is not None:
            return Selection(keys, self._chosen(groups, keys, self.above))
        _check_spread(keys)
        places = self._telling(groups, keys)
        some, rows = [groups[p] for p in places], [keys[p] for p in places]
        if self.tau is not None:
            return Selection(keys, weighted(some, rows, tau=self.tau))
        return Selection(keys, _finalists(some, rows, self.best, drop_equal=True, choose=self._choose))

    def _chosen(self, groups: Sequence[Group], keys: Keys, above: float) -> tuple[Winner, ...]:
        finalists = _finalists(groups, keys, self.best, drop_equal=False)
        if winners := tuple(winner for winner in finalists if winner.key > above):
            return winners
        raise ValueError(f"no candidate of any prompt has a key above {above:g}, so nothing can be learned from it")

    def _telling(self, groups: Sequence[Group], keys: Keys) -> list[int]:
        """The places of the groups whose choice says something."""
        if not self.min_spread:
            return list(range(len(groups)))
        spread = spreads(groups, weights=self.weights)
        unequal = [p for p, row in enumerate(keys) if max(row) > min(row)]
        return [p for p in unequal if spread[p] >= self.min_spread] or [max(unequal, key=lambda p: spread[p])]

    def _choose(self, ranked: Sequence[Winner], chosen: Sequence[Winner]) -> Winner:
        """The next winner of the candidates that are left, best first, beside those chosen so far."""
        if not self.diversity or self.distance is None or not chosen:
            return ranked[0]
        distance = self.distance
        near = [winner for winner in ranked if winner.key >= ranked[0].key - self.diversity]
        return max(near, key=lambda winner: min(distance(winner.sample, other.sample) for other in chosen))


def _finalists(
    groups: Sequence[Group],
    keys: Sequence[Sequence[float]],
    best: int,
    *,
    drop_equal: bool,
    choose: Callable[[Sequence[Winner], Sequence[Winner]], Winner] = lambda ranked, chosen: ranked[0],
) -> tuple[Winner, ...]:
    winners: dict[str, list[Winner]] = {}
    order: list[Winner] = []
    for group, row in zip(groups, keys, strict=True):
        if best > len(row):
            raise ValueError(
                f"best = {best} winners cannot come from the {len(row)} candidates of {group.prompt.text!r}; "
                f"choose best from 1 to {len(row)} or sample more"
            )
        if drop_equal and max(row) == min(row):
            continue
        ranked = sorted(range(len(row)), key=lambda k: (-row[k], group.candidates[k].sample.draw.k))
        left = [Winner(group.candidates[k], row[k]) for k in ranked]
        same_prompt = winners.setdefault(group.prompt.id, [])
        for _ in range(best):
            same_prompt.append(choose(left, same_prompt))
            left.remove(same_prompt[-1])
            order.append(same_prompt[-1])
    return tuple(order)


def _standardise(values: Sequence[float]) -> list[float]:
    if all(x == values[0] for x in values):  # first: the mean of equal numbers may differ from them by rounding
        return [0.0] * len(values)
    mean, deviation = math.fsum(values) / len(values), _deviation(values)
    return [(x - mean) / deviation if deviation else 0.0 for x in values]


def _deviation(values: Sequence[float]) -> float:
    """The population's."""
    if all(x == values[0] for x in values):
        return 0.0
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((x - mean) ** 2 for x in values) / len(values))


def _known_method(method: str) -> None:
    if method not in get_args(Method):
        raise ValueError(f"unknown method {method!r} to combine rewards; known: {', '.join(get_args(Method))}")


def _check_keys(groups: Sequence[Group], keys: Sequence[Sequence[float]]) -> None:
    for group, row in zip(groups, keys, strict=True):
        for candidate, key in zip(group.candidates, row, strict=True):
            if not math.isfinite(key):
                raise ValueError(
                    f"the ranking key of sample {candidate.sample.id} is {key}; it must be a finite number: "
                    f"look at its scores {dict(candidate.scores)} and at the weights"
                )


def _check_spread(keys: Sequence[Sequence[float]]) -> None:
    if not any(max(row) > min(row) for row in keys):
        raise ValueError(
            "every candidate of every prompt has the same key, so nothing can be learned from this round; "
            "look for a reward that returns a constant, or sample more candidates"
        )
