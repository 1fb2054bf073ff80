"""The data of a text sample."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Completion:
    """What a language model wrote after a prompt.

    text: the answer alone, without special tokens.
    prompt_ids: the tokens that the model was given, template and all; at least one.
    ids: the tokens that it answered with, in order; the last one is the end token where it came to an end. They are
        kept because text -> tokens -> text is no round trip: the tuner learns what was sampled.
    """

    text: str
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
