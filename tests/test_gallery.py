"""Pictures of files and folders: which are found, where their prompts come from, and what is refused."""

import json
import math
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from raft_diffusion.core.loop import score
from raft_diffusion.gallery import FilePicture, read_gallery, score_gallery
from raft_diffusion.rewards.compress import compressibility

INFOTEXT = (
    "größe 画, (masterpiece:1.2)\nNegative prompt: blurry\n"
    "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1234, Size: 64x48, Model: v1-5"
)
WORDS = "größe 画, (masterpiece:1.2)"


def picture(seed: int = 0, size: tuple[int, int] = (16, 12)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def with_text(path, text: str = INFOTEXT) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", text)
    picture().save(path, pnginfo=info)


def with_comment(path, comment: bytes) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = comment
    picture().save(path, exif=exif)


def texts(samples) -> list[str]:
    return [sample.prompt.text for sample in samples]


def names(samples) -> list[str]:
    return [sample.data.path.name for sample in samples]


# --- which pictures ---------------------------------------------------------------------------------------------------


def test_a_folder_gives_its_pictures_as_people_count_and_nothing_else(tmp_path):
    for name in ("10.png", "9.PNG", "a2.jpg", "A10.jpeg", "a1.webp", "._9.png", "grid-0001.png", "grid-10000.JPG"):
        picture().save(tmp_path / name)
    (tmp_path / "notes.md").write_text("no picture")
    (tmp_path / "deeper").mkdir()
    picture().save(tmp_path / "deeper" / "1.png")
    (tmp_path / "folder.png").mkdir()
    assert names(read_gallery([tmp_path])) == ["9.PNG", "10.png", "a1.webp", "a2.jpg", "A10.jpeg"]


def test_a_sheet_is_taken_when_it_is_named_itself(tmp_path):
    picture().save(tmp_path / "grid-0001.png")
    assert names(read_gallery([tmp_path / "grid-0001.png"])) == ["grid-0001.png"]
    with pytest.raises(ValueError, match="holds no picture"):
        read_gallery([tmp_path])


def test_a_picture_named_twice_is_taken_once_where_it_comes_first(tmp_path):
    for name in ("1.png", "2.png"):
        picture().save(tmp_path / name)
    assert names(read_gallery([tmp_path / "2.png", tmp_path, tmp_path / "1.png"])) == ["2.png", "1.png"]


def test_the_image_is_rgb_and_stays_in_its_file(tmp_path):
    expected = picture()
    expected.save(tmp_path / "a.png")
    (sample,) = read_gallery([tmp_path])
    assert sample.data == FilePicture(tmp_path / "a.png", has_prompt=False)
    assert np.array_equal(np.array(sample.data.image), np.array(expected))


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK"])
def test_every_kind_of_picture_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    picture().convert(mode).save(path)
    assert read_gallery([path])[0].data.image.mode == "RGB"


def test_sixteen_bits_of_grey_lose_their_lower_eight(tmp_path):
    pixels = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = FilePicture(tmp_path / "a.png").image
    assert np.array_equal(np.array(image)[:, :, 0], pixels // 256)


def test_a_photograph_is_turned_as_its_camera_was_held(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera stood upright: a quarter turn clockwise shows it rightly
    picture().save(tmp_path / "a.jpg", exif=exif)
    stored = Image.open(tmp_path / "a.jpg").convert("RGB")
    shown = FilePicture(tmp_path / "a.jpg").image
    assert shown.size == (12, 16)
    assert np.array_equal(np.array(shown), np.rot90(np.array(stored), -1))


# --- where a prompt comes from ----------------------------------------------------------------------------------------


def test_the_first_source_that_is_there_gives_the_prompt(tmp_path):
    for name in ("a", "b", "c", "d"):
        with_text(tmp_path / f"{name}.png")
    picture().save(tmp_path / "e.png")
    (tmp_path / "a.txt").write_text("a caption")
    (tmp_path / "b.txt").write_text("b caption")
    (tmp_path / "c.txt").write_text("\ufeff\n  c caption \nand more\n", encoding="utf-8")
    row = {"file_name": "a.png", "text": " a row "}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row) + "\n\n", encoding="utf-8")
    samples = read_gallery([tmp_path])
    assert texts(samples) == ["a row", "b caption", "c caption", WORDS, ""]
    assert [sample.data.has_prompt for sample in samples] == [True] * 4 + [False]
    assert [sample.draw.seed for sample in samples] == [1234] * 4 + [0]
    assert texts(read_gallery([tmp_path], prompt="mine")) == ["mine"] * 5


@pytest.mark.parametrize("key", ["text", "prompt", "caption"])
def test_metadata_names_the_prompt_in_any_of_three_ways(tmp_path, key):
    picture().save(tmp_path / "a.png")
    rows = [{"file_name": "gone.png", key: "x"}, {"file_name": "./a.png", key: "line \u2028 separator 🐈", "n": 1}]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows)
    (tmp_path / "metadata.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert texts(read_gallery([tmp_path / "a.png"])) == ["line \u2028 separator 🐈"]


def test_a_row_without_a_prompt_leaves_it_to_the_next_source(tmp_path):
    with_text(tmp_path / "a.png")
    with_text(tmp_path / "b.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png"}\n{"file_name": "b.png", "text": ""}\n')
    assert texts(read_gallery([tmp_path])) == [WORDS, WORDS]


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
@pytest.mark.parametrize(
    "comment",
    [
        b"UNICODE\0" + INFOTEXT.encode("utf-16-be"),  # as AUTOMATIC1111 writes it
        b"UNICODE\0" + INFOTEXT.encode("utf-16-le"),
        b"ASCII\0\0\0" + INFOTEXT.encode("utf-8"),
    ],
)
def test_the_infotext_of_a_jpeg_is_in_its_exif(tmp_path, suffix, comment):
    with_comment(tmp_path / f"a.{suffix}", comment)
    (sample,) = read_gallery([tmp_path])
    assert (sample.prompt.text, sample.draw.seed) == (WORDS, 1234)


@pytest.mark.parametrize("comment", [b"", b"UNICODE\0\xd8", b"UNICODE\0" + "my holiday".encode("utf-16-be"), b"short"])
def test_another_comment_is_no_prompt(tmp_path, comment):
    with_comment(tmp_path / "a.jpg", comment)
    (sample,) = read_gallery([tmp_path])
    assert (sample.prompt.text, sample.data.has_prompt) == ("", False)


def test_a_caption_file_may_be_a_webuis_infotext(tmp_path):
    picture().save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text(INFOTEXT.replace(WORDS, "one\nand two"), encoding="utf-8")
    assert texts(read_gallery([tmp_path])) == ["one\nand two"]


def test_pictures_of_one_prompt_count_up_and_every_id_is_unique(tmp_path):
    for name, text in {"1": "cat", "2": "dog", "3": "cat", "4": "", "5": ""}.items():
        picture().save(tmp_path / f"{name}.png")
        if text:
            (tmp_path / f"{name}.txt").write_text(text)
    samples = read_gallery([tmp_path])
    assert [(s.prompt.text, s.draw.k) for s in samples] == [("cat", 0), ("dog", 0), ("cat", 1), ("", 0), ("", 1)]
    assert len({sample.id for sample in samples}) == 5


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("missing", "there is no picture or folder .*missing; give the path of one"),
        ("empty", r"the folder .*empty holds no picture; they end in \.png, \.jpg, \.jpeg, \.webp"),
        ("a.gif", r"a\.gif is no picture that can be read here; they end in \.png"),
        ("text.png", "text.png is no PNG, JPEG or WebP picture, whatever its name says"),
        ("bitmap.png", "bitmap.png is no PNG, JPEG or WebP picture"),
        ("nothing.png", "nothing.png is no PNG, JPEG or WebP picture"),
        ("cut.png", r"the picture .*cut\.png is broken or cannot be read \(.*\); replace it or take it out"),
        ("cut.jpg", r"the picture .*cut\.jpg is broken or cannot be read \(image file is truncated"),
        ("cut.webp", r"cut\.webp"),
    ],
)
def test_what_is_no_whole_picture_is_refused_by_its_name(tmp_path, name, sentence):
    (tmp_path / "empty").mkdir()
    picture().save(tmp_path / "a.gif")
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "nothing.png").touch()
    picture().save(tmp_path / "bitmap.png", format="BMP")
    for suffix in ("png", "jpg", "webp"):
        path = tmp_path / f"cut.{suffix}"
        picture(size=(64, 64)).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=sentence) as caught:
        read_gallery([tmp_path / name])
    assert "\n" not in str(caught.value)


