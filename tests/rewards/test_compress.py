"""JPEG sizes against PIL's own encoder, and what importing the rewards costs."""

import io
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from raft_diffusion.core.loop import score
from raft_diffusion.core.records import Draw, Prompt, Sample
from raft_diffusion.rewards import KNOWN, check_names, describe, score_name
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


def test_the_known_rewards_carry_the_names_that_are_scored():
    scored = compressibility(samples(picture("RGB", 0)))
    assert [info.name for info in KNOWN] == ["text_image", "aesthetic", *scored]


@pytest.mark.parametrize("module", ["rewards", "rewards.compress", "rewards.custom"])
def test_importing_leaves_torch_out(module):
    code = f"import sys, raft_diffusion.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_the_description_tells_every_reward_with_its_source_and_direction():
    text = describe()
    assert all(info.name in text and info.source in text and info.unit_range in text for info in KNOWN)
    assert text.count("higher is better") == len(KNOWN)


def test_a_text_needs_a_prompt_and_a_file_size_needs_none():
    assert [info.name for info in KNOWN if info.needs_prompt] == ["text_image"]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("aestetic", "unknown reward 'aestetic': did you mean aesthetic\\? It must be one of text_image, aesthetic, "),
        ("zzz", "unknown reward 'zzz': it must be one of .*own as \"module:function\""),
        ("[/b]", "unknown reward '\\[/b\\]'"),
        ("my_rewards:", "must be written .module:function., such as my_rewards:brightness"),
        (":f", "must be written .module:function."),
    ],
)
def test_an_unknown_reward_gets_the_nearest_names(name, sentence):
    with pytest.raises(ValueError, match=sentence):
        check_names(["text_image", name])


def test_every_known_name_and_any_function_pass():
    names = [*(info.name for info in KNOWN), "my_rewards:brightness", "package.module:object"]
    check_names(names)
    assert [score_name(name) for name in names[3:]] == ["incompressibility", "brightness", "object"]
