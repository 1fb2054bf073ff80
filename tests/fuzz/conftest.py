"""A finished run of the carried model that takes seconds, for the tests of command lines and of damaged files."""

import json
import sys
import warnings
from pathlib import Path

import pytest

from raft_diffusion import cli

TINY = """
name = "tiny"
rounds = 1
threads = 1
device = "cpu"
[prompts]
train = ["monet style cat"]
[sampling]
width = 32
height = 32
num_inference_steps = 1
samples_per_prompt = 4
batch_size = 8
[rewards]
weights = { text_image = 1.0, aesthetic = 0.5 }
[tuning]
rank = 1
alpha = 1
steps = 1
batch_size = 2
[guard]
pairs = 8
[evaluation]
pairs = 2
ood_pairs = 0
best_of = 2
"""


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nobody may change it. Its one round holds what a person chose: nothing yet."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.toml").write_text(TINY)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(sys, "argv", ["raft-diffusion", "train", str(folder / "tiny.toml"), "--out", str(folder / "run")])
        cli.main()
    (folder / "run" / "rounds" / "001" / "choices.json").write_text(json.dumps({"actions": []}) + "\n")
    return folder / "run"
