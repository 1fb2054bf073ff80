"""Successive halving: who goes on, what it costs and what it says of itself, by hand."""

from collections import Counter

import pytest

from raft_diffusion.core.halving import (
    Phase,
    agreement,
    best,
    figures,
    guided_calls,
    lot,
    phases,
    preview_interval,
    rank_correlation,
    spared_contests,
)
from raft_diffusion.core.records import Draw, Group, Prompt, Sample, Scored

CAT = Prompt("cat")


def contest(size: int, first: int = 0) -> list[Draw]:
    return [Draw(CAT, k, 1000 * first + k) for k in range(size)]


def test_the_phases_of_sixteen_candidates_in_twelve_calls():
    found = phases(12, 16, at=[0.25, 0.5], keep=[0.5, 0.25])
    assert found == [Phase(16, 0, 3), Phase(8, 3, 6), Phase(4, 6, 12)]
    assert sum(phase.alive * (phase.end - phase.first) for phase in found) == 48 + 24 + 24  # of 192


def test_after_previews_candidates_begin_anew():
    found = phases(12, 16, at=[1 / 3, 5 / 12], keep=[5 / 16, 1 / 4], preview=4)
    assert found == [Phase(16, 0, 4, preview=True), Phase(5, 0, 5), Phase(4, 5, 12)]
    assert phases(12, 16, at=[0.5, 0.25], keep=[0.5, 0.5], preview=6) == [
        Phase(16, 0, 6, preview=True),
        Phase(8, 0, 12),
    ]
    assert phases(4, 16, at=[0.9], keep=[0.5], preview=4) == [Phase(16, 0, 4)]  # a preview as dear as the picture


def test_previews_of_pictures_guided_throughout_are_guided_in_the_middle_half():
    assert preview_interval([0, 1]) == (0.25, 0.75) and preview_interval((0, 0.5)) == (0, 0.5)
    assert list(guided_calls(4, preview_interval([0, 1]))) == [1, 2]


@pytest.mark.parametrize(
    ("calls", "k", "at", "keep", "expected"),
    [
        (12, 16, [], [], [Phase(16, 0, 12)]),
        (12, 2, [0.5], [0.5], [Phase(2, 0, 12)]),  # one, and one that might be spared: nobody is left out
        (1, 8, [0.5], [0.25], [Phase(8, 0, 1)]),
        (2, 8, [0.25, 0.5], [0.5, 0.25], [Phase(8, 0, 1), Phase(2, 1, 2)]),  # a stop before the first call is none
        (4, 8, [0.5, 0.9], [0.25, 0.1], [Phase(8, 0, 2), Phase(2, 2, 4)]),  # nor is one after the last
    ],
)
def test_a_stop_that_leaves_nobody_out_is_none(calls, k, at, keep, expected):
    assert phases(calls, k, at=at, keep=keep) == expected


@pytest.mark.parametrize(
    ("interval", "expected"), [((0, 1), [0, 1, 2, 3]), ((0.25, 0.75), [1, 2]), ((0.9, 1), []), ((0, 0.5), [0, 1])]
)
def test_the_guided_calls_of_four(interval, expected):
    assert list(guided_calls(4, interval)) == expected


def test_the_best_go_on_and_one_of_the_others():
    draws = contest(6)
    scores = dict(zip([draw.id for draw in draws], [0.1, 0.9, 0.5, 0.9, 0.2, 0.3], strict=True))
    some = best(draws, scores, count=2, spared=None)
    assert some == {draws[1].id, draws[3].id}
    spared = lot(draws, some)
    assert spared in {draw.id for draw in draws} - some
    left = [draw for draw in draws if draw.id in {*some, spared}]
    again = best(left, {name: -1.0 if name == spared else 0.0 for name in scores}, count=1, spared=spared)
    assert again == {spared, draws[1].id}  # equal ones: the lower k; the spared one is the last, and still there


@pytest.mark.parametrize(("contests", "expected"), [(0, 0), (1, 1), (4, 1), (5, 2), (10, 3)])
def test_one_contest_of_four_has_one_that_is_spared(contests, expected):
    assert spared_contests(contests) == expected


def test_whom_the_lot_spares_is_chance_and_repeatable():
    scores = {draw.id: float(-draw.k) for draw in contest(6)}

    def drawn(first: int) -> str:
        draws = contest(6, first)
        return lot(draws, best(draws, scores, count=2, spared=None))[-1]

    chosen = [drawn(first) for first in range(400)]
    assert chosen == [drawn(first) for first in range(400)]
    counts = Counter(chosen)
    assert set(counts) == set("2345") and min(counts.values()) > 70 and max(counts.values()) < 130


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1, 2, 3, 4], [10, 20, 30, 50], 1.0),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1.0),
        ([1, 2, 3, 4], [1, 2, 4, 3], 0.8),  # 1 - 6 (1 + 1) / (4 x 15)
        ([1, 2, 2, 3], [1, 3, 2, 4], 4.5 / 22.5**0.5),  # ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4
        ([1, 1, 1], [1, 2, 3], None),
    ],
)
def test_spearman(first, second, expected):
    found = rank_correlation(first, second)
    assert found is None if expected is None else found == pytest.approx(expected)


def scored(rows: list[list[tuple[float, ...]]], names: list[str]) -> list[Group]:
    def one(row, draws):
        named = [dict(zip(names, values, strict=True)) for values in row]
        return Group(CAT, tuple(Scored(Sample(d, None), scores) for d, scores in zip(draws, named, strict=True)))

    return [one(row, contest(len(row), place)) for place, row in enumerate(rows)]


def test_what_a_pruned_round_says():
    """Two contests of 8, of which 3 are left: at the last stop ranked as in the end, and the other way round."""
    names = ["reward", "early_25", "early_50", "spared"]
    first, second = [(1, 0, 1, 1), (2, 1, 2, 0), (3, 2, 3, 0)], [(1, 0, 3, 1), (2, 1, 2, 0), (3, 2, 1, 0)]
    told = figures(scored([first, second], names), [(1, 2, 3), (3, 2, 1)], k=8, at=[0.25, 0.5])
    assert told == {
        "pruned": 1 - 6 / 16,
        "rank_correlation_25": pytest.approx(0),
        "rank_correlation_50": pytest.approx(1),
        "spared_wins": 0.5,  # the first candidate was spared, and is the best of the second contest
    }


def test_a_round_of_whole_contests_says_that_alone():
    groups = scored([[(1.0,), (2.0,)]], ["reward"])
    assert figures(groups, [(1, 2)], k=2, at=[0.25, 0.5]) == {"pruned": 0.0}


def test_the_agreement_is_the_mean_of_the_rounds_that_were_pruned():
    rounds = [{"loss": 1.0, "rank_correlation_50": 0.8, "rank_correlation_25": 0.0}, {"pruned": 0.0}]
    assert agreement(rounds, 0.5) == 0.8
    assert agreement([*rounds, {"rank_correlation_50": 0.2}], 0.5) == pytest.approx(0.5)
    assert agreement([{"pruned": 0.0}], 0.5) is None
