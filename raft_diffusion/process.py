"""The process that a run works in: its threads, its device, its versions. torch is imported inside the functions."""

from __future__ import annotations

import gc
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from .checks import check_device


def prepare(threads: int | None, *, libraries: Sequence[str] = ("diffusers", "transformers")) -> int:
    """Let torch use `threads` CPU threads (None: every core) and these libraries load without bars of their own.

    Returns the number of threads.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads must not spin on cores that others need
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
    import ctypes

    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # M_* of malloc.h
    for option, value in ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 2**26)):
        mallopt(option, value)


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
