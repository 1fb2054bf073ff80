"""The layers of Stable Diffusion 1.5 that a LoRA can sit on, from the published configuration alone."""

from __future__ import annotations

from collections.abc import Iterator

from . import config

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


def unet_modules() -> list[str]:
    """diffusers' names of the 278 layers that kohya's networks know: 192 in transformers, 86 in resnets, samplers."""
    return [*_transformers(), *_resnets(), *_samplers()]


def text_encoder_modules() -> list[str]:
    """The 72 layers of the text encoder, with the level `text_model` that WebUIs expect."""
    kinds = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2")
    layers = config("text_encoder")["num_hidden_layers"]
    return [f"text_model.encoder.layers.{layer}.{kind}" for layer in range(layers) for kind in kinds]


def _blocks() -> Iterator[tuple[str, str, int]]:
    """(name, type, number of resnets) of the UNet's blocks in the order of the data."""
    unet = config("unet")
    for i, kind in enumerate(unet["down_block_types"]):
        yield f"down_blocks.{i}", kind, unet["layers_per_block"]
    yield "mid_block", "CrossAttn", 2
    for i, kind in enumerate(unet["up_block_types"]):
        yield f"up_blocks.{i}", kind, unet["layers_per_block"] + 1


def _transformers() -> Iterator[str]:
    for block, kind, resnets in _blocks():
        count = (1 if block == "mid_block" else resnets) if kind.startswith("CrossAttn") else 0
        for i in range(count):
            attention = f"{block}.attentions.{i}"
            yield f"{attention}.proj_in"
            for name in ("attn1", "attn2"):
                yield from (f"{attention}.transformer_blocks.0.{name}.{layer}" for layer in ATTENTION)
            yield f"{attention}.transformer_blocks.0.ff.net.0.proj"
            yield f"{attention}.transformer_blocks.0.ff.net.2"
            yield f"{attention}.proj_out"


def _resnets() -> Iterator[str]:
    widths = config("unet")["block_out_channels"]
    for block, _, resnets in _blocks():
        for i in range(resnets):
            resnet = f"{block}.resnets.{i}"
            yield from (f"{resnet}.{layer}" for layer in ("conv1", "time_emb_proj", "conv2"))
            side, _, number = block.partition(".")
            grows = (
                side == "down_blocks" and i == 0 and number != "0" and widths[int(number)] != widths[int(number) - 1]
            )
            if side == "up_blocks" or grows:  # a skip connection changes the number of channels
                yield f"{resnet}.conv_shortcut"


def _samplers() -> Iterator[str]:
    last = len(config("unet")["block_out_channels"]) - 1
    for i in range(last):
        yield f"down_blocks.{i}.downsamplers.0.conv"
        yield f"up_blocks.{i}.upsamplers.0.conv"
