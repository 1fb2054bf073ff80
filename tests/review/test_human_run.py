"""A run of the carried model that a person ranks learns what the person likes, and a reward-ranked one does not."""

import json
import runpy
import shutil
import statistics
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image, ImageStat

from raft_diffusion import cli
from raft_diffusion.core.store import complete_rounds
from raft_diffusion.review.desk import Desk

TOYS = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "toys.py")))
CONFIG = """
name = "dark"
rounds = 2
threads = 1
device = "cpu"
[prompts]
train = ["monet style house"]
[sampling]
width = 64
height = 64
num_inference_steps = 6
guidance_scale = 2.0
samples_per_prompt = 8
groups_per_prompt = 4
batch_size = 32
[selection]
best = 2
[tuning]
rank = 8
alpha = 8
learning_rate = 1e-3
steps = 30
batch_size = 8
[guard]
enabled = false
[evaluation]
pairs = 24
ood_pairs = 0
best_of = 2
"""
LORA = "lora/pytorch_lora_weights.safetensors"


def command(*arguments: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["raft-diffusion", *map(str, arguments)])
        cli.main()


def light(path: Path) -> float:
    """Mean brightness, 0 to 255."""
    with Image.open(path) as image:
        return ImageStat.Stat(image.convert("L")).mean[0]


def gain(run: Path) -> float:
    """How much brighter the same seeds became."""
    before, after = ([light(path) for path in sorted((run / f"evaluation/{side}").glob("*.png"))] for side in SIDES)
    assert len(before) == len(after) == 24
    return statistics.fmean(after) - statistics.fmean(before)


SIDES = ("before", "after")


def choose_darkest(run: Path, index: int | None = None) -> None:
    """As the page does it: two of every group."""
    desk = Desk(run, index)
    shown = desk.show()
    number = shown["round"]
    revision = shown["choices"]["revision"]
    for p, group in enumerate(shown["groups"]):
        pictures = [desk.picture(number, p, s) for s in range(group["pictures"])]
        darkest = sorted(range(len(pictures)), key=lambda s, files=pictures: light(files[s]))[:2]
        for message in (*({"do": "choose", "group": p, "place": s} for s in darkest), {"do": "done", "group": p}):
            revision = desk.act({"round": number, "revision": revision, **message})["revision"]
    desk.act({"round": number, "revision": revision, "do": "finish"})


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("config") / "dark.toml"
    path.write_text(CONFIG)
    threads = torch.get_num_threads()
    yield path
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def ranked(config, tmp_path_factory) -> Path:
    """By the reward; nobody may change it."""
    root = tmp_path_factory.mktemp("runs") / "ranked"
    command("train", config, "--out", root)
    return root


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_adapter_learns_what_the_person_chooses(config, ranked, tmp_path, capsys):
    root = tmp_path / "human"
    stop = threading.Event()

    def person():
        for index in (1, 2):
            while not stop.is_set() and not (root / f"rounds/00{index}.waiting").is_dir():
                time.sleep(0.2)
            if not stop.is_set():
                choose_darkest(root)

    eye = threading.Thread(target=person)
    eye.start()
    try:
        command("train", config, "--reward", "human", "--out", root)
    finally:
        stop.set()
        eye.join()
    assert "http://127.0.0.1:" in capsys.readouterr().out
    rows = [json.loads(line) for line in (root / "rounds/002/candidates/metadata.jsonl").read_text().splitlines()]
    assert sum(row["scores"]["human"] == 1 for row in rows) == sum(row["winner"] for row in rows) == 8
    assert (root / LORA).read_bytes() != (ranked / LORA).read_bytes()
    with capsys.disabled():
        print(f"\nbrightness of the same seeds: person {gain(root):+.1f}, reward {gain(ranked):+.1f}")
    assert gain(root) < -1  # measured: person -3.1, reward +1.9
    assert gain(root) < gain(ranked) - 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_overruled_round_is_tuned_again_by_the_same_command(config, ranked, tmp_path, capsys):
    root = shutil.copytree(ranked, tmp_path / "copy")
    old = (root / LORA).read_bytes()
    choose_darkest(root, 1)
    command("train", root / "config.toml", "--out", root)
    said = " ".join(capsys.readouterr().out.split())
    assert "round 1 is tuned again on what you chose, and round 2, which came of it, made anew" in said
    assert (root / "replaced/1" / LORA).read_bytes() == old != (root / LORA).read_bytes()
    assert complete_rounds(root) == [1, 2]
    for path in (ranked / "rounds/001/candidates").glob("*.png"):
        assert (root / "rounds/001/candidates" / path.name).read_bytes() == path.read_bytes()
    assert gain(root) < gain(ranked)
    capsys.readouterr()
    command("train", root / "config.toml", "--out", root)
    assert "this run is finished: 2 rounds" in capsys.readouterr().out
