"""Is a round worse than the best one before it? Judged on the same draws after every round, by a reward that does not
rank.

A reward that ranks is gamed in the end: it goes on rising while what it stands for falls (Gao et al. 2022,
arXiv:2210.10760). The guard sees the turn, and says which round's adapter to keep. Numbers in, a verdict out: it knows
no picture and no text.

Legend: n draws of the guard, the same in every round; round 0 is what the run starts from.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from .records import Draw, Prompt, derive_seed

if TYPE_CHECKING:
    from .stats import Interval

ALPHA = 0.05
"""The chance that a run whose rounds are all alike is ever stopped, at most; shared by all its looks."""
PER_PROMPT = 4
"""Draws of a prompt at least, so that its pictures can be compared with each other; fewer prompts are looked at."""
Numbers = tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """The guard's draws as one round answers them.

    round: its index. judge: the model behind the numbers, and reward: its score's name. draws: their ids.
    scores: (n,), higher is better. distances: (n,), of each sample to the others of its prompt, on average.
    """

    round: int
    judge: str
    reward: str
    draws: tuple[str, ...]
    scores: Numbers
    distances: Numbers

    @property
    def score(self) -> float:
        return statistics.fmean(self.scores)

    @property
    def diversity(self) -> float:
        """The mean pairwise distance within a prompt; a prompt counts by its draws."""
        return statistics.fmean(self.distances)

    def fits(self, other: Look) -> bool:
        """Whether both were measured by the same judge on the same draws."""
        return (self.judge, self.reward, self.draws) == (other.judge, other.reward, other.draws)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Look:
        """Raises ValueError for anything that `to_json` does not write."""
        try:
            look = cls(
                round=int(values["round"]),
                judge=str(values["judge"]),
                reward=str(values["reward"]),
                draws=tuple(map(str, values["draws"])),
                scores=tuple(map(float, values["scores"])),
                distances=tuple(map(float, values["distances"])),
            )
        except (KeyError, TypeError, ValueError, OverflowError):
            raise ValueError("it does not hold what the guard writes") from None
        if not len(look.draws) == len(look.scores) == len(look.distances) > 0:
            raise ValueError("it does not hold one score and one distance for each draw")
        if not all(map(math.isfinite, look.scores + look.distances)):
            raise ValueError("it holds a number that is not finite")
        return look


@dataclass(frozen=True, slots=True, kw_only=True)
class Elsewhere:
    """The mean score on prompts that are not trained: at the start and now, the change with its interval, and by how
    much it may fall for certain; and what all prompts together gained, the trained ones too."""

    start: float
    now: float
    change: Interval
    allowed: float
    gain: float

    @property
    def forgot(self) -> bool:
        """Whether it fell for certain, and the trained prompts did not gain what it lost."""
        return self.change.high < -self.allowed and self.gain < 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The last look beside those before it.

    best: the earlier one of the highest score; change: of the score, from it to `look`.
    varied: the most diverse of the earlier ones that scored about as well; share: what is left of its diversity. None
    and 1 where none did. elsewhere: the prompts that are not trained, None where there are none. All intervals are at
    `level`.
    fell, alike, forgot: whether the run must stop, for its score in two rounds in a row, its diversity, or what it
    lost elsewhere.
    keep: the round whose adapter is the result, were the run to end here.
    """

    look: Look
    best: Look
    change: Interval
    varied: Look | None
    share: Interval
    elsewhere: Elsewhere | None
    level: float
    fell: bool
    alike: bool
    keep: int

    @property
    def forgot(self) -> bool:
        return self.elsewhere is not None and self.elsewhere.forgot

    @property
    def fired(self) -> bool:
        return self.fell or self.alike or self.forgot

    @property
    def sentence(self) -> str:
        """What happened and what is kept, in plain words; empty where there is nothing to say."""
        level = f"{100 * self.level:.4g} % interval"
        what = (
            f"the held-out score fell from {_number(self.best.score)} ({_when(self.best.round)}) to "
            f"{_number(self.look.score)}, more than chance allows ({level} of the change: "
            f"{_number(self.change.low)} to {_number(self.change.high)})"
        )
        here = f"round {self.look.round}"
        if not self.fired:
            return "" if self.keep == self.look.round else f"{here}: {what}; {_kept(self.keep)}"
        left = (
            f"what it makes of one prompt became alike: {100 * self.share.mean:.0f} % of the diversity of "
            f"{_when(self.varied.round if self.varied else 0)} is left, which scored about as well "
            f"({level}: {100 * self.share.low:.0f} to {100 * self.share.high:.0f} %)"
        )
        lost = ""
        if self.elsewhere is not None:
            lost = (
                f"prompts that are not trained fell from {_number(self.elsewhere.start)} (the start) to "
                f"{_number(self.elsewhere.now)}, more than chance allows ({level} of the change: "
                f"{_number(self.elsewhere.change.low)} to {_number(self.elsewhere.change.high)}) and more than the "
                "trained ones gained"
            )
        said = [words for words, holds in ((what, self.fell), (left, self.alike), (lost, self.forgot)) if holds]
        return f"{here}: {'; '.join(said)}: stopped; {_kept(self.keep)}"


