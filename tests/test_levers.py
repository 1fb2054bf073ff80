"""Levers and recipes in whole runs of the carried model: pictures of 32 px in 2 steps, nothing of any quality."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from raft_diffusion import Run, assemble, cli, load_config
from raft_diffusion.core.store import stored_rounds
from raft_diffusion.rank import rank_run
from raft_diffusion.webui import parse_infotext

TINY = """
name = "tiny"
rounds = 3
threads = 1
device = "cpu"
[prompts]
train = ["monet style cat"]
[sampling]
width = 32
height = 32
num_inference_steps = 2
guidance_scale = 3.0
collect_guidance_decay = 0.5
scheduler = "DDIM"
eta = 0.5
noise_scale = 0.9
samples_per_prompt = 4
groups_per_prompt = 2
batch_size = 8
[rewards]
weights = { text_image = 1.0, log_ratio = -0.5 }
[selection]
best = 2
min_spread = 0.1
diversity = 1.0
replay_decay = 0.5
[tuning]
rank = 2
alpha = 2
steps = 2
batch_size = 2
anti_drift = 0.5
learning_rate = 4e-4
learning_rate_decay = 0.5
[guard]
enabled = false
[evaluation]
pairs = 2
ood_pairs = 0
best_of = 2
"""


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory) -> Path:
    """One finished run with every lever pulled; nobody may change it."""
    root = tmp_path_factory.mktemp("runs") / "finished"
    command("train", config, "--out", root)
    return root


def command(*arguments: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["raft-diffusion", *map(str, arguments)])
        cli.main()


def text(path: Path) -> str:
    with Image.open(path) as image:
        return image.info["parameters"]


def evaluation(root: Path) -> dict:
    return json.loads((root / "evaluation" / "evaluation.json").read_text(encoding="utf-8"))


def adapters(root: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(root.glob("rounds/*/adapter/*.safetensors"))]


def metrics(root: Path) -> list[dict]:
    return [json.loads(line) for line in (root / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_each_round_is_collected_at_its_own_guidance_and_the_evaluation_at_the_users(finished):
    def guidance(folder):
        (scale,) = {parse_infotext(text(path)).cfg_scale for path in (finished / folder).glob("*.png")}
        return scale

    assert [guidance(f"rounds/{index:03d}/candidates") for index in (1, 2, 3)] == [3.0, 2.0, 1.5]
    assert guidance("evaluation/after") == 3.0


def test_the_policy_itself_has_a_say_once_it_has_learned(finished):
    first, *later = metrics(finished)
    assert first["mean"]["log_ratio"] == 0
    assert all(row["deviation"]["log_ratio"] > 0 for row in later)
    assert "log_ratio" in evaluation(finished)["rewards"]


def test_the_drift_is_told_beside_the_loss(finished):
    assert all(row["figures"]["drift"] > 0 for row in metrics(finished))


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_end(config, finished, tmp_path):
    run = Run(load_config(str(config)), tmp_path / "stopped")
    next(iter(run.rounds()))
    command("train", config, "--out", tmp_path / "stopped")
    assert adapters(tmp_path / "stopped") == adapters(finished)


def test_a_stored_run_ranks_the_same_without_a_model(config, finished):
    select = assemble.make_select(load_config(str(config)))
    assert select.diversity and select.min_spread
    for ranked in rank_run(finished, select):
        assert ranked.after == ranked.before


def test_without_the_levers_other_samples_win(finished):
    plain = assemble.make_select(load_config("pocket-monet", changes=["selection.best=2"]))
    rounds = list(rank_run(finished, plain))
    assert len(rounds) == len(list(stored_rounds(finished))) == 3
    assert any(ranked.changed for ranked in rounds)


def test_another_strength_is_evaluated_anew(config, finished, tmp_path):
    root = shutil.copytree(finished, tmp_path / "copy")
    command("train", config, "--out", root, "--set", "sampling.lora_scale=0.5")
    half, whole = evaluation(root), evaluation(finished)
    assert (half["settings"]["lora_scale"], whole["settings"]["lora_scale"]) == (0.5, 1.0)
    assert half["rewards"]["text_image"]["base"] == whole["rewards"]["text_image"]["base"]
    assert half["rewards"]["text_image"]["tuned"] != whole["rewards"]["text_image"]["tuned"]
    assert adapters(root) == adapters(finished)


def test_the_learning_rate_decays_by_round_in_a_run_that_was_interrupted_too(config, tmp_path, monkeypatch):
    rates, make = [], assemble.make_tuner

    def recorded(*arguments, **options):
        tuner = make(*arguments, **options)
        rates.append(tuner.learning_rate)
        return tuner

    monkeypatch.setattr(assemble, "make_tuner", recorded)
    settings = load_config(str(config))
    first = Run(settings, tmp_path / "run").rounds()
    next(first), next(first)
    for _ in Run(settings, tmp_path / "run").rounds():
        pass
    assert rates == pytest.approx([4e-4, 2e-4, 1e-4])


def test_a_recipe_goes_on_top_of_the_job(config, tmp_path, capsys):
    command("plan", config, "--recipe", "paper")
    assert "1 prompt x 10 groups x 10 candidates = 100 images" in capsys.readouterr().out
    command("train", config, "--recipe", "one-shot", "--out", tmp_path / "run")
    assert [row["candidates"] for row in metrics(tmp_path / "run")] == [24]
    assert load_config(str(tmp_path / "run" / "config.toml")).name == "tiny-one-shot"


def test_an_unknown_recipe_is_refused_in_one_line(config, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        command("train", config, "--recipe", "papers", "--out", tmp_path / "run")
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "run").exists()
