"""The networks of one run as costs: each on one picture (or text) of the run's size, in the run's precision."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.config import Config
from ..guarding import watch_of
from ..rewards import PREFERENCES, TOWER_REWARDS
from .costs import decoder_cost, encoder_cost, text_encoder_cost, tiny_decoder_cost, tower_cost, unet_cost
from .networks import Networks, find_tiny, find_tower
from .walk import FLOAT, Cost

HALF = 2  # bytes of a float16 or bfloat16


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What each network takes. decoder and encoder: the VAE's, and tiny_decoder what decodes candidates, often the
    decoder; towers: their halves for pictures.

    weights: bytes that all networks hold, the LoRA left out; adapter: bytes of the LoRA; notes: what was assumed.
    """

    unet: Cost
    decoder: Cost
    encoder: Cost
    tiny_decoder: Cost
    text_encoder: Cost
    towers: tuple[Cost, ...]
    weights: int
    adapter: int
    notes: tuple[str, ...]


def number_width(precision: str, device: str) -> int:
    """Bytes of a weight in the precision of the settings: "auto" is half precision on a card, else float32."""
    return HALF if precision in ("fp16", "bf16") or (precision == "auto" and device == "cuda") else FLOAT


def find_parts(config: Config, networks: Networks, *, latent: tuple[int, int], device: str) -> Parts:
    """The costs of `config`'s networks on one latent of the given size (h, w)."""
    tuning = config.tuning
    width = number_width(config.precision, device)
    unet = unet_cost(
        networks.unet,
        size=latent,
        tokens=networks.text_encoder["max_position_embeddings"],
        rank=tuning.rank,
        targets=tuning.targets,
        width=width,
        recompute=tuning.gradient_checkpointing,
    )
    words = text_encoder_cost(networks.text_encoder, rank=tuning.rank if tuning.text_encoder else 0, width=width)
    decoder = decoder_cost(networks.vae, size=latent, width=width)
    encoder = encoder_cost(networks.vae, size=(config.sampling.height, config.sampling.width), width=width)
    model = sum(part.weights for part in (unet, words, decoder, encoder))
    tiny = find_tiny(config.sampling.tiny_decoder)
    tiny_decoder = decoder if tiny is None else tiny_decoder_cost(tiny, size=latent, width=width)
    if tiny is not None:
        model += 2 * tiny_decoder.weights  # its encoder is as large
    found = [find_tower(name) for name in _tower_names(config)]
    halves = [tower_cost(tower, width=number_width("auto", device)) for tower, _ in found]
    return Parts(
        unet=unet,
        decoder=decoder,
        encoder=encoder,
        tiny_decoder=tiny_decoder,
        text_encoder=words,
        towers=tuple(picture for picture, _ in halves),
        weights=model + sum(half.weights for pair in halves for half in pair),
        adapter=FLOAT * (unet.adapter + words.adapter),
        notes=tuple(note for note in (networks.note, *(note for _, note in found)) if note),
    )


def _tower_names(config: Config) -> list[str]:
    """The towers that a run loads: the one behind several rewards once."""
    rewards = config.rewards
    names = [rewards.scorer] if set(TOWER_REWARDS) & set(rewards.weights) else []
    names += [name for name in rewards.weights if name in PREFERENCES]
    names += [rewards.held_out] if rewards.held_out else []
    watch = watch_of(config)
    return names if watch is None or watch.model in names else [*names, watch.model]
