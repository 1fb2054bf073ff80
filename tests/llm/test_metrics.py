from pathlib import Path

import pytest

from raft_diffusion.core.records import Draw, Prompt, Sample
from raft_diffusion.llm.completion import Completion
from raft_diffusion.llm.metrics import diversity, pass_at, text_distance, win_lose_tie


def test_diversity_by_hand():
    """a b a | A c: 5 words of 3 kinds; pairs ab, ba, ac."""
    found = diversity(["a b a", "A c"])
    assert (found.distinct_1, found.distinct_2) == (3 / 5, 1.0)
    assert (found.unique_1, found.unique_2) == (2, 3)
    assert found.length == 2.5
    assert found.msttr_100 is None


def test_msttr_takes_whole_segments_of_a_hundred_words():
    words = [str(i) for i in range(100)] + ["a"] * 100 + ["rest"] * 99
    assert diversity([" ".join(words)]).msttr_100 == pytest.approx((1 + 1 / 100) / 2)
    assert diversity([" ".join(words[:150]), " ".join(words[150:])]).msttr_100 == pytest.approx(0.505)


def test_texts_without_words_have_no_variety():
    assert diversity(["", ""]).distinct_2 == 0
    with pytest.raises(ValueError, match="no text"):
        diversity([])


def test_pass_at_k_by_hand():
    """Two right of four: a pair misses both in 1 of 6 draws."""
    assert pass_at([[1, 0, 1, 0]], 1) == 0.5
    assert pass_at([[1, 0, 1, 0]], 2) == pytest.approx(5 / 6)
    assert pass_at([[1, 0, 1, 0], [0, 0, 0, 0]], 4) == 0.5


@pytest.mark.parametrize(("scores", "k"), [([], 1), ([[1, 0]], 3), ([[1, 0]], 0), ([[0.5, 1]], 1)])
def test_pass_at_refuses(scores, k):
    with pytest.raises(ValueError, match=r"question|answers"):
        pass_at(scores, k)


def test_wins_losses_and_ties_add_up():
    assert win_lose_tie([0, 0, 0, 0], [1, -1, 0, 0.05], margin=0.1) == (0.25, 0.25, 0.5)
    with pytest.raises(ValueError, match="no pairs"):
        win_lose_tie([1], [])


def test_distance_is_the_share_of_pairs_that_differ(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("a b c", encoding="utf-8")
    draw = Draw(Prompt("p"), 0, 0)
    first, other = Sample(draw, path), Sample(draw, Completion("A b d", (1,), (2,)))
    assert text_distance(first, other) == pytest.approx(2 / 3)
    assert text_distance(first, first) == 0
