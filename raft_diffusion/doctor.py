"""Is this machine ready? Each check says what was found and, where something is wrong, what to do.

Not tested by us: Windows, macOS, real cards, and drivers that do not fit.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from . import pocket
from .planning.machine import MEND_TORCH, Machine, gpu_advice, this_machine

__all__ = ["Check", "Torch", "examine", "gpu_advice"]

PACKAGE = "raft-diffusion"
OLDEST_PYTHON = (3, 11)
OPTIONAL = ("tensorboard", "wandb")
LITTLE_MEMORY = 3e9  # the carried model's runs peak at 1.9 GB, and the system needs some
LITTLE_DISK = 1e9
TRUE = ("1", "on", "yes", "true")


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """verdict: "ok"; "look": it works, but see `advice`; "missing": something needed is not there or broken."""

    what: str
    found: str
    verdict: Literal["ok", "look", "missing"] = "ok"
    advice: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Torch:
    """What the imported torch says of itself. cuda: the version it was built with; has_*: what it can use now."""

    version: str
    cuda: str | None
    has_cuda: bool
    has_mps: bool

    @property
    def device(self) -> str:
        """What the device "auto" takes."""
        return "cuda" if self.has_cuda else "mps" if self.has_mps else "cpu"


def examine(folder: Path) -> list[Check]:
    """Every check; `folder` is where runs would go. Imports torch, which takes seconds."""
    machine = this_machine()
    torch, problem = look_at_torch()
    return [
        check_python(sys.version_info[:3]),
        check_packages(importlib.metadata.requires(PACKAGE) or ()),
        check_torch(torch, problem),
        check_card(machine, torch),
        check_machine(machine),
        check_folder(folder),
        check_weights(pocket.WEIGHTS),
        check_hub(os.environ, Path.home()),
        check_optional(installed(OPTIONAL)),
    ]


def look_at_torch() -> tuple[Torch | None, str]:
    """(torch, ""), or (None, why it cannot be imported): broken builds raise anything."""
    try:
        import torch
    except Exception as error:
        return None, " ".join(str(error).split()) or type(error).__name__
    build = torch.version.cuda or (f"ROCm {torch.version.hip}" if torch.version.hip else None)
    has_mps = torch.backends.mps.is_available()
    return Torch(version=torch.__version__, cuda=build, has_cuda=torch.cuda.is_available(), has_mps=has_mps), ""


def check_python(version: tuple[int, int, int]) -> Check:
    found = f"{'.'.join(map(str, version))} on {platform.system()} {platform.machine()}"
    if version[:2] < OLDEST_PYTHON:
        return Check(what="Python", found=found, verdict="missing", advice="install Python 3.11 or later")
    return Check(what="Python", found=found)


def installed(names: Iterable[str]) -> dict[str, str]:
    """Name -> version of those that are there."""
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def check_packages(requirements: Iterable[str]) -> Check:
    """requirements: as the package's metadata states them, such as "torch>=2.6"; those of extras are left out."""
    from packaging.requirements import Requirement

    wanted = [r for r in map(Requirement, requirements) if r.marker is None or r.marker.evaluate({"extra": ""})]
    versions = installed(requirement.name for requirement in wanted)
    wrong = [
        f"{requirement} ({versions.get(requirement.name, 'not installed')} here)"
        for requirement in wanted
        if not requirement.specifier.contains(versions.get(requirement.name, "0"), prereleases=True)
        or requirement.name not in versions
    ]
    if wrong:
        advice = 'run "uv sync" in the clone, or install raft-diffusion again'
        return Check(what="packages", found=f"needed: {', '.join(wrong)}", verdict="missing", advice=advice)
    return Check(what="packages", found=", ".join(f"{name} {version}" for name, version in versions.items()))


def check_torch(torch: Torch | None, problem: str) -> Check:
    if torch is None:
        advice = f"install it again: {MEND_TORCH}"
        return Check(what="torch", found=f"cannot be imported: {problem}", verdict="missing", advice=advice)
    build = f"{torch.version}, built {describe_build(torch.cuda)}"
    return Check(what="torch", found=f'{build}; the device "auto" is {torch.device}')


