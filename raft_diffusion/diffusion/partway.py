"""Pictures on their way from noise: the denoising, which may stop after any call of the UNet and go on with some.

Legend: B pictures a batch, C latent channels, (h, w) the latent's size, T tokens, D the text width.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch._dynamo.exc import TorchDynamoException

from ..core.halving import guided_calls
from ..core.records import Draw
from ..webui import shortened
from .settings import Settings


@dataclass(frozen=True, slots=True, eq=False)
class Partway:
    """Pictures after `done` calls of the UNet.

    latents: (B, C, h, w), float32 on the device, as the scheduler has them.
    generators: one on the CPU for each picture; all of its noise comes from it.
    scheduler: as it stands, with what it remembers of these pictures.
    foreseen: (B, C, h, w), the finished latents as the last call predicts them; None before the first.
    divergence: (B,), the distances between the predictions with and without the prompt, summed over the calls so far
        (Wang et al. 2025, arXiv:2505.23343); 0 where nothing was guided.
    """

    draws: tuple[Draw, ...]
    latents: torch.Tensor
    generators: tuple[torch.Generator, ...]
    scheduler: Any
    done: int
    foreseen: torch.Tensor | None
    divergence: torch.Tensor

    def split(self) -> list[Partway]:
        """Each picture by itself."""

        def part(row: int) -> Partway:
            of = slice(row, row + 1)
            return Partway(
                self.draws[of],
                self.latents[of],
                self.generators[of],
                _remembering(self.scheduler, self.latents.shape, lambda _, tensor: tensor[of]),
                self.done,
                None if self.foreseen is None else self.foreseen[of],
                self.divergence[of],
            )

        return [part(row) for row in range(len(self.draws))]


def joined(parts: Sequence[Partway]) -> Partway:
    """Pictures that stand after the same call, as one batch, which leaves them as they are."""
    first = parts[0]
    memories = [_memory(part.scheduler, part.latents.shape) for part in parts]
    whole = _remembering(
        first.scheduler, first.latents.shape, lambda place, _: torch.cat([memory[place] for memory in memories])
    )
    foreseen = [part.foreseen for part in parts if part.foreseen is not None]
    return Partway(
        tuple(draw for part in parts for draw in part.draws),
        torch.cat([part.latents for part in parts]),
        tuple(generator.clone_state() for part in parts for generator in part.generators),
        whole,
        first.done,
        torch.cat(foreseen) if foreseen else None,
        torch.cat([part.divergence for part in parts]),
    )


Place = tuple[str, int]
"""Of a tensor in a scheduler: its attribute, and which of a list's it is."""


def _memory(scheduler: Any, shape: torch.Size) -> dict[Place, torch.Tensor]:
    """What a scheduler remembers of the pictures: every tensor of their shape, alone or in a list."""
    return {
        (name, number): item
        for name, value in vars(scheduler).items()
        for number, item in enumerate(value if isinstance(value, list) else [value])
        if isinstance(item, torch.Tensor) and item.shape == shape
    }


def _remembering(scheduler: Any, shape: torch.Size, change: Callable[[Place, torch.Tensor], torch.Tensor]) -> Any:
    """A copy of the scheduler, independent of it, that remembers something else of the pictures."""
    twin = copy.copy(scheduler)
    memory = _memory(scheduler, shape)
    for name, value in vars(scheduler).items():
        if isinstance(value, list):
            items = [change((name, n), item) if (name, n) in memory else item for n, item in enumerate(value)]
            setattr(twin, name, items)
        elif (name, 0) in memory:
            setattr(twin, name, change((name, 0), value))
    return twin


def begin(draws: Sequence[Draw], settings: Settings, scheduler: Any, *, shape: Sequence[int], device: Any) -> Partway:
    """Noise alone, in latents of `shape` (C, h, w)."""
    generators = tuple(torch.Generator("cpu").manual_seed(draw.seed) for draw in draws)
    scheduler.set_timesteps(settings.num_inference_steps, device=device)
    noise = torch.cat([torch.randn((1, *shape), generator=generator) for generator in generators])
    latents = noise.to(device) * settings.noise_scale * scheduler.init_noise_sigma
    return Partway(
        tuple(draws), latents, generators, scheduler, 0, None, torch.zeros(len(draws), device=latents.device)
    )


@contextmanager
def _compiling() -> Iterator[None]:
    """Where torch cannot compile, it says so in pages: within this context it is one sentence."""
    try:
        yield
    except TorchDynamoException as error:
        reason = shortened(" ".join(str(error).split()), 200)
        raise ValueError(f"torch cannot compile the UNet here ({reason}); set sampling.compile to false") from error


@_compiling()
def advance(
    part: Partway, until: int, settings: Settings, *, unet: Any, text: torch.Tensor, watched: bool = False
) -> Partway:
    """The same pictures after `until` calls of the UNet; what was given is used up.

    text: (B, T, D) of the prompts, after as many of the negative prompts where the settings guide.
    watched: say what is foreseen and how far the predictions diverge; it changes no picture.
    """
    scheduler, latents, divergence, foreseen = part.scheduler, part.latents, part.divergence, part.foreseen
    known = inspect.signature(scheduler.step).parameters
    given = {"eta": settings.eta, "generator": list(part.generators)}
    extra = {key: value for key, value in given.items() if key in known}
    timesteps = scheduler.timesteps
    within = guided_calls(len(timesteps), settings.guidance_interval) if settings.guidance_scale > 1 else range(0)
    for call in range(part.done, until):
        timestep, guided = timesteps[call], call in within
        inputs = scheduler.scale_model_input(latents, timestep).to(text.dtype)
        rows = torch.cat([inputs, inputs]) if guided else inputs
        states = text if guided else text[-len(latents) :]
        output = unet(rows, timestep, encoder_hidden_states=states, return_dict=False)[0].float()
        if guided:
            negative, positive = output.chunk(2)
            output = negative + settings.guidance_scale * (positive - negative)
            if watched:
                divergence = divergence + (positive - negative).flatten(1).norm(dim=1)
        if watched and call == until - 1:
            foreseen = _foreseen(scheduler, inputs.float(), output, timestep)
        latents = scheduler.step(output, timestep, latents, **extra, return_dict=False)[0]
    return replace(part, latents=latents, done=until, foreseen=foreseen, divergence=divergence)


def _foreseen(scheduler: Any, inputs: torch.Tensor, output: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """The clean latents that a prediction means: x_0 in x_t = sqrt(a) x_0 + sqrt(1 - a) eps (Song et al. 2020,
    arXiv:2010.02502, equation 9), or from v = sqrt(a) eps - sqrt(1 - a) x_0 (Salimans and Ho 2022, arXiv:2202.00512).

    A timestep between two noise levels counts as the nearer one.
    """
    levels = scheduler.alphas_cumprod
    alpha = levels[min(max(round(float(timestep)), 0), len(levels) - 1)].to(output)
    if scheduler.config.prediction_type == "v_prediction":
        return alpha.sqrt() * inputs - (1 - alpha).sqrt() * output
    return (inputs - (1 - alpha).sqrt() * output) / alpha.sqrt()
