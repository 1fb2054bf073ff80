import json
import logging

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open

from raft_diffusion.diffusion.adapter import FILE_NAME, TARGETS, Adapter
from raft_diffusion.diffusion.load import load
from raft_diffusion.diffusion.sampler import DiffusionPolicy


def weights(policy):
    return {name: parameter.detach().clone() for name, parameter in policy.trained.parameters().items()}


def test_a_fresh_adapter_changes_nothing_and_learns_in_float32(policy, draws):
    with policy.base():
        base = policy.generate(draws)
    for sample, reference in zip(policy.generate(draws), base, strict=True):
        assert torch.equal(sample.data.latent, reference.data.latent)
    trainable = [p for p in policy.components.unet.parameters() if p.requires_grad]
    assert len(trainable) == len(weights(policy)) and all(p.dtype == torch.float32 for p in trainable)


def test_the_seed_alone_draws_the_initial_weights(components, policy, shake):
    first = weights(policy)
    torch.manual_seed(99)
    shake(policy)
    policy.trained.reset()
    assert all(torch.equal(value, first[name]) for name, value in weights(policy).items())
    # Kaiming uniform with a = sqrt(5) means a bound of 1 / sqrt(fan in), and B = 0.
    for name, value in first.items():
        if ".lora_A." in name:
            bound = value[0].numel() ** -0.5
            assert 0.5 * bound < value.abs().max() <= bound
        else:
            assert not value.any()


@pytest.mark.parametrize(
    ("target", "layers"),
    [
        ("attention", {"to_q", "to_k", "to_v", "to_out.0"}),
        ("feed_forward", {"net.0.proj", "net.2"}),
        ("projection", {"proj_in", "proj_out"}),
        ("convolution", {"conv1", "conv2", "conv_shortcut", "conv"}),
    ],
)
def test_a_target_group_reaches_its_layers_everywhere(components, target, layers):
    adapter = Adapter(components, rank=2, alpha=2, targets=[target], text_encoder=False, seed=0)
    reached = {name.split(".lora_")[0].removeprefix("unet.") for name in adapter.parameters()}
    wanted = {
        name.replace(".base_layer", "")
        for name, _ in components.unet.named_modules()
        if name.endswith(tuple(f".{layer}" for layer in TARGETS[target]))
    }
    assert reached == wanted
    assert {layer for layer in layers if any(name.endswith(f".{layer}") for name in reached)} == layers


def test_saved_bytes_repeat_and_weights_come_back_bit_by_bit(policy, tmp_path, shake):
    shake(policy)
    saved = weights(policy)
    contents = set()
    for number in range(8):
        policy.save(tmp_path / str(number))
        contents.add((tmp_path / str(number) / FILE_NAME).read_bytes())
    assert len(contents) == 1
    assert [path.name for path in (tmp_path / "0").iterdir()] == [FILE_NAME]
    shake(policy, seed=6)
    policy.load(tmp_path / "0")
    assert all(torch.equal(value, saved[name]) for name, value in weights(policy).items())


def test_a_plain_pipeline_loads_the_file_with_the_same_effect(
    components, settings, model_folder, tmp_path, shake, caplog
):
    policy = DiffusionPolicy(components, settings=settings)
    policy.add_adapter(rank=4, alpha=6.0, targets=list(TARGETS), text_encoder=True)
    shake(policy)
    policy.save(tmp_path)
    pipe = StableDiffusionPipeline.from_pretrained(
        model_folder, dtype=torch.float32, safety_checker=None, requires_safety_checker=False
    )
    with caplog.at_level(logging.WARNING):
        pipe.load_lora_weights(tmp_path)
    assert not caplog.records
    for part in ("unet", "text_encoder"):
        ours, theirs = getattr(components, part), getattr(pipe, part)
        layers = {n: m for n, m in ours.named_modules() if hasattr(m, "lora_A")}
        reached = {n: m for n, m in theirs.named_modules() if hasattr(m, "lora_A")}
        assert layers.keys() == reached.keys() and layers
        for name, layer in layers.items():
            delta = layer.get_delta_weight("default")
            assert torch.equal(delta, reached[name].get_delta_weight("default_0")) and delta.any()


