"""A tiny decoder beside the VAE, and pictures that are decoded in parts."""

import json
import re
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderTiny
from diffusers.image_processor import VaeImageProcessor

from raft_diffusion.diffusion import sampler
from raft_diffusion.diffusion.load import load
from raft_diffusion.diffusion.sampler import DiffusionPolicy
from raft_diffusion.webui import parse_infotext

LEVELS = {"num_encoder_blocks": (1, 1, 1), "num_decoder_blocks": (1, 1, 1)}


def write(folder, **changes):
    torch.manual_seed(0)
    widths = {f"{side}_block_out_channels": (8, 8, 8) for side in ("encoder", "decoder")}
    AutoencoderTiny(**({**LEVELS, **widths} | changes)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A random AutoencoderTiny of factor 4, as the small model's VAE has it."""
    return write(tmp_path_factory.mktemp("tiny"))


def test_candidates_are_decoded_by_the_tiny_decoder_and_others_by_the_vae(model_folder, tiny, settings, draws):
    policy = DiffusionPolicy(
        load(model_folder, device="cpu", dtype=torch.float32, tiny_decoder=tiny),
        settings=replace(settings, tiny_decoder=True),
    )
    assert not any(parameter.requires_grad for parameter in policy.components.tiny_decoder.parameters())
    fast, slow = policy.generate(draws), policy.generate(draws, settings)
    latents = torch.stack([sample.data.latent for sample in fast])
    assert torch.equal(latents, torch.stack([sample.data.latent for sample in slow]))
    # diffusers' pipelines divide by the decoder's own scaling factor and hand over what comes out
    reference = AutoencoderTiny.from_pretrained(tiny)
    with torch.no_grad():
        pixels = reference.decode(latents / reference.config.scaling_factor).sample
    expected = VaeImageProcessor().postprocess(pixels)
    assert [sample.data.image.tobytes() for sample in fast] == [image.tobytes() for image in expected]
    assert fast[0].data.image.tobytes() != slow[0].data.image.tobytes()
    names = [parse_infotext(sample.data.image.info["parameters"]).vae for sample in (fast[0], slow[0])]
    assert names == [tiny.name, ""]


def test_settings_that_want_a_tiny_decoder_need_one(components, settings):
    with pytest.raises(ValueError, match="decode with a tiny decoder, and the model was loaded without one"):
        DiffusionPolicy(components, settings=replace(settings, tiny_decoder=True))


def test_what_is_no_tiny_decoder_is_refused(model_folder, tmp_path):
    def refused(source):
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            load(model_folder, device="cpu", dtype=torch.float32, tiny_decoder=source)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert refused(tmp_path) == (
        f"the tiny decoder {tmp_path} holds no config.json, so it is no folder in the diffusers layout"
    )
    assert refused(model_folder / "vae") == (
        f"{model_folder / 'vae'} is AutoencoderKL, and a tiny decoder is an AutoencoderTiny, such as TAESD"
    )
    other = write(
        tmp_path / "other",
        latent_channels=8,
        decoder_block_out_channels=(8, 8),
        num_decoder_blocks=(1, 1),
    )
    assert refused(other) == (
        f"the tiny decoder {other} does not fit this model: it has 8 channels and 2 levels, and 4 and 3 are needed"
    )
    (weights,) = other.glob("*.safetensors")
    weights.write_bytes(b"x")
    assert re.match(rf"cannot load the tiny decoder {re.escape(str(other))} \(.+\); it must hold whole", refused(other))
    (other / "config.json").write_text(json.dumps({}))
    assert "is None, and a tiny decoder is" in refused(other)


def test_decoding_in_parts_gives_the_same_pictures(policy, monkeypatch):
    latents = torch.randn(5, 4, 6, 8, generator=torch.Generator().manual_seed(0))
    parts = []
    vae = policy.components.vae
    decode = vae.decode
    monkeypatch.setattr(vae, "decode", lambda part, **options: parts.append(len(part)) or decode(part, **options))
    whole = policy.decode(latents)
    for limit, expected in ((2 * 24 * 32, [2, 2, 1]), (24 * 32 - 1, [1] * 5)):
        monkeypatch.setattr(sampler, "DECODED_PIXELS", limit)
        parts.clear()
        images = policy.decode(latents)
        assert parts == expected
        assert [image.tobytes() for image in images] == [image.tobytes() for image in whole]
