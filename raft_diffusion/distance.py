"""How unlike two pictures are, from their pixels alone: a stored run can be ranked again without any model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .core.records import Sample

if TYPE_CHECKING:
    from PIL import Image

SIDE = 32
"""Pictures are compared at this size: what differs are forms and colours, not grain."""


def picture_distance(first: Sample, second: Sample) -> float:
    """The mean squared difference of two pictures, each averaged down to 32 x 32 px, as a share of white minus black:
    0 for equal ones, 1 for black and white.

    A sample's data is a picture with an `image`, or the path of its file, as `core.store.stored_rounds` gives it.
    """
    from PIL import ImageChops, ImageStat

    statistics = ImageStat.Stat(ImageChops.difference(_small(first), _small(second)))
    return sum(statistics.sum2) / sum(statistics.count) / 255**2


def _small(sample: Sample) -> Image.Image:
    from PIL import Image

    if isinstance(sample.data, Path):
        with Image.open(sample.data) as image:
            return image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)
    return sample.data.image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)
