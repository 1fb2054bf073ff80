import math
import random
import statistics

import pytest

from raft_diffusion.core.loop import group, raft, score
from raft_diffusion.core.prompts import draw_round
from raft_diffusion.core.records import Draw, Prompt, Sample, Scored, derive_seed
from raft_diffusion.core.select import Select

EXPECTED_MAX = {1: 0.0, 2: 1 / math.sqrt(math.pi), 3: 1.5 / math.sqrt(math.pi), 4: 1.0293753730}
"""E[max of K standard normals] (Harter 1961, table 1; K = 2 and 3 in closed form)."""


class Gaussian:
    """Samples x = mean + deviation * z; z belongs to the draw's seed."""

    def __init__(self, mean=0.0, deviation=1.0):
        self.mean = mean
        self.deviation = deviation

    def generate(self, draws):
        return [Sample(d, self.mean + self.deviation * random.Random(d.seed).gauss(0, 1)) for d in draws]

    def save(self, folder):
        raise NotImplementedError

    def load(self, folder):
        raise NotImplementedError


class Memory:
    """A store of rounds and of the mean after each."""

    def __init__(self):
        self.rounds = []
        self.means = []

    def resume(self, policy):
        if self.means:
            policy.mean = self.means[-1]
        return list(self.rounds)

    def save(self, round_, policy):
        self.rounds.append(round_)
        self.means.append(policy.mean)


class LikelihoodTuner:
    """The maximum-likelihood mean of the winners."""

    def __init__(self):
        self.seeds = []

    def __call__(self, policy, winners, *, seed):
        self.seeds.append(seed)
        total = math.fsum(w.weight for w in winners)
        policy.mean = math.fsum(w.weight * w.sample.data for w in winners) / total
        return {"winners": float(len(winners))}


def identity(samples):
    return {"x": [sample.data for sample in samples]}


def run(*, prompts=1000, k=4, rounds=1, replay=None, policy=None, store=None, select=None, tune=None, decay=1.0):
    many = [Prompt(f"prompt {i}") for i in range(prompts)]
    return raft(
        policy or Gaussian(),
        [identity],
        select or Select(weights={"x": 1.0}, method="fixed"),
        tune or LikelihoodTuner(),
        store or Memory(),
        lambda index: draw_round(many, index=index, seed=0, per_round=None, k=k),
        rounds=rounds,
        seed=0,
        replay=replay,
        replay_decay=decay,
    )


@pytest.mark.parametrize("k", [2, 3, 4])
def test_mean_moves_by_the_expected_maximum_of_k(k):
    policy = Gaussian(mean=10.0, deviation=2.0)
    (round_,) = run(k=k, policy=policy)
    assert policy.mean == pytest.approx(10 + 2 * EXPECTED_MAX[k], abs=4 * 2 / math.sqrt(1000))
    assert policy.mean == pytest.approx(statistics.fmean(w.sample.data for w in round_.selection.winners), rel=1e-12)
    assert all(
        w.sample.data == max(c.sample.data for c in g.candidates)
        for w, g in zip(round_.selection.winners, round_.groups, strict=True)
    )


@pytest.mark.parametrize(
    ("replay", "gains"),
    [
        (0, [1, 2, 3]),  # the winners of a round lie one gain above its mean
        (1, [1, 1.5, 2.25]),  # (1 + 2) / 2, (2 + 2.5) / 2
        (None, [1, 1.5, 11 / 6]),  # (1 + 2) / 2, (1 + 2 + 2.5) / 3
    ],
)
def test_replay_mixes_the_winners_of_earlier_rounds(replay, gains):
    store = Memory()
    counts = [round_.figures["winners"] for round_ in run(rounds=3, replay=replay, store=store)]
    assert store.means == pytest.approx([gain * EXPECTED_MAX[4] for gain in gains], abs=0.12)
    assert counts == {0: [1000, 1000, 1000], 1: [1000, 2000, 2000], None: [1000, 2000, 3000]}[replay]


