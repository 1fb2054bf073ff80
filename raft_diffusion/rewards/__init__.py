"""What pictures are ranked by. A reward is a callable from samples to named scores, higher is better.

Importing this package loads no model library; `clip`, `compress` and `custom` hold the scorers.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from textwrap import indent


@dataclass(frozen=True, slots=True)
class RewardInfo:
    """What a user must know of a reward. `unit_range`: where its numbers lie; `direction`: which end is good;
    `needs_prompt`: whether a picture without a prompt has no such score."""

    name: str
    measures: str
    unit_range: str
    source: str
    direction: str = "higher is better"
    needs_prompt: bool = False


KNOWN = (
    RewardInfo(
        "text_image",
        "how well the picture fits its prompt: 100 x cosine of the CLIP embeddings",
        "-100 to 100; comparable within one prompt only",
        "CLIP score, Hessel et al. 2021 (arXiv:2104.08718)",
        needs_prompt=True,
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


def check_names(names: Iterable[str]) -> None:
    """Raises ValueError for a name that is neither a known reward's nor of the form "module:function"."""
    known = [info.name for info in KNOWN]
    for name in names:
        if ":" in name:
            split_custom(name)
        elif name not in known:
            near = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}? It" if near else "it"
            raise ValueError(
                f"unknown reward {name!r}: {hint} must be one of {', '.join(known)}, "
                'or a function of your own as "module:function"'
            )


def split_custom(name: str) -> tuple[str, str]:
    """The module and the function of "module:function". Raises ValueError for anything else."""
    module, _, function = name.partition(":")
    if not module or not function or ":" in function:
        raise ValueError(f'the reward {name!r} must be written "module:function", such as my_rewards:brightness')
    return module, function


def score_name(name: str) -> str:
    """What the scores of a reward are called: a known reward's name, or the function's of "module:function"."""
    return split_custom(name)[1] if ":" in name else name
