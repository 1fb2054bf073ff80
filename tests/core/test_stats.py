import math

import numpy as np
import pytest

from raft_diffusion.core import stats
from raft_diffusion.core.stats import paired_bootstrap, win_rate


def pairs(n=400, gain=0.5, seed=0):
    rng = np.random.default_rng(seed)
    base = rng.normal(size=n)
    return base.tolist(), (base + gain + rng.normal(size=n)).tolist()


@pytest.mark.parametrize(("level", "z"), [(0.95, 1.959964), (0.8, 1.281552)])
def test_interval_is_the_normal_one_for_many_pairs(level, z):
    base, tuned = pairs()
    difference = np.subtract(tuned, base)
    half = z * difference.std() / math.sqrt(len(difference))
    interval = paired_bootstrap(base, tuned, seed=1, level=level)
    assert interval.mean == pytest.approx(difference.mean())
    assert interval.low == pytest.approx(difference.mean() - half, abs=0.06 * half)
    assert interval.high == pytest.approx(difference.mean() + half, abs=0.06 * half)


def test_interval_of_two_pairs_by_hand():
    """Resamples of (0, 1) have the mean 0, 1/2 or 1 with probability 1/4, 1/2, 1/4."""
    wide, narrow = (paired_bootstrap([0, 0], [0, 1], seed=0, level=level) for level in (0.95, 0.4))
    assert (wide.mean, wide.low, wide.high) == (0.5, 0.0, 1.0)
    assert (narrow.low, narrow.high) == (0.5, 0.5)


def test_pairing_takes_the_spread_of_prompts_out():
    base = [0.0, 100.0, -50.0]
    interval = paired_bootstrap(base, [x + 1 for x in base], seed=0)
    assert (interval.mean, interval.low, interval.high) == (1.0, 1.0, 1.0)


def test_clusters_are_drawn_whole():
    """Each of 40 differences five times: the repeats are no evidence, so the interval is that of the 40."""
    base, tuned = pairs(n=40)
    clusters = [f"prompt {i}" for i in range(40)] * 5
    alone = paired_bootstrap(base, tuned, seed=0)
    repeated = paired_bootstrap(base * 5, tuned * 5, seed=0, clusters=clusters)
    naive = paired_bootstrap(base * 5, tuned * 5, seed=0)
    assert (repeated.low, repeated.high) == pytest.approx((alone.low, alone.high))
    assert (alone.high - alone.low) / (naive.high - naive.low) == pytest.approx(math.sqrt(5), rel=0.05)


def test_clusters_of_uneven_size_count_by_their_pairs():
    """Clusters (0, 0, 0) and (1): a resample's mean is 0, 1 / 4 or 1."""
    clusters = ["a", "a", "a", "b"]
    wide, narrow = (
        paired_bootstrap([0] * 4, [0, 0, 0, 1], seed=0, clusters=clusters, level=level) for level in (0.95, 0.4)
    )
    assert (wide.mean, wide.low, wide.high) == (0.25, 0.0, 1.0)
    assert (narrow.low, narrow.high) == (0.25, 0.25)


def test_lone_cluster_falls_back_to_pairs():
    base, tuned = pairs(n=20)
    assert paired_bootstrap(base, tuned, seed=0, clusters=["a"] * 20) == paired_bootstrap(base, tuned, seed=0)


def test_interval_is_of_its_seed_and_not_of_the_block_size(monkeypatch):
    base, tuned = pairs(n=20)
    first = paired_bootstrap(base, tuned, seed=3, resamples=1000)
    assert first != paired_bootstrap(base, tuned, seed=4, resamples=1000)
    monkeypatch.setattr(stats, "_ROWS", 7)
    assert first == paired_bootstrap(base, tuned, seed=3, resamples=1000)


def test_win_rate_counts_a_tie_half():
    assert win_rate([0, 0, 0, 0], [1, 2, 0, -1]) == 2.5 / 4
    assert win_rate([1], [1]) == 0.5


@pytest.mark.parametrize("compare", [win_rate, lambda base, tuned: paired_bootstrap(base, tuned, seed=0)])
@pytest.mark.parametrize(
    ("base", "tuned", "message"),
    [
        ([1, 2], [1], "2 base scores and 1 tuned scores"),
        ([], [], "no pair to compare"),
        ([1, 2, 3], [1, 2, math.nan], "pair 2 holds"),
        ([1, math.inf, 3], [1, 2, 3], "pair 1 holds"),
    ],
)
def test_scores_that_make_no_pairs_are_refused(compare, base, tuned, message):
    with pytest.raises(ValueError, match=message):
        compare(base, tuned)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": 1.0}, "level must lie between 0 and 1"),
        ({"level": 95}, "level must lie between 0 and 1"),
        ({"resamples": 0}, "at least 1 resample"),
        ({"clusters": ["a"]}, "1 cluster labels cannot belong to 2 pairs"),
    ],
)
def test_bootstrap_settings_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        paired_bootstrap([1, 2], [2, 3], seed=0, **options)