def test_a_picture_too_large_to_open_is_refused(tmp_path, monkeypatch):
    picture().save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ValueError, match=r"the picture .*a\.png has more than the 100,000,000 pixels that are read"):
        read_gallery([tmp_path])


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_an_empty_prompt_is_refused(tmp_path, prompt):
    with pytest.raises(ValueError, match="--prompt is empty"):
        read_gallery([tmp_path], prompt=prompt)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", "line 2 of .*metadata.jsonl is broken; it must be a JSON object"),
        ("[1]", "line 2 of .*metadata.jsonl is broken"),
        ('{"text": "cat"}', 'line 2 .*with a "file_name"'),
        ('{"file_name": 3}', 'line 2 .*with a "file_name"'),
        ("[" * 100_000, "line 2 of .*metadata.jsonl is broken"),
        ('{"file_name": "a.png", "text": ["cat"]}', r"line 2 .*has the prompt \['cat'\], which is no text"),
        ('{"file_name": "a.png", "text": "dog"}', r"line 2 of .* names 'a\.png' again with another text"),
        ('{"file_name": "../a.png", "text": "x"}', r"line 2 .* names '\.\./a\.png', which leaves its folder"),
        ('{"file_name": "b/../../a.png", "text": "x"}', "leaves its folder"),
        ('{"file_name": "/a.png", "text": "x"}', "leaves its folder"),
        ('{"file_name": "C:a.png", "text": "x"}', "leaves its folder"),
        ('{"file_name": "..\\\\a.png", "text": "x"}', "leaves its folder"),
        ('{"file_name": "\\\\\\\\host\\\\a.png", "text": "x"}', "leaves its folder"),
        ('{"file_name": "", "text": "x"}', "leaves its folder"),
        ('{"file_name": "out/1.png", "text": "x"}', r"line 2 .* names 'out/1\.png', which leaves its folder"),
        ('{"file_name": "link.png", "text": "x"}', r"line 2 .* names 'link\.png', which leaves its folder"),
        ('{"file_name": "a\\u0000.png", "text": "x"}', "leaves its folder"),
    ],
)
def test_a_broken_line_of_metadata_is_refused_by_its_number(tmp_path_factory, line, sentence):
    tmp_path, outside = tmp_path_factory.mktemp("inside"), tmp_path_factory.mktemp("outside")
    (tmp_path / "out").symlink_to(outside)
    (tmp_path / "link.png").symlink_to(outside / "1.png")
    picture().save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "cat"}\n' + line)
    with pytest.raises(ValueError, match=sentence):
        read_gallery([tmp_path])
    assert texts(read_gallery([tmp_path], prompt="a prompt asks no file")) == ["a prompt asks no file"]


