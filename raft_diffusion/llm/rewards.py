"""What ranks texts. A reward is a callable from samples to named scores, higher is better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from ..core.records import Sample
from ..room import Room
from . import answers

Reads = Literal["whole", "completion", "chat"]


class SequenceClassifier:
    """A sequence classifier of transformers: a sentiment model, or a reward model with one output.

    label: the class, by name or number, whose raw logit is the score; None for a model with one output.
    reads: "whole": prompt and completion joined as they stand; "completion": that alone; "chat": both as turns through
        the tokenizer's chat template.
    name: the score's. batch_size: texts scored at once; max_length: tokens, longer texts lose their beginning.
    Raises ValueError for a label that the model lacks, or a tokenizer without the template that "chat" needs.
    """

    in_parts = True
    """Several processes may score parts of the samples."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str,
        label: str | int | None = None,
        reads: Reads = "whole",
        batch_size: int = 32,
        max_length: int = 512,
    ) -> None:
        if reads not in get_args(Reads):
            raise ValueError(f"a classifier cannot read {reads!r}; choose from {', '.join(get_args(Reads))}")
        if reads == "chat" and not getattr(tokenizer, "chat_template", None):
            raise ValueError(f"the tokenizer of the reward {name!r} has no chat template; let it read the whole text")
        self.name = name
        if tokenizer.pad_token_id is None:  # as of GPT-2 and Llama; what is padded is masked, so any token will do
            tokenizer.pad_token = tokenizer.eos_token
            model.config.pad_token_id = tokenizer.pad_token_id
        tokenizer.truncation_side = "left"
        self._model, self._tokenizer = model.eval().requires_grad_(False), tokenizer
        self._column = _column(model, label, name)
        self._room = Room("scoring", noun="texts")
        self._reads, self._batch_size, self._max_length = reads, batch_size, max_length

    @classmethod
    def load(cls, source: str, *, device: str, dtype: Any, **how: Any) -> SequenceClassifier:
        """From a folder or the hub. Raises ValueError for what is no sequence classifier."""
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(source)
            model = AutoModelForSequenceClassification.from_pretrained(source, dtype=dtype)
        except (OSError, ValueError, KeyError) as error:
            first = str(error).strip().partition("\n")[0]
            raise ValueError(f"{source} cannot be loaded as a sequence classifier: {first}") from error
        return cls(model.to(device), tokenizer, **how)

    def __call__(self, samples: Sequence[Sample]) -> dict[str, list[float]]:
        import torch

        texts = [self._text(sample) for sample in samples]
        scores: list[float] = []
        with torch.inference_mode():
            for _, part in self._room.batches(texts, self._batch_size, self._logits):
                scores += part
        return {self.name: scores}

    def _logits(self, texts: Sequence[str]) -> list[float]:
        some = {"padding": True, "truncation": True, "max_length": self._max_length, "return_tensors": "pt"}
        batch = self._tokenizer(texts, **some).to(self._model.device)
        logits = self._model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return logits[:, self._column].float().tolist()

    def _text(self, sample: Sample) -> str:
        prompt, completion = sample.prompt.text, sample.data.text
        if self._reads == "completion":
            return completion
        if self._reads == "whole":
            return prompt + completion
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
        return self._tokenizer.apply_chat_template(turns, tokenize=False)


class ExactAnswer:
    """1 where the final answer of a completion equals the known one, exactly (see `answers`), else 0.

    truths: the right answer by the prompt's text. Scores are comparable across prompts.
    """

    def __init__(self, truths: Mapping[str, str], *, name: str = "exact") -> None:
        self.name = name
        self._truths = truths

    def __call__(self, samples: Sequence[Sample]) -> dict[str, list[float]]:
        """Raises ValueError for a prompt without a known answer."""
        scores = []
        for sample in samples:
            if sample.prompt.text not in self._truths:
                raise ValueError(f"no answer is known to the prompt {sample.prompt.text[:80]!r}; add it to the answers")
            found = answers.extract(sample.data.text)
            truth = self._truths[sample.prompt.text]
            scores.append(float(found is not None and answers.equal(found, truth)))
        return {self.name: scores}


def _column(model: Any, label: str | int | None, name: str) -> int:
    known: dict[int, str] = {int(number): str(text) for number, text in model.config.id2label.items()}
    if label is None and len(known) == 1:
        return 0
    matching = [number for number, text in known.items() if label is not None and label in (number, text)]
    if not matching:
        raise ValueError(
            f"the reward {name!r} has the classes {', '.join(known.values())} and none is {label!r}; "
            "name one as its label"
        )
    return matching[0]
