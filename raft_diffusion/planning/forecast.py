"""The arithmetic before the hours: what a run will make, and about how long and how large it will be. No torch.

Legend: P prompts a round, G groups a prompt, K candidates a group, N = P * G * K candidates a round.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..assemble import TOWER_REWARDS
from ..core.config import Config
from ..webui import find_scheduler
from .costs import decoder_cost, encoder_cost, text_encoder_cost, tower_cost, unet_cost
from .machine import Machine, gpu_advice, this_machine
from .networks import Networks, find_networks, find_tower
from .speed import FLOAT, Speed, apple_speed, card_speed, cpu_speed
from .walk import Cost

__all__ = ["Forecast", "clock", "forecast", "size", "this_machine", "unet_calls"]

SECOND_ORDER = ("HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler")
TOWER_BATCH = 64  # pictures that a CLIP tower takes at once
EXAMPLES = 36  # pairs of pictures that an evaluation keeps

# Measured with the carried model on Linux, float32: the process holds 0.97 GB once torch, diffusers, transformers,
# peft, accelerate and open_clip are imported, and their caches and the allocator's leftovers grow by another 0.25 GB
# over a run. Beside the tensors themselves come the kernels' copies of them: up to 2.2 times with the carried model's
# narrow layers, whose channels are padded to 16, and 1.0 times with SD 1.5's. Peaks of whole runs on one thread:
# pocket-monet 1.87 GB, pocket-resolution 1.61 GB.
LIBRARIES = 1.25e9
WORKSPACE = 1.6
CARD_CONTEXT = 0.6e9  # CUDA's own share of a card; not measured
CARD_WORKSPACE = 1.0

# Measured on the carried model's pictures: 1.3 to 1.7 bytes a pixel as PNG; each has a line of 0.6 kB beside it.
PNG_BYTES = 1.5
LINE_BYTES = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a run will make and take. Seconds and bytes are estimates; all other numbers are exact where every round is
    run.

    prompts, groups_per_prompt, candidates: P, G and K of a round; images: N of all rounds.
    unet_evaluations: of one picture or half of a guided one, for the candidates of all rounds; the evaluation's apart.
    tuning_steps, tuning_samples: optimiser steps and pictures trained on, in all rounds.
    seconds: the whole run, from the start of the program to the evaluation; peak_memory: bytes on `device`.
    known: whether the speed was measured on such a device; notes: sentences for people.
    """

    prompts: int
    groups_per_prompt: int
    candidates: int
    rounds: int
    images: int
    width: int
    height: int
    steps: int
    unet_evaluations: int
    tuning_steps: int
    tuning_samples: int
    evaluation_images: int
    evaluation_unet_evaluations: int
    seconds_start: float
    seconds_per_round: float
    seconds_evaluation: float
    peak_memory_bytes: int
    disk_bytes: int
    device: str
    known: bool
    notes: tuple[str, ...]

    @property
    def groups(self) -> int:
        """Groups a round."""
        return self.prompts * self.groups_per_prompt

    @property
    def images_per_round(self) -> int:
        return self.groups * self.candidates

    @property
    def seconds(self) -> float:
        return self.seconds_start + self.rounds * self.seconds_per_round + self.seconds_evaluation

    def sentence(self) -> str:
        """One line before a run."""
        return (
            f"{self.rounds} rounds x {self.groups} groups x {self.candidates} candidates = {self.images} images of "
            f"{self.width} x {self.height} px in {self.steps} steps each, {self.tuning_steps // self.rounds} tuning "
            f"steps a round; about {clock(self.seconds)} and {size(self.peak_memory_bytes)} on {self.device}"
        )


