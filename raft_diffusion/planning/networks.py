"""Which networks a configuration runs, from configuration files alone: no weights, no torch, no network access."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import pocket, sd15
from ..assemble import TOWERS
from ..core.files import read_text

USUAL_TOWER = "ViT-L-14"


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
    """The networks of "pocket", of a model folder, or, for a hub id, those of Stable Diffusion 1.5.

    Raises ValueError for a folder in another layout and for a name that can be none of these.
    """
    folder = pocket.MODEL if model == "pocket" else Path(model).expanduser()
    if folder.exists():
        if not (folder / "model_index.json").is_file():
            raise ValueError(f"{folder} holds no model_index.json, so it is no model folder in the diffusers layout")
        return Networks(
            unet=_read(folder / "unet" / "config.json"),
            vae=_read(folder / "vae" / "config.json"),
            text_encoder=_read(folder / "text_encoder" / "config.json"),
            scheduler=_read(folder / "scheduler" / "scheduler_config.json"),
        )
    if model.count("/") != 1 or model[0] in "./~" or model[-1] == "/":
        raise ValueError(
            f"no model at {model!r}; give a folder in the diffusers layout, "
            f'a hub id such as "{sd15.HUB_ID}", or "pocket"'
        )
    return Networks(
        unet=sd15.config("unet"),
        vae=sd15.config("vae"),
        text_encoder=sd15.config("text_encoder"),
        scheduler=sd15.config("scheduler"),
        note=f"{model} is taken to be of Stable Diffusion 1.5's size; nothing was downloaded to see",
    )


def find_tower(name: str) -> tuple[Mapping[str, Any], str | None]:
    """(model_cfg, note) of a CLIP tower: a carried one, a folder, or "MODEL:PRETRAINED" as open_clip names it.

    A tower whose size cannot be told is taken to be ViT-L-14; the note says so.
    """
    folder = pocket.WEIGHTS / TOWERS[name] if name in TOWERS else Path(name)
    if folder.is_dir():
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
        if path.is_file():
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
