"""A random CLIP tower of a few thousand weights in open_clip's folder layout, with a tokenizer of its own."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from raft_diffusion.core.records import Draw, Prompt, Sample

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = [*LETTERS, *(f"{x}</w>" for x in LETTERS), "ca", "cat</w>", "<|startoftext|>", "<|endoftext|>"]
WIDTH = 24
CONFIG = {
    "model_cfg": {
        "embed_dim": WIDTH,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 10, "head_width": 64},
        "text_cfg": {"context_length": 12, "vocab_size": len(WORDS), "width": 24, "heads": 3, "layers": 2},
    },
    "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.5, 0.6, 0.7], "interpolation": "bicubic"},
}


@pytest.fixture(scope="session")
def untouched_tower(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tower")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.CLIP(**CONFIG["model_cfg"])
        with torch.no_grad():  # batch norm that does nothing at its fresh statistics would hide a forgotten eval()
            for name, buffer in model.named_buffers():
                if name.endswith("running_mean"):
                    buffer.normal_(0, 0.1)
        head = {"weight": torch.randn(1, WIDTH), "bias": torch.randn(1)}
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    save_file(head, folder / "aesthetic.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer/vocab.json").write_text(json.dumps({word: number for number, word in enumerate(WORDS)}))
    (folder / "tokenizer/merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n")
    return folder


@pytest.fixture
def tower_folder(untouched_tower, tmp_path):
    """A copy that a test may break."""
    return shutil.copytree(untouched_tower, tmp_path / "tower")


def picture(seed: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    """A smooth random RGB picture, (width, height) pixels."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def make_samples(count: int, *texts: str, size: tuple[int, int] = (64, 64)) -> list[Sample]:
    prompts = [Prompt(text) for text in texts or ("cat", "a dog")]
    return [
        Sample(Draw(prompts[k % len(prompts)], k, seed=k), SimpleNamespace(image=picture(k, size)))
        for k in range(count)
    ]


@pytest.fixture
def samples():
    return make_samples
