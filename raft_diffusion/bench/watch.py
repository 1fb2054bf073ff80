"""A stopwatch with many hands, and a look at memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Mark = Callable[[], Any]


class Stopwatch:
    """Seconds by name. What is started must be stopped before it is started again; other names may run meanwhile.

    mark: takes a point in time. between: seconds from one point to another, asked for when all work is done.
    """

    def __init__(self, mark: Mark = time.perf_counter, between: Callable[[Any, Any], float] | None = None) -> None:
        self._mark = mark
        self._between = between or (lambda start, end: end - start)
        self._open: dict[str, Any] = {}
        self._pairs: dict[str, list[tuple[Any, Any]]] = {}

    def start(self, name: str) -> None:
        assert name not in self._open, name
        self._open[name] = self._mark()

    def stop(self, name: str) -> None:
        self._pairs.setdefault(name, []).append((self._open.pop(name), self._mark()))

    @contextmanager
    def running(self, name: str) -> Iterator[None]:
        self.start(name)
        try:
            yield
        finally:
            self.stop(name)

    def take(self) -> dict[str, float]:
        """The sums since the last `take`."""
        sums = {name: sum(self._between(*pair) for pair in pairs) for name, pairs in self._pairs.items()}
        self._pairs = {}
        return sums


def network_watch(device: Any) -> Stopwatch:
    """For what runs within a round. On a CUDA card the points are events in its own queue: nobody waits for them."""
    if device.type != "cuda":
        return Stopwatch(lambda: wait_and_look(device))
    import torch

    def mark() -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(device))
        return event

    def between(start: Any, end: Any) -> float:
        end.synchronize()
        return start.elapsed_time(end) / 1000

    return Stopwatch(mark, between)


def wait_and_look(device: Any) -> float:
    """The time at which `device` has done all that it was told to."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


def forget_peak(device: Any) -> None:
    """Let `peak_memory` of a CUDA card begin anew; a process's own peak cannot be forgotten."""
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: Any) -> int:
    """Bytes: of a CUDA card those of torch's tensors, else of this process since its start, the libraries included."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return psutil.Process().memory_info().peak_wset  # pyright: ignore
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
