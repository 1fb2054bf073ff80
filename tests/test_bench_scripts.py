"""The comparisons under tests/bench: their arithmetic, by hand."""

import json
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from PIL import Image

BENCH = Path(__file__).with_name("bench")


@pytest.fixture
def scripts(monkeypatch):
    """curves, peers and ddpo as they import each other."""
    monkeypatch.syspath_prepend(str(BENCH))
    import curves
    import ddpo
    import peers

    yield curves, peers, ddpo
    for name in ("curves", "ddpo", "peers", "tuning"):
        sys.modules.pop(name, None)


def test_the_time_to_a_level_is_the_first_at_which_it_was_reached(scripts):
    curves, _, _ = scripts
    curve = [(0.0, 0.25), (10.0, 0.7), (20.0, 0.6), (30.0, 0.9)]
    assert curves.time_to(curve, 0.6) == 10.0
    assert curves.time_to(curve, 0.7) == 10.0
    assert curves.time_to(curve, 0.71) == 30.0
    assert curves.time_to(curve, 0.95) is None


def test_ratios_are_taken_pair_by_pair_and_a_level_never_reached_has_none(scripts):
    curves, _, _ = scripts
    mine = [[(0.0, 0.2), (10.0, 0.8)], [(0.0, 0.2), (20.0, 0.8)], [(0.0, 0.2), (30.0, 0.8)]]
    theirs = [[(0.0, 0.2), (50.0, 0.5)], [(0.0, 0.2), (60.0, 0.6)], [(0.0, 0.2), (300.0, 0.7)]]
    (row,) = curves.compared(mine, theirs, [0.6])
    assert row == {
        "level": 0.6,
        "mine": [20.0, 10.0, 30.0, 3],
        "theirs": [180.0, 60.0, 300.0, 2],
        "mine_never": 0,
        "theirs_never": 1,
        "ratio": [6.5, 3.0, 10.0, 2],
    }
    best = curves.to_their_best(mine, theirs)
    assert (best["level"], best["theirs_never"]) == (0.6, 0)
    assert best["ratio"] == [5.0, 3.0, 10.0, 3]
    nothing = curves.compared(mine, theirs, [0.99])[0]
    assert (nothing["ratio"], nothing["mine_never"]) == (None, 3)


def test_the_base_itself_makes_no_ratio(scripts):
    curves, _, _ = scripts
    assert curves.compared([[(0.0, 0.9)]], [[(0.0, 0.9)]], [0.5])[0]["ratio"] is None


def test_what_is_done_is_not_done_again(scripts, tmp_path):
    curves, _, _ = scripts
    path = tmp_path / "deep" / "one.json"
    assert curves.kept(path, lambda: {"a": 1}) == {"a": 1}
    assert curves.kept(path, lambda: pytest.fail("again")) == {"a": 1}
    assert [file.name for file in path.parent.iterdir()] == ["one.json"]


def test_numbers_for_people(scripts):
    curves, _, _ = scripts
    assert curves.told(curves.middle([3.0, 1.0, 2.0])) == "2 (1 to 3)"
    assert curves.told(curves.middle([2.0])) == "2"
    assert curves.told(curves.middle([])) == "-"


def test_the_picture_of_the_curves_is_whole(scripts, tmp_path):
    curves, _, _ = scripts
    runs = {"ours <1>": [[(0.0, 0.2), (10.0, 0.5), (100.0, 1.0)]], "theirs": [[(0.0, 0.2), (1000.0, 0.0)]]}
    curves.write_svg(tmp_path / "curves.svg", runs, title="a & b")
    root = ET.parse(tmp_path / "curves.svg").getroot()
    lines = [node.get("points") for node in root.iter() if node.tag.endswith("polyline")]
    # the time axis is a logarithm from 10 s to 1000 s, 56 to 620; the score goes from 300 up to 20
    assert lines == ["56.0,160.0 338.0,20.0", "620.0,300.0"]
    assert {"a & b", "ours <1>"} <= {node.text for node in root.iter()}


