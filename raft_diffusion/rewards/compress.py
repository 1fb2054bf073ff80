"""JPEG compressibility (DDPO, arXiv:2305.13301): a reward that needs no model."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

from ..core.records import Sample

QUALITY = 95


def jpeg_kilobytes(image: object) -> float:
    """The size of a PIL image as an RGB JPEG, in units of 1000 bytes."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=QUALITY)  # pyright: ignore[reportAttributeAccessIssue]
    return buffer.tell() / 1000


def compressibility(samples: Sequence[Sample]) -> Mapping[str, Sequence[float]]:
    """A reward with both directions: `compressibility` is minus the kilobytes, `incompressibility` the kilobytes."""
    sizes = [jpeg_kilobytes(sample.data.image) for sample in samples]
    return {"compressibility": [-size for size in sizes], "incompressibility": sizes}
