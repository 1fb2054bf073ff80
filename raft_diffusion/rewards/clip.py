"""CLIP towers from open_clip: one pass over the pictures gives the text-image score and the aesthetic scores.

Legend: N pictures, D the embedding's width, S the tower's picture size.
"""

from __future__ import annotations

import difflib
import json
import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..core.records import Sample
from ..room import Room

V2_LAYERS = (768, 1024, 128, 64, 16, 1)
RESIZE_MODES = ("shortest", "longest")


class ClipTower:
    """A frozen open_clip model with its aesthetic heads; calling it scores samples.

    tokenize: texts -> token ids (B, T), the end token the highest id, as open_clip pools there.
    heads: name -> module from L2-normalised embeddings (N, D) to scores (N, 1), in float32 whatever `dtype` is.
    resize_mode: the side of a picture that is made S long: "shortest" (the rest is cropped) or "longest" (the rest is
        black), in open_clip's words.
    text_score, scale: what the score of picture and text is called, and what the cosine is multiplied with.
    dtype: of the towers; half precision halves what they need of a GPU's memory.
    prefix: put before every score's name, such as "held_out." for a tower that never ranks.
    """

    in_parts = True
    """Several processes may score parts of the samples."""

    def __init__(
        self,
        model: Any,
        tokenize: Callable[[Sequence[str]], Tensor],
        *,
        mean: Sequence[float],
        std: Sequence[float],
        heads: Mapping[str, torch.nn.Module],
        resize_mode: str = "shortest",
        text_score: str = "text_image",
        scale: float = 100.0,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        batch_size: int = 64,
        prefix: str = "",
    ) -> None:
        self._model = model.eval().requires_grad_(False).to(device, dtype)
        self._heads = {name: head.eval().requires_grad_(False).to(device) for name, head in heads.items()}
        self._tokenize, self._device, self._dtype = tokenize, device, dtype
        self._resize_mode, self._text_score, self._scale = resize_mode, text_score, scale
        self._batch_size, self._prefix = batch_size, prefix
        self._room = Room("scoring")
        self._mean = torch.tensor(mean, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(std, device=device).view(1, 3, 1, 1)
        self._texts: dict[str, Tensor] = {}
        for name, head in self._heads.items():
            probe = self.embed_texts([""])
            try:
                head(probe)
            except RuntimeError as error:
                raise ValueError(
                    f"the head {name!r} does not fit embeddings of width {probe.shape[1]}: use one made for this tower"
                ) from error

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        batch_size: int = 64,
        prefix: str = "",
        aesthetic: Mapping[str, Path] | None = None,
    ) -> ClipTower:
        """A folder with an open_clip config, weights, tokenizer and head, or "MODEL:PRETRAINED" as open_clip names it.

        aesthetic: score name -> file of a LAION head (.pth of v1 or v2, or safetensors); `heads.heads_for` finds them.
        Raises ValueError when something is missing, broken or does not fit.
        """
        heads = {name: load_head(path) for name, path in (aesthetic or {}).items()}
        common = {"device": device, "dtype": dtype, "batch_size": batch_size, "prefix": prefix}
        folder = Path(source)
        if os.path.isdir(folder):
            return cls._from_folder(folder, heads, common)
        name, colon, pretrained = str(source).partition(":")
        if not colon:
            raise ValueError(
                f"no CLIP tower {source}: give a folder, or MODEL:PRETRAINED such as ViT-L-14-quickgelu:openai"
            )
        return cls._from_open_clip(name, pretrained, heads, common)

    @classmethod
    def _from_folder(cls, folder: Path, heads: dict[str, torch.nn.Module], common: dict[str, Any]) -> ClipTower:
        import open_clip
        from transformers import CLIPTokenizer

        try:
            config = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))
            model = open_clip.CLIP(**config["model_cfg"])
            model.load_state_dict(load_file(folder / "open_clip_model.safetensors"))
            length, preprocess = config["model_cfg"]["text_cfg"]["context_length"], config["preprocess_cfg"]
            if not os.path.isdir(folder / "tokenizer"):
                raise FileNotFoundError("it has no folder tokenizer")
            mean, std = preprocess["mean"], preprocess["std"]
            tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        except (OSError, SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"the CLIP tower in {folder} cannot be loaded: {_one_line(error)}") from error
        common["resize_mode"] = _resize_mode(folder, preprocess)
        if len(tokenizer) != model.vocab_size:  # a folder without its files silently makes a vocabulary of 2
            raise ValueError(
                f"the tokenizer in {folder} has {len(tokenizer)} tokens, the text tower {model.vocab_size}: "
                "its tokenizer.json, or vocab.json and merges.txt, must be those that the tower was trained with"
            )
        if tokenizer.eos_token_id != max(tokenizer.get_vocab().values()):
            raise ValueError(f"the tokenizer in {folder} must have its end token as the last id; make it again")

        def tokenize(texts: Sequence[str]) -> Tensor:
            ids = torch.zeros(len(texts), length, dtype=torch.long)
            for row, text in enumerate(texts):
                tokens = tokenizer(text, truncation=True, max_length=length).input_ids
                ids[row, : len(tokens)] = torch.tensor(tokens)
            return ids

        if os.path.exists(folder / "aesthetic.safetensors"):
            heads = {"aesthetic": load_head(folder / "aesthetic.safetensors"), **heads}
        return cls(model, tokenize, mean=mean, std=std, heads=heads, **common)

    @classmethod
    def _from_open_clip(
        cls, name: str, pretrained: str, heads: dict[str, torch.nn.Module], common: dict[str, Any]
    ) -> ClipTower:
        import open_clip

        _check_published(name, pretrained)
        wanted = open_clip.get_pretrained_cfg(name, pretrained).get("quick_gelu", False)
        given = (open_clip.get_model_config(name) or {}).get("quick_gelu", False)
        if open_clip.is_pretrained_cfg(name, pretrained) and wanted != given:
            other = f"{name}-quickgelu" if wanted else name.removesuffix("-quickgelu")
            raise ValueError(f"the weights {name}:{pretrained} need the other kind of GELU: use {other}:{pretrained}")
        try:
            model = open_clip.create_model(name, pretrained=pretrained, require_pretrained=True)
        except Exception as error:
            raise ValueError(f"open_clip cannot load {name}:{pretrained}: {_one_line(error)}") from error
        visual: Any = model.visual
        tokenize: Any = open_clip.get_tokenizer(name)
        common["resize_mode"] = _resize_mode(name, visual.preprocess_cfg)
        mean = getattr(visual, "image_mean", None) or open_clip.OPENAI_DATASET_MEAN
        std = getattr(visual, "image_std", None) or open_clip.OPENAI_DATASET_STD
        return cls(model, tokenize, mean=mean, std=std, heads=heads, **common)

    @property
    def model(self) -> Any:
        """open_clip's own module."""
        return self._model

    @property
    def names(self) -> tuple[str, ...]:
        """What the scores are called."""
        return tuple(self._prefix + name for name in (self._text_score, *self._heads))

    @torch.inference_mode()
    def __call__(self, samples: Sequence[Sample]) -> dict[str, list[float]]:
        """`text_image`: 100 x cosine of picture and prompt. Each head's score by its name, such as `aesthetic`, from
        the same pass over the pictures."""
        image = self.embed_images([sample.data.image for sample in samples])
        text = self.embed_texts([sample.prompt.text for sample in samples])
        scores = {self._text_score: self._scale * (image * text).sum(1)}
        scores |= {name: head(image)[:, 0] for name, head in self._heads.items()}
        return {self._prefix + name: values.cpu().tolist() for name, values in scores.items()}

    @torch.inference_mode()
    def embed_images(self, images: Sequence[Image.Image]) -> Tensor:
        """L2-normalised embeddings (N, D)."""

        def encode(batch: Sequence[Image.Image]) -> Tensor:
            return self._model.encode_image(self.preprocess(batch).to(self._dtype))

        encoded = [part for _, part in self._room.batches(images, self._batch_size, encode)]
        return F.normalize(torch.cat(encoded).float(), dim=-1)

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """L2-normalised embeddings (N, D); each text is encoded once, and alone: its last bits would tell with which
        others it came, and a run that was interrupted would differ from one that was not."""
        for text in dict.fromkeys(texts):
            if text not in self._texts:
                ids = self._tokenize([text]).to(self._device)
                self._texts[text] = F.normalize(self._model.encode_text(ids).float(), dim=-1)[0]
        return torch.stack([self._texts[text] for text in texts])

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """(N, 3, S, S), normalised, on the device: what open_clip's own transform makes of them, two levels of 255 at
        most apart (where the sides do not shrink alike, Pillow may take the axes in the other order, and a hard edge
        may differ by more). Pictures of one size go through together."""
        size = self._model.visual.image_size
        size = size[0] if isinstance(size, tuple) else size
        ready = torch.empty(len(images), 3, size, size, device=self._device)
        for shape in dict.fromkeys(image.size for image in images):
            places = [place for place, image in enumerate(images) if image.size == shape]
            pixels = np.stack([np.asarray(images[place].convert("RGB")) for place in places])
            pixels = torch.from_numpy(pixels).to(self._device).permute(0, 3, 1, 2).float()
            ready[places] = _fit(pixels, size, self._resize_mode)
        return (ready / 255 - self._mean) / self._std


