"""A stored LoRA's weights under the names of a model's own layers, whatever the format they came in.

Legend: r the rank, (k, k) a convolution's kernel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..lora.file import StoredLora
from ..lora.layers import Layer
from .load import Components


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoraWeights:
    """One layer's LoRA in float32; the layer's weight changes by scale * up @ down.

    part: "unet" or "text_encoder". path: the layer's name in that model, such as "mid_block.attentions.0.proj_in".
    down: (r, in) or (r, in, k, k). up: (out, r) or (out, r, 1, 1). scale: alpha / r.
    """

    part: str
    path: str
    down: torch.Tensor
    up: torch.Tensor
    scale: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def delta(self) -> torch.Tensor:
        """What the LoRA adds to the layer's weight, in the weight's shape (out, in) or (out, in, k, k)."""
        change = (self.up.flatten(1) @ self.down.flatten(1)).mul_(self.scale)
        return change.view(len(self.up), *self.down.shape[1:])


def load_weights(stored: StoredLora, components: Components) -> list[LoraWeights]:
    """The weights of every layer, in the order of the model's own layers.

    Raises ValueError for a layer that the model lacks or has in another size, and for numbers that are not finite.
    """
    places = {
        (part, path.removeprefix("text_model.").replace(".", "_")): (path, module)
        for part in ("unet", "text_encoder")
        for path, module in getattr(components, part).named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
    }
    strangers = [layer for layer in stored.layers if (layer.part, layer.name) not in places]
    if strangers:
        raise ValueError(
            f"the LoRA {stored.path} does not fit this model: {len(strangers)} of its {len(stored.layers)} layers are "
            f"not there, such as {strangers[0].name} of the {strangers[0].part}; it was made for another one"
        )
    order = {place: number for number, place in enumerate(places)}
    layers = sorted(stored.layers, key=lambda layer: order[layer.part, layer.name])
    try:
        return list(_read(stored, layers, places))
    except SafetensorError as error:
        raise ValueError(f"the LoRA {stored.path} cannot be read ({error}); get it again") from None


def _read(stored: StoredLora, layers: Sequence[Layer], places: dict[tuple[str, str], Any]) -> Iterator[LoraWeights]:
    with ExitStack() as stack:
        files = {file: stack.enter_context(safe_open(file, "pt")) for file in {layer.file for layer in layers}}
        for layer in layers:
            path, module = places[layer.part, layer.name]
            down, up = (
                files[layer.file].get_tensor(name).to(torch.float32, copy=True) for name in (layer.down, layer.up)
            )
            wanted = _shapes(module, layer.rank)
            # A kernel of 1 x 1 may be written with its two ones or without them.
            if any(_trimmed(tensor.shape) != _trimmed(shape) for tensor, shape in zip((down, up), wanted, strict=True)):
                raise ValueError(
                    f"the LoRA {stored.path} does not fit this model: its {layer.name} of the {layer.part} is of "
                    f"{list(down.shape)} and {list(up.shape)} instead of {list(wanted[0])} and {list(wanted[1])}"
                )
            if not (down.isfinite().all() and up.isfinite().all()):
                raise ValueError(
                    f"the LoRA {stored.path} holds numbers that are not finite in {layer.name}; get it again"
                )
            yield LoraWeights(
                part=layer.part,
                path=path,
                down=down.reshape(wanted[0]),
                up=up.reshape(wanted[1]),
                scale=layer.alpha / layer.rank,
            )


def _shapes(module: Any, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Those of down and up for a linear layer's weight (out, in) or a convolution's (out, in, k, k)."""
    out, *inputs = module.weight.shape
    return (rank, *inputs), (out, rank, *(1 for _ in inputs[1:]))


def _trimmed(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(shape[:2]) if all(size == 1 for size in shape[2:]) else tuple(shape)
