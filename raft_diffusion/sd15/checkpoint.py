"""What a .safetensors checkpoint is, told from the names and shapes in its header alone; nothing is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIMIT = 100 * 2**20  # bytes of a header; the format's own limit
UNET = "model.diffusion_model."
FIRST = f"{UNET}input_blocks.0.0.weight"
TEXT_WIDTH = f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
SUPPORTED = "this package takes Stable Diffusion 1.x text-to-image checkpoints"


@dataclass(frozen=True, slots=True)
class Header:
    """tensors: name -> (dtype, shape); metadata: the file's own strings; size: bytes of the header with its length."""

    tensors: Mapping[str, tuple[str, tuple[int, ...]]]
    metadata: Mapping[str, str]
    size: int


def read_header(path: Path) -> Header:
    """The header of a .safetensors file. Raises ValueError for a pickle, another format and a truncated file."""
    if path.suffix in (".ckpt", ".pt", ".pth", ".bin"):
        raise ValueError(
            f"{path} is a pickle, which can run any code when it is opened; give a .safetensors file instead "
            "(WebUIs convert one under Checkpoint Merger)"
        )
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= LIMIT:
                raise ValueError("its first bytes are no header")
            text = file.read(length)
            table: dict[str, Any] = json.loads(text)
        metadata = table.pop("__metadata__", {})
        tensors = {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in table.items()}
        end = max((entry["data_offsets"][1] for entry in table.values()), default=0)
    except OSError as error:
        raise ValueError(f"cannot read {path} ({error.strerror}); give a .safetensors file") from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise ValueError(f"{path} is no .safetensors file, or it is broken; download or write it again") from None
    if path.stat().st_size < 8 + length + end:
        raise ValueError(f"{path} is cut off: {path.stat().st_size} bytes of {8 + length + end}; download it again")
    return Header(tensors, metadata, 8 + length)


def check_kind(header: Header, path: Path) -> None:
    """Raises ValueError, saying what the file is, unless it is a Stable Diffusion 1.x text-to-image checkpoint."""
    kind = _other_kind(header.tensors)
    if kind:
        raise ValueError(f"{path} is {kind}; {SUPPORTED}")


def _other_kind(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> str | None:
    names = tensors.keys()

    def has(*parts: str) -> bool:
        return any(part in name for name in names for part in parts)

    if has("lora_down.", "lora_up.", ".lora_A.", ".lora_B.", "lora_linear_layer", "hada_w1", "lokr_w1"):
        return "a LoRA, not a checkpoint: give it with --lora"
    if has("double_blocks.", "single_blocks."):
        return "a FLUX checkpoint"
    if has("joint_blocks."):
        return "a Stable Diffusion 3 checkpoint"
    if has("conditioner.embedders.1.", "label_emb.0.0.weight"):
        return "an SDXL checkpoint"
    if FIRST not in names:
        if has("down_blocks.0.", "encoder.down."):
            return "one part of a model (a UNet or a VAE), not a whole checkpoint"
        if has("control_model.", "input_hint_block"):
            return "a ControlNet"
        return "no Stable Diffusion checkpoint that is known here"
    channels = tensors[FIRST][1][1]
    if channels != 4:
        special = {9: "an inpainting checkpoint", 8: "an instruct-pix2pix checkpoint"}
        return f"{special.get(channels, 'a checkpoint')} (its UNet takes {channels} channels instead of 4)"
    width = tensors.get(TEXT_WIDTH, ("", (0, 0)))[1][1]
    if width == 1024 or has("cond_stage_model.model."):
        return "a Stable Diffusion 2.x checkpoint"
    if width != 768:
        return f"a checkpoint whose text width is {width} instead of 768"
    missing = [
        what
        for what, part in (("VAE", "first_stage_model."), ("text encoder", "cond_stage_model.transformer."))
        if not any(name.startswith(part) for name in names)
    ]
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
    if not path.is_file():
        return {}
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["params"] or {}
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ValueError(f"{path} has no section model.params that can be read ({type(error).__name__})") from None
