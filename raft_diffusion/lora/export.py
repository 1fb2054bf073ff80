"""A run's LoRA as files for a WebUI: the LoRA, a preview, a sidecar and a model card, from the run folder alone."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.config import Config
from ..core.evaluated import read_evaluation
from ..sd15.modules import text_encoder_modules, unet_modules
from .card import has_preview, model_card, preview, sidecar, thumbnail
from .file import METADATA, find_lora, read_lora
from .inspection import inspect_file
from .kohya import (
    ALPHA,
    DOWN,
    UNKNOWN_TO_KOHYA,
    UP,
    Module,
    cast,
    change_norm,
    kohya_name,
    read_modules,
    to_kohya,
    with_hashes,
)
from .metadata import POCKET, RESERVED, Facts, default_stem, gather, metadata, result_round
from .tensors import DTYPES, write_tensors

if TYPE_CHECKING:
    import torch

FORMATS = ("kohya", "diffusers")
TOLERANCE = {"fp16": 1e-3, "bf16": 1e-2, "fp32": 1e-6}  # of a layer's change, relative, after rounding
_STEM = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_TELLING = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"  # (640, 768)
_WIDTH = 768  # of the text that Stable Diffusion 1.5 reads


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """What is to be written. run: the run's folder; lora: its adapter; last_round: None for all rounds; target: the
    LoRA's file; sides: what goes beside it, of ".png", ".json" and ".md"; notes: what the user should know."""

    run: Path
    lora: Path
    last_round: int | None
    target: Path
    format: str
    dtype: str
    tags: bool
    is_pocket: bool
    sides: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def files(self) -> list[Path]:
        return [self.target, *(self.target.with_suffix(ending) for ending in self.sides)]


def plan_export(
    run: Path,
    *,
    last_round: int | None = None,
    format_: str = "kohya",
    dtype: str = "fp16",
    out: Path | None = None,
    tags: bool = True,
    sides: Sequence[str] = (".png", ".json", ".md"),
    force: bool = False,
) -> Export:
    """Check everything that can be refused before anything is written.

    last_round: the LoRA after this round, None for the last. dtype: "fp16", "bf16" or "fp32". out: the LoRA's file,
    None for RUN/export/NAME.safetensors. tags: whether the files may tell the prompts. sides: the files beside it; the
    diffusers format has the card alone. force: replace what is there. Raises ValueError.
    """
    for what, value, known in (("format", format_, FORMATS), ("dtype", dtype, tuple(DTYPES))):
        if value not in known:
            near = difflib.get_close_matches(value, known, n=1)
            raise ValueError(f"unknown {what} {value!r}: use {' or '.join(near or known)}")
    if not os.path.isfile(run / "config.toml"):
        raise ValueError(f"{run} holds no config.toml: give the folder of a run that `train` or `demo` has made")
    config = Config.load(run / "config.toml")
    is_pocket = config.model == POCKET
    lora = _lora_of(run, last_round)
    target = out or run / "export" / f"{default_stem(config.name, last_round, is_pocket=is_pocket)}.safetensors"
    _check_name(target)
    notes, wanted = [], tuple(side for side in sides if side == ".md" or format_ == "kohya")
    result = result_round(run, _rounds_of(run)[-1])
    evaluation = read_evaluation(run) if last_round in (None, result) else None
    if ".png" in wanted and not has_preview(run, evaluation):
        wanted = tuple(side for side in wanted if side != ".png")
        notes.append("no preview: this round was not evaluated, so there are no pictures with and without it")
    export = Export(
        run=run,
        lora=lora,
        last_round=last_round,
        target=target,
        format=format_,
        dtype=dtype,
        tags=tags,
        is_pocket=is_pocket,
        sides=wanted,
        notes=tuple(notes),
    )
    _check_place(export, force=force)
    return export


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was written. trigger: the words that call the LoRA up; weight: the strength to use it at; notes: what would
    not load it, and why."""

    rank: int
    alpha: float
    layers: int
    trigger: str
    weight: float
    notes: tuple[str, ...]


def check_installable(export: Export) -> None:
    """Raises ValueError for what no WebUI can use: a LoRA of the carried model, and diffusers' format."""
    if export.is_pocket:
        raise ValueError(f"--install: {export.target.name} is for the carried model, which no WebUI has; it stays here")
    if export.format != "kohya":
        raise ValueError("--install: WebUIs do not load the diffusers format; leave out --format")


