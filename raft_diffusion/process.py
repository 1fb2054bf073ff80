"""The process that a run works in: its threads, its device, its versions. torch is imported inside the functions."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import time
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from .checks import check_device


def prepare(threads: int | None, *, libraries: Sequence[str] = ("diffusers", "transformers")) -> int:
    """Let torch use `threads` CPU threads (None: every core) and these libraries load without bars of their own.

    Returns the number of threads.
    """
    _wait_briefly(os.environ)
    with _uncollected():
        import torch

        for library in libraries:
            import_module(f"{library}.utils.logging").disable_progress_bar()
        if "diffusers" in libraries:
            import_module(".diffusion", __package__)
    _keep_freed_memory()
    if threads:
        torch.set_num_threads(threads)
    return torch.get_num_threads()


def _wait_briefly(environment: MutableMapping[str, str]) -> None:
    """Let a CPU thread that has nothing to do look out for work for some microseconds before it sleeps, unless the
    environment says how threads wait. Asleep at once, two threads finetune a small model at half the speed of one;
    awake for longer they are hardly faster, and cores that others need are lost to them."""
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(environment):
        environment["GOMP_SPINCOUNT"] = "2000"


@contextmanager
def _uncollected() -> Iterator[None]:
    """Within this context Python looks for no garbage: what libraries define stays, and looking through it again and
    again is a twelfth of the time that they take to load."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _keep_freed_memory() -> None:
    """Tell glibc to keep large blocks for the next tensor; else the kernel clears every one anew (measured: a third of
    the CPU time of a small loop). Other systems' allocators are left alone."""
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # M_* of malloc.h
    for option, value in ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 2**26)):
        _of_glibc("mallopt")(option, value)


def _of_glibc(name: str) -> Callable[..., object]:
    """A function of the GNU C library; on other systems one that does nothing."""
    try:
        return getattr(ctypes.CDLL("libc.so.6"), name)
    except (OSError, AttributeError):
        return lambda *_: None


class Heap:
    """Small blocks that are kept, between large ones that come and go, leave gaps that the next large one does not fit:
    a round's pictures made the memory of a CPU run grow by 0.3 MB each, over ten times what they hold themselves.

    seconds: how long gaps may stay; looking for them takes some hundredths of one.
    """

    def __init__(self, seconds: float = 10) -> None:
        self._seconds, self._looked, self._trim = seconds, time.monotonic(), _of_glibc("malloc_trim")

    def tidy(self) -> None:
        """Give the gaps back to the system, unless that was done a moment ago."""
        if time.monotonic() - self._looked >= self._seconds:
            self._trim(0)
            self._looked = time.monotonic()


def pick_device(name: str) -> str:
    """The device of a configuration: "auto" is the first of cuda, mps and cpu that is there.

    Raises ValueError for a device that is unknown, or that this machine or this build of torch does not have.
    """
    import torch

    check_device(name)
    has = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return next(device for device, there in has.items() if there)
    if not has[name.partition(":")[0]]:
        raise ValueError(f"the device {name!r} is not there, or this torch was built without it; `doctor` says more")
    return name


def environment(device: str, threads: int) -> dict[str, Any]:
    """What a run runs on: versions and machine, no user or host name. device: as the settings have it."""
    from importlib.metadata import version

    packages = ("torch", "diffusers", "transformers", "peft", "accelerate", "open_clip_torch", "safetensors")
    return {
        "raft_diffusion": version("raft-diffusion"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": pick_device(device),
        "threads": threads,
        **{name: version(name) for name in packages},
    }
