"""Ranking again: a run by other weights, without a model; a folder of pictures; the winners written out."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import typer
from PIL import Image

from raft_diffusion.commands.rank import rank
from raft_diffusion.core.config import Config
from raft_diffusion.core.loop import group
from raft_diffusion.core.prompts import draw_round
from raft_diffusion.core.records import Draw, Prompt, Round, Sample, Scored, Winner
from raft_diffusion.core.select import Select
from raft_diffusion.core.store import RunFolder
from raft_diffusion.gallery import read_gallery
from raft_diffusion.rank import competitors, rank_run, refuse_occupied, write_winners

CONFIG = """
name = "stored"
rounds = 2
[prompts]
train = ["a cat", "ein Hund [/b] 🐈"]
[sampling]
samples_per_prompt = 4
[rewards]
weights = { sharp = 1.0 }
custom = ["my_rewards:sharp", "my_rewards:light"]
"""
# of both groups: in round 1 the two rewards disagree, in round 2 they agree
SCORES = {1: ([1, 2, 3, 4], [4, 3, 2, 1]), 2: ([1, 2, 3, 9], [1, 2, 3, 9])}


class Pngs:
    """A codec of pictures without latents."""

    def write_samples(self, folder, samples, *, keep):
        for sample in samples:
            sample.data.save(folder / f"{sample.id}.png")
        return [f"{sample.id}.png" for sample in samples]


class Frozen:
    def save(self, folder):
        pass


def grey(level: int) -> Image.Image:
    return Image.fromarray(np.full((8, 8, 3), level, dtype=np.uint8))


def a_round(index: int, config: Config, changes: dict | None = None) -> Round:
    prompts = [Prompt(text) for text in ("a cat", "ein Hund [/b] 🐈")]
    draws = draw_round(prompts, index=index, seed=0, per_round=None, k=4, groups_per_prompt=1)
    sharp, light = SCORES[index]
    scored = [
        Scored(Sample(draw, grey(draw.k)), {"sharp": sharp[draw.k], "light": light[draw.k], "held_out.text_image": 0.5})
        for draw in draws
    ]
    groups = group(scored)
    return Round(index, groups, Select(weights={"sharp": 1.0}, **(changes or {}))(groups), {})


@pytest.fixture
def run(tmp_path):
    """A run of two rounds whose winners are the k = 3 of every group."""
    root = tmp_path / "run"
    config = Config.parse(CONFIG)
    store = RunFolder.open(root, codec=Pngs(), config=config, environment={})
    for index in (1, 2):
        store.save(a_round(index, config), Frozen())
    return root


@pytest.fixture
def folder(tmp_path):
    """Five grey pictures, two of a cat, two of a dog and one of a cow; a reward that likes the light ones."""
    path = tmp_path / "pictures"
    path.mkdir()
    for name, (level, text) in {
        "1": (10, "cat"),
        "2": (200, "dog"),
        "10": (50, "cat"),
        "11": (90, "dog"),
        "12": (0, "cow"),
    }.items():
        grey(level).save(path / f"{name}.png")
        (path / f"{name}.txt").write_text(text)
    return path


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The present folder, with rewards of one's own."""
    (tmp_path / "my_levels.py").write_text(
        "def light(images, prompts):\n    return [image.getpixel((0, 0))[0] for image in images]\n"
        "def shade(images, prompts):\n    return [255.0 - image.getpixel((0, 0))[0] for image in images]\n"
        "def faulty(images, prompts):\n    return [1.0 / image.getpixel((0, 0))[0] for image in images]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("my_levels", None)


@pytest.fixture
def call(here, capsys):
    """The command, run as from the command line: its stdout and stderr."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(rank)

    def run_command(*arguments: object) -> tuple[str, str]:
        capsys.readouterr()
        app(list(map(str, arguments)), standalone_mode=False)
        return tuple(capsys.readouterr())

    return run_command


def numbers(call, *arguments) -> dict:
    return json.loads(call(*arguments, "--json", "-")[0])


def rows(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


# --- a run ------------------------------------------------------------------------------------------------------------


def test_a_run_ranked_as_it_was_made_has_the_same_winners(run, call):
    result = numbers(call, run)
    assert (result["changed"], result["winners"]) == (0, 4)
    for row in result["rounds"]:
        assert row["mean"] == row["mean_new"]
        stored = (run / "rounds" / f"00{row['round']}" / "winners" / "metadata.jsonl").read_text(encoding="utf-8")
        assert row["winner_ids"] == [json.loads(line)["id"] for line in stored.splitlines()]


def test_other_weights_make_other_winners(run, call):
    result = numbers(call, run, "--weight", "light=2")
    first, second = result["rounds"]
    assert (result["changed"], result["winners"]) == (2, 4)
    assert (first["round"], first["candidates"], first["winners"], first["changed"]) == (1, 8, 2, 2)
    assert first["mean"] == {"sharp": 4, "light": 1, "held_out.text_image": 0.5}
    assert first["mean_new"] == {"sharp": 1, "light": 4, "held_out.text_image": 0.5}
    assert [name[-4:] for name in first["winner_ids"]] == ["-000", "-000"]
    assert second["changed"] == 0
    assert second["mean"] == second["mean_new"] == {"sharp": 9, "light": 9, "held_out.text_image": 0.5}


def test_more_winners_and_another_method(run, call):
    result = numbers(
        call, run, "--best", 2, "--method", "fixed", "--weight", "sharp=1", "--weight", "my_rewards:light=3"
    )
    # round 1: sharp + 3 light = 13, 11, 9, 7: k = 0 and 1 win; round 2: 4, 8, 12, 36: k = 3, as before, and 2
    assert [name[-3:] for row in result["rounds"] for name in row["winner_ids"]] == ["000", "001"] * 2 + [
        "003",
        "002",
    ] * 2
    assert [row["changed"] for row in result["rounds"]] == [4, 2]
    assert result["winners"] == 8


def test_what_a_person_sees_fits_eighty_columns(run, call):
    out, _ = call(run, "--weight", "light=2", "--best", "2")
    lines = [line.rstrip() for line in out.splitlines()]
    assert max(map(len, lines)) <= 80
    assert lines[0] == "ranked by light x 2 (zscore), best 2 of each group"
    assert lines[1].split() == ["round", "winners", "changed", "mean", "of", "the", "winners", "before", "now", "gain"]
    assert lines[2].split() == ["1", "2", "to", "4", "of", "8", "4", "sharp", "4.000", "1.500", "-2.500"]
    assert lines[3].split() == ["light", "1.000", "3.500", "+2.500"]
    assert lines[4].split() == ["held_out.text_image", "0.5000", "0.5000", "+0.0000"]
    assert lines[-1] == "6 of 8 winners change"


def test_no_model_is_loaded_and_nothing_of_the_run_changes(run):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    code = (
        "import sys, typer\n"
        "from raft_diffusion.commands.rank import rank\n"
        "app = typer.Typer(); app.command()(rank)\n"
        f"app([{str(run)!r}, '--weight', 'light=1'], standalone_mode=False)\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'open_clip', 'numpy', 'PIL'} & set(sys.modules)\n"
        "print(sorted(heavy))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-2:] == ["2 of 4 winners change", "[]"]
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_the_winners_of_a_run_are_written_to_train_on(run, call, tmp_path):
    out = tmp_path / "new" / "best"
    said, _ = call(run, "--weight", "light=1", "--out", out)
    assert "4 pictures with captions and metadata.jsonl in" in said
    cat, dog = Prompt("a cat"), Prompt("ein Hund [/b] 🐈")
    by_name = {row["file_name"]: row for row in rows(out)}
    assert set(by_name) == {f"00{i}-{p.id}-00{k}.png" for i, k in ((1, 0), (2, 3)) for p in (cat, dog)}
    for prompt in (cat, dog):
        name = f"001-{prompt.id}-000.png"
        source = run / "rounds" / "001" / "candidates" / f"{prompt.id}-000.png"
        assert (out / name).read_bytes() == source.read_bytes()
        assert (out / name).with_suffix(".txt").read_text(encoding="utf-8") == prompt.text + "\n"
        row = by_name[name]
        assert (row["text"], row["scores"]["light"], row["scores"]["sharp"]) == (prompt.text, 4, 1)
        assert row["key"] == pytest.approx((4 - 2.5) / math.sqrt(1.25))  # its z-score by hand
    samples = read_gallery([out])
    assert [sample.prompt.text for sample in samples] == [by_name[s.data.path.name]["text"] for s in samples]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--weight", "brightness=1"],
            "round 1 of .*run stored no reward 'brightness', only held_out.text_image, light",
        ),
        (["--weight", "brightness=1"], "rank the pictures themselves: .*candidates$"),
        (
            ["--weight", "held_out.text_image=1"],
            "held_out.text_image: the held-out reward judges the winners and never",
        ),
        (["--weight", "light"], "--weight light: write NAME=VALUE, such as aesthetic=0.5"),
        (["--weight", "light=bright"], "--weight light=bright: write NAME=VALUE"),
        (["--weight", "=1"], "--weight =1: write NAME=VALUE"),
        (["--weight", "light=0"], "weights must be finite and one of them other than 0"),
        (["--weight", "light=nan"], "weights must be finite"),
        (["--method", "zscores"], "unknown method 'zscores' to combine rewards; known: zscore, fixed"),
        (["--best", "0"], "best must be at least 1, not 0"),
        (["--best", "5"], "round 1 of .*: best = 5 winners cannot come from the 4 candidates of"),
        (["--reward", "aesthetic"], "is a run, which is ranked by its stored scores; with --reward rank its pictures"),
        (["--prompt", "x"], "with --prompt rank its pictures instead, such as those in .*candidates"),
        (["--json", "nowhere/n.json"], "--json nowhere/n.json: cannot write there"),
    ],
)
def test_what_cannot_rank_a_run_is_refused(run, call, tmp_path, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        call(run, *arguments, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_constant_reward_is_refused_with_its_round(run):
    with pytest.raises(ValueError, match=r"round 1 of .*run: every candidate of every prompt has the same key"):
        list(rank_run(run, Select(weights={"held_out.text_image": 1.0})))


def test_a_run_without_a_round_is_refused(tmp_path, call):
    RunFolder.open(tmp_path / "run", codec=Pngs(), config=Config.parse(CONFIG), environment={})
    with pytest.raises(ValueError, match="holds no complete round"):
        call(tmp_path / "run")


def test_where_all_win_by_weight_only_best_can_choose(tmp_path, call):
    config = Config.parse(CONFIG).with_overrides(["selection.tau=0.5"])
    store = RunFolder.open(tmp_path / "run", codec=Pngs(), config=config, environment={})
    store.save(a_round(1, config, {"tau": 0.5}), Frozen())
    with pytest.raises(ValueError, match=r"every candidate wins by weight \(selection.tau\).*give --best M"):
        call(tmp_path / "run", "--weight", "light=1")
    (row,) = numbers(call, tmp_path / "run", "--best", 1)["rounds"]
    assert (row["winners"], row["changed"], row["mean"]["sharp"], row["mean_new"]["sharp"]) == (2, 0, 2.5, 4)


# --- a folder ---------------------------------------------------------------------------------------------------------


def test_the_pictures_of_one_prompt_compete(folder, call):
    result = numbers(call, folder, "--reward", "my_levels:light", "--method", "fixed")
    assert [members["prompt"] for members in result["groups"]] == ["cat", "dog"]
    cat, dog = (members["candidates"] for members in result["groups"])
    path = lambda name: str(folder / f"{name}.png")  # noqa: E731
    assert cat == [
        {"file": path(1), "key": 10, "scores": {"light": 10}, "winner": False},
        {"file": path(10), "key": 50, "scores": {"light": 50}, "winner": True},
    ]
    assert [(row["file"], row["winner"]) for row in dog] == [(path(2), True), (path(11), False)]
    assert result["left_out"] == [path(12)]


def test_weights_name_what_is_computed(folder, call):
    arguments = (
        "--reward",
        "my_levels:light",
        "--weight",
        "my_levels:shade=3",
        "--method",
        "fixed",
        "--prompt",
        "grey",
    )
    (members,) = numbers(call, folder, *arguments)["groups"]
    assert members["prompt"] == "grey"
    by_file = {row["file"]: row for row in members["candidates"]}
    row = by_file[str(folder / "2.png")]
    assert row["scores"] == {"light": 200, "shade": 55}
    assert row["key"] == 200 + 3 * 55
    assert by_file[str(folder / "12.png")]["winner"]  # the darkest


def test_what_a_person_sees_of_a_folder(folder, call):
    long = "a very long name of a picture that nobody would ever want to read to its end [bold]" + ".png"
    (folder / "1.png").rename(folder / long)
    (folder / "1.txt").unlink()
    (folder / long).with_suffix(".txt").write_text("cat")
    out, _ = call(folder, "--reward", "my_levels:light", "--reward", "my_levels:shade", "--weight", "shade=0.25")
    lines = [line.rstrip() for line in out.splitlines()]
    assert max(map(len, lines)) <= 80
    assert lines[0] == "ranked by light x 1, shade x 0.25 (zscore), best 1 of each group"
    assert "cat" in lines and "dog" in lines
    assert any(line.split() == ["*", "2.png", "0.7500", "200.0", "55.0"] for line in lines)
    assert any(line.lstrip().startswith("a very long name of") and "…" in line and "-0.75" in line for line in lines)
    assert lines[-1] == "left out, alone with their prompt: 1 (12.png)"


def test_the_winners_of_a_folder_are_written_with_what_they_won_by(folder, call, tmp_path):
    call(folder, "--reward", "my_levels:light", "--out", tmp_path / "best")
    assert rows(tmp_path / "best") == [
        {"file_name": "10.png", "text": "cat", "key": 1.0, "scores": {"light": 50.0}},
        {"file_name": "2.png", "text": "dog", "key": 1.0, "scores": {"light": 200.0}},
    ]
    files = {path.name for path in (tmp_path / "best").iterdir()}
    assert files == {"10.png", "10.txt", "2.png", "2.txt", "metadata.jsonl"}


def test_pictures_without_any_prompt_compete_where_the_reward_needs_none(folder, call, tmp_path):
    for path in folder.glob("*.txt"):
        path.unlink()
    out, _ = call(folder, "--reward", "my_levels:light", "--out", tmp_path / "best")
    assert "(no prompt)" in out
    assert {path.name for path in (tmp_path / "best").iterdir()} == {"2.png", "metadata.jsonl"}
    with pytest.raises(ValueError, match=r"text_image needs the prompt of .*1\.png: give --prompt, or a line in"):
        call(folder)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--weight", "aestetic=1"], "unknown reward 'aestetic': did you mean aesthetic"),
        (["--reward", "my_levels:lite"], "my_levels has no function 'lite'; it has light"),
        (["--reward", "my_levels:light", "--best", "0"], "best must be at least 1, not 0"),
        (["--reward", "my_levels:light", "--best", "3"], "best = 3 winners cannot come from the 2 candidates of 'cat'"),
        (["--reward", "my_levels:faulty", "--prompt", "x"], r"failed on sample .*12\.png \('x'\): ZeroDivisionError"),
        (["--reward", "my_levels:light", "--method", "rank"], "unknown method 'rank'"),
    ],
)
def test_what_cannot_rank_a_folder_is_refused(folder, call, tmp_path, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        call(folder, *arguments, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_target_that_is_no_folder_is_refused(folder, call):
    for target in (folder / "1.png", folder / "missing"):
        with pytest.raises(ValueError, match="is no folder; give a run, or a folder of pictures"):
            call(target)


def samples(*prompts: str) -> list[Sample]:
    return [Sample(Draw(Prompt(text), k, 0), None) for k, text in enumerate(prompts)]


def test_pictures_that_are_alone_cannot_compete():
    together, alone = competitors(samples("cat", "dog", "cat"))
    assert [sample.draw.k for sample in together] == [0, 2]
    assert [sample.draw.k for sample in alone] == [1]
    with pytest.raises(
        ValueError, match=r"each of the 2 pictures has a prompt of its own, .*give --prompt TEXT to rank"
    ):
        competitors(samples("cat", "dog"))
    with pytest.raises(ValueError, match="the only picture has a prompt of its own"):
        competitors(samples("cat"))


# --- writing the winners ----------------------------------------------------------------------------------------------


def winner(text: str) -> Winner:
    return Winner(Scored(Sample(Draw(Prompt(text), 0, 0), None), {"x": 1.0}), 0.5)


def test_names_stay_apart_even_without_their_endings(folder, tmp_path):
    grey(1).save(folder / "A.PNG")
    grey(2).save(folder / "a.jpg")
    grey(3).save(folder / "a-2.png")
    items = [("", folder / name, winner(f"{name}\nof two lines")) for name in ("A.PNG", "a.jpg", "a-2.png")]
    write_winners(tmp_path / "out", items)
    assert [row["file_name"] for row in rows(tmp_path / "out")] == ["A.PNG", "a-2.jpg", "a-2-2.png"]
    assert (tmp_path / "out" / "a-2.jpg").read_bytes() == (folder / "a.jpg").read_bytes()
    assert (tmp_path / "out" / "a-2.txt").read_text() == "a.jpg of two lines\n"  # a caption is one line


@pytest.mark.parametrize("fresh", [True, False])
def test_a_failure_half_way_leaves_the_folder_as_it_was(folder, tmp_path, fresh):
    if not fresh:
        (tmp_path / "out").mkdir()
    items = [("", folder / "1.png", winner("a")), ("", folder / "gone.png", winner("b"))]
    with pytest.raises(
        ValueError, match=r"the picture .*gone\.png of a winner is gone; put it back, or leave out --out"
    ):
        write_winners(tmp_path / "out", items)
    assert (tmp_path / "out").exists() != fresh
    assert fresh or not list((tmp_path / "out").iterdir())


def test_an_occupied_folder_is_refused(folder, tmp_path, call):
    with pytest.raises(ValueError, match="pictures is not empty; give a new or an empty folder for the winners"):
        call(folder, "--out", folder)
    with pytest.raises(ValueError, match=r"1\.png is a file; give a new or an empty folder"):
        refuse_occupied(folder / "1.png")
    with pytest.raises(ValueError, match=r"the folder .*best cannot be made in .*1\.png; give another one"):
        refuse_occupied(folder / "1.png" / "best")
    refuse_occupied(tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()


def test_the_candidates_of_a_run_are_a_folder_too(run, call):
    result = numbers(call, run / "rounds" / "001" / "candidates", "--reward", "my_levels:light")
    winners = [row["winner"] for members in result["groups"] for row in members["candidates"]]
    assert winners == [False, False, False, True] * 2  # each group's lightest is its last