@pytest.mark.parametrize("text", ["", " \n\n"])
def test_an_empty_caption_file_is_refused(tmp_path, text):
    picture().save(tmp_path / "a.b.png")
    (tmp_path / "a.b.txt").write_text(text)
    with pytest.raises(
        ValueError, match=r"the caption file .*a\.b\.txt is empty; write the prompt into it, or delete it"
    ):
        read_gallery([tmp_path])


@pytest.mark.parametrize(("name", "what"), [("a.txt", "caption file"), ("metadata.jsonl", "metadata file")])
def test_captions_that_are_not_utf8_are_refused(tmp_path, name, what):
    picture().save(tmp_path / "a.png")
    (tmp_path / name).write_bytes("größe".encode("latin-1"))
    with pytest.raises(ValueError, match=rf"the {what} .*{re.escape(name)} is not UTF-8 \(byte 2\)"):
        read_gallery([tmp_path])


FORMS = {"png": {}, "jpg": {}, "webp": {"lossless": True}}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(suffix=st.sampled_from(sorted(FORMS)), place=st.floats(0, 1), byte=st.integers(0, 255), cut=st.booleans())
def test_a_damaged_picture_is_read_or_refused(tmp_path, suffix, place, byte, cut):
    path = tmp_path / f"a.{suffix}"
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0" + b"holiday"
    picture().save(path, exif=exif, **FORMS[suffix])
    content = bytearray(path.read_bytes())
    where = int(place * (len(content) - 1))
    content[where] = byte
    path.write_bytes(content[:where] if cut else content)
    try:
        (sample,) = read_gallery([path])
    except ValueError as error:
        sentence = str(error)
    else:
        sentence = ""
        assert sample.data.image.mode == "RGB"
    assert not sentence or str(path) in sentence


# --- scoring ----------------------------------------------------------------------------------------------------------


def test_many_pictures_are_scored_in_parts_as_they_would_be_at_once(tmp_path):
    for number in range(70):
        picture(number).save(tmp_path / f"{number}.png")
    samples, heard = read_gallery([tmp_path]), []
    scored = score_gallery(samples, [compressibility], progress=heard.append)
    assert [item.scores for item in scored] == [item.scores for item in score(samples, [compressibility])]
    assert heard == [64, 70]


def test_a_bad_score_is_told_with_the_file(tmp_path):
    for number in range(3):
        picture(number).save(tmp_path / f"{number}.png")
    with pytest.raises(ValueError, match=r"reward 'x' scored sample .*2\.png \(''\) as nan; a score must be"):
        score_gallery(read_gallery([tmp_path]), [lambda s: {"x": [1.0, 2.0, math.nan]}], progress=print)


def test_importing_leaves_torch_out():
    code = "import sys, raft_diffusion.gallery, raft_diffusion.rank; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
