"""The settings of a run: frozen models, TOML in and out, every mistake reported at once."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Target = Literal["attention", "feed_forward", "projection", "convolution"]
Share = Annotated[float, Field(ge=0, le=1)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


class Prompts(_Section):
    """What is asked for."""

    train: list[str] = Field(min_length=1, description="prompts that RAFT learns")
    held_out: list[str] = Field([], description="prompts never trained on: the out-of-domain test")
    per_round: int | None = Field(None, ge=1, description="prompts drawn a round (P); none: all of them")
    template: str = Field("{}", description='text around every prompt, such as "a photo of a {}"')

    @model_validator(mode="after")
    def _check(self) -> Prompts:
        for key, texts in (("train", self.train), ("held_out", self.held_out)):
            if repeated := sorted({text for text in texts if texts.count(text) > 1}):
                raise ValueError(f"{key} holds {', '.join(map(repr, repeated))} more than once; keep one of each")
        shared = sorted(set(self.train) & set(self.held_out))
        if shared:
            raise ValueError(f"{', '.join(map(repr, shared))} is both trained and held out; keep it on one side")
        if "{}" not in self.template:
            raise ValueError(f"template {self.template!r} needs {{}} where the prompt goes")
        return self


class Sampling(_Section):
    """How pictures are made."""

    width: int = Field(512, ge=8, multiple_of=8, description="px")
    height: int = Field(512, ge=8, multiple_of=8, description="px")
    num_inference_steps: int = Field(25, ge=1, le=1000, description="denoising steps")
    guidance_scale: float = Field(7.5, ge=0, description="guidance of the user and of the evaluation; 1 or less: none")
    collect_guidance_scale: float | None = Field(None, ge=0, description="guidance of candidates; none: the user's")
    scheduler: str = Field("DPM++ 2M", description="a sampler's name, as in diffusers or a WebUI")
    samples_per_prompt: int = Field(8, ge=2, description="candidates a group (K)")
    groups_per_prompt: int = Field(1, ge=1, description="contests of K candidates that each prompt holds a round")
    batch_size: int = Field(8, ge=1, description="pictures sampled at once; it does not change them")
    negative_prompt: str = Field("", description="what to keep out")


class Rewards(_Section):
    """What ranks."""

    weights: dict[str, float] = Field({"text_image": 1.0}, min_length=1, description="weight of each ranking reward")
    method: Literal["zscore", "fixed"] = Field("zscore", description="per-prompt z-scores, or raw scores as they are")
    scorer: str = Field("pocket", description="the CLIP tower of text_image and aesthetic")
    held_out: str | None = Field(None, description="a tower that scores candidates and never ranks")
    custom: list[str] = Field([], description='own rewards, "module:function"')


class Selection(_Section):
    """Who wins."""

    best: int = Field(1, ge=1, description="winners a group (m); the paper's is 1")
    top_fraction: float | None = Field(None, gt=0, le=1, description="share of the round's best that is kept")
    top_count: int | None = Field(None, ge=1, description="number of the round's best that is kept")
    tau: float | None = Field(None, gt=0, description="all candidates win with weight exp(key / tau)")
    replay: int | None = Field(None, ge=0, description="earlier rounds whose winners are kept; none: all")


class Tuning(_Section):
    """How the LoRA learns."""

    rank: int = Field(8, ge=1, le=1024, description="rank of the LoRA")
    alpha: float = Field(8.0, gt=0, description="the LoRA's scale is alpha / rank")
    targets: list[Target] = Field(["attention"], min_length=1, description="layers that get a LoRA")
    text_encoder: bool = Field(False, description="tune the text encoder too")
    learning_rate: float = Field(1e-4, gt=0, le=1, description="of AdamW, constant")
    steps: int = Field(80, ge=1, description="optimiser steps a round")
    batch_size: int = Field(8, ge=1, description="winners a forward pass")
    gradient_accumulation: int = Field(1, ge=1, description="forward passes an optimiser step")
    snr_gamma: float | None = Field(None, gt=0, description="min-SNR weighting (arXiv:2303.09556); none: off")
    condition_drop: Share = Field(0.0, description="share of winners trained without their prompt")
    max_grad_norm: float = Field(1.0, gt=0, description="gradient clipping")
    mixed_precision: Literal["no", "fp16", "bf16"] = Field("no", description="precision of the forward pass")
    warmup_steps: int = Field(0, ge=0, description="steps of linear warm-up")
    restart: bool = Field(False, description="start every round from the base, on the winners of all rounds")


class Evaluation(_Section):
    """What is compared at the end."""

    pairs: int = Field(64, ge=2, description="same-seed pairs on the trained prompts")
    ood_pairs: int = Field(64, ge=0, description="same-seed pairs on the held-out prompts")
    best_of: int = Field(8, ge=2, description="K of the oracle: the best of K pictures of the base")


class Config(_Section):
    """All settings of a run."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9._-]+$", description="part of the run folder's name")
    model: str = Field("pocket", min_length=1, description="the carried model, a diffusers folder or a hub id")
    seed: int = Field(0, ge=0, lt=2**63, description="fixes every random draw")
    rounds: int = Field(4, ge=1, description="rounds of sampling, ranking and finetuning")
    device: str = Field("auto", description="auto, cpu, cuda or mps")
    threads: int | None = Field(None, ge=1, description="CPU threads; none: every core")
    prompts: Prompts
    sampling: Sampling = Sampling()  # pyright: ignore[reportCallIssue]
    rewards: Rewards = Rewards()  # pyright: ignore[reportCallIssue]
    selection: Selection = Selection()  # pyright: ignore[reportCallIssue]
    tuning: Tuning = Tuning()  # pyright: ignore[reportCallIssue]
    evaluation: Evaluation = Evaluation()  # pyright: ignore[reportCallIssue]

    @model_validator(mode="after")
    def _check(self) -> Config:
        problems = []
        if self.selection.best > self.sampling.samples_per_prompt:
            problems.append(
                f"selection.best is {self.selection.best}, more than sampling.samples_per_prompt "
                f"({self.sampling.samples_per_prompt}); lower it"
            )
        across = [key for key in ("top_fraction", "top_count") if getattr(self.selection, key) is not None]
        if across and self.rewards.method != "fixed":
            problems.append(f'selection.{across[0]} compares prompts with each other: set rewards.method to "fixed"')
        if len(across) > 1 or (across and self.selection.tau is not None):
            problems.append("selection: choose one of top_fraction, top_count and tau")
        if self.selection.tau is not None and self.selection.best != 1:
            problems.append("selection.tau lets every candidate win by weight: leave out selection.best")
        if not any(self.rewards.weights.values()):
            problems.append("rewards.weights are all 0, so nothing ranks: give one another weight")
        if self.prompts.per_round is not None and self.prompts.per_round > len(self.prompts.train):
            problems.append(
                f"prompts.per_round is {self.prompts.per_round}, more than the {len(self.prompts.train)} prompts"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @classmethod
    def load(cls, path: Path | str) -> Config:
        """Read a TOML file. Raises ValueError with every problem in one message."""
        path = Path(path)
        try:
            return cls.parse(path.read_bytes().decode("utf-8-sig"), where=str(path))
        except FileNotFoundError:
            raise ValueError(f"there is no configuration {path}; give the path of a TOML file") from None
        except UnicodeDecodeError as error:
            raise ValueError(f"the configuration {path} is not UTF-8 (byte {error.start}); save it as UTF-8") from None
        except OSError as error:
            what = "is a folder" if path.is_dir() else f"cannot be read ({error.strerror})"
            raise ValueError(f"the configuration {path} {what}; give the path of a TOML file") from None

    @classmethod
    def parse(cls, text: str, *, where: str = "the configuration") -> Config:
        try:
            values = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{where} is no valid TOML: {error}") from None
        return cls._validated(values, where)

    def with_overrides(self, changes: Sequence[str]) -> Config:
        """A copy with changes such as "tuning.rank=8"; a value is TOML, or a bare string; `none` clears a setting."""
        values = self.model_dump(mode="json")
        for change in changes:
            key, equals, text = change.partition("=")
            if not equals or not key.strip():
                raise ValueError(f"--set {change}: write KEY=VALUE, such as tuning.rank=8")
            *sections, name = key.strip().split(".")
            table = values
            for section in sections:
                table = table.setdefault(section, {})
                if not isinstance(table, dict):
                    raise ValueError(f"--set {change}: {section!r} is a setting, not a section")
            table[name] = _toml_value(text.strip())
        return self._validated(values, "--set")

    def to_toml(self) -> str:
        """TOML that reads back as the same configuration; settings that are none are left out."""
        values = self.model_dump(mode="json", exclude_none=True)
        lines = [f"{key} = {_to_toml(value)}" for key, value in values.items() if not isinstance(value, dict)]
        for section, table in values.items():
            if isinstance(table, dict):
                lines += ["", f"[{section}]", *(f"{key} = {_to_toml(value)}" for key, value in table.items())]
        return "\n".join(lines) + "\n"

    def flat(self) -> dict[str, Any]:
        """Every setting by its dotted key."""
        return dict(_flatten(self.model_dump(mode="json")))

    @classmethod
    def _validated(cls, values: dict[str, Any], where: str) -> Config:
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            problems = [_explain(cls, problem) for problem in error.errors()]
            raise ValueError(f"{where}: " + "; ".join(problems)) from None


def _flatten(table: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict) and prefix + key != "rewards.weights":
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _explain(model: type[BaseModel], problem: Any) -> str:
    """One mistake in words; an unknown key gets its nearest known names."""
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        known: Any = model
        for part in location[:-1]:
            known = known.model_fields[part].annotation
        names = list(known.model_fields)
        near = difflib.get_close_matches(location[-1], names, n=3, cutoff=0.4) or names
        return f"unknown key {key}, did you mean {' or '.join(near)}?"
    if problem["type"] == "missing":
        return f"{key} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    given = "" if problem["type"] == "value_error" else f", not {problem['input']!r}"
    return f"{key}: {message}{given}" if key else message


def _toml_value(text: str) -> Any:
    if text == "none":
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, KeyError):
        return text


def _to_toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return "[" + ", ".join(map(_to_toml, value)) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_to_toml(k)} = {_to_toml(v)}" for k, v in value.items()) + " }"
    return repr(value)
