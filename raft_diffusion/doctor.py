"""Is this machine ready? Each check says what was found and, where something is wrong, what to do.

Not tested by us: Windows, macOS, real cards, and drivers that do not fit.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from . import pocket, sd15
from .planning.costs import decoder_cost, encoder_cost, text_encoder_cost, tower_cost, unet_cost
from .planning.forecast import size
from .planning.machine import MEND_TORCH, Machine, gpu_advice, this_machine
from .planning.networks import find_tower
from .rewards.heads import HEADS, Head
from .sd15.source import check_model, resolve_model

__all__ = ["Check", "Torch", "examine", "gpu_advice"]

PACKAGE = "raft-diffusion"
OLDEST_PYTHON = (3, 11)
OPTIONAL = ("tensorboard", "wandb")
LITTLE_MEMORY = 3e9  # the carried model's runs peak at 1.9 GB, and the system needs some
LITTLE_DISK = 1e9
TRUE = ("1", "on", "yes", "true")
ANSWER = 3.0  # seconds that the hub has to answer
TOWERS = {
    "ViT-L-14-quickgelu:openai": "timm/vit_large_patch14_clip_224.openai",
    "ViT-B-32:laion2b_s34b_b79k": "laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
}
"""The CLIP towers of the presets for Stable Diffusion 1.5 -> where open_clip gets them."""
HEAD_TOWER = "ViT-L-14"
PARTS = ("unet", "vae", "text_encoder")
Ask = Callable[[str], str]
"""From a URL to why it cannot be had now, or "" where it can."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """Something that a run downloads: where it lies here, or None; its URL; its bytes, 0 for a few MB at most."""

    name: str
    place: Path | None
    url: str
    bytes: int = 0


def examine(folder: Path, *, model: str | None = None, online: bool = False) -> list[Check]:
    """Every check; `folder` is where runs would go. Imports torch, which takes seconds.

    model: to look at instead of the default one. online: ask the hub for what is not here; nothing is downloaded.
    """
    machine = this_machine()
    torch, problem = look_at_torch()
    environment, home = os.environ, Path.home()
    cache, offline, ask = hub_folder(environment, home), is_offline(environment), reach if online else None
    return [
        check_python(sys.version_info[:3]),
        check_packages(importlib.metadata.requires(PACKAGE) or ()),
        check_torch(torch, problem),
        check_compiled("torch"),
        check_card(machine, torch),
        check_machine(machine),
        check_folder(folder),
        check_weights(pocket.WEIGHTS),
        check_hub(environment, home, ask),
        check_the_model(model or sd15.HUB_ID, cache, offline=offline, ask=ask),
        check_towers(cache, offline=offline, ask=ask),
        check_heads(HEADS, offline=offline, ask=ask),
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


def check_compiled(module: str) -> Check:
    """Whether Python kept what it compiled of `module`: without that every start compiles the libraries again."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.cached is None:
        return Check(what="start", found=f"{module} is not installed as Python source")
    if Path(spec.cached).is_file():
        return Check(what="start", found="the libraries are compiled")
    why = "PYTHONDONTWRITEBYTECODE is set" if sys.dont_write_bytecode else "their folder cannot be written"
    advice = "every start compiles them again, which takes about 15 s: `uv sync --compile-bytecode` does it once"
    return Check(what="start", found=f"the libraries are not compiled: {why}", verdict="look", advice=advice)


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
        if not os.path.isfile(path):
            wrong.append(f"{name} is missing")
        elif hashlib.sha256(path.read_bytes()).hexdigest() != entry["sha256"]:
            wrong.append(f"{name} is damaged")
    if wrong:
        return Check(what=what, found="; ".join(wrong), verdict="missing", advice=advice)
    total = sum(entry["bytes"] for entry in files.values())
    return Check(what=what, found=f"{len(files)} files, {total / 1e6:.1f} MB, as they were made")


def hub_folder(environment: Mapping[str, str], home: Path) -> Path:
    """Where the hub's own library keeps what it downloads."""
    caches = Path(environment.get("XDG_CACHE_HOME") or home / ".cache")
    base = Path(environment.get("HF_HOME") or caches / "huggingface")
    return Path(os.path.expanduser(environment.get("HF_HUB_CACHE") or base / "hub"))


def is_offline(environment: Mapping[str, str]) -> bool:
    return environment.get("HF_HUB_OFFLINE", "").lower() in TRUE


def hub_url(path: str = "") -> str:
    """An address on the hub, or on the one that HF_ENDPOINT names."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{path}"


def reach(url: str) -> str:
    """Ask for `url` without its content: "" where it is there, else why not."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=ANSWER):
            return ""
    except urllib.error.HTTPError as error:
        words = {401: "it is private or there is none", 403: "its terms must be accepted first", 404: "there is none"}
        return words.get(error.code, f"the answer was {error.code}")
    except urllib.error.URLError as error:
        return f"no answer: {error.reason}"
    except (OSError, ValueError) as error:
        return f"no answer: {error}"


