"""What a bench measures: the settings of one round, the counts that follow from them, and about how long it takes."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.config import Config
from ..planning.forecast import forecast
from ..planning.machine import Machine
from ..planning.memory import DECODED_PIXELS, TOWER_BATCH
from ..planning.networks import find_networks
from ..planning.nfe import images_per_round, sampling_rows, unet_calls
from ..planning.parts import HALF, find_parts
from ..planning.speed import CARDS, card_key
from .result import Work

SMALL, LARGE = "pocket-monet", "monet-style-cat"
"""The presets whose round is measured: of the carried model, and of all others."""
GROUP = 16  # candidates a group, where the images can be divided so
IMAGES = {SMALL: 256, LARGE: 16}


def bench_config(
    *,
    model: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    size: int | None = None,
    images: int | None = None,
    changes: Sequence[str] = (),
) -> Config:
    """The settings of one round of `images` candidates of `size` x `size` pixels.

    model: the carried one where it is None. changes: as `--set` takes them, on top of all others.
    Raises ValueError for what `load_config` refuses, and for a reward that no CLIP tower gives.
    """
    from ..jobs import load_config

    preset = SMALL if model in (None, "pocket") else LARGE
    count = images or IMAGES[preset]
    group = GROUP if count % GROUP == 0 else count
    own = [
        f"sampling.samples_per_prompt={group}",
        f"sampling.groups_per_prompt={count // group}",
        f"selection.best={min(group, 4 if preset == SMALL else 2)}",
        "rounds=1",
        "guard.enabled=false",
    ]
    own += [f"sampling.width={size}", f"sampling.height={size}"] if size else []
    own += ["rewards.held_out=none"] if preset == LARGE else []
    config = load_config(preset, model=model, device=device, threads=threads, changes=[*own, *changes])
    assert isinstance(config, Config)
    if odd := sorted(set(config.rewards.weights) - {"text_image", "aesthetic"}):
        told = ", ".join(f"rewards.weights.{name}" for name in odd)
        raise ValueError(f"bench times the CLIP towers, which give text_image and aesthetic; leave out {told}")
    if config.sampling.prune or config.sampling.guidance_interval != [0, 1]:
        raise ValueError(
            "bench holds whole contests, guided alike in every step, against their bare networks; leave out "
            "sampling.prune and sampling.guidance_interval"
        )
    return config


def count_work(config: Config, *, device: str) -> Work:
    """What a round of `config` does. device: its kind, such as "cuda"."""
    sampling, tuning = config.sampling, config.tuning
    networks = find_networks(config.model)
    factor = networks.scale_factor
    latent = (sampling.height // factor, sampling.width // factor)
    images = images_per_round(config)
    sampled = batches(images, sampling.batch_size)
    part = max(1, DECODED_PIXELS // (sampling.height * sampling.width))
    return Work(
        images=images,
        sampled=sampled,
        rows=sampling_rows(config) // min(sampling.batch_size, images),
        calls=unet_calls(sampling.scheduler, sampling.num_inference_steps, networks),
        decoded=[(n, times * number) for size, number in sampled for n, times in batches(size, part)],
        scored=batches(images, TOWER_BATCH),
        passes=tuning.steps * tuning.gradient_accumulation,
        tuned=tuning.batch_size,
        flops=find_parts(config, networks, latent=latent, device=device).unet.flops,
    )


def batches(count: int, size: int) -> list[tuple[int, int]]:
    """`count` things, `size` at once at most: (things a batch, number of such batches)."""
    return [(n, times) for n, times in ((size, count // size), (count % size, 1)) if n and times]


def seconds_needed(config: Config, *, repeats: int, machine: Machine) -> float:
    """About how long a bench takes: each repeat is a round and the same calls again, and one more comes first."""
    found = forecast(config, machine=machine)
    return found.seconds_start + 2 * (repeats + 1) * found.seconds_per_round


def peak_flops(device: str, card: str | None, *, width: int) -> float | None:
    """What a card can at best, operations a second, by its maker's data sheet; None where that is not known here.

    device: its kind. width: bytes of the weights.
    """
    key = card_key(card) if device == "cuda" else None
    if key is None:
        return None
    single, half, _ = CARDS[key]
    return 1e12 * (half if width == HALF else single)
