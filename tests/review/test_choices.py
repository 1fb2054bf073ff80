"""What a person chose: what can follow what, what wins, and what a choice in a finished round does to the run."""

import json
import os
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from raft_diffusion.checks import check
from raft_diffusion.commands.review import round_to_review
from raft_diffusion.core.choices import HUMAN, Action, Choices, select_chosen
from raft_diffusion.core.overrule import ids_of, overruled, set_aside, what_follows
from raft_diffusion.core.records import Draw, Group, Prompt, Sample, Scored
from raft_diffusion.core.select import Select
from raft_diffusion.core.store import complete_rounds, round_folder, stored_round, stored_rounds, waiting_round
from raft_diffusion.jobs import load_config
from raft_diffusion.review.desk import Desk
from raft_diffusion.rewards import check_names

TOYS = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "toys.py")))
GROUPS = (("a", "b", "c"), ("d", "e", "f"))


def choices(*actions, best=1):
    made = [Action(do=do, group=group, id=name) for do, group, name in actions]
    return Choices.replay(GROUPS, best=best, actions=made)


def groups(*rows):
    """Groups of candidates with these human scores."""
    found = []
    for number, row in enumerate(rows):
        prompt = Prompt(f"prompt {number}")
        scored = [Scored(Sample(Draw(prompt, k, 0), None), {HUMAN: value}) for k, value in enumerate(row)]
        found.append(Group(prompt, tuple(scored)))
    return found


# --- choosing ---------------------------------------------------------------------------------------------------------


def test_a_new_best_takes_the_place_of_the_old_one():
    now = choices(("choose", 0, "a"), ("choose", 0, "c"))
    assert now.marks[0].chosen == ("c",)
    assert now.undone().marks[0].chosen == ("a",)


def test_of_several_no_more_than_the_run_learns_from():
    two = choices(("choose", 0, "a"), ("choose", 0, "b"), best=2)
    assert two.marks[0].chosen == ("a", "b")
    with pytest.raises(ValueError, match=r"2 are chosen, .* take one back first"):
        two.then(Action(do="choose", group=0, id="c"))


def test_a_picture_is_chosen_or_rejected_or_neither():
    now = choices(("choose", 0, "a"), ("reject", 0, "a"), ("reject", 1, "e"), ("choose", 1, "d"))
    assert now.scores() == {"a": -1.0, "b": 0.0, "c": 0.0, "d": 1.0, "e": -1.0, "f": 0.0}
    assert now.then(Action(do="clear", group=1, id="d")).scores()["d"] == 0.0


def test_a_round_is_finished_when_every_group_was_left_and_one_has_a_winner():
    one = choices(("choose", 0, "a"), ("done", 0, ""))
    with pytest.raises(ValueError, match="not every prompt is done"):
        one.then(Action(do="finish"))
    both = one.then(Action(do="done", group=1))
    assert not both.finished and both.then(Action(do="finish")).finished
    with pytest.raises(ValueError, match="choose one picture"):
        choices(("done", 0, ""), ("done", 1, "")).then(Action(do="finish"))


def test_whoever_changes_a_finished_round_must_finish_it_again():
    over = choices(("choose", 0, "a"), ("done", 0, ""), ("done", 1, ""), ("finish", 0, ""))
    assert over.finished and not over.undone().finished
    assert not over.then(Action(do="reject", group=1, id="d")).finished


def test_choices_come_back_from_disk(tmp_path):
    now = choices(("choose", 0, "a"), ("reject", 1, "e"), ("done", 0, ""))
    now.write(tmp_path)
    assert Choices.read(tmp_path, GROUPS, best=1) == now
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"actions": 3}',
        '{"actions": [{"do": "eval"}]}',
        '{"actions": [{"do": "choose", "id": "zzz"}]}',
        '{"actions": [{"do": "finish"}]}',
        '{"actions": [{"do": "done", "group": "0"}]}',
        "[" * 100_000,
    ],
)
def test_damaged_choices_are_refused_by_name(tmp_path, text):
    (tmp_path / "choices.json").write_text(text)
    with pytest.raises(ValueError, match=r"choices\.json does not hold choices of this round .* delete it"):
        Choices.read(tmp_path, GROUPS, best=1)


# --- ranking ----------------------------------------------------------------------------------------------------------


def test_only_the_chosen_win():
    """With m = 2 the neutral and the rejected do not fill up a group, and a group without a choice teaches nothing."""
    selection = select_chosen(2)(groups((0, 1, -1, 0), (0, 0, 0, 0), (-1, -1, 0, 0), (1, 1, -1, -1)))
    assert [(w.sample.prompt.text, w.sample.draw.k) for w in selection.winners] == [
        ("prompt 0", 1),
        ("prompt 3", 0),
        ("prompt 3", 1),
    ]


