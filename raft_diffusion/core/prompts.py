"""Prompt files, the train / held-out split, and what to draw each round.

Legend: P prompts a round, K candidates a group, G groups a prompt, N = P * G * K candidates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from .records import Draw, Prompt, derive_seed


def read_prompts(path: Path | str) -> list[Prompt]:
    """One prompt a line, UTF-8. Blank lines and lines that start with `#` are skipped.

    Raises ValueError for a file that is missing, a folder, not UTF-8 or without a prompt, and for a prompt given twice.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")  # utf-8-sig: Windows editors put a byte order mark in front
    except FileNotFoundError:
        raise ValueError(f"there is no prompt file {path}; give a text file with one prompt a line") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"the prompt file {path} is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        what = "is a folder" if path.is_dir() else f"cannot be read ({error.strerror})"
        raise ValueError(f"the prompt file {path} {what}; give a text file with one prompt a line") from None
    first: dict[str, int] = {}
    repeats: list[str] = []
    for number, line in enumerate(text.split("\n"), start=1):
        words = line.strip()
        if not words or words.startswith("#"):
            continue
        if words in first:
            repeats.append(f"line {number} repeats line {first[words]} ({words!r})")
        first.setdefault(words, number)
    if repeats:
        raise ValueError(f"the prompt file {path} holds a prompt twice: {'; '.join(repeats)}; keep one of each")
    if not first:
        raise ValueError(f"the prompt file {path} holds no prompt; write one a line")
    return [Prompt(words) for words in first]


def split(prompts: Sequence[Prompt], fraction: float, *, seed: int) -> tuple[list[Prompt], list[Prompt]]:
    """(train, held out), both in the given order; about `fraction` of them, in [0, 1), are held out.

    Each prompt is placed by its own id and the seed, so that a prompt added or moved changes no other's side.
    Raises ValueError for a fraction out of range and where no prompt is left to train on.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"the held-out fraction must be at least 0 and below 1, not {fraction}")
    train: list[Prompt] = []
    held_out: list[Prompt] = []
    for prompt in prompts:
        (held_out if _uniform(seed, "split", prompt.id) < fraction else train).append(prompt)
    if not train:
        raise ValueError(
            f"holding out {fraction:g} of {len(prompts)} prompts leaves none to train on; lower it or add prompts"
        )
    return train, held_out


def draw_round(
    prompts: Sequence[Prompt], *, index: int, seed: int, per_round: int | None, k: int, groups_per_prompt: int = 1
) -> list[Draw]:
    """The N requests of round `index`, group after group, prompts in the given order.

    per_round: P, drawn without replacement with probability by `Prompt.weight` (Efraimidis and Spirakis 2006: the P
        highest u ** (1 / weight)); None takes all prompts.
    k: K candidates a group. groups_per_prompt: G; k of one prompt runs over 0 .. G * K - 1.

    Raises ValueError for a repeated prompt, a weight that is not positive, and a P that is out of range.
    """
    _distinct(prompts)
    chosen = list(prompts)
    if per_round is not None:
        if not 1 <= per_round <= len(prompts):
            raise ValueError(f"cannot draw {per_round} of {len(prompts)} prompts a round; 1 to {len(prompts)} can be")
        ranked = sorted(prompts, key=lambda p: -math.log(_uniform(seed, "draw", index, p.id)) / p.weight)
        drawn = {prompt.id for prompt in ranked[:per_round]}
        chosen = [prompt for prompt in prompts if prompt.id in drawn]
    return [
        Draw(prompt, number, derive_seed(seed, "sample", index, prompt.id, number), group=number // k)
        for prompt in chosen
        for number in range(groups_per_prompt * k)
    ]


def evaluation_draws(prompts: Sequence[Prompt], count: int, *, seed: int) -> list[Draw]:
    """`count` requests spread evenly over the prompts: the first of each, then the second of each, and so on.

    Their seeds come from a stream of their own, so that no evaluated picture was ever a candidate.
    """
    _distinct(prompts)
    if not prompts and count:
        raise ValueError(f"{count} evaluation pictures need at least one prompt; give one or ask for 0")
    turns = ((prompts[i % len(prompts)], i // len(prompts)) for i in range(count))
    return [Draw(prompt, k, derive_seed(seed, "evaluate", prompt.id, k)) for prompt, k in turns]


def _uniform(seed: int, purpose: str, *position: int | str) -> float:
    """A number in (0, 1) from its position."""
    return (derive_seed(seed, purpose, *position) + 1) / (2**63 + 2)


def _distinct(prompts: Sequence[Prompt]) -> None:
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.id in seen:
            raise ValueError(f"the prompt {prompt.text!r} is given twice; its pictures would be the same, keep one")
        if not (prompt.weight > 0 and math.isfinite(prompt.weight)):
            raise ValueError(f"the weight of {prompt.text!r} is {prompt.weight}; it must be a finite number above 0")
        seen.add(prompt.id)
