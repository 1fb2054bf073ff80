"""The names that a WebUI checkpoint gives its tensors (CompVis's latent-diffusion layout), from those of diffusers.

Source: the modules of CompVis/latent-diffusion (`openaimodel.py`, `model.py`), as Stable Diffusion 1.x uses them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..sd15.checkpoint import TEXT_ENCODER, UNET, VAE

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def to_ldm(
    unet: Mapping[str, torch.Tensor],
    vae: Mapping[str, torch.Tensor],
    text_encoder: Mapping[str, torch.Tensor],
    *,
    config: Mapping[str, Any],
) -> dict[str, torch.Tensor]:
    """One checkpoint in the LDM layout from the three state dicts of diffusers' and transformers' modules.

    config: the UNet's, for its number of blocks and layers.
    """
    prefixes = unet_prefixes(config)
    levels = 1 + max(int(name.split(".")[2]) for name in vae if name.startswith("encoder.down_blocks."))
    tensors = {UNET + unet_name(name, prefixes): tensor for name, tensor in unet.items()}
    for name, tensor in vae.items():
        ldm = vae_name(name, levels)
        squeezed = ".attn_1." in ldm and ldm.endswith(".weight") and tensor.ndim == 2
        tensors[VAE + ldm] = tensor[:, :, None, None] if squeezed else tensor
    for name, tensor in text_encoder.items():
        tensors[TEXT_ENCODER + (name if name.startswith("text_model.") else f"text_model.{name}")] = tensor
    return tensors


def unet_prefixes(config: Mapping[str, Any]) -> dict[str, str]:
    """diffusers' module -> LDM's, for every block of a UNet with `layers_per_block` resnets a block."""
    layers, blocks = config["layers_per_block"], len(config["block_out_channels"])
    names = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
    }
    for i in range(blocks):
        for j in range(layers):
            place = i * (layers + 1) + j + 1
            names[f"down_blocks.{i}.resnets.{j}"] = f"input_blocks.{place}.0"
            names[f"down_blocks.{i}.attentions.{j}"] = f"input_blocks.{place}.1"
        names[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{(i + 1) * (layers + 1)}.0.op"
        for j in range(layers + 1):
            place = i * (layers + 1) + j
            names[f"up_blocks.{i}.resnets.{j}"] = f"output_blocks.{place}.0"
            names[f"up_blocks.{i}.attentions.{j}"] = f"output_blocks.{place}.1"
        after = 2 if config["up_block_types"][i].startswith("CrossAttn") else 1
        names[f"up_blocks.{i}.upsamplers.0.conv"] = f"output_blocks.{(i + 1) * (layers + 1) - 1}.{after}.conv"
    return names


def unet_name(name: str, prefixes: Mapping[str, str]) -> str:
    parts = name.split(".")
    head = next(head for n in range(len(parts), 0, -1) if (head := ".".join(parts[:n])) in prefixes)
    tail = name.removeprefix(head).removeprefix(".")
    if ".resnets." in f".{head}":
        module, _, kind = tail.rpartition(".")
        tail = f"{RESNET[module]}.{kind}"
    return f"{prefixes[head]}.{tail}"


def vae_name(name: str, levels: int) -> str:
    """LDM counts the decoder's blocks from the other end, and writes the middle's parts with an underscore."""
    parts = name.split(".")
    if parts[0] not in ("encoder", "decoder"):
        return name  # quant_conv and post_quant_conv
    side, block, rest = parts[0], parts[1], ".".join(parts[2:])
    if block == "mid_block":
        kind, number, *tail = rest.split(".")
        module = ".".join(tail)
        if kind == "resnets":
            return f"{side}.mid.block_{int(number) + 1}.{module}"
        attention, _, weight = module.rpartition(".")
        return f"{side}.mid.attn_1.{VAE_ATTENTION[attention]}.{weight}"
    if block in ("down_blocks", "up_blocks"):
        number, kind, place, *tail = rest.split(".")
        way = "down" if block == "down_blocks" else "up"
        level = int(number) if way == "down" else levels - 1 - int(number)
        module = ".".join(tail)
        if kind == "resnets":
            return f"{side}.{way}.{level}.block.{place}.{module.replace('conv_shortcut', 'nin_shortcut')}"
        return f"{side}.{way}.{level}.{way}sample.{module}"
    return name.replace("conv_norm_out", "norm_out")