def test_a_group_of_nothing_but_winners_teaches_too():
    assert len(select_chosen(2)(groups((1, 1))).winners) == 2


def test_nothing_chosen_is_refused():
    with pytest.raises(ValueError, match="nothing can be learned"):
        select_chosen(1)(groups((0, -1), (0, 0)))


@pytest.mark.parametrize("other", [{"method": "zscore"}, {"top_count": 2}, {"tau": 1.0}, {"min_spread": 0.5}])
def test_a_floor_stands_with_best_alone(other):
    with pytest.raises(ValueError, match="above judges each raw key"):
        Select(**{"weights": {"x": 1.0}, "method": "fixed", "above": 0.0, **other})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("rewards.weights.text_image=1", "rewards.weights.text_image"),
        ("selection.tau=1.0", "selection.tau"),
        ("selection.min_spread=0.5", "selection.min_spread"),
        ("stop_when_flat=2", "stop_when_flat"),
        ("rewards.weights.human=-1", "must be above 0"),
    ],
)
def test_a_person_ranks_alone(change, named):
    config = TOYS.configure()
    check(config)
    with pytest.raises(ValueError, match=named):
        check(config.with_overrides([change]))


def test_the_command_line_lets_one_reward_rank_alone():
    human = load_config("pocket-monet", reward="human")
    assert (human.rewards.weights, human.rewards.custom, human.selection.best) == ({"human": 1.0}, [], 4)
    check(human)
    own = load_config("pocket-monet", reward="my_rewards:brightness")
    assert (own.rewards.weights, own.rewards.custom) == ({"brightness": 1.0}, ["my_rewards:brightness"])
    with pytest.raises(ValueError, match=r"selection\.top_fraction"):
        check(load_config("pocket-monet", reward="human", recipe="paper"))


def test_a_person_is_no_score_of_a_picture():
    with pytest.raises(ValueError, match=r"human is you, .* train --reward human"):
        check_names(["human"])


# --- a run that waits -------------------------------------------------------------------------------------------------


def choose(run, index=None, *, darkest=True):
    """Finish a round: the darkest (or brightest) picture of every prompt, by the desk as the page does."""
    desk = Desk(run, index)
    sheet = desk._open()
    assert sheet is not None

    def act(**message):
        shown = desk.show()
        desk.act({"round": shown["round"], "revision": shown["choices"]["revision"], **message})

    for p, group in enumerate(sheet.round.groups):
        levels = [TOYS.level_of(group.candidates[k].sample.data) for k in sheet.order[p]]
        act(do="choose", group=p, place=levels.index(min(levels) if darkest else max(levels)))
        act(do="done", group=p)
    act(do="finish")


def test_a_run_that_was_stopped_while_it_waited_samples_nothing_again(tmp_path):
    config = TOYS.configure(rounds=1)

    def stop(stage, done, total):
        raise KeyboardInterrupt

    painter = TOYS.Painter()
    with pytest.raises(KeyboardInterrupt):
        list(TOYS.rounds_of(tmp_path / "run", config, painter=painter, announce=lambda _: None, progress=stop))
    assert painter.asked == 1
    choose(tmp_path / "run")  # by `review`, while no run goes on
    again = TOYS.Painter()
    found = list(TOYS.rounds_of(tmp_path / "run", config, painter=again))
    assert again.asked == 0 and len(found) == 1
    stored = stored_round(tmp_path / "run", 1)
    for group in stored.groups:
        darkest = min(group.candidates, key=lambda c: TOYS.level_of(c.sample.data))
        assert darkest.scores[HUMAN] == 1.0 and darkest.sample.id in stored.winners
    assert waiting_round(tmp_path / "run") is None
    assert (round_folder(tmp_path / "run", 1) / "choices.json").is_file()


def test_settings_of_a_run_that_waits_may_not_change(tmp_path):
    run = TOYS.waiting_run(tmp_path / "run")
    with pytest.raises(ValueError, match=r"sampling\.guidance_scale was"):
        TOYS.open_run(run, TOYS.configure().with_overrides(["sampling.guidance_scale=2.0"]))


def test_a_round_that_lost_its_latents_is_drawn_again_from_its_seeds(tmp_path):
    run = TOYS.waiting_run(tmp_path / "run")
    choose(run)
    (run / "rounds/001.waiting/candidates/levels.json").unlink()
    painter = TOYS.Painter()
    with pytest.warns(UserWarning, match="round 1 is drawn again"):
        next(TOYS.rounds_of(run, TOYS.configure(), painter=painter))
    assert painter.asked == 1
    assert len(stored_round(run, 1).winners) == 3


# --- a finished round that is overruled -------------------------------------------------------------------------------


