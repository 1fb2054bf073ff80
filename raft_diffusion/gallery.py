"""Pictures from files and folders, with their prompts: a candidate may come from any model, or from a person."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from PIL import Image

from .core.files import read_text
from .core.loop import Reward, score
from .core.records import Draw, Prompt, Sample, Scored
from .images import read_header, read_image
from .webui import Infotext, parse_infotext

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
SHEET = re.compile(r"grid-[0-9]{4,}\.[a-z]+", re.IGNORECASE)  # many pictures in one, as `sample` and WebUIs name it
METADATA = "metadata.jsonl"
TEXT_KEYS = ("text", "prompt", "caption")
BATCH = 64  # pictures scored at once: as many as a tower passes, and as few as fit into memory
EXIF_IFD, USER_COMMENT = 0x8769, 0x9286  # tags of the Exif standard (CIPA DC-008)


@dataclass(frozen=True, slots=True)
class FilePicture:
    """A picture that stays in its file. `has_prompt`: whether anything said what was asked for."""

    path: Path
    has_prompt: bool = True

    @property
    def image(self) -> Image.Image:
        """The whole picture, RGB, turned as its EXIF orientation says. Raises ValueError for a broken file."""
        return _read(self.path)[0]


def read_gallery(paths: Sequence[Path], *, prompt: str | None = None) -> list[Sample]:
    """Every picture of these files and folders, once; folders are not entered deeper and are sorted as people count.
    Hidden files and sheets (grid-0001.png) of a folder are left out.

    A picture's prompt is the first of: `prompt`; its line in metadata.jsonl beside it (imagefolder: file_name with
    text, prompt or caption); the first line of `<stem>.txt` beside it (kohya's captions); the infotext that a WebUI
    wrote into it. With none of them it is "", and `FilePicture.has_prompt` says so.
    The draw's k counts the pictures of one prompt from 0; its seed is the infotext's, or 0.
    Raises ValueError for what is not there, is no whole picture, or has a broken caption, naming the file.
    """
    if prompt is not None and not prompt.strip():
        raise ValueError("--prompt is empty: give the words that the pictures are to fit, or leave it out")
    captions: dict[Path, dict[str, str]] = {}
    counts: Counter[str] = Counter()
    samples = []
    for path in _pictures(paths):
        _, infotext = _read(path)
        text = prompt or _words_beside(path, captions, path.parent)
        if text is None and infotext is not None:
            text = infotext.prompt or None
        draw = Draw(Prompt(text or ""), counts[text or ""], infotext.seed if infotext else 0)
        counts[text or ""] += 1
        samples.append(Sample(draw, FilePicture(path, has_prompt=text is not None)))
    return samples


def captioned(folder: Path) -> dict[str, list[Path]]:
    """Prompt -> the pictures of a folder and of the folders in it, each sorted as people count; none is unpacked.

    A picture's prompt is that of `read_gallery`, where the folder's own metadata.jsonl may name pictures in the folders
    below it. One whose prompt no file beside it says fits two: that of its infotext, and the name of its folder below.
    Raises ValueError as `read_gallery`, but for pictures that are broken behind their first bytes.
    """
    if not os.path.isdir(folder):
        raise ValueError(f"there is no folder of pictures {folder}; give the path of one")
    below = [entry for entry in folder.iterdir() if os.path.isdir(entry) and not entry.name.startswith(".")]
    found: dict[str, list[Path]] = {}
    captions: dict[Path, dict[str, str]] = {}
    for place in (folder, *sorted(below, key=lambda entry: _as_people_count(entry.name))):
        for path in _pictures_in(place):
            beside = _words_beside(path, captions, folder)
            texts = [beside] if beside else [_infotext_of(path), place.name if place != folder else ""]
            for text in dict.fromkeys(text for text in texts if text):
                found.setdefault(text, []).append(path)
    if not found:
        raise ValueError(
            f"no picture of the folder {folder} has a prompt: name them in metadata.jsonl, write captions NAME.txt "
            "beside them, or put them into folders that are called as their prompts"
        )
    return found


def score_gallery(
    samples: Sequence[Sample], rewards: Sequence[Reward], *, progress: Callable[[int], object]
) -> list[Scored]:
    """What `core.loop.score` gives, `BATCH` pictures at a time; `progress` hears how many are done.

    Raises ValueError as `score` does, with the picture's file instead of the sample's id.
    """
    scored: list[Scored] = []
    for start in range(0, len(samples), BATCH):
        batch = samples[start : start + BATCH]
        try:
            scored += score(batch, rewards)
        except ValueError as error:
            raise ValueError(_with_files(str(error), batch)) from error
        progress(len(scored))
    return scored


def _with_files(sentence: str, samples: Sequence[Sample]) -> str:
    files = {sample.id: str(sample.data.path) for sample in samples}
    return re.sub(r"[0-9a-f]{10}-[0-9]{3,}", lambda match: files.get(match[0], match[0]), sentence)


def _pictures(paths: Sequence[Path]) -> list[Path]:
    found: dict[Path, Path] = {}  # by its place on the disk: a file may be named beside its folder
    for path in paths:
        if os.path.isdir(path):
            here = _pictures_in(path)
            if not here:
                raise ValueError(f"the folder {path} holds no picture; they end in {', '.join(SUFFIXES)}")
        elif not os.path.exists(path):
            raise ValueError(f"there is no picture or folder {path}; give the path of one")
        elif not _is_picture(path):
            raise ValueError(f"{path} is no picture that can be read here; they end in {', '.join(SUFFIXES)}")
        else:
            here = [path]
        for entry in here:
            found.setdefault(entry.resolve(), entry)
    return list(found.values())


def _pictures_in(folder: Path) -> list[Path]:
    here = [entry for entry in folder.iterdir() if _is_picture(entry) and not _is_aside(entry.name)]
    return sorted(here, key=lambda entry: _as_people_count(entry.name))


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and os.path.isfile(path)


def _is_aside(name: str) -> bool:
    """Files that lie among pictures and are none of them: hidden ones, as macOS makes, and sheets."""
    return name.startswith(".") or SHEET.fullmatch(name) is not None


def _as_people_count(name: str) -> list[tuple[int, int, str]]:
    """A key that puts "9.png" before "10.png" and does not mind capitals, but for equal names."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name.casefold())
    return [(0, int(part), "") if part[0] in "0123456789" else (1, 0, part) for part in parts] + [(2, 0, name)]


def _read(path: Path) -> tuple[Image.Image, Infotext | None]:
    """The whole picture and what a WebUI wrote into it."""
    image, stored = read_image(path)
    return image, _infotext(stored)


def _infotext_of(path: Path) -> str:
    """The prompt that a WebUI wrote into a picture, from its first bytes."""
    infotext = _infotext(read_header(path))
    return infotext.prompt if infotext else ""


def _infotext(image: Image.Image) -> Infotext | None:
    """From a PNG's text, or from the comment in the EXIF of a JPEG or WebP."""
    text = image.info.get("parameters")
    texts = [text] if isinstance(text, str) else []
    with suppress(Exception):  # broken EXIF says nothing
        comment = image.getexif().get_ifd(EXIF_IFD).get(USER_COMMENT, b"")
        if isinstance(comment, bytes):  # 8 bytes name the encoding; UTF-16 comes in either byte order
            encodings = ("utf-16-be", "utf-16-le") if comment.startswith(b"UNICODE\0") else ("utf-8",)
            texts += [comment[8:].decode(encoding, "replace") for encoding in encodings]
    return next((found for text in texts if (found := parse_infotext(text))), None)


def _words_beside(path: Path, captions: dict[Path, dict[str, str]], top: Path) -> str | None:
    """What metadata.jsonl, beside a picture or in the folder `top` above it, or its caption file says. captions: the
    metadata that was read already."""
    for folder in dict.fromkeys((path.parent, top)):
        if folder not in captions:
            captions[folder] = _read_metadata(folder / METADATA)
        if text := captions[folder].get(path.relative_to(folder).as_posix()):
            return text
    return _read_caption(path.with_suffix(".txt"))


def _read_metadata(path: Path) -> dict[str, str]:
    """file_name -> prompt, of the imagefolder layout. A row may name a picture that is no longer there."""
    if not os.path.exists(path):
        return {}
    captions: dict[str, str] = {}
    lines = read_text(path, what="metadata file", advice="mend or delete it").split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"line {number} of {path}"
        name, text = _read_row(line, where, path.parent)
        if captions.get(name, text) != text:
            raise ValueError(f"{where} names {name!r} again with another text; keep one of them")
        captions[name] = text
    return captions


def _read_row(line: str, where: str, folder: Path) -> tuple[str, str]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, Mapping) or not isinstance(row.get("file_name"), str):
        raise ValueError(f'{where} is broken; it must be a JSON object with a "file_name", all on one line')
    name = row["file_name"]
    if not _stays(name, folder):
        raise ValueError(f"{where} names {name!r}, which leaves its folder; only files below the folder are allowed")
    text = next((row[key] for key in TEXT_KEYS if row.get(key) is not None), "")
    if not isinstance(text, str):
        raise ValueError(f"{where} has the prompt {text!r}, which is no text; write it in quotes")
    return PurePosixPath(name).as_posix(), text.strip()


def _stays(name: str, folder: Path) -> bool:
    """Whether a path from a file's content stays below its folder, as Windows and as others read it, links followed."""
    readings = (PurePosixPath(name), PureWindowsPath(name))
    if not name or "\0" in name or any(path.anchor or ".." in path.parts for path in readings):
        return False
    return Path(os.path.realpath(folder / name)).is_relative_to(os.path.realpath(folder))


def _read_caption(path: Path) -> str | None:
    """The first line that says something; a WebUI may have written its whole infotext there."""
    if not os.path.exists(path):
        return None
    text = read_text(path, what="caption file", advice="mend or delete it")
    infotext = parse_infotext(text)
    lines = [infotext.prompt] if infotext else [line.strip() for line in text.split("\n") if line.strip()]
    if not lines:
        raise ValueError(f"the caption file {path} is empty; write the prompt into it, or delete it")
    return lines[0] or None
