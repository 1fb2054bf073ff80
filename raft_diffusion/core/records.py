"""The frozen records that the stages exchange, and the one source of randomness.

Legend: P prompts a round, K candidates a prompt, N = P * K candidates a round.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total) as long work goes on."""
OWN = "policy"
"""The source of a sample that the run's own model makes."""


def derive_seed(seed: int, purpose: str, *position: int | str) -> int:
    """The seed of one random draw, from its position alone, never from history.

    `purpose` keeps streams apart ("sample", "draw", "tune", "evaluate", ...), `position` says which draw of the
    stream it is (round, prompt id, k). Returns an integer in [0, 2**63).
    """
    text = "\x1f".join([str(seed), purpose, *map(str, position)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the user asks for. `id` is a stable hash of the words, so that a split or a seed survives reordering."""

    text: str
    negative: str = ""
    weight: float = 1.0

    @property
    def id(self) -> str:
        return hashlib.sha256(f"{self.text}\x1f{self.negative}".encode()).hexdigest()[:10]


@dataclass(frozen=True, slots=True)
class Draw:
    """A request for one sample: the k-th of `prompt`, with the seed that fixes all its randomness.

    `group` numbers the contests of one prompt in a round: a prompt drawn twice makes two groups of K candidates,
    whose k run on (0 .. 2K - 1), so that an id stays unique.

    `source` says who answers, the policy or one from outside, and `item` which of a folder's pictures the answer is.
    """

    prompt: Prompt
    k: int
    seed: int
    group: int = 0
    source: str = OWN
    item: str = ""

    @property
    def id(self) -> str:
        return f"{self.prompt.id}-{self.k:03d}"


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """What came back. `data` belongs to the modality: a diffusion `Picture`, an LLM completion."""

    draw: Draw
    data: Any

    @property
    def id(self) -> str:
        return self.draw.id

    @property
    def prompt(self) -> Prompt:
        return self.draw.prompt


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """A sample with the raw score of every reward by name, higher is better. Weights belong to `select`."""

    sample: Sample
    scores: Mapping[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """The K candidates of one prompt that compete with each other."""

    prompt: Prompt
    candidates: tuple[Scored, ...]


def samples_of(groups: Sequence[Group]) -> list[Sample]:
    """All candidates of these groups, in order."""
    return [scored.sample for members in groups for scored in members.candidates]


@dataclass(frozen=True, slots=True, eq=False)
class Winner:
    """A candidate to learn from. `key` is what it was ranked by, `weight` multiplies its loss (mean 1 in a round)."""

    candidate: Scored
    key: float
    weight: float = 1.0

    @property
    def sample(self) -> Sample:
        return self.candidate.sample


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """The ranking keys of all candidates, `(P, K)` in the groups' order, and the winners they made."""

    keys: tuple[tuple[float, ...], ...]
    winners: tuple[Winner, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Round:
    """One finished round. `index` counts from 1: round 0 is the untouched base. `figures` are its plain numbers."""

    index: int
    groups: tuple[Group, ...]
    selection: Selection
    figures: Mapping[str, float] = field(default_factory=dict)
