"""What this machine is, found without torch: cores, memory, an NVIDIA card, and which build of torch is installed.

Not tested by us: Windows, macOS, and any real card; their halves follow the systems' documentation.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

MEND_TORCH = "uv pip install --reinstall torch torchvision --torch-backend=auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """cores: CPUs that this process may use; memory, card_memory: bytes in all, None where unknown.

    card: the name of the first NVIDIA card; torch_cuda: what torch was built with, such as "13.2" for CUDA or
    "ROCm 6.4" (AMD, which torch calls cuda, too), None for a build without; apple: whether this is a Mac whose GPU
    torch can use.
    """

    cores: int
    memory: int | None = None
    card: str | None = None
    card_memory: int | None = None
    torch_cuda: str | None = None
    apple: bool = False

    def device(self, name: str) -> str:
        """The device that a configuration's `name` leads to: "cpu", "cuda" or "mps". "auto" takes the best that is
        seen. A card that is asked for and not seen may yet be there. Raises ValueError for what cannot be."""
        kind = name.partition(":")[0]
        if kind == "auto":
            return "cuda" if self.card and self.torch_cuda else "mps" if self.apple else "cpu"
        if kind == "cuda" and self.torch_cuda is None:
            advice = gpu_advice(self.card, None) or "this torch is a build without CUDA; take cpu or auto"
            raise ValueError(f"the device {name!r} is not there: {advice}")
        if kind == "mps" and not self.apple:
            raise ValueError(f"the device {name!r} is not there: it is the GPU of Apple's own chips; take cpu or auto")
        return kind


def this_machine() -> Machine:
    """Look around: no torch, one short call of nvidia-smi where there is one."""
    card, card_memory = nvidia_card()
    return Machine(
        cores=core_count(),
        memory=memory_bytes(),
        card=card,
        card_memory=card_memory,
        torch_cuda=torch_cuda(),
        apple=platform.system() == "Darwin" and platform.machine() == "arm64",
    )


def gpu_advice(card: str | None, torch_cuda: str | None) -> str | None:
    """What to do where an NVIDIA card lies idle because torch was built without CUDA; None where nothing is wrong.

    card: its name, None for no card; torch_cuda: the CUDA version of the build, such as "13.2", None for none.
    """
    if card is None or torch_cuda is not None:
        return None
    return f"there is an NVIDIA card ({card}), but this torch is built without CUDA; mend it with: {MEND_TORCH}"


def core_count() -> int:
    """The CPUs that this process may use; where the system cannot say, all of them."""
    count = getattr(os, "process_cpu_count", None)  # Python 3.13 and later
    if count is not None:
        return count() or 1
    affinity = getattr(os, "sched_getaffinity", None)  # Linux
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def memory_bytes() -> int | None:
    """The machine's memory in bytes, None where the system does not tell."""
    if os.name == "nt":
        return _windows_memory()
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None


class _MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX of the Windows API."""

    _fields_ = (
        ("length", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        ("total_physical", ctypes.c_uint64),
        *((f"other_{number}", ctypes.c_uint64) for number in range(6)),
    )


def _windows_memory() -> int | None:
    status = _MemoryStatus()
    status.length = ctypes.sizeof(status)
    windows = getattr(ctypes, "windll", None)
    if windows is None or not windows.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        return None
    return status.total_physical


def nvidia_card() -> tuple[str | None, int | None]:
    """(name, bytes of memory) of the first NVIDIA card as its driver's tool tells it; (None, None) for none."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None, None
    command = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=2, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None, None
    return read_card(answer)


def read_card(answer: str) -> tuple[str | None, int | None]:
    """The first line of nvidia-smi's answer, such as "NVIDIA A100-SXM4-40GB, 40960 MiB"."""
    found = re.match(r"\s*([^,\n]+?)\s*,\s*(?:(\d+) MiB|\[)", answer)  # [N/A] where the memory is shared
    if found is None:
        return None, None
    return found[1], int(found[2]) * 2**20 if found[2] else None


def torch_cuda() -> str | None:
    """What the installed torch was built with (see `Machine`), read from its version file; None for a CPU build."""
    found = importlib.util.find_spec("torch")  # finds the package, does not import it
    for folder in (found.submodule_search_locations or ()) if found else ():
        path = Path(folder) / "version.py"
        if path.is_file():
            return read_torch_cuda(path.read_text(encoding="utf-8"))
    return None


def read_torch_cuda(text: str) -> str | None:
    """The value of `cuda`, or else of `hip`, in torch's version.py."""
    values = dict(re.findall(r"^(cuda|hip)(?::[^=\n]*)?\s*=\s*['\"]([^'\"]+)['\"]", text, re.MULTILINE))
    return values.get("cuda") or (f"ROCm {values['hip']}" if "hip" in values else None)
