"""The shapes of the carried models: Stable Diffusion 1.5's own classes, small."""

from __future__ import annotations

from collections import Counter, OrderedDict
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .objects import OBJECTS
from .world import STYLES

CONTEXT = 32  # tokens of a prompt
WIDTH = 96  # of the text towers
LAYERS = 2
HEADS = 3
START, END = "<|startoftext|>", "<|endoftext|>"


def build_vocabulary(words: list[str]) -> tuple[dict[str, int], list[str]]:
    """CLIP's byte-level BPE learned on `words` until each is one piece: the vocabulary in CLIP's order (END last) and
    its merges. Of equally frequent pairs the one of lower ids is merged first: the same words always give the same ids.
    """
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = {piece: index for index, piece in enumerate([*letters, *(f"{letter}</w>" for letter in letters)])}
    spelled, merges = [[*word[:-1], word[-1] + "</w>"] for word in words], []
    while counts := Counter(pair for pieces in spelled for pair in pairwise(pieces)):
        left, right = min(counts, key=lambda pair: (-counts[pair], ids[pair[0]], ids[pair[1]]))
        merges.append(f"{left} {right}")
        ids.setdefault(left + right, len(ids))
        for pieces in spelled:
            for at in reversed(range(len(pieces) - 1)):
                if pieces[at : at + 2] == [left, right]:
                    pieces[at : at + 2] = [left + right]
    return {**ids, START: len(ids), END: len(ids) + 1}, merges


def world_words() -> list[str]:
    """The words that get a token of their own: the world's, and some that a user may try."""
    extra = "landscape bad a the of in and with picture painting drawing beautiful small big red blue green style"
    return sorted({word for text in (*STYLES, *OBJECTS, extra) for word in text.split()})


def save_tokenizer(folder: Path, vocabulary: dict[str, int], merges: list[str]) -> None:
    """A transformers CLIPTokenizer folder, made once and checked to know every word of the world."""
    from transformers import CLIPTokenizer

    pairs: Any = [tuple(merge.split(" ")) for merge in merges]
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=pairs, model_max_length=CONTEXT)
    assert len(tokenizer) == len(vocabulary), (len(tokenizer), len(vocabulary))
    for word in world_words():
        ids = tokenizer(word).input_ids
        assert len(ids) == 3, f"{word!r} takes {len(ids) - 2} tokens"
    tokenizer.save_pretrained(folder)


def clip_config(vocabulary: int, width: int) -> dict[str, Any]:
    """open_clip's own JSON config: a ModifiedResNet and a small text transformer."""
    return {
        "model_cfg": {
            "embed_dim": 96,
            "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": width, "head_width": 64},
            "text_cfg": {
                "context_length": CONTEXT,
                "vocab_size": vocabulary,
                "width": WIDTH,
                "heads": HEADS,
                "layers": LAYERS,
            },
        },
        "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic"},
    }


def make_vae() -> Any:
    from diffusers import AutoencoderKL  # pyright: ignore[reportPrivateImportUsage]

    shape: Any = (24, 48, 64)
    down: Any = ("DownEncoderBlock2D",) * 3
    up: Any = ("UpDecoderBlock2D",) * 3
    return AutoencoderKL(
        block_out_channels=shape,
        down_block_types=down,
        up_block_types=up,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
    )


def make_unet() -> Any:
    from diffusers import UNet2DConditionModel  # pyright: ignore[reportPrivateImportUsage]

    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(56, 96, 112),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def make_text_encoder(clip: dict[str, Tensor], vocabulary: int) -> Any:
    """open_clip's text transformer as a CLIPTextModel, as Stable Diffusion 1.5 uses the text tower of CLIP ViT-L/14."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=CONTEXT,
        hidden_act="gelu",
        projection_dim=96,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
    )
    model = CLIPTextModel(config).eval()
    state = text_state(clip)
    flat = not any(name.startswith("text_model.") for name in model.state_dict())
    model.load_state_dict({name.removeprefix("text_model.") if flat else name: v for name, v in state.items()})
    return model


def text_state(clip: dict[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's names of the text tower in CLIPTextModel's published layout."""
    state = OrderedDict()
    state["text_model.embeddings.token_embedding.weight"] = clip["token_embedding.weight"]
    state["text_model.embeddings.position_embedding.weight"] = clip["positional_embedding"]
    parts = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    for layer in range(LAYERS):
        old, new = f"transformer.resblocks.{layer}.", f"text_model.encoder.layers.{layer}."
        for kind in ("weight", "bias"):
            joined = clip[f"{old}attn.in_proj_{kind}"].chunk(3)
            for name, part in zip("qkv", joined, strict=True):
                state[f"{new}self_attn.{name}_proj.{kind}"] = part.clone()
            state[f"{new}self_attn.out_proj.{kind}"] = clip[f"{old}attn.out_proj.{kind}"]
            for source, target in parts.items():
                state[f"{new}{target}.{kind}"] = clip[f"{old}{source}.{kind}"]
    for kind in ("weight", "bias"):
        state[f"text_model.final_layer_norm.{kind}"] = clip[f"ln_final.{kind}"]
    return {name: value.detach().clone().contiguous() for name, value in state.items()}


def make_clip(config: dict[str, Any]) -> Any:
    """The open_clip model of `clip_config`, untrained."""
    import open_clip

    model = open_clip.CLIP(**config["model_cfg"])
    return model.to(torch.float32)