def test_an_overruled_round_is_tuned_again_and_nothing_is_lost(tmp_path):
    run = TOYS.finished_run(tmp_path / "run", rounds=3)
    before = {r.index: r for r in stored_rounds(run)}
    old = {path.name: path.read_bytes() for path in (run / "rounds/002/candidates").glob("*")}
    (run / "lora").mkdir()
    (run / "lora" / "weights").write_text("of round 3")
    assert overruled(run, best=1) is None
    choose(run, 2)
    assert overruled(run, best=1) == 2
    place = set_aside(run, 2)
    assert place == run / "replaced" / "1"
    assert complete_rounds(run) == [1]
    assert sorted(path.name for path in (place / "rounds").iterdir()) == ["002", "003"]
    assert (place / "lora" / "weights").read_text() == "of round 3"
    assert (place / "metrics.jsonl").read_text().count("\n") == 3
    painter = TOYS.Painter()
    found = list(TOYS.rounds_of(run, TOYS.configure(human=False, rounds=3), painter=painter))
    assert [round_.index for round_ in found] == [2, 3]
    assert painter.asked == 1  # round 3 alone: round 2 is tuned on the very pictures that were looked at
    after = {r.index: r for r in stored_rounds(run)}
    new = {path.name: path.read_bytes() for path in (run / "rounds/002/candidates").glob("*.png")}
    assert new == {name: data for name, data in old.items() if name.endswith(".png")}
    assert after[1].winners == before[1].winners
    for group in after[2].groups:
        darkest = min(group.candidates, key=lambda c: TOYS.level_of(c.sample.data))
        brightest = max(group.candidates, key=lambda c: TOYS.level_of(c.sample.data))
        assert darkest.sample.id in after[2].winners and brightest.sample.id in before[2].winners
        assert set(darkest.scores) == {"brightness", HUMAN}
    assert set(after[3].groups[0].candidates[0].scores) == {"brightness"}
    assert found[0].figures["level"] < json.loads((place / "rounds/002/round.json").read_text())["figures"]["level"]
    assert overruled(run, best=1) is None and not list((run / "rounds").glob("*.waiting"))


def test_choices_that_are_not_finished_change_nothing(tmp_path):
    run = TOYS.finished_run(tmp_path / "run", rounds=1)
    Desk(run, 1).act({"round": 1, "revision": 0, "do": "choose", "group": 0, "place": 0})
    assert overruled(run, best=1) is None


@pytest.mark.parametrize("killed_after", [0, 1, 2, 3, 4])
def test_setting_aside_can_be_killed_anywhere(tmp_path, monkeypatch, killed_after):
    """Whatever rename is the last: the next start ends as an undisturbed one does."""
    run = TOYS.finished_run(tmp_path / "run", rounds=3)
    choose(run, 2)
    count = 0
    rename = os.rename

    def dies(*arguments):
        nonlocal count
        if count == killed_after:
            raise KeyboardInterrupt
        count += 1
        rename(*arguments)

    monkeypatch.setattr(os, "rename", dies)
    try:
        set_aside(run, 2)
    except KeyboardInterrupt:
        assert killed_after < 4  # the waiting round, metrics.jsonl, rounds 3 and 2
    monkeypatch.undo()
    if (index := overruled(run, best=1)) is not None:
        set_aside(run, index)
    list(TOYS.rounds_of(run, TOYS.configure(human=False, rounds=3)))
    rounds = list(stored_rounds(run))
    assert [r.index for r in rounds] == [1, 2, 3]
    choices = Choices.read(round_folder(run, 2), ids_of(rounds[1]), best=1)
    assert {name for name, score in choices.scores().items() if score == 1} == rounds[1].winners
    kept = sorted(path.name for path in (run / "replaced").glob("*/rounds/*"))
    assert kept == ["002", "003"]


def test_the_words_say_what_an_overruled_round_costs():
    assert what_follows([1, 2, 3, 4], 4) == "round 4 is tuned again on what you chose"
    assert what_follows([1, 2, 3, 4], 3).endswith("and round 4, which came of it, made anew")
    assert what_follows([1, 2, 3, 4], 1).endswith("and rounds 2 to 4, which came of it, made anew")


def test_review_finds_its_round(tmp_path):
    waiting, finished = TOYS.waiting_run(tmp_path / "a"), TOYS.finished_run(tmp_path / "b", rounds=2)
    assert round_to_review(waiting, None) is None and round_to_review(waiting, 1) is None
    assert round_to_review(finished, None) == 2 and round_to_review(finished, 1) == 1
    with pytest.raises(ValueError, match="no complete round 3; give 1 to 2"):
        round_to_review(finished, 3)
    with pytest.raises(ValueError, match="no complete round"):
        round_to_review(waiting, 2)
