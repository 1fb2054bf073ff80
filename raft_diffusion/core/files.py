"""Text files: read with one clear sentence for each thing that can be wrong, written whole or not at all."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any


def read_text(path: Path, *, what: str, advice: str) -> str:
    """The UTF-8 text of a file, with or without a byte order mark (Windows editors put one in front).

    what: "configuration", "prompt file"; advice: what to give instead. Raises ValueError with both for a file that is
    missing, a folder, unreadable or not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ValueError(f"there is no {what} {path}; {advice}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"the {what} {path} is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        problem = "is a folder" if path.is_dir() else f"cannot be read ({error.strerror})"
        raise ValueError(f"the {what} {path} {problem}; {advice}") from None


def write_atomically(path: Path, text: str) -> None:
    """UTF-8 with plain newlines, under a temporary name first, flushed, then renamed."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def inside(folder: Path, name: Any) -> Path | None:
    """`folder / name`, or None when `name` is more than a plain file name or a link leads out of the folder."""
    if not isinstance(name, str) or not re.fullmatch(r"(?!\.{1,2}$)[^/\\\x00]+", name):
        return None
    try:
        path = Path(os.path.realpath(folder / name))
    except ValueError:  # characters that no file system knows
        return None
    return path if path.is_relative_to(os.path.realpath(folder)) else None