def write_export(export: Export) -> Exported:
    """Write the files; the LoRA is opened again, and stays only where every rule holds.

    Raises ValueError for a LoRA that cannot be exported; then nothing is written or replaced.
    """
    stored = read_lora(export.lora)
    modules = read_modules(stored)
    if export.format == "kohya" and not export.is_pocket:
        modules = _for_stable_diffusion(modules, export.lora)
    facts = gather(
        export.run,
        stem=export.target.stem,
        rank=stored.rank,
        alpha=stored.alpha,
        last_round=export.last_round,
        tags=export.tags,
    )
    picture = preview(export.run, facts.evaluation) if ".png" in export.sides and facts.evaluation else None
    problems: list[str] = []

    def write_kohya(path: Path) -> None:
        keys = metadata(facts) | ({"modelspec.thumbnail": thumbnail(picture)} if picture else {})
        tensors = to_kohya(modules, dtype=export.dtype)
        write_tensors(path, tensors, with_hashes(tensors, keys))
        problems.extend(check_file(path, modules, dtype=export.dtype, facts=facts))

    def write_diffusers(path: Path) -> None:
        write_tensors(path, _diffusers(export), _adapter_metadata(export.lora))

    card = model_card(facts, format_=export.format, picture=picture is not None)
    beside = {".png": picture or b"", ".json": sidecar(facts).encode("utf-8"), ".md": card.encode("utf-8")}
    writers = [(export.target.with_suffix(side), _writer(beside[side])) for side in export.sides]
    _write([(export.target, write_kohya if export.format == "kohya" else write_diffusers), *writers])
    return Exported(
        rank=stored.rank,
        alpha=stored.alpha,
        layers=len(modules),
        trigger=facts.trigger,
        weight=facts.weight,
        notes=tuple(problems),
    )


def check_file(path: Path, modules: Sequence[Module], *, dtype: str, facts: Facts) -> list[str]:
    """Open a file in kohya's format again and hold it against what it was made from.

    Returns what `inspect_file` finds that follows from what was trained or asked for; anything else is a fault of ours.
    """
    from safetensors.torch import load_file

    tensors = load_file(path)
    kinds = (DOWN, UP, ALPHA)
    assert set(tensors) == {f"{kohya_name(m.part, m.path)}.{kind}" for m in modules for kind in kinds}
    for module in modules:
        down, up, alpha = (tensors[f"{kohya_name(module.part, module.path)}.{kind}"] for kind in kinds)
        assert down.shape == module.down.shape and up.shape == module.up.shape
        up = up.float() * (alpha.item() / module.rank)
        wrong = _distance(down, up, module.down, module.up * (module.alpha / module.rank))
        if wrong > TOLERANCE[dtype]:
            raise ValueError(
                f"{module.part}.{module.path} would be off by {wrong:.1e} in {dtype}, its numbers are too small; "
                "export with --dtype fp32"
            )
    found = inspect_file(path)
    assert found.format == "kohya" and found.metadata["ss_output_name"] == facts.stem
    expected = ("it was made for" if facts.is_pocket else "kohya's scripts leave out", "it is in bf16")
    assert all(problem.startswith(expected) for problem in found.problems), found.problems
    return list(found.problems)


def _distance(down: torch.Tensor, up: torch.Tensor, down2: torch.Tensor, up2: torch.Tensor) -> float:
    """||up @ down - up2 @ down2|| relative to the second, as the norm of one product [up, -up2] @ [down; down2]."""
    import torch

    whole = change_norm(down2, up2)
    both = torch.cat([down.double(), down2.double()]), torch.cat([up.double(), -up2.double()], dim=1)
    return change_norm(*both) / whole if whole else change_norm(down, up)


