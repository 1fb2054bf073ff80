"""Every mistake gets one clear sentence and exit code 2; nothing is written, nothing is lost."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raft_diffusion import cli, pocket
from raft_diffusion.core.config import Config

TINY = """name = "tiny"
device = "cpu"
threads = 1
[prompts]
train = ["monet style cat"]
[sampling]
width = 32
height = 32
num_inference_steps = 2
samples_per_prompt = 4
batch_size = 4
[tuning]
steps = 2
batch_size = 2
[guard]
pairs = 8
[evaluation]
pairs = 2
ood_pairs = 0
"""
REWARDS = """
def raises(images, prompts):
    raise KeyError("no face found")

def too_few(images, prompts):
    return [1.0]

def words(images, prompts):
    return ["good"] * len(images)

def not_a_number(images, prompts):
    return [1.0, float("nan"), 1.0, 1.0]

def nothing(images, prompts):
    return None
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The present folder, with a valid configuration, rewards with faults, and a few wrong files."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (folder / "tiny.toml").write_text(TINY)
    (folder / "faulty.py").write_text(REWARDS)
    (folder / "letter.txt").write_text("keep me\n")
    (folder / "empty.txt").write_text("# nothing but a comment\n\n")
    (folder / "latin.txt").write_bytes("größe".encode("latin-1"))
    (folder / "held.txt").write_text("monet style house\nmonet style castle\n")
    (folder / "prompts").mkdir()
    (folder / "full").mkdir()
    (folder / "full" / "letter.txt").write_text("keep me\n")
    return folder


def call(arguments: list[str], capsys) -> tuple[int, str, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["raft-diffusion", *arguments])
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


def refused(here: Path, capsys, *arguments: str) -> str:
    """The sentence; the folder must be as it was."""
    before = contents(here)
    code, _, err = call(list(arguments), capsys)
    lines = [line for line in err.splitlines() if not line.startswith("note: ")]
    assert code == 2, (code, err)
    assert len(lines) == 1 and lines[0].startswith("raft-diffusion: "), err
    assert contents(here) == before
    return lines[0].removeprefix("raft-diffusion: ")


QUICK = {
    "unknown preset": ("train pocket-manet", ["unknown preset 'pocket-manet'", "pocket-monet"]),
    "unknown demo": ("demo manet", ["'manet'", "monet, resolution, text or sums"]),
    "unknown reward": ("plan tiny.toml --set rewards.weights.aestetic=1", ["'aestetic'", "aesthetic"]),
    "unknown scheduler": ("plan tiny.toml --set sampling.scheduler=Eulr", ["Eulr", "Euler"]),
    "unknown scorer": ("plan tiny.toml --set rewards.scorer=poket", ["'poket'", "pocket"]),
    "unknown device": ("plan tiny.toml --set device=gpu", ["'gpu'", "cuda"]),
    "unknown key": ("plan tiny.toml --set tuning.rnk=3", ["tuning.rnk", "rank"]),
    "types and ranges at once": (
        "plan tiny.toml --set tuning.rank=many --set rounds=0 --set sampling.width=-8",
        ["tuning.rank", "rounds", "sampling.width"],
    ),
    "a number as text": ("""plan tiny.toml --set 'tuning.rank="8"'""", ["tuning.rank"]),
    "K below 2": ("plan tiny.toml --set sampling.samples_per_prompt=1", ["sampling.samples_per_prompt", "2"]),
    "m above K": ("plan tiny.toml --set selection.best=5", ["selection.best is 5", "samples_per_prompt (4)"]),
    "a size the VAE cannot have": ("train tiny.toml --set sampling.width=33", ["sampling.width", "multiple of 8"]),
    "no prompt in the file": ("plan tiny.toml --prompts empty.txt", ["empty.txt", "holds no prompt"]),
    "no such prompt file": ("plan tiny.toml --prompts missing.txt", ["there is no prompt file missing.txt"]),
    "prompts in a folder": ("plan tiny.toml --prompts prompts", ["prompts", "is a folder"]),
    "prompts not in UTF-8": ("plan tiny.toml --prompts latin.txt", ["latin.txt", "not UTF-8"]),
    "held-out prompts only": ("plan pocket-monet --prompts held.txt", ["held"]),
    "a share out of range": ("plan tiny.toml --prompts styles --held-out 1.5", ["1.5", "below 1"]),
    "a share of nothing": ("plan tiny.toml --held-out 0.5", ["--held-out", "--prompts"]),
    "an output folder with other things": ("train tiny.toml --out full", ["full is not empty and holds no run"]),
    "an output that is a file": ("train tiny.toml --out letter.txt", ["letter.txt is a file"]),
    "an output below a file": ("train tiny.toml --out letter.txt/run", ["letter.txt"]),
    "numbers into a folder": ("plan tiny.toml --json prompts", ["--json prompts"]),
    "numbers into no folder": ("plan tiny.toml --json nowhere/n.json", ["--json nowhere/n.json"]),
    "a run that is none": ("evaluate prompts", ["prompts holds no config.toml"]),
    "a reward without a colon": ("plan tiny.toml --set 'rewards.custom=[\"faulty\"]'", ["faulty", "module:function"]),
    "a format that is none": ("export full --format ckpt", ["'ckpt'"]),
}


