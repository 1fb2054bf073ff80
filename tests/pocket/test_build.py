"""The recipe from nothing to a folder of weights, in little."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from raft_diffusion.core.records import Draw, Prompt
from raft_diffusion.pocket import build, recipe

TIMEOUT = 1800


def toy_loss(net: torch.nn.Module):
    def loss_of(step: int, generator: torch.Generator) -> torch.Tensor:
        x = torch.randn(8, 3, generator=generator)
        return (net(x) - x.sum(1, keepdim=True) * (1 + step)).square().mean()

    return loss_of


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_killed_stage_goes_on_to_the_same_weights(tmp_path, ema):
    def train(name: str, killed_at: int = 0) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
        loss_of = toy_loss(net)

        def killing(step: int, generator: torch.Generator) -> torch.Tensor:
            if step == killed_at:
                raise KeyboardInterrupt
            return loss_of(step, generator)

        (tmp_path / name).mkdir(exist_ok=True)
        made = recipe.fit(
            tmp_path / name,
            net,
            killing if killed_at else loss_of,
            stage="toy",
            steps=20,
            learning_rate=0.1,
            report=lambda step, steps, loss: None,
            ema=ema,
            save_every=6,
        )
        return {key: value.clone() for key, value in made.state_dict().items()}

    whole = train("whole")
    for step in (15, 17):
        with pytest.raises(KeyboardInterrupt):
            train("killed", killed_at=step)
    assert torch.load(tmp_path / "killed" / "state.pt", weights_only=True)["step"] == 12
    for resumed in (train("killed"), train("killed")):  # and once more when all steps are made
        assert resumed.keys() == whole.keys()
        assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_a_loss_that_is_no_number_stops_the_stage(tmp_path):
    net = torch.nn.Linear(3, 1)
    with pytest.raises(RuntimeError, match="the loss of toy is nan at step 0"):
        recipe.fit(
            tmp_path,
            net,
            lambda step, generator: net(torch.full((1, 3), torch.nan)).sum(),
            stage="toy",
            steps=4,
            learning_rate=0.1,
            report=lambda step, steps, loss: None,
        )
    assert not list(tmp_path.iterdir())


def test_every_stage_has_a_recipe_and_a_place():
    assert set(build.NEEDS) == set(build.THREADS) == set(recipe.TRAIN) == set(recipe.STEPS)
    assert max(build.THREADS.values()) <= build.CORES


def test_a_smoke_build_never_replaces_the_carried_weights(capsys):
    with pytest.raises(SystemExit):
        build.main(["--smoke"])
    assert "--out" in capsys.readouterr().err


def command(folder: Path) -> list[str]:
    start = [sys.executable, "-m", "raft_diffusion.pocket.build", "--smoke"]
    return [*start, "--work", str(folder / "work"), "--out", str(folder / "weights")]


def files(folder: Path) -> dict[str, str]:
    entries = json.loads((folder / "weights" / "manifest.json").read_text(encoding="utf-8"))["files"]
    return {name: entry["sha256"] for name, entry in entries.items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A smoke build that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    done = subprocess.run(command(folder), capture_output=True, text=True, encoding="utf-8", timeout=TIMEOUT)
    assert done.returncode == 0, done.stdout + done.stderr + _logs(folder)
    assert "wrote" in done.stdout
    return folder


def _logs(folder: Path) -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in (folder / "work").glob("*/log.txt"))


def _child(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()[0])


@pytest.mark.slow
def test_a_build_gives_a_model_two_towers_and_a_judge_that_work(whole):
    from raft_diffusion.diffusion import DiffusionPolicy, Settings, load
    from raft_diffusion.pocket.judge import Judge
    from raft_diffusion.rewards.clip import ClipTower

    weights = whole / "weights"
    assert {path.name for path in weights.iterdir()} == {
        *("model", "clip", "held_out", "judge", "manifest.json", "MODEL_CARD.md")
    }
    on_disk = {p.relative_to(weights).as_posix() for p in weights.rglob("*") if p.is_file()}
    assert set(files(whole)) == on_disk - {"manifest.json", "MODEL_CARD.md"}
    for name, sha256 in files(whole).items():
        assert hashlib.sha256((weights / name).read_bytes()).hexdigest() == sha256, name

    settings = Settings(
        width=64, height=64, num_inference_steps=2, guidance_scale=3.0, scheduler="DPM++ 2M", batch_size=2
    )
    policy = DiffusionPolicy(load(weights / "model", device="cpu", dtype=torch.float32), settings=settings)
    samples = policy.generate([Draw(Prompt("monet style cat"), 0, 5)])
    image = samples[0].data.image
    assert image.size == (64, 64)
    for folder in ("clip", "held_out"):
        scores = ClipTower.load(weights / folder)(samples)
        assert set(scores) == {"text_image", "aesthetic"} and len(scores["aesthetic"]) == 1
    judge = Judge.load(weights / "judge")
    assert set(judge.measure([image], ["monet style cat"])) == {"object", "style"}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the stage's process in /proc")
def test_a_build_with_a_killed_stage_goes_on_to_the_same_files(whole, tmp_path):
    progress = tmp_path / "work" / "unet" / "progress.json"
    building = subprocess.Popen(command(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    stop = time.monotonic() + TIMEOUT
    while not progress.exists():
        assert building.poll() is None and time.monotonic() < stop, _logs(tmp_path)
        time.sleep(0.005)
    os.kill(_child(building.pid), signal.SIGKILL)
    said, _ = building.communicate(timeout=60)
    assert building.returncode == 1 and "stage unet failed: see" in said
    row = json.loads(progress.read_text(encoding="utf-8"))
    assert 0 < row["step"] < row["steps"]
    assert not (tmp_path / "weights").exists()

    done = subprocess.run(command(tmp_path), capture_output=True, text=True, encoding="utf-8", timeout=TIMEOUT)
    assert done.returncode == 0, done.stdout + done.stderr + _logs(tmp_path)
    assert files(tmp_path) == files(whole)
