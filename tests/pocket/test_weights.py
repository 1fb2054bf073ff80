"""The weights that the package carries."""

import hashlib
import json
import subprocess
import sys

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from raft_diffusion.pocket import CLIP, HELD_OUT, JUDGE, MODEL, WEIGHTS, recipe
from raft_diffusion.pocket.judge import Judge
from raft_diffusion.rewards.clip import ClipTower

UNLISTED = {"manifest.json", "MODEL_CARD.md"}  # the manifest itself, and what is written from it
PARTS = {MODEL: 5, CLIP: 1, HELD_OUT: 1, JUDGE: 1}


@pytest.fixture(scope="module")
def manifest() -> dict:
    return json.loads((WEIGHTS / "manifest.json").read_text(encoding="utf-8"))


def test_the_manifest_describes_every_file(manifest):
    paths = {path.relative_to(WEIGHTS).as_posix(): path for path in WEIGHTS.rglob("*") if path.is_file()}
    assert set(manifest["files"]) | UNLISTED == set(paths)
    for name, entry in manifest["files"].items():
        data = paths[name].read_bytes()
        assert entry == {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}, name
    assert sum(path.stat().st_size for path in paths.values()) <= 16_000_000
    assert all(part.is_dir() for part in PARTS)


def test_the_manifest_says_how_they_were_made(manifest):
    assert (manifest["recipe_version"], manifest["seed"]) == (recipe.VERSION, recipe.SEED)
    assert set(manifest["stages"]) == set(recipe.STEPS)
    card = (WEIGHTS / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert f"recipe version {recipe.VERSION}" in card and str(recipe.SEED) in card


def test_all_but_the_aesthetic_heads_are_in_half_precision():
    paths = sorted(WEIGHTS.rglob("*.safetensors"))
    assert len(paths) == 8
    for path in paths:
        kept = torch.float32 if path.name == "aesthetic.safetensors" else torch.float16
        for name, tensor in load_file(path).items():
            assert not tensor.is_floating_point() or tensor.dtype == kept, f"{path}: {name}"
            assert tensor.isfinite().all(), f"{path}: {name}"


def test_the_text_encoder_carries_the_published_names_of_the_ranking_tower():
    state = load_file(MODEL / "text_encoder" / "model.safetensors")
    tower = load_file(CLIP / "open_clip_model.safetensors")
    assert all(name.startswith("text_model.") for name in state)
    assert torch.equal(state["text_model.embeddings.token_embedding.weight"], tower["token_embedding.weight"])


def test_plain_diffusers_loads_and_samples_them():
    pipe = StableDiffusionPipeline.from_pretrained(MODEL, dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    assert type(pipe.tokenizer).__name__ == "CLIPTokenizer"
    assert len(pipe.tokenizer) == pipe.text_encoder.config.vocab_size
    stored = load_file(MODEL / "text_encoder" / "model.safetensors")["text_model.final_layer_norm.weight"]
    assert torch.equal(pipe.text_encoder.get_parameter(_norm(pipe.text_encoder)), stored.float())
    draws = [
        pipe(
            "monet style cat",
            width=32,
            height=32,
            num_inference_steps=2,
            guidance_scale=3.0,
            generator=torch.Generator().manual_seed(seed),
        ).images[0]
        for seed in (0, 0, 1)
    ]
    assert draws[0].size == (32, 32)
    assert draws[0].tobytes() == draws[1].tobytes() != draws[2].tobytes()


def _norm(text_encoder: torch.nn.Module) -> str:
    return next(name for name, _ in text_encoder.named_parameters() if name.endswith("final_layer_norm.weight"))


def test_the_towers_and_the_judge_load_and_differ():
    towers = [ClipTower.load(folder, device="cpu") for folder in (CLIP, HELD_OUT)]
    texts = ["monet style cat", "photo truck"]
    ranking, held_out = (tower.embed_texts(texts) for tower in towers)
    assert ranking.shape == held_out.shape == (2, 96)
    assert not torch.allclose(ranking, held_out, atol=0.1)
    Judge.load(JUDGE)


@pytest.mark.slow
def test_the_base_has_the_quality_that_the_demos_need():
    done = subprocess.run(
        [sys.executable, "-m", "raft_diffusion.pocket.quality"], capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stdout + done.stderr
