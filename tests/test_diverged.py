"""A round that cannot be learned stops the run at the one before it, whose LoRA stays the result."""

import sys

import pytest

from raft_diffusion import assemble, cli
from raft_diffusion.core.looks import adapter_of
from raft_diffusion.lora.file import find_lora
from raft_diffusion.skips import Diverged, Skips

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
samples_per_prompt = 2
[rewards]
weights = { compressibility = 1.0 }
[tuning]
rank = 2
alpha = 2
steps = 3
batch_size = 2
[guard]
enabled = false
[evaluation]
pairs = 2
ood_pairs = 0
best_of = 2
"""
LORA = "pytorch_lora_weights.safetensors"


def train(*arguments: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["raft-diffusion", "train", *map(str, arguments)])
        cli.main()


@pytest.fixture
def diverging(monkeypatch):
    """From a given round on the tuner learns a little and then gives up."""

    def start(first: int) -> None:
        make = assemble.make_tuner

        def broken(config, progress=None, *, index=1):
            tune = make(config, progress, index=index)

            def tuned(policy, winners, *, seed):
                figures = tune(policy, winners, seed=seed)
                if index >= first:
                    raise Diverged("the loss was not finite; lower tuning.learning_rate in a new run")
                return figures

            return tuned

        monkeypatch.setattr(assemble, "make_tuner", broken)

    return start


def test_the_run_stops_at_its_last_good_round(tmp_path, diverging, capsys):
    (tmp_path / "tiny.toml").write_text(TINY)
    diverging(2)
    with pytest.raises(SystemExit) as stop:
        train(tmp_path / "tiny.toml", "--out", tmp_path / "run")
    assert stop.value.code == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told == (
        "raft-diffusion: the run stops at round 1, whose LoRA is its result, for in round 2 the loss was not finite; "
        "lower tuning.learning_rate in a new run"
    )
    assert [path.name for path in sorted((tmp_path / "run" / "rounds").iterdir())] == ["001"]
    good = (adapter_of(tmp_path / "run", 1) / LORA).read_bytes()
    assert (tmp_path / "run" / "lora" / LORA).read_bytes() == good
    assert find_lora(tmp_path / "run").read_bytes() == good


def test_without_a_good_round_there_is_no_result(tmp_path, diverging, capsys):
    (tmp_path / "tiny.toml").write_text(TINY)
    diverging(1)
    with pytest.raises(SystemExit) as stop:
        train(tmp_path / "tiny.toml", "--out", tmp_path / "run")
    assert stop.value.code == 2
    assert "round 1 cannot be learned, and none is before it: the loss was not finite" in capsys.readouterr().err
    assert not (tmp_path / "run" / "lora").exists()


def test_a_warning_tells_how_many_steps_were_left_out():
    skips = Skips(total=2)
    with pytest.warns(UserWarning, match="2 of 10 tuning steps were skipped"):
        assert skips.figures(10) == {"skipped": 2}
    assert Skips().figures(10) == {}
