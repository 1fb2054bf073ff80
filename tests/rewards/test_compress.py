"""JPEG sizes against PIL's own encoder."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from raft_diffusion.core.loop import score
from raft_diffusion.core.records import Draw, Prompt, Sample
from raft_diffusion.rewards.compress import compressibility, jpeg_kilobytes


def picture(mode: str, noise: float) -> Image.Image:
    pixels = np.random.default_rng(0).normal(128, noise, (48, 40, len(mode))).clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels[:, :, 0] if mode == "L" else pixels)


def samples(*images: Image.Image) -> list[Sample]:
    return [Sample(Draw(Prompt("a"), k, k), SimpleNamespace(image=image)) for k, image in enumerate(images)]


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_kilobytes_are_those_of_a_jpeg_of_quality_95(mode, tmp_path):
    image = picture(mode, 40)
    image.convert("RGB").save(tmp_path / "a.jpg", quality=95)
    assert jpeg_kilobytes(image) == (tmp_path / "a.jpg").stat().st_size / 1000
    default = io.BytesIO()
    image.convert("RGB").save(default, "JPEG")
    assert jpeg_kilobytes(image) > default.tell() / 1000


def test_a_flat_picture_compresses_best_and_both_directions_are_given():
    flat, rough = score(samples(picture("RGB", 0), picture("RGB", 60)), [compressibility])
    assert rough.scores["compressibility"] < flat.scores["compressibility"] < 0
    for scored in (flat, rough):
        assert scored.scores["incompressibility"] == -scored.scores["compressibility"]
