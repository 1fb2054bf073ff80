import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from raft_diffusion.core.records import Draw, Prompt, Sample
from raft_diffusion.distance import picture_distance


def sample(data):
    return Sample(Draw(Prompt("cat"), 0, 0), data)


def picture(image):
    return sample(SimpleNamespace(image=image))


def plain(*colour, size=(64, 64)):
    return picture(Image.new("RGB", size, colour))


def noise(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8))


def test_plain_pictures_by_hand():
    assert picture_distance(plain(0, 0, 0), plain(255, 255, 255)) == 1
    assert picture_distance(plain(9, 9, 9), plain(9, 9, 9)) == 0
    assert picture_distance(plain(0, 0, 0), plain(51, 0, 102)) == pytest.approx((0.2**2 + 0.4**2) / 3)


def test_it_is_the_mean_squared_difference_of_blocks():
    first, second = noise(0), noise(1)
    blocks = [np.asarray(i, float).reshape(32, 2, 32, 2, 3).mean((1, 3)).round() for i in (first, second)]
    expected = np.square(blocks[0] - blocks[1]).mean() / 255**2
    assert picture_distance(picture(first), picture(second)) == pytest.approx(
        expected, rel=0.02
    )  # PIL rounds halves up
    assert picture_distance(picture(second), picture(first)) == picture_distance(picture(first), picture(second))


def test_a_stored_picture_is_as_far_as_it_was_in_memory(tmp_path):
    first, second = noise(0), noise(1)
    second.save(tmp_path / "b.png")
    assert picture_distance(picture(first), sample(tmp_path / "b.png")) == picture_distance(
        picture(first), picture(second)
    )


def test_importing_leaves_torch_out():
    code = "import sys, raft_diffusion.distance; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
