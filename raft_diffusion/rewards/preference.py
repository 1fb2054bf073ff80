"""Models of human preference: PickScore and HPSv2.1, both CLIP ViT-H/14 finetuned on people's choices.

Each has weights of its own, so nothing is shared with the tower of `text_image`. As a ranking reward or, with the
prefix "held_out.", as a judge that took no part in the ranking.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.loop import Reward
from . import PREFERENCES
from .clip import ClipTower
from .heads import offline

MODEL = "ViT-H-14"  # as open_clip names it; its tokenizer serves both


@dataclass(frozen=True, slots=True)
class Published:
    """Where the weights are: a file of a hub repository at a pinned commit."""

    repository: str
    revision: str
    file: str
    sha256: str


PUBLISHED = {
    "pickscore": Published(
        "yuvalkirstain/PickScore_v1",
        "a4e4367c6dfa7288a00c550414478f865b875800",
        "model.safetensors",
        "ef31ef6fc5ff4d9bb90dd232df4e145887ba62c5a03aa2841415f8c25f18d52e",
    ),
    "hpsv2.1": Published(
        "xswu/HPSv2",
        "697403c78157020a1ae59d23f111aa58ced35b0a",
        "HPS_v2.1_compressed.pt",
        "c57a38fb4a2f7e7c15bf00da2ea377cdf165448b4dd1052a484c215a998c9837",
    ),
}


def load_preference(
    name: str,
    *,
    source: str | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    batch_size: int = 16,
    prefix: str = "",
) -> Reward:
    """The reward "pickscore" or "hpsv2.1", whose only score is called so, behind the prefix.

    pickscore: cosine x exp(logit_scale), as its authors score (arXiv:2305.01569).
    hpsv2.1: 100 x cosine, as it is reported (arXiv:2306.09341); the authors' code gives the cosine itself.
    source: a file of weights, or a folder with it; none: the published file from the hub, at a pinned commit and with
        a pinned sha256. PickScore is safetensors in the layout of transformers' CLIPModel; a config.json beside
        it is followed. HPSv2.1 is open_clip's layout, safetensors or .pt, of which only tensors are unpickled.
    Raises ValueError for what is missing, broken or of another shape.
    """
    if name not in PREFERENCES:
        raise ValueError(f"unknown preference model {name!r}: it must be one of {', '.join(PREFERENCES)}")
    path = _find(name, source)
    load = _load_pickscore if name == "pickscore" else _load_hps
    try:
        model, scale, resize_mode = load(path)
    except pickle.UnpicklingError as error:  # torch's own sentence advises to load it unsafely
        raise ValueError(f"{name}: {path} cannot be loaded: it is broken or holds more than tensors") from error
    except Exception as error:
        told = (" ".join(str(error).split()) or type(error).__name__)[:300]
        raise ValueError(f"{name}: {path} cannot be loaded: {told}") from error
    import open_clip

    tokenize: Any = open_clip.get_tokenizer(MODEL)
    return ClipTower(
        model,
        tokenize,
        mean=open_clip.OPENAI_DATASET_MEAN,
        std=open_clip.OPENAI_DATASET_STD,
        heads={},
        resize_mode=resize_mode,
        text_score=name,
        scale=scale,
        device=device,
        dtype=dtype,
        batch_size=batch_size,
        prefix=prefix,
    )


def pickscore_config() -> Any:
    """transformers' configuration of PickScore's published shape: ViT-H/14, 986,109,441 weights."""
    from transformers import CLIPConfig

    return CLIPConfig(
        vision_config={
            "hidden_size": 1280,
            "intermediate_size": 5120,
            "num_hidden_layers": 32,
            "num_attention_heads": 16,
            "patch_size": 14,
            "image_size": 224,
            "hidden_act": "gelu",
            "projection_dim": 1024,
        },
        text_config={
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "max_position_embeddings": 77,
            "vocab_size": 49408,
            "hidden_act": "gelu",
            "projection_dim": 1024,
        },
        projection_dim=1024,
    )


class _Encoders(torch.nn.Module):
    """transformers' CLIPModel with the methods that `ClipTower` calls, named as open_clip names them."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.visual = model, model.config.vision_config

    def encode_image(self, pixels: Tensor) -> Tensor:
        return self.model.visual_projection(self.model.vision_model(pixel_values=pixels).pooler_output)

    def encode_text(self, ids: Tensor) -> Tensor:
        return self.model.text_projection(self.model.text_model(input_ids=ids).pooler_output)


def _load_pickscore(path: Path) -> tuple[torch.nn.Module, float, str]:
    from safetensors.torch import load_file
    from transformers import CLIPConfig, CLIPModel

    if path.suffix != ".safetensors":
        raise ValueError("it must be safetensors, such as the published model.safetensors")
    config = pickscore_config()
    if os.path.isfile(path.parent / "config.json"):
        config = CLIPConfig.from_pretrained(path.parent, local_files_only=True)
    weights = {key: value for key, value in load_file(path).items() if not key.endswith("position_ids")}
    with torch.device("meta"):  # no time and memory for weights that are replaced at once
        model = CLIPModel(config)
    model.load_state_dict(weights, assign=True)
    embeddings: tuple[Any, ...] = (model.text_model.embeddings, model.vision_model.embeddings)
    for part in embeddings:  # a plain count, which the file does not hold
        part.position_ids = torch.arange(part.position_ids.shape[-1])[None]
    return _Encoders(model), model.logit_scale.detach().float().exp().item(), "shortest"


def _load_hps(path: Path) -> tuple[torch.nn.Module, float, str]:
    """HPSv2's own code fits the longest side and pads with black, unlike the ViT-H/14 that it was tuned from."""
    import open_clip

    model = open_clip.create_model(MODEL, pretrained=str(path), require_pretrained=True, weights_only=True)
    return model, 100.0, "longest"


def _find(name: str, source: str | None) -> Path:
    published = PUBLISHED[name]
    if source is None:
        return _from_hub(name, published)
    path = Path(os.path.expanduser(source))
    if os.path.isdir(path):
        file = path / published.file
        path = file if os.path.isfile(file) else file.with_suffix(".safetensors")
    if not os.path.isfile(path):
        raise ValueError(
            f"rewards.sources.{name}: {source} is neither a file of weights nor a folder with {published.file}; give "
            f"one, or leave the setting out to have it downloaded from {published.repository}"
        )
    return path


def _from_hub(name: str, published: Published) -> Path:
    """The pinned file, from the hub's cache or over the network; its sha256 is checked whenever it is loaded."""
    from huggingface_hub import hf_hub_download

    download: Callable[..., str] = hf_hub_download
    instead = f"download it yourself and give it with --set rewards.sources.{name}=FILE"
    try:
        path = Path(download(published.repository, published.file, revision=published.revision))
    except Exception as error:
        why = "HF_HUB_OFFLINE forbids to download it" if offline() else " ".join(str(error).split())[:200]
        raise ValueError(
            f"{name}: {published.repository}/{published.file} cannot be had ({why}): try again, or {instead}"
        ) from error
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != published.sha256:
        raise ValueError(
            f"{name}: {path} is not the published file (sha256 {found[:12]}..., not {published.sha256[:12]}...): "
            f"delete it and try again, or {instead}"
        )
    return path
