"""Pictures from outside: any PNG, JPEG or WebP becomes plain RGB, or is refused by its name in one sentence.

Everything that reads a picture which the run itself did not make comes through here.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 100_000_000
"""A picture of 10,000 x 10,000; as RGB it fills 300 MB. A file of a few kB can claim far more."""
MAX_RATIO = 32
"""Longer strips would grow beyond all memory when their short side is brought to what a model sees."""
_TOO_LARGE = f"has more than the {MAX_PIXELS:,} pixels that are read; make it smaller or take it out"
WHITE = (255, 255, 255)


def read_image(path: Path) -> tuple[Image.Image, Image.Image]:
    """(the picture as RGB, the same as it lies in the file, with its metadata).

    It is turned as its EXIF orientation says. What is transparent lies on white, as a browser shows it. 16 bits of grey
    lose their lower eight. CMYK and palettes are converted. Of a JPEG with several pictures the main one is taken.
    Raises ValueError, naming the file, for what is no PNG, JPEG or WebP, is broken, moves, has more than `MAX_PIXELS`
    pixels, or a side more than `MAX_RATIO` times the other; a picture that is too large is never unpacked.
    """
    with _opened(path) as image:
        image.load()
        return rgb(image), image


def read_header(path: Path) -> Image.Image:
    """A picture with its metadata alone, not unpacked. Raises ValueError as `read_image`, as far as it can tell."""
    with _opened(path) as image:
        return image


def read_own(path: Path) -> Image.Image:
    """A picture that a run made, of whatever size, as RGB. Raises ValueError, naming the file, for a broken one."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except Exception as error:  # each decoder has errors of its own
        why = " ".join(str(error).split())[:200]
        raise ValueError(f"the picture {path} is broken ({why}); put it back from a copy of the run") from None


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The file, its header checked; whatever goes wrong with it is told in one sentence."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd metadata and size; the picture is read or refused all the same
            with Image.open(path, formats=FORMATS) as image:
                _check_header(path, image)
                yield image
    except UnidentifiedImageError:
        raise ValueError(f"{path} is no PNG, JPEG or WebP picture, whatever its name says; take it out") from None
    except Image.DecompressionBombError:  # from far beyond our own limit on
        raise ValueError(f"the picture {path} {_TOO_LARGE}") from None
    except _Refused as refused:
        raise ValueError(str(refused)) from None
    except Exception as error:  # each decoder has errors of its own
        why = getattr(error, "strerror", None) or " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"the picture {path} is broken or cannot be read ({why}); replace it or take it out") from None


def rgb(image: Image.Image) -> Image.Image:
    """Any still picture that PIL holds, as RGB and upright."""
    with suppress(Exception):  # broken EXIF is no reason to refuse the picture
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits of grey, which a plain conversion would clip to white
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
        image.info.pop("transparency", None)  # a level of the 16 bits
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    plain = Image.new("RGB", layer.size, WHITE)
    plain.paste(layer, mask=layer.getchannel("A"))
    plain.info = {key: value for key, value in image.info.items() if key != "transparency"}
    return plain


class _Refused(Exception):
    """A sentence that needs no other words around it."""


def _check_header(path: Path, image: Image.Image) -> None:
    """What the file says of its picture before anything is unpacked."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise _Refused(f"the picture {path} {_TOO_LARGE}")
    if max(width, height) > MAX_RATIO * min(width, height):
        raise _Refused(
            f"the picture {path} is a strip of {width} x {height} pixels; no side may be more than {MAX_RATIO} times "
            "the other, so cut it or take it out"
        )
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # the further pictures of a photograph are a preview or its depths
        raise _Refused(f"the picture {path} moves: it has {frames} frames; save one of them, or take it out")
