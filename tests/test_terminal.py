"""What a run shows: rows, columns, and a user's words as they are."""

import io

import pytest
from rich.console import Console

from raft_diffusion.core.guard import Look
from raft_diffusion.core.records import Draw, Group, Prompt, Round, Sample, Scored, Selection, Winner
from raft_diffusion.terminal import LiveTable, clean, clock, show_evaluation


def console() -> Console:
    return Console(file=io.StringIO(), width=120, color_system=None)


def text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def a_round(index: int, scores: list[float], **figures: float) -> Round:
    prompt = Prompt("a cat")
    candidates = tuple(
        Scored(Sample(Draw(prompt, k, k), None), {"bright": score, "held_out.bright": score / 2})
        for k, score in enumerate(scores)
    )
    best = max(candidates, key=lambda c: c.scores["bright"])
    selection = Selection((tuple(scores),), (Winner(best, best.scores["bright"]),))
    return Round(index, (Group(prompt, candidates),), selection, figures)


def result(**changes):
    row = {"base": 0.25, "oracle": 0.5, "tuned": 0.75, "difference": 0.5, "ci95": [0.375, 0.625], "pairs": 8}
    values = {
        "settings": {"best_of": 4, "pairs": 8, "ood_pairs": 2},
        "judge": {"object": row, "object_ood": row},
        "rewards": {"bright": row, "bright_ood": row},
        "diversity": {"base": 0.5, "tuned": 0.25},
    }
    return values | changes


# --- a user's words ---------------------------------------------------------------------------------------------------


def test_markup_and_control_characters_are_shown_literally():
    screen = console()
    screen.print(clean("[bold]cat[/bold] [/b] \x1b[31mred\a\r\n\u202eoff"), soft_wrap=True)
    assert text(screen) == "[bold]cat[/bold] [/b] �[31mred����off\n"


def test_other_letters_stay_as_they_are():
    assert clean("Кошка 猫 café 🐈").plain == "Кошка 猫 café 🐈"


def test_a_rewards_name_is_no_markup():
    screen = console()
    with LiveTable(screen, rounds=1, ranking="[/b]\x1b[2J", held_out=None).shown():
        pass
    assert "[/b]�[2J" in text(screen)
    show_evaluation(screen, result(rewards={"[red]x[/b]": result()["rewards"]["bright"]}))
    assert "[red]x[/b]" in text(screen)


def a_look(index: int, score: float, distance: float) -> Look:
    ids = ("a-000", "a-001")
    return Look(
        round=index, judge="t", reward="r", draws=ids, scores=(score, score + 1), distances=(distance, distance)
    )


# --- the table of rounds ----------------------------------------------------------------------------------------------


def test_what_the_guard_sees_stands_in_the_table():
    screen = console()
    table = LiveTable(screen, rounds=2, ranking="bright", held_out="held_out.bright", guarded=True)
    with table.shown():
        table.progress("guard", 8, 8)
        for index, look in ((1, a_look(1, 30.0, 0.5)), (2, None)):
            table.add(a_round(index, [1.0, 3.0], loss=0.25), start=a_look(0, 20.0, 0.4), look=look)
    lines = [line.split() for line in text(screen).splitlines()]
    heads = next(line for line in lines if line and line[0] == "round")
    assert heads[3:6] == ["held-out", "diversity", "loss"]
    assert ["start", "20.50", "100", "%"] in lines
    assert next(line for line in lines if line and line[0] == "1")[1:7] == [
        "2.00",
        "3.00",
        "30.50",
        "125",
        "%",
        "0.250",
    ]
    assert next(line for line in lines if line and line[0] == "2")[1:4] == ["2.00", "3.00", "0.250"]


def test_the_table_has_a_row_a_round():
    screen = console()
    table = LiveTable(screen, rounds=3, ranking="bright", held_out="held_out.bright")
    with table.shown():
        table.progress("sample", 0, 4)
        table.progress("sample", 4, 4)
        table.add(a_round(1, [1.0, 2.0, 3.0, 4.0], loss=0.125))
        table.progress("tune", 1, 2)
        table.add(a_round(2, [3.0, 4.0, 5.0, 6.0]))
    lines = [line.split() for line in text(screen).splitlines()]
    heads = next(line for line in lines if line and line[0] == "round")
    rows = [line for line in lines if line and line[0].isdigit()]
    assert heads[:5] == ["round", "bright", "winners", "held-out", "loss"]
    assert [row[0] for row in rows] == ["1", "2"]
    assert rows[0][1:5] == ["2.50", "4.00", "1.25", "0.125"]
    assert rows[1][1:4] == ["4.50", "6.00", "2.25"]


def test_a_run_without_a_held_out_tower_has_no_such_column():
    screen = console()
    table = LiveTable(screen, rounds=1, ranking="bright", held_out=None)
    with table.shown():
        table.add(a_round(1, [1.0, 2.0]))
    assert "held-out" not in text(screen)


def test_the_table_stays_when_the_run_stops():
    screen = console()
    table = LiveTable(screen, rounds=2, ranking="bright", held_out=None)
    table.add(a_round(1, [1.0, 2.0]))
    with pytest.raises(KeyboardInterrupt), table.shown():
        raise KeyboardInterrupt
    assert "1.50" in text(screen)


@pytest.mark.parametrize(("seconds", "shown"), [(-1, "0:00"), (0, "0:00"), (59.6, "1:00"), (125, "2:05")])
def test_a_time_is_minutes_and_seconds(seconds, shown):
    assert clock(seconds) == shown


# --- the table of the evaluation --------------------------------------------------------------------------------------


def test_the_evaluation_shows_shares_in_percent_and_rewards_as_they_are():
    screen = console()
    show_evaluation(screen, result())
    lines = [" ".join(line.split()) for line in text(screen).splitlines()]
    assert "before and after base best of 4 tuned change, 95 % interval" in lines
    assert "object 25 % 50 % 75 % +50 (+38 to +62)" in lines
    assert "object, other prompts 25 % 50 % 75 % +50 (+38 to +62)" in lines
    assert "bright 0.25 0.50 0.75 +0.50 (+0.38 to +0.62)" in lines
    assert not any(line.startswith("bright, other") for line in lines)
    assert "8 same-seed pairs" in text(screen)
    assert "base 0.500, tuned 0.250" in text(screen)


def test_the_evaluation_without_a_judge_says_nothing_of_one():
    screen = console()
    show_evaluation(screen, result(judge={}, diversity={}))
    assert "judge" not in text(screen)
    assert "diversity" not in text(screen)
