"""What a .safetensors checkpoint is, told from the names and shapes in its header alone; nothing is loaded."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4}
BYTES |= {"I64": 8, "U64": 8, "F64": 8, "F8_E4M3": 1, "F8_E5M2": 1}
"""Of one number of a type. Newer ones are not looked into."""
LIMIT = 100 * 2**20  # bytes of a header; the format's own limit
PICKLES = (".ckpt", ".pt", ".pth", ".bin")
UNET = "model.diffusion_model."
VAE = "first_stage_model."
TEXT_ENCODER = "cond_stage_model.transformer."
FIRST = f"{UNET}input_blocks.0.0.weight"
TEXT_WIDTH = f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
SUPPORTED = "this package takes Stable Diffusion 1.x text-to-image models"


@dataclass(frozen=True, slots=True)
class Header:
    """tensors: name -> (dtype, shape); metadata: the file's own strings; size: bytes of the header with its length."""

    tensors: Mapping[str, tuple[str, tuple[int, ...]]]
    metadata: Mapping[str, str]
    size: int


def read_header(path: Path) -> Header:
    """The header of a .safetensors file. Raises ValueError for a pickle, another format and a truncated file."""
    if path.suffix.lower() in PICKLES:
        raise ValueError(
            f"{path} is a pickle, which can run any code when it is opened; give a .safetensors file instead "
            "(WebUIs convert one under Checkpoint Merger)"
        )
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            text = file.read(length) if 2 <= length <= LIMIT else b""
        there = path.stat().st_size
    except OSError as error:
        raise ValueError(f"cannot read {path} ({error.strerror}); give a .safetensors file") from None
    if text[:1] == b"{" and len(text) < length:
        raise ValueError(f"{path} is cut off inside its header, after {there} bytes; download it again")
    try:
        tensors, metadata, end = _parse(text)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        raise ValueError(f"{path} is no .safetensors file, or it is broken; download or write it again") from None
    needed = 8 + length + end
    if there < needed:
        raise ValueError(f"{path} is cut off: {there} bytes of {needed}; download it again")
    if there > needed:
        raise ValueError(f"{path} is broken: {there} bytes, and its header speaks of {needed}; download it again")
    return Header(tensors, metadata, 8 + length)


def _parse(text: bytes) -> tuple[dict[str, tuple[str, tuple[int, ...]]], dict[str, str], int]:
    """(tensors, metadata, the length of all data in bytes). Raises whatever goes wrong on the way."""
    table: dict[str, Any] = json.loads(text)
    metadata = _words(table.pop("__metadata__", None) or {})
    tensors = {name: (str(entry["dtype"]), tuple(map(_size, entry["shape"]))) for name, entry in table.items()}
    end = 0
    for entry in sorted(table.values(), key=lambda entry: entry["data_offsets"]):
        first, last = map(_size, entry["data_offsets"])
        expected = prod(entry["shape"]) * BYTES.get(entry["dtype"], 0)
        if first != end or last < first or (entry["dtype"] in BYTES and last - first != expected):
            raise ValueError("the tensors do not follow on each other, or not by their sizes")
        end = last
    return tensors, metadata, end


def _words(metadata: Any) -> dict[str, str]:
    for word in (*metadata.keys(), *metadata.values()):
        word.encode()  # half a character, or no text at all
    return dict(metadata)


def _size(number: Any) -> int:
    if type(number) is not int or number < 0:
        raise ValueError(f"{number!r} is no size")
    return number


def check_kind(header: Header, path: Path) -> None:
    """Raises ValueError, saying what the file is, unless it is a Stable Diffusion 1.x text-to-image checkpoint."""
    kind = _other_kind(header.tensors)
    if kind:
        raise ValueError(f"{path} is {kind}; {SUPPORTED}")


def other_unet(channels: int, width: int | None, *, latent: int, what: str) -> str | None:
    """What a UNet belongs to that is no part of Stable Diffusion 1.x, else None.

    channels: that it takes, of which the VAE gives `latent`. width: of the text that it reads, None for unknown.
    what: "model" or "checkpoint".
    """
    if channels != latent:
        special = {9: f"an inpainting {what}", 8: f"an instruct-pix2pix {what}"}
        return f"{special.get(channels, f'a {what}')} (its UNet takes {channels} channels instead of {latent})"
    return {1024: f"a Stable Diffusion 2.x {what}", 2048: f"an SDXL {what}"}.get(width or 0)


def _other_kind(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> str | None:
    def has(*parts: str) -> bool:
        return any(part in name for name in tensors for part in parts)

    # A whole checkpoint may hold another kind's tensors beside its UNet's, so what is special comes first.
    special = {
        "a LoRA, not a checkpoint: give it with --lora": (
            *("lora_down.", "lora_up.", ".lora_A.", ".lora_B.", "lora_linear_layer", "hada_w1", "lokr_w1"),
        ),
        "a ControlNet": ("control_model.", "input_hint_block.", "controlnet_cond_embedding."),
        "a video model or a part of one": (".time_stack.", "motion_modules.", "temporal_transformer."),
        "a FLUX checkpoint": ("double_blocks.", "single_blocks."),
        "a Stable Diffusion 3 checkpoint": ("joint_blocks.",),
        "an SDXL checkpoint": ("conditioner.embedders.", "label_emb.0.0.weight"),
    }
    for kind, parts in special.items():
        if has(*parts):
            return kind
    first = tensors.get(FIRST, ("", ()))[1]
    if len(first) != 4:
        if has("down_blocks.0.", "encoder.down."):
            return "one part of a model (a UNet or a VAE), not a whole checkpoint"
        return "no Stable Diffusion checkpoint that is known here"
    width = tensors.get(TEXT_WIDTH, ("", ()))[1]
    if kind := other_unet(first[1], width[-1] if width else None, latent=4, what="checkpoint"):
        return kind
    if has("cond_stage_model.model."):
        return "a Stable Diffusion 2.x checkpoint"
    if width[1:] != (768,):
        return f"a checkpoint whose text width is {width[-1] if width else 'unknown'} instead of 768"
    parts = {"VAE": VAE, "text encoder": TEXT_ENCODER}
    missing = [what for what, prefix in parts.items() if not any(name.startswith(prefix) for name in tensors)]
    return f"a checkpoint without its {' and '.join(missing)}" if missing else None


def prediction(header: Header, path: Path) -> tuple[str, bool]:
    """("epsilon" or "v_prediction", whether the noise schedule ends at zero signal).

    From the keys `v_pred` and `ztsnr` that such checkpoints carry, or from a .yaml beside the file, as WebUIs have it:
    `model.params.parameterization: "v"`, `model.params.zero_terminal_snr: true` or `rescale_betas_zero_snr: true`.
    Raises ValueError for a .yaml that cannot be read.
    """
    params = _yaml_params(path.with_suffix(".yaml"))
    velocity = "v_pred" in header.tensors or params.get("parameterization") in ("v", "v_prediction")
    zero = "ztsnr" in header.tensors or any(
        params.get(key) is True for key in ("zero_terminal_snr", "rescale_betas_zero_snr")
    )
    return ("v_prediction" if velocity else "epsilon"), zero


def _yaml_params(path: Path) -> Mapping[str, Any]:
    if not os.path.isfile(path):
        return {}
    import yaml

    try:
        params = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["params"] or {}
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, RecursionError) as error:
        reason: str | None = type(error).__name__
    else:
        if isinstance(params, dict):
            return params
        reason = f"it is {type(params).__name__}"
    raise ValueError(f"{path} has no section model.params that can be read ({reason}); mend it or take it away")
