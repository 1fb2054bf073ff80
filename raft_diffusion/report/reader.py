"""Reads a run folder for the report: what is missing or broken becomes a note, never a traceback."""

from __future__ import annotations

import base64
import io
import json
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ..core.files import inside

PIXEL_ART = 64  # px: up to here a picture is enlarged with hard pixels
PICTURE_BYTES = 20_000_000  # all pictures of a page together, as base64; the first asked for are served first
Thumbnails = dict[tuple[str, int, int, int, int], "Picture"]
"""Finished pictures by file, time of change, size in bytes, side and quality, for whoever writes a page repeatedly."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture on the page. `src` is a data URI, or empty, and then `why` says what became of it."""

    src: str = ""
    why: str = ""
    hard: bool = False


@dataclass(slots=True)
class Reader:
    """Reads one run folder. What cannot be read is counted in `notes`; `room` is what is left of PICTURE_BYTES; `done`
    holds the thumbnails of earlier pages."""

    run: Path
    notes: Counter[str] = field(default_factory=Counter)
    room: int = PICTURE_BYTES
    done: Thumbnails = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.run.resolve().name

    def has(self, name: str) -> bool:
        return (self.run / name).is_file()

    def text(self, name: str) -> str:
        """The file's text, or "" when there is no such file, which is no fault by itself."""
        try:
            return (self.run / name).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""
        except OSError as error:
            self.notes[f"{name} could not be read: {error.strerror}."] += 1
            return ""

    def json(self, name: str) -> dict[str, Any]:
        return next(self._parse([self.text(name)], f"{name} is no JSON object and was left out."), {})

    def jsonl(self, name: str) -> list[dict[str, Any]]:
        return list(self._parse(self.text(name).split("\n"), f"A line of {name} is broken and was left out."))

    def _parse(self, texts: list[str], fault: str) -> Iterator[dict[str, Any]]:
        for text in filter(str.strip, texts):
            try:
                value = json.loads(text)
            except (ValueError, RecursionError):
                value = None
            if isinstance(value, dict):
                yield value
            else:
                self.notes[fault] += 1

    def toml(self, name: str) -> dict[str, Any]:
        try:
            return tomllib.loads(self.text(name))
        except (ValueError, RecursionError) as error:  # a number of more digits than Python reads is no TOML error
            self.notes[f"{name} is no valid TOML: {error}."] += 1
            return {}

    def picture(self, folder: str, name: Any, *, side: int, quality: int = 82, lossless: bool = False) -> Picture:
        """The picture `name` inside `folder` (both below the run folder) as a data URI of at most `side` px.

        lossless: keep a picture of PIXEL_ART or less as it is.
        """
        path = inside(self.run / folder, name)
        if path is None:
            self.notes[f"{folder} names a picture outside its folder; it was not opened."] += 1
            return Picture(why="refused: not in its folder")
        if self.room <= 0:
            self.notes["A picture was left out to keep this page small; the newest rounds come first."] += 1
            return Picture(why="left out to keep the page small")
        try:
            found = path.stat()
            key = str(path), found.st_mtime_ns, found.st_size, side, quality
            if key not in self.done:
                self.done[key] = _thumbnail(path, side=side, quality=quality, lossless=lossless)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            self.notes[f"A picture in {folder} is missing or broken."] += 1
            return Picture(why="picture missing")
        self.room -= len(self.done[key].src)
        return self.done[key]


def _thumbnail(path: Path, *, side: int, quality: int, lossless: bool) -> Picture:
    if not path.is_file():
        raise FileNotFoundError(path)
    with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as opened:
        opened.draft("RGB", (side, side))
        picture = opened.convert("RGB")
    hard = max(picture.size) <= PIXEL_ART
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    picture.save(data, "WEBP", lossless=lossless and hard, quality=quality, method=3)
    return Picture(src="data:image/webp;base64," + base64.b64encode(data.getvalue()).decode(), hard=hard)


def round_names(reader: Reader) -> list[str]:
    """The folders of the finished rounds, oldest first."""
    folder = reader.run / "rounds"
    names = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    return sorted((name for name in names if re.fullmatch(r"\d{3,}", name)), key=int)


def is_number(value: Any) -> bool:
    """Whether it is a finite number that fits a float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def rows(value: Any) -> list[dict[str, Any]]:
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def numbers(value: Any) -> dict[str, float]:
    return {name: float(number) for name, number in table(value).items() if is_number(number)}
