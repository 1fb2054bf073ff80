"""One process at a time writes into a run folder.

The system holds the lock and frees it when its owner ends, however that happens; it knows no date and no process number.
"""

from __future__ import annotations

import errno
import os
import warnings
import weakref
from pathlib import Path
from typing import IO

FILE = ".lock"
HELD = (errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK, errno.EDEADLK)


class RunLock:
    """The lock of a run folder, held for as long as this object lives; this process may ask for it again."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    @classmethod
    def take(cls, root: Path) -> RunLock:
        """Hold the folder, which must exist. Raises ValueError where another process holds it.

        A file system that has no locks lets everybody in, with a warning.
        """
        name = os.path.realpath(root)
        if (lock := _held.get(name)) is None:
            lock = cls((root / FILE).open("ab"))  # it stays: who deleted it could take it from under another
            _lock(lock._file, root)
            _held[name] = lock
        return lock

    def release(self) -> None:
        """Let others in; also what the end of this object does."""
        self._file.close()
        for name, lock in list(_held.items()):
            if lock is self:
                del _held[name]


_held: weakref.WeakValueDictionary[str, RunLock] = weakref.WeakValueDictionary()


def _lock(file: IO[bytes], root: Path) -> None:
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in HELD:
            warnings.warn(
                f"the file system of {root} has no locks ({error.strerror}); see to it that one process works there",
                stacklevel=3,
            )
            return
        file.close()
        raise ValueError(
            f"another process works in {root}; wait until it ends or stop it, or give another folder with --out"
        ) from None
