"""A stored LoRA, from any of the places where one can lie, at any strength."""

from contextlib import nullcontext

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from raft_diffusion.diffusion.load import load
from raft_diffusion.diffusion.sampler import DiffusionPolicy
from raft_diffusion.lora.file import FILE_NAME, TARGETS, find_lora, read_lora
from raft_diffusion.webui import parse_infotext


@pytest.fixture
def stored(components, settings, tmp_path, shake):
    """A folder with a LoRA on every group and the text encoder, of rank 4 and alpha 6."""
    policy = DiffusionPolicy(components, settings=settings)
    policy.add_adapter(rank=4, alpha=6.0, targets=list(TARGETS), text_encoder=True)
    shake(policy)
    policy.save(tmp_path / "lora")
    return tmp_path / "lora"


@pytest.fixture
def fresh(model_folder, settings):
    return lambda: DiffusionPolicy(load(model_folder, device="cpu", dtype=torch.float32), settings=settings)


def latents(policy, draws, *, base=False):
    with policy.base() if base else nullcontext():
        return torch.stack([sample.data.latent for sample in policy.generate(draws)])


def deltas(unet):
    layers = {name: layer for name, layer in unet.named_modules() if hasattr(layer, "lora_A")}
    return {name: layer.get_delta_weight(layer.active_adapters[0]) for name, layer in layers.items()}


def test_strength_0_is_the_base_and_1_the_trained_lora(stored, fresh, draws):
    plain, none, full = fresh(), fresh(), fresh()
    none.attach(stored, scale=0.0)
    full.attach(stored)
    loaded = fresh()
    loaded.add_adapter(rank=4, alpha=6.0, targets=list(TARGETS), text_encoder=True)
    loaded.load(stored)
    base, tuned = latents(plain, draws), latents(loaded, draws)
    assert torch.equal(latents(none, draws), base)
    assert torch.equal(latents(full, draws), tuned) and not torch.allclose(base, tuned, atol=0.1)
    assert torch.equal(latents(full, draws, base=True), base)
    assert torch.equal(latents(full, draws), tuned)


@pytest.mark.parametrize("strength", [0.5, -0.25])
def test_strength_is_that_of_diffusers(stored, fresh, model_folder, strength):
    policy = fresh()
    policy.attach(stored / FILE_NAME, scale=strength)
    pipe = StableDiffusionPipeline.from_pretrained(
        model_folder, dtype=torch.float32, safety_checker=None, requires_safety_checker=False
    )
    pipe.load_lora_weights(stored, adapter_name="a")
    pipe.set_adapters(["a"], [strength])
    for part in ("unet", "text_encoder"):
        ours, theirs = deltas(getattr(policy.components, part)), deltas(getattr(pipe, part))
        assert ours.keys() == theirs.keys() and ours
        for name, delta in ours.items():
            torch.testing.assert_close(delta, theirs[name])
            assert delta.any()


def test_the_pictures_name_the_lora_and_the_base_does_not(stored, fresh, draws):
    (stored / FILE_NAME).rename(stored / "my style.safetensors")
    policy = fresh()
    policy.attach(stored / "my style.safetensors", scale=0.5)
    text = policy.generate(draws[:1])[0].data.image.info["parameters"]
    assert text.startswith("cat <lora:my style:0.5>\n") and "Adapter" not in text
    assert parse_infotext(text).lora == {"my style": 0.5}
    with policy.base():
        assert "lora" not in policy.generate(draws[:1])[0].data.image.info["parameters"]


def test_a_lora_without_a_name_of_its_own_is_named_after_its_folder(stored, fresh, draws):
    policy = fresh()
    policy.attach(stored)
    read = parse_infotext(policy.generate(draws[:1])[0].data.image.info["parameters"])
    assert (read.lora, read.adapter, read.prompt) == ({}, "lora 1", "cat")


