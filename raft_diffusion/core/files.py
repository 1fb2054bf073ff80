"""Files: text read with one clear sentence for each thing that can be wrong; everything written whole or not at all."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

GO_ON = "then the same command goes on where this one stopped"


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
        # not path.is_dir(): it raises for a name that is too long for one, as all of Path's questions do
        problem = "is a folder" if os.path.isdir(path) else f"cannot be read ({error.strerror})"
        raise ValueError(f"the {what} {path} {problem}; {advice}") from None


def write_atomically(path: Path, content: str | bytes) -> None:
    """A file whole or not at all, and lasting: a temporary name, flushed, renamed, the folder flushed.

    A text becomes UTF-8 with plain newlines. Raises OSError that names the file.
    """
    temporary = path.with_name(path.name + ".tmp")
    with _named(path):
        try:
            with temporary.open("wb") as file:
                file.write(content.encode("utf-8") if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            with suppress(OSError):  # a full disk gets its room back
                temporary.unlink()
            raise
        _flush(path.parent)


def write_part(path: Path, content: bytes) -> None:
    """A file of a folder that `rename_whole` makes lasting. Raises OSError that names it."""
    with _named(path), path.open("wb") as file:
        file.write(content)


def rename_whole(partial: Path, final: Path) -> None:
    """Give a folder its name once everything in it has reached the disk."""
    with _named(final):
        for path in [*partial.rglob("*"), partial]:
            _flush(path)
        os.rename(partial, final)
        _flush(final.parent)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """The system names no file where a write or a flush fails."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def _flush(path: Path) -> None:
    """Make a file or a folder's entries last; Windows cannot open a folder for that, and a file only for writing."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def advice_on(error: OSError) -> str:
    """What went wrong with a file or a disk, and what to do, in one sentence."""
    where = f" of {error.filename}" if error.filename else ""
    path = str(error.filename or "the file")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk{where} is full; make room on it, {GO_ON}"
    if error.errno == errno.EROFS:
        return f"the disk{where} can only be read; make it writable, {GO_ON}"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{path} is closed to you; give yourself the right to write there, {GO_ON}"
    if error.errno == errno.EIO:
        return f"the disk{where} failed (input/output error); check it or its cable, {GO_ON}"
    if error.filename and error.strerror:
        return f"{path} cannot be used ({error.strerror.lower()}); give another file or folder"
    return str(error)


def inside(folder: Path, name: Any) -> Path | None:
    """`folder / name`, or None when `name` is more than a plain file name or a link leads out of the folder."""
    plain = isinstance(name, str) and re.fullmatch(r"(?!\.{1,2}$)[^/\\\x00]+", name)
    return within(folder, name) if plain else None


def within(folder: Path, name: str) -> Path | None:
    """`folder / name`, or None when that leads out of the folder, by its words or by a link."""
    try:
        path = Path(os.path.realpath(folder / name))
    except ValueError:  # characters that no file system knows
        return None
    return path if path.is_relative_to(os.path.realpath(folder)) else None
