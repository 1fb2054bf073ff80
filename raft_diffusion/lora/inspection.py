"""What a LoRA file is, from its names, shapes, numbers and metadata; what would not load where, and why."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..sd15.checkpoint import Header, check_kind, read_header
from ..sd15.modules import text_encoder_modules, unet_modules
from .kohya import ALPHA, DOWN, HEADER_LIMIT, UNKNOWN_TO_KOHYA, UP, change_norm, kohya_name
from .layers import METADATA
from .tensors import CODES

SD1 = "Stable Diffusion 1.x"
CARRIED = "the small model that raft_diffusion carries"
NO_LORA = "no LoRA"
_FORGE_LIMIT = 12  # keys that match nothing, above which Forge drops the whole file
_ENDINGS = (  # a module's two factors as kohya, diffusers and peft, and older versions of diffusers write them
    (f".{DOWN}", f".{UP}"),
    (".lora_A.weight", ".lora_B.weight"),
    (".lora.down.weight", ".lora.up.weight"),
    (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
    ("_lora.down.weight", "_lora.up.weight"),
)
_KINDS = {
    "hada_w": "LoHa",
    "lokr_w": "LoKr",
    "oft_": "OFT",
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "lora_mid": "LoCon in Tucker form",
}
"""What is no plain LoRA, by a mark in its tensors' names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """format: "kohya", "diffusers", "peft", a name of `_KINDS`, or "no LoRA". base: what it was made for.

    modules: their names; ranks, alphas, dtypes: the values that occur, the most frequent first.
    norms: block -> the Frobenius norm of all its layers' changes, as the file's alpha scales them.
    problems: one sentence each; none when every program for Stable Diffusion 1.5 loads it.
    """

    format: str
    base: str
    modules: tuple[str, ...]
    ranks: tuple[int, ...]
    alphas: tuple[float, ...]
    dtypes: tuple[str, ...]
    metadata: Mapping[str, str]
    norms: Mapping[str, float]
    problems: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """rank, alpha and dtype: the most frequent value, null where there is none; their plurals hold all of them."""
        return {
            "format": self.format,
            "base": self.base,
            "modules": len(self.modules),
            "rank": self.ranks[0] if self.ranks else None,
            "alpha": self.alphas[0] if self.alphas else None,
            "dtype": self.dtypes[0] if self.dtypes else None,
            "problems": list(self.problems),
            "ranks": list(self.ranks),
            "alphas": list(self.alphas),
            "dtypes": list(self.dtypes),
            "module_names": list(self.modules),
            "norms": dict(self.norms),
            "metadata": dict(self.metadata),
        }


@dataclass(frozen=True, slots=True)
class _Layer:
    """A module's tensors by name; alpha None where the file does not say it."""

    name: str
    down: str
    up: str
    rank: int
    alpha: float | None


def inspect_file(path: Path) -> Inspection:
    """Look at any file. Raises ValueError where there is none or it cannot be read."""
    if not os.path.isfile(path):
        raise ValueError(f"there is no file {path}; give a LoRA as a .safetensors file")
    try:
        header = read_header(path)
    except ValueError as error:
        if not str(error).startswith(f"{path} is "):
            raise
        return _nothing(f"it {str(error).removeprefix(f'{path} ')}")
    kind = _format(header.tensors)
    if kind == NO_LORA:
        return _nothing(_what_else(header, path))
    layers = list(_layers(path, header, kind))
    norms, finite = _norms(path, layers)
    names = {code: name for name, code in CODES.items()}
    problems = list(_problems(path, header, kind, layers))
    if not finite:
        problems.append("it holds numbers that are not finite: pictures turn black")
    return Inspection(
        format=kind,
        base=_base(header),
        modules=tuple(layer.name for layer in layers),
        ranks=_frequent(layer.rank for layer in layers),
        alphas=_frequent(layer.alpha for layer in layers if layer.alpha is not None),
        dtypes=_frequent(names.get(dtype, dtype) for dtype, _ in header.tensors.values()),
        metadata=header.metadata,
        norms=norms if finite else {},
        problems=tuple(problems),
    )


def _nothing(problem: str) -> Inspection:
    return Inspection(
        format=NO_LORA, base="unknown", modules=(), ranks=(), alphas=(), dtypes=(), metadata={}, norms={},
        problems=(problem,),
    )  # fmt: skip


def _what_else(header: Header, path: Path) -> str:
    if any(name in ("emb_params", "clip_l") or "string_to_param" in name for name in header.tensors):
        return "it is no LoRA but an embedding (textual inversion)"
    try:
        check_kind(header, path)
    except ValueError as error:
        kind = str(error).removeprefix(f"{path} is ").partition(";")[0]
        if not kind.startswith("no "):
            return f"it is no LoRA but {kind}"
        return f"it is no LoRA: none of its {len(header.tensors)} tensors is called as a LoRA's is"
    return "it is no LoRA but a whole Stable Diffusion 1.x checkpoint"