def check_hub(environment: Mapping[str, str], home: Path, ask: Ask | None = None) -> Check:
    """Where models from the hub are kept, and whether it may be asked for more. ask: asks it; None for not now."""
    folder = hub_folder(environment, home)
    try:
        models = sum(path.name.startswith("models--") for path in folder.iterdir())
    except OSError:
        models = 0
    found = f"{models} model{'s' * (models != 1)} in {folder}"
    if is_offline(environment):
        advice = "HF_HUB_OFFLINE is set: only these models and folders can be loaded; unset it to download others"
        return Check(what="hub", found=f"{found}, offline", verdict="look", advice=advice)
    if ask is None:
        return Check(what="hub", found=f"{found}; not asked (--online asks)")
    who = f"the hub at {environment['HF_ENDPOINT']}" if environment.get("HF_ENDPOINT") else "the hub"
    problem = ask(hub_url())
    if not problem.startswith("no answer"):
        return Check(what="hub", found=f"{found}; {who} answers")
    advice = f"{who} cannot be reached ({problem}): check the network and its proxy; what is cached works without it"
    return Check(what="hub", found=f"{found}; no answer", verdict="look", advice=advice)


def check_the_model(model: str, cache: Path, *, offline: bool, ask: Ask | None) -> Check:
    """A model as `--model` takes it: whether it can be used, or had."""
    try:
        source = resolve_model(model)
        path = Path(source)
        if os.path.exists(path):
            check_model(model)
    except ValueError as error:
        return Check(what="model", found=f"{model} cannot be used", verdict="missing", advice=str(error))
    if os.path.isfile(path):
        return Check(what="model", found=f"{path}, a checkpoint of {size(path.stat().st_size)}")
    if os.path.isdir(path):
        return Check(what="model", found=f"{path}, a folder" if model != "pocket" else "the carried one")
    place = find_snapshot(cache, source, [(part, "*.safetensors") for part in PARTS])
    item = Item(name=source, place=place, url=hub_url(f"{source}/resolve/main/model_index.json"), bytes=model_bytes())
    instead = "give a folder or a .safetensors checkpoint with --model; --variant fp16 halves a download"
    return check_items("model", [item], offline=offline, ask=ask, instead=instead)


def check_towers(cache: Path, *, offline: bool, ask: Ask | None) -> Check:
    """The CLIP towers that score and judge in the presets for Stable Diffusion."""
    items = [
        Item(
            name=name,
            place=find_snapshot(cache, repo, [("", "open_clip_*.safetensors"), ("", "open_clip_*.bin")], any_of=True),
            url=hub_url(f"{repo}/resolve/main/open_clip_config.json"),
            bytes=sum(half.weights for half in tower_cost(find_tower(name)[0])),
        )
        for name, repo in TOWERS.items()
    ]
    instead = "give a folder, or MODEL:FILE, with --set rewards.scorer and rewards.held_out"
    return check_items("CLIP towers", items, offline=offline, ask=ask, instead=instead)


def check_heads(heads: Sequence[Head], *, offline: bool, ask: Ask | None) -> Check:
    """LAION's aesthetic heads for the presets' tower, each held against its checksum where it lies here."""
    items = [
        Item(name=head.name, place=head.path if _is_whole(head) else None, url=head.url)
        for head in heads
        if head.tower == HEAD_TOWER
    ]
    instead = "give a file with --set rewards.sources.aesthetic_v2=FILE"
    return check_items("aesthetic heads", items, offline=offline, ask=ask, instead=instead)


def _is_whole(head: Head) -> bool:
    return os.path.isfile(head.path) and hashlib.sha256(head.path.read_bytes()).hexdigest() == head.sha256


def check_items(what: str, items: Sequence[Item], *, offline: bool, ask: Ask | None, instead: str) -> Check:
    """What is here and what is not, and how it can be had. instead: what to do without a download."""
    absent = [item for item in items if item.place is None]
    found = "; ".join(
        f"{item.name} in {item.place}"
        if item.place
        else f"{item.name} not here" + f", {size(item.bytes)}" * bool(item.bytes)
        for item in items
    )
    if not absent:
        return Check(what=what, found=found)
    if offline:
        advice = f"HF_HUB_OFFLINE is set, so it cannot be downloaded: unset it once, or {instead}"
        return Check(what=what, found=found, verdict="look", advice=advice)
    problems = [f"{item.name}: {problem}" for item in absent if ask and (problem := ask(item.url))]
    if problems:
        advice = f"it cannot be had now ({'; '.join(problems)}): mend that, or {instead}"
        return Check(what=what, found=found, verdict="look", advice=advice)
    can = "can be had; " if ask else ""
    advice = f"{can}the first run of Stable Diffusion that needs it downloads it; or {instead}"
    return Check(what=what, found=found, advice=advice)


def find_snapshot(cache: Path, repo: str, needed: Sequence[tuple[str, str]], *, any_of: bool = False) -> Path | None:
    """The folder of the hub's cache that holds a file for all (or `any_of`) the (folder, pattern) of `needed`."""
    enough = any if any_of else all
    for snapshot in sorted((cache / f"models--{repo.replace('/', '--')}" / "snapshots").glob("*")):
        if enough(any((snapshot / folder).glob(pattern)) for folder, pattern in needed):
            return snapshot
    return None


def model_bytes() -> int:
    """Of Stable Diffusion 1.5's weights as float32, without the safety checker."""
    vae = sd15.config("vae")
    parts = (
        unet_cost(sd15.config("unet"), size=(8, 8), tokens=77),
        text_encoder_cost(sd15.config("text_encoder")),
        decoder_cost(vae, size=(8, 8)),
        encoder_cost(vae, size=(64, 64)),
    )
    return sum(part.weights for part in parts)


def check_optional(versions: Mapping[str, str]) -> Check:
    found = [f"{name} {versions.get(name, 'not installed')}" for name in OPTIONAL]
    return Check(what="trackers", found=f"{', '.join(found)} (optional)")
