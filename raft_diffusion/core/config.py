"""The settings of a run: frozen models, TOML in and out, every mistake reported at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, PositiveFloat, Tag, model_validator

from .prompts import split
from .records import OWN, Prompt
from .settings import (
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
from .toml import one_line, parse_toml

Target = Literal["attention", "feed_forward", "projection", "convolution"]
Tracker = Literal["tensorboard", "wandb"]


class Entry(Section):
    """A prompt with settings of its own."""

    text: str = Field(description="the words")
    weight: float = Field(1.0, gt=0, description="how often it is drawn where per_round draws, beside the others' 1")
    negative: str | None = Field(None, description="what to keep out of it; none: sampling.negative_prompt")


def _kind(item: Any) -> str:
    return _KINDS[isinstance(item, dict | Entry)]


def _plain(item: str | Entry) -> str | Entry:
    """An entry that says no more than its text is its text: the same prompts are equal however they were written."""
    return item.text if isinstance(item, Entry) and item.weight == 1 and item.negative is None else item


PRUNING: dict[str, tuple[list[float], list[float]]] = {
    "preview": ([1 / 3, 5 / 12], [5 / 16, 1 / 4]),
    "predicted_x0": ([1 / 4, 1 / 2], [1 / 2, 1 / 4]),
    "guidance": ([1 / 4, 1 / 2], [1 / 2, 1 / 4]),
}
"""`sampling.prune_at` and `prune_keep` where the settings name none; tests/bench/JOURNAL.md says why."""
_KINDS = ("a string", "a table")
_TABLES = ("rewards.weights", "rewards.sources", "sampling.sources")
_HELD_TOGETHER = ("prompts", "sampling", "rewards", "selection")
Item = Annotated[
    Annotated[str, Tag(_KINDS[0])] | Annotated[Entry, Tag(_KINDS[1])], Discriminator(_kind), AfterValidator(_plain)
]


class Prompts(Section):
    """What is asked for."""

    train: list[Item] = Field(min_length=1, description="prompts that RAFT learns: texts, or tables as `Entry`")
    held_out: list[Item] = Field([], description="prompts never trained on: the out-of-domain test")
    per_round: int | None = Field(None, ge=1, description="prompts drawn a round (P); none: all of them")
    template: str = Field("{}", description='text around every prompt, such as "a photo of a {}"')

    @model_validator(mode="after")
    def _check(self) -> Prompts:
        train, held_out = ([_text(item) for item in items] for items in (self.train, self.held_out))
        for key, texts in (("train", train), ("held_out", held_out)):
            if repeated := sorted({text for text in texts if texts.count(text) > 1}):
                raise ValueError(f"{key} holds {', '.join(map(repr, repeated))} more than once; keep one of each")
        shared = sorted(set(train) & set(held_out))
        if shared:
            raise ValueError(f"{', '.join(map(repr, shared))} is both trained and held out; keep it on one side")
        if "{}" not in self.template:
            raise ValueError(f"template {self.template!r} needs {{}} where the prompt goes")
        return self


class Sampling(Section):
    """How pictures are made."""

    width: int = Field(512, ge=8, le=8192, multiple_of=8, description="px")
    height: int = Field(512, ge=8, le=8192, multiple_of=8, description="px")
    num_inference_steps: int = Field(25, ge=1, le=1000, description="denoising steps")
    guidance_scale: float = Field(7.5, ge=0, description="guidance of the user and of the evaluation; 1 or less: none")
    guidance_interval: list[Share] = Field(
        [0.0, 1.0],
        min_length=2,
        max_length=2,
        description="where guidance is on, shares of the steps; else half the work",
    )
    collect_guidance_scale: float | None = Field(None, ge=0, description="guidance of candidates; none: the user's")
    collect_guidance_decay: Share = Field(
        1.0,
        description="what every round leaves of the candidates' guidance above 1; 0: guided in round 1 alone",
    )
    base_share: Share = Field(
        0.0, description="share of the contests drawn from the base, at round 1's guidance, so that data stay fresh"
    )
    eta: Share = Field(0.0, description="noise that DDIM or TCD adds at every step, for candidates alone")
    noise_scale: float = Field(
        1.0, gt=0, description="deviation of a candidate's initial latent, relative to the scheduler's"
    )
    lora_scale: float = Field(1.0, gt=0, description="the LoRA's strength in use: in the evaluation and for the user")
    scheduler: str = Field("DPM++ 2M", description="a sampler's name, as in diffusers or a WebUI")
    samples_per_prompt: int = Field(8, ge=2, le=10_000, description="candidates a group (K)")
    groups_per_prompt: int = Field(1, ge=1, le=10_000, description="contests of K candidates a prompt and round")
    batch_size: int = Field(8, ge=1, le=10_000, description="pictures sampled at once; it changes none of them")
    compile: bool = Field(
        False,
        description="compile the UNet for sampling (torch.compile): minutes once, for a GPU; last bits may vary",
    )
    sources: dict[str, PositiveFloat] = Field(
        {OWN: 1.0},
        min_length=1,
        description='share of each contest by who makes its candidates: policy, "folder:PATH" or "module:function"',
    )
    negative_prompt: str = Field("", description="what to keep out")
    clip_skip: int = Field(1, ge=1, le=12, description="layer of the text encoder, from the end; 1: the last")
    tiny_decoder: str | None = Field(
        None, min_length=1, description="an AutoencoderTiny that decodes candidates, a folder or hub id; none: the VAE"
    )

    prune: Literal["preview", "predicted_x0", "guidance"] | None = Field(
        None,
        description="drop candidates early: by the rewards of previews of fewer steps, by those of what is foreseen on "
        "the way, or by what guidance changes; none: off",
    )
    prune_at: list[Share] | None = Field(
        None,
        min_length=1,
        description="after which shares of the steps; with previews the first is their length; none: as measured",
    )
    prune_keep: list[Share] | None = Field(
        None, min_length=1, description="share of a contest that goes on after each; none: as measured"
    )
    prune_min_correlation: float = Field(
        0.3, ge=-1, le=1, description="rank correlation of early and final ranking below which pruning ends itself"
    )

    @property
    def stops(self) -> tuple[list[float], list[float]]:
        """Where contests are pruned, as shares of the steps, and the shares of their candidates that then go on."""
        at, keep = PRUNING[self.prune or "preview"]
        return self.prune_at or at, self.prune_keep or keep

    @model_validator(mode="after")
    def _check(self) -> Sampling:
        low, high = self.guidance_interval
        if low >= high:
            raise ValueError(f"guidance_interval is {low:g} to {high:g}; the first share must be below the second")
        if self.prune is not None:
            _check_prune(self)
        return self


class Rewards(Section):
    """What ranks."""

    weights: dict[str, float] = Field({"text_image": 1.0}, min_length=1, description="weight of each ranking reward")
    method: Literal["zscore", "fixed"] = Field("zscore", description="per-prompt z-scores, or raw scores as they are")
    scorer: str = Field("pocket", description="the CLIP tower of text_image and aesthetic")
    held_out: str | None = Field(
        None, description="a tower, pickscore or hpsv2.1 that scores candidates and never ranks"
    )
    custom: list[str] = Field([], description='own rewards, "module:function"')
    timeout: float | None = Field(None, gt=0, description="seconds that a call of an own reward may take; none: any")
    sources: dict[str, str] = Field({}, description="reward -> file or folder of its weights; else downloaded")


class Tuning(Section):
    """How the LoRA learns."""

    rank: int = Field(8, ge=1, le=1024, description="rank of the LoRA")
    alpha: float = Field(8.0, gt=0, description="the LoRA's scale is alpha / rank")
    targets: list[Target] = Field(["attention"], min_length=1, description="layers that get a LoRA")
    text_encoder: bool = Field(False, description="tune the text encoder too")
    learning_rate: float = Field(1e-4, gt=0, le=1, description="of AdamW in round 1, constant within a round")
    learning_rate_decay: float = Field(0.7, gt=0, le=1, description="the learning rate times this after every round")
    steps: int = Field(80, ge=1, le=1_000_000, description="optimiser steps a round")
    batch_size: int = Field(8, ge=1, le=10_000, description="winners a forward pass")
    gradient_accumulation: int = Field(1, ge=1, le=10_000, description="forward passes an optimiser step")
    snr_gamma: float | None = Field(None, gt=0, description="min-SNR weighting (arXiv:2303.09556); none: off")
    condition_drop: Share = Field(0.0, description="share of winners trained without their prompt")
    max_grad_norm: float = Field(1.0, gt=0, description="gradient clipping")
    mixed_precision: Literal["no", "fp16", "bf16"] = Field("no", description="precision of the forward pass")
    warmup_steps: int = Field(0, ge=0, le=1_000_000, description="steps of linear warm-up")
    anti_drift: float = Field(
        0.0, ge=0, description="weight of the squared distance from the base's prediction, added to the loss"
    )
    restart: bool = Field(False, description="start every round from the base, on the winners of all rounds")
    gradient_checkpointing: bool = Field(False, description="less memory for a third more time")


class Guard(Section):
    """What stops a run whose rounds make things worse."""

    enabled: bool = Field(True, description="look at a fixed set of pictures after every round")
    reward: str | None = Field(None, min_length=1, description="a tower, pickscore or hpsv2.1; none: rewards.held_out")
    pairs: int = Field(48, ge=8, le=10_000, description="pictures a look: the same prompts and seeds in every round")
    max_drop: float = Field(0.1, ge=0, description="fall of the score that stops, in deviations within a prompt")
    max_forgotten: float = Field(0.5, ge=0, description="the same on prompts that are not trained, below the start")
    min_diversity: Share = Field(0.5, description="share of the diversity of an equally good round that must be left")


class Evaluation(Section):
    """What is compared at the end."""

    pairs: int = Field(64, ge=2, le=100_000, description="same-seed pairs on the trained prompts")
    ood_pairs: int = Field(64, ge=0, le=100_000, description="same-seed pairs on the held-out prompts")
    best_of: int = Field(8, ge=2, le=10_000, description="K of the oracle: the best of K pictures of the base")


class Config(Section):
    """All settings of a run."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9._-]+$", description="part of the run folder's name")
    model: str = Field("pocket", min_length=1, description="pocket, a folder, a .safetensors file or a hub id")
    revision: str | None = Field(None, min_length=1, description="a hub id's branch, tag or commit; none: its main one")
    variant: str | None = Field(None, min_length=1, description='which weights are read, such as "fp16"; none: plain')
    prediction_type: Literal["epsilon", "v_prediction"] | None = Field(
        None, description="what the UNet predicts, noise or velocity; none: what the model says"
    )
    precision: Literal["auto", "fp32", "fp16", "bf16"] = Field(
        "auto", description="of the frozen weights; auto: fp32 on a CPU and mps, bf16 or fp16 on CUDA"
    )
    vae: str | None = Field(None, min_length=1, description="a VAE's file or folder; none: the model's own")
    lora: str | None = Field(None, min_length=1, description="a LoRA's file or folder, or a run, to start tuning from")
    seed: int = Field(0, ge=0, lt=2**63, description="fixes every random draw")
    rounds: int = Field(4, ge=1, le=10_000, description="rounds of sampling, ranking and finetuning")
    stop_when_flat: int | None = Field(
        None, ge=1, le=10_000, description="rounds without a better mean reward that end the run early; none: never"
    )
    device: str = Field("auto", description="auto, cpu, cuda or mps")
    threads: int | None = Field(None, ge=1, le=4096, description="CPU threads; none: every core")
    trackers: list[Tracker] = Field([], description="where curves and pictures are sent too")
    prompts: Prompts
    sampling: Sampling = Sampling()  # pyright: ignore[reportCallIssue]
    rewards: Rewards = Rewards()  # pyright: ignore[reportCallIssue]
    selection: Selection = Selection()  # pyright: ignore[reportCallIssue]
    tuning: Tuning = Tuning()  # pyright: ignore[reportCallIssue]
    guard: Guard = Guard()  # pyright: ignore[reportCallIssue]
    evaluation: Evaluation = Evaluation()  # pyright: ignore[reportCallIssue]

    @model_validator(mode="after")
    def _check(self) -> Config:
        problems = list(_misfits(self.prompts, self.sampling, self.rewards, self.selection))
        problems += not_utf8(self.flat())
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @classmethod
    def load(cls, path: Path | str) -> Config:
        """Read a TOML file. Raises ValueError with every problem in one message."""
        return cls._validated(read_values(path), str(path))

    @classmethod
    def parse(cls, text: str, *, where: str = "the configuration") -> Config:
        return cls._validated(parse_toml(text, where=where), where)

    def with_overrides(self, changes: Sequence[str]) -> Config:
        """A copy with changes such as "tuning.rank=8"; a value is TOML, or a bare string; `none` clears a setting
        and takes a name out of rewards.weights, rewards.sources or sampling.sources. Raises ValueError with every
        problem at once."""
        return self._validated(changed(self.model_dump(mode="json"), changes, tables=_TABLES), "--set")

    def with_prompts(self, prompts: Sequence[Prompt], held_out_fraction: float | None = None) -> Config:
        """A copy that trains on these prompts, with their weights and negatives; the template stays.

        held_out_fraction: in [0, 1); this share of them, by a split that is stable under `seed`, becomes
            prompts.held_out. Without it prompts.held_out stays as it is, and what it holds is not trained on.

        Raises ValueError where nothing is left to train on, and for settings that do not fit the prompts.
        """
        values = self.model_dump(mode="json")
        if held_out_fraction is None:
            apart = {_text(item) for item in self.prompts.held_out}
            train = [prompt for prompt in prompts if prompt.text not in apart]
            if prompts and not train:
                raise ValueError(
                    f"the prompts hold only what is held out ({', '.join(repr(p.text) for p in prompts[:3])}"
                    f"{', ...' if len(prompts) > 3 else ''}), which is never trained on; give other prompts, or take "
                    "them out of prompts.held_out"
                )
        else:
            train, held_out = split(prompts, held_out_fraction, seed=self.seed)
            values["prompts"]["held_out"] = [_item(prompt) for prompt in held_out]
        values["prompts"]["train"] = [_item(prompt) for prompt in train]
        return self._validated(values, "the prompts")

    def train_prompts(self) -> list[Prompt]:
        """What RAFT learns, with the template around the words and the negative prompt filled in."""
        return [self._prompt(item) for item in self.prompts.train]

    def held_out_prompts(self) -> list[Prompt]:
        """What is never trained on, in the same form as `train_prompts`."""
        return [self._prompt(item) for item in self.prompts.held_out]

    def collect_guidance(self, index: int) -> float:
        """The guidance of the candidates of round `index`, from 1 on.

        A model that was tuned on guided pictures has learned the guidance; guiding it again as much compounds
        (arXiv:2407.17493), so what is above 1 may fade.
        """
        sampling = self.sampling
        start = sampling.guidance_scale if sampling.collect_guidance_scale is None else sampling.collect_guidance_scale
        return start if start <= 1 else 1 + (start - 1) * sampling.collect_guidance_decay ** (index - 1)

    def _prompt(self, item: str | Entry) -> Prompt:
        words = self.prompts.template.replace("{}", _text(item))
        weight, negative = (1.0, None) if isinstance(item, str) else (item.weight, item.negative)
        return Prompt(words, self.sampling.negative_prompt if negative is None else negative, weight)

    def to_toml(self) -> str:
        """TOML that reads back as the same configuration; settings that are none are left out."""
        return to_toml(self)

    def flat(self) -> dict[str, Any]:
        """Every setting by its dotted key."""
        return flatten(self.model_dump(mode="json"), tables=_TABLES)

    @classmethod
    def _validated(cls, values: dict[str, Any], where: str) -> Config:
        if isinstance(kind := values.get("kind"), str):
            raise ValueError(one_line(f"{where} is of a {kind} run, and this is for runs that make pictures"))
        return validated(cls, values, where, misfits=_misfits, sections=_HELD_TOGETHER, entry=Entry, hidden=_KINDS)