def forecast(config: Config, *, machine: Machine) -> Forecast:
    """What a run of `config` makes and takes on `machine`.

    Raises ValueError for a model, a sampler, a size or a device that the run would refuse, too.
    """
    sampling, prompts, tuning = config.sampling, config.prompts, config.tuning
    device = machine.device(config.device)
    threads = config.threads or machine.cores
    networks = find_networks(config.model)
    latent = _latent_size(config, networks)
    count = prompts.per_round or len(prompts.train)
    images = count * sampling.groups_per_prompt * sampling.samples_per_prompt
    tested = 2 * (config.evaluation.pairs + (config.evaluation.ood_pairs if prompts.held_out else 0))
    calls = unet_calls(sampling.scheduler, sampling.num_inference_steps, networks)
    collect = sampling.guidance_scale if sampling.collect_guidance_scale is None else sampling.collect_guidance_scale
    parts, assumed = _parts(config, networks, latent)
    speed = _speed(device, threads, machine)
    steps = tuning.steps * tuning.gradient_accumulation
    tune = steps * speed.train(parts.unet, tuning.batch_size, half=tuning.mixed_precision != "no")
    if tuning.text_encoder:
        tune += steps * speed.train(parts.text_encoder, tuning.batch_size, half=tuning.mixed_precision != "no")
    peak = _peak_memory(config, parts, device=device, guided=max(collect, sampling.guidance_scale) > 1, images=images)
    return Forecast(
        prompts=count,
        groups_per_prompt=sampling.groups_per_prompt,
        candidates=sampling.samples_per_prompt,
        rounds=config.rounds,
        images=config.rounds * images,
        width=sampling.width,
        height=sampling.height,
        steps=sampling.num_inference_steps,
        unet_evaluations=config.rounds * images * calls * (2 if collect > 1 else 1),
        tuning_steps=config.rounds * tuning.steps,
        tuning_samples=config.rounds * steps * tuning.batch_size,
        evaluation_images=tested,
        evaluation_unet_evaluations=tested * calls * (2 if sampling.guidance_scale > 1 else 1),
        seconds_start=speed.start + parts.weights * FLOAT / 1e9,  # a disk reads about 1 GB a second
        seconds_per_round=_pictures(config, parts, speed, count=images, calls=calls, guidance=collect) + tune,
        seconds_evaluation=_pictures(config, parts, speed, count=tested, calls=calls, guidance=sampling.guidance_scale),
        peak_memory_bytes=peak,
        disk_bytes=_disk(config, parts, latent, images),
        device=f"{threads} CPU thread{'s' * (threads > 1)}" if device == "cpu" else _card_name(device, machine),
        known=speed.known,
        notes=_notes(config, machine, device, peak, [networks.note, *assumed, speed.basis]),
    )


def unet_calls(scheduler: str, steps: int, networks: Networks) -> int:
    """How often the UNet runs for one picture, guidance left out: once a step, but some samplers look twice.

    Heun's and DPM2's second look is left out at the last step; PNDM starts with four steps of three more looks
    (Liu et al. 2022, arXiv:2202.09778), or with one more where the model's configuration skips those.
    """
    found = find_scheduler(scheduler)
    if found.kind in SECOND_ORDER:
        return 2 * steps - 1
    if found.kind == "PNDMScheduler":
        skips = {**networks.scheduler, **found.changes}.get("skip_prk_steps", False)
        return steps + (1 if skips else 9)
    return steps


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """What each network takes a picture; weights: numbers that all of them hold; adapter: of the LoRA."""

    unet: Cost
    decoder: Cost
    text_encoder: Cost
    towers: tuple[Cost, ...]
    weights: int
    adapter: int


def _parts(config: Config, networks: Networks, latent: tuple[int, int]) -> tuple[_Parts, list[str | None]]:
    tuning, rewards = config.tuning, config.rewards
    tokens = networks.text_encoder["max_position_embeddings"]
    unet = unet_cost(networks.unet, size=latent, tokens=tokens, rank=tuning.rank, targets=tuning.targets)
    decoder = decoder_cost(networks.vae, size=latent)
    encoder = encoder_cost(networks.vae, size=(config.sampling.height, config.sampling.width))
    words = text_encoder_cost(networks.text_encoder, rank=tuning.rank if tuning.text_encoder else 0)
    names = [rewards.scorer] if set(TOWER_REWARDS) & set(rewards.weights) else []
    names += [rewards.held_out] if rewards.held_out else []
    found = [find_tower(name) for name in names]
    halves = [tower_cost(tower) for tower, _ in found]
    weights = sum(
        part.parameters for part in (unet, decoder, encoder, words, *(half for pair in halves for half in pair))
    )
    parts = _Parts(
        unet=unet,
        decoder=decoder,
        text_encoder=words,
        towers=tuple(picture for picture, _ in halves),
        weights=weights,
        adapter=unet.adapter + words.adapter,
    )
    return parts, [note for _, note in found]


def _latent_size(config: Config, networks: Networks) -> tuple[int, int]:
    """(h, w) of the latents."""
    factor = networks.scale_factor
    for name in ("width", "height"):
        pixels = getattr(config.sampling, name)
        if pixels % factor:
            near = max(factor, round(pixels / factor) * factor)
            raise ValueError(f"{name} is {pixels}; this model needs a multiple of {factor}, such as {near}")
    return config.sampling.height // factor, config.sampling.width // factor


def _speed(device: str, threads: int, machine: Machine) -> Speed:
    if device == "cpu":
        return cpu_speed(threads)
    return apple_speed() if device == "mps" else card_speed(machine.card)


