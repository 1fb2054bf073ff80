"""A LoRA as one file in kohya's format, which every WebUI reads: names, tensors, bytes.

Three tensors a module: `<name>.lora_down.weight` (r, in), `<name>.lora_up.weight` (out, r), `<name>.alpha` (a number);
the layer's change is alpha / r * up @ down (Hu et al. 2021, arXiv:2106.09685). Nothing here imports torch at once.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .tensors import DTYPES, header, tensor_bytes

if TYPE_CHECKING:
    import torch

    from .file import StoredLora

PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te_"}
DOWN, UP, ALPHA = "lora_down.weight", "lora_up.weight", "alpha"
UNKNOWN_TO_KOHYA = ("conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2")
HEADER_LIMIT = 2**20  # bytes: ComfyUI shows no metadata of a longer header


@dataclass(frozen=True, slots=True)
class Module:
    """One layer's LoRA in float32.

    part: "unet" or "text_encoder"; path: the layer's dotted name in diffusers, without `text_model.`.
    down: (r, in) or (r, in, k, k); up: (out, r) or (out, r, 1, 1). The layer changes by alpha / r * up @ down.
    """

    part: str
    path: str
    down: torch.Tensor
    up: torch.Tensor
    alpha: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]


def kohya_name(part: str, path: str) -> str:
    """kohya's name of a module: "unet", "down_blocks.0.attentions.0.proj_in" -> "lora_unet_down_blocks_0_...".

    transformers 5.6 dropped the level `text_model` of a CLIP text encoder; readers drop the file where it is missing.
    """
    if part == "text_encoder" and not path.startswith("text_model."):
        path = f"text_model.{path}"
    return PREFIXES[part] + path.replace(".", "_")


def read_modules(lora: StoredLora) -> list[Module]:
    """The weights of an adapter in diffusers' format, in the order of their names.

    Raises ValueError for another format, whose names do not tell the layers' paths.
    """
    from safetensors import safe_open

    if lora.format != "diffusers":
        raise ValueError(f"{lora.path} is in {lora.format}'s format, and a run's adapter in diffusers'; put that back")
    modules = []
    with safe_open(lora.path, "pt") as file:
        for layer in sorted(lora.layers, key=lambda layer: layer.down):
            path = layer.down.removeprefix(f"{layer.part}.").removeprefix("text_model.").rpartition(".lora")[0]
            down, up = (file.get_tensor(name).float() for name in (layer.down, layer.up))
            modules.append(Module(layer.part, path, down, up, layer.alpha))
    return modules


def to_kohya(modules: Sequence[Module], *, dtype: str) -> dict[str, torch.Tensor]:
    """The tensors by kohya's names, sorted.

    One alpha is written for the UNet and one for the text encoder, the most frequent, because diffusers takes one for
    all; what another alpha, or its rounding to `dtype`, leaves over goes into that layer's `lora_up`.
    dtype: "fp16", "bf16" or "fp32". Raises ValueError for numbers that are not finite, or too large for it.
    """
    number = DTYPES[dtype]
    alphas = {part: _common_alpha([m for m in modules if m.part == part], number) for part in {m.part for m in modules}}
    tensors: dict[str, torch.Tensor] = {}
    for module in modules:
        name, alpha = kohya_name(module.part, module.path), alphas[module.part]
        down, up = module.down, module.up * (module.alpha / alpha.item())
        if dtype == "fp16":
            down, up = _levelled(down, up)
        for kind, values in ((DOWN, down), (UP, up)):
            tensors[f"{name}.{kind}"] = cast(values, dtype, what=f"{module.part}.{module.path}")
        tensors[f"{name}.{ALPHA}"] = alpha.clone()
    return dict(sorted(tensors.items()))


def _common_alpha(modules: Sequence[Module], number: str) -> torch.Tensor:
    """() of the dtype; the rank where the alpha is nothing or infinite in it."""
    import torch

    alpha = torch.tensor(Counter(module.alpha for module in modules).most_common(1)[0][0], dtype=torch.float64)
    alpha = alpha.to(getattr(torch, number))
    return alpha if 0 < alpha.item() < math.inf else torch.full_like(alpha, modules[0].rank)


def cast(values: torch.Tensor, dtype: str, *, what: str) -> torch.Tensor:
    """Contiguous, as "fp16", "bf16" or "fp32". Raises ValueError, naming `what`, for numbers that are not finite or too
    large for it."""
    import torch

    number = getattr(torch, DTYPES[dtype])
    if not values.isfinite().all():
        raise ValueError(f"the LoRA of {what} holds numbers that are not finite, and would paint black; train it anew")
    if values.abs().max() > torch.finfo(number).max:
        raise ValueError(f"the LoRA of {what} holds numbers too large for {dtype}; export with --dtype fp32")
    return values.to(number).contiguous()


def _levelled(down: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """float16 has fewer than 11 bits for numbers below 6e-5, as `up` holds them early in a training: then a power of
    two goes from `down` to `up`, and their product stays what it was."""
    small, large = up.abs().max().item(), down.abs().max().item()
    if not 0 < small < 2**-10 or small >= large or not math.isfinite(large):
        return down, up
    factor = 2.0 ** math.floor(math.log2(large / small) / 2)
    return down / factor, up * factor


def change_norm(down: torch.Tensor, up: torch.Tensor) -> float:
    """The Frobenius norm of up @ down without making it: its square is the sum over (up^T up) * (down down^T).

    down: (r, in, ...); up: (out, r, ...); float64 inside.
    """
    d, u = down.double().flatten(1), up.double().flatten(1)
    return math.sqrt(max(0.0, ((u.T @ u) * (d @ d.T)).sum().item()))


def with_hashes(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata with the hashes that WebUIs know the file by.

    `sshs_model_hash` and `modelspec.hash_sha256`: of the bytes after the header. `sshs_legacy_hash`: the first 8 digits
    of that of the file's bytes 0x100000 to 0x110000, which lie behind the header, so the hash is no part of itself.
    Raises ValueError for a header of 1 MiB or more.
    """
    body = b"".join(tensor_bytes(tensors[name]) for name in sorted(tensors))
    digest = hashlib.sha256(body).hexdigest()
    hashes = {"sshs_model_hash": digest, "sshs_legacy_hash": "0" * 8, "modelspec.hash_sha256": f"0x{digest}"}
    size = len(header(tensors, {**metadata, **hashes}))
    if size >= HEADER_LIMIT:
        raise ValueError(
            f"the LoRA's header would be {size} bytes, and ComfyUI shows none above {HEADER_LIMIT}; "
            "leave the prompts out with --no-tags, or the picture with --no-preview"
        )
    legacy = hashlib.sha256(body[0x100000 - size : 0x110000 - size]).hexdigest()[:8]
    return {**metadata, **hashes, "sshs_legacy_hash": legacy}
