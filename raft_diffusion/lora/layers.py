"""The layers of a LoRA file, from the names and shapes in its header: kohya's format, diffusers' and peft's.

Every format says the same: the layer's weight changes by alpha / rank * up @ down (Hu et al. 2021, arXiv:2106.09685).
torch is imported late, for kohya's alphas alone: each is a tensor of one number.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]
METADATA = "lora_adapter_metadata"
PEFT_CONFIG = "adapter_config.json"
KOHYA_PREFIXES = {"lora_unet_": "unet", "lora_te_": "text_encoder", "lora_te1_": "text_encoder"}
PARTS = ("unet", "text_encoder")
_PEFT_PREFIX = "base_model.model."
_PAIRS = (  # what diffusers' training scripts have written over the years; peft writes the first
    (".lora_A.weight", ".lora_B.weight"),
    (".lora.down.weight", ".lora.up.weight"),
    (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
)
_VARIANTS = {
    "dora_scale": "a DoRA",
    "lora_magnitude_vector": "a DoRA",
    "hada_": "a LoHa",
    "lokr_": "a LoKr",
    "lora_mid": "a LoCon in Tucker's form",
}
_OTHER_WIDTHS = {1024: "Stable Diffusion 2.x", 2048: "SDXL"}  # of the text that cross-attention reads
_TRANSFORMERS = ("transformer.", "lora_transformer_", "lora_unet_double_blocks", "lora_unet_single_blocks")
_CHANGED_BASE = ("pissa", "olora", "loftq", "corda")  # peft changes the base model's weights too at the start of these


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer's LoRA as it lies in `file`, under the names `down` and `up`.

    part: "unet" or "text_encoder". name: the layer's path in diffusers with _ for every dot and without "text_model_":
    kohya's format says no more. says_alpha: False where alpha is the rank for want of a word.
    """

    part: str
    name: str
    file: Path
    down: str
    up: str
    rank: int
    alpha: float
    says_alpha: bool


def read_layers(path: Path, shapes: Shapes, metadata: Mapping[str, str]) -> tuple[str, list[Layer]]:
    """("kohya", "diffusers" or "peft", the file's layers in the order of their names).

    Raises ValueError in one sentence for a LoRA of another model, for one that is no plain LoRA, and for no LoRA.
    """
    _refuse_other_models(path, shapes, metadata)
    _refuse_variants(path, shapes)
    if any(name.startswith(tuple(KOHYA_PREFIXES)) for name in shapes):
        kind, layers = "kohya", list(_kohya(path, shapes))
    elif any(name.startswith(_PEFT_PREFIX) for name in shapes):
        kind, layers = "peft", list(_dotted(path, shapes, _PEFT_PREFIX, {part: _peft_config(path) for part in PARTS}))
    else:
        kind, layers = "diffusers", list(_dotted(path, shapes, "", _diffusers_configs(path, metadata)))
    if not layers:
        raise ValueError(f"{path} holds no LoRA of Stable Diffusion; give one in kohya's, diffusers' or peft's format")
    return kind, layers


def _refuse_other_models(path: Path, shapes: Shapes, metadata: Mapping[str, str]) -> None:
    kinds = {
        _OTHER_WIDTHS.get(shape[1])
        for name, shape in shapes.items()
        if len(shape) > 1 and re.search(r"attn2[._](processor\.)?to_[kv][._].*(down|lora_A)\.", name)
    }
    if metadata.get("ss_base_model_version", "").startswith("sdxl"):
        kinds.add("SDXL")
    if metadata.get("ss_v2") == "True":
        kinds.add("Stable Diffusion 2.x")
    if any(name.startswith(("text_encoder_2.", "lora_te2_")) for name in shapes):
        kinds.add("SDXL")
    if any(name.startswith(_TRANSFORMERS) for name in shapes):
        kinds.add("a transformer such as FLUX")
    kinds.discard(None)
    if kinds:
        kind = max(map(str, kinds))
        raise ValueError(f"the LoRA {path} was made for {kind}, and only one for Stable Diffusion 1.x can be used here")


def _refuse_variants(path: Path, shapes: Shapes) -> None:
    for mark, kind in _VARIANTS.items():
        if any(mark in name for name in shapes):
            raise ValueError(f"the LoRA {path} is {kind}, and only a plain LoRA can be used here; give one without it")


def _kohya(path: Path, shapes: Shapes) -> Iterator[Layer]:
    names = sorted({name.partition(".")[0] for name in shapes})
    alphas = _numbers(path, [f"{name}.alpha" for name in names if f"{name}.alpha" in shapes])
    used = set(alphas)
    for name in names:
        prefix = next((prefix for prefix in KOHYA_PREFIXES if name.startswith(prefix)), None)
        if prefix is None:
            continue  # it is named below
        down, up = (f"{name}.lora_{way}.weight" for way in ("down", "up"))
        rank = _rank(path, shapes, down, up)
        used |= {down, up}
        yield Layer(
            part=KOHYA_PREFIXES[prefix],
            name=name.removeprefix(prefix).removeprefix("text_model_"),
            file=path,
            down=down,
            up=up,
            rank=rank,
            alpha=alphas.get(f"{name}.alpha", float(rank)),
            says_alpha=f"{name}.alpha" in alphas,
        )
    _refuse_rest(path, shapes, used)


