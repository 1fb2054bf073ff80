"""A LoRA baked into its model, W + strength * alpha / rank * up @ down: a diffusers folder, or one checkpoint file.

The sum is taken in float32 and rounded once. torch is imported late.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from .. import sd15
from ..core.records import Progress
from ..sd15.source import check_model, resolve_model
from .file import StoredLora, find_lora, lora_name, read_lora
from .tensors import DTYPES, write_tensors

if TYPE_CHECKING:
    import torch

    from ..diffusion.load import Components

"""Called with (stage, done, total): ("merge", layers) and then ("write", bytes)."""
SUFFIX = ".safetensors"
POCKET = "pocket"
SPARE = 64 * 2**20  # bytes beside the weights: a tokenizer, and a disk that is not filled to its last block
_PUBLISHED = {
    "unet": ("block_out_channels", "layers_per_block", "attention_head_dim", "cross_attention_dim", "down_block_types"),
    "vae": ("block_out_channels", "layers_per_block", "latent_channels", "scaling_factor"),
    "text_encoder": ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "hidden_act"),
}
"""The settings that must be Stable Diffusion 1.5's in a checkpoint file."""
_PARTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Merge:
    """What is merged into what. out: a checkpoint where it ends in .safetensors, else a folder.

    lora_name: what the LoRA is called in the result. strength: 0 is the base, 1 the LoRA as it was trained.
    dtype: of `DTYPES`.
    """

    model: str
    revision: str | None
    variant: str | None
    lora: StoredLora
    lora_name: str
    out: Path
    strength: float
    dtype: str

    @property
    def is_file(self) -> bool:
        return self.out.suffix == SUFFIX


def plan_merge(
    model: str,
    lora: Path,
    out: Path,
    *,
    strength: float = 1.0,
    dtype: str = "fp16",
    revision: str | None = None,
    variant: str | None = None,
    force: bool = False,
) -> Merge:
    """Check everything that can be known to fail before the model is loaded; nothing is written. Raises ValueError."""
    if not math.isfinite(strength):
        raise ValueError(f"--strength is {strength}; it must be a finite number, such as 0.8")
    if dtype not in DTYPES:
        raise ValueError(f"unknown --dtype {dtype!r}; choose from {', '.join(DTYPES)}")
    source = check_model(model, revision=revision, variant=variant)
    stored = read_lora(find_lora(lora))
    if out.suffix == SUFFIX and source == resolve_model(POCKET):
        raise ValueError(
            f"--out {out}: the carried model is of a size of its own, which a checkpoint file has no word for; "
            "name a folder"
        )
    _check_target(out, [Path(source), lora], force=force)
    return Merge(
        model=model,
        revision=revision,
        variant=variant,
        lora=stored,
        lora_name=lora_name(lora),
        out=out,
        strength=strength,
        dtype=dtype,
    )


def _check_target(out: Path, sources: list[Path], *, force: bool) -> None:
    target = out.resolve()
    for source in (path.resolve() for path in sources if os.path.exists(path)):
        if target == source or target in source.parents:
            raise ValueError(f"--out {out} is or holds {source}, which is read; name another place")
    if os.path.exists(out):
        if not force:
            raise ValueError(f"{out} is there already: give --force to replace it, or another name with --out")
        is_model = os.path.isfile(out / "model_index.json") or (os.path.isdir(out) and not any(out.iterdir()))
        if os.path.isdir(out) != (out.suffix != SUFFIX) or not (os.path.isfile(out) or is_model):
            raise ValueError(f"--force replaces a model alone, and {out} is none; give another name with --out")
    there = next(path for path in out.absolute().parents if os.path.exists(path))
    if not os.path.isdir(there) or not os.access(there, os.W_OK):
        raise ValueError(f"--out {out}: {there} is no folder that can be written to; give another one")


def load_model(merge: Merge) -> Components:
    """The model in float32 on the CPU, which holds fp16 and bf16 exactly. Raises ValueError as `diffusion.load` does,
    for a model that a checkpoint file cannot hold, and for a disk that is too small."""
    import torch

    from ..diffusion.load import load

    components = load(merge.model, device="cpu", dtype=torch.float32, revision=merge.revision, variant=merge.variant)
    if merge.is_file:
        _check_layout(merge, components)
    needed = merge_size(merge, components)
    there = next(path for path in merge.out.absolute().parents if os.path.exists(path))
    free = shutil.disk_usage(there).free
    if free < needed + SPARE:
        raise ValueError(f"--out {merge.out} needs {needed / 1e9:.2f} GB, and {there} has {free / 1e9:.2f} GB left")
    return components


def _check_layout(merge: Merge, components: Components) -> None:
    """Whoever reads a checkpoint file takes it for Stable Diffusion 1.5, which the file itself cannot contradict."""
    for part, keys in _PUBLISHED.items():
        config = getattr(components, part).config
        for key in keys:
            found, wanted = (getattr(values, key) for values in (config, SimpleNamespace(**sd15.config(part))))
            if (list(found) if isinstance(found, tuple) else found) != wanted:
                raise ValueError(
                    f"{merge.model} is no Stable Diffusion 1.5 ({part}.{key} is {found}, not {wanted}), so no program "
                    "could read it as one file; name a folder with --out"
                )


def merge_size(merge: Merge, components: Components) -> int:
    """Bytes of the weights as they will be written."""
    import torch

    size = torch.finfo(getattr(torch, DTYPES[merge.dtype])).bits // 8
    return size * sum(p.numel() for part in _PARTS for p in getattr(components, part).parameters())


