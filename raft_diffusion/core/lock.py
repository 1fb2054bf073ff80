"""One process at a time writes into a run folder.

The system holds the lock and frees it when its owner ends, however that happens. It holds no date and no process
number.
"""

from __future__ import annotations

import errno
import os
import warnings
import weakref
from pathlib import Path

FILE = ".lock"
HELD = (errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK, errno.EDEADLK)


class RunLock:
    """The lock of a run folder, held for as long as this object lives; this process may ask for it again."""

    def __init__(self, handle: int) -> None:
        self.release = weakref.finalize(self, os.close, handle)
        """Let others in; also what the end of this object does."""

    @classmethod
    def take(cls, root: Path) -> RunLock:
        """Hold the folder, which must exist. Raises ValueError where another process holds it.

        A file system that has no locks lets everybody in, with a warning.
        """
        # the file stays when the lock is freed: who deleted it could take it from under another
        handle = os.open(root / FILE, os.O_RDWR | os.O_CREAT, 0o666)
        facts = os.fstat(handle)
        place = facts.st_dev, facts.st_ino  # the same where the folder has been moved
        held = _held.get(place)
        if held is not None and held.release.alive:
            os.close(handle)
            return held
        lock = cls(handle)
        _lock(handle, root)
        _held[place] = lock
        return lock


_held: weakref.WeakValueDictionary[tuple[int, int], RunLock] = weakref.WeakValueDictionary()


def _lock(handle: int, root: Path) -> None:
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in HELD:
            warnings.warn(
                f"the file system of {root} has no locks ({error.strerror}); see to it that one process works there",
                stacklevel=3,
            )
            return
        raise ValueError(
            f"another process works in {root}; wait until it ends, stop it, or give another folder"
        ) from None