def test_two_sets_of_pictures_are_compared_level_by_level(scripts):
    _, peers, _ = scripts
    black, almost = Image.new("RGB", (2, 2)), Image.new("RGB", (2, 2))
    almost.putpixel((0, 0), (3, 1, 0))
    found = peers.difference([black, black], [almost, black])
    assert found == {"largest_difference": 3.0, "share_of_levels_that_differ": 2 / 24}


def test_a_finished_learner_is_not_run_again_and_a_half_one_from_its_start(scripts, tmp_path, monkeypatch):
    _, peers, _ = scripts
    called = []
    folder = tmp_path / "ours-0"
    folder.mkdir()
    (folder / "half").touch()

    def run(command, check):
        called.append(command[1:3])
        assert not (folder / "half").exists()
        (folder / "times.json").write_text("[1.0, 2.0]")

    monkeypatch.setattr(peers.subprocess, "run", run)
    assert peers.learn(folder, ["peers.py", "learn"]) == [1.0, 2.0]
    assert peers.learn(folder, ["peers.py", "learn"]) == [1.0, 2.0]
    assert called == [["peers.py", "learn"]]


def test_a_trial_is_chosen_by_its_own_reward_at_its_end(scripts):
    _, _, ddpo = scripts
    rows = [{"reward": reward} for reward in (1.0, 5.0, 5.0, 5.0, 5.0, 5.0, 3.0, 4.0)]
    assert ddpo.reached(rows) == 3.5  # the last quarter is 3 and 4
    assert ddpo.reached(rows[:1]) == 1.0


def test_the_search_puts_the_best_trial_first_and_keeps_them_all(scripts, tmp_path, monkeypatch):
    _, _, ddpo = scripts
    asked = []

    def run(folder, **options):
        asked.append((folder.name, options["rate"], options["images"], options["budget"]))
        reward = {3e-4: 1.0, 1e-3: 3.0, 3e-3: 2.0, 1e-2: 9.0}[options["rate"]]
        return [{"reward": 0.0, "broken": False}, {"reward": reward, "broken": options["rate"] == 1e-2}]

    monkeypatch.setattr(ddpo, "run", run)
    given = ddpo.parse(["--out", str(tmp_path), "--epochs", "32", "--trial", "7"])
    trials = ddpo.search(given, ddpo.Console(quiet=True))
    assert [trial["rate"] for trial in trials] == [1e-3, 3e-3, 3e-4, 1e-2]
    assert asked[0] == ("search-0.0003-32", 3e-4, 32, 7.0) and len(asked) == 4
    json.dumps(trials)


def test_quick_is_small_and_everything_can_be_set(scripts):
    _, peers, ddpo = scripts
    assert peers.parse(["authors"]).steps == 50 and peers.parse(["authors"]).their_rounds == 10
    assert peers.parse(["authors", "--quick", "--pairs", "8"]).pairs == 8
    assert (peers.parse(["pipeline", "--quick"]).batch, peers.parse(["pipeline"]).batch) == (4, 64)
    assert ddpo.parse([]).budget == 1200 and ddpo.parse(["--quick"]).budget == 1


def test_ours_and_the_scripts_tuning_take_turns_on_the_same_pictures(scripts, tmp_path):
    """The only test here that loads a model: the carried one, for two steps each."""
    import tuning

    assert (
        tuning.main(["--quick", "--batch", "2", "--size", "32", "--threads", "1", "--json", str(tmp_path / "a")]) == 0
    )
    found = json.loads((tmp_path / "a").read_text())
    mine, script = (found["samples_per_second"][name][0] for name in ("ours", "script"))
    assert found["ratio"][0] == pytest.approx(mine / script) and found["steps"] * found["batch"] == 4


@pytest.mark.slow
def test_ours_and_the_pipeline_make_the_same_pictures(scripts, tmp_path):
    _, peers, _ = scripts
    options = ["--quick", "--threads", "1", "--out", str(tmp_path / "out"), "--json", str(tmp_path / "a")]
    assert peers.main(["pipeline", *options]) == 0
    found = json.loads((tmp_path / "a").read_text())
    assert found["largest_difference"] <= 2 and found["share_of_levels_that_differ"] < 0.01
    assert set(found["ratio"]) == {"pipeline, one image a call", "pipeline, equal batch"}
