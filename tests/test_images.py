"""Pictures from outside: what becomes of every kind of file, and what is refused before it is unpacked."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from raft_diffusion import images
from raft_diffusion.images import read_header, read_image, rgb

RED, BLUE = (255, 0, 0), (0, 0, 255)


def plain(color=RED, size=(4, 4)) -> Image.Image:
    return Image.new("RGB", size, color)


def pixel(path, place=(0, 0)):
    return read_image(path)[0].getpixel(place)


def png_that_claims(path, width: int, height: int) -> None:
    """A PNG of a few bytes whose header names a size; its picture is empty."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )


def test_what_is_transparent_lies_on_white(tmp_path):
    image = Image.new("RGBA", (3, 1), (0, 0, 255, 0))
    image.putpixel((1, 0), (0, 0, 255, 255))
    image.putpixel((2, 0), (0, 0, 255, 128))  # 255 x 127 / 255 of white beside the blue
    image.save(tmp_path / "a.png")
    assert [pixel(tmp_path / "a.png", (x, 0)) for x in range(3)] == [(255, 255, 255), BLUE, (127, 127, 255)]


def test_a_palette_with_a_transparent_colour_lies_on_white(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png", transparency=0)
    assert [pixel(tmp_path / "a.png", (x, 0)) for x in range(2)] == [(255, 255, 255), BLUE]


def test_a_picture_for_print_keeps_its_colours_about(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)  # magenta and yellow: red
    assert np.abs(np.subtract(pixel(tmp_path / "a.jpg"), RED)).max() < 8


@pytest.mark.parametrize("transparency", [None, 0])
def test_sixteen_bits_of_grey_lose_their_lower_eight(tmp_path, transparency):
    image = Image.fromarray(np.array([[0x1234, 0xFFFF]], dtype=np.uint16))
    image.save(tmp_path / "a.png", **({} if transparency is None else {"transparency": transparency}))
    assert [pixel(tmp_path / "a.png", (x, 0)) for x in range(2)] == [(0x12,) * 3, (0xFF,) * 3]


def test_what_is_left_says_nothing_of_transparency(tmp_path):
    Image.new("RGBA", (2, 2), (0, 0, 255, 128)).save(tmp_path / "a.webp", lossless=True)
    image, _ = read_image(tmp_path / "a.webp")
    assert image.mode == "RGB" and not image.has_transparency_data


@pytest.mark.parametrize("name", ["a.png", "a.webp"])
def test_a_picture_that_moves_is_refused(tmp_path, name):
    plain().save(tmp_path / name, save_all=True, append_images=[plain(BLUE), plain((0, 255, 0))])
    for read in (read_image, read_header):
        with pytest.raises(ValueError, match=rf"the picture .*{name} moves: it has 3 frames; save one of them"):
            read(tmp_path / name)


def test_of_a_photograph_with_a_preview_the_photograph_is_taken(tmp_path):
    plain(size=(16, 16)).save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[plain(BLUE)])
    image, _ = read_image(tmp_path / "a.jpg")
    assert image.size == (16, 16) and np.abs(np.subtract(image.getpixel((5, 5)), RED)).max() < 8


@pytest.mark.parametrize(("width", "height"), [(10_001, 10_000), (60_000, 60_000)])
def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, width, height):
    png_that_claims(tmp_path / "a.png", width, height)
    for read in (read_image, read_header):
        with pytest.raises(
            ValueError, match=r"a\.png has more than the 100,000,000 pixels that are read; make it"
        ) as e:
            read(tmp_path / "a.png")
        assert "\n" not in str(e.value)


def test_the_largest_picture_is_not_refused_for_its_size(tmp_path):
    png_that_claims(tmp_path / "a.png", 10_000, 10_000)
    assert read_header(tmp_path / "a.png").size == (10_000, 10_000)
    assert images.MAX_PIXELS == 10_000 * 10_000


def test_a_strip_is_refused(tmp_path):
    plain(size=(64, 2)).save(tmp_path / "a.png")
    plain(size=(65, 2)).save(tmp_path / "b.png")
    assert read_image(tmp_path / "a.png")[0].size == (64, 2)
    with pytest.raises(ValueError, match=r"b\.png is a strip of 65 x 2 pixels; no side may be more than 32 times"):
        read_image(tmp_path / "b.png")


def test_a_picture_in_memory_becomes_rgb():
    assert rgb(Image.new("L", (2, 2), 7)).getpixel((0, 0)) == (7, 7, 7)
    assert rgb(Image.new("LA", (1, 1), (0, 0))).getpixel((0, 0)) == (255, 255, 255)
