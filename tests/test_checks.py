"""What is refused before anything is loaded."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from raft_diffusion import checks
from raft_diffusion.jobs import load_config

FIRST = "model.diffusion_model.input_blocks.0.0.weight"


@pytest.fixture
def inpainting(tmp_path):
    path = tmp_path / "inpainting.safetensors"
    attention = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    tensors = {FIRST: torch.zeros(320, 9, 3, 3), attention: torch.zeros(320, 768)}
    save_file(tensors, path)
    return path


def test_a_checkpoint_of_another_kind_is_told_before_torch_is_loaded(inpainting, tmp_path):
    code = (
        "import sys\nfrom raft_diffusion.cli import main\n"
        f"sys.argv = ['raft-diffusion', 'train', 'resolution-256', '--model', {str(inpainting)!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    print(end.code, 'torch' in sys.modules)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert "is an inpainting checkpoint (its UNet takes 9 channels instead of 4)" in found.stderr.replace("\n", " ")
    assert found.stdout.split() == ["2", "False"]
    assert [path.name for path in tmp_path.iterdir()] == [inpainting.name]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            ["rewards.weights.aesthetic_v1=1"],
            "no head aesthetic_v1 was published for the CLIP tower pocket: choose the",
        ),
        (["model=nowhere"], "no model at 'nowhere'"),
        (["revision=main"], "revision 'main' is for a model on the hub, and pocket is on this machine"),
        (["variant=fp16"], r"holds no weights of the variant 'fp16'; leave the variant out"),
        (["device=gpu"], "unknown device 'gpu'"),
        (["sampling.eta=0.5"], r"eta is 0.5, but the scheduler 'DPM\+\+ 2M' has none; set it to 0, or choose DDIM"),
        (["rewards.weights={ log_ratios = 1.0 }"], "unknown reward 'log_ratios'"),
    ],
)
def test_names_that_lead_nowhere(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        checks.check(load_config("pocket-monet", changes=changes))


def test_a_hub_model_is_not_looked_up_before_the_work_begins(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    checks.check(load_config("resolution-256"))


def test_a_head_of_the_users_own_needs_no_published_one():
    checks.check_heads("pocket", ["aesthetic_v1"], {"aesthetic_v1": "head.pth"})


def test_what_goes_with_the_levers():
    checks.check(load_config("pocket-monet", changes=["sampling.eta=0.5", "sampling.scheduler=DDIM"]))
    checks.check(load_config("pocket-monet", changes=["rewards.weights.log_ratio=-0.2"]))


def test_winners_of_one_prompt_compete_by_any_reward():
    across = ["rewards.method=fixed", "selection.top_count=8"]
    checks.check(load_config("pocket-monet", changes=across))
    with pytest.raises(ValueError, match="text_image compares pictures of one prompt only"):
        checks.check(load_config("pocket-resolution", changes=across))


def test_a_function_of_the_users_own_may_have_the_policys_name():
    own = load_config("pocket-monet", changes=["rewards.weights.log_ratio=1", 'rewards.custom=["mine:log_ratio"]'])
    assert not checks.ranks_by_log_ratio(own.rewards)
    assert checks.ranks_by_log_ratio(load_config("pocket-monet", changes=["rewards.weights.log_ratio=1"]).rewards)
