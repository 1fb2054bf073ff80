"""What pictures are ranked by. A reward is a callable from samples to named scores, higher is better.

Importing this package loads no model library; `clip`, `preference`, `compress` and `custom` hold the scorers, and
`heads` knows where the published aesthetic heads are.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from textwrap import indent

from ..core.choices import HUMAN


@dataclass(frozen=True, slots=True)
class RewardInfo:
    """What a user must know of a reward.

    unit_range: where its numbers lie. licence: of the weights it needs; `direction`: which end is good.
    needs_prompt: whether a picture without a prompt has no such score.
    comparable_across_prompts: whether a higher number means a better picture also where the prompts differ. A score
        of picture and text does not: a prompt of one word has other scores than a long one, whatever the picture.
    """

    name: str
    measures: str
    unit_range: str
    source: str
    licence: str
    direction: str = "higher is better"
    needs_prompt: bool = False
    comparable_across_prompts: bool = True


KNOWN = (
    RewardInfo(
        "text_image",
        "how well the picture fits its prompt: 100 x cosine of the CLIP embeddings",
        "-100 to 100, pictures that fit about 20 to 35",
        "CLIP score, Hessel et al. 2021 (arXiv:2104.08718)",
        "the tower's: OpenAI's ViT-L/14 is MIT, the carried one this package's",
        needs_prompt=True,
        comparable_across_prompts=False,
    ),
    RewardInfo(
        "aesthetic",
        "how good the picture looks: the head that the tower carries, aesthetic_v2 on OpenAI's ViT-L/14",
        "about 1 to 10",
        "LAION aesthetic predictor; the carried head is this package's",
        "of the head",
    ),
    RewardInfo(
        "aesthetic_v1",
        "how good the picture looks: one linear layer on the L2-normalised embedding; not the scale of v2",
        "about -3 to 12, pictures about 4 to 7",
        "LAION-AI/aesthetic-predictor, the head of RAFT's experiments (arXiv:2304.06767)",
        "MIT",
    ),
    RewardInfo(
        "aesthetic_v2",
        "how good the picture looks: five linear layers on the L2-normalised embedding; not the scale of v1",
        "about 1 to 10, pictures about 4 to 7",
        "christophschuhmann/improved-aesthetic-predictor, the reward of DDPO (arXiv:2305.13301)",
        "Apache-2.0",
    ),
    RewardInfo(
        "pickscore",
        "which picture people prefer for the prompt: cosine x the model's logit scale (about 100)",
        "-100 to 100, pictures about 16 to 24",
        "PickScore v1, Kirstain et al. 2023 (arXiv:2305.01569)",
        "MIT (the authors' repository; the weights state none)",
        needs_prompt=True,
        comparable_across_prompts=False,
    ),
    RewardInfo(
        "hpsv2.1",
        "which picture people prefer for the prompt: 100 x cosine; not the scale of version 2.0",
        "-100 to 100, pictures about 15 to 35",
        "HPSv2.1, Wu et al. 2023 (arXiv:2306.09341)",
        "Apache-2.0",
        needs_prompt=True,
        comparable_across_prompts=False,
    ),
    RewardInfo(
        "compressibility",
        "minus the kilobytes of the picture as a JPEG of quality 95",
        "below 0",
        "DDPO, Black et al. 2023 (arXiv:2305.13301)",
        "no weights",
    ),
    RewardInfo(
        "incompressibility",
        "the kilobytes of the picture as a JPEG of quality 95",
        "above 0",
        "DDPO, Black et al. 2023 (arXiv:2305.13301)",
        "no weights",
    ),
)
AESTHETICS = ("aesthetic", "aesthetic_v1", "aesthetic_v2")
TOWER_REWARDS = ("text_image", *AESTHETICS)
"""What one pass of a CLIP tower gives."""
PREFERENCES = ("pickscore", "hpsv2.1")
"""What has a model of its own."""
LOG_RATIO = "log_ratio"
"""What only a run can rank by, for it asks the model that is being tuned: see `diffusion.log_ratio`."""
LOG_RATIO_LEVELS = 4
"""Noise levels at which it looks at a picture, with the adapter and without."""


def describe() -> str:
    """The known rewards as plain text: name, what it measures, range, direction, where it compares, source, licence."""
    return "\n".join(f"{info.name}\n" + indent("\n".join(_lines(info)), "  ") for info in KNOWN)


def _lines(info: RewardInfo) -> tuple[str, ...]:
    scope = "across prompts" if info.comparable_across_prompts else "within one prompt only"
    return (
        info.measures,
        f"{info.unit_range}; {info.direction}; comparable {scope}",
        f"source: {info.source}; licence: {info.licence}",
    )


def check_comparable(weights: Mapping[str, float], *, across: bool) -> None:
    """Raises ValueError where a ranking compares prompts with each other (`across`) by a reward that may not.

    weights: the ranking's, by score name. A reward of the user's own counts as comparable.
    """
    within = [info.name for info in KNOWN if not info.comparable_across_prompts and weights.get(info.name)]
    if across and within:
        one = len(within) == 1
        raise ValueError(
            f"{' and '.join(within)} compare{'s' * one} pictures of one prompt only, but top_fraction and top_count "
            "compare prompts with each other: leave them out, so that the best of each prompt win, or rank by "
            f"{', '.join(info.name for info in KNOWN if info.comparable_across_prompts)}, or a reward of your own"
        )


def check_names(names: Iterable[str]) -> None:
    """Raises ValueError for a name that is neither a known reward's nor of the form "module:function"."""
    known = [info.name for info in KNOWN]
    for name in names:
        if ":" in name:
            split_custom(name)
        elif name == LOG_RATIO:
            raise ValueError(
                f"{LOG_RATIO} compares the model that is being tuned with its base, so it scores in a run alone: "
                f"set rewards.weights.{LOG_RATIO} there, such as -0.1"
            )
        elif name == HUMAN:
            raise ValueError(f"{HUMAN} is you, who rank a run while it goes on: train --reward {HUMAN}, then its page")
        elif name not in known:
            near = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}? It" if near else "it"
            raise ValueError(
                f"unknown reward {name!r}: {hint} must be one of {', '.join(known)}, "
                'or a function of your own as "module:function"'
            )


def split_custom(name: str, *, what: str = "reward") -> tuple[str, str]:
    """The module and the function of "module:function". Raises ValueError for anything else, saying `what` it is."""
    module, _, function = name.partition(":")
    if not module or not function or ":" in function:
        example = f"my_{what}s:{'brightness' if what == 'reward' else 'draw'}"
        raise ValueError(f'the {what} {name!r} must be written "module:function", such as {example}')
    return module, function


def score_name(name: str) -> str:
    """What the scores of a reward are called: a known reward's name, or the function's of "module:function"."""
    return split_custom(name)[1] if ":" in name else name