def _fit(pixels: Tensor, size: int, resize_mode: str) -> Tensor:
    """(N, 3, H, W) to (N, 3, S, S), levels of 0 to 255: resized, then the centre cropped or set on black."""
    sides = pixels.shape[2:]
    if resize_mode == "longest":
        height, width = (round(side / (max(sides) / size)) for side in sides)
    else:
        height, width = (size * side // min(sides) for side in sides)
    for target in ((sides[0], width), (height, width)):  # one axis after the other, whole levels between, as PIL does
        if pixels.shape[2:] != target:
            pixels = F.interpolate(pixels, target, mode="bicubic", antialias=True, align_corners=False)
            pixels = (pixels + 0.5).floor().clamp(0, 255)  # halves go up
    if resize_mode == "longest":
        left, top = (size - width) // 2, (size - height) // 2
        return F.pad(pixels, (left, size - width - left, top, size - height - top))
    top, left = (round((side - size) / 2) for side in (height, width))
    return pixels[:, :, top : top + size, left : left + size]


def _check_published(name: str, pretrained: str) -> None:
    """Unknown names get the nearest known ones, for open_clip's own sentence lists hundreds. Weights may be a file.

    "ViT-L/14" is refused too: open_clip would load it, and with the wrong kind of GELU.
    """
    import open_clip

    models, tags = open_clip.list_models(), open_clip.list_pretrained_tags_by_model(name)
    if name not in models:
        what, given, known = "model", name, models
    elif tags and not open_clip.is_pretrained_cfg(name, pretrained) and not os.path.exists(pretrained):
        what, given, known = f"weights of {name}", pretrained, tags
    else:
        return
    near = difflib.get_close_matches(given, known, n=3, cutoff=0.4) or known[:5]
    raise ValueError(f"open_clip knows no {what} called {given!r}: did you mean {' or '.join(near)}?")


def _resize_mode(source: object, preprocess: Mapping[str, Any]) -> str:
    """Which of the two ways of `_fit` a tower wants; another preprocessing would score wrong and say nothing."""
    for key, known in (("interpolation", ("bicubic",)), ("resize_mode", RESIZE_MODES), ("fill_color", (0,))):
        if preprocess.get(key, known[0]) not in known:
            raise ValueError(
                f"the CLIP tower {source} wants pictures with {key} {preprocess[key]!r}; only "
                f"{' and '.join(map(repr, known))} {'are' if len(known) > 1 else 'is'} supported"
            )
    return preprocess.get("resize_mode", RESIZE_MODES[0])


def load_head(path: Path) -> torch.nn.Module:
    """A LAION aesthetic head: v1 is one linear layer, v2 five without activations. Only tensors are ever unpickled.

    Raises ValueError for a file that is missing, broken or of another shape.
    """
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        if "weight" in state:
            head: torch.nn.Module = torch.nn.Linear(state["weight"].shape[1], 1)
        else:
            sizes = pairwise(V2_LAYERS)
            head = torch.nn.Sequential()
            for place, (before, after) in zip((0, 2, 4, 6, 7), sizes, strict=True):
                head.add_module(str(place), torch.nn.Linear(before, after))
            state = {name.removeprefix("layers."): value for name, value in state.items()}
        head.load_state_dict({name: value.float() for name, value in state.items()})
    except pickle.UnpicklingError as error:  # torch's own sentence advises to load it unsafely
        raise ValueError(
            f"the aesthetic head {path} cannot be loaded: it is broken or holds more than tensors"
        ) from error
    except Exception as error:
        raise ValueError(f"the aesthetic head {path} cannot be loaded: {_one_line(error)}") from error
    return head


def diversity(embeddings: Tensor) -> float:
    """Mean pairwise cosine distance of L2-normalised embeddings (N, D) over the N (N - 1) / 2 pairs, from 0 to 2.

    |sum of the vectors|^2 = N + 2 x the sum of the pairs' cosines. Raises ValueError for fewer than two.
    """
    count = len(embeddings)
    if count < 2:
        raise ValueError(f"diversity needs at least 2 embeddings, not {count}")
    total = embeddings.double().sum(0).square().sum().item()
    return 1 - (total - count) / (count * (count - 1))


def mean_distances(embeddings: Tensor) -> list[float]:
    """(N,): the mean cosine distance of each L2-normalised embedding (N, D) to the others; their mean is `diversity`.

    Raises ValueError for fewer than two.
    """
    count = len(embeddings)
    if count < 2:
        raise ValueError(f"a distance to others needs at least 2 embeddings, not {count}")
    vectors = embeddings.double()
    cosines = vectors @ vectors.sum(0) - vectors.square().sum(1)
    return (1 - cosines / (count - 1)).tolist()


def _one_line(error: BaseException) -> str:
    """The error in one line: torch's list of keys that do not fit comes in several."""
    return (" ".join(str(error).split()) or type(error).__name__)[:300]