def guard_draws(train: Sequence[Prompt], held_out: Sequence[Prompt], count: int, *, seed: int) -> list[Draw]:
    """`count` requests, half for trained prompts and half for held-out ones, where there are any.

    Each half goes to prompts spread evenly over its list, as many as get PER_PROMPT requests each. The seeds are a
    stream of their own: no candidate and no picture of the evaluation is ever the guard's.
    Raises ValueError for a count that gives a half fewer than PER_PROMPT requests.
    """
    shares = ((train, count - count // 2), (held_out, count // 2)) if held_out else ((train, count),)
    draws = []
    for prompts, share in shares:
        if share < PER_PROMPT:
            raise ValueError(f"{count} samples are too few for the guard; give at least {PER_PROMPT * len(shares)}")
        several = min(len(prompts), share // PER_PROMPT)
        for place in range(several):
            prompt = prompts[place * len(prompts) // several]
            for k in range(share // several + (place < share % several)):
                draws.append(Draw(prompt, k, derive_seed(seed, "guard", prompt.id, k)))
    return draws


def judge(
    looks: Sequence[Look],
    *,
    rounds: int,
    max_drop: float,
    min_diversity: float,
    max_forgotten: float = math.inf,
    others: Collection[str] = (),
) -> Verdict:
    """The last look against those before it, round 0 among them.

    looks: of rounds 0, 1, 2, ...; at least two, measured alike, with 3 draws of each prompt or more.
    rounds: how many looks the run plans. Each gets an equal part of ALPHA, divided between its q questions
        (Bonferroni), which are all asked of one end of an interval: their level is 1 - 2 ALPHA / (q x rounds).
    max_drop: how far the score may fall for certain below the best one, in standard deviations of that one's scores
        within a prompt. The round is worse where the whole interval of its change lies below that, and the score fell
        where the round before was no better than the best one either: the best of many rounds was lucky, too, and a
        model goes up and down a little, so one bad round is not kept, and the second in a row ends the run.
    min_diversity: the share of the diversity that must be left. Too little is left where the whole interval of that
        share lies below it. Only rounds that scored about as well count, none lower by more than max_drop: wrong
        samples vary too, and a run that learns to draw what is asked for loses their variety, and rightly.
    others: the ids of the prompts that are not trained. A run that gains on its own prompts may lose them, and the mean
        over both hides it; where there are others, they are the third question.
    max_forgotten: how far their score may fall for certain below the start, in the deviations of `max_drop`; 0.5 is
        what Cohen (1988) calls a medium effect. A run may pay elsewhere for what it gains, but not more than that.

    The draws are fixed, so the score's change is a paired bootstrap over them; the share's interval is a jackknife
    (Efron and Tibshirani 1993, ch. 11), as a bootstrap would draw samples twice and count their distance of 0.
    """
    from .stats import Interval  # here, for what only plans a run does without numpy

    look, before = looks[-1], looks[:-1]
    best = max(before, key=lambda earlier: earlier.score)
    there = [place for place, name in enumerate(look.draws) if _prompt(name) in others]
    level, margin = 1 - 2 * ALPHA / ((3 if there else 2) * rounds), max_drop * _spread(best)
    change = _change(best, look, level)
    varied = max((e for e in before if e.score >= look.score - margin), key=lambda e: e.diversity, default=None)
    share = Interval(1.0, 1.0, 1.0) if varied is None else _share_left(varied, look, level)
    worse, alike = change.high < -margin, share.high < min_diversity
    trained = [earlier for earlier in before if earlier.round > 0 and earlier.score >= looks[0].score - margin]
    seen = [_elsewhere(looks[0], later, there, level, max_forgotten) for later in (look, *trained)] if there else []
    forgot = bool(seen) and seen[0].forgot
    if forgot:
        trained = [e for e, other in zip(trained, seen[1:], strict=True) if other.change.mean >= -other.allowed]
    if worse or alike or forgot:
        keep = max(trained, key=lambda earlier: earlier.score, default=looks[0])
    else:
        keep = best if best.round > 0 and change.high < 0 else look  # a small fall, and still a sure one
    return Verdict(
        look=look,
        best=best,
        change=change,
        varied=varied,
        share=share,
        elsewhere=seen[0] if seen else None,
        level=level,
        fell=worse and before[-1] is not best,
        alike=alike,
        keep=keep.round,
    )


def curve(looks: Sequence[Look]) -> list[tuple[int, Interval]]:
    """(round, score with its interval) for people: 95 % of the paired change since the first look, on top of its
    score."""
    from .stats import Interval

    start = looks[0].score
    points = []
    for look in looks:
        change = _change(looks[0], look, 0.95)
        points.append((look.round, Interval(look.score, start + change.low, start + change.high)))
    return points


def _change(before: Look, after: Look, level: float) -> Interval:
    from .stats import paired_bootstrap

    seed = derive_seed(0, "guard bootstrap", before.round, after.round)
    return paired_bootstrap(before.scores, after.scores, seed=seed, level=level)


def _elsewhere(start: Look, later: Look, places: Sequence[int], level: float, max_forgotten: float) -> Elsewhere:
    before, now = (_part(look, places) for look in (start, later))
    return Elsewhere(
        start=before.score,
        now=now.score,
        change=_change(before, now, level),
        allowed=max_forgotten * _spread(before),
        gain=later.score - start.score,
    )


def _part(look: Look, places: Sequence[int]) -> Look:
    """A look at some of its draws alone."""
    draws, scores, distances = (tuple(row[i] for i in places) for row in (look.draws, look.scores, look.distances))
    return replace(look, draws=draws, scores=scores, distances=distances)


def _prompt(draw: str) -> str:
    """A draw's id is its prompt's, and its number."""
    return draw.rpartition("-")[0]


def _members(look: Look) -> list[list[int]]:
    """The places of each prompt's draws."""
    groups: dict[str, list[int]] = {}
    for place, name in enumerate(look.draws):
        groups.setdefault(_prompt(name), []).append(place)
    return list(groups.values())


def _spread(look: Look) -> float:
    """The standard deviation of the scores within a prompt, pooled."""
    groups = [[look.scores[place] for place in places] for places in _members(look)]
    squares = sum(statistics.variance(group) * (len(group) - 1) for group in groups)
    return math.sqrt(squares / (len(look.scores) - len(groups)))


def _share_left(before: Look, after: Look, level: float) -> Interval:
    """The ratio of the two diversities with its jackknife interval, draws left out pair by pair."""
    from .stats import Interval

    base, now = before.diversity, after.diversity
    if base <= 0:
        return Interval(1.0, 1.0, 1.0)  # no variety, so none to lose
    variance = 0.0
    for places in _members(before):
        pairs = zip(_without_one(before, places), _without_one(after, places), strict=True)
        ratios = [above / below if below > 0 else 1.0 for below, above in pairs]
        variance += (len(places) - 1) * statistics.pvariance(ratios)
    reach = statistics.NormalDist().inv_cdf((1 + level) / 2) * math.sqrt(variance)
    return Interval(now / base, max(0.0, now / base - reach), now / base + reach)


def _without_one(look: Look, places: Sequence[int]) -> list[float]:
    """The diversity of a look without each of these draws of one prompt in turn; the prompt counts as before.

    A prompt's diversity D is the mean of its n distances v; without draw i it is (n D - 2 v_i) / (n - 2), exactly.
    """
    distances = [look.distances[place] for place in places]
    n, mean = len(places), statistics.fmean(distances)
    part = n / len(look.draws)
    return [look.diversity + part * ((n * mean - 2 * distance) / (n - 2) - mean) for distance in distances]


def _when(index: int) -> str:
    return f"round {index}" if index else "the start"


def _kept(index: int) -> str:
    return f"round {index}'s LoRA is the result" if index else "no round was good: the result is what it started from"


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