def _format(tensors: Mapping[str, Any]) -> str:
    for mark, kind in _KINDS.items():
        if any(mark in name for name in tensors):
            return kind
    named = [name for name in tensors if name.endswith(tuple(ending for pair in _ENDINGS for ending in pair))]
    if not named:
        return NO_LORA
    if any(name.startswith("base_model.model.") for name in named):
        return "peft"
    return "kohya" if any(name.endswith((f".{DOWN}", f".{UP}")) for name in named) else "diffusers"


def _layers(path: Path, header: Header, kind: str) -> Iterator[_Layer]:
    """The modules that have both factors, in the file's order."""
    said = _adapter_metadata(header)
    alphas = _alphas(path, header) if kind == "kohya" else {}
    for name, (_, shape) in header.tensors.items():
        for down, up in _ENDINGS:
            module = name.removesuffix(down)
            if module != name and f"{module}{up}" in header.tensors and shape:
                alpha = alphas.get(module, said.get(f"{module.partition('.')[0]}.lora_alpha"))
                alpha = float(alpha) if isinstance(alpha, int | float) else None
                yield _Layer(module, name, f"{module}{up}", shape[0], alpha)


def _alphas(path: Path, header: Header) -> dict[str, float]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        names = [name for name in header.tensors if name.endswith(f".{ALPHA}")]
        return {name.removesuffix(f".{ALPHA}"): file.get_tensor(name).float().mean().item() for name in names}


def _adapter_metadata(header: Header) -> Mapping[str, Any]:
    try:
        said = json.loads(header.metadata.get(METADATA, "{}"))
    except ValueError:
        said = {}
    return said if isinstance(said, dict) else {}


def _norms(path: Path, layers: Iterable[_Layer]) -> tuple[dict[str, float], bool]:
    """(block -> ||alpha / r * up @ down|| of its layers together, whether all numbers are finite)."""
    from safetensors import safe_open

    squares: defaultdict[str, float] = defaultdict(float)
    with safe_open(path, "pt") as file:
        for layer in layers:
            down, up = file.get_tensor(layer.down), file.get_tensor(layer.up)
            if not (down.isfinite().all() and up.isfinite().all()):
                return {}, False
            scale = 1.0 if layer.alpha is None else layer.alpha / layer.rank
            if up.flatten(1).shape[1] == layer.rank:
                squares[_block(layer.name)] += (scale * change_norm(down, up)) ** 2
    order = ["text encoder", *(f"down {i}" for i in range(4)), "middle", *(f"up {i}" for i in range(4)), "others"]
    return {block: math.sqrt(squares[block]) for block in order if block in squares}, True


def _block(name: str) -> str:
    if re.match(r"lora_te|text_encoder|base_model\.model\.text_model", name):
        return "text encoder"
    if found := re.search(r"(down|up)_blocks[._](\d)", name):
        return f"{found[1]} {found[2]}"
    if found := re.search(r"(input|output)_blocks[._](\d+)", name):
        return f"{'down' if found[1] == 'input' else 'up'} {int(found[2]) // 3}"
    return "middle" if re.search(r"mid_block|middle_block", name) else "others"


