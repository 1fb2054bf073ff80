"""How each carried language model is trained. Every stage is a function (folder, scale, report) that can be killed and
goes on; texts come from the worlds, seeds from (stage, step).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.records import derive_seed
from ...pocket.recipe import Report, finish, fit
from . import nets, world
from .judge import features

SEED = 20261121
VERSION = 1
STEPS = {"reviews": 3000, "reviews_small": 2000, "sums": 600, "sentiment": 300, "held_out": 300, "judge": 180}
BATCH = {"reviews": 64, "reviews_small": 64, "sums": 128, "sentiment": 64, "held_out": 64, "judge": 128}
TESTED = 512
"""New reviews, as many of either kind, that say how often a classifier is right."""


def steps_of(stage: str, scale: float) -> int:
    return max(4, round(STEPS[stage] * scale))


def draw_review(rng: random.Random) -> str:
    return world.write_review(rng).text


def draw_sum(rng: random.Random) -> str:
    """A question and what a pupil answers, mistakes and all."""
    question = rng.choice(world.SEEN_SUMS)
    return question + world.answer_sum(question, rng)


def train_writer(
    folder: Path,
    scale: float,
    report: Report,
    *,
    stage: str,
    make_tokenizer: Callable[[], Any],
    make_net: Callable[[int], Any],
    draw: Callable[[random.Random], str],
) -> None:
    """Next-token prediction on the texts of a world."""
    torch.manual_seed(derive_seed(SEED, stage))
    tokenizer = make_tokenizer()
    net, steps = make_net(len(tokenizer)), steps_of(stage, scale)

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        rng = random.Random(derive_seed(SEED, stage, "texts", step))
        ids = _padded(tokenizer, [draw(rng) for _ in range(BATCH[stage])])
        real = ids != tokenizer.pad_token_id
        return net(input_ids=ids, attention_mask=real.long(), labels=ids.masked_fill(~real, -100)).loss

    net = fit(folder, net, loss_of, stage=stage, steps=steps, learning_rate=3e-3, report=report, ema=0.995)
    finish(folder, _without_tied(net), steps=steps)


def train_classifier(folder: Path, scale: float, report: Report, *, stage: str) -> None:
    """Cross-entropy of what the author thinks. The stages differ in their start and their texts."""
    torch.manual_seed(derive_seed(SEED, stage))
    tokenizer = nets.words_tokenizer()
    net, steps = nets.make_classifier(len(tokenizer)), steps_of(stage, scale)

    def logits_of(reviews: Sequence[world.Review]) -> Tensor:
        ids = _padded(tokenizer, [review.text for review in reviews], end=False)
        return net(input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long()).logits

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        reviews = _reviews(stage, step, BATCH[stage])
        return F.cross_entropy(logits_of(reviews), torch.tensor([int(review.positive) for review in reviews]))

    net = fit(folder, net, loss_of, stage=stage, steps=steps, learning_rate=2e-3, report=report)
    reviews = _reviews(f"{stage} test", 0, TESTED)
    with torch.inference_mode():
        said = logits_of(reviews).argmax(1) == 1
    finish(folder, dict(net.state_dict()), steps=steps, accuracy=_share_right(said, reviews))


def train_judge(folder: Path, scale: float, report: Report) -> None:
    """Logistic regression on counts, from texts of its own."""
    net, steps = torch.nn.Linear(features([""]).shape[1], 1), steps_of("judge", scale)
    torch.nn.init.zeros_(net.weight)
    torch.nn.init.zeros_(net.bias)

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        reviews = _reviews("judge", step, BATCH["judge"])
        truth = torch.tensor([float(review.positive) for review in reviews])
        return F.binary_cross_entropy_with_logits(net(features([review.rest for review in reviews]))[:, 0], truth)

    net = fit(folder, net, loss_of, stage="judge", steps=steps, learning_rate=3e-2, report=report)
    reviews = _reviews("judge test", 0, TESTED)
    with torch.inference_mode():
        said = net(features([review.rest for review in reviews]))[:, 0] > 0
    tensors = {"weight": net.weight.detach()[0], "bias": net.bias.detach()}
    finish(folder, tensors, steps=steps, accuracy=_share_right(said, reviews))


def _reviews(stage: str, step: int, count: int) -> list[world.Review]:
    """As many of either kind."""
    rng = random.Random(derive_seed(SEED, stage, "texts", step))
    return [world.write_review(rng, positive=bool(place % 2)) for place in range(count)]


def _share_right(said: Tensor, reviews: Sequence[world.Review]) -> float:
    return (said == torch.tensor([review.positive for review in reviews])).float().mean().item()


def _padded(tokenizer: Any, texts: Sequence[str], *, end: bool = True) -> Tensor:
    """(B, L), padded on the right; the end token after each text where `end`."""
    last = [tokenizer.eos_token_id] if end else []
    rows = [ids + last for ids in tokenizer(list(texts)).input_ids]
    longest = max(map(len, rows))
    return torch.tensor([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in rows])


def _without_tied(net: Any) -> dict[str, Tensor]:
    """The output layer is the embedding: a file holds it once."""
    return {name: value for name, value in net.state_dict().items() if name != "lm_head.weight"}


_reviewer = partial(train_writer, make_tokenizer=nets.words_tokenizer, draw=draw_review)
TRAIN: dict[str, Callable[[Path, float, Report], None]] = {
    "reviews": partial(_reviewer, stage="reviews", make_net=nets.make_writer),
    "reviews_small": partial(_reviewer, stage="reviews_small", make_net=nets.make_small_writer),
    "sums": partial(
        train_writer,
        stage="sums",
        make_tokenizer=nets.characters_tokenizer,
        make_net=nets.make_writer,
        draw=draw_sum,
    ),
    "sentiment": partial(train_classifier, stage="sentiment"),
    "held_out": partial(train_classifier, stage="held_out"),
    "judge": train_judge,
}
