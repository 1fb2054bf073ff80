"""How likely a model finds a completion. One function serves the tuner, the KL term and the perplexity.

Legend: B completions a batch, L tokens of the longest prompt and completion together, T of the longest completion.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..core.records import Sample
from ..rewards import LOG_RATIO
from ..room import Room
from .completion import Completion

if TYPE_CHECKING:
    from .policy import TextPolicy


def pad_left(rows: Sequence[Sequence[int]], *, pad: int, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, both (B, L), every row ending at the right edge; the mask is 1 on real tokens."""
    longest = max(map(len, rows))
    ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


def accepted(model: Any, **inputs: Any) -> dict[str, Any]:
    """Those of `inputs` that the model's forward pass takes: some architectures know no position ids."""
    known = inspect.signature(model.forward).parameters
    return {name: value for name, value in inputs.items() if name in known}


def position_ids(mask: torch.Tensor) -> torch.Tensor:
    """(B, L): every row counts from 0 at its first real token, as without padding."""
    return (mask.cumsum(dim=1) - 1).clamp(min=0)


def log_probs(model: Any, completions: Sequence[Completion], *, pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """log p(token | prompt, tokens before it) of every completion token at temperature 1, and its mask, (B, T).

    float32; right-aligned, 0 where the mask is 0. Gradients flow. Raises ValueError for a completion without a token.
    """
    if empty := next((item for item in completions if not item.ids), None):
        raise ValueError(f"a completion has no token, so it has no probability (its text is {empty.text!r})")
    longest = max(len(item.ids) for item in completions)
    ids, mask = pad_left([item.prompt_ids + item.ids for item in completions], pad=pad, device=model.device)
    some = accepted(model, position_ids=position_ids(mask), logits_to_keep=longest + 1)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False, **some).logits
    logits = logits[:, -longest - 1 : -1].float()  # the logits at one token say what comes next
    told = logits.gather(2, ids[:, -longest:, None])[..., 0] - logits.logsumexp(dim=2)
    lengths = torch.tensor([len(item.ids) for item in completions], device=model.device)
    counted = torch.arange(longest, device=model.device) >= longest - lengths[:, None]
    return told * counted, counted


@torch.no_grad()
def sums(policy: TextPolicy, completions: Sequence[Completion]) -> list[float]:
    """log p of each whole completion by the policy as it is now, added up in double precision."""
    totals: list[float] = []

    def some(batch: Sequence[Completion]) -> list[float]:
        told, _ = log_probs(policy.model, batch, pad=policy.pad)
        return told.cpu().double().sum(dim=1).tolist()

    for _, part in Room("scoring", noun="texts").batches(completions, policy.settings.batch_size, some):
        totals += part
    return totals


def perplexity(policy: TextPolicy, completions: Sequence[Completion]) -> float:
    """exp of minus the mean log-probability a token, over all tokens of all completions, at temperature 1."""
    tokens = sum(len(item.ids) for item in completions)
    return math.exp(-math.fsum(sums(policy, completions)) / tokens)


class TextLogRatio:
    """A reward that is bound to the policy it looks at: log p_theta(text | prompt) - log p_0(text | prompt), where
    theta is the policy with its adapter and 0 without.

    With the weight -beta it is the KL term of RAFT's ranking key r - beta log(p_theta / p_0) (Dong et al. 2023,
    arXiv:2304.06767). Exactly 0 for an adapter that has not learned yet.
    """

    in_parts = True
    """Several processes may score parts of the samples."""

    def __init__(self, policy: TextPolicy) -> None:
        self._policy = policy

    def __call__(self, samples: Sequence[Sample]) -> dict[str, list[float]]:
        """One number a sample, in nats a completion."""
        completions = [sample.data for sample in samples]
        with self._policy.tuned():
            tuned = sums(self._policy, completions)
        with self._policy.base():
            base = sums(self._policy, completions)
        return {LOG_RATIO: [after - before for after, before in zip(tuned, base, strict=True)]}
