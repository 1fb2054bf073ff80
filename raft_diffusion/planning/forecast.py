"""The arithmetic before the hours: what a run will make, and about how long and how large it will be. No torch.

Legend: P prompts a round, G groups a prompt, K candidates a group, N = P * G * K candidates a round.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..checks import ranks_by_person
from ..core.config import Config
from ..core.halving import guided_calls
from ..core.records import OWN
from ..core.timing import clock
from ..places import places_of
from ..sources import own_share
from .machine import Machine, gpu_advice, this_machine
from .memory import TOWER_BATCH, peak_memory, short_of_memory
from .networks import Networks, find_networks
from .nfe import (
    Stage,
    guided_shares,
    images_per_round,
    log_ratio_looks,
    look_images,
    per_candidate,
    sampling_rows,
    stages,
    unet_calls,
)
from .parts import Parts, find_parts
from .speed import Measured, Speed, apple_speed, card_speed, cpu_speed
from .walk import FLOAT, Cost

__all__ = ["Forecast", "clock", "forecast", "size", "this_machine"]

EXAMPLES = 36  # pairs of pictures that an evaluation keeps

# Measured on the carried model's pictures: 1.3 to 1.7 bytes a pixel as PNG; each has a line of 0.6 kB beside it.
PNG_BYTES = 1.5
LINE_BYTES = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a run will make and take. Seconds and bytes are estimates; all other numbers are exact where every round is
    run.

    prompts, groups_per_prompt, candidates: P, G and K of a round; images: N of all rounds.
    unet_evaluations: of one picture or half of a guided one, for the candidates of all rounds; the evaluation's apart.
    guard_images: what the guard looks at before the first round and after each; seconds_guard: its first look, the
    others are in the rounds' seconds.
    tuning_steps, tuning_samples: optimiser steps and pictures trained on, in all rounds.
    seconds: the whole run, from the start of the program to the evaluation; peak_memory: bytes on `device`.
    known: whether the speed was measured on such a device; measured: what was timed on this one, if anything was;
    basis: where the speed comes from, and notes: sentences for people.
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
    guard_images: int
    guard_unet_evaluations: int
    evaluation_images: int
    evaluation_unet_evaluations: int
    seconds_start: float
    seconds_per_round: float
    seconds_guard: float
    seconds_evaluation: float
    peak_memory_bytes: int
    disk_bytes: int
    device: str
    known: bool
    measured: Measured | None
    basis: str
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
        return self.seconds_start + self.seconds_guard + self.rounds * self.seconds_per_round + self.seconds_evaluation

    def sentence(self) -> str:
        """One line before a run."""
        return (
            f"{self.rounds} rounds x {self.groups} groups x {self.candidates} candidates = {self.images} images of "
            f"{self.width} x {self.height} px in {self.steps} steps each, {self.tuning_steps // self.rounds} tuning "
            f"steps a round; about {clock(self.seconds)} and {size(self.peak_memory_bytes)} on {self.device}"
        )


def forecast(config: Config, *, machine: Machine, measured: Measured | None = None) -> Forecast:
    """What a run of `config` makes and takes on `machine`.

    measured: what `measure.measure` timed with the same settings; the predicted times are corrected by it.
    Raises ValueError for a model, a sampler, a size or a device that the run would refuse, too.
    """
    sampling, tuning, tests = config.sampling, config.tuning, config.evaluation
    device = machine.device(config.device)
    threads = config.threads or machine.cores
    networks = find_networks(config.model)
    latent = _latent_size(config, networks)
    images, ood_pairs = images_per_round(config), tests.ood_pairs if config.prompts.held_out else 0
    tested, looked = 2 * (tests.pairs + ood_pairs), look_images(config)
    calls, looks = unet_calls(sampling.scheduler, sampling.num_inference_steps, networks), log_ratio_looks(config)
    as_used = calls + (len(guided_calls(calls, sampling.guidance_interval)) if sampling.guidance_scale > 1 else 0)
    guided = any(guided_shares(config)) or sampling.guidance_scale > 1
    most = max(images, tests.pairs, ood_pairs, looked)

    def peak(changed: Config) -> int:
        parts = find_parts(changed, networks, latent=latent, device=device)
        return peak_memory(changed, parts, device=device, guided=guided, images=images, most=most)

    parts = find_parts(config, networks, latent=latent, device=device)
    speed = _speed(device, threads, machine)
    if measured is not None:
        rows = sampling_rows(config)
        speed = speed.corrected(measured, predicted=speed.forward(parts.unet, rows), rows=rows)
    notes = [*parts.notes, *_notes(config, machine, device)]
    look = _as_used(config, parts, speed, count=looked, calls=calls)
    there = machine.card_memory if device == "cuda" else machine.memory
    short = None if there is None else short_of_memory(config, peak, there=there, say=size)
    return Forecast(
        prompts=config.prompts.per_round or len(config.prompts.train),
        groups_per_prompt=sampling.groups_per_prompt,
        candidates=sampling.samples_per_prompt,
        rounds=config.rounds,
        images=config.rounds * images,
        width=sampling.width,
        height=sampling.height,
        steps=sampling.num_inference_steps,
        unet_evaluations=round(images * sum(per_candidate(config, calls, share) for share in guided_shares(config))),
        tuning_steps=config.rounds * tuning.steps,
        tuning_samples=config.rounds * tuning.steps * tuning.gradient_accumulation * tuning.batch_size,
        guard_images=(config.rounds + 1) * looked,
        guard_unet_evaluations=(config.rounds + 1) * looked * as_used,
        evaluation_images=tested,
        evaluation_unet_evaluations=tested * (as_used + looks),
        seconds_start=speed.start + parts.weights / 1e9,  # a disk reads about 1 GB a second
        seconds_per_round=_round(config, parts, speed, measured, images=images, calls=calls) + look,
        seconds_guard=look,
        seconds_evaluation=_as_used(config, parts, speed, count=tested, calls=calls, looks=looks),
        peak_memory_bytes=peak(config),
        disk_bytes=_disk(config, parts, latent, images),
        device=f"{threads} CPU thread{'s' * (threads > 1)}" if device == "cpu" else _card_name(device, machine),
        known=speed.known,
        measured=measured,
        basis=speed.basis,
        notes=tuple(notes if short is None else [*notes, short]),
    )


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


def _round(config: Config, parts: Parts, speed: Speed, measured: Measured | None, *, images: int, calls: int) -> float:
    """Seconds to sample, decode and score the candidates, and to learn from the winners: the mean over the rounds,
    which differ where the guidance of the candidates ends."""
    tuning, batch = config.tuning, config.sampling.batch_size
    if measured is not None:
        step = measured.tuning_seconds
    else:
        half = tuning.mixed_precision != "no"
        step = speed.train(parts.unet, tuning.batch_size, half=half, recompute=tuning.gradient_checkpointing)
        if tuning.text_encoder:
            step += speed.train(parts.text_encoder, tuning.batch_size, half=half)
        if tuning.anti_drift:
            step += speed.forward(parts.unet, tuning.batch_size)
    guided, decoder, looks = guided_shares(config), parts.tiny_decoder, log_ratio_looks(config)
    share = sum(guided) / len(guided)
    own = round(own_share(config) * images)

    def candidates(twice: bool) -> float:
        gone = stages(config, calls, guided=twice)
        drawn = _drawn(parts, decoder, speed, count=own, batch=batch, gone=gone)
        if config.sampling.prune in ("preview", "predicted_x0"):
            for stage in gone[:-1]:
                drawn += _looked(parts, decoder, speed, count=round(stage.alive * own), batch=batch)
        left = round(gone[-1].alive * images)
        return drawn + _scored(parts, speed, count=left, batch=batch, looks=looks)

    sampled = share * candidates(True) + (1 - share) * candidates(False)
    sampled += (images - own) * speed.forward(parts.encoder, 1)
    return sampled + tuning.steps * tuning.gradient_accumulation * step


def _as_used(config: Config, parts: Parts, speed: Speed, *, count: int, calls: int, looks: int = 0) -> float:
    """Seconds of pictures as the user samples them: the evaluation's and the guard's."""
    sampling, batch = config.sampling, config.sampling.batch_size
    twice = len(guided_calls(calls, sampling.guidance_interval)) if sampling.guidance_scale > 1 else 0
    drawn = _drawn(parts, parts.decoder, speed, count=count, batch=batch, gone=[Stage(1, calls - twice, twice)])
    return drawn + _scored(parts, speed, count=count, batch=batch, looks=looks)


def _drawn(parts: Parts, decoder: Cost, speed: Speed, *, count: int, batch: int, gone: Sequence[Stage]) -> float:
    """Seconds to sample `count` pictures and decode those that are left, batch by batch."""
    total = 0.0
    for stage in gone:
        for n, times in _batches(round(stage.alive * count), batch):
            total += times * stage.once * speed.forward(parts.unet, n)
            total += times * stage.twice * speed.forward(parts.unet, 2 * n)
    left = round(gone[-1].alive * count)
    return total + sum(times * speed.forward(decoder, n) for n, times in _batches(left, batch))


def _looked(parts: Parts, decoder: Cost, speed: Speed, *, count: int, batch: int) -> float:
    """Seconds to decode and rank `count` pictures that are not finished."""
    seen = sum(times * speed.forward(decoder, n) for n, times in _batches(count, batch))
    return seen + _scored(parts, speed, count=count, batch=batch, looks=0)


def _scored(parts: Parts, speed: Speed, *, count: int, batch: int, looks: int) -> float:
    """Seconds to score `count` pictures, wherever they come from."""
    total = sum(times * looks * speed.forward(parts.unet, n) for n, times in _batches(count, batch))
    for n, times in _batches(count, TOWER_BATCH):
        total += times * sum(speed.forward(tower, n) for tower in parts.towers)
    return total


def _batches(count: int, size: int) -> list[tuple[int, int]]:
    """(pictures a batch, number of such batches)."""
    return [(n, times) for n, times in ((size, count // size), (count % size, 1)) if n and times]


def _disk(config: Config, parts: Parts, latent: tuple[int, int], images: int) -> int:
    picture = PNG_BYTES * config.sampling.width * config.sampling.height
    kept = picture + LINE_BYTES + FLOAT * 4 * latent[0] * latent[1]
    shown = 2 * EXAMPLES * picture * (1 + 4 / 3)  # once as files, once in the page as base64
    return round(config.rounds * ((images + _winners(config, images)) * kept + parts.adapter) + parts.adapter + shown)


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


def _notes(config: Config, machine: Machine, device: str) -> list[str]:
    notes = [f"{key}: {place}" for key, place in places_of(config).items()]
    if ranks_by_person(config.rewards.weights):
        notes.append("you rank every round: the time that you take to choose is not counted")
    others = [source for source in config.sampling.sources if source != OWN]
    if others:
        own = round(own_share(config) * config.sampling.samples_per_prompt)
        notes.append(
            f"{config.sampling.samples_per_prompt - own} of the {config.sampling.samples_per_prompt} candidates of a "
            f"contest come from {', '.join(others)}, without the UNet; what a program of your own takes is not counted"
        )
    if config.sampling.prune:
        whole = config.with_overrides(["sampling.prune=none"])
        calls = unet_calls(config.sampling.scheduler, config.sampling.num_inference_steps, find_networks(config.model))
        cost, full = (sum(per_candidate(c, calls, s) for s in guided_shares(c)) for c in (config, whole))
        notes.append(
            f"pruning takes {cost / full:.0%} of the UNet evaluations of whole contests, "
            f"{round(images_per_round(config) * (full - cost)):,} fewer, as long as the early ranking can be trusted"
        )
    if config.rewards.custom:
        notes.append("reward functions of your own are not counted")
    if device == "cuda" and machine.card is None:
        notes.append("no NVIDIA card is seen here")
    if config.stop_when_flat is not None:
        notes.append(f"the run may end earlier: after {config.stop_when_flat} rounds without a better reward")
    advice = gpu_advice(machine.card, machine.torch_cuda) if device == "cpu" and config.device == "auto" else None
    return [*notes, *([advice] if advice else [])]


def size(count: float) -> str:
    """Bytes in the unit that fits, decimal: "9.6 MB", "1.6 GB"."""
    if count < 1e3:
        return f"{count:.0f} bytes"
    unit = next(unit for unit in ("kB", "MB", "GB", "TB") if count < 1000 * _UNITS[unit] * 0.9995 or unit == "TB")
    return f"{count / _UNITS[unit]:.3g} {unit}"


_UNITS = {"kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
