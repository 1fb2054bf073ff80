"""The guard of a run: what it looks at, what it keeps on disk, what a run does when it speaks."""

import json
import sys
from pathlib import Path

import pytest
import torch

from raft_diffusion import assemble, cli
from raft_diffusion.checks import check
from raft_diffusion.core.config import Config
from raft_diffusion.core.looks import read_ending, read_look
from raft_diffusion.guarding import verdict_of, watch_of, why_off
from raft_diffusion.lora.file import find_lora
from raft_diffusion.planning.forecast import forecast
from raft_diffusion.planning.machine import Machine

TINY = """
name = "tiny"
rounds = 4
threads = 1
device = "cpu"
[prompts]
train = ["monet style cat"]
held_out = ["monet style house"]
[sampling]
width = 32
height = 32
num_inference_steps = 1
samples_per_prompt = 2
batch_size = 8
[tuning]
rank = 2
alpha = 2
steps = 1
batch_size = 1
[guard]
pairs = 8
[evaluation]
pairs = 2
ood_pairs = 0
best_of = 2
"""
LORA = "pytorch_lora_weights.safetensors"
FALL = "round 3: the held-out score fell from 33 (round 1) to 23, more than chance allows"


def settings(*changes: str) -> Config:
    return Config.parse(TINY).with_overrides(list(changes))


# --- who guards -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "model", "reward"),
    [
        ([], "pocket-held-out", "held_out.text_image"),
        (["rewards.held_out=pickscore"], "pickscore", "held_out.pickscore"),
        (["rewards.held_out=pickscore", "guard.reward=hpsv2.1"], "hpsv2.1", "held_out.hpsv2.1"),
        (
            ["model=other", "guard.reward=ViT-B-32:laion2b_s34b_b79k"],
            "ViT-B-32:laion2b_s34b_b79k",
            "held_out.text_image",
        ),
    ],
)
def test_who_guards(changes, model, reward):
    watch = watch_of(settings(*changes))
    assert watch is not None
    assert (watch.model, watch.judge, watch.reward, len(watch.ids)) == (model, model, reward, 8)
    assert why_off(settings(*changes)) is None


def test_no_guard_where_no_reward_is_left():
    config = settings("model=other", "rewards.scorer=ViT-L-14-quickgelu:openai")
    assert watch_of(config) is None
    assert why_off(config) == (
        "no guard watches this run, for it has no reward that does not rank: set rewards.held_out or guard.reward to a "
        "CLIP tower of its own, such as ViT-B-32:laion2b_s34b_b79k"
    )
    assert watch_of(settings("guard.enabled=false")) is None
    assert why_off(settings("guard.enabled=false")) is None


def test_another_strength_of_the_lora_is_another_measure():
    one, other = watch_of(settings()), watch_of(settings("sampling.lora_scale=0.8"))
    assert one is not None
    assert other is not None
    assert (one.judge, other.judge) == ("pocket-held-out", "pocket-held-out, LoRA at 0.8")


@pytest.mark.parametrize("reward", ["pocket", "pickscore"])
def test_what_ranks_cannot_guard(reward):
    config = settings("rewards.weights={ text_image = 1.0, pickscore = 1.0 }", f"guard.reward={reward}")
    sentence = (
        f"guard.reward is {reward}, which ranks: a guard must take no part in the ranking, so give another tower, "
        "pickscore or hpsv2.1"
    )
    with pytest.raises(ValueError, match=sentence):
        check(config)


def test_an_unknown_judge_is_refused():
    with pytest.raises(ValueError, match="no CLIP tower 'pocket-held': did you mean pocket-held-out"):
        check(settings("guard.reward=pocket-held"))


def test_the_forecast_counts_its_pictures():
    machine = Machine(cores=1, memory=8 * 10**9)
    on, off = (
        forecast(settings(f"guard.enabled={word}", "rewards.held_out=pocket-held-out"), machine=machine)
        for word in ("true", "false")
    )
    assert (on.guard_images, off.guard_images) == (5 * 8, 0)
    assert on.guard_unet_evaluations == 5 * 8 * 1 * 2  # at guidance 7.5: two a step
    assert (off.seconds_guard, off.guard_unet_evaluations) == (0, 0)
    assert on.seconds - off.seconds == pytest.approx(5 * on.seconds_guard)
    assert on.images == off.images


