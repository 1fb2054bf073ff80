"""A LoRA on disk: where it lies and what its header says. Nothing here imports torch."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ..sd15.checkpoint import read_header
from .layers import METADATA, PARTS, Layer, read_layers

__all__ = [
    "FILE_NAME",
    "METADATA",
    "TARGETS",
    "TEXT_ENCODER_TARGETS",
    "StoredLora",
    "find_lora",
    "lora_name",
    "read_lora",
]

FILE_NAME = "pytorch_lora_weights.safetensors"
PEFT_NAME = "adapter_model.safetensors"
TARGETS = {
    "attention": ("to_q", "to_k", "to_v", "to_out.0"),
    "feed_forward": ("ff.net.0.proj", "ff.net.2"),
    "projection": ("proj_in", "proj_out"),
    "convolution": ("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv"),
}
"""The groups of UNet layers that can carry a LoRA, by the endings of their names."""
TEXT_ENCODER_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredLora:
    """What a LoRA's header says. path: as it was given. format: "kohya", "diffusers" or "peft"."""

    path: Path
    format: str
    layers: tuple[Layer, ...]

    @property
    def rank(self) -> int:
        """The largest one: a layer of a smaller rank has a place in it."""
        return max(layer.rank for layer in self.layers)

    @property
    def alpha(self) -> float:
        """That gives most layers their own scale alpha / rank at the rank `rank`."""
        (rank, alpha), _ = Counter((layer.rank, layer.alpha) for layer in self.layers).most_common(1)[0]
        return alpha * (self.rank / rank)

    @property
    def targets(self) -> tuple[str, ...]:
        """The names of `TARGETS` that the UNet's layers belong to; a layer may belong to none."""
        ends = {name: tuple(f"_{end.replace('.', '_')}" for end in group) for name, group in TARGETS.items()}
        names = [layer.name for layer in self.layers if layer.part == "unet"]
        return tuple(name for name in TARGETS if any(f"_{layer}".endswith(ends[name]) for layer in names))

    @property
    def text_encoder(self) -> bool:
        return any(layer.part == "text_encoder" for layer in self.layers)

    @property
    def note(self) -> str:
        """What had to be assumed, else ""."""
        if all(layer.says_alpha for layer in self.layers):
            return ""
        return f"the LoRA {self.path} does not say its alpha; it is taken as the rank, as other programs do"


def find_lora(path: Path) -> Path:
    """The LoRA's file: `path` itself, the one in a folder, or that of a run: of its last complete round, or of the one
    that its guard kept in the end.

    A folder with `unet` and `text_encoder`, as peft's scripts write it, is its own answer.
    Raises ValueError when there is none.
    """
    if os.path.isfile(path):
        return path
    if not os.path.exists(path):
        raise ValueError(f"there is no LoRA {path}; give a .safetensors file in any of the usual formats, or a run")
    places = [path, path / "lora"]
    if os.path.isfile(path / "config.toml"):
        from ..core.looks import adapter_of, read_ending  # late: it brings numpy, which `plan` does without

        rounds = sorted((done.parent for done in path.glob("rounds/[0-9]*/round.json")), key=lambda r: int(r.name))
        ending = read_ending(path, after=int(rounds[-1].name)) if rounds else None
        kept = [] if ending is None else [adapter_of(path, ending.keep)]
        places = [*kept, *(round_ / "adapter" for round_ in reversed(rounds)), path / "lora"]
    for place in places:
        for name in (FILE_NAME, PEFT_NAME):
            if os.path.isfile(place / name):
                return place / name
    if _peft_files(path):
        return path
    what = "is a run without a complete round" if os.path.isfile(path / "config.toml") else f"holds no {FILE_NAME}"
    raise ValueError(f"{path} {what}, so there is no LoRA to use; give another folder or a .safetensors file")


def read_lora(path: Path) -> StoredLora:
    """Read and check the headers of what `find_lora` found: kohya's format, diffusers' or peft's.

    Raises ValueError in one sentence for what cannot be used here.
    """
    kind, layers = "", []
    for file in [path] if os.path.isfile(path) else _peft_files(path):
        header = read_header(file)
        shapes = {name: shape for name, (_, shape) in header.tensors.items()}
        kind, found = read_layers(file, shapes, header.metadata)
        layers += found
    if repeated := [name for name, count in Counter((at.part, at.name) for at in layers).items() if count > 1]:
        raise ValueError(f"the LoRA {path} has {' '.join(repeated[0])} twice; keep one of them")
    return StoredLora(path=path, format=kind, layers=tuple(layers))


def lora_name(path: Path) -> str:
    """What people call a LoRA: its file's name, or that of its folder or run where the file's says nothing."""
    path = path.resolve()
    return path.parent.name if path.name in (FILE_NAME, PEFT_NAME) else path.stem if os.path.isfile(path) else path.name


def _peft_files(folder: Path) -> list[Path]:
    return [file for part in PARTS if os.path.isfile(file := folder / part / PEFT_NAME)]
