"""A LoRA on disk in diffusers' format: where it lies and what its header says. Nothing here imports torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

FILE_NAME = "pytorch_lora_weights.safetensors"
TARGETS = {
    "attention": ("to_q", "to_k", "to_v", "to_out.0"),
    "feed_forward": ("ff.net.0.proj", "ff.net.2"),
    "projection": ("proj_in", "proj_out"),
    "convolution": ("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv"),
}
"""The groups of UNet layers that can carry a LoRA, by the endings of their names."""
TEXT_ENCODER_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")
METADATA = "lora_adapter_metadata"
_SDXL_WIDTH = 2048  # of the text that SDXL's cross-attention reads


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredLora:
    """What a file's header says: its scale is alpha / rank, `targets` are names of `TARGETS`."""

    rank: int
    alpha: float
    targets: tuple[str, ...]
    text_encoder: bool


def find_lora(path: Path) -> Path:
    """The LoRA's file: `path` itself, the one in a folder, or that of a run's last complete round.

    Raises ValueError when there is none.
    """
    if path.is_file():
        return path
    if not path.exists():
        raise ValueError(f"there is no LoRA {path}; give a .safetensors file in diffusers' format or a run's folder")
    places = [path, path / "lora"]
    if (path / "config.toml").is_file():
        rounds = sorted((done.parent for done in path.glob("rounds/[0-9]*/round.json")), key=lambda r: int(r.name))
        places = [*(round_ / "adapter" for round_ in reversed(rounds)), path / "lora"]
    for place in places:
        if (place / FILE_NAME).is_file():
            return place / FILE_NAME
    what = "is a run without a complete round" if (path / "config.toml").is_file() else f"holds no {FILE_NAME}"
    raise ValueError(f"{path} {what}, so there is no LoRA to use; give another folder or a .safetensors file")


def read_lora(path: Path) -> StoredLora:
    """Read and check the header of a file. Raises ValueError in one sentence for what cannot be used here."""
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"the LoRA {path} is no whole .safetensors file ({error}); get it again") from None
    _refuse_other_formats(path, shapes)
    try:
        stored = json.loads(metadata.get(METADATA, "null"))
    except ValueError:
        stored = None
    if not isinstance(stored, dict):
        raise ValueError(
            f"the LoRA {path} does not say its rank and alpha ({METADATA}), so its strength would be a guess; "
            "save it with that metadata"
        )
    parts = [part for part in ("unet", "text_encoder") if any(name.startswith(f"{part}.") for name in shapes)]
    scales = {(stored.get(f"{part}.r"), stored.get(f"{part}.lora_alpha")) for part in parts}
    rank, alpha = scales.pop()
    if scales or not isinstance(rank, int) or not isinstance(alpha, int | float) or not 0 < alpha < math.inf:
        raise ValueError(
            f"the LoRA {path} has no single rank and alpha for all its layers; only such a one can be used"
        )
    _refuse_variants(path, stored, parts)
    return StoredLora(
        rank=rank, alpha=float(alpha), targets=_groups(path, stored), text_encoder="text_encoder" in parts
    )


def _refuse_other_formats(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    widths = {shape[-1] for name, shape in shapes.items() if "attn2" in name and "to_k" in name and len(shape) == 2}
    if _SDXL_WIDTH in widths or any(name.startswith(("text_encoder_2.", "lora_te2_")) for name in shapes):
        raise ValueError(f"the LoRA {path} was made for SDXL, and only one for Stable Diffusion 1.x can be used here")
    if any(name.startswith(("lora_unet_", "lora_te_", "lora_te1_")) for name in shapes):
        raise ValueError(f"the LoRA {path} is in kohya's format; give the same one in diffusers' ({FILE_NAME})")
    if not any(name.startswith("unet.") and ".lora_A." in name for name in shapes):
        raise ValueError(f"{path} holds no LoRA of a UNet in diffusers' format; give a file such as {FILE_NAME}")


def _refuse_variants(path: Path, stored: Mapping[str, Any], parts: list[str]) -> None:
    for part in parts:
        for key in ("rank_pattern", "alpha_pattern", "use_dora", "use_rslora", "lora_bias"):
            if stored.get(f"{part}.{key}"):
                raise ValueError(f"the LoRA {path} was made with {key}, and only a plain LoRA can be used here")


def _groups(path: Path, stored: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of `TARGETS` that make up the file's layers."""
    named = stored.get("unet.target_modules")
    layers = set(named) if isinstance(named, list) else set()
    groups = tuple(name for name, endings in TARGETS.items() if layers >= set(endings))
    rest = layers - {ending for name in groups for ending in TARGETS[name]}
    text = stored.get("text_encoder.target_modules", list(TEXT_ENCODER_TARGETS))
    rest |= set(text) ^ set(TEXT_ENCODER_TARGETS)
    if rest or not groups:
        odd = ", ".join(sorted(map(str, rest))) or "no layers"
        raise ValueError(f"the LoRA {path} is on {odd}; whole groups can be used here: {', '.join(TARGETS)}")
    return groups
