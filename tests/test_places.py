"""Settings that are paths: where they are looked for, and what is left as it is."""

from pathlib import Path

import pytest

from raft_diffusion.core.config import Config
from raft_diffusion.jobs import config_of, load_config
from raft_diffusion.places import located, places_of

PICTURES = """
name = "tiny"
[prompts]
train = ["cat"]
"""
TEXTS = """
kind = "text"
name = "tiny"
model = "pocket-sums"
[prompts]
train = "prompts.jsonl"
held_out = "pocket-sums"
[rewards]
weights = { exact = 1.0 }
[tuning]
examples = "gone.jsonl"
"""


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """The present folder, and beside it the folder of the settings; both hold a `model`, one of them a `vae` each."""
    for name in ("here/model", "here/vae", "settings/model", "settings/pictures", "here/pocket", "settings/pocket"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def written(folder: Path, text: str) -> Path:
    (folder / "settings" / "tiny.toml").write_text(text)
    return folder / "settings" / "tiny.toml"


def with_top(line: str) -> str:
    return PICTURES.replace("[prompts]", f"{line}\n[prompts]", 1)


def test_a_path_in_a_file_is_looked_for_beside_it_and_then_here(here):
    text = with_top('model = "model"\nvae = "vae"') + '[sampling]\ntiny_decoder = "gone"\n'
    config = load_config(str(written(here, text)))
    assert config.model == str(here / "settings" / "model")
    assert config.vae == str(here / "here" / "vae")
    assert config.sampling.tiny_decoder == "gone"


def test_what_a_command_line_says_is_looked_for_here(here):
    config = load_config(str(written(here, PICTURES)), model="model", changes=["vae=../settings/model"])
    assert (config.model, config.vae) == (str(here / "here" / "model"), str(here / "settings" / "model"))


def test_names_are_no_paths_though_a_folder_is_called_so(here):
    text = PICTURES + '[rewards]\nscorer = "pocket"\nheld_out = "pickscore"\n'
    (here / "settings" / "pickscore").mkdir()
    config = load_config(str(written(here, text)), model="owner/name")
    assert (config.model, config.rewards.scorer, config.rewards.held_out) == ("owner/name", "pocket", "pickscore")
    assert load_config(str(written(here, PICTURES))).model == "pocket"


def test_tables_and_folders_of_pictures_are_looked_for_too(here):
    text = PICTURES + '[sampling]\nsources = { policy = 1, "folder:pictures" = 2, "a:b" = 1 }\n'
    (here / "here" / "head.pth").touch()
    config = load_config(str(written(here, text)), changes=["rewards.sources={ aesthetic_v2 = 'head.pth' }"])
    assert list(config.sampling.sources.items()) == [
        ("policy", 1.0),
        (f"folder:{here / 'settings' / 'pictures'}", 2.0),
        ("a:b", 1.0),
    ]
    assert config.rewards.sources == {"aesthetic_v2": str(here / "here" / "head.pth")}
    assert places_of(config) == {
        "rewards.sources.aesthetic_v2": str(here / "here" / "head.pth"),
        "sampling.sources": f"folder:{here / 'settings' / 'pictures'}",
    }


def test_what_a_run_keeps_leads_to_the_same_place_from_elsewhere(here, monkeypatch):
    config = load_config(str(written(here, with_top('model = "model"'))))
    (here / "run").mkdir()
    (here / "run" / "config.toml").write_text(config.to_toml())
    monkeypatch.chdir(here)
    assert config_of(here / "run" / "config.toml") == config == load_config("run/config.toml")


def test_the_files_of_a_text_run_are_looked_for_too(here):
    (here / "settings" / "prompts.jsonl").touch()
    config = load_config(str(written(here, TEXTS)))
    assert config.prompts.train == str(here / "settings" / "prompts.jsonl")
    assert (config.prompts.held_out, config.model, config.tuning.examples) == (
        "pocket-sums",
        "pocket-sums",
        "gone.jsonl",
    )
    assert places_of(config) == {"prompts.train": str(here / "settings" / "prompts.jsonl")}


def test_what_could_be_no_file_is_left(here):
    config = Config.parse(with_top('model = "' + "a" * 5000 + '"\nvae = "~nobody-at-all/x"'))
    assert located(config, here) == config
