import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft_diffusion.core.records import Draw, Group, Prompt, Sample, Scored
from raft_diffusion.core.select import Select, aged, best_of_k, combine, global_top, spreads, weighted


def group(name, **scores):
    """One group: `group("cat", x=[1, 2, 3])` has three candidates."""
    prompt = Prompt(name)
    rows = [dict(zip(scores, values, strict=True)) for values in zip(*scores.values(), strict=True)]
    return Group(prompt, tuple(Scored(Sample(Draw(prompt, k, seed=k), None), row) for k, row in enumerate(rows)))


def won(winners):
    """(prompt, k) of every winner, in order."""
    return [(w.sample.prompt.text, w.sample.draw.k) for w in winners]


def by_letter(first, second):
    """How far apart two samples are: their k in this order."""
    place = {0: 0.0, 1: 0.1, 2: 5.0, 3: 9.0}
    return abs(place[first.draw.k] - place[second.draw.k])


def test_zscore_by_hand():
    keys = combine([group("a", x=[2, 4, 6])], weights={"x": 1.0})
    deviation = math.sqrt(8 / 3)  # mean 4, squares 4 + 0 + 4 over 3
    assert keys[0] == pytest.approx((-2 / deviation, 0, 2 / deviation), abs=1e-12)


def test_zscores_add_by_weight_whatever_the_scale():
    rewards = {"small": [0.0, 1e-3], "large": [5e6, -5e6]}  # z: -1, 1 and 1, -1
    assert combine([group("a", **rewards)], weights={"small": 3.0, "large": 1.0}) == ((-2.0, 2.0),)


def test_reward_that_is_constant_in_a_group_adds_nothing():
    keys = combine([group("a", x=[0.1, 0.1, 0.1], y=[1, 2, 3])], weights={"x": 5.0, "y": 1.0})
    assert keys == combine([group("a", y=[1, 2, 3])], weights={"y": 1.0})


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=8), st.floats(0.1, 10), st.floats(-10, 10))
def test_zscores_do_not_change_with_scale_and_shift(values, scale, shift):
    def keys(numbers):
        return combine([group("a", x=numbers)], weights={"x": 1.0})[0]

    if max(values) - min(values) > 1e-3:
        assert keys([scale * x + shift for x in values]) == pytest.approx(keys(values), abs=1e-6)


def test_fixed_is_the_weighted_sum_and_a_reward_left_out_never_ranks():
    groups = [group("a", x=[1, 2], y=[10, 0], watched=[9, 99])]
    assert combine(groups, weights={"x": 2.0, "y": -0.5}, method="fixed") == ((-3.0, 4.0),)


def test_rewards_that_cancel_tie():
    x = [0.1, 0.7, 0.3]
    assert combine([group("a", x=x, y=[-v / 3 for v in x])], weights={"x": 1.0, "y": 1.0}) == ((0.0, 0.0, 0.0),)


def test_combine_of_nothing_is_nothing():
    assert combine([], weights={"x": 1.0}) == ()


def test_combine_refuses_unknown_names():
    with pytest.raises(ValueError, match=r"'z'.*known: x, y"):
        combine([group("a", x=[1], y=[1])], weights={"z": 1.0})
    with pytest.raises(ValueError, match=r"unknown method 'rank'.*zscore, fixed"):
        combine([], weights={"x": 1.0}, method="rank")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("method", ["zscore", "fixed"])
def test_key_that_is_no_finite_number_names_its_sample(method):
    groups = [group("a", x=[0.0, math.nan])]
    with pytest.raises(ValueError, match=r"the ranking key of sample [0-9a-f]+-00[01] is nan"):
        combine(groups, weights={"x": 1.0}, method=method)
    for rank in (lambda: best_of_k(groups, [(0.0, math.inf)]), lambda: weighted(groups, [(0.0, math.inf)], tau=1)):
        with pytest.raises(ValueError, match="-001 is inf"):
            rank()


