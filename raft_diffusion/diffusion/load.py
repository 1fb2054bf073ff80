"""Load a Stable Diffusion model once, frozen, as the plain parts that sampling and tuning share."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, AutoencoderTiny, StableDiffusionPipeline, UNet2DConditionModel  # pyright: ignore
from diffusers.utils import logging as diffusers_logging
from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]
from safetensors import SafetensorError, safe_open
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .. import sd15
from ..sd15.checkpoint import TEXT_ENCODER, prediction, read_header
from ..sd15.hub import shortened
from ..sd15.source import check_model, resolve_model
from .ldm import to_ldm
from .vae import check_vae, load_tiny, load_vae

__all__ = ["PREDICTIONS", "Components", "choose_dtype", "load", "resolve_model"]

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
PREDICTIONS = ("epsilon", "v_prediction")
_FAILURES = (OSError, ValueError, RuntimeError, KeyError, SafetensorError, HTTPError)


@dataclass(frozen=True, kw_only=True, eq=False)
class Components:
    """The parts of one text-to-image model. The weights are frozen; only an adapter on top of them ever learns.

    name: "pocket", the folder's or file's name, or the hub id.
    vae_name: that of a VAE other than the model's own, else "".
    tiny_decoder: decodes fast and nearly as well as the VAE (see `Settings.tiny_decoder`); tiny_name: its name.
    """

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler_config: Mapping[str, Any]
    name: str
    vae_name: str = ""
    tiny_decoder: AutoencoderTiny | None = None
    tiny_name: str = ""

    def __post_init__(self) -> None:
        if (
            self.unet.config["in_channels"] != self.vae.config["latent_channels"]
            or self.unet.config["addition_embed_type"]
        ):
            raise ValueError(
                f"this UNet takes {self.unet.config['in_channels']} channels and extra embeddings "
                f"{self.unet.config['addition_embed_type']!r}, so it is no Stable Diffusion 1.x text-to-image model: "
                "inpainting models, SDXL and later ones are not supported"
            )
        if self.scheduler_config.get("rescale_betas_zero_snr") and self.prediction_type == "epsilon":
            raise ValueError(
                f"the noise schedule of {self.name} ends without any signal, where a prediction of the noise says "
                'nothing (arXiv:2305.08891): set prediction_type to "v_prediction" if that is what the model was '
                "trained for"
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
        return next(self.unet.parameters()).device  # diffusers' own property looks through every module

    @property
    def dtype(self) -> torch.dtype:
        return next(self.unet.parameters()).dtype


def choose_dtype(precision: str, device: str) -> torch.dtype:
    """The data type of the frozen weights: "fp32", "fp16", "bf16", or "auto" for what suits the device.

    "auto" is fp32 on the CPU and mps; on a CUDA card bf16, or fp16 where it cannot compute in bf16 (before Ampere).
    Raises ValueError for another name, and for fp16 on the CPU, which computes it slowly or not at all.
    """
    kind = torch.device(device).type
    if precision == "auto":
        if kind != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    if precision not in DTYPES:
        raise ValueError(f"unknown precision {precision!r}; choose from auto, {', '.join(DTYPES)}")
    if precision == "fp16" and kind == "cpu":
        raise ValueError('precision "fp16" needs a GPU; on the CPU choose "fp32" or "bf16"')
    return DTYPES[precision]


def load(
    model: str | Path,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    vae: str | Path | None = None,
    revision: str | None = None,
    variant: str | None = None,
    prediction_type: str | None = None,
    tiny_decoder: str | Path | None = None,
) -> Components:
    """Load a diffusers folder, a .safetensors checkpoint or a hub id (see `resolve_model`), without a safety checker.

    All weights come in `dtype`, whatever they have on disk, frozen and in evaluation mode.
    vae: another VAE than the model's own (see `load_vae`).
    revision, variant: a hub id's branch, tag or commit; which of a model's weights are read, such as "fp16".
    prediction_type: of `PREDICTIONS`, where the model does not say it itself or says it wrong.
    tiny_decoder: the folder or hub id of an `AutoencoderTiny` (see `load_tiny`).
    Raises ValueError in one sentence when there is no such model or VAE, it is of another kind, or cannot be read.
    """
    if prediction_type not in (None, *PREDICTIONS):
        raise ValueError(f"unknown prediction_type {prediction_type!r}; choose from {', '.join(PREDICTIONS)}")
    source = check_model(model, revision=revision, variant=variant)
    if vae is not None:
        check_vae(Path(vae))
    try:
        if os.path.isfile(source):
            pipe = _from_file(Path(source), dtype)
        else:
            pipe = StableDiffusionPipeline.from_pretrained(
                source,
                dtype=dtype,
                revision=revision,
                variant=variant,
                use_safetensors=True,
                safety_checker=None,
                feature_extractor=None,
                requires_safety_checker=False,
            )
    except _FAILURES as error:
        raise ValueError(_failure(source, variant, error)) from error
    parts: dict[str, Any] = {"unet": pipe.unet, "vae": pipe.vae, "text_encoder": pipe.text_encoder}
    if vae is not None:
        parts["vae"] = load_vae(Path(vae), like=pipe.vae)
    if tiny_decoder is not None:
        parts["tiny_decoder"] = load_tiny(tiny_decoder, like=pipe.vae)
    for part in parts.values():
        part.requires_grad_(False).eval().to(device)
    return Components(
        **parts,
        tokenizer=pipe.tokenizer,
        scheduler_config=_scheduler_config(pipe.scheduler.config, prediction_type),
        name=_name(str(model)),
        vae_name=Path(vae).name if vae is not None else "",
        tiny_name=_name(str(tiny_decoder)) if tiny_decoder is not None else "",
    )


def _scheduler_config(config: Mapping[str, Any], prediction_type: str | None) -> dict[str, Any]:
    if prediction_type is None:
        return dict(config)
    # Another scheduler made from this takes a default of its own for what is listed as left out by the model.
    unsaid = [key for key in config.get("_use_default_values", ()) if key != "prediction_type"]
    return {**config, "prediction_type": prediction_type, "_use_default_values": unsaid}


def _from_file(path: Path, dtype: torch.dtype) -> Any:
    """A checkpoint in the LDM layout. What it lacks, the configurations and the tokenizer, is written for it."""
    predicts, zero_snr = prediction(read_header(path), path)
    with tempfile.TemporaryDirectory() as name, _quiet():
        folder = Path(name)
        sd15.write_skeleton(folder, prediction_type=predicts, zero_terminal_snr=zero_snr)
        try:
            return StableDiffusionPipeline.from_single_file(
                str(path),
                config=name,
                local_files_only=True,
                torch_dtype=dtype,
                text_encoder=_text_encoder(path, folder / "text_encoder", dtype),
                safety_checker=None,
                requires_safety_checker=False,
            )
        except NotImplementedError:  # a weight that the file lacks has no data to be moved
            raise ValueError(_missing(path)) from None


def _missing(path: Path) -> str:
    with init_empty_weights():
        unet, vae = (
            kind.from_config(sd15.config(part)).state_dict()  # pyright: ignore
            for kind, part in ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae"))
        )
    there = read_header(path).tensors
    names = [name for name in to_ldm(unet, vae, {}, config=sd15.config("unet")) if name not in there]
    return f"{len(names)} weights are missing, such as {names[0]}" if names else "weights are missing"


@contextmanager
def _quiet() -> Iterator[None]:
    """diffusers warns of every cast of a model, and of tensors that a checkpoint may well have beside its weights."""
    before = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(before)


def _text_encoder(path: Path, folder: Path, dtype: torch.dtype) -> CLIPTextModel:
    """diffusers' own reader leaves out what is missing, and refuses the old files that lack the level `text_model`."""
    with init_empty_weights():
        encoder = CLIPTextModel(CLIPTextConfig.from_pretrained(folder))
    with safe_open(path, "pt") as file:
        weights = {
            name.removeprefix(TEXT_ENCODER).removeprefix("text_model."): file.get_tensor(name).to(dtype)
            for name in file.keys()  # noqa: SIM118
            if name.startswith(TEXT_ENCODER) and not name.endswith(".position_ids")
        }
    encoder.load_state_dict(weights, assign=True)
    return encoder


def _failure(source: str, variant: str | None, error: Exception) -> str:
    path = Path(source)
    files = [path] if os.path.isfile(path) else sorted(path.rglob("*.safetensors"))
    if broken := next(filter(_is_broken, files), None):
        return f"the weights {broken} are damaged or cut off; get that file again"
    whole = "be whole" if os.path.exists(path) else f"be there{f' with the variant {variant}' if variant else ''}"
    return f"cannot load the model {source!r} ({shortened(error)}); its safetensors weights must {whole}"


def _name(model: str) -> str:
    path = Path(os.path.expanduser(model))
    return path.resolve().name if model != "pocket" and os.path.exists(path) else model


def _is_broken(path: Path) -> bool:
    try:
        with safe_open(path, "pt"):
            return False
    except SafetensorError:
        return True
