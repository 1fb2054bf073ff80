"""How much fits into the device's memory at once: what does not is halved, said once, and the work goes on."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")
SAYINGS = ("out of memory", "can't allocate memory", "not enough memory", "cublas_status_alloc_failed")
"""How CUDA, mps and the CPU's allocator say it, where they do not raise `torch.OutOfMemoryError`."""


class Room:
    """Work in batches that the device has memory for.

    what: "sampling"; noun: what a batch is of, in the plural; setting: what to lower to spare the failing try, if there
    is such a setting.
    A size that failed is not tried again. Results must not depend on the size of a batch beyond rounding.
    """

    def __init__(self, what: str, *, noun: str = "pictures", setting: str | None = None) -> None:
        self._what, self._noun, self._setting = what, noun, setting
        self._most: int | None = None

    def fitted(self, size: int, work: Callable[[int], T]) -> T:
        """work(n) for the first n of size, size / 2, size / 4 ... that fits.

        Raises ValueError where not even 1 does; whatever else `work` raises passes.
        """
        while True:
            count = size if self._most is None else min(size, self._most)
            try:
                return work(count)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = " ".join(str(error).split())[:200] or type(error).__name__
            self._halve(count, reason)  # out here the failed try holds its tensors no longer

    def batches(self, items: Any, size: int, work: Callable[[Any], T]) -> Iterator[tuple[Any, T]]:
        """(batch, work(batch)) for consecutive slices of `items`, a sequence or a tensor, of `size` at most, until all
        are done."""
        start = 0
        while start < len(items):
            rest = items[start:]
            batch, done = self.fitted(min(size, len(rest)), lambda count: (rest[:count], work(rest[:count])))  # noqa: B023
            yield batch, done
            start += len(batch)

    def _halve(self, count: int, reason: str) -> None:
        if count == 1:
            raise ValueError(
                f"the device has no memory for {self._what} even one of the {self._noun} at a time ({reason}); make "
                "smaller ones, free the device of other programs, or take another device"
            )
        if self._most is None:
            advice = f"; {self._setting} below that spares the failing try" if self._setting else ""
            warnings.warn(
                f"the device has no memory for {self._what} {count} {self._noun} at once: batches are halved until "
                f"they fit, which changes no result{advice}",
                stacklevel=4,
            )
        self._most = count // 2
        gc.collect()
        import torch

        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the machine had no memory left."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    told = str(error).casefold()
    return isinstance(error, RuntimeError) and any(saying in told for saying in SAYINGS)