def bake(merge: Merge, components: Components, progress: Progress) -> None:
    """Add the LoRA to the model's weights and bring them to the data type, in place.

    Raises ValueError for a LoRA that does not fit, and for weights that the data type cannot hold.
    """
    import torch

    from ..diffusion.lora_weights import load_weights

    layers = load_weights(merge.lora, components)
    with torch.no_grad():
        for done, layer in enumerate(layers, 1):
            if merge.strength:  # adding zeros would turn -0.0 into 0.0
                weight = getattr(components, layer.part).get_submodule(layer.path).weight
                weight += layer.delta() * merge.strength
            progress("merge", done, len(layers))
        for part in _PARTS:
            for name, parameter in getattr(components, part).named_parameters():
                parameter.data = parameter.data.to(getattr(torch, DTYPES[merge.dtype]))
                if not parameter.isfinite().all():
                    raise ValueError(
                        f"{part}.{name} of {merge.model} with the LoRA at {merge.strength} is not finite in "
                        f"{merge.dtype}; lower --strength, or give --dtype bf16"
                    )


def write(merge: Merge, components: Components, progress: Progress) -> None:
    """Write the model whole or not at all."""
    states = {part: _state(part, getattr(components, part)) for part in _PARTS}
    total = merge_size(merge, components)
    done = 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        progress("write", done, total)

    merge.out.parent.mkdir(parents=True, exist_ok=True)
    with _aside(merge.out) as fresh:
        if merge.is_file:
            _write_file(fresh, merge, components, states, count)
        else:
            _write_folder(fresh, merge, components, states, count)


def _state(part: str, model: Any) -> dict[str, torch.Tensor]:
    """The weights by their published names; transformers 5 dropped the level `text_model` in the text encoder."""
    prefix = "text_model." if part == "text_encoder" else ""
    return {f"{prefix}{name.removeprefix(prefix)}": parameter.data for name, parameter in model.named_parameters()}


@contextmanager
def _aside(out: Path) -> Iterator[Path]:
    """A place beside `out` that takes its name at the end, and is taken away where something fails."""
    fresh, old = (out.with_name(f".{out.name}.{kind}") for kind in ("partial", "old"))
    _remove(fresh)
    try:
        yield fresh
        if os.path.isdir(out):  # a folder that holds something cannot be replaced in one step
            _remove(old)
            out.rename(old)
        os.replace(fresh, out)
    except BaseException:
        if os.path.exists(old) and not os.path.exists(out):
            old.rename(out)
        _remove(fresh)
        raise
    _remove(old)


def _remove(path: Path) -> None:
    if os.path.isdir(path):
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _write_file(
    path: Path, merge: Merge, components: Components, states: Mapping[str, Any], count: Callable[[int], None]
) -> None:
    import torch

    from ..diffusion.ldm import to_ldm

    tensors = to_ldm(states["unet"], states["vae"], states["text_encoder"], config=components.unet.config)
    if components.prediction_type == "v_prediction":  # the keys by which readers know such a model
        tensors["v_pred"] = torch.zeros(0)
    if components.scheduler_config.get("rescale_betas_zero_snr"):
        tensors["ztsnr"] = torch.zeros(0)
    metadata = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1",
        "modelspec.title": merge.out.stem,
        "modelspec.prediction_type": "v" if components.prediction_type == "v_prediction" else "epsilon",
        **{f"raft.{key}": str(value) for key, value in _facts(merge, components).items()},
    }
    write_tensors(path, tensors, metadata, count=count)


def _write_folder(
    folder: Path, merge: Merge, components: Components, states: Mapping[str, Any], count: Callable[[int], None]
) -> None:
    for part, stem in _PARTS.items():
        (folder / part).mkdir(parents=True)
        _write_json(folder / part / "config.json", _config(merge, part, getattr(components, part)))
        target = folder / part / f"{stem}{SUFFIX}"
        write_tensors(target, states[part], {"format": "pt"}, count=count)
    scheduler = _said(components.scheduler_config)
    (folder / "scheduler").mkdir()
    _write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    _write_tokenizer(folder / "tokenizer", components.tokenizer)
    _write_json(folder / "merge.json", _facts(merge, components))
    _write_json(folder / "model_index.json", {**sd15.model_index(scheduler), "image_encoder": [None, None]})


def _config(merge: Merge, part: str, model: Any) -> dict[str, Any]:
    if part == "text_encoder":
        config = model.config.to_diff_dict()
        return _said(config | {"architectures": ["CLIPTextModel"], "dtype": DTYPES[merge.dtype]})
    return _said({**model.config, "_class_name": type(model).__name__})


def _said(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration's file said: without what diffusers filled in, and the place that it was read from."""
    left_out = {"_name_or_path", "_use_default_values", *config.get("_use_default_values", ())}
    return {key: value for key, value in config.items() if key not in left_out}


def _write_tokenizer(folder: Path, tokenizer: Any) -> None:
    """As transformers 5 writes it, and vocab.json and merges.txt, which is what its forerunners read."""
    tokenizer.save_pretrained(folder)
    tokenizer.backend_tokenizer.model.save(str(folder))
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    _write_json(path, {k: v for k, v in settings.items() if k not in ("is_local", "local_files_only", "name_or_path")})


def _facts(merge: Merge, components: Components) -> dict[str, Any]:
    """What the model is made of: names, no places."""
    return {
        "model": components.name,
        "lora": merge.lora_name,
        "strength": merge.strength,
        "dtype": merge.dtype,
        "version": version("raft-diffusion"),
    }


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
