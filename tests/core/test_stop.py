import pytest

from raft_diffusion.core.stop import is_flat


def rounds(*means, deviation=2.0):
    return [{"mean": {"x": mean}, "deviation": {"x": deviation}} for mean in means]


@pytest.mark.parametrize(
    ("means", "patience", "flat"),
    [
        ((), 1, False),
        ((1.0,), 1, False),
        ((1.0, 2.0), 1, False),
        ((1.0, 1.0), 1, True),  # as good as before is no better
        ((1.0, 0.5), 1, True),
        ((3.0, 2.0, 1.0), 3, False),  # never before patience + 1 rounds
        ((3.0, 2.0, 1.0, 0.0), 3, True),
        ((1.0, 5.0, 4.0, 3.0, 2.0), 3, True),  # the best lies before the last three
        ((1.0, 5.0, 4.0, 3.0, 5.5), 3, False),
        ((1.0, 5.0, 4.0, 5.0, 2.0), 3, True),
        ((1.0, 2.0, 1.0, 3.0), 3, False),
    ],
)
def test_a_run_is_flat_when_its_last_rounds_bring_no_better_one(means, patience, flat):
    assert is_flat(rounds(*means), {"x": 1.0}, patience) is flat


def test_rewards_are_added_in_deviations_of_round_one():
    """Round 2: x gains 4 of 8, that is 0.5; y loses 0.01 of 0.01, that is 1. Together -0.5; with 0.4 of y +0.1."""
    metrics = [
        {"mean": {"x": 10.0, "y": 0.5}, "deviation": {"x": 8.0, "y": 0.01}},
        {"mean": {"x": 14.0, "y": 0.49}, "deviation": {"x": 0.1, "y": 100.0}},
    ]
    assert is_flat(metrics, {"x": 1.0, "y": 1.0}, 1)
    assert not is_flat(metrics, {"x": 1.0, "y": 0.4}, 1)
    assert not is_flat(metrics, {"x": 1.0}, 1)


def test_a_negative_weight_counts_a_falling_reward_as_progress():
    assert not is_flat(rounds(3.0, 2.0), {"x": -1.0}, 1)
    assert is_flat(rounds(2.0, 3.0), {"x": -1.0}, 1)


def test_a_reward_that_was_constant_in_round_one_adds_nothing():
    metrics = [{"mean": {"x": 1.0, "y": m}, "deviation": {"x": 0.0, "y": 1.0}} for m in (1.0, 1.5)]
    metrics[1]["mean"]["x"] = -100.0
    assert not is_flat(metrics, {"x": 1.0, "y": 1.0}, 1)
    assert is_flat(rounds(1.0, 9.0, deviation=0.0), {"x": 1.0}, 1)


def test_rounds_of_an_older_version_count_as_they_are():
    metrics = [{"mean": {"x": 1.0, "y": 1.0}}, {"mean": {"x": 3.0, "y": 0.0}, "deviation": {"x": 9.0, "y": 9.0}}]
    assert not is_flat(metrics, {"x": 1.0, "y": 1.0}, 1)  # 2 / 1 - 1 / 1
    assert is_flat(metrics, {"x": 1.0, "y": 2.0}, 1)  # 2 / 1 - 2 / 1


def test_what_means_nothing_is_refused():
    with pytest.raises(ValueError, match="patience must be at least 1 round, not 0"):
        is_flat(rounds(1.0), {"x": 1.0}, 0)
    with pytest.raises(ValueError, match="name the reward 'z', which scored nothing; known: x"):
        is_flat(rounds(1.0), {"z": 1.0}, 1)