def test_winners_of_earlier_rounds_fade():
    """Gains 1; (1 / 2 + 2) / (3 / 2) = 5 / 3; (1 / 4 + 2 / 2 + 8 / 3) / (7 / 4) = 47 / 21."""
    store = Memory()
    list(run(rounds=3, decay=0.5, store=store))
    assert store.means == pytest.approx([gain * EXPECTED_MAX[4] for gain in (1, 5 / 3, 47 / 21)], abs=0.12)


def test_weights_of_winners_reach_the_tuner():
    """exp(x / tau) tilts N(0, 1) to N(1 / tau, 1); self-normalised over 4000 samples."""
    policy = Gaussian()
    list(run(policy=policy, select=Select(weights={"x": 1.0}, method="fixed", tau=2.0)))
    assert policy.mean == pytest.approx(0.5, abs=0.08)


def test_a_round_is_stored_before_it_is_yielded():
    store = Memory()
    for round_ in run(prompts=2, rounds=3, store=store):
        assert store.rounds[-1] is round_
    assert [r.index for r in store.rounds] == [1, 2, 3]


def test_nothing_happens_before_the_first_round_is_asked_for():
    store = Memory()
    run(prompts=2, store=store)
    assert not store.rounds


def test_tuning_seed_is_of_the_round():
    tune = LikelihoodTuner()
    list(run(prompts=2, rounds=2, tune=tune))
    assert tune.seeds == [derive_seed(0, "tune", 1), derive_seed(0, "tune", 2)]


@pytest.mark.parametrize("replay", [None, 0, 1])
def test_interrupted_run_goes_on_where_it_stopped(replay):
    whole, parts = Memory(), Memory()
    list(run(prompts=5, rounds=4, replay=replay, store=whole))
    assert [r.index for r in run(prompts=5, rounds=2, replay=replay, store=parts)] == [1, 2]
    assert [r.index for r in run(prompts=5, rounds=4, replay=replay, store=parts)] == [3, 4]
    assert parts.means == whole.means
    assert list(run(prompts=5, rounds=4, store=parts)) == []


def samples(n):
    return [Sample(Draw(Prompt("a cat"), k, seed=k), float(k)) for k in range(n)]


def test_scores_of_all_rewards_stand_side_by_side():
    rows = score(samples(2), [identity, lambda batch: {"one": [1] * len(batch), "two": [2.0, 3.0]}])
    assert [row.scores for row in rows] == [{"x": 0.0, "one": 1.0, "two": 2.0}, {"x": 1.0, "one": 1.0, "two": 3.0}]
    assert all(type(value) is float for row in rows for value in row.scores.values())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None, "1", True, 1j])
def test_score_that_is_no_finite_number_names_reward_and_sample(value):
    batch = samples(3)
    with pytest.raises(ValueError, match=f"'bad' scored sample {batch[1].id} .'a cat'. as {value!r}"):
        score(batch, [lambda _: {"bad": [0.0, value, 0.0]}])


def test_number_of_scores_is_checked():
    with pytest.raises(ValueError, match="'short' returned 2 scores for 3 samples"):
        score(samples(3), [lambda _: {"short": [0.0, 1.0]}])


def test_two_rewards_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two rewards are named 'x'"):
        score(samples(2), [identity, identity])


def test_groups_are_the_contests_of_a_prompt():
    cat, dog = Prompt("a cat"), Prompt("a dog")
    draws = draw_round([cat, dog], index=1, seed=0, per_round=None, k=2, groups_per_prompt=2)
    groups = group([Scored(Sample(draw, None), {}) for draw in draws])
    assert [g.prompt for g in groups] == [cat, cat, dog, dog]
    assert [[c.sample.draw.k for c in g.candidates] for g in groups] == [[0, 1], [2, 3], [0, 1], [2, 3]]