def _pictures(config: Config, parts: _Parts, speed: Speed, *, count: int, calls: int, guidance: float) -> float:
    """Seconds to sample, decode and score `count` pictures, batch by batch."""
    total = 0.0
    for batch, times in _batches(count, config.sampling.batch_size):
        total += times * calls * speed.forward(parts.unet, batch * (2 if guidance > 1 else 1))
        total += times * speed.forward(parts.decoder, batch)
    for batch, times in _batches(count, TOWER_BATCH):
        total += times * sum(speed.forward(tower, batch) for tower in parts.towers)
    return total


def _batches(count: int, size: int) -> list[tuple[int, int]]:
    """(pictures a batch, number of such batches)."""
    return [(n, times) for n, times in ((size, count // size), (count % size, 1)) if n and times]


def _peak_memory(config: Config, parts: _Parts, *, device: str, guided: bool, images: int) -> int:
    sampling, tuning = config.sampling, config.tuning
    batch = min(sampling.batch_size, images)
    workspace = CARD_WORKSPACE if device == "cuda" else WORKSPACE
    stages = (
        workspace * batch * (2 if guided else 1) * parts.unet.live,
        workspace * batch * parts.decoder.live,
        workspace * TOWER_BATCH * max((tower.live for tower in parts.towers), default=0),
        tuning.batch_size * (parts.unet.saved + parts.text_encoder.saved + workspace * parts.unet.live),
    )
    optimiser = 3 * parts.adapter  # gradients and AdamW's two averages
    held = FLOAT * (parts.weights + parts.adapter + optimiser + max(stages))
    if device == "cuda":
        return round(CARD_CONTEXT + held)
    return round(LIBRARIES + held + images * sampling.width * sampling.height * 3)


def _disk(config: Config, parts: _Parts, latent: tuple[int, int], images: int) -> int:
    picture = PNG_BYTES * config.sampling.width * config.sampling.height
    row = picture + LINE_BYTES
    kept = row + FLOAT * 4 * latent[0] * latent[1]
    adapter = FLOAT * parts.adapter
    shown = 2 * EXAMPLES * picture * (1 + 4 / 3)  # once as files, once in the page as base64
    return round(config.rounds * (images * row + _winners(config, images) * kept + adapter) + adapter + shown)


def _winners(config: Config, images: int) -> int:
    """Winners a round."""
    selection = config.selection
    if selection.tau is not None:
        return images
    if selection.top_fraction is not None:
        return math.ceil(selection.top_fraction * images)
    if selection.top_count is not None:
        return min(images, selection.top_count)
    return images // config.sampling.samples_per_prompt * selection.best


def _card_name(device: str, machine: Machine) -> str:
    return machine.card or device if device == "cuda" else "the Mac's GPU"


def _notes(config: Config, machine: Machine, device: str, peak: int, found: list[str | None]) -> tuple[str, ...]:
    notes = [note for note in found if note]
    if config.rewards.custom:
        notes.append("reward functions of your own are not counted")
    if device == "cuda" and machine.card is None:
        notes.append("no NVIDIA card is seen here")
    there = machine.card_memory if device == "cuda" else machine.memory
    if there is not None and peak > there:
        notes.append(
            f"this is more memory than the {size(there)} that are there: lower sampling.batch_size or tuning.batch_size"
        )
    if config.stop_when_flat is not None:
        notes.append(f"the run may end earlier: after {config.stop_when_flat} rounds without a better reward")
    advice = gpu_advice(machine.card, machine.torch_cuda) if device == "cpu" and config.device == "auto" else None
    return (*notes, *([advice] if advice else []))


def clock(seconds: float) -> str:
    """About how long, as a person would say it: "45 s", "1 min 35 s", "12 min", "2 h 10 min", "4 days"."""
    if seconds < 59.5:
        return f"{max(1, round(seconds))} s"
    if seconds < 597.5:
        minutes, rest = divmod(round(seconds / 5) * 5, 60)
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} min"
    if seconds < 48 * 3600:
        hours, minutes = divmod(round(seconds / 600) * 10, 60)
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{round(seconds / 86400)} days"


def size(count: float) -> str:
    """Bytes in the unit that fits, decimal: "9.6 MB", "1.6 GB"."""
    if count < 1e3:
        return f"{count:.0f} bytes"
    unit = next(unit for unit in ("kB", "MB", "GB", "TB") if count < 1000 * _UNITS[unit] * 0.9995 or unit == "TB")
    return f"{count / _UNITS[unit]:.3g} {unit}"


_UNITS = {"kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
