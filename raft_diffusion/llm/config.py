"""The settings of a text run. They are a file of their own kind, told from a picture run's by `kind = "text"`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from ..core.config import Tracker
from ..core.settings import (
    Section,
    Selection,
    Share,
    changed,
    flatten,
    not_utf8,
    read_values,
    selection_misfits,
    to_toml,
    validated,
)
from ..core.toml import one_line
from ..rewards import LOG_RATIO

KIND = "text"
CLASSIFIER, EXACT = "classifier", "exact"


class Prompts(Section):
    """What is asked for: JSONL files of {"prompt", "answer", "completion"}, or a carried world's by its name."""

    train: str = Field(min_length=1, description="a file, pocket-reviews or pocket-sums: prompts that RAFT learns")
    held_out: str | None = Field(None, description="the same: prompts never trained on; none: evaluate on train")
    reference: str | None = Field(
        None, min_length=1, description="texts for the perplexity: a file with completions, or a carried world's"
    )
    limit: int | None = Field(None, ge=1, description="take the first so many prompts of each; none: all")
    per_round: int | None = Field(None, ge=1, description="prompts drawn a round (P); none: all of them")


class Sampling(Section):
    """How texts are written."""

    temperature: float = Field(1.0, gt=0, description="of candidates")
    top_p: float = Field(1.0, gt=0, le=1, description="share of the likeliest tokens that can be drawn")
    max_new_tokens: int = Field(64, ge=1, le=1_000_000, description="where an answer is cut")
    samples_per_prompt: int = Field(8, ge=2, le=10_000, description="candidates a group (K)")
    groups_per_prompt: int = Field(1, ge=1, le=10_000, description="contests of K candidates a prompt and round")
    batch_size: int = Field(32, ge=1, le=10_000, description="completions sampled at once; it changes none of them")
    chat: bool = Field(False, description="put prompts through the tokenizer's chat template")
    system: str = Field("", description="the system turn, with chat alone")

    @model_validator(mode="after")
    def _check(self) -> Sampling:
        if self.system and not self.chat:
            raise ValueError("system needs a chat template: set chat to true, or leave it out")
        return self


class Rewards(Section):
    """What ranks. The names of the weights: classifier, exact, log_ratio, and those of `custom`'s functions."""

    weights: dict[str, float] = Field(
        min_length=1, description="weight of each reward; log_ratio: minus the paper's beta"
    )
    method: Literal["zscore", "fixed"] = Field("fixed", description="raw scores, or per-prompt z-scores")
    classifier: str | None = Field(None, min_length=1, description="a sequence classifier: pocket, a folder, a hub id")
    label: str | None = Field(None, description="its class whose logit is the score; none: a model with one output")
    reads: Literal["whole", "completion", "chat"] = Field("whole", description="what the classifier is given")
    min_words: int = Field(0, ge=0, description="shorter completions are discarded before the ranking")
    discard: str | None = Field(
        None, min_length=1, description="a regular expression; completions that hold it are discarded, too"
    )
    custom: list[str] = Field([], description='own rewards, "module:function", of completions and prompts')
    timeout: float | None = Field(None, gt=0, description="seconds that a call of an own reward may take; none: any")

    @model_validator(mode="after")
    def _check(self) -> Rewards:
        functions = [name.rpartition(":")[2] for name in self.custom]
        known = [CLASSIFIER, EXACT, LOG_RATIO, *functions]
        if unknown := [name for name in self.weights if name not in known]:
            raise ValueError(f"weights names {unknown[0]!r}; known are {', '.join(known)}")
        if CLASSIFIER in self.weights and self.classifier is None:
            raise ValueError("weights names the classifier: set rewards.classifier")
        if not any(self.weights.values()):
            raise ValueError("weights are all 0, so nothing ranks: give one another weight")
        try:
            re.compile(self.discard or "")
        except re.error as error:
            raise ValueError(f"discard is no regular expression ({error}): {self.discard!r}") from None
        return self


class Tuning(Section):
    """How the LoRA learns."""

    rank: int = Field(8, ge=1, le=1024, description="rank of the LoRA")
    alpha: float = Field(16.0, gt=0, description="the LoRA's scale is alpha / rank")
    targets: list[str] = Field([], description="names of layers that get a LoRA; none: every linear one")
    learning_rate: float = Field(1e-4, gt=0, le=1, description="of AdamW, constant within a round")
    learning_rate_decay: float = Field(1.0, gt=0, le=1, description="the learning rate times this after every round")
    steps: int = Field(80, ge=1, le=1_000_000, description="optimiser steps a round")
    batch_size: int = Field(8, ge=1, le=10_000, description="winners a forward pass")
    gradient_accumulation: int = Field(1, ge=1, le=10_000, description="forward passes an optimiser step")
    max_grad_norm: float = Field(1.0, gt=0, description="gradient clipping")
    warmup_steps: int = Field(0, ge=0, le=1_000_000, description="steps of linear warm-up")
    examples: str | None = Field(None, min_length=1, description="a JSONL file learned before round 1; none: no file")
    example_steps: int = Field(200, ge=1, le=1_000_000, description="optimiser steps on the examples")


