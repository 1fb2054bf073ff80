"""What pictures are ranked by. A reward is a callable from samples to named scores, higher is better.

Importing this package loads no model library; `clip`, `compress` and `custom` hold the scorers.
"""

from __future__ import annotations

from dataclasses import dataclass
from textwrap import indent


@dataclass(frozen=True, slots=True)
class RewardInfo:
    """What a user must know of a reward. `unit_range`: where its numbers lie; `direction`: which end is good."""

    name: str
    measures: str
    unit_range: str
    source: str
    direction: str = "higher is better"


KNOWN = (
    RewardInfo(
        "text_image",
        "how well the picture fits its prompt: 100 x cosine of the CLIP embeddings",
        "-100 to 100; comparable within one prompt only",
        "CLIP score, Hessel et al. 2021 (arXiv:2104.08718)",
    ),
    RewardInfo(
        "aesthetic",
        "how good the picture looks: a linear head on the L2-normalised CLIP image embedding",
        "about 1 to 10",
        "LAION aesthetic predictor (v1: linear, v2: improved-aesthetic-predictor; their scales differ)",
    ),
    RewardInfo(
        "compressibility",
        "minus the kilobytes of the picture as a JPEG of quality 95",
        "below 0",
        "DDPO, Black et al. 2023 (arXiv:2305.13301)",
    ),
    RewardInfo(
        "incompressibility",
        "the kilobytes of the picture as a JPEG of quality 95",
        "above 0",
        "DDPO, Black et al. 2023 (arXiv:2305.13301)",
    ),
)


def describe() -> str:
    """The known rewards as plain text: name, what it measures, range, direction, source."""
    return "\n".join(
        f"{info.name}\n" + indent(f"{info.measures}\n{info.unit_range}; {info.direction}\nsource: {info.source}", "  ")
        for info in KNOWN
    )