def test_best_of_k_is_best_first_and_ties_go_to_the_lower_k():
    groups = [group("a", x=[1, 3, 2]), group("b", x=[5, 5, 4])]
    keys = combine(groups, weights={"x": 1.0}, method="fixed")
    assert won(best_of_k(groups, keys)) == [("a", 1), ("b", 0)]
    assert won(best_of_k(groups, keys, best=2)) == [("a", 1), ("a", 2), ("b", 0), ("b", 1)]
    assert [w.key for w in best_of_k(groups, keys, best=2)] == [3, 2, 5, 5]
    assert all(w.weight == 1.0 for w in best_of_k(groups, keys))


def test_ties_go_to_the_lower_k_however_the_candidates_lie():
    a = group("a", x=[1, 7, 7])
    turned = Group(a.prompt, a.candidates[::-1])
    assert won(best_of_k([turned], [(7, 7, 1)])) == [("a", 1)]


def test_group_of_equal_keys_has_no_winner():
    groups = [group("a", x=[1, 1]), group("b", x=[0, 1])]
    keys = [(1.0, 1.0), (0.0, 1.0)]
    assert won(best_of_k(groups, keys)) == [("b", 1)]
    assert won(weighted(groups, keys, tau=1.0)) == [("b", 0), ("b", 1)]


def test_round_of_equal_keys_is_refused():
    groups = [group("a", x=[1, 1]), group("b", x=[2, 2])]
    for select in (Select(weights={"x": 1.0}), Select(weights={"x": 1.0}, tau=1.0)):
        with pytest.raises(ValueError, match="every candidate of every prompt has the same key"):
            select(groups)
    across = Select(weights={"x": 1.0}, method="fixed", top_count=1)
    assert won(across(groups).winners) == [("b", 0)]
    with pytest.raises(ValueError, match="same key"):
        across([group("a", x=[1, 1]), group("b", x=[1, 1])])


def test_more_winners_than_candidates_are_refused():
    with pytest.raises(ValueError, match="best = 3 winners cannot come from the 2 candidates of 'a'"):
        Select(weights={"x": 1.0}, best=3)([group("a", x=[1, 2])])


def test_global_top_ranks_across_prompts():
    groups = [group("a", x=[1, 9]), group("b", x=[4, 5]), group("c", x=[7, 0])]
    keys = combine(groups, weights={"x": 1.0}, method="fixed")
    assert won(global_top(best_of_k(groups, keys), count=2)) == [("a", 1), ("c", 0)]
    assert won(global_top(best_of_k(groups, keys, best=2), count=4)) == [("a", 1), ("c", 0), ("b", 1), ("b", 0)]


def test_global_top_keeps_the_order_of_equal_keys():
    groups = [group("a", x=[1, 2]), group("b", x=[2, 1])]
    assert won(global_top(best_of_k(groups, [(1, 2), (2, 1)]), count=1)) == [("a", 1)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"top_count": 2}, [("b", 1), ("a", 1)]),  # best of each prompt first
        ({"top_count": 2, "best": 2}, [("b", 1), ("b", 0)]),  # m = K: the whole round at once
        ({"top_count": 99}, [("b", 1), ("a", 1)]),
        ({"top_fraction": 0.75, "best": 2}, [("b", 1), ("b", 0), ("a", 1)]),
        ({"top_fraction": 0.01}, [("b", 1)]),  # at least one
        ({"top_fraction": 1.0}, [("b", 1), ("a", 1)]),
    ],
)
def test_select_across_prompts(options, expected):
    select = Select(weights={"x": 1.0}, method="fixed", **options)
    assert won(select([group("a", x=[1, 2]), group("b", x=[8, 9])]).winners) == expected


def test_weights_are_the_exponential_of_the_key():
    winners = weighted([group("a", x=[0, 1, 2])], [(0.0, math.log(2), math.log(5))], tau=1.0)
    assert [w.weight for w in winners] == pytest.approx([3 / 8, 6 / 8, 15 / 8])  # 1 : 2 : 5, mean 1
    half = weighted([group("a", x=[0, 1])], [(0.0, math.log(2))], tau=0.5)
    assert [w.weight for w in half] == pytest.approx([2 / 5, 8 / 5])  # 1 : 4


