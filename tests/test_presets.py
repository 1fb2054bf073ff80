"""The presets: each says what it is for, parses, and prints as it lies there."""

import re
import tomllib
from itertools import takewhile

import pytest
import typer
from typer.testing import CliRunner

from raft_diffusion.commands.presets import presets, purpose
from raft_diffusion.core.config import Config
from raft_diffusion.core.prompts import find_prompts
from raft_diffusion.core.timing import clock
from raft_diffusion.jobs import PRESETS, config_of
from raft_diffusion.modality import is_text
from raft_diffusion.planning.forecast import Forecast, forecast
from raft_diffusion.planning.machine import Machine

app = typer.Typer()
app.command()(presets)
PATHS = sorted(PRESETS.glob("*.toml"))
FULL_SIZE = [path for path in PATHS if not path.stem.startswith("pocket-") and not is_text(path)]
CARDS = {8: "RTX 4060", 24: "RTX 4090"}


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
    assert "512 images" in next(line for line in wide.splitlines() if "pocket-monet" in line)
    assert "4,096 texts" in next(line for line in wide.splitlines() if "pocket-reviews" in line)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_preset_parses_and_prints_as_it_lies_there(path):
    printed = call(path.stem)
    assert printed == path.read_text(encoding="utf-8")
    assert config_of(path).name == path.stem
    assert tomllib.loads(printed)["name"] == path.stem


def test_an_unknown_preset_gets_the_nearest():
    with pytest.raises(ValueError, match=r"unknown preset 'pocket-manet': did you mean pocket-monet"):
        call("pocket-manet")
    with pytest.raises(ValueError, match=r"unknown preset 'zzz': choose from hh-rlhf, imdb-positive, .*style-pro"):
        call("zzz")


# --- Stable Diffusion 1.5 ---------------------------------------------------------------------------------------------


def comment(path) -> str:
    """The comment at the top, in one line."""
    lines = takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    return " ".join(" ".join(line.removeprefix("#") for line in lines).split())


def on_a_card(config: Config, gigabytes: int) -> Forecast:
    machine = Machine(
        cores=8,
        memory=32 * 10**9,
        card=f"NVIDIA GeForce {CARDS[gigabytes]}",
        card_memory=gigabytes * 2**30,
        torch_cuda="13.2",
    )
    return forecast(config, machine=machine)


def test_the_presets_for_stable_diffusion():
    assert [path.stem for path in FULL_SIZE] == ["monet-style-cat", "resolution-256", "style-prompts"]


@pytest.mark.parametrize("path", FULL_SIZE, ids=lambda path: path.stem)
def test_a_comment_says_the_settings_and_what_the_plan_predicts(path):
    config, words = Config.load(path), comment(path)
    sampling, tuning = config.sampling, config.tuning
    assert f"K {sampling.samples_per_prompt}" in words
    assert f"{config.rounds} rounds, {sampling.num_inference_steps} steps a picture, rank {tuning.rank}," in words
    found = re.search(r"learning rate (\S+?)(?: falling by (\S+))?, (\d+) steps of (\d+) a round\.", words)
    rate, fall, steps, batch = found.groups()
    assert (float(rate), float(fall or 1)) == (tuning.learning_rate, tuning.learning_rate_decay)
    assert (int(steps), int(batch)) == (tuning.steps, tuning.batch_size * tuning.gradient_accumulation)
    assert "Predicted, not yet measured:" in words
    for gigabytes, card in CARDS.items():
        result = on_a_card(config, gigabytes)
        assert f" {result.images:,} images" in words
        told = re.search(rf"{gigabytes} GB card \({card}\): about (.+?), (\d+\.\d) GB", words)
        assert told[1] == clock(result.seconds)
        assert float(told[2]) == pytest.approx(result.peak_memory_bytes / 1e9, abs=0.06)
        assert not any("more memory" in note for note in result.notes)


@pytest.mark.parametrize("path", FULL_SIZE, ids=lambda path: path.stem)
def test_a_preset_takes_bare_prompts_and_towers_that_it_names(path):
    config = Config.load(path)
    assert config.model == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert config.prompts.template == "{}"
    assert config.rewards.scorer != config.rewards.held_out
    assert "text_image" in config.rewards.weights
    assert any(name.startswith("aesthetic") for name in config.rewards.weights)


def test_resolution_256_is_the_papers_setting():
    """K 10, 50 steps, guidance 7.5, rank 4, 9e-6 and 80 steps of 8 stand in the authors' notebook."""
    config = Config.load(PRESETS / "resolution-256.toml")
    assert [prompt.text for prompt in config.train_prompts()] == [p.text for p in find_prompts("cifar10")]
    assert [prompt.text for prompt in config.held_out_prompts()] == [p.text for p in find_prompts("cifar100")]
    assert (config.sampling.width, config.sampling.height) == (256, 256)
    assert on_a_card(config, 8).images == 10 * 10 * 10
    assert on_a_card(config, 8).unet_evaluations == 1000 * 50 * 2
    assert on_a_card(config, 8).tuning_samples == 10 * 80 * 8


def test_monet_style_cat_and_style_prompts_are_at_512_pixels():
    monet, styles = (Config.load(PRESETS / f"{name}.toml") for name in ("monet-style-cat", "style-prompts"))
    assert {(config.sampling.width, config.sampling.height) for config in (monet, styles)} == {(512, 512)}
    assert [prompt.text for prompt in monet.train_prompts()] == ["monet style cat"]
    prompts = [prompt.text for prompt in (*styles.train_prompts(), *styles.held_out_prompts())]
    assert sorted(prompts) == sorted(prompt.text for prompt in find_prompts("styles"))
    subjects = [{p.text.split()[-1] for p in side} for side in (styles.train_prompts(), styles.held_out_prompts())]
    assert not subjects[0] & subjects[1]
