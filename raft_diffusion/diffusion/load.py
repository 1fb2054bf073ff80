"""Load a Stable Diffusion model once, frozen, as the plain parts that sampling and tuning share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel  # pyright: ignore
from safetensors import SafetensorError, safe_open
from transformers import CLIPTextModel, CLIPTokenizer

from .vae import check_vae, load_vae

POCKET = Path(__file__).parents[1] / "pocket" / "weights" / "model"
"""The folder of the small model that the package carries."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Components:
    """The parts of one text-to-image model. The weights are frozen; only an adapter on top of them ever learns.

    name: "pocket", the folder's name or the hub id. vae_name: that of a VAE other than the model's own, else "".
    """

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler_config: Mapping[str, Any]
    name: str
    vae_name: str = ""

    def __post_init__(self) -> None:
        if (
            self.unet.config["in_channels"] != self.vae.config["latent_channels"]
            or self.unet.config["addition_embed_type"]
        ):
            raise ValueError(
                f"this UNet takes {self.unet.config['in_channels']} channels and extra embeddings "
                f"{self.unet.config['addition_embed_type']!r}, so it is no Stable Diffusion 1.x or 2.x text-to-image "
                "model: inpainting models, SDXL and later ones are not supported"
            )

    @property
    def scale_factor(self) -> int:
        """How many pixels one latent cell spans: 8 for Stable Diffusion, 4 for the pocket model."""
        return 2 ** (len(self.vae.config["block_out_channels"]) - 1)

    @property
    def prediction_type(self) -> str:
        """What the UNet predicts: "epsilon" (the noise) or "v_prediction"."""
        return self.scheduler_config.get("prediction_type", "epsilon")

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype


def resolve_model(name: str | Path) -> str:
    """The folder or hub id that `name` stands for. Raises ValueError when it can be neither.

    "pocket" is the small model inside the package; a folder must hold diffusers' model_index.json; anything else of
    the form "owner/name" is taken for a hub id.
    """
    if str(name) == "pocket":
        folder = POCKET
    elif Path(name).expanduser().exists():
        folder = Path(name).expanduser()
    elif isinstance(name, str) and name.count("/") == 1 and name[0] not in "./~" and name[-1] != "/":
        return name
    else:
        raise ValueError(
            f"no model at {str(name)!r}; give a folder in the diffusers layout, "
            'a hub id such as "stable-diffusion-v1-5/stable-diffusion-v1-5", or "pocket"'
        )
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"{folder} holds no model_index.json, so it is no model folder in the diffusers layout")
    return str(folder)


def load(
    model: str | Path, *, device: torch.device | str, dtype: torch.dtype, vae: str | Path | None = None
) -> Components:
    """Load a diffusers folder or hub id (see `resolve_model`) from safetensors, without the safety checker.

    All weights come in `dtype`, whatever they have on disk, frozen and in evaluation mode.
    vae: another VAE than the model's own (see `load_vae`).
    Raises ValueError in one sentence when there is no such model or VAE, or it cannot be read.
    """
    source = resolve_model(model)
    if vae is not None:
        check_vae(Path(vae))
    try:
        pipe = StableDiffusionPipeline.from_pretrained(
            source,
            dtype=dtype,
            use_safetensors=True,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        if broken := next(filter(_is_broken, sorted(Path(source).rglob("*.safetensors"))), None):
            raise ValueError(f"the weights {broken} are damaged or cut off; get that file again") from error
        reason = " ".join(str(error).split())
        raise ValueError(f"cannot load the model {source!r} ({reason}); it must hold safetensors weights") from error
    parts = {"unet": pipe.unet, "vae": pipe.vae, "text_encoder": pipe.text_encoder}
    if vae is not None:
        parts["vae"] = load_vae(Path(vae), like=pipe.vae)
    for part in parts.values():
        part.requires_grad_(False).eval().to(device)
    return Components(
        **parts,
        tokenizer=pipe.tokenizer,
        scheduler_config=pipe.scheduler.config,
        name=_name(str(model)),
        vae_name=Path(vae).name if vae is not None else "",
    )


def _name(model: str) -> str:
    path = Path(model).expanduser()
    return path.resolve().name if model != "pocket" and path.exists() else model


def _is_broken(path: Path) -> bool:
    try:
        with safe_open(path, "pt"):
            return False
    except SafetensorError:
        return True