def test_weights_at_the_ends_of_tau():
    groups, keys = [group("a", x=[0, 1, 2])], [(0.0, 1.0, 1000.0)]
    assert [w.weight for w in weighted(groups, keys, tau=1e-3)] == [0.0, 0.0, 3.0]
    assert [w.weight for w in weighted(groups, keys, tau=1e9)] == pytest.approx([1, 1, 1], abs=1e-5)


def test_select_gives_the_keys_of_all_candidates():
    selection = Select(weights={"x": 1.0}, tau=1.0)([group("a", x=[0, 2]), group("b", x=[3, 3])])
    assert selection.keys == ((-1.0, 1.0), (0.0, 0.0))
    assert won(selection.winners) == [("a", 0), ("a", 1)]
    assert won(Select(weights={"x": -1.0})([group("a", x=[0, 2])]).winners) == [("a", 0)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": {}}, "one of them other than 0"),
        ({"weights": {"x": 0.0}}, "one of them other than 0"),
        ({"weights": {"x": math.inf}}, "weights must be finite"),
        ({"method": "rank"}, "unknown method 'rank'"),
        ({"best": 0}, "best must be at least 1"),
        ({"top_fraction": 0.5, "top_count": 3, "method": "fixed"}, "same thing twice"),
        ({"top_fraction": 0.0, "method": "fixed"}, "above 0 and at most 1"),
        ({"top_fraction": 1.5, "method": "fixed"}, "above 0 and at most 1"),
        ({"top_count": 0, "method": "fixed"}, "top_count must be at least 1"),
        ({"top_count": 3}, "z-scores do not allow"),
        ({"tau": 0.0}, "tau must be a finite number above 0"),
        ({"tau": math.inf}, "tau must be a finite number above 0"),
        ({"tau": 1.0, "best": 2}, "leave out best"),
        ({"tau": 1.0, "top_count": 2, "method": "fixed"}, "leave out best"),
        ({"min_spread": -0.1}, "min_spread must be a finite number, 0 or more, not -0.1"),
        ({"diversity": math.inf}, "diversity must be a finite number, 0 or more, not inf"),
        ({"min_spread": 0.5, "top_count": 2, "method": "fixed"}, "by their own rule; choose one"),
        ({"diversity": 0.5, "tau": 1.0, "distance": by_letter}, "diversity chooses nothing"),
        ({"diversity": 0.5}, "diversity needs a distance between two samples"),
    ],
)
def test_settings_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Select(**{"weights": {"x": 1.0}} | options)


def test_spread_is_a_share_of_the_rounds_typical():
    """Deviations 1 and 7 of x: typical sqrt((1 + 49) / 2) = 5. Of y: 3 and 4, typical sqrt(25 / 2)."""
    groups = [group("a", x=[0, 2], y=[0, 6]), group("b", x=[0, 14], y=[0, 8])]
    assert spreads(groups, weights={"x": 1.0}) == pytest.approx((1 / 5, 7 / 5))
    y = (3 / math.sqrt(12.5), 4 / math.sqrt(12.5))
    mixed = spreads(groups, weights={"x": -3.0, "y": 1.0})  # a negative weight looks at the reward as much
    assert mixed == pytest.approx(((3 * 1 / 5 + y[0]) / 4, (3 * 7 / 5 + y[1]) / 4))


def test_rewards_that_vary_nowhere_or_do_not_rank_have_no_say_in_the_spread():
    groups = [group("a", x=[0, 2], flat=[1, 1], other=[0, 99]), group("b", x=[0, 14], flat=[5, 5], other=[0, 1])]
    alone = spreads(groups, weights={"x": 1.0})
    assert spreads(groups, weights={"x": 1.0, "flat": 5.0, "other": 0.0}) == alone
    assert spreads(groups, weights={"flat": 1.0}) == (0.0, 0.0)


@given(st.lists(st.lists(st.floats(-9, 9), min_size=2, max_size=4), min_size=1, max_size=5), st.floats(1e-2, 1e2))
def test_spread_does_not_depend_on_a_rewards_scale_and_is_typically_one(values, scale):
    groups, larger = ([group(str(i), x=[f * x for x in row]) for i, row in enumerate(values)] for f in (1, scale))
    found = spreads(groups, weights={"x": 1.0})
    if max(max(row) - min(row) for row in values) > 1e-3:
        assert math.fsum(x * x for x in found) / len(found) == pytest.approx(1)
        assert spreads(larger, weights={"x": 1.0}) == pytest.approx(found)