def describe_build(cuda: str | None) -> str:
    if cuda is None:
        return "without CUDA"
    return f"with {cuda}" if cuda.startswith("ROCm") else f"with CUDA {cuda}"


def check_card(machine: Machine, torch: Torch | None) -> Check:
    if machine.card is None:
        return Check(what="NVIDIA card", found="none seen")
    memory = f", {machine.card_memory / 1e9:.0f} GB" if machine.card_memory else ""
    found = f"{machine.card}{memory}"
    if torch is None:
        return Check(what="NVIDIA card", found=found)
    if advice := gpu_advice(machine.card, torch.cuda):
        return Check(what="NVIDIA card", found=found, verdict="look", advice=advice)
    if not torch.has_cuda:
        advice = f"torch cannot use it: bring its driver up to date, or take the build that fits it: {MEND_TORCH}"
        return Check(what="NVIDIA card", found=found, verdict="look", advice=advice)
    return Check(what="NVIDIA card", found=found)


def check_machine(machine: Machine) -> Check:
    cores = f"{machine.cores} CPU core{'s' * (machine.cores > 1)}"
    if machine.memory is None:
        return Check(what="machine", found=f"{cores}, memory unknown")
    found = f"{cores}, {machine.memory / 1e9:.1f} GB of memory"
    if machine.memory < LITTLE_MEMORY:
        advice = "close other programs; the carried model's runs need about 2 GB"
        return Check(what="machine", found=found, verdict="look", advice=advice)
    return Check(what="machine", found=found)


def check_folder(folder: Path) -> Check:
    """Whether runs can be written into `folder`; nothing is left behind."""
    free = shutil.disk_usage(folder).free
    found = f"{free / 1e9:.1f} GB free"
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        found, advice = f"cannot be written ({error.strerror})", "go to a folder of your own, or give --out DIR"
        return Check(what="this folder", found=found, verdict="missing", advice=advice)
    if free < LITTLE_DISK:
        advice = "make room: a run takes 10 MB with the carried model and some GB with Stable Diffusion"
        return Check(what="this folder", found=found, verdict="look", advice=advice)
    return Check(what="this folder", found=f"{found}, can be written")


def check_weights(folder: Path) -> Check:
    """The carried weights against the checksums of their manifest."""
    what, advice = "carried model", "install raft-diffusion again, or get a fresh clone"
    try:
        files = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError):
        return Check(what=what, found="its manifest.json cannot be read", verdict="missing", advice=advice)
    wrong = []
    for name, entry in files.items():
        path = folder / name
        if not path.is_file():
            wrong.append(f"{name} is missing")
        elif hashlib.sha256(path.read_bytes()).hexdigest() != entry["sha256"]:
            wrong.append(f"{name} is damaged")
    if wrong:
        return Check(what=what, found="; ".join(wrong), verdict="missing", advice=advice)
    total = sum(entry["bytes"] for entry in files.values())
    return Check(what=what, found=f"{len(files)} files, {total / 1e6:.1f} MB, as they were made")


def check_hub(environment: Mapping[str, str], home: Path) -> Check:
    """Where models from the hub are kept, and whether it may be asked for more; nothing is asked here."""
    caches = Path(environment.get("XDG_CACHE_HOME") or home / ".cache")
    base = Path(environment.get("HF_HOME") or caches / "huggingface")
    folder = Path(environment.get("HF_HUB_CACHE") or base / "hub").expanduser()
    try:
        models = sum(path.name.startswith("models--") for path in folder.iterdir())
    except OSError:
        models = 0
    offline = environment.get("HF_HUB_OFFLINE", "").lower() in TRUE
    found = f"{models} model{'s' * (models != 1)} in {folder}"
    if not offline:
        return Check(what="hub", found=found)
    advice = "HF_HUB_OFFLINE is set: only these models and folders can be loaded; unset it to download others"
    return Check(what="hub", found=f"{found}, offline", verdict="look", advice=advice)


def check_optional(versions: Mapping[str, str]) -> Check:
    found = [f"{name} {versions.get(name, 'not installed')}" for name in OPTIONAL]
    return Check(what="trackers", found=f"{', '.join(found)} (optional)")
