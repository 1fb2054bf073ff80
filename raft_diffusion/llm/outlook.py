"""The arithmetic of a text run before it starts. The counts are exact; its time and memory nobody has measured."""

from __future__ import annotations

from dataclasses import dataclass

from . import data
from .config import TextConfig

UNKNOWN = (
    "how long a text run takes and how much memory it needs is not forecast: it depends on the language model, which "
    "nothing here has measured; the first round's time says it"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextOutlook:
    """What a run will make, in all rounds unless the name says otherwise; exact where every round is run.

    prompts, groups_per_prompt, candidates: P, G and K of a round. tuning_texts: trained on, repeats counted.
    """

    prompts: int
    groups_per_prompt: int
    candidates: int
    rounds: int
    texts: int
    max_new_tokens: int
    tuning_steps: int
    tuning_texts: int
    guard_texts: int
    evaluation_texts: int
    notes: tuple[str, ...]

    @property
    def texts_per_round(self) -> int:
        return self.prompts * self.groups_per_prompt * self.candidates

    def sentence(self) -> str:
        """One line before a run."""
        return (
            f"{self.rounds} rounds x {self.prompts * self.groups_per_prompt} groups x {self.candidates} candidates = "
            f"{self.texts} texts of up to {self.max_new_tokens} tokens, {self.tuning_steps // self.rounds} tuning "
            "steps a round"
        )

    def rows(self) -> list[tuple[str, str]]:
        """What `plan` says, one line for each thing that a newcomer asks."""
        many = "" if self.groups_per_prompt == 1 else f" x {self.groups_per_prompt} groups"
        prompts = f"{self.prompts} prompt{'s' * (self.prompts > 1)}"
        return [
            ("a round", f"{prompts}{many} x {self.candidates} candidates = {self.texts_per_round:,} texts"),
            ("all rounds", f"{self.rounds} x {self.texts_per_round:,} = {self.texts:,} texts"),
            ("texts", f"up to {self.max_new_tokens} tokens each"),
            ("finetuning", f"{self.tuning_steps:,} steps on {self.tuning_texts:,} texts, repeats counted"),
            ("guard", f"{self.guard_texts:,} texts: the same seeds again and again" if self.guard_texts else "none"),
            ("evaluation", f"{self.evaluation_texts:,} texts: the same seeds before and after"),
        ]


def count(config: TextConfig) -> TextOutlook:
    """Reads the prompt files only where the settings do not say how many prompts a round has."""
    sampling, tuning, tests = config.sampling, config.tuning, config.evaluation
    prompts = config.prompts.per_round or len(data.train_rows(config))
    watched = config.guard.reward is not None and config.guard.enabled
    steps = config.rounds * tuning.steps
    return TextOutlook(
        prompts=prompts,
        groups_per_prompt=sampling.groups_per_prompt,
        candidates=sampling.samples_per_prompt,
        rounds=config.rounds,
        texts=config.rounds * prompts * sampling.groups_per_prompt * sampling.samples_per_prompt,
        max_new_tokens=sampling.max_new_tokens,
        tuning_steps=steps,
        tuning_texts=steps * tuning.gradient_accumulation * tuning.batch_size,
        guard_texts=(config.rounds + 1) * config.guard.samples if watched else 0,
        evaluation_texts=2 * tests.prompts * tests.samples,
        notes=(*_places(config), UNKNOWN),
    )


def _places(config: TextConfig) -> list[str]:
    from ..places import places_of

    return [f"{key}: {place}" for key, place in places_of(config).items()]


def outlook(config: TextConfig) -> list[str]:
    """What to say before a run."""
    lines = [count(config).sentence(), *(f"note: {place}" for place in _places(config))]
    if config.guard.reward is None and config.guard.enabled:
        lines.append("note: no guard watches this run: set guard.reward to a classifier that does not rank, or exact")
    return lines
