"""What Stable Diffusion 1.5 is, without its weights: the published configurations as data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
HUB_ID = "stable-diffusion-v1-5/stable-diffusion-v1-5"


def config(part: str) -> dict[str, Any]:
    """The published configuration of "unet", "vae", "text_encoder" or "scheduler"."""
    return json.loads((FOLDER / f"{part}.json").read_text(encoding="utf-8"))


def model_index(scheduler: Mapping[str, Any]) -> dict[str, Any]:
    """What model_index.json of a folder in diffusers' layout holds; `scheduler`: its configuration."""
    return {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


def write_skeleton(folder: Path, *, prediction_type: str = "epsilon", zero_terminal_snr: bool = False) -> None:
    """Write the model folder of Stable Diffusion 1.5 in diffusers' layout, without weights: what a single checkpoint
    file lacks to be loaded offline. `folder` must exist and be empty."""
    from .tokenizer import write_tokenizer

    scheduler = config("scheduler") | {"prediction_type": prediction_type}
    if zero_terminal_snr:  # Lin et al. 2023 (arXiv:2305.08891): the last step is pure noise, so it must be sampled
        del scheduler["skip_prk_steps"]  # PNDM's, which knows no such schedule
        scheduler |= {"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    files = {
        "model_index.json": model_index(scheduler),
        "scheduler/scheduler_config.json": scheduler,
        **{f"{part}/config.json": config(part) for part in ("text_encoder", "unet", "vae")},
    }
    for name, values in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    (folder / "tokenizer").mkdir()
    write_tokenizer(folder / "tokenizer")