def test_the_file_is_readable_by_older_programs(components, settings, tmp_path):
    policy = DiffusionPolicy(components, settings=settings)
    policy.add_adapter(rank=4, alpha=6.0, text_encoder=True)
    policy.save(tmp_path)
    with safe_open(tmp_path / FILE_NAME, "pt") as file:
        names, metadata = list(file.keys()), json.loads(file.metadata()["lora_adapter_metadata"])
    text = [name for name in names if not name.startswith("unet.")]
    assert len(text) == 2 * 2 * 4
    assert all(name.startswith("text_encoder.text_model.encoder.layers.") for name in text)
    assert metadata["unet.r"] == metadata["text_encoder.r"] == 4 and metadata["unet.lora_alpha"] == 6.0
    assert {key.split(".", 1)[1] for key in metadata} == {
        *("r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "use_dora", "lora_bias"),
        *("use_rslora", "bias", "lora_dropout", "fan_in_fan_out"),
    }


def test_an_adapter_of_another_shape_is_refused(components, policy, settings, model_folder, tmp_path):
    policy.save(tmp_path)
    other = DiffusionPolicy(load(model_folder, device="cpu", dtype=torch.float32), settings=settings)
    other.add_adapter(rank=8, alpha=6.0, targets=list(TARGETS))
    with pytest.raises(ValueError, match=r"unet.r 4 instead of 8"):
        other.load(tmp_path)
    with pytest.raises(ValueError, match="there is no adapter"):
        other.load(tmp_path / "nothing")


def test_user_errors_are_one_sentence(policy, settings, model_folder):
    with pytest.raises(ValueError, match="carries an adapter already"):
        policy.add_adapter(rank=4, alpha=4.0)
    bare = DiffusionPolicy(load(model_folder, device="cpu", dtype=torch.float32), settings=settings)
    with pytest.raises(ValueError, match="choose from attention, feed_forward, projection, convolution"):
        bare.add_adapter(rank=4, alpha=4.0, targets=["atention"])
    with pytest.raises(ValueError, match="rank >= 1"):
        bare.add_adapter(rank=0, alpha=4.0)
    with pytest.raises(ValueError, match="call add_adapter first"):
        bare.save(model_folder / "adapter")


def predict(policy):
    unet, generator = policy.components.unet, torch.Generator().manual_seed(5)
    latents, text = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 77, 32, generator=generator)
    with torch.no_grad():
        return unet(latents.to(unet.dtype), 500, text.to(unet.dtype), return_dict=False)[0].float()


@pytest.fixture
def lora_calls(policy):
    """How often any layer of the LoRA has run."""
    calls = []
    for name, module in policy.components.unet.named_modules():
        if name.endswith(".lora_A.default"):
            module.register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("strength", [1.0, -0.5])
def test_a_folded_adapter_predicts_the_same_without_running(policy, shake, lora_calls, strength):
    shake(policy)
    policy.trained.set_strength(strength)
    beside, before = predict(policy), {n: t.clone() for n, t in policy.components.unet.state_dict().items()}
    with policy.base():
        assert not torch.allclose(predict(policy), beside, atol=1e-3)
    lora_calls.clear()
    with policy.trained.folded():
        folded = predict(policy)
    assert not lora_calls
    assert torch.allclose(folded, beside, atol=1e-5)
    after = policy.components.unet.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert torch.equal(predict(policy), beside) and lora_calls
    assert all(parameter.requires_grad for parameter in policy.trained.parameters().values())


def test_candidates_are_sampled_with_the_adapter_folded(policy, draws, shake, lora_calls):
    shake(policy)
    policy.generate(draws)
    assert not lora_calls


def test_a_folded_adapter_leaves_the_base_alone(policy, shake):
    shake(policy)
    with policy.base():
        base = predict(policy)
        with policy.trained.folded():
            assert torch.equal(predict(policy), base)


def test_frozen_weights_come_back_after_a_failure(policy, shake):
    shake(policy)
    before = predict(policy)
    with pytest.raises(KeyboardInterrupt), policy.trained.folded():
        raise KeyboardInterrupt
    assert torch.equal(predict(policy), before)


def test_bfloat16_weights_keep_the_adapter_beside_them(model_folder, settings, shake):
    # Beside the weights a LoRA counts that is less than half of the last of bfloat16's 8 bits, which they would lose.
    policy = DiffusionPolicy(load(model_folder, device="cpu", dtype=torch.bfloat16), settings=settings)
    policy.add_adapter(rank=4, alpha=6.0)
    shake(policy)
    policy.trained.set_strength(1e-3)
    beside = predict(policy)
    with policy.trained.folded():
        assert torch.equal(predict(policy), beside)
    with policy.base():
        assert not torch.equal(predict(policy), beside)


def test_without_memory_for_a_copy_the_adapter_stays_beside(policy, shake, monkeypatch, lora_calls):
    shake(policy)
    beside, clone, left = predict(policy), torch.Tensor.clone, [3]

    def scarce(tensor, *args, **options):
        left[0] -= 1
        if left[0] < 0:
            raise torch.OutOfMemoryError("no room")
        return clone(tensor, *args, **options)

    monkeypatch.setattr(torch.Tensor, "clone", scarce)
    lora_calls.clear()
    with policy.trained.folded():
        monkeypatch.undo()
        assert torch.allclose(predict(policy), beside, atol=1e-5)
    assert len(lora_calls) == len(policy.trained.parameters()) // 2 - 3
    assert torch.equal(predict(policy), beside)
