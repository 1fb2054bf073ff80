"""Sample pictures from a frozen Stable Diffusion model under the live adapter: the Policy of the loop.

Legend: B pictures a batch, C latent channels, (h, w) the latent's size, T tokens, D the text width.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..core.records import Draw, Progress, Sample
from ..core.unfinished import Shelf
from ..crew import Crew, Stance, made
from ..lora.file import FILE_NAME, StoredLora, find_lora, read_lora
from ..process import Heap
from ..room import Room
from ..tuning_state import digest_of
from ..webui import Infotext, PromptWarning, find_scheduler, literal_syntax, shortened
from .adapter import Adapter
from .load import Components
from .lora_weights import load_weights
from .partway import Partway, advance, begin, joined
from .pictures import Picture
from .settings import Settings, scheduler_of

DECODED_PIXELS = 2**20
"""Decoded at once: four pictures of 512 x 512, or one that is larger. The VAE's memory grows with it."""


@cache
def _version() -> str:
    return version("raft-diffusion")


def _stored(path: Path) -> StoredLora:
    stored = read_lora(find_lora(path))
    if stored.note:
        warnings.warn(stored.note, stacklevel=3)
    return stored


class DiffusionPolicy:
    """The model that samples, and the LoRA on it that learns. It satisfies `core.loop.Policy`.

    components: the frozen model; the policy puts its adapter into it, so it belongs to one policy.
    settings: how candidates are collected.
    clip_skip: which layer of the text encoder is read, as WebUIs count: 1 is the last, 2 the one before it.
    compiled: sample with the UNet as torch.compile makes it. Its first batches take minutes; what was compiled stays as
        the LoRA learns. The last bits of a picture may then depend on the batches before it.
    progress: called with ("sample", pictures done, pictures in all) after each batch.
    shelf, an attribute: where finished batches and the state of the tuning are kept until their round is.
    crew, an attribute: the processes that share the work, where there are several.
    Raises ValueError when the settings do not fit the model.
    """

    def __init__(
        self,
        components: Components,
        *,
        settings: Settings,
        clip_skip: int = 1,
        compiled: bool = False,
        progress: Progress | None = None,
    ) -> None:
        layers = components.text_encoder.config.num_hidden_layers
        if not 1 <= clip_skip <= layers:
            raise ValueError(
                f"clip_skip is {clip_skip}; this model's text encoder has {layers} layers, so 1 to {layers}"
            )
        self.components = components
        self.unet: Any = torch.compile(components.unet) if compiled else components.unet
        self.settings = settings
        self.clip_skip = clip_skip
        self.adapter: Adapter | None = None
        self.shelf: Shelf | None = None
        self.crew: Crew | None = None
        self._attached: tuple[Path, float] | None = None
        self._is_base = False
        self._progress = progress
        self._embeddings: dict[str, torch.Tensor] = {}
        self._told: set[str] = set()
        self._sampling, self._decoding = Room("sampling", setting="sampling.batch_size"), Room("decoding")
        self._heap = Heap()
        self._scheduler(settings)

    def add_adapter(
        self,
        *,
        rank: int,
        alpha: float,
        targets: Sequence[str] = ("attention",),
        text_encoder: bool = False,
        seed: int = 0,
        start: Path | None = None,
    ) -> None:
        """Put a fresh LoRA on the model (see `Adapter`); it changes nothing until it is trained or loaded.

        start: a LoRA to begin with instead, as `attach` takes it, of `rank` at most.
        """
        self.adapter = Adapter(
            self.components,
            rank=rank,
            alpha=alpha,
            targets=targets,
            text_encoder=text_encoder,
            seed=seed,
            start=load_weights(_stored(start), self.components) if start else (),
        )

    @property
    def trained(self) -> Adapter:
        """The adapter. Raises ValueError when there is none."""
        if self.adapter is None:
            raise ValueError("this policy has no adapter to train, save or load; call add_adapter first")
        return self.adapter

    def save(self, folder: Path) -> None:
        """Write the adapter into `folder` (see `Adapter.save`)."""
        self.trained.save(folder)

    def load(self, folder: Path) -> None:
        """Set the adapter to the one in `folder`, bit by bit (see `Adapter.load`)."""
        self.trained.load(folder)

    def attach(self, path: Path, *, scale: float = 1.0) -> None:
        """Put a stored LoRA on the model, multiplied by `scale`: 0 is the base, 1 the LoRA as it was trained.

        path: a file in kohya's, diffusers' or peft's format, a folder with one, or a run's folder (its last complete
        round). Layers that it lacks stay as they are.
        Raises ValueError when there is none, or it does not fit; warns where its alpha had to be assumed.
        """
        if not math.isfinite(scale):
            raise ValueError(f"the LoRA's scale is {scale}; it must be a finite number, such as 0.8")
        stored = _stored(path)
        weights = load_weights(stored, self.components)
        self.adapter = Adapter(
            self.components,
            rank=stored.rank,
            alpha=stored.alpha,
            targets=(),
            text_encoder=False,
            seed=0,
            start=weights,
        )
        self.trained.set_strength(scale)
        self._attached = (path, scale)

    def base(self) -> AbstractContextManager[None]:
        """Within this context the policy is the untouched base model."""
        return self._with_adapter(False)

    def tuned(self) -> AbstractContextManager[None]:
        """Within this context the adapter is on, also where one of `base` lies around it."""
        return self._with_adapter(True)

    @contextmanager
    def at_strength(self, strength: float) -> Iterator[None]:
        """Within this context the LoRA counts `strength` times: 1 is as it was trained."""
        before = self.trained.strength
        self.trained.set_strength(strength)
        try:
            yield
        finally:
            self.trained.set_strength(before)

    @contextmanager
    def _with_adapter(self, on: bool) -> Iterator[None]:
        before = self._is_base
        self._switch(on)
        try:
            yield
        finally:
            self._switch(not before)

    def _switch(self, on: bool) -> None:
        if self.adapter is not None:
            self.adapter.enable(on)
            self._is_base = not on

    @torch.no_grad()
    def generate(self, draws: Sequence[Draw], settings: Settings | None = None) -> list[Sample]:
        """One picture for each draw, in order, from the weights as they are now.

        A picture follows from its draw's prompt and seed and the settings alone, never from its neighbours.
        Its image says how it was made: `image.info["parameters"]` holds the text of a `webui.Infotext`.
        settings: other than the policy's own, say for an evaluation.
        Raises ValueError when the settings do not fit the model, and when a picture is not finite.
        """
        settings = settings or self.settings
        self._scheduler(settings)
        made_of = self.made_of(settings) if self.shelf else None
        samples: list[Sample] = []
        batches = [draws[start : start + settings.batch_size] for start in range(0, len(draws), settings.batch_size)]
        for answers in made(batches, settings, self, shelf=self.shelf, made_of=made_of, crew=self.crew):
            samples += answers
            if self._progress:
                self._progress("sample", len(samples), len(draws))
        return samples

    def stance(self) -> Stance:
        """How the adapter stands; a helper that takes it samples as this policy does."""
        weights = {name: value.detach().cpu() for name, value in self.trained.parameters().items()}
        return Stance(weights=weights, on=not self._is_base, strength=self.trained.strength)

    @torch.no_grad()
    def take(self, stance: Stance) -> None:
        """Stand as another process's policy of the same settings does."""
        for name, parameter in self.trained.parameters().items():
            parameter.copy_(stance.weights[name])
        self.trained.set_strength(stance.strength)
        self._switch(stance.on)

    def made_of(self, settings: Settings) -> list[object]:
        """What samples follow from beside their draws and the frozen model."""
        adapter = None if self._is_base else self.adapter
        return [repr(settings), [adapter.strength, digest_of(adapter.parameters())] if adapter else "base"]

    @torch.no_grad()
    def answer(self, batch: Sequence[Draw], settings: Settings) -> list[Sample]:
        """One batch, sampled at once where the device has the memory for it."""
        samples: list[Sample] = []
        denoise = partial(self._denoise, settings=settings, scheduler=self._scheduler(settings))
        for part, latents in self._sampling.batches(batch, len(batch), denoise):
            samples += self._finished(part, latents, settings)
        return samples

    def _finished(self, draws: Sequence[Draw], latents: torch.Tensor, settings: Settings) -> list[Sample]:
        for draw, latent in zip(draws, latents, strict=True):
            if not latent.isfinite().all():
                raise ValueError(f"sample {draw.id} ({draw.prompt.text!r}) is not finite; tune more gently")
        samples = []
        images = self.decode(latents, tiny=settings.tiny_decoder)
        for draw, latent, image in zip(draws, latents.cpu(), images, strict=True):
            image.info["parameters"] = self._infotext(draw, settings).text()
            samples.append(Sample(draw, Picture(latent.clone(), image)))
        self._heap.tidy()
        return samples

    def calls(self, settings: Settings) -> int:
        """How often the UNet runs for one picture, guidance left out."""
        return len(self._scheduler(settings).timesteps)

    @torch.no_grad()
    def start(self, draws: Sequence[Draw], settings: Settings) -> list[Partway]:
        """Noise, from which `go_on` and `finish` make the pictures that `generate` would; each by itself.

        Raises ValueError when the settings do not fit the model.
        """
        parts: list[Partway] = []
        for first in range(0, len(draws), settings.batch_size):
            batch = draws[first : first + settings.batch_size]
            parts += self._begin(batch, settings, self._scheduler(settings)).split()
        return parts

    @torch.no_grad()
    def go_on(self, parts: Sequence[Partway], until: int, settings: Settings) -> list[Partway]:
        """These pictures after `until` calls of the UNet, batch by batch, watched (see `Partway`). Those given stay."""
        found: list[Partway] = []

        def work(batch: Sequence[Partway]) -> Partway:
            return self._advance(joined(batch), until, settings, watched=True)

        for _, whole in self._sampling.batches(parts, settings.batch_size, work):
            found += whole.split()
        return found

    @torch.no_grad()
    def finish(self, parts: Sequence[Partway], settings: Settings) -> list[Sample]:
        """The pictures that these become. Raises ValueError when one is not finite."""
        done = self.go_on(parts, len(parts[0].scheduler.timesteps), settings)
        latents = torch.cat([part.latents for part in done])
        return self._finished([draw for part in done for draw in part.draws], latents, settings)

    @torch.no_grad()
    def foreseen(self, parts: Sequence[Partway], settings: Settings) -> list[Sample]:
        """The pictures as they would look if the last call of the UNet were right about them."""
        latents = torch.cat([part.foreseen for part in parts if part.foreseen is not None])
        return self._finished([draw for part in parts for draw in part.draws], latents, settings)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor, *, tiny: bool = False) -> list[Image.Image]:
        """The RGB pictures of latents (B, C, h, w) scaled as the UNet sees them.

        However many there are, `DECODED_PIXELS` at most are decoded at once. tiny: by the tiny decoder.
        """
        vae: Any = self.components.tiny_decoder if tiny else self.components.vae
        cell = self.components.scale_factor**2

        def decoded(part: torch.Tensor) -> list[Image.Image]:
            scaled = (part / vae.config["scaling_factor"]).to(vae.device, vae.dtype)
            pixels = vae.decode(scaled, return_dict=False)[0].float()
            pixels = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
            return [Image.fromarray(array) for array in pixels.permute(0, 2, 3, 1).cpu().numpy()]

        most = max(1, DECODED_PIXELS // (cell * latents[0, 0].numel()))
        return [image for _, images in self._decoding.batches(latents, most, decoded) for image in images]

    def encode(self, texts: Sequence[str]) -> torch.Tensor:
        """The text encoder's states (B, T, D), with gradients where it is trained.

        Warns once (`PromptWarning`) of a text that is cut, or holds what a WebUI would take for a command.
        """
        tokenizer, encoder = self.components.tokenizer, self.components.text_encoder
        limit = tokenizer.model_max_length
        for text in texts:
            self._tell(text)
        tokens = tokenizer(list(texts), padding="max_length", max_length=limit, truncation=True, return_tensors="pt")
        mask = tokens.attention_mask if getattr(encoder.config, "use_attention_mask", False) else None
        ids = tokens.input_ids.to(encoder.device)
        if self.clip_skip == 1:
            return encoder(ids, attention_mask=mask, return_dict=False)[0]
        states = encoder(ids, attention_mask=mask, output_hidden_states=True).hidden_states[-self.clip_skip]
        # Newer versions of transformers dropped the level `text_model`.
        return getattr(encoder, "text_model", encoder).final_layer_norm(states)

    def _tell(self, text: str) -> None:
        if text in self._told:
            return
        self._told.add(text)
        tokenizer = self.components.tokenizer
        room = tokenizer.model_max_length - 2  # a start and an end belong to every text
        tokens = tokenizer(text, verbose=False, add_special_tokens=False, return_offsets_mapping=True)
        count = len(tokens.input_ids)
        if count > room:
            cut = shortened(text[tokens.offset_mapping[room][0] :], 200)
            told = f"the prompt {shortened(text)!r} has {count} tokens, and the first {room} are read"
            warnings.warn(f"{told}; this is cut: {cut!r}", PromptWarning, stacklevel=2)
        if sentence := literal_syntax(text):
            warnings.warn(sentence, PromptWarning, stacklevel=2)

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> torch.Tensor:
        """As `encode`, without gradients, each text by itself and, unless the encoder learns, only once ever."""
        cache = {} if self.adapter and self.adapter.trains_text_encoder else self._embeddings
        for text in texts:
            if text not in cache:
                cache[text] = self.encode([text])[0]
        return torch.stack([cache[text] for text in texts])

    def _scheduler(self, settings: Settings) -> Any:
        return scheduler_of(settings, self.components)

    def _denoise(self, draws: Sequence[Draw], settings: Settings, scheduler: Any) -> torch.Tensor:
        """The latents (B, C, h, w), float32 on the device. All noise comes from one CPU generator a picture."""
        start = self._begin(draws, settings, scheduler)
        return self._advance(start, len(start.scheduler.timesteps), settings).latents

    def _begin(self, draws: Sequence[Draw], settings: Settings, scheduler: Any) -> Partway:
        factor = self.components.scale_factor
        shape = (self.components.unet.config["in_channels"], settings.height // factor, settings.width // factor)
        return begin(draws, settings, scheduler, shape=shape, device=self.components.device)

    def _advance(self, part: Partway, until: int, settings: Settings, *, watched: bool = False) -> Partway:
        negatives = [draw.prompt.negative for draw in part.draws] if settings.guidance_scale > 1 else []
        text = self.embed([*negatives, *(draw.prompt.text for draw in part.draws)]).to(self.components.dtype)
        with self.adapter.folded() if self.adapter else nullcontext():
            return advance(part, until, settings, unet=self.unet, text=text, watched=watched)

    def _infotext(self, draw: Draw, settings: Settings) -> Infotext:
        """The LoRA that is being trained has no name yet and goes unnamed."""
        scheduler = find_scheduler(settings.scheduler)
        lora, adapter = {}, ""
        if self._attached and not self._is_base:
            path, scale = self._attached
            if path.is_file() and path.name != FILE_NAME and not set(path.stem) & set("<>:"):
                lora = {path.stem: scale}
            else:
                adapter = f"{(path.parent if path.is_file() else path).resolve().name} {scale:g}"
        return Infotext(
            prompt=draw.prompt.text,
            negative_prompt=draw.prompt.negative,
            steps=settings.num_inference_steps,
            sampler=scheduler.sampler,
            schedule_type=scheduler.schedule_type,
            cfg_scale=settings.guidance_scale,
            guidance_interval=""
            if settings.guidance_interval == (0, 1)
            else "{:g} to {:g}".format(*settings.guidance_interval),
            seed=draw.seed,
            width=settings.width,
            height=settings.height,
            model=self.components.name,
            vae=self.components.tiny_name if settings.tiny_decoder else self.components.vae_name,
            clip_skip=self.clip_skip,
            lora=lora,
            adapter=adapter,
            rng="CPU",
            version=f"raft_diffusion {_version()}",
        )