def _text(item: str | Entry) -> str:
    return item if isinstance(item, str) else item.text


def _item(prompt: Prompt) -> dict[str, Any]:
    return {"text": prompt.text, "weight": prompt.weight, "negative": prompt.negative or None}


def _check_prune(sampling: Sampling) -> None:
    (at, keep), k = sampling.stops, sampling.samples_per_prompt
    if len(at) != len(keep):
        raise ValueError(f"prune_at has {len(at)} shares and prune_keep {len(keep)}; give one of each for every stop")
    rising = at[1:] if sampling.prune == "preview" else at  # a preview is no part of the way
    if not all(0 < share < 1 for share in at) or any(one >= other for one, other in pairwise(rising)):
        raise ValueError(f"prune_at is {at}; its shares of the steps must rise, above 0 and below 1")
    if set(sampling.sources) != {OWN}:
        raise ValueError("prune stops the policy's own sampling: leave it out, or let the policy make all candidates")
    counts = [max(1, round(share * k)) for share in keep]
    if counts[0] + 1 >= k or any(one < other for one, other in pairwise(counts)):
        raise ValueError(
            f"prune_keep is {keep}, which keeps {counts} of {k} candidates, and in some contests one more by lot; the "
            "stops must leave some out, so lower it or raise samples_per_prompt"
        )
    guidance = sampling.guidance_scale if sampling.collect_guidance_scale is None else sampling.collect_guidance_scale
    if sampling.prune == "guidance" and (guidance <= 1 or sampling.guidance_interval[0] >= at[0]):
        raise ValueError('prune = "guidance" needs candidates that are guided before the first stop; take preview')


def _misfits(
    prompts: Prompts | None, sampling: Sampling | None, rewards: Rewards | None, selection: Selection | None
) -> Iterator[str]:
    """What is wrong between sections; None stands for a section that is wrong by itself."""
    if selection and sampling and sampling.prune:
        left = max(1, round(sampling.stops[1][-1] * sampling.samples_per_prompt))
        if selection.best > left:
            yield f"selection.best is {selection.best}, more than the {left} that sampling.prune_keep ranks to the end"
    if selection:
        candidates, method = sampling and sampling.samples_per_prompt, rewards and rewards.method
        yield from selection_misfits(selection, candidates=candidates, method=method)
    if rewards and not any(rewards.weights.values()):
        yield "rewards.weights are all 0, so nothing ranks: give one another weight"
    if prompts and prompts.per_round is not None and prompts.per_round > len(prompts.train):
        yield f"prompts.per_round is {prompts.per_round}, more than the {len(prompts.train)} prompts; lower it"
