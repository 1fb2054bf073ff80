"""The data of a diffusion sample, and how a round's pictures lie on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save

from ..core.files import write_atomically, write_part
from ..core.records import Sample
from ..images import read_own
from .sheet import grid

LATENTS = "latents.safetensors"
WORDS = "parameters"
"""Where WebUIs look for a picture's settings."""


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Picture:
    """One sampled picture.

    latent: (C, h, w) float32 on the CPU, scaled as the UNet sees it, so that it can be trained on as it is.
    image: the same decoded, RGB, (h * f, w * f) pixels for a VAE of factor f.
    early: its score at each stop, where its contest was pruned on the way; spared: whether it goes on by lot alone.
    """

    latent: torch.Tensor
    image: Image.Image
    early: tuple[float, ...] = ()
    spared: bool = False


class PictureCodec:
    """Writes pictures as PNG for people and, where they are kept to train on, their exact latents for the tuner.

    A PNG of 512 x 512 pixels takes about 50 ms of a core. Each is made once, in as many threads as torch has on the CPU
    (8 at most); Pillow lets Python go on meanwhile.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(min(8, torch.get_num_threads()), thread_name_prefix="png")
        self._pngs: WeakKeyDictionary[Picture, Future[bytes]] = WeakKeyDictionary()

    def begin(self, samples: Sequence[Sample]) -> None:
        """Start to make the PNGs that `write_samples` will write, and do not wait for them."""
        for picture in (sample.data for sample in samples):
            if picture not in self._pngs:
                self._pngs[picture] = self._threads.submit(as_png, picture.image)

    def write_samples(self, folder: Path, samples: Sequence[Sample], *, keep: bool) -> list[str]:
        """Write `<sample id>.png` for each sample into an existing folder and return the names, in order.

        keep: also write latents.safetensors, the float32 latents by sample id.
        """
        names = [f"{sample.id}.png" for sample in samples]
        self.begin(samples)
        for name, sample in zip(names, samples, strict=True):
            write_part(folder / name, self._pngs[sample.data].result())
        if keep:
            write_part(folder / LATENTS, save({sample.id: sample.data.latent.contiguous() for sample in samples}))
        return names

    def pack(self, samples: Sequence[Sample]) -> bytes:
        """A batch's latents, pixels and the words that its pictures carry, bit by bit."""
        pictures = [sample.data for sample in samples]
        words = json.dumps([picture.image.info.get(WORDS) for picture in pictures]).encode()
        tensors = {WORDS: torch.frombuffer(bytearray(words), dtype=torch.uint8)}
        tensors |= {f"latent {k}": picture.latent.contiguous() for k, picture in enumerate(pictures)}
        tensors |= {f"pixels {k}": torch.from_numpy(np.array(picture.image)) for k, picture in enumerate(pictures)}
        return save(tensors)

    def unpack(self, content: bytes) -> list[Picture]:
        """What `pack` was given, in order."""
        tensors = load(content)
        pictures = []
        for k, words in enumerate(json.loads(bytes(tensors[WORDS].tolist()))):
            image = Image.fromarray(tensors[f"pixels {k}"].numpy())
            if words is not None:
                image.info[WORDS] = words
            pictures.append(Picture(tensors[f"latent {k}"].clone(), image))
        return pictures

    def read_samples(self, folder: Path, rows: Sequence[Mapping[str, Any]]) -> list[Picture]:
        """Read back what `write_samples(keep=True)` wrote; each row needs its "id" and "file_name".

        Latents come back bit by bit. Raises ValueError naming a picture or latent that is missing or broken.
        """
        if not rows:
            return []
        if not (folder / LATENTS).is_file():
            raise ValueError(f"{folder / LATENTS} is missing: the winners of that round cannot be trained on again")
        latents = _read_latents(folder / LATENTS)
        for row in rows:
            if row["id"] not in latents or not (folder / row["file_name"]).is_file():
                raise ValueError(f"sample {row['id']} of {folder} has lost its picture or its latent")
        return [Picture(latents[row["id"]], read_own(folder / row["file_name"])) for row in rows]


def save_png(image: Image.Image, path: Path) -> None:
    """Write what `as_png` makes."""
    write_part(path, as_png(image))


def as_png(image: Image.Image) -> bytes:
    """A PNG that carries `image.info["parameters"]`, if any, where WebUIs put a picture's settings."""
    chunks = PngInfo()
    if text := image.info.get(WORDS):
        # A word from a terminal may hold bytes that were no UTF-8; PNG has no way to write them.
        chunks.add_text(WORDS, text.encode("utf-8", "replace").decode("utf-8"))
    content = BytesIO()
    image.save(content, "PNG", pnginfo=chunks)
    return content.getvalue()


def before_after(folder: Path, examples: Sequence[Mapping[str, Any]], path: Path, *, columns: int = 8) -> None:
    """One PNG of evaluation examples: each row of `columns` pictures before, and under it the same seeds after."""
    rows = [
        [read_own(folder / example[side]) for example in examples[start : start + columns]]
        for start in range(0, len(examples), columns)
        for side in ("before", "after")
    ]
    content = BytesIO()
    grid(rows, row_labels=["base", "tuned"] * (len(rows) // 2)).save(content, "PNG")
    write_atomically(path, content.getvalue())


def _read_latents(path: Path) -> dict[str, torch.Tensor]:
    try:
        latents = load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is no whole .safetensors file ({error}); put it back from a copy of the run"
        ) from None
    for name, latent in latents.items():
        if latent.dtype != torch.float32 or latent.ndim != 3 or not latent.isfinite().all():
            raise ValueError(f"{path} is damaged: {name} is no latent of finite numbers; put it back from a copy")
    return latents