def _dotted(
    path: Path, shapes: Shapes, prefix: str, configs: Mapping[str, Mapping[str, Any] | None]
) -> Iterator[Layer]:
    """Names with dots: diffusers' start with the part, peft's with `prefix`.

    configs: part -> what peft's LoraConfig was, None where nobody says.
    """
    used: set[str] = set()
    for down in sorted(shapes):
        pair = next((pair for pair in _PAIRS if down.endswith(pair[0])), None)
        if pair is None or not down.startswith(prefix):
            continue  # the other half of a pair, or named below
        layer = down.removesuffix(pair[0]).removeprefix(prefix)
        up = down.removesuffix(pair[0]) + pair[1]
        if prefix:
            part = "text_encoder" if layer.startswith(("text_model.", "encoder.layers.")) else "unet"
        else:
            part, _, layer = layer.partition(".")
            if part not in PARTS:
                continue
        rank = _rank(path, shapes, down, up)
        used |= {down, up}
        layer, config = layer.removeprefix("text_model."), configs[part]
        yield Layer(
            part=part,
            name=layer.replace(".", "_"),
            file=path,
            down=down,
            up=up,
            rank=rank,
            alpha=float(rank) if config is None else _alpha(path, config, layer, rank),
            says_alpha=config is not None,
        )
    if used:
        _refuse_rest(path, shapes, used)


def _rank(path: Path, shapes: Shapes, down: str, up: str) -> int:
    for name in (down, up):
        if name not in shapes:
            raise ValueError(f"the LoRA {path} lacks {name}, so it is not whole; get it again")
    rank = shapes[down][0] if len(shapes[down]) in (2, 4) else 0
    if rank < 1 or len(shapes[up]) not in (2, 4) or shapes[up][1] != rank:
        raise ValueError(
            f"the LoRA {path} is broken: {down} of {list(shapes[down])} does not go with {up} of {list(shapes[up])}; "
            "get it again"
        )
    return rank


def _refuse_rest(path: Path, shapes: Shapes, used: set[str]) -> None:
    if rest := sorted(set(shapes) - used):
        raise ValueError(f"the LoRA {path} holds {rest[0]}, which is no part of a plain LoRA; give one without it")


def _numbers(path: Path, names: list[str]) -> dict[str, float]:
    """kohya's alphas. Raises ValueError for one that is no number above 0."""
    if not names:
        return {}
    from safetensors import safe_open

    numbers: dict[str, float] = {}
    with safe_open(path, "pt") as file:
        for name in names:
            tensor = file.get_tensor(name)
            numbers[name] = float(tensor.flatten()[0]) if tensor.numel() == 1 else math.nan
            _check_alpha(path, name, numbers[name])
    return numbers


def _check_alpha(path: Path, name: str, alpha: Any) -> None:
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < math.inf:
        raise ValueError(f"the LoRA {path} says {name} = {alpha}; it must be a number above 0, get the file again")


def _diffusers_configs(path: Path, metadata: Mapping[str, str]) -> dict[str, Mapping[str, Any] | None]:
    """Part -> its LoraConfig in the file's metadata, without which diffusers takes alpha for the rank."""
    if METADATA not in metadata:
        return dict.fromkeys(PARTS)
    try:
        stored = json.loads(metadata[METADATA])
    except (ValueError, RecursionError):
        stored = None
    if not isinstance(stored, dict):
        raise ValueError(f"the LoRA {path} has a broken {METADATA}; get it again")
    configs: dict[str, Mapping[str, Any] | None] = {}
    for part in PARTS:
        found = {key.removeprefix(f"{part}."): value for key, value in stored.items() if key.startswith(f"{part}.")}
        configs[part] = found or None
        _refuse_kinds(path, found)
    return configs


def _peft_config(path: Path) -> Mapping[str, Any]:
    from ..sd15.source import read_json

    beside = path.parent / PEFT_CONFIG
    if not beside.is_file():
        raise ValueError(f"the LoRA {path} is in peft's format, and its alpha is in {PEFT_CONFIG}: put that beside it")
    config = read_json(beside)
    if (kind := config.get("peft_type", "LORA")) != "LORA":
        raise ValueError(f"{beside} is of peft's kind {kind}, and only a plain LoRA can be used here; give one")
    _refuse_kinds(path, config)
    return config


def _refuse_kinds(path: Path, config: Mapping[str, Any]) -> None:
    start = str(config.get("init_lora_weights", "")).lower()
    kinds = {
        "a DoRA (use_dora)": config.get("use_dora"),
        "a LoRA with biases (lora_bias)": config.get("lora_bias"),
        f"a LoRA that changed the base too (init_lora_weights = {start})": start.startswith(_CHANGED_BASE),
    }
    for kind, there in kinds.items():
        if there:
            raise ValueError(f"the LoRA {path} is {kind}, and only a plain LoRA can be used here; give one without it")


def _alpha(path: Path, config: Mapping[str, Any], layer: str, rank: int) -> float:
    """alpha as if the scale were alpha / rank: peft has patterns of names, and divides by sqrt(rank) if told so
    (Kalajdzievski 2023, arXiv:2312.03732)."""
    said = _by_pattern(path, config, "rank_pattern", layer, config.get("r"))
    if said not in (None, rank):
        raise ValueError(f"the LoRA {path} has the rank {rank} in {layer}, and its settings say {said}; get it again")
    alpha = _by_pattern(path, config, "alpha_pattern", layer, config.get("lora_alpha"))
    _check_alpha(path, "lora_alpha", alpha)
    return float(alpha) * (math.sqrt(rank) if config.get("use_rslora") else 1.0)


def _by_pattern(path: Path, config: Mapping[str, Any], key: str, layer: str, default: Any) -> Any:
    """peft's rule: the first pattern that the end of the layer's path matches."""
    patterns = config.get(key)
    for pattern, value in (patterns if isinstance(patterns, dict) else {}).items():
        try:
            matched = re.match(rf"(.*\.)?({pattern})$", f"text_model.{layer}")
        except re.error:
            raise ValueError(f"the LoRA {path} has a broken {key}: {pattern!r}; get it again") from None
        if matched:
            return value
    return default