def _frequent(values: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(value for value, _ in Counter(values).most_common())


def _base(header: Header) -> str:
    """What the file was made for: from its names, then from the width of the text that its layers read."""
    names, said = header.tensors, header.metadata.get("ss_base_model_version", "")
    if said.startswith("raft_pocket"):
        return CARRIED
    if any(mark in name for name in names for mark in ("double_blocks", "single_blocks", "single_transformer_blocks")):
        return "FLUX"
    if any("joint_blocks" in name for name in names):
        return "Stable Diffusion 3"
    if any("lora_te2_" in name or name.startswith("text_encoder_2.") for name in names) or said.startswith("sdxl"):
        return "SDXL"
    downs = {
        name: shape[-1]
        for name, (_, shape) in names.items()
        if len(shape) == 2 and re.search(r"lora[_.](linear_layer\.)?(down|A)\.", name)
    }
    text = {width for name, width in downs.items() if "attn2" in name and re.search(r"to_[kv]", name)}
    text = text or {
        width for name, width in downs.items() if re.match(r"lora_te|text_enc", name) and "self_attn" in name
    }
    widths = {768: SD1, 1024: "Stable Diffusion 2.x", 2048: "SDXL"}
    width = text.pop() if len(text) == 1 else None
    return widths.get(width, f"a model whose text is {width} wide") if width else "unknown"


def _problems(path: Path, header: Header, kind: str, layers: list[_Layer]) -> Iterator[str]:
    base = _base(header)
    if kind in _KINDS.values():
        yield f"it is a {kind}, no plain LoRA: kohya's scripts, diffusers or this package do not load it as it is"
    elif kind != "kohya":
        first = layers[0].name if layers else next(iter(header.tensors))
        old = any(".down.weight" in layer.down for layer in layers)
        others = "AUTOMATIC1111, InvokeAI" if old else "AUTOMATIC1111, Forge, ComfyUI, InvokeAI"
        yield (
            f"its names have dots, as {kind} writes them ({first}): {others} and kohya's scripts load none of them; "
            "a WebUI needs kohya's format"
        )
    if base == CARRIED:
        yield f"it was made for {CARRIED}: no WebUI has that model"
    elif base not in (SD1, "unknown"):
        yield f"it was made for {base}: on Stable Diffusion 1.5 it does nothing, or fails"
    elif kind == "kohya":
        yield from _name_problems(header, layers)
    yield from _alpha_problems(kind, layers)
    yield from _file_problems(path, header, kind, base)


def _name_problems(header: Header, layers: list[_Layer]) -> Iterator[str]:
    """What is wrong with kohya's names on Stable Diffusion 1.5."""
    names = [
        name.rpartition(f".{end}")[0] for name in header.tensors for end in (DOWN, UP, ALPHA) if name.endswith(end)
    ]
    modules = dict.fromkeys(names)
    if any(name.startswith("lora_te1_") for name in modules):
        yield "its text encoder is called lora_te1_ instead of lora_te_: kohya's scripts and InvokeAI drop that part"
    if any(re.match(r"lora_te1?_encoder", name) for name in modules):
        yield "its text encoder's names lack text_model_: Forge then drops the whole file"
    if any(re.search(r"_(input|output|middle)_blocks?_", name) for name in modules):
        yield "its UNet's names are those of a checkpoint (input_blocks, ...): kohya's scripts drop them"
    known = _known_names() | {kohya_name("unet", name) for name in UNKNOWN_TO_KOHYA}
    told = re.compile(r"lora_te1_|lora_te_encoder|.*_(input|output|middle)_blocks?_|bundle_emb")
    strange = [name for name in modules if name not in known and not told.match(name)]
    ends = (f".{DOWN}", f".{UP}", f".{ALPHA}")
    strange += [name for name in header.tensors if not name.endswith(ends) and not told.match(name)]
    if strange:
        shown = ", ".join(strange[:2]) + (", ..." if len(strange) > 2 else "")
        end = "Forge drops the whole file" if len(strange) > _FORGE_LIMIT else "diffusers refuses the file"
        yield f"{len(strange)} of its names are no layer of Stable Diffusion 1.5 ({shown}): {end}, others ignore them"
    dropped = [name for name in UNKNOWN_TO_KOHYA if kohya_name("unet", name) in modules]
    if dropped:
        yield f"kohya's scripts leave out {', '.join(dropped)}"
    lacking = len(modules) - len(layers)
    if lacking:
        yield f"{lacking} of its modules lack lora_down or lora_up: it is cut or was written wrongly"
    readable = any(re.search(r"_attn2_to_[kv]$", layer.name) for layer in layers)
    if not readable:
        yield "it holds no attn2_to_k or attn2_to_v: InvokeAI and Draw Things cannot tell its base model"


def _known_names() -> set[str]:
    """kohya's names of all layers of Stable Diffusion 1.5."""
    text = {kohya_name("text_encoder", name) for name in text_encoder_modules()}
    return text | {kohya_name("unet", name) for name in unet_modules()}


def _alpha_problems(kind: str, layers: list[_Layer]) -> Iterator[str]:
    missing = [layer.name for layer in layers if layer.alpha is None]
    if missing and kind in ("kohya", "diffusers"):
        yield (
            f"{len(missing)} of {len(layers)} modules have no alpha: every program then takes alpha = rank, which is "
            "too strong or too weak unless it was trained so"
        )
    for part, what in (("lora_unet_", "UNet"), ("lora_te", "text encoder")):
        alphas = {layer.alpha for layer in layers if layer.name.startswith(part) and layer.alpha is not None}
        if len(alphas) > 1:
            yield f"its {what} has {len(alphas)} different alphas: diffusers applies the most frequent to all layers"


def _file_problems(path: Path, header: Header, kind: str, base: str) -> Iterator[str]:
    said = header.metadata
    if kind == "kohya":
        if METADATA in said:
            yield f"its metadata holds {METADATA}: diffusers refuses that in kohya's format"
        if not said:
            yield "it has no metadata: AUTOMATIC1111 and Forge show its version as unknown"
        elif "modelspec.architecture" not in said and base in (SD1, "unknown"):
            yield "its metadata has no modelspec.architecture: Forge shows its version as unknown"
    if any(dtype == "BF16" for dtype, _ in header.tensors.values()):
        yield "it is in bf16, which some older tools cannot read; fp16 loads everywhere"
    if header.size >= HEADER_LIMIT:
        yield f"its header is {header.size} bytes: ComfyUI shows no metadata above {HEADER_LIMIT}"
    if said.get("sshs_model_hash", (digest := data_hash(path, header))) != digest:
        yield "its sshs_model_hash is wrong (copied, or the file was changed): managers take it for another LoRA"


def data_hash(path: Path, header: Header) -> str:
    """sha256 of the bytes after the header: what WebUIs and LoRA managers know a LoRA by."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(header.size)
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