@pytest.mark.parametrize(
    ("min_spread", "names"),
    [
        (0.0, "abc"),
        (0.19, "abc"),
        (0.21, "bc"),
        (1.0, "bc"),
        (1.1, "b"),
        (9.0, "b"),
    ],  # the one that varies most always stays
)
@pytest.mark.parametrize("tau", [None, 1.0])
def test_groups_that_barely_vary_have_no_winner(min_spread, names, tau):
    groups = [group("a", x=[0, 2]), group("b", x=[0, 14]), group("c", x=[0, 10])]  # 1, 7 and 5; typical 5
    selection = Select(weights={"x": 1.0}, min_spread=min_spread, tau=tau)(groups)
    assert {name for name, _ in won(selection.winners)} == set(names)
    assert len(selection.keys) == 3


def test_a_group_of_equal_keys_is_never_the_one_that_stays():
    groups = [group("a", x=[0, 8], y=[8, 0]), group("b", x=[0, 1], y=[0, 0])]  # in the first the rewards cancel
    selection = Select(weights={"x": 1.0, "y": 1.0}, min_spread=99.0)(groups)
    assert won(selection.winners) == [("b", 1)]


@pytest.mark.parametrize(
    ("margin", "chosen"),
    [
        (0.0, [0, 1, 2]),
        (0.5, [0, 1, 2]),  # 4 against 3 and 1: nothing lies within the margin
        (1.0, [0, 2, 1]),  # of 4 and 3 the one of key 3 is farther from the first winner; 4 is next, 1 too low
        (9.0, [0, 3, 2]),  # the farthest of all; then 2 lies 4 from the nearest winner, 1 lies 0.1
    ],
)
def test_the_least_similar_of_nearly_equal_candidates_wins(margin, chosen):
    select = Select(weights={"x": 1.0}, method="fixed", best=3, diversity=margin, distance=by_letter)
    winners = select([group("a", x=[6, 4, 3, 1])]).winners
    assert [k for _, k in won(winners)] == chosen
    assert [w.key for w in winners] == [[6, 4, 3, 1][k] for k in chosen]


def test_winners_of_another_group_of_the_prompt_count_and_those_of_another_prompt_do_not():
    def contest(name, number, x):
        made = group(name, x=x)
        rows = [
            Scored(Sample(Draw(made.prompt, 2 * number + k, seed=k), None), row.scores)
            for k, row in enumerate(made.candidates)
        ]
        return Group(made.prompt, tuple(rows))

    def unlike(first, second):
        assert first.prompt == second.prompt
        return abs(first.draw.k - second.draw.k)

    groups = [contest("a", 0, [1.0, 0.9]), contest("b", 1, [1.0, 0.9]), contest("a", 1, [1.0, 0.9])]
    select = Select(weights={"x": 1.0}, method="fixed", diversity=0.2, distance=unlike)
    assert won(select(groups).winners) == [("a", 0), ("b", 2), ("a", 3)]


def test_equally_unlike_candidates_go_by_their_keys():
    select = Select(weights={"x": 1.0}, method="fixed", best=2, diversity=9.0, distance=lambda *_: 1.0)
    assert won(select([group("a", x=[1, 3, 2])]).winners) == [("a", 1), ("a", 2)]


def test_winners_of_earlier_rounds_fade():
    rounds = [best_of_k([group(name, x=[0, 1])], [(0.0, 1.0)]) for name in "abc"]
    assert [(w.sample.prompt.text, w.weight) for w in aged(rounds, 0.5)] == [("a", 0.25), ("b", 0.5), ("c", 1.0)]
    assert aged(rounds, 1.0) == [winner for winners in rounds for winner in winners]
    assert aged([weighted([group("a", x=[0, 1])], [(0.0, math.log(3))], tau=1.0), ()], 0.1)[1].weight == (
        pytest.approx(0.15)  # 1.5 of 0.5 and 1.5
    )
