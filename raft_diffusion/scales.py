"""What measures a run's pictures and trains nothing: the rewards, the carried model's judge, and its true world."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from .checks import POCKET
from .core.config import Config
from .core.loop import Reward
from .evaluate import Judge

TRUE_PICTURES = 512  # in all, for the Frechet distance


@dataclass(frozen=True, kw_only=True)
class Scales:
    """rewards: score samples, those that rank and the held-out one. judge: the carried model's, or None.

    embed: features (N, D) of unit length, for diversity. truth: features (M, D) of true pictures of these prompts, for
    the Frechet distance, or None.
    """

    rewards: Sequence[Reward]
    judge: Judge | None
    embed: Callable[[Sequence[Any]], Any] | None
    truth: Callable[[Sequence[str]], Any] | None


def make_scales(config: Config) -> Scales:
    """The scales of a run: the judge's features where there is a judge, else those of its last CLIP tower."""
    from .assemble import make_rewards
    from .rewards.clip import ClipTower

    rewards = make_rewards(config)
    judge, pictures = make_judge(config)
    if judge is not None and pictures is not None:

        def truth(texts: Sequence[str]) -> Any:
            names = list(dict.fromkeys(texts))
            return judge.embed([picture for name in names for picture in pictures(name, TRUE_PICTURES // len(names))])

        return Scales(rewards=rewards, judge=judge, embed=judge.embed, truth=truth)
    towers = [reward for reward in rewards if isinstance(reward, ClipTower)]
    return Scales(rewards=rewards, judge=None, embed=towers[-1].embed_images if towers else None, truth=None)


def make_judge(config: Config) -> tuple[Judge | None, Callable[[str, int], Sequence[Any]] | None]:
    """The carried judge and the world's true pictures (text, count), for the carried model and prompts it knows."""
    if config.model != POCKET:
        return None, None
    from . import pocket
    from .pocket.judge import Judge as Carried
    from .pocket.judge import knows
    from .pocket.world import true_pictures

    if not all(knows(prompt.text) for prompt in (*config.train_prompts(), *config.held_out_prompts())):
        return None, None
    return Carried.load(pocket.JUDGE), partial(true_pictures, size=config.sampling.width, seed=config.seed)
