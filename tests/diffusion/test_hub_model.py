"""The carried model through a hub on this machine: HF_HOME, revisions, variants, offline mode."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from raft_diffusion.sd15.source import POCKET

pytestmark = pytest.mark.slow  # each start of a process imports torch anew
Hub = runpy.run_path(str(Path(__file__).parents[1] / "hub.py"))["Hub"]
CODE = """
import json, sys
import torch
from raft_diffusion.diffusion import load

def weights(model, **options):
    components = load(model, device="cpu", dtype=torch.float32, **options)
    parts = (components.unet, components.vae, components.text_encoder)
    return components, [tensor for part in parts for tensor in part.state_dict().values()]

_, expected = weights("pocket")
for options in json.loads(sys.argv[1]):
    try:
        components, found = weights(**options)
    except ValueError as error:
        print(error)
    else:
        same = len(found) == len(expected) and all(map(torch.equal, found, expected))
        print(same, components.name, components.prediction_type)
"""


@pytest.fixture
def ask(tmp_path):
    def ask(wanted, **env):
        given = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGINGFACE_"))}
        process = subprocess.run(
            [sys.executable, "-c", CODE, json.dumps(wanted)],
            env=given | {"HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"} | env,
            capture_output=True,
            text=True,
            check=True,
        )
        return process.stdout.splitlines()

    return ask


def test_a_hub_id_gives_the_folders_weights_and_is_kept(ask, tmp_path):
    half = tmp_path / "half"
    shutil.copytree(POCKET, half)
    for path in half.rglob("*.safetensors"):
        path.rename(path.with_suffix(".fp16.safetensors"))
    with Hub({"owner/pocket": {"main": POCKET, "halves": half}}) as hub:
        plain = {"model": "owner/pocket"}
        halves = plain | {"revision": "halves", "variant": "fp16", "prediction_type": "v_prediction"}
        answers = ask([plain, halves, plain | {"revision": "halves"}], HF_ENDPOINT=hub.url)
        assert answers[:2] == ["True owner/pocket epsilon", "True owner/pocket v_prediction"]
        assert answers[2].startswith("cannot load the model 'owner/pocket' (") and len(answers) == 3
        assert answers[2].endswith("its safetensors weights must be there")
        asked = len(hub.requests)
        assert ask([plain, halves], HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1") == answers[:2]
        assert len(hub.requests) == asked
    assert (tmp_path / "home" / "hub" / "models--owner--pocket").is_dir()
