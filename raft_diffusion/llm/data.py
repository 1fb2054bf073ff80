"""The questions, answers and reference texts of a run: from JSONL files, or a carried world's by its name."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..core.records import Prompt, derive_seed
from .config import TextConfig
from .examples import read_examples, truths
from .pocket import world

REVIEWS, SUMS = "pocket-reviews", "pocket-sums"
Rows = list[Mapping[str, str]]
REFERENCES = 256
"""Reviews of either kind that a perplexity is taken over."""


def read_rows(source: str, *, held_out: bool, limit: int | None) -> Rows:
    """The prompts of a file or a carried world, each once, with the answers that are known.

    held_out: which side of a carried world; a file is one side as a whole.
    Raises ValueError as `read_examples` does.
    """
    if source == REVIEWS:
        every = [{"prompt": text} for place, text in enumerate(world.OPENINGS) if (place % 4 == 3) == held_out]
        rows = random.Random(derive_seed(0, REVIEWS)).sample(every, len(every))
    elif source == SUMS:
        questions = world.HELD_OUT_SUMS if held_out else world.SEEN_SUMS
        shuffled = random.Random(derive_seed(0, SUMS)).sample(questions, len(questions))
        rows = [{"prompt": text, "answer": world.right_answer(text)} for text in shuffled]
    else:
        rows = list({row["prompt"]: row for row in read_examples(Path(source))}.values())
    return list(rows[:limit])


def train_rows(config: TextConfig) -> Rows:
    return read_rows(config.prompts.train, held_out=False, limit=config.prompts.limit)


def held_out_rows(config: TextConfig) -> Rows:
    asked = config.prompts
    return read_rows(asked.held_out, held_out=True, limit=asked.limit) if asked.held_out else []


def evaluated(config: TextConfig) -> Rows:
    """What the evaluation asks: the first held-out prompts, or trained ones where none are held out."""
    return (held_out_rows(config) or train_rows(config))[: config.evaluation.prompts]


def prompts_of(rows: Sequence[Mapping[str, str]]) -> list[Prompt]:
    return [Prompt(row["prompt"]) for row in rows]


def train_prompts(config: TextConfig) -> list[Prompt]:
    return prompts_of(train_rows(config))


def held_out_prompts(config: TextConfig) -> list[Prompt]:
    return prompts_of(held_out_rows(config))


def truths_of(config: TextConfig) -> dict[str, str]:
    """Every prompt's right answer. Raises ValueError for a prompt without one."""
    return truths([*train_rows(config), *held_out_rows(config)])


def references(source: str) -> dict[str, Rows]:
    """Texts for the perplexity, by its name. The carried world has positive reviews, and both kinds as they come; of
    its sums, the right answers to those that are held out.

    No reference is a training text of the carried model: reviews come from a stream of their own.
    Raises ValueError for a file without a completion.
    """
    if source == SUMS:
        held_out = read_rows(SUMS, held_out=True, limit=None)
        return {"perplexity": [{"prompt": row["prompt"], "completion": row["answer"]} for row in held_out]}
    if source != REVIEWS:
        rows = [row for row in read_examples(Path(source)) if "completion" in row]
        if not rows:
            raise ValueError(f'{source} holds no "completion" to take the perplexity of; add it, or clear reference')
        return {"perplexity": list(rows)}
    rng = random.Random(derive_seed(0, "references"))
    positive = [world.write_review(rng, positive=True) for _ in range(REFERENCES)]
    both = [world.write_review(rng) for _ in range(REFERENCES)]
    named = {"perplexity": positive, "perplexity_both_kinds": both}
    return {name: [{"prompt": r.opening, "completion": r.rest} for r in some] for name, some in named.items()}
