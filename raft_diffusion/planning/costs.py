"""What one forward pass of each network takes, counted from its configuration alone: no weights, no torch.

A walk visits the layers in the order of the network's own code and adds up multiply-adds, parameters and tensor sizes.
Legend: h, w the size of a layer's output; n = h * w tokens; c channels; T text tokens; r the rank of a LoRA.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .walk import FLOAT, Cost, Size, Walk


def unet_cost(
    config: Mapping[str, Any],
    *,
    size: Size,
    tokens: int,
    rank: int = 0,
    targets: Sequence[str] = (),
    width: int = FLOAT,
    recompute: bool = False,
) -> Cost:
    """A UNet2DConditionModel of Stable Diffusion 1.x or 2.x, on one latent of the given size and T text tokens.

    rank, targets: of the LoRA on it, as `diffusion.adapter` names its groups of layers; width: bytes of a number;
    recompute: with gradient checkpointing, as diffusers does it: every resnet and every transformer block.
    """
    walk = Walk(rank=rank, targets=targets, width=width, recompute=recompute)
    first: int = config["block_out_channels"][0]
    walk.linear(first, 4 * first, 1)
    walk.activate(4 * first)
    walk.linear(4 * first, 4 * first, 1)
    walk.convolve(config["in_channels"], first, size)
    skips = _down(walk, config, size, tokens)
    last, size = skips[-1]
    _resnet(walk, last, last, size, time=4 * first)
    _attention(walk, config, -1, size, tokens)
    _resnet(walk, last, last, size, time=4 * first)
    size = _up(walk, config, skips, tokens)
    walk.norm(first, size[0] * size[1])
    walk.activate(first * size[0] * size[1])
    walk.convolve(first, config["out_channels"], size)
    return walk.cost()


def _down(walk: Walk, config: Mapping[str, Any], size: Size, tokens: int) -> list[tuple[int, Size]]:
    """The UNet's way down. Returns (channels, size) of every tensor that waits for the way up."""
    channels: list[int] = config["block_out_channels"]
    skips: list[tuple[int, Size]] = []

    def keep(c: int) -> None:
        skips.append((c, size))
        walk.hold(c * size[0] * size[1])

    keep(channels[0])
    before = channels[0]
    for level, after in enumerate(channels):
        for _ in range(_layers(config, level)):
            _resnet(walk, before, after, size, time=4 * channels[0])
            if "CrossAttn" in config["down_block_types"][level]:
                _attention(walk, config, level, size, tokens)
            before = after
            keep(after)
        if level < len(channels) - 1:
            size = _half(size)
            walk.convolve(after, after, size, stride=2, group="convolution")
            keep(after)
    return skips


def _up(walk: Walk, config: Mapping[str, Any], skips: list[tuple[int, Size]], tokens: int) -> Size:
    """The UNet's way up, which takes the waiting tensors. Returns the size at its end."""
    channels: list[int] = config["block_out_channels"]
    before, size = skips[-1]
    for place, level in enumerate(reversed(range(len(channels)))):
        after = channels[level]
        for _ in range(_layers(config, level) + 1):
            skipped, size = skips.pop()
            numbers = (before + skipped) * size[0] * size[1]
            walk.add(numbers)  # both go into one new tensor
            with walk.holding(numbers):
                _resnet(walk, before + skipped, after, size, time=4 * channels[0])
            walk.hold(-skipped * size[0] * size[1])
            if "CrossAttn" in config["up_block_types"][place]:
                _attention(walk, config, level, size, tokens)
            before = after
        if level:
            size = skips[-1][1]
            walk.activate(after * size[0] * size[1])  # nearest neighbours
            walk.convolve(after, after, size, group="convolution")
    return size


def _layers(config: Mapping[str, Any], level: int) -> int:
    return _each(config.get("layers_per_block", 2), level)


def decoder_cost(config: Mapping[str, Any], *, size: Size, width: int = FLOAT) -> Cost:
    """The decoder of an AutoencoderKL on one latent of the given size."""
    walk = Walk(width=width)
    channels = list(reversed(config["block_out_channels"]))
    latent = config["latent_channels"]
    if config.get("use_post_quant_conv", True):
        walk.convolve(latent, latent, size, kernel=1)
    before = channels[0]
    walk.convolve(latent, before, size)
    _middle(walk, before, size, attention=config.get("mid_block_add_attention", True))
    for level, after in enumerate(channels):
        for _ in range(config["layers_per_block"] + 1):
            _resnet(walk, before, after, size)
            before = after
        if level < len(channels) - 1:
            size = (2 * size[0], 2 * size[1])
            walk.activate(after * size[0] * size[1])
            with walk.holding(after * size[0] * size[1]):
                walk.convolve(after, after, size)
    walk.norm(before, size[0] * size[1])
    walk.activate(before * size[0] * size[1])
    walk.convolve(before, config["out_channels"], size)
    return walk.cost()


