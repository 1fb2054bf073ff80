"""Another VAE than the model's own, in the forms that people have."""

import re

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file

from raft_diffusion.diffusion.load import load
from raft_diffusion.diffusion.sampler import DiffusionPolicy

LDM = {
    # the original names (CompVis, "first_stage_model") of diffusers' layers, for a VAE of three levels
    r"(encoder|decoder)\.conv_norm_out\.": r"\1.norm_out.",
    r"encoder\.down_blocks\.(\d)\.resnets\.": r"encoder.down.\1.block.",
    r"encoder\.down_blocks\.(\d)\.downsamplers\.0\.": r"encoder.down.\1.downsample.",
    r"decoder\.up_blocks\.0\.resnets\.": "decoder.up.2.block.",
    r"decoder\.up_blocks\.1\.resnets\.": "decoder.up.1.block.",
    r"decoder\.up_blocks\.2\.resnets\.": "decoder.up.0.block.",
    r"decoder\.up_blocks\.0\.upsamplers\.0\.": "decoder.up.2.upsample.",
    r"decoder\.up_blocks\.1\.upsamplers\.0\.": "decoder.up.1.upsample.",
    r"mid_block\.resnets\.0\.": "mid.block_1.",
    r"mid_block\.resnets\.1\.": "mid.block_2.",
    r"conv_shortcut\.": "nin_shortcut.",
    r"mid_block\.attentions\.0\.group_norm\.": "mid.attn_1.norm.",
    r"mid_block\.attentions\.0\.to_(q|k|v)\.": r"mid.attn_1.\1.",
    r"mid_block\.attentions\.0\.to_out\.0\.": "mid.attn_1.proj_out.",
}


def original(tensors):
    """The same tensors under the original names; its attention is made of 1 x 1 convolutions."""
    renamed = {}
    for name, tensor in tensors.items():
        for pattern, replacement in LDM.items():
            name = re.sub(pattern, replacement, name)
        if re.search(r"attn_1\.(q|k|v|proj_out)\.weight", name):
            tensor = tensor[:, :, None, None]
        renamed[name] = tensor.contiguous()
    return renamed


@pytest.fixture
def other(components):
    """The model's VAE with other weights, in float32."""
    vae = AutoencoderKL.from_config(components.vae.config)
    generator = torch.Generator().manual_seed(3)
    for parameter in vae.parameters():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return vae


def pictures(model, vae, settings, draws):
    components = load(model, device="cpu", dtype=torch.float32, vae=vae)
    samples = DiffusionPolicy(components, settings=settings).generate(draws)
    return [sample.data.image for sample in samples], components


def test_every_form_of_a_vae_gives_the_same_pictures(components, other, model_folder, settings, draws, tmp_path):
    components.vae.load_state_dict(other.state_dict())
    expected = [s.data.image for s in DiffusionPolicy(components, settings=settings).generate(draws)]
    own, plain = pictures(model_folder, None, settings, draws)
    assert plain.vae_name == "" and "VAE:" not in own[0].info["parameters"]
    assert own[0].tobytes() != expected[0].tobytes()

    tensors = other.state_dict()
    other.save_pretrained(tmp_path / "folder")
    (tmp_path / "whole").mkdir()
    other.save_pretrained(tmp_path / "whole" / "vae")
    save_file(tensors, tmp_path / "diffusers.safetensors")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = dict(tensors)
    for new_name, old_name in old.items():
        renamed = {name.replace(f".{new_name}.", f".{old_name}."): tensor for name, tensor in renamed.items()}
    save_file(renamed, tmp_path / "old.safetensors")
    ldm = original(tensors)
    assert "decoder.mid.attn_1.q.weight" in ldm and "encoder.down.0.downsample.conv.weight" in ldm
    save_file(ldm, tmp_path / "ldm.safetensors")
    save_file(
        {f"first_stage_model.{name}": tensor for name, tensor in ldm.items()} | {"model_ema.decay": torch.ones(1)},
        tmp_path / "checkpoint.safetensors",
    )
    for form in sorted(tmp_path.iterdir()):
        images, loaded = pictures(model_folder, form, settings, draws)
        assert [image.tobytes() for image in images] == [image.tobytes() for image in expected], form
        assert loaded.vae_name == form.name
        assert f"VAE: {form.name}" in images[0].info["parameters"]
        assert not any(parameter.requires_grad for parameter in loaded.vae.parameters())


def refused(model_folder, vae):
    with pytest.raises(ValueError, match="VAE") as caught:
        load(model_folder, device="cpu", dtype=torch.float32, vae=vae)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_no_vae_is_refused_in_one_sentence(model_folder, tmp_path):
    assert f"there is no VAE {tmp_path / 'none'}" in refused(model_folder, tmp_path / "none")
    pickle = tmp_path / "vae.ckpt"
    pickle.write_bytes(b"x")
    assert "is a pickle file, which can run any program when it is opened" in refused(model_folder, pickle)
    text = tmp_path / "vae.txt"
    text.write_bytes(b"x")
    assert "is no .safetensors file" in refused(model_folder, text)
    assert "holds no config.json" in refused(model_folder, tmp_path)
    corrupt = tmp_path / "vae.safetensors"
    corrupt.write_bytes(b"x" * 100)
    assert f"the VAE {corrupt} is no whole .safetensors file" in refused(model_folder, corrupt)
    save_file({"decoder.conv_in.weight": torch.zeros(1)}, corrupt)
    assert "layers are missing or of another size, such as encoder.conv_in.weight" in refused(model_folder, corrupt)


def test_a_damaged_or_unfit_folder_is_refused(other, model_folder, tmp_path):
    other.save_pretrained(tmp_path / "cut")
    weights = tmp_path / "cut" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    assert f"cannot load the VAE {tmp_path / 'cut'}" in refused(model_folder, tmp_path / "cut")
    config = dict(other.config)
    for name, changes in {"wide": {"latent_channels": 8}, "deep": {"block_out_channels": (8, 16)}}.items():
        changed = config | changes
        levels = len(changed["block_out_channels"])
        changed["down_block_types"] = ("DownEncoderBlock2D",) * levels
        changed["up_block_types"] = ("UpDecoderBlock2D",) * levels
        AutoencoderKL.from_config(changed).save_pretrained(tmp_path / name)
    assert "its latent_channels are 8, and 4 are needed" in refused(model_folder, tmp_path / "wide")
    assert "its block_out_channels are 2, and 3 are needed" in refused(model_folder, tmp_path / "deep")