class Guard(Section):
    """What stops a run whose rounds make things worse (see `core.guard`)."""

    enabled: bool = Field(True, description="look at a fixed set of texts after every round")
    reward: str | None = Field(
        None, min_length=1, description="pocket-held-out, a classifier's folder or hub id, or exact; none: no guard"
    )
    label: str | None = Field(None, description="the classifier's class; none: a model with one output")
    samples: int = Field(64, ge=8, le=10_000, description="texts a look: the same prompts and seeds in every round")
    max_drop: float = Field(0.25, ge=0, description="fall of the score that stops, in deviations within a prompt")
    max_forgotten: float = Field(0.5, ge=0, description="the same on prompts that are not trained, below the start")
    min_diversity: Share = Field(0.5, description="share of the diversity that must be left")


class Evaluation(Section):
    """What is compared at the end."""

    prompts: int = Field(64, ge=1, le=100_000, description="held-out prompts")
    samples: int = Field(4, ge=1, le=10_000, description="same-seed pairs a prompt: k of avg@k")
    temperature: float | None = Field(None, gt=0, description="of the texts compared; none: the candidates'")


class TextConfig(Section):
    """All settings of a text run."""

    kind: Literal["text"] = Field(description='"text": what tells this file from a picture run\'s')
    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9._-]+$", description="part of the run folder's name")
    model: str = Field(min_length=1, description="pocket-reviews, pocket-sums, a folder or a hub id")
    revision: str | None = Field(None, min_length=1, description="a hub id's branch, tag or commit; none: its main one")
    teacher: str | None = Field(None, min_length=1, description="a model that samples in its place (distillation)")
    teacher_lora: str | None = Field(None, min_length=1, description="the lora folder of the teacher's own run")
    precision: Literal["auto", "fp32", "fp16", "bf16"] = Field("auto", description="of the frozen weights")
    seed: int = Field(0, ge=0, lt=2**63, description="fixes every random draw")
    rounds: int = Field(5, ge=1, le=10_000, description="rounds of sampling, ranking and finetuning")
    stop_when_flat: int | None = Field(
        None, ge=1, le=10_000, description="rounds without a better mean reward that end the run early; none: never"
    )
    device: str = Field("auto", description="auto, cpu, cuda or mps")
    threads: int | None = Field(None, ge=1, le=4096, description="CPU threads; none: every core")
    trackers: list[Tracker] = Field([], description="where the curves are sent too")
    prompts: Prompts
    sampling: Sampling = Sampling()  # pyright: ignore[reportCallIssue]
    rewards: Rewards
    selection: Selection = Selection()  # pyright: ignore[reportCallIssue]
    tuning: Tuning = Tuning()  # pyright: ignore[reportCallIssue]
    guard: Guard = Guard()  # pyright: ignore[reportCallIssue]
    evaluation: Evaluation = Evaluation()  # pyright: ignore[reportCallIssue]

    @model_validator(mode="after")
    def _check(self) -> TextConfig:
        problems = list(_misfits(self.sampling, self.rewards, self.selection))
        if self.teacher_lora and not self.teacher:
            problems.append("teacher_lora is a teacher's: set teacher, too")
        problems += not_utf8(self.flat())
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @classmethod
    def load(cls, path: Path | str) -> TextConfig:
        """Read a TOML file. Raises ValueError with every problem in one message."""
        return cls._validated(read_values(path), str(path))

    def with_overrides(self, changes: Sequence[str]) -> TextConfig:
        """A copy with changes such as "tuning.rank=8"; a value is TOML, or a bare string; `none` clears a setting
        and takes a reward out of rewards.weights. Raises ValueError with every problem at once."""
        return self._validated(changed(self.model_dump(mode="json"), changes, tables=_TABLES), "--set")

    def to_toml(self) -> str:
        """TOML that reads back as the same settings; those that are none are left out."""
        return to_toml(self)

    def flat(self) -> dict[str, Any]:
        """Every setting by its dotted key."""
        return flatten(self.model_dump(mode="json"), tables=_TABLES)

    @classmethod
    def _validated(cls, values: dict[str, Any], where: str) -> TextConfig:
        if "kind" not in values:
            raise ValueError(one_line(f"{where} is of a run that makes pictures, and this is for text runs"))
        return validated(cls, values, where, misfits=_misfits, sections=("sampling", "rewards", "selection"))


_TABLES = ("rewards.weights",)


def _misfits(sampling: Sampling | None, rewards: Rewards | None, selection: Selection | None) -> Iterator[str]:
    """What is wrong between sections; None stands for a section that is wrong by itself."""
    if selection:
        candidates, method = sampling and sampling.samples_per_prompt, rewards and rewards.method
        yield from selection_misfits(selection, candidates=candidates, method=method)
