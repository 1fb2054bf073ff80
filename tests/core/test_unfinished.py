import json

import pytest

from raft_diffusion.core.records import Draw, Prompt, Sample
from raft_diffusion.core.unfinished import Shelf, Unfinished

DRAWS = [Draw(Prompt("a cat"), k, 100 + k) for k in range(4)]


class Numbers:
    """Samples are numbers."""

    def pack(self, samples):
        return json.dumps([sample.data for sample in samples]).encode()

    def unpack(self, content):
        return json.loads(content)


class Maker:
    """Counts how often it was asked."""

    def __init__(self):
        self.calls = 0

    def __call__(self, draws):
        self.calls += 1
        return [Sample(draw, draw.seed / 3) for draw in draws]


def shelf(root, identity="settings"):
    return Shelf(root / "shelf", packer=Numbers(), identity=identity)


def ask(shelf, maker, draws=DRAWS, made_of="weights"):
    return shelf.batch(draws, made_of, lambda: maker(draws))


def test_a_kept_batch_comes_back_in_another_process_without_being_made_again(tmp_path):
    maker = Maker()
    made = ask(shelf(tmp_path), maker)
    back = ask(shelf(tmp_path), maker)
    assert maker.calls == 1
    assert [(s.draw, s.data) for s in back] == [(s.draw, s.data) for s in made]
    assert [s.data for s in back] == [draw.seed / 3 for draw in DRAWS]


@pytest.mark.parametrize(
    "other",
    [
        {"draws": DRAWS[:3]},
        {"draws": DRAWS[::-1]},
        {"draws": [*DRAWS[:3], Draw(Prompt("a cat"), 3, 999)]},
        {"draws": [*DRAWS[:3], Draw(Prompt("a cat", negative="grey"), 3, 103)]},
        {"made_of": "other weights"},
    ],
)
def test_other_draws_another_composition_and_other_weights_are_another_batch(tmp_path, other):
    maker, kept = Maker(), shelf(tmp_path)
    ask(kept, maker)
    ask(kept, maker, **other)
    assert maker.calls == 2


def test_other_settings_find_nothing(tmp_path):
    maker = Maker()
    ask(shelf(tmp_path), maker)
    ask(shelf(tmp_path, identity="other settings"), maker)
    assert maker.calls == 2


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b[:10], lambda b: b"", lambda b: b[:40] + b"9" + b[41:]]
)
def test_what_is_damaged_is_made_again(tmp_path, damage):
    maker, kept = Maker(), shelf(tmp_path)
    ask(kept, maker)
    (path,) = (tmp_path / "shelf").iterdir()
    assert damage(path.read_bytes()) != path.read_bytes()
    path.write_bytes(damage(path.read_bytes()))
    assert [s.data for s in ask(kept, maker)] == [draw.seed / 3 for draw in DRAWS]
    assert maker.calls == 2


def test_finished_work_leaves_nothing_and_other_work_alone(tmp_path):
    unfinished = Unfinished(tmp_path, packer=Numbers(), identity="")
    one, other = unfinished.shelf("round"), unfinished.shelf("guard")
    one.write("a", b"1")
    other.write("a", b"2")
    one.clear()
    assert (one.read("a"), other.read("a")) == (None, b"2")
    unfinished.clear()
    assert list(tmp_path.iterdir()) == []
