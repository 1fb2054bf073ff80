"""Sampling with the UNet as torch.compile makes it."""

import shutil

import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed
from torch._dynamo.utils import counters

from raft_diffusion.diffusion.sampler import DiffusionPolicy


def assert_alike(compiled, policy, draws):
    found, expected = (
        torch.stack([sample.data.latent for sample in each.generate(draws)]) for each in (compiled, policy)
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)


def compiled_like(policy, model_folder):
    from raft_diffusion.diffusion import load

    components = load(model_folder, device="cpu", dtype=torch.float32)
    compiled = DiffusionPolicy(components, settings=policy.settings, compiled=True)
    compiled.add_adapter(rank=4, alpha=6.0, targets=("attention", "feed_forward", "projection", "convolution"))
    return compiled


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a C++ compiler")
def test_a_compiled_unet_makes_the_same_pictures_and_stays_compiled_as_the_lora_learns(
    policy, model_folder, draws, shake
):
    torch._dynamo.reset()
    counters.clear()
    compiled = compiled_like(policy, model_folder)
    graphs = []
    for seed in (5, 6, 7):  # three rounds, of a full batch and a smaller one each
        for each in (policy, compiled):
            shake(each, seed)
        assert_alike(compiled, policy, draws)
        with policy.base(), compiled.base():
            assert_alike(compiled, policy, draws)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] > 0
    assert graphs == graphs[:1] * 3


def test_a_machine_that_cannot_compile_says_so_in_one_sentence(policy, model_folder, draws, monkeypatch):
    def refuse(*_, **__):
        raise BackendCompilerFailed("inductor", RuntimeError("no working C++ compiler"), None)

    compiled = compiled_like(policy, model_folder)
    monkeypatch.setattr(compiled, "unet", refuse)
    with pytest.raises(ValueError, match=r"cannot compile the UNet here .*sampling\.compile") as caught:
        compiled.generate(draws)
    assert "\n" not in str(caught.value)