# --- a run ------------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "tiny.toml").write_text(TINY)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def seen(monkeypatch):
    """What the guard sees, look after look; each has its score, draws apart from each other by their numbers."""
    scores: list[float] = []

    def measure(draws, **_):
        score = scores.pop(0)
        return [score + place for place in range(len(draws))], [1.0] * len(draws)

    monkeypatch.setattr(assemble, "measure", measure)
    return scores


def command(*arguments: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["raft-diffusion", *map(str, arguments)])
        cli.main()


def lora(folder: Path) -> bytes:
    return (folder / LORA).read_bytes()


def test_a_run_that_turns_is_stopped_and_keeps_its_best_round(seen, capsys):
    seen += [26.5, 29.5, 27.0, 19.5]
    command("train", "tiny.toml", "--out", "run")
    out, run = capsys.readouterr().out, Path("run")
    assert FALL in out
    assert "stopped; round 1's LoRA is the result" in out
    assert "to go on all the same: --set guard.enabled=false" in out
    assert "no better mean reward" not in out
    assert not (run / "rounds" / "004").exists()
    assert lora(run / "lora") == lora(run / "rounds/001/adapter") != lora(run / "rounds/003/adapter")
    assert find_lora(run) == run / "rounds" / "001" / "adapter" / LORA
    assert json.loads((run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0])["guard"] == {
        "held_out.text_image": 33.0,
        "diversity": 1.0,
    }
    page = (run / "report.html").read_text(encoding="utf-8")
    assert FALL.replace("round 3", "Round 3", 1) in page
    assert "The LoRA of this run is round 1&#39;s;" in page

    command("train", "tiny.toml", "--out", "run")  # nothing is measured again: `seen` is empty
    again = capsys.readouterr().out
    assert "this run is finished: 3 rounds" in again
    assert FALL in again

    command("train", "tiny.toml", "--out", "run", "--set", "guard.enabled=false")
    assert (run / "rounds" / "004").exists()
    assert lora(run / "lora") == lora(run / "rounds/004/adapter")
    assert read_ending(run, after=4) is None
    assert find_lora(run) == run / "rounds" / "004" / "adapter" / LORA


def test_a_run_that_only_gets_worse_ends_where_it_began(seen, capsys):
    seen += [26.5, 10.0, 10.0]
    command("train", "tiny.toml", "--out", "run")
    assert "stopped; no round was good: the result is what it started from" in capsys.readouterr().out
    run = Path("run")
    assert lora(run / "lora") == lora(run / "start/adapter") != lora(run / "rounds/001/adapter")
    assert find_lora(run) == run / "start" / "adapter" / LORA
    result = json.loads((run / "evaluation" / "evaluation.json").read_text(encoding="utf-8"))
    assert all(row["base"] == row["tuned"] for row in result["rewards"].values())


def test_looks_that_are_missing_are_made_again_with_their_own_adapters(capsys):
    command("train", "tiny.toml", "--out", "run", "--set", "rounds=2")
    run = Path("run")
    before = [read_look(run, index) for index in range(3)]
    assert None not in before
    assert len({look.scores for look in before if look}) == 3
    (run / "rounds/001/guard.json").unlink()
    (run / "rounds/002/guard.json").write_text('{"round": 2}')
    (run / "start/guard.json").unlink()
    command("train", "tiny.toml", "--out", "run", "--set", "rounds=3")
    assert [read_look(run, index) for index in range(3)] == before
    capsys.readouterr()


def test_a_run_of_an_older_version_is_finished_as_it_is(capsys, monkeypatch):
    command("train", "tiny.toml", "--out", "run", "--set", "rounds=1", "--set", "guard.enabled=false")
    for name in ("make_policy", "make_rewards"):
        monkeypatch.setattr(assemble, name, lambda *_, name=name: pytest.fail(f"{name} was called"))
    toml = (Path("run") / "config.toml").read_text(encoding="utf-8")
    old = toml.replace(toml[toml.index("[guard]") : toml.index("[evaluation]")], "")
    (Path("run") / "config.toml").write_text(old, encoding="utf-8")
    command("train", "tiny.toml", "--out", "run", "--set", "rounds=1")
    assert "this run is finished: 1 rounds" in capsys.readouterr().out
    assert verdict_of(settings("rounds=1"), Path("run"), 1) is None