@pytest.mark.parametrize("case", QUICK)
def test_it_is_refused_at_once(here, capsys, case):
    command, words = QUICK[case]
    import shlex

    sentence = refused(here, capsys, *shlex.split(command))
    for word in words:
        assert word in sentence


def test_an_unknown_command_names_the_nearest(here, capsys):
    code, _, err = call(["trian"], capsys)
    assert code == 2
    assert "train" in err
    assert "Traceback" not in err


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a folder that this user cannot write")
def test_an_output_folder_that_cannot_be_written(here, capsys):
    (here / "locked").mkdir(mode=0o500)
    assert "locked" in refused(here, capsys, "train", "tiny.toml", "--out", "locked/run")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("raises", ["failed", "no face found", "-000"]),
        ("too_few", ["1 scores for 4 samples", "-000"]),
        ("words", ["'good'", "-000", "finite number"]),
        ("not_a_number", ["nan", "-001", "finite number"]),
        ("nothing", ["None", "one number a picture"]),
    ],
)
def test_a_reward_with_a_fault_names_the_sample(here, capsys, name, words):
    arguments = ["--set", f'rewards.custom=["faulty:{name}"]', "--set", f"rewards.weights={{ {name} = 1.0 }}"]
    code, _, err = call(["train", "tiny.toml", "--out", "run", *arguments], capsys)
    sentence = err.splitlines()[-1]
    assert code == 2
    assert sentence.startswith("raft-diffusion: ")
    for word in words:
        assert word in sentence
    assert not list((here / "run" / "rounds").iterdir())  # no round, and none by halves


def test_after_a_faulty_reward_the_folder_takes_a_mended_run(here, capsys):
    test_a_reward_with_a_fault_names_the_sample(here, capsys, "raises", ["failed"])
    assert call(["train", "tiny.toml", "--out", "run", "--set", "rounds=1"], capsys)[0] == 0


def test_an_output_folder_with_another_run(here, capsys):
    assert call(["train", "tiny.toml", "--out", "run", "--set", "rounds=1"], capsys)[0] == 0
    sentence = refused(here, capsys, "train", "tiny.toml", "--out", "run", "--set", "tuning.rank=3")
    assert "tuning.rank was 8 and is now 3" in sentence
    sentence = refused(here, capsys, "export", "run", "--round", "7")
    assert "no round 7: it has 1 to 1" in sentence
    (here / "mine.safetensors").write_bytes(b"dear")
    assert "is there already" in refused(here, capsys, "export", "run", "--out", "mine.safetensors")


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_corrupt_weights(here, capsys, part):
    shutil.copytree(pocket.WEIGHTS / "model", here / "model")
    path = next((here / "model" / part).glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1000])
    sentence = refused(here, capsys, "train", "tiny.toml", "--model", "model", "--out", "run")
    assert "model" in sentence


@pytest.mark.slow
@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    key=st.sampled_from(sorted(Config.parse(TINY).flat())) | st.text(max_size=12),
    value=st.text(max_size=12)
    | st.integers().map(str)
    | st.floats().map(str)
    | st.sampled_from(["none", "true", "[]", "{}", '""', '"8"', "[1]", '["a"]', "{ a = 1 }", "1979-05-27", "\x00"]),
)
def test_any_setting_is_taken_or_refused(here, capsys, key, value):
    code, _, err = call(["plan", "tiny.toml", "--set", f"{key}={value}"], capsys)
    assert code in (0, 2)
    assert "Traceback" not in err


def test_a_plan_takes_under_a_second_and_no_torch(here):
    if os.name == "nt":
        pytest.skip("no resource usage on Windows")
    code = (
        "import resource, sys\n"
        "from raft_diffusion.cli import main\n"
        "sys.argv = ['raft-diffusion', 'plan', 'tiny.toml']\n"
        "main()\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'open_clip', 'numpy'} & set(sys.modules)\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print(f'\\n{sorted(heavy)} {used.ru_utime + used.ru_stime}', file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    heavy, _, seconds = done.stderr.splitlines()[-1].rpartition(" ")
    assert heavy == "[]"
    assert float(seconds) < 1.5  # of processor time, whatever else the machine does