def test_a_run_gives_its_last_complete_round(stored, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.toml").touch()
    with pytest.raises(ValueError, match=f"^{run} is a run without a complete round, so there is no LoRA to use"):
        find_lora(run)
    for index in (2, 10, 11):
        folder = run / "rounds" / f"{index:03d}" / "adapter"
        folder.mkdir(parents=True)
        (folder / FILE_NAME).touch()
        if index < 11:
            (folder.parent / "round.json").touch()
    assert find_lora(run) == run / "rounds" / "010" / "adapter" / FILE_NAME
    for folder in (run / "rounds").iterdir():
        (folder / "round.json").unlink(missing_ok=True)
    (run / "lora").mkdir()
    (run / "lora" / FILE_NAME).touch()
    assert find_lora(run) == run / "lora" / FILE_NAME


def test_the_header_says_what_was_trained(stored):
    header = read_lora(stored / FILE_NAME)
    assert (header.rank, header.alpha, header.targets, header.text_encoder) == (4, 6.0, tuple(TARGETS), True)


def test_a_file_that_says_no_alpha_is_taken_with_a_note(stored, fresh, tmp_path):
    save_file(load_file(stored / FILE_NAME), tmp_path / "bare.safetensors")
    policy = fresh()
    with pytest.warns(
        UserWarning, match=r"bare\.safetensors does not say its alpha; it is taken as the rank, as other"
    ):
        policy.attach(tmp_path / "bare.safetensors")
    told = fresh()
    told.attach(stored)
    for name, delta in deltas(policy.components.unet).items():
        torch.testing.assert_close(delta * 1.5, deltas(told.components.unet)[name])


def test_layers_that_a_file_lacks_stay_as_they_are(stored, fresh, draws, tmp_path):
    """A LoRA on one layer of the middle alone, in kohya's format: all others are plain."""
    tensors = load_file(stored / FILE_NAME)
    layer = "mid_block.attentions.0.transformer_blocks.0.attn2.to_v"
    down, up = (tensors[f"unet.{layer}.lora_{side}.weight"] for side in "AB")
    key = f"lora_unet_{layer.replace('.', '_')}"
    alone = {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(2.0)}
    save_file(alone, tmp_path / "alone.safetensors")
    policy, edited = fresh(), fresh()
    policy.attach(tmp_path / "alone.safetensors")
    edited.components.unet.get_submodule(layer).weight.data += up @ down * 2 / 4
    torch.testing.assert_close(latents(policy, draws), latents(edited, draws), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(latents(policy, draws), latents(fresh(), draws), atol=1e-2)


def test_other_files_are_refused_in_one_sentence(stored, fresh, tmp_path):
    path = tmp_path / "x.safetensors"
    contents = {
        "was made for SDXL": {"unet.mid.attn2.to_k.lora_A.weight": torch.zeros(4, 2048)},
        "holds no LoRA of Stable Diffusion": {"decoder.conv_in.weight": torch.zeros(1)},
    }
    for message, tensors in contents.items():
        save_file(tensors, path)
        with pytest.raises(ValueError, match=f"{path} {message}"):
            fresh().attach(path)
    path.write_bytes((stored / FILE_NAME).read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"x\.safetensors is cut off: \d+ bytes of \d+; download it again$"):
        fresh().attach(path)
    with pytest.raises(ValueError, match=f"there is no LoRA {tmp_path / 'none'}"):
        fresh().attach(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=f"{tmp_path / 'empty'} holds no {FILE_NAME}, so there is no LoRA"):
        fresh().attach(tmp_path / "empty")
    with pytest.raises(ValueError, match="the LoRA's scale is nan"):
        fresh().attach(stored, scale=float("nan"))


def test_a_lora_of_another_model_is_refused(stored, fresh, tmp_path):
    with safe_open(stored / FILE_NAME, "pt") as file:
        metadata = file.metadata()
    tensors = {
        name: tensor.repeat(1, 2) if tensor.ndim == 2 and ".lora_A." in name else tensor
        for name, tensor in load_file(stored / FILE_NAME).items()
    }
    save_file(tensors, tmp_path / "wide.safetensors", metadata=metadata)
    with pytest.raises(ValueError, match=r"wide\.safetensors does not fit this model: its .* is of \[4, \d+\] and"):
        fresh().attach(tmp_path / "wide.safetensors")


def test_a_damaged_adapter_of_a_round_is_one_sentence(policy, tmp_path):
    policy.save(tmp_path)
    (tmp_path / FILE_NAME).write_bytes((tmp_path / FILE_NAME).read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"^the adapter .* is no whole .safetensors file .*; put it back$"):
        policy.load(tmp_path)
