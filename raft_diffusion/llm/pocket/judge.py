"""The judge of reviews: for the evaluation alone, and unlike what ranks.

It shares no weight, no feature and no training text with the classifier that ranks: words and neighbouring pairs of
words are counted, and a logistic regression weighs them.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

BUCKETS = 4096
FILE_NAME = "judge.safetensors"


def features(texts: Sequence[str]) -> torch.Tensor:
    """(N, BUCKETS): how often each word and each pair occurs; crc32 says which bucket counts it."""
    import torch

    counts = torch.zeros(len(texts), BUCKETS)
    for row, text in enumerate(texts):
        words = text.split()
        for gram in [*words, *map(" ".join, pairwise(words))]:
            counts[row, zlib.crc32(gram.encode()) % BUCKETS] += 1
    return counts


class Judge:
    """Whether a text praises: the log-odds above 0."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        self._weight, self._bias = weight, bias

    @classmethod
    def load(cls, folder: Path) -> Judge:
        from safetensors.torch import load_file

        tensors = load_file(folder / FILE_NAME)
        return cls(tensors["weight"].float(), tensors["bias"].float())

    def positive(self, texts: Sequence[str]) -> list[float]:
        """1.0 for praise, else 0.0, one number a text."""
        return ((features(texts) @ self._weight + self._bias) > 0).float().tolist()
