"""Completions from prompts and seeds: any causal language model of transformers, with left padding and a KV cache.

Legend: B rows a batch, L tokens of the longest prompt, V words of the vocabulary.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..core.records import Draw, Sample
from ..core.unfinished import Shelf
from ..crew import Crew, Stance, made
from ..room import Room
from ..tuning_state import digest_of
from .adapter import ALL_LINEAR, TextAdapter
from .completion import Completion
from .log_prob import accepted, pad_left, position_ids


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSettings:
    """How completions are sampled.

    temperature: above 0; the logits are divided by it.
    top_p: in (0, 1]; only the likeliest tokens that together reach this share can be drawn (nucleus sampling,
        Holtzman et al. 2020, arXiv:1904.09751); 1 leaves all.
    max_new_tokens: where an answer is cut. batch_size: completions sampled at once; it changes none of them.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 64
    batch_size: int = 32

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature is {self.temperature}; it must be a finite number above 0")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must lie above 0 and be at most 1")
        if self.max_new_tokens < 1 or self.batch_size < 1:
            raise ValueError(
                f"max_new_tokens is {self.max_new_tokens} and batch_size {self.batch_size}; both must be 1 or more"
            )


class TextPolicy:
    """A language model with the adapter that learns; it satisfies `core.loop.Policy`.

    chat: prompts go through the tokenizer's chat template as the user's turn; else they are continued as they stand.
    system: the system turn before them, with chat alone.
    progress: called with ("sample", done, total).
    shelf, an attribute: where finished batches and the state of the tuning are kept until their round is.
    crew, an attribute: the processes that share the work, where there are several.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        settings: TextSettings,
        chat: bool = False,
        system: str = "",
        progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        if chat and not getattr(tokenizer, "chat_template", None):
            raise ValueError("the tokenizer has no chat template; set chat to false, or choose a chat model")
        if system and not chat:
            raise ValueError("a system turn needs a chat template; set chat to true, or leave the system turn out")
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.settings = settings
        self._chat, self._system, self._progress = chat, system, progress
        self.shelf: Shelf | None = None
        self.crew: Crew | None = None
        self._adapter: TextAdapter | None = None
        self._room = Room("sampling", noun="texts", setting="sampling.batch_size")
        self._ends = _end_ids(model, tokenizer)
        self.pad: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(self._ends, default=0)

    @classmethod
    def load_model(cls, source: str, *, device: str, dtype: torch.dtype, revision: str | None = None) -> Any:
        """(model, tokenizer) from a folder or the hub. Raises ValueError for what is no causal language model."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
            model = AutoModelForCausalLM.from_pretrained(source, revision=revision, dtype=dtype)
        except (OSError, ValueError, KeyError) as error:
            first = str(error).strip().partition("\n")[0]
            raise ValueError(f"{source} cannot be loaded as a causal language model: {first}") from error
        return model.to(device), tokenizer  # pyright: ignore[reportArgumentType]

    def add_adapter(
        self, *, rank: int, alpha: float, seed: int, targets: Sequence[str] | str = ALL_LINEAR, name: str = ""
    ) -> None:
        """Put in the LoRA that learns. Raises ValueError as `TextAdapter` does, and for a second one."""
        if self._adapter is not None:
            raise ValueError("the model carries an adapter already; load it anew for another one")
        self._adapter = TextAdapter(self.model, rank=rank, alpha=alpha, targets=targets, seed=seed, name=name)

    def attach(self, folder: Path) -> None:
        """Put in the adapter that another run saved, with its rank, scale and layers. Raises ValueError for a folder
        that holds none, or one of another model."""
        try:
            values = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
            rank, alpha, targets = int(values["r"]), float(values["lora_alpha"]), sorted(values["target_modules"])
        except (OSError, ValueError, KeyError, TypeError):
            raise ValueError(f"{folder} holds no adapter of a text run; give its lora folder") from None
        self.add_adapter(rank=rank, alpha=alpha, targets=targets, seed=0)
        self.load(folder)

    @property
    def trained(self) -> TextAdapter:
        """The adapter that learns. Raises ValueError where none was put in."""
        if self._adapter is None:
            raise ValueError("this policy has no adapter; call add_adapter first")
        return self._adapter

    def base(self) -> contextlib.AbstractContextManager[None]:
        """The model as it was, within this context."""
        return self._adapter.switched(False) if self._adapter else contextlib.nullcontext()

    def tuned(self) -> contextlib.AbstractContextManager[None]:
        """The model with its adapter, within this context, also inside `base()`."""
        return self.trained.switched(True)

    def save(self, folder: Path) -> None:
        """Write the adapter in peft's format."""
        folder.mkdir(parents=True, exist_ok=True)
        self.trained.save(folder)

    def load(self, folder: Path) -> None:
        """Take over an adapter that `save` wrote. Raises ValueError for one that does not fit."""
        self.trained.load(folder)

    def encode(self, prompt: str) -> tuple[int, ...]:
        """A prompt's tokens as the model is given them. Raises ValueError for a prompt that makes no token."""
        if self._chat:
            turns = [{"role": "system", "content": self._system}] if self._system else []
            turns.append({"role": "user", "content": prompt})
            ids = self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        else:
            ids = self.tokenizer(prompt).input_ids
        if not ids:
            raise ValueError(f"the prompt {prompt!r} makes no token; write at least one word")
        return tuple(ids)

    def completion(self, prompt: str, text: str, *, ended: bool = True) -> Completion:
        """A text from elsewhere (a file, a teacher) as this model's own: its tokens, and an end token where it
        `ended`."""
        ids = tuple(self.tokenizer(text, add_special_tokens=False).input_ids)
        end = self.tokenizer.eos_token_id
        return Completion(text, self.encode(prompt), (*ids, end) if ended and end is not None else ids)

    def decode(self, prompt_ids: Sequence[int], ids: Sequence[int]) -> str:
        """The text of an answer, without special tokens, as it stands after its prompt: decoded alone, an answer in
        Llama's kind of tokens would lose the space in front."""
        head = self.tokenizer.decode(list(prompt_ids), skip_special_tokens=True)
        whole = self.tokenizer.decode([*prompt_ids, *ids], skip_special_tokens=True)
        return whole[len(head) :] if whole.startswith(head) else self.tokenizer.decode(ids, skip_special_tokens=True)

    def has_ended(self, completion: Completion) -> bool:
        """Whether the model came to an end, and was not cut off by max_new_tokens."""
        return completion.ids[-1] in self._ends

    @torch.no_grad()
    def generate(self, draws: Sequence[Draw], *, settings: TextSettings | None = None) -> list[Sample]:
        """One completion a draw. It follows from its draw's prompt and seed, whatever else is in the batch, up to the
        rounding of a batched matrix product.

        Prompts of like length share a batch, for less padding. settings: other ones than the policy's.
        Raises ValueError for a prompt that leaves no room for max_new_tokens, and for logits that are not finite.
        """
        settings = settings or self.settings
        prompts = {text: self.encode(text) for text in dict.fromkeys(draw.prompt.text for draw in draws)}
        self._check_room(prompts, settings.max_new_tokens)
        order = sorted(range(len(draws)), key=lambda i: (len(prompts[draws[i].prompt.text]), i))
        made_of = self._made_of(settings) if self.shelf else None
        samples: dict[int, Sample] = {}
        starts = range(0, len(order), settings.batch_size)
        batches = [[draws[i] for i in order[start : start + settings.batch_size]] for start in starts]
        for answers in made(batches, settings, self, shelf=self.shelf, made_of=made_of, crew=self.crew):
            samples |= dict(zip(order[len(samples) :], answers, strict=False))
            if self._progress:
                self._progress("sample", len(samples), len(draws))
        return [samples[i] for i in range(len(draws))]

    def _made_of(self, settings: TextSettings) -> list[object]:
        """What samples follow from beside their draws and the run's settings."""
        adapter = self._adapter if self._adapter and self._adapter.is_on else None
        model = str(getattr(self.model.config, "_name_or_path", ""))
        return [model, repr(settings), digest_of(adapter.parameters()) if adapter else "base"]

    def stance(self) -> Stance:
        """How the adapter stands; a helper that takes it writes as this policy does."""
        weights = {name: value.detach().cpu() for name, value in self.trained.parameters().items()}
        return Stance(weights=weights, on=self.trained.is_on, strength=1.0)

    @torch.no_grad()
    def take(self, stance: Stance) -> None:
        """Stand as another process's policy of the same settings does."""
        for name, parameter in self.trained.parameters().items():
            parameter.copy_(stance.weights[name])
        self.trained.switch(stance.on)

    @torch.no_grad()
    def answer(self, batch: Sequence[Draw], settings: TextSettings) -> list[Sample]:
        """One batch, sampled at once where the device has the memory for it."""
        rows = [self.encode(draw.prompt.text) for draw in batch]

        def answered(places: Sequence[int]) -> list[list[int]]:
            return self._answers([rows[i] for i in places], [batch[i].seed for i in places], settings)

        parts = self._room.batches(range(len(batch)), len(batch), answered)
        return [
            Sample(batch[i], Completion(self.decode(rows[i], ids), rows[i], tuple(ids)))
            for places, answers in parts
            for i, ids in zip(places, answers, strict=True)
        ]

    def _answers(self, rows: Sequence[Sequence[int]], seeds: Sequence[int], settings: TextSettings) -> list[list[int]]:
        """The sampled tokens of each row, up to its end token."""
        device = self.model.device
        ids, mask = pad_left(rows, pad=self.pad, device=device)
        positions = position_ids(mask)
        uniform = torch.stack([_uniform(seed, settings.max_new_tokens) for seed in seeds])
        answers: list[list[int]] = [[] for _ in rows]
        open_rows = set(range(len(rows)))
        cache = None
        for step in range(settings.max_new_tokens):
            some = accepted(self.model, position_ids=positions, logits_to_keep=1)
            out = self.model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **some)
            cache = out.past_key_values
            chosen = choose(out.logits[:, -1], uniform[:, step], settings).to(device)
            for row, token in enumerate(chosen.tolist()):
                if row in open_rows:
                    answers[row].append(token)
                    if token in self._ends:
                        open_rows.remove(row)
            if not open_rows:
                break
            ids, positions = chosen[:, None], positions[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        return answers

    def _check_room(self, prompts: dict[str, tuple[int, ...]], new: int) -> None:
        room = getattr(self.model.config, "max_position_embeddings", None)
        for text, ids in prompts.items():
            if room is not None and len(ids) + new > room:
                raise ValueError(
                    f"the prompt {text[:60]!r} has {len(ids)} tokens, which with max_new_tokens {new} are more than "
                    f"the model's {room}; shorten one of them"
                )


def choose(logits: torch.Tensor, uniform: torch.Tensor, settings: TextSettings) -> torch.Tensor:
    """One token a row, (B,), from logits (B, V) and one uniform number a row, by the inverse of the distribution, in
    double precision.

    The tokens stay in the vocabulary's order, so that a rounding in the logits moves a border by as much as itself and
    never swaps two tokens. Raises ValueError for logits that are not finite.
    """
    logits = logits.cpu() if logits.device.type == "mps" else logits  # which has no double precision
    uniform = uniform.to(logits.device)
    probabilities = (logits.double() / settings.temperature).softmax(dim=1)
    if not torch.isfinite(probabilities).all():
        raise ValueError("the model's logits are not finite; choose another precision, or a smaller learning_rate")
    if settings.top_p < 1:
        sorted_, order = probabilities.sort(dim=1, descending=True)
        outside = sorted_.cumsum(dim=1) - sorted_ >= settings.top_p  # the first that reaches the share stays
        probabilities = probabilities.masked_fill(torch.zeros_like(outside).scatter(1, order, outside), 0.0)
    upto = probabilities.cumsum(dim=1)
    chosen = torch.searchsorted(upto, uniform[:, None].double() * upto[:, -1:], right=True)[:, 0]
    return chosen.clamp(max=logits.shape[1] - 1)


def _uniform(seed: int, count: int) -> torch.Tensor:
    """The random numbers of one sample, (count,), made on the CPU: every device draws the same."""
    return torch.rand(count, generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float64)


def _end_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every token that ends an answer: chat models name several."""
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    several = named if isinstance(named, list) else [named]
    return frozenset(token for token in [*several, tokenizer.eos_token_id] if token is not None)
