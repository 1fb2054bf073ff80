import hashlib
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft_diffusion.core.records import Draw, Prompt, Sample, Scored, Winner, derive_seed


def test_seed_is_the_head_of_a_published_hash():
    digest = hashlib.sha256(b"7\x1fsample\x1f3\x1fabc\x1f0").hexdigest()
    assert derive_seed(7, "sample", 3, "abc", 0) == int(digest[:16], 16) // 2


def test_seed_never_changes_between_versions():
    assert derive_seed(0, "tune", 1) == 7378611342386050996


@given(st.integers(), st.text(), st.lists(st.integers() | st.text()))
def test_seed_fits_a_signed_word(seed, purpose, position):
    assert 0 <= derive_seed(seed, purpose, *position) < 2**63


def test_neighbouring_positions_have_seeds_of_their_own():
    positions = [(a, b) for a in range(1, 40) for b in range(40)]
    seeds = {derive_seed(0, "sample", *position) for position in positions}
    assert len(seeds) == len(positions)
    assert derive_seed(0, "a", 1, 23) != derive_seed(0, "a", 12, 3)
    assert len({derive_seed(seed, purpose, 1) for seed in (0, 1) for purpose in ("draw", "tune")}) == 4


def test_prompt_id_is_of_its_words_alone():
    cat = Prompt("a cat")
    assert cat.id == hashlib.sha256(b"a cat\x1f").hexdigest()[:10]
    assert Prompt("a cat", weight=3.0).id == cat.id
    assert len({cat.id, Prompt("a dog").id, Prompt("a cat", negative="blurry").id}) == 3


def test_sample_and_winner_know_where_they_come_from():
    draw = Draw(Prompt("a cat"), 7, seed=1)
    sample = Sample(draw, "data")
    winner = Winner(Scored(sample, {"x": 1.0}), key=0.5)
    assert sample.id == draw.id == f"{Prompt('a cat').id}-007"
    assert sample.prompt is draw.prompt
    assert winner.sample is sample
    assert winner.weight == 1.0


def test_records_are_frozen():
    with pytest.raises(FrozenInstanceError):
        Prompt("a cat").text = "a dog"  # pyright: ignore[reportAttributeAccessIssue]
