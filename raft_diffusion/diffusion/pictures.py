"""The data of a diffusion sample, and how a round's pictures lie on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from ..core.records import Sample

LATENTS = "latents.safetensors"


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """One sampled picture.

    latent: (C, h, w) float32 on the CPU, scaled as the UNet sees it, so that it can be trained on as it is.
    image: the same decoded, RGB, (h * f, w * f) pixels for a VAE of factor f.
    """

    latent: torch.Tensor
    image: Image.Image


class PictureCodec:
    """Writes pictures as PNG for people and, where they are kept to train on, their exact latents for the tuner."""

    def write_samples(self, folder: Path, samples: Sequence[Sample], *, keep: bool) -> list[str]:
        """Write `<sample id>.png` for each sample into an existing folder and return the names, in order.

        keep: also write latents.safetensors, the float32 latents by sample id.
        """
        names = [f"{sample.id}.png" for sample in samples]
        for name, sample in zip(names, samples, strict=True):
            sample.data.image.save(folder / name)
        if keep:
            save_file({sample.id: sample.data.latent.contiguous() for sample in samples}, folder / LATENTS)
        return names

    def read_samples(self, folder: Path, rows: Sequence[Mapping[str, Any]]) -> list[Picture]:
        """Read back what `write_samples(keep=True)` wrote; each row needs its "id" and "file_name".

        Latents come back bit by bit. Raises ValueError naming a picture or latent that is missing.
        """
        if not rows:
            return []
        if not (folder / LATENTS).is_file():
            raise ValueError(f"{folder / LATENTS} is missing: the winners of that round cannot be trained on again")
        with safe_open(folder / LATENTS, "pt") as latents:
            known = set(latents.keys())
            for row in rows:
                if row["id"] not in known or not (folder / row["file_name"]).is_file():
                    raise ValueError(f"sample {row['id']} of {folder} has lost its picture or its latent")
            return [Picture(latents.get_tensor(row["id"]), _open(folder / row["file_name"])) for row in rows]


def before_after(folder: Path, examples: Sequence[Mapping[str, Any]], path: Path, *, columns: int = 8) -> None:
    """One PNG of evaluation examples: each row of `columns` pictures before, and under it the same seeds after."""
    rows = [examples[start : start + columns] for start in range(0, len(examples), columns)]
    first = _open(folder / examples[0]["before"])
    scale = max(1, -(-128 // max(first.size)))
    width, height = (side * scale for side in first.size)
    gap = 4
    size = (
        min(columns, len(examples)) * (width + gap) - gap,
        len(rows) * 2 * (height + gap) + (len(rows) - 1) * 2 * gap,
    )
    sheet = Image.new("RGB", size, "white")
    for number, row in enumerate(rows):
        for line, side in enumerate(("before", "after")):
            top = number * 2 * (height + 2 * gap) + line * (height + gap)
            for column, example in enumerate(row):
                image = _open(folder / example[side]).resize((width, height), Image.Resampling.NEAREST)
                sheet.paste(image, (column * (width + gap), top))
    sheet.save(path)


def _open(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")
