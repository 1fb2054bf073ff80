"""What a run offers beside its rounds: a stopping rule, trackers, an object for Python, a word about the machine."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from raft_diffusion import Run, cli, load_config
from raft_diffusion.planning import forecast
from raft_diffusion.planning.machine import Machine

TINY = """
name = "tiny"
rounds = 6
threads = 1
device = "cpu"
[prompts]
train = ["monet style cat"]
[sampling]
width = 32
height = 32
num_inference_steps = 2
samples_per_prompt = 4
batch_size = 4
[tuning]
rank = 2
alpha = 2
steps = 2
batch_size = 2
[guard]
pairs = 8
[evaluation]
pairs = 2
ood_pairs = 0
best_of = 2
"""
PLACES = "def places(images, prompts):\n    return range(len(images))\n"  # the mean is the same in every round


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """The present folder, with a configuration and a reward that never rises."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "tiny.toml").write_text(TINY)
    (tmp_path / "flat_reward.py").write_text(PLACES)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


def command(*arguments: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["raft-diffusion", *map(str, arguments)])
        cli.main()


def adapters(root: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(root.glob("rounds/*/adapter/*.safetensors"))]


def test_a_run_whose_reward_is_flat_stops_and_stays_stopped(here, capsys):
    flat = ["--set", 'rewards.custom=["flat_reward:places"]', "--set", "rewards.weights={ places = 1.0 }"]
    arguments = ["train", "tiny.toml", "--out", "run", *flat, "--set", "stop_when_flat=2"]
    command(*arguments)
    assert "stopped after round 3" in capsys.readouterr().out  # round 1 is the best before, 2 and 3 are no better
    assert len(adapters(here / "run")) == 3
    command(*arguments)
    assert "this run is finished: 3 rounds" in capsys.readouterr().out
    command(*arguments[:-1], "stop_when_flat=3")
    assert len(adapters(here / "run")) == 4


def test_the_rounds_go_to_tensorboard(here):
    command("train", "tiny.toml", "--out", "run", "--set", "rounds=2", "--set", 'trackers=["tensorboard"]')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = {path.parent for path in (here / "run").rglob("events.out.tfevents.*")}
    reader = EventAccumulator(str(events))
    reader.Reload()
    lines = (here / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    expected = [(row["round"], row["mean"]["text_image"]) for row in map(json.loads, lines)]
    logged = [(event.step, event.value) for event in reader.Scalars("mean/text_image")]
    assert logged == [(step, pytest.approx(value, rel=1e-6)) for step, value in expected]
    assert reader.Scalars("figures/loss")
    assert [event.step for event in reader.Scalars("guard/diversity")] == [1, 2]
    (tag,) = reader.Tags()["images"]
    assert tag == "held-out seeds/monet style cat"
    pictures = [(event.step, event.width, event.height) for event in reader.Images(tag)]
    assert pictures == [(step, 8 * 32, 32) for step in (0, 1, 2)]  # the 8 of a round in a row


def test_a_tracker_that_is_not_installed_is_refused(here, capsys, monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        command("train", "tiny.toml", "--out", "run", "--set", 'trackers=["wandb"]')
    assert "trackers: wandb is not installed" in capsys.readouterr().err
    assert not (here / "run").exists()


def test_a_run_from_python_is_the_command_lines_run(here):
    command("train", "tiny.toml", "--out", "one", "--set", "rounds=2")
    stages: set[str] = set()
    run = Run(load_config("tiny.toml", changes=["rounds=2"]), "two", progress=lambda stage, *_: stages.add(stage))
    rounds = list(run.rounds())
    assert [round_.index for round_ in rounds] == [1, 2]
    assert adapters(here / "one") == adapters(here / "two")
    assert run.evaluate()["judge"]["object"]["pairs"] == 2
    assert {"sample", "tune"} <= stages
    assert list(Run(load_config("tiny.toml", changes=["rounds=2"]), "two").rounds()) == []


def test_a_card_that_lies_idle_is_mentioned(here, capsys, monkeypatch):
    machine = Machine(cores=2, memory=2**34, card="NVIDIA GeForce RTX 3060", card_memory=12 * 2**30, torch_cuda=None)
    monkeypatch.setattr(forecast, "this_machine", lambda: machine)
    command("train", "tiny.toml", "--out", "run", "--set", "rounds=1", "--set", "device=auto")
    out = capsys.readouterr().out
    assert "RTX 3060" in out
    assert "uv pip install" in out


@pytest.mark.slow
def test_the_tuners_batch_may_be_split_on_the_way(here, capsys):
    command("train", "tiny.toml", "--out", "run", "--set", "rounds=1")
    split = ["--set", "tuning.batch_size=1", "--set", "tuning.gradient_accumulation=2"]
    command("train", "tiny.toml", "--out", "run", "--set", "rounds=2", *split)
    assert len(adapters(here / "run")) == 2
    with pytest.raises(SystemExit):
        command("train", "tiny.toml", "--out", "run", "--set", "rounds=3", "--set", "tuning.batch_size=1")
    assert "tuning" in capsys.readouterr().err


def test_wandb_gets_pictures_by_prompt_and_numbers_at_the_rounds_step(monkeypatch, tmp_path):
    from accelerate import tracking
    from PIL import Image

    from raft_diffusion.core.records import Draw, Prompt, Sample
    from raft_diffusion.tracking import Trackers

    calls = []

    class Wandb:
        """As accelerate's: `log_images` hands on whatever it does not know itself."""

        def __init__(self, run_name):
            calls.append(run_name)

        def start(self):
            calls.append("start")

        def log_images(self, values, step=None):
            calls.append((step, {name: [image.shape for image in images] for name, images in values.items()}))

        def log(self, values, step=None):
            calls.append((step, values))

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "wandb", Wandb)
    picture = SimpleNamespace(image=Image.new("RGB", (16, 8)))
    samples = [Sample(Draw(Prompt(text), k, k), picture) for text in ("a cat", "a dog") for k in range(2)]
    Trackers(["wandb"], name="cats", root=tmp_path).log(3, samples, {"mean": {"x": 1.0}, "best": {}, "figures": {}})
    shapes = {f"held-out seeds/{text}": [(8, 16, 3)] * 2 for text in ("a cat", "a dog")}
    assert calls == ["cats", "start", (3, shapes), (3, {"mean/x": 1.0})]
