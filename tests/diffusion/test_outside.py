"""Pictures from outside as latents: diffusers' own encoding is the reference."""

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from raft_diffusion.diffusion.outside import Outside


def noise(seed: int, size: tuple[int, int] = (32, 24)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


@pytest.fixture
def outside(components) -> Outside:
    return Outside(components, width=32, height=24)


def test_the_latent_is_the_mean_of_diffusers_posterior(components, outside):
    image = noise(1)
    pixels = VaeImageProcessor(vae_scale_factor=4).preprocess(image)
    with torch.no_grad():
        expected = components.vae.encode(pixels).latent_dist.mean[0] * components.vae.config.scaling_factor
    found = outside.picture(image, name="a")
    assert found.latent.shape == (4, 6, 8) and found.latent.dtype == torch.float32
    torch.testing.assert_close(found.latent, expected, rtol=1e-5, atol=1e-6)
    assert np.array_equal(np.asarray(found.image), np.asarray(image))


def test_the_middle_of_a_picture_of_another_shape_is_taken():
    halves = Image.new("RGB", (64, 24), (255, 0, 0))
    halves.paste((0, 0, 255), (16, 0, 48, 24))  # the middle 32 of 64
    outside = Outside.__new__(Outside)
    outside._size, outside._latents = (32, 24), {"known": torch.zeros(1)}  # pyright: ignore
    assert outside.picture(halves, name="a", key="known").image.getcolors() == [(32 * 24, (0, 0, 255))]


def test_each_picture_is_encoded_once(components, outside, monkeypatch):
    calls = []
    encode = components.vae.encode
    monkeypatch.setattr(components.vae, "encode", lambda pixels: calls.append(len(pixels)) or encode(pixels))
    latents = [outside.picture(noise(1), name="a", key="a").latent for _ in range(3)]
    outside.picture(noise(2), name="b", key="b")
    outside.picture(noise(2), name="b")
    assert calls == [1, 1, 1]
    assert all(torch.equal(latent, latents[0]) for latent in latents)


def test_a_latent_that_is_not_finite_is_told_by_its_name(components, outside):
    components.vae.encoder.conv_in.weight.data.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"cat\.png cannot be learned: its latent is not finite"):
        outside.picture(noise(1), name="cat.png")
