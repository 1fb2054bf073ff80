"""A VAE other than the model's own: a diffusers folder, or one file with diffusers' or the original (LDM) names.

Or a tiny decoder beside it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny  # pyright: ignore
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..sd15.hub import fetch, shortened
from ..sd15.source import read_json

_PICKLES = (".ckpt", ".pt", ".pth", ".bin")
_OLD_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""What diffusers called the layers of attention when the well-known VAE files were made."""


def check_vae(path: Path) -> None:
    """Refuse what cannot be a VAE before any model is loaded. Raises ValueError."""
    if not os.path.exists(path):
        raise ValueError(f"there is no VAE {path}; give a .safetensors file or a folder in the diffusers layout")
    if path.suffix in _PICKLES:
        raise ValueError(
            f"the VAE {path} is a pickle file, which can run any program when it is opened; "
            "give the .safetensors file of the same VAE"
        )
    if os.path.isdir(path) and not os.path.isfile(_folder(path) / "config.json"):
        raise ValueError(f"the VAE folder {path} holds no config.json, so it is not in the diffusers layout")
    if os.path.isfile(path) and path.suffix != ".safetensors":
        raise ValueError(f"the VAE {path} is no .safetensors file; give one, or a folder in the diffusers layout")


def load_vae(path: Path, *, like: AutoencoderKL) -> AutoencoderKL:
    """The VAE at `path`, in the data type of `like`, the model's own; a single file takes that one's configuration.

    Raises ValueError for a VAE of another shape, or a file that cannot be read.
    """
    vae = _from_folder(_folder(path), like.dtype) if os.path.isdir(path) else _from_file(path, like)
    for key in ("latent_channels", "block_out_channels"):
        ours, theirs = like.config[key], vae.config[key]
        if key == "block_out_channels":
            ours, theirs = len(ours), len(theirs)  # the widths are free, the number of levels is the factor
        if ours != theirs:
            raise ValueError(f"the VAE {path} does not fit this model: its {key} are {theirs}, and {ours} are needed")
    return vae


def load_tiny(source: str | Path, *, like: AutoencoderKL) -> AutoencoderTiny:
    """The AutoencoderTiny (such as TAESD) of a folder or a hub id, in the data type of `like`, the model's VAE.

    It decodes latents as the UNet sees them: its own scaling factor is 1. Raises ValueError for another kind or shape.
    """
    folder = Path(os.path.expanduser(source))
    config = folder / "config.json"
    if os.path.exists(folder) and not os.path.isfile(config):
        raise ValueError(f"the tiny decoder {folder} holds no config.json, so it is no folder in the diffusers layout")
    if not os.path.exists(folder):
        config = fetch(str(source), "config.json", what="tiny decoder")
    kind = read_json(config).get("_class_name")
    if kind != "AutoencoderTiny":
        raise ValueError(f"{source} is {kind}, and a tiny decoder is an AutoencoderTiny, such as TAESD")
    try:
        tiny = AutoencoderTiny.from_pretrained(str(source), torch_dtype=like.dtype, use_safetensors=True)
    except (OSError, ValueError, RuntimeError, SafetensorError, HTTPError) as error:
        raise ValueError(
            f"cannot load the tiny decoder {source} ({shortened(error)}); it must hold whole safetensors weights"
        ) from error
    ours = (like.config["latent_channels"], len(like.config["block_out_channels"]))
    theirs = (tiny.config["latent_channels"], len(tiny.config["decoder_block_out_channels"]))
    if ours != theirs:
        raise ValueError(
            f"the tiny decoder {source} does not fit this model: it has {theirs[0]} channels and {theirs[1]} levels, "
            f"and {ours[0]} and {ours[1]} are needed"
        )
    return tiny


def _folder(path: Path) -> Path:
    """A whole model's folder stands for the VAE in it."""
    return path / "vae" if os.path.isfile(path / "vae" / "config.json") else path


def _from_folder(folder: Path, dtype: torch.dtype) -> AutoencoderKL:
    try:
        return AutoencoderKL.from_pretrained(
            folder, torch_dtype=dtype, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"cannot load the VAE {folder} ({reason}); it must hold whole safetensors weights") from error


def _from_file(path: Path, like: AutoencoderKL) -> AutoencoderKL:
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"the VAE {path} is no whole .safetensors file ({error}); get it again") from None
    if not any(name.startswith("decoder.up_blocks.") for name in tensors):
        tensors = convert_ldm_vae_checkpoint(tensors, like.config)
    for old, new in _OLD_NAMES.items():
        tensors = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    vae: Any = AutoencoderKL.from_config(like.config)
    needed = {name: tensor.shape for name, tensor in vae.state_dict().items()}
    odd = [name for name, shape in needed.items() if name not in tensors or tensors[name].shape != shape]
    if odd:
        raise ValueError(
            f"the VAE {path} does not fit this model: {len(odd)} of {len(needed)} layers are missing or of another "
            f"size, such as {odd[0]}"
        )
    vae.load_state_dict({name: tensors[name] for name in needed})
    return vae.to(like.dtype)