def tiny_decoder_cost(config: Mapping[str, Any], *, size: Size, width: int = FLOAT) -> Cost:
    """The decoder of an AutoencoderTiny on one latent of the given size."""
    walk = Walk(width=width)
    channels, blocks = config["decoder_block_out_channels"], config["num_decoder_blocks"]
    walk.convolve(config["latent_channels"], channels[0], size)
    walk.activate(channels[0] * size[0] * size[1])
    for level, (c, count) in enumerate(zip(channels, blocks, strict=True)):
        for _ in range(count):
            _tiny_block(walk, c, size)
        last = level == len(blocks) - 1
        if not last:
            size = (2 * size[0], 2 * size[1])
            walk.activate(c * size[0] * size[1])
        walk.convolve(c, config["out_channels"] if last else c, size, bias=last)
    return walk.cost()


def _tiny_block(walk: Walk, c: int, size: Size) -> None:
    numbers = c * size[0] * size[1]
    with walk.holding(numbers):
        for _ in range(3):
            walk.convolve(c, c, size)
            walk.activate(numbers)
        walk.add(numbers)


def encoder_cost(config: Mapping[str, Any], *, size: Size, width: int = FLOAT) -> Cost:
    """The encoder of an AutoencoderKL on one picture of the given size; it runs on pictures from outside alone."""
    walk = Walk(width=width)
    channels, latent = list(config["block_out_channels"]), config["latent_channels"]
    before = channels[0]
    walk.convolve(config["in_channels"], before, size)
    for level, after in enumerate(channels):
        for _ in range(config["layers_per_block"]):
            _resnet(walk, before, after, size)
            before = after
        if level < len(channels) - 1:
            size = _half(size)
            walk.convolve(after, after, size, stride=2)
    _middle(walk, before, size, attention=config.get("mid_block_add_attention", True))
    walk.norm(before, size[0] * size[1])
    walk.activate(before * size[0] * size[1])
    walk.convolve(before, 2 * latent, size)
    if config.get("use_quant_conv", True):
        walk.convolve(2 * latent, 2 * latent, size, kernel=1)
    return walk.cost()


def text_encoder_cost(config: Mapping[str, Any], *, rank: int = 0, width: int = FLOAT) -> Cost:
    """A CLIPTextModel on one text. rank: of a LoRA on its attention, 0 for none."""
    walk = Walk(rank=rank, targets=("attention",) if rank else (), width=width)
    c, tokens = config["hidden_size"], config["max_position_embeddings"]
    walk.weights((config["vocab_size"] + tokens) * c)
    for _ in range(config["num_hidden_layers"]):
        _encoder_layer(walk, c, tokens, config["intermediate_size"])
    walk.norm(c, tokens)
    return walk.cost()


def tower_cost(config: Mapping[str, Any], *, width: int = FLOAT) -> tuple[Cost, Cost]:
    """(picture, text): the two halves of an open_clip model, from its `model_cfg`."""
    embedding, vision, text = config["embed_dim"], config["vision_cfg"], config["text_cfg"]
    picture = Walk(width=width)
    if isinstance(vision["layers"], int):
        _vision_transformer(picture, vision, embedding)
    else:
        _vision_resnet(picture, vision, embedding)
    words = Walk(width=width)
    c, tokens = text.get("width", 512), text.get("context_length", 77)
    words.weights((text.get("vocab_size", 49408) + tokens) * c + 1)  # 1: the temperature
    for _ in range(text.get("layers", 12)):
        _encoder_layer(words, c, tokens, 4 * c)
    words.norm(c, tokens)
    words.linear(c, embedding, 1, bias=False)
    return picture.cost(), words.cost()


def _resnet(walk: Walk, before: int, after: int, size: Size, *, time: int = 0) -> None:
    n = size[0] * size[1]
    with walk.block(before * n), walk.holding(before * n):
        walk.norm(before, n)
        walk.activate(before * n)
        walk.convolve(before, after, size, group="convolution")
        if time:
            walk.activate(time)
            walk.linear(time, after, 1)
            walk.add(after * n)
        walk.norm(after, n)
        walk.activate(after * n)
        walk.convolve(after, after, size, group="convolution")
        if before != after:
            walk.convolve(before, after, size, kernel=1, group="convolution")
        walk.add(after * n)
        walk.add(after * n)  # diffusers divides the sum by output_scale_factor


