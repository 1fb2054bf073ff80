"""Which networks a configuration runs, from configuration files alone: no weights, no torch, no network access."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import pocket, sd15
from ..checks import TOWERS
from ..core.files import read_text
from ..rewards import PREFERENCES
from ..sd15.checkpoint import check_kind, prediction, read_header
from ..sd15.source import resolve_model

USUAL_TOWER = "ViT-L-14"
PREFERENCE_TOWER = "ViT-H-14"  # what PickScore and HPSv2.1 were made from
TINY = {
    "latent_channels": 4,
    "out_channels": 3,
    "decoder_block_out_channels": (64, 64, 64, 64),
    "num_decoder_blocks": (3, 3, 3, 1),
}
"""What diffusers' AutoencoderTiny is unless its configuration says otherwise: TAESD's own size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Networks:
    """The parts' configurations, as diffusers and transformers store them. note: what was assumed, or none."""

    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text_encoder: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    note: str | None = None

    @property
    def scale_factor(self) -> int:
        """How many pixels one latent cell spans."""
        return 2 ** (len(self.vae["block_out_channels"]) - 1)


def find_networks(model: str) -> Networks:
    """The networks of "pocket", of a model folder, of a checkpoint file, or, for a hub id, Stable Diffusion 1.5's.

    Of a checkpoint the header alone is read.
    Raises ValueError for a folder in another layout, a file that is no Stable Diffusion 1.x checkpoint, and for a name
    that can be none of these.
    """
    source = resolve_model(model)
    path = Path(source)
    if os.path.isfile(path):
        return _of_checkpoint(path)
    if os.path.isdir(path):
        return Networks(
            unet=_read(path / "unet" / "config.json"),
            vae=_read(path / "vae" / "config.json"),
            text_encoder=_read(path / "text_encoder" / "config.json"),
            scheduler=_read(path / "scheduler" / "scheduler_config.json"),
        )
    guess = f"{source} is taken to be of Stable Diffusion 1.5's size; nothing was downloaded to see"
    return _published(None if source == sd15.HUB_ID else guess)


def _published(note: str | None) -> Networks:
    return Networks(
        unet=sd15.config("unet"),
        vae=sd15.config("vae"),
        text_encoder=sd15.config("text_encoder"),
        scheduler=sd15.config("scheduler"),
        note=note,
    )


def _of_checkpoint(path: Path) -> Networks:
    """All Stable Diffusion 1.x text-to-image checkpoints have one size; `check_kind` lets no other through."""
    header = read_header(path)
    check_kind(header, path)
    prediction(header, path)  # refuses a .yaml beside it that cannot be read, as the run does
    return _published(None)


def find_tiny(source: str | None) -> Mapping[str, Any] | None:
    """The configuration of an AutoencoderTiny by its folder or hub id; None for none."""
    if source is None:
        return None
    path = Path(os.path.expanduser(source)) / "config.json"
    return {**TINY, **_read(path)} if os.path.isfile(path) else TINY


def find_tower(name: str) -> tuple[Mapping[str, Any], str | None]:
    """(model_cfg, note) of a CLIP tower: a carried one, a folder, a preference model, or
    "MODEL:PRETRAINED" as open_clip names it.

    A tower whose size cannot be told is taken to be ViT-L-14; the note says so.
    """
    if name in PREFERENCES:
        return _open_clip_config(PREFERENCE_TOWER), None
    folder = pocket.WEIGHTS / TOWERS[name] if name in TOWERS else Path(name)
    if os.path.isdir(folder):
        config = _read(folder / "open_clip_config.json").get("model_cfg", {})
    else:
        config = _open_clip_config(name.partition(":")[0])
    if _is_plain(config):
        return config, None
    return _open_clip_config(USUAL_TOWER), f"the CLIP tower {name} is taken to be of {USUAL_TOWER}'s size"


def _open_clip_config(name: str) -> Mapping[str, Any]:
    """What open_clip's own table says of a model; empty where it has none."""
    found = importlib.util.find_spec("open_clip")  # finds the package, does not import it
    for folder in (found.submodule_search_locations or ()) if found else ():
        path = Path(folder) / "model_configs" / f"{Path(name).name}.json"
        if os.path.isfile(path):
            return _read(path)
    return {}


def _is_plain(config: Mapping[str, Any]) -> bool:
    """Whether both halves are CLIP's own, rather than a library's that the table only names."""
    vision, text = config.get("vision_cfg", {}), config.get("text_cfg", {})
    return "layers" in vision and "width" in vision and "timm_model_name" not in vision and "hf_model_name" not in text


def _read(path: Path) -> dict[str, Any]:
    text = read_text(path, what="configuration", advice="the model's folder must hold it")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"the configuration {path} is no valid JSON ({error}); get the model again") from None
