"""Which model a name stands for, and whether it can be used here: told before any weights are loaded. No torch."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from . import HUB_ID
from .checkpoint import PICKLES, SUPPORTED, check_kind, other_unet, read_header
from .hub import fetch

POCKET = Path(__file__).parents[1] / "pocket" / "weights" / "model"
"""The folder of the small model that the package carries."""
DELETED = {"runwayml/stable-diffusion-v1-5": HUB_ID}
"""Hub ids that old guides name and the hub no longer has -> where the same weights are now."""
_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]*\w", re.ASCII)
_PIPELINES = {
    "StableDiffusionXL": "an SDXL model",
    "StableDiffusion3": "a Stable Diffusion 3 model",
    "Flux": "a FLUX model",
}
"""Pipelines of diffusers by the start of their names."""


def resolve_model(name: str | Path) -> str:
    """The folder, .safetensors file or hub id that `name` stands for. Raises ValueError when it can be none.

    "pocket" is the small model inside the package; a folder must hold diffusers' model_index.json; anything else of
    the form "owner/name" is taken for a hub id.
    """
    path = POCKET if str(name) == "pocket" else Path(os.path.expanduser(name))
    if os.path.isdir(path):
        if not os.path.isfile(path / "model_index.json"):
            raise ValueError(f"{path} holds no model_index.json, so it is no model folder in the diffusers layout")
        return str(path)
    if os.path.exists(path):
        return str(path)
    is_file = path.suffix.lower() in (".safetensors", *PICKLES)
    if not is_file and isinstance(name, str) and _HUB_ID.fullmatch(name):
        if new := DELETED.get(name.lower()):
            raise ValueError(f"{name} was deleted from the hub; the same model is there as {new}")
        return name
    raise ValueError(
        f"no model at {str(name)!r}; give a folder in the diffusers layout, a .safetensors checkpoint, "
        f'a hub id such as "{HUB_ID}", or "pocket"'
    )


def check_model(name: str | Path, *, revision: str | None = None, variant: str | None = None) -> str:
    """`resolve_model`, and a look at what is there: a checkpoint's header, or a folder's configurations.

    Of a hub id the configurations are downloaded, a few kB. Raises ValueError, in one sentence, for a model of another
    kind, weights that are missing or pickles, and a revision or variant where there can be none.
    """
    source = resolve_model(name)
    path = Path(source)
    if os.path.exists(path) and revision is not None:
        raise ValueError(
            f"revision {revision!r} is for a model on the hub, and {name} is on this machine; leave it out"
        )
    if os.path.isfile(path):
        if variant is not None:
            raise ValueError(f"variant {variant!r} is for a folder or a hub id, and {name} is one file; leave it out")
        check_kind(read_header(path), path)
    elif os.path.exists(path):
        _check_kind(str(name), lambda file: path / file)
        _check_weights(path / "unet", variant)
    else:
        _check_kind(source, lambda file: fetch(source, file, revision=revision))
    return source


def _check_kind(name: str, find: Callable[[str], Path]) -> None:
    index = read_json(find("model_index.json"))
    pipeline = str(index.get("_class_name"))
    kind = next((what for start, what in _PIPELINES.items() if pipeline.startswith(start)), None)
    if kind is None and not isinstance(index.get("unet"), list):
        kind = f"a {pipeline} without a UNet"
    if kind is None:
        unet, vae = (read_json(find(f"{part}/config.json")) for part in ("unet", "vae"))
        channels, latent = (values.get(key, 4) for values, key in ((unet, "in_channels"), (vae, "latent_channels")))
        kind = other_unet(channels, unet.get("cross_attention_dim"), latent=latent, what="model")
    if kind is not None:
        raise ValueError(f"{name} is {kind}; {SUPPORTED}")


def read_json(path: Path) -> Mapping[str, Any]:
    """The table in a configuration file. Raises ValueError for what is missing or no table."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {path} ({error.strerror}); the model needs it, get it again") from None
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise ValueError(f"{path} is no configuration in JSON; get that file again")
    return values


def _check_weights(folder: Path, variant: str | None) -> None:
    """Refuse a UNet's folder that lacks the weights asked for; it stands for the other parts too."""
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    # "model.fp16.safetensors", or "model.fp16-00001-of-00002.safetensors" of weights in several files
    found = {re.sub(r"-\d+-of-\d+$", "", name.removesuffix(".safetensors")).partition(".")[2] for name in names}
    if (variant or "") in found:
        return
    if not found and any(folder.glob("*.bin")):
        raise ValueError(
            f"{folder} holds its weights as .bin, a pickle, which can run any code when it is opened; get the "
            ".safetensors files of the same model"
        )
    if not found:
        raise ValueError(f"{folder} holds no .safetensors weights; get the model again")
    others = " or ".join(repr(name) for name in sorted(found - {""}))
    advice = [f"set the variant to {others}"] if others else []
    advice += ["leave the variant out"] if "" in found else []
    raise ValueError(
        f"{folder} holds no weights {f'of the variant {variant!r}' if variant else 'without a variant'}; "
        f"{', or '.join(advice)}"
    )
