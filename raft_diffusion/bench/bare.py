"""The floor of a round: the same calls of the same networks, by diffusers and open_clip alone.

The frozen weights are the policy's own, shared and not copied; the modules around them are others, without a LoRA where
candidates are sampled and with one of their own where it is tuned.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any

import torch

from ..core.config import Config
from .result import Work

MIDDLE = 500  # a noise level; what a call takes is the same at each


class Bare:
    """The networks of a policy whose adapter is fresh, and the towers; `parts` are the floor's by their names.

    Each runs what `work` counts for one round, at the round's own batch sizes, on fixed random inputs.
    """

    def __init__(self, policy: Any, towers: Sequence[Any], config: Config, work: Work) -> None:
        parts = policy.components
        self._work, self._towers, self._vae = work, [tower.model for tower in towers], parts.vae
        self._device, self._dtype = parts.device, parts.dtype
        self._learner = _copy(parts.unet, shared=lambda tensor: not tensor.requires_grad)
        self._unet = _copy(parts.unet, shared=lambda tensor: True)
        self._unet.unload_lora()
        if config.tuning.gradient_checkpointing:
            self._learner.enable_gradient_checkpointing()
        self._precision = _precision(config, parts.dtype)
        self._cell = (config.sampling.height // parts.scale_factor, config.sampling.width // parts.scale_factor)
        self._latent = (parts.unet.config["in_channels"], *self._cell)
        self._text = (parts.tokenizer.model_max_length, parts.unet.config["cross_attention_dim"])
        self._decoder = parts.tiny_decoder if config.sampling.tiny_decoder else parts.vae
        self.parts: dict[str, Callable[[], None]] = {
            "unet": self.sample,
            "vae": self.decode,
            "tower": self.look,
            "backward": self.learn,
        }

    @torch.no_grad()
    def sample(self) -> None:
        timestep = torch.tensor(MIDDLE, device=self._device)
        for count, times in self._work.sampled:
            rows = count * self._work.rows
            latents, text = self._random(rows, *self._latent), self._random(rows, *self._text)
            for _ in range(times * self._work.calls):
                self._unet(latents, timestep, encoder_hidden_states=text, return_dict=False)

    @torch.no_grad()
    def decode(self) -> None:
        for count, times in self._work.decoded:
            latents = self._random(count, *self._latent)
            for _ in range(times):
                self._decoder.decode(latents, return_dict=False)

    @torch.inference_mode()
    def look(self) -> None:
        for tower in self._towers:
            size = tower.visual.image_size
            height, width = size if isinstance(size, tuple) else (size, size)
            dtype = next(tower.parameters()).dtype
            for count, times in self._work.scored:
                pictures = self._random(count, 3, height, width).to(dtype)
                for _ in range(times):
                    tower.encode_image(pictures)

    def learn(self) -> None:
        count = self._work.tuned
        latents, text = self._random(count, *self._latent), self._random(count, *self._text)
        timesteps = torch.full((count,), MIDDLE, device=self._device)
        weights = [parameter for parameter in self._learner.parameters() if parameter.requires_grad]
        for _ in range(self._work.passes):
            with self._autocast():
                predicted = self._learner(latents, timesteps, encoder_hidden_states=text, return_dict=False)[0]
            predicted.float().square().mean().backward()
            for weight in weights:
                weight.grad = None

    def _autocast(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._precision is None else torch.autocast(self._device.type, self._precision)

    def _random(self, *shape: int) -> torch.Tensor:
        generator = torch.Generator("cpu").manual_seed(0)
        return torch.randn(shape, generator=generator).to(self._device, self._dtype)


def _precision(config: Config, dtype: torch.dtype) -> torch.dtype | None:
    """Of the tuner's autocast: weights that are float16 are always tuned under it."""
    name = "fp16" if dtype == torch.float16 else config.tuning.mixed_precision
    return {"no": None, "fp16": torch.float16, "bf16": torch.bfloat16}[name]


def _copy(module: Any, *, shared: Callable[[torch.Tensor], bool]) -> Any:
    """The same module around the same tensors, but for those that are not shared."""
    tensors = [tensor for tensor in chain(module.parameters(), module.buffers()) if shared(tensor)]
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})
