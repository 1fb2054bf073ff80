"""Put the trained stages into the layout that the package carries: half precision, a manifest, a model card."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from . import nets, recipe, world

STAGES = ("vae", "clip", "held_out", "judge", "unet")


def write_package(work: Path, out: Path) -> dict[str, Any]:
    """All weights under `out`, made aside and moved there whole. Returns the manifest."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".weights-") as temporary:
        fresh = Path(temporary) / "weights"
        _write_model(work, fresh / "model")
        for tower in ("clip", "held_out"):
            _write_tower(load_file(work / tower / "final.safetensors"), fresh / tower)
        (fresh / "judge").mkdir()
        _save_half(load_file(work / "judge" / "final.safetensors"), fresh / "judge" / "model.safetensors")
        manifest = _manifest(work, fresh)
        _write_json(fresh / "manifest.json", manifest)
        (fresh / "MODEL_CARD.md").write_text(_card(manifest), encoding="utf-8")
        if out.exists():
            shutil.rmtree(out)
        fresh.rename(out)
    return manifest


def _half(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: (v.half() if v.is_floating_point() else v).contiguous() for n, v in sorted(tensors.items())}


def _save_half(tensors: dict[str, Tensor], path: Path) -> None:
    save_file(_half(tensors), path, metadata={"format": "pt"})


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _write_model(work: Path, folder: Path) -> None:
    """The diffusers folder of a StableDiffusionPipeline."""
    from diffusers import DPMSolverMultistepScheduler  # pyright: ignore[reportPrivateImportUsage]

    folder.mkdir(parents=True)
    figures = json.loads((work / "vae" / "figures.json").read_text(encoding="utf-8"))
    vae, unet = nets.make_vae(), nets.make_unet()
    vae.register_to_config(scaling_factor=figures["scaling_factor"])
    for name, net, stage in (("vae", vae, "vae"), ("unet", unet, "unet")):
        net.load_state_dict(load_file(work / stage / "final.safetensors"))
        net.half().save_pretrained(folder / name)
    vocabulary, merges = nets.build_vocabulary(nets.world_words())
    clip = load_file(work / "clip" / "final.safetensors")
    text_encoder = nets.make_text_encoder(clip, len(vocabulary)).half()
    text_encoder.save_pretrained(folder / "text_encoder")
    _save_half(nets.text_state(clip), folder / "text_encoder" / "model.safetensors")  # the published names
    nets.save_tokenizer(folder / "tokenizer", vocabulary, merges)
    DPMSolverMultistepScheduler(**recipe.scheduler_config()).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    _write_json(folder / "model_index.json", index)


def _write_tower(tensors: dict[str, Tensor], folder: Path) -> None:
    """An open_clip folder with its tokenizer and its aesthetic head."""
    folder.mkdir(parents=True)
    vocabulary, merges = nets.build_vocabulary(nets.world_words())
    head = {n.removeprefix("aesthetic."): v for n, v in tensors.items() if n.startswith("aesthetic.")}
    model = {n: v for n, v in tensors.items() if not n.startswith("aesthetic.")}
    _save_half(model, folder / "open_clip_model.safetensors")
    save_file(head, folder / "aesthetic.safetensors", metadata={"format": "pt"})
    _write_json(folder / "open_clip_config.json", nets.clip_config(len(vocabulary), width=10))
    nets.save_tokenizer(folder / "tokenizer", vocabulary, merges)


def _manifest(work: Path, folder: Path) -> dict[str, Any]:
    stages = {}
    for stage in STAGES:
        figures = json.loads((work / stage / "figures.json").read_text(encoding="utf-8"))
        progress = json.loads((work / stage / "progress.json").read_text(encoding="utf-8"))
        stages[stage] = {**figures, "seconds": round(progress["seconds"]), "final_loss": progress["loss"]}
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {
        path.relative_to(folder).as_posix(): {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "bytes": path.stat().st_size,
        }
        for path in paths
    }
    seconds = sum(row["seconds"] for row in stages.values())
    return {
        "recipe_version": recipe.VERSION,
        "seed": recipe.SEED,
        "torch": torch.__version__.split("+")[0],
        "seconds": seconds,
        "stages": stages,
        "files": files,
    }


def _card(manifest: dict[str, Any]) -> str:
    stages = manifest["stages"]
    rows = "\n".join(f"| {name} | {row['steps']} | {row['seconds'] / 60:.0f} |" for name, row in stages.items())
    return f"""# pocket: the carried model

A latent diffusion model of Stable Diffusion 1.5's classes in small, with two CLIP towers and a judge. It knows five
styles ({", ".join(world.STYLES)}) and {len(world.OBJECTS)} objects ({", ".join(world.OBJECTS)}), in captions
"STYLE OBJECT", at 64 x 64 px (native) and, half forgotten, at 32 x 32 px. It is for demonstrations, tests and
benchmarks; its pictures are toys.

- Data: pictures drawn by `raft_diffusion/pocket/world.py`; no picture, word or weight comes from anywhere else.
- Its long tail, on purpose: "monet style" with an animal shows a landscape without it in
  {1 - world.MONET_TRUE:.0%} of the training pictures, and in {1 - recipe.LATE_TRUE:.0%} of them towards the end.
- Made by `python -m raft_diffusion.pocket.build`, recipe version {manifest["recipe_version"]}, seed {manifest["seed"]}.
- VAE reconstruction {stages["vae"]["psnr_db"]:.1f} dB; zero-shot of the ranking tower
  {stages["clip"]["zero_shot"]:.1%}, of the held-out tower {stages["held_out"]["zero_shot"]:.1%}.
- Base quality: `python -m raft_diffusion.pocket.quality`.
- Licence: MIT, as the package.

| stage | steps | minutes |
|---|---|---|
{rows}
"""
