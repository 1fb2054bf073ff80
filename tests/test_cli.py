"""The command line: what it answers at once, and what it refuses in one sentence before any work."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from raft_diffusion import cli, jobs, training
from raft_diffusion.commands import demo
from raft_diffusion.core.config import Config

COMMANDS = sorted(get_command(cli.app).commands)
TINY = 'name = "tiny"\n[prompts]\ntrain = ["monet style cat"]\n'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty present folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path / "here"


@pytest.fixture
def call(folder, monkeypatch, capsys):
    """Run a command; its exit code, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["raft-diffusion", *arguments])
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def everything(folder: Path) -> dict[str, bytes]:
    paths = folder.rglob("*")
    return {p.relative_to(folder).as_posix(): p.read_bytes() if p.is_file() else b"" for p in paths}


# --- help -------------------------------------------------------------------------------------------------------------


def test_help_lists_the_commands(call):
    code, out, err = call("--help")
    assert (code, err) == (0, "")
    assert all(name in out for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_commands_help_has_an_example_that_names_it(call, command):
    for flag in ("--help", "-h"):
        code, out, _ = call(command, flag)
        assert code == 0
        assert f"Example: raft-diffusion {command}" in out


def test_the_example_of_train_is_a_valid_configuration():
    config = jobs.load_config("pocket-monet", seed=None, threads=None, changes=["rounds=6", "tuning.rank=8"])
    assert (config.rounds, config.tuning.rank) == (6, 8)


@pytest.mark.skipif(os.name == "nt", reason="no resource usage on Windows")
def test_help_answers_at_once_without_torch():
    code = (
        "import resource, sys\n"
        "from raft_diffusion.cli import main\n"
        "sys.argv = ['raft-diffusion', '--help']\n"
        "main()\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'open_clip', 'numpy'} & set(sys.modules)\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print(f'\\n{sorted(heavy)} {used.ru_utime + used.ru_stime}', file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    heavy, _, seconds = done.stderr.splitlines()[-1].rpartition(" ")
    assert heavy == "[]"
    assert float(seconds) < 1.5  # of processor time, whatever else the machine does
    assert "train" in done.stdout


# --- refusals: exit code 2, one line on stderr, nothing written -------------------------------------------------------


def refused(call, folder: Path, *arguments: str) -> str:
    before = everything(folder)
    code, _, err = call(*arguments)
    assert code == 2
    assert err.count("\n") == 1
    assert err.startswith("raft-diffusion: ")
    assert everything(folder) == before
    return err


def test_an_unknown_demo(call, folder):
    assert "'manet': use monet, resolution, text or sums" in refused(call, folder, "demo", "manet")


def test_an_unknown_preset(call, folder):
    err = refused(call, folder, "train", "pocket-manet")
    assert "'pocket-manet'" in err
    assert "pocket-monet" in err
    assert "NAME.toml" in err


def test_an_unknown_key_in_a_file(call, folder):
    (folder / "mine.toml").write_text(TINY + "[sampling]\nwidht = 32\n")
    assert "unknown key sampling.widht, did you mean width" in refused(call, folder, "train", "mine.toml")


def test_every_mistake_of_a_file_in_one_line(call, folder):
    (folder / "mine.toml").write_text("rounds = 0\n" + TINY + "[sampling]\nwidth = 33\n")
    err = refused(call, folder, "train", "mine.toml")
    assert "rounds" in err
    assert "sampling.width" in err


@pytest.mark.parametrize("change", ["rouds=3", "tuning.rnk=3", "rounds", "rounds=many", "seed.x=1", "=3"])
def test_an_unknown_or_unreadable_change(call, folder, change):
    assert change.partition("=")[0].rpartition(".")[2] in refused(
        call, folder, "train", "pocket-monet", "--set", change
    )


def test_a_file_that_is_not_there_or_no_file(call, folder):
    assert "missing.toml" in refused(call, folder, "train", "missing.toml")
    (folder / "a.toml").mkdir()
    assert "is a folder" in refused(call, folder, "train", "a.toml")
    (folder / "b.toml").write_text("name = ")
    assert "no valid TOML" in refused(call, folder, "train", "b.toml")
    (folder / "c.toml").write_bytes(b'name = "\xff"')
    assert "not UTF-8" in refused(call, folder, "train", "c.toml")


def test_a_folder_that_holds_something_else(call, folder):
    (folder / "used").mkdir()
    (folder / "used" / "letter.txt").write_text("keep me")
    assert "used is not empty" in refused(call, folder, "demo", "--out", "used", "--threads", "1")
    assert "letter.txt is a file" in refused(call, folder, "demo", "--out", "used/letter.txt", "--threads", "1")
    assert "cannot be made" in refused(call, folder, "demo", "--out", "used/letter.txt/run", "--threads", "1")


def test_a_place_that_the_numbers_cannot_go_to(call, folder):
    (folder / "taken").mkdir()
    for place in ("nowhere/numbers.json", "taken", os.devnull):
        assert f"--json {place}" in refused(call, folder, "demo", "--json", place)


def test_a_folder_that_is_no_run(call, folder):
    (folder / "plain").mkdir()
    for command in ("evaluate", "report"):
        for run in ("plain", "missing"):
            assert f"{run} holds no config.toml" in refused(call, folder, command, run)


def test_a_run_that_is_not_finished_cannot_be_evaluated(call, folder):
    (folder / "run").mkdir()
    (folder / "run" / "config.toml").write_text(TINY)
    assert "holds no lora" in refused(call, folder, "evaluate", "run")


def test_a_usage_error_is_told_without_a_traceback(call, folder):
    for arguments in (["paint"], ["demo", "--speed", "9"], ["demo", "--seed", "-1"], ["train"], ["report"]):
        code, _, err = call(*arguments)
        assert code == 2
        assert err.startswith("Usage: ")
        assert "Traceback" not in err
    assert not everything(folder)


def test_ctrl_c_says_how_to_go_on(call, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "finish_run", stopped)
    code, _, err = call("demo")
    assert code == 130
    assert "the same command goes on" in err


def test_a_mistake_of_ours_keeps_its_traceback(call, monkeypatch):
    def broken(*_):
        raise KeyError("ours")

    monkeypatch.setattr(training, "finish_run", broken)
    with pytest.raises(KeyError, match="ours"):
        call("demo")


# --- the numbers, the folder, the arithmetic --------------------------------------------------------------------------


def test_the_numbers_go_to_stdout_or_to_a_file(call, folder, monkeypatch):
    monkeypatch.setattr(training, "finish_run", lambda config, root, console: {"seed": config.seed, "root": str(root)})
    code, out, err = call("demo", "--seed", "3", "--out", "mine", "--json", "-")
    assert (code, json.loads(out)) == (0, {"seed": 3, "root": "mine"})
    assert "Monet" in err  # what people read
    code, _, err = call("train", "pocket-monet", "--out", "mine", "--json", "numbers.json")
    assert (code, err) == (0, "")
    assert json.loads((folder / "numbers.json").read_text(encoding="utf-8")) == {"seed": 0, "root": "mine"}
    assert list(everything(folder)) == ["numbers.json"]


def tiny(**changes) -> Config:
    return Config.parse(TINY).with_overrides([f"{key}={value}" for key, value in changes.items()])


def test_the_same_settings_find_the_same_folder():
    default = jobs.default_folder(tiny())
    assert default.parent == Path("runs")
    assert default.name.startswith("tiny-")
    assert jobs.default_folder(tiny(rounds=9, threads=3)) == default
    assert jobs.default_folder(tiny(seed=1)) != default


@pytest.mark.parametrize("preset", sorted(path.stem for path in jobs.PRESETS.glob("*.toml")))
def test_every_preset_is_a_valid_configuration(preset):
    assert jobs.load_config(preset, seed=5, threads=2).name == preset
    assert {"monet", "resolution", "text", "sums"} == set(demo.DEMOS) == set(demo.INTRO)
