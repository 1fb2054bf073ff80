"""Where WebUIs keep their LoRAs, and putting one there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = {  # name: (its LoRAs' folder, what else lies in a fresh copy)
    "ComfyUI": ("models/loras", ("comfy", "nodes.py")),
    "AUTOMATIC1111 or Forge": ("models/Lora", ("modules", "webui.py")),
}
LORAS = (".safetensors", ".pt", ".ckpt")


@dataclass(frozen=True, slots=True)
class Place:
    """program: a name of `PROGRAMS`; folder: where it keeps LoRAs, which may be still to make."""

    program: str
    folder: Path


def find_place(webui: Path) -> Place:
    """The LoRA folder of the WebUI in a folder, or in the `ComfyUI` or `webui` that their installers put inside it.

    Raises ValueError where no WebUI is recognised.
    """
    for root in (webui, webui / "ComfyUI", webui / "webui"):
        for program, (place, marks) in PROGRAMS.items():
            folder = root / place
            # a disk that is blind to case takes models/Lora and models/loras for different names all the same
            if folder.is_dir() or all((root / mark).exists() for mark in marks):
                return Place(program, folder)
    folders = ", ".join(f"{place} of {program}" for program, (place, _) in PROGRAMS.items())
    raise ValueError(
        f"--install {webui}: this is no folder of AUTOMATIC1111, Forge or ComfyUI ({folders} is not in it); give the "
        "program's own folder, or copy the files by hand"
    )


def check_install(names: Sequence[str], webui: Path, *, force: bool) -> Place:
    """The place that files of these names would go to.

    Raises ValueError where no WebUI is recognised and for a name that is taken. WebUIs know a LoRA by its file's name
    alone, so one of the same name in another folder is refused even with `force`.
    """
    place = find_place(webui)
    if blocked := next((path for path in (place.folder, place.folder.parent) if path.is_file()), None):
        raise ValueError(f"--install {webui}: {blocked} is a file and no folder; move it away")
    for path in _same_name(names, place.folder):
        if path.parent != place.folder or path.is_dir():
            raise ValueError(
                f"{path} has the name of this LoRA, and WebUIs go by the name alone; use another with --out"
            )
        if not force:
            raise ValueError(f"{path} is there already: give --force to replace it, or another name with --out")
    return place


def _same_name(names: Sequence[str], folder: Path) -> Iterator[Path]:
    """What would be taken for one of these files, whatever its case, which some disks do not tell apart."""
    wanted = {name.casefold() for name in names}
    stems = {Path(name).stem.casefold() for name in names}
    for path in sorted(folder.rglob("*")) if folder.is_dir() else []:
        lora = path.suffix.casefold() in LORAS and path.stem.casefold() in stems
        if lora or (path.parent == folder and path.name.casefold() in wanted):
            yield path


def install(files: Sequence[Path], place: Place) -> list[Path]:
    """Copy the files there, each whole or not at all."""
    place.folder.mkdir(parents=True, exist_ok=True)
    copies = []
    for file in files:
        copy = place.folder / file.name
        partial = copy.with_name(f"{copy.name}.partial")
        shutil.copyfile(file, partial)
        os.replace(partial, copy)
        copies.append(copy)
    return copies