def _attention(walk: Walk, config: Mapping[str, Any], level: int, size: Size, tokens: int) -> None:
    """Transformer2DModel: self-attention, attention to the text, and a GEGLU feed-forward, between two projections."""
    c: int = config["block_out_channels"][level]
    cross: int = config["cross_attention_dim"]
    layers = _each(config.get("transformer_layers_per_block", 1), level)
    linear = config.get("use_linear_projection", False)
    n = size[0] * size[1]
    project = (
        (lambda: walk.linear(c, c, n, group="projection"))
        if linear
        else (lambda: walk.convolve(c, c, size, kernel=1, group="projection"))
    )
    with walk.holding(2 * c * n):
        walk.norm(c, n)
        project()
        for _ in range(layers):
            with walk.block(c * n):
                _transformer_block(walk, c, n, cross=cross, tokens=tokens)
        project()
        walk.add(c * n)


def _transformer_block(walk: Walk, c: int, n: int, *, cross: int, tokens: int) -> None:
    for width, keys in ((c, n), (cross, tokens)):
        walk.norm(c, n)
        walk.linear(c, c, n, group="attention", bias=False)
        for _ in ("key", "value"):
            walk.linear(width, c, keys, group="attention", bias=False, shared=True)
        walk.attend(c, n, keys)
        walk.linear(c, c, n, group="attention", shared=True)  # attention keeps its own output
        walk.add(c * n)
    walk.norm(c, n)
    walk.linear(c, 8 * c, n, group="feed_forward")
    with walk.holding(8 * c * n):
        walk.activate(4 * c * n)
        walk.activate(8 * c * n)  # the product of the two halves keeps both
    walk.linear(4 * c, c, n, group="feed_forward")
    walk.add(c * n)


def _middle(walk: Walk, c: int, size: Size, *, attention: bool) -> None:
    """The middle of a VAE."""
    n = size[0] * size[1]
    _resnet(walk, c, c, size)
    if attention:
        walk.norm(c, n)
        for _ in range(4):
            walk.linear(c, c, n)
        walk.attend(c, n, n)
    _resnet(walk, c, c, size)


def _encoder_layer(walk: Walk, width: int, n: int, inner: int) -> None:
    """A layer of CLIP's transformers, of pictures or texts."""
    walk.norm(width, n)
    for _ in range(4):
        walk.linear(width, width, n, group="attention")
    walk.attend(width, n, n)
    walk.add(width * n)
    walk.norm(width, n)
    walk.linear(width, inner, n)
    walk.activate(inner * n)
    walk.linear(inner, width, n)
    walk.add(width * n)


def _vision_transformer(walk: Walk, vision: Mapping[str, Any], embedding: int) -> None:
    width, patch = vision["width"], vision["patch_size"]
    side = vision["image_size"] // patch
    n = side**2 + 1
    walk.convolve(3, width, (side, side), kernel=patch, stride=patch, bias=False)
    walk.weights(width + n * width)
    walk.norm(width, n)
    for _ in range(vision["layers"]):
        _encoder_layer(walk, width, n, int(width * vision.get("mlp_ratio", 4.0)))
    walk.norm(width, n)
    walk.linear(width, embedding, 1, bias=False)


def _vision_resnet(walk: Walk, vision: Mapping[str, Any], embedding: int) -> None:
    """CLIP's modified ResNet: three stem convolutions, bottlenecks with average pools, an attention pool."""
    width = vision["width"]

    def block(before: int, after: int, size: Size, *, kernel: int, stride: int = 1) -> None:
        walk.convolve(before, after, size, kernel=kernel, stride=stride, bias=False)
        walk.norm(after, size[0] * size[1])
        walk.activate(after * size[0] * size[1])

    side = vision["image_size"] // 2
    block(3, width // 2, (side, side), kernel=3, stride=2)
    block(width // 2, width // 2, (side, side), kernel=3)
    block(width // 2, width, (side, side), kernel=3)
    side //= 2
    before = width
    for level, blocks in enumerate(vision["layers"]):
        planes = width * 2**level
        for number in range(blocks):
            stride = 2 if level and not number else 1
            block(before, planes, (side, side), kernel=1)
            block(planes, planes, (side, side), kernel=3)
            side //= stride
            block(planes, 4 * planes, (side, side), kernel=1)
            if not number:
                block(before, 4 * planes, (side, side), kernel=1)
            before = 4 * planes
    n = side**2 + 1
    walk.weights(n * before)
    for after in (before, before, before, embedding):
        walk.linear(before, after, n)
    walk.attend(before, n, n)


def _half(size: Size) -> Size:
    return (size[0] + 1) // 2, (size[1] + 1) // 2


def _each(value: int | Sequence[int], level: int) -> int:
    return value if isinstance(value, int) else value[level]