def _for_stable_diffusion(modules: list[Module], path: Path) -> list[Module]:
    """The modules, all of them layers of Stable Diffusion 1.5, with one of its attn2 to_k or to_v among them.

    InvokeAI and Draw Things tell a LoRA's base by the width of that layer. Where it was not trained, one that changes
    nothing is put in. Raises ValueError for a layer that Stable Diffusion 1.5 does not have.
    """
    import torch

    known = {kohya_name("unet", name) for name in unet_modules()}
    known |= {kohya_name("text_encoder", name) for name in text_encoder_modules()}
    known |= {kohya_name("unet", name) for name in UNKNOWN_TO_KOHYA}
    for module in modules:
        if kohya_name(module.part, module.path) not in known:
            raise ValueError(
                f"{path} holds {module.part}.{module.path}, which is no layer of Stable Diffusion 1.5, so no WebUI "
                "could use it; export with --format diffusers"
            )
    widths = {module.down.shape[1] for module in modules if re.search(r"attn2\.to_[kv]$", module.path)}
    if widths - {_WIDTH}:
        raise ValueError(
            f"{path} reads a text {max(widths - {_WIDTH})} wide, and Stable Diffusion 1.5 one of {_WIDTH}, so no WebUI "
            "could use it; export with --format diffusers"
        )
    if widths:
        return modules
    like = next((module for module in modules if module.part == "unet"), modules[0])
    telling = Module("unet", _TELLING, torch.zeros(like.rank, _WIDTH), torch.zeros(640, like.rank), like.alpha)
    return [*modules, telling]


def _diffusers(export: Export) -> dict[str, torch.Tensor]:
    """The adapter's own tensors in another dtype."""
    from safetensors.torch import load_file

    return {name: cast(tensor, export.dtype, what=name) for name, tensor in load_file(export.lora).items()}


def _adapter_metadata(path: Path) -> dict[str, str]:
    """Rank and alpha as the adapter says them, in the few keys that older versions of peft know too."""
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        return {METADATA: json.dumps(json.loads(file.metadata()[METADATA]), sort_keys=True)}


def _write(files: Sequence[tuple[Path, Callable[[Path], None]]]) -> None:
    """Write all the files under temporary names, then rename them: all of them, or none."""
    files[0][0].parent.mkdir(exist_ok=True)
    partials = [path.with_name(f"{path.name}.partial") for path, _ in files]
    try:
        for partial, (_, write) in zip(partials, files, strict=True):
            write(partial)
        for partial, (path, _) in zip(partials, files, strict=True):
            os.replace(partial, path)
    finally:
        for partial in partials:
            partial.unlink(missing_ok=True)


def _writer(content: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(content)

    return write


def _check_name(target: Path) -> None:
    if target.suffix != ".safetensors":
        raise ValueError(f"--out {target}: name a file that ends in .safetensors")
    if not _STEM.fullmatch(target.stem) or target.stem.lower() in RESERVED:
        raise ValueError(
            f"--out {target}: WebUIs call a LoRA by its file's name, so begin with a letter or digit and use only "
            f"letters, digits, dots, _ and -; {' and '.join(RESERVED)} mean something else there"
        )


def _check_place(export: Export, *, force: bool) -> None:
    """Refuse what is taken, and a name that hides whose LoRA it is."""
    target = export.target
    if not os.path.isdir(target.parent) and target.parent != export.run / "export":
        raise ValueError(f"--out {target}: there is no folder {target.parent}; make it, or name another")
    for path in export.files:
        if os.path.exists(path) and not (force and os.path.isfile(path)):
            raise ValueError(f"{path} is there already: give --force to replace it, or another name with --out")
    if export.is_pocket and export.format == "kohya" and not target.stem.startswith(f"{POCKET}-"):
        better = f"{POCKET}-{target.stem.removeprefix(POCKET).lstrip('-')}.safetensors"
        raise ValueError(
            f"--out {target}: this LoRA is for the carried model, which no WebUI has; so that nobody tries, call it "
            f"{better}"
        )


def _rounds_of(run: Path) -> list[int]:
    return sorted(int(done.parent.name) for done in (run / "rounds").glob("[0-9]*/round.json")) or [0]


def _lora_of(run: Path, number: int | None) -> Path:
    """The adapter after a round; the last one there is when no round is named."""
    if number is None:
        return find_lora(run)
    rounds = _rounds_of(run)
    if number not in rounds:
        known = f"it has {rounds[0]} to {rounds[-1]}" if rounds[-1] else "it has none yet"
        raise ValueError(f"{run} has no round {number}: {known}")
    return find_lora(run / "rounds" / f"{number:03d}" / "adapter")
