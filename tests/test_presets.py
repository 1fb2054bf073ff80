"""The presets: each says what it is for, parses, and prints as it lies there."""

import tomllib

import pytest
import typer
from typer.testing import CliRunner

from raft_diffusion.commands.presets import presets, purpose
from raft_diffusion.core.config import Config
from raft_diffusion.runs import PRESETS

app = typer.Typer()
app.command()(presets)
PATHS = sorted(PRESETS.glob("*.toml"))


def call(*arguments: str) -> str:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False).stdout


def test_purpose_is_the_comment_at_the_top_up_to_its_first_empty_line():
    assert purpose("# One\n# two.\n#\n# more\nname = 'x'\n") == "One two."
    assert purpose("# One.\nname = 'x'\n# no more\n") == "One."
    assert purpose("name = 'x'\n") == ""


def test_the_list_has_every_preset_and_fits_a_terminal_of_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    out = call()
    assert all(path.stem in out for path in PATHS)
    assert max(map(len, out.splitlines())) <= 80
    monkeypatch.setenv("COLUMNS", "300")
    wide = call()
    for path in PATHS:
        row = next(line for line in wide.splitlines() if path.stem in line)
        assert purpose(path.read_text(encoding="utf-8")) in row
    assert "512" in next(line for line in wide.splitlines() if "pocket-monet" in line)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_preset_parses_and_prints_as_it_lies_there(path):
    printed = call(path.stem)
    assert printed == path.read_text(encoding="utf-8")
    assert Config.parse(printed) == Config.load(path)
    assert tomllib.loads(printed)["name"] == path.stem


def test_an_unknown_preset_gets_the_nearest():
    with pytest.raises(ValueError, match=r"unknown preset 'pocket-manet': did you mean pocket-monet"):
        call("pocket-manet")
    with pytest.raises(ValueError, match=r"unknown preset 'zzz': did you mean pocket-monet or pocket-resolution"):
        call("zzz")
