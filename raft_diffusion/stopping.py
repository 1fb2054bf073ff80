"""Ctrl-C and SIGTERM while a run works: what is in hand is finished first, a second signal stops at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from .core.records import Progress

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SAID = "\nstopping after the batch in hand, which is kept; Ctrl-C again stops at once\n"


class Stop:
    """Whether the user has asked to stop."""

    def __init__(self) -> None:
        self.asked = False

    def checked(self, progress: Progress) -> Progress:
        """The same, which is called between two batches or steps and raises KeyboardInterrupt where a stop is due."""

        def told(stage: str, done: int, total: int) -> None:
            progress(stage, done, total)
            self.check()

        return told

    def check(self) -> None:
        if self.asked:
            raise KeyboardInterrupt

    @contextmanager
    def gently(self) -> Iterator[None]:
        """Within this context the first signal asks to stop, the second stops; elsewhere, and outside the main
        thread, the first one stops."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._ask) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        os.write(2, SAID.encode())  # a signal may come while something else is printing


def end_as_by_ctrl_c() -> None:
    """Let SIGTERM stop this process as Ctrl-C does."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
