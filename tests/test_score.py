"""`score`: the same numbers that training ranks by, in a table, as JSON and as CSV."""

import csv
import json
import statistics
import subprocess
import sys

import numpy as np
import pytest
import typer
from PIL import Image

from raft_diffusion import pocket
from raft_diffusion.commands.score import file_names, formatted, score
from raft_diffusion.core.loop import score as core_score
from raft_diffusion.core.records import Draw, Prompt, Sample
from raft_diffusion.gallery import FilePicture, read_gallery
from raft_diffusion.rewards.compress import jpeg_kilobytes


def smooth(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((64, 48), Image.Resampling.BICUBIC)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The present folder: four pictures, the last without a prompt, and rewards of one's own."""
    (tmp_path / "pictures").mkdir()
    for number in (1, 2, 3, 10):
        smooth(number).save(tmp_path / "pictures" / f"{number}.png")
    for name, text in {"1": "a cat", "2": "=a dog [bold]", "3": "a cat"}.items():
        (tmp_path / "pictures" / f"{name}.txt").write_text(text)
    (tmp_path / "my_values.py").write_text(
        "def width(images, prompts):\n    return [image.width for image in images]\n"
        "def letters(images, prompts):\n    return [len(prompt) / 1000 for prompt in prompts]\n"
        "def text(images, prompts):\n    return ['good' for _ in images]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("my_values", None)


@pytest.fixture
def call(here, capsys):
    """The command, run as from the command line: its stdout and stderr."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(score)

    def run(*arguments: object) -> tuple[str, str]:
        capsys.readouterr()
        app(list(map(str, arguments)), standalone_mode=False)
        return tuple(capsys.readouterr())

    return run


OWN = ("--reward", "my_values:letters", "--reward", "incompressibility")


def test_every_picture_is_scored_with_its_prompt(call):
    result = json.loads(call("pictures", *OWN, "--json", "-")[0])
    pictures = {number: f"pictures/{number}.png" for number in (1, 2, 3, 10)}
    prompts = {1: "a cat", 2: "=a dog [bold]", 3: "a cat", 10: ""}
    assert result["scores"] == [
        {
            "file": pictures[number],
            "prompt": prompts[number],
            "scores": {
                "letters": len(prompts[number]) / 1000,
                "incompressibility": jpeg_kilobytes(Image.open(pictures[number])),
            },
        }
        for number in (1, 2, 3, 10)
    ]
    assert result["mean"] == {
        name: pytest.approx(statistics.fmean(row["scores"][name] for row in result["scores"]))
        for name in ("letters", "incompressibility")
    }


def test_the_best_come_first_if_asked_and_the_mean_last(call):
    out, _ = call("pictures", *OWN, "--sort", "letters")
    lines = [line.rstrip() for line in out.splitlines() if line.strip()]
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["file", "prompt", "letters", "incompressibility"]
    assert [line.split()[0] for line in lines[1:]] == ["2.png", "1.png", "3.png", "10.png", "mean"]
    assert "=a dog [bold]" in lines[1]
    assert lines[1].split()[-2] == "0.01300"
    assert lines[5].split()[1] == "0.00575"  # (13 + 5 + 5 + 0) / 4000


def test_long_names_and_prompts_are_cut_and_the_numbers_are_not(call, here):
    smooth(4).save(here / "pictures" / f"{'x' * 90}.png")
    (here / "pictures" / f"{'x' * 90}.txt").write_text("\x1b[31mred \u2028" + "word " * 40)
    for extra in ((), ("--reward", "my_values:width", "--reward", "compressibility")):
        lines = call("pictures", *OWN, *extra)[0].splitlines()
        row = next(line for line in lines if line.startswith("xxx"))
        assert max(map(len, lines)) <= 80
        assert row.count("…") == 2
        assert "\x1b" not in row
        assert "0.2090" in row  # 209 letters without the last space


def test_one_prompt_for_all_stands_above_the_table(call):
    lines = call("pictures", "--prompt", "[red]rose", *OWN)[0].splitlines()
    assert "prompt: [red]rose" in lines
    assert "0.00900" in lines[-1]


def test_a_csv_file_reads_back(call, here):
    call("pictures/2.png", "pictures/1.png", *OWN, "--csv", "values.csv", "--json", "values.json")
    with open(here / "values.csv", encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["file", "prompt", "letters", "incompressibility"]
    stored = json.loads((here / "values.json").read_text(encoding="utf-8"))["scores"]
    assert [[row[0], row[1], float(row[2]), float(row[3])] for row in rows] == [
        [row["file"], row["prompt"], row["scores"]["letters"], row["scores"]["incompressibility"]] for row in stored
    ]
    assert [row[0] for row in rows] == ["pictures/2.png", "pictures/1.png"]


def test_what_needs_no_tower_loads_no_torch(here):
    code = (
        "import sys, typer\n"
        "from raft_diffusion.commands.score import score\n"
        "app = typer.Typer(); app.command()(score)\n"
        "app(['pictures', '--reward', 'compressibility', '--reward', 'my_values:width'], standalone_mode=False)\n"
        "print('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_the_scores_are_those_that_training_ranks_by(call, here):
    from raft_diffusion.rewards.clip import ClipTower  # torch: loaded by no other test here

    result = json.loads(call("pictures", "--prompt", "monet style cat", "--device", "cpu", "--json", "-")[0])
    samples = [
        Sample(Draw(Prompt("monet style cat"), k, 0), FilePicture(here / "pictures" / f"{number}.png"))
        for k, number in enumerate((1, 2, 3, 10))
    ]
    tower = ClipTower.load(pocket.WEIGHTS / "clip", device="cpu")
    assert [row["scores"] for row in result["scores"]] == [row.scores for row in core_score(samples, [tower])]


def test_only_the_scores_that_were_asked_for_are_shown(call):
    result = json.loads(call("pictures/10.png", "--reward", "aesthetic", "--device", "cpu", "--json", "-")[0])
    assert list(result["mean"]) == list(result["scores"][0]["scores"]) == ["aesthetic"]


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["pictures"],
            r"text_image needs the prompt of pictures.10\.png: give --prompt, or a line in metadata.jsonl, or",
        ),
        (["pictures"], r"a caption file 10\.txt beside it; or choose other rewards with --reward, such as aesthetic"),
        (["pictures", "--reward", "astetic"], "unknown reward 'astetic': did you mean aesthetic"),
        (["pictures", "--reward", "my_values:"], 'must be written "module:function"'),
        (["pictures", "--reward", "my_value:width"], "module 'my_value' cannot be imported .*did you mean my_values"),
        (
            ["pictures", "--reward", "my_values:text"],
            r"scored sample pictures.1\.png \('a cat'\) as 'good'; a score must",
        ),
        (["pictures", *OWN, "--sort", "width"], "--sort width: no such score is asked for; choose letters or incompr"),
        (["pictures", *OWN, "--source", "head.pth"], "--source head.pth: write REWARD=PATH, such as aesthetic_v2="),
        (
            ["pictures", *OWN, "--source", "aesthetic=a.pth"],
            "--source aesthetic=a.pth: 'aesthetic' does not score here",
        ),
        (
            ["pictures", "--prompt", "x", "--reward", "aesthetic", "--source", "aesthetic=a.pth"],
            "there is no file a.pth",
        ),
        (["pictures", *OWN, "--prompt", " "], "--prompt is empty"),
        (["pictures", *OWN, "--csv", "pictures"], "--csv pictures: cannot write there; name a file in a folder"),
        (["pictures", *OWN, "--csv", "nowhere/v.csv"], "--csv nowhere/v.csv: cannot write there"),
        (["pictures", *OWN, "--json", "nowhere/v.json"], "--json nowhere/v.json: cannot write there"),
        (["picture", *OWN], "there is no picture or folder picture"),
        (["my_values.py", *OWN], "my_values.py is no picture that can be read here"),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_is_written(call, here, arguments, sentence):
    before = sorted(here.rglob("*"))
    with pytest.raises(ValueError, match=sentence) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    assert sorted(here.rglob("*")) == before


def test_an_unknown_tower_is_refused(call):
    with pytest.raises(ValueError, match="no CLIP tower 'poket': did you mean pocket"):
        call("pictures", "--prompt", "x", "--scorer", "poket")


# --- the table --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([23.456, 1.0], ["23.46", "1.00"]),
        ([5.0149], ["5.015"]),
        ([-0.5, 0.25], ["-0.5000", "0.2500"]),
        ([0.0005], ["0.0005000"]),
        ([12345.6, 0.1], ["12346", "0"]),
        ([0.0], ["0.00"]),
        ([1e30, -1e-30], ["1.000e+30", "-1.000e-30"]),
    ],
)
def test_numbers_have_four_digits_that_tell(values, shown):
    assert formatted(values) == shown


def test_pictures_are_named_without_the_folder_they_share(here):
    def shown(*paths):
        return file_names([Sample(Draw(Prompt(""), 0, 0), FilePicture(here / path)) for path in paths])

    assert shown("a/1.png", "a/2.png") == ["1.png", "2.png"]
    assert [name.replace("\\", "/") for name in shown("a/1.png", "b/1.png")] == ["a/1.png", "b/1.png"]
    assert file_names(read_gallery([here / "pictures" / "1.png"])) == ["1.png"]
