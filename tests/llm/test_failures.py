"""Texts: what is done where the device has too little memory, and where a loss is not finite."""

import inspect
import math

import pytest
import torch

from raft_diffusion.llm.log_prob import sums
from raft_diffusion.llm.tuner import TextTuner
from raft_diffusion.skips import Diverged

TEXTS = [("1=", "1"), ("22=", "2:2"), ("3+3=", "66666"), ("4=", "4;4")]


def too_small(policy, most: int, monkeypatch) -> list[int]:
    """The model on a device with memory for `most` texts at once."""
    forward, sizes = policy.model.forward, []

    def limited(*arguments, **inputs):
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(*arguments, **inputs)

    limited.__signature__ = inspect.signature(forward)
    monkeypatch.setattr(policy.model, "forward", limited)
    return sizes


def weights(policy):
    return torch.cat([parameter.detach().flatten() for parameter in policy.trained.parameters().values()])


def test_samples_that_do_not_fit_at_once_are_the_same(make_policy, draws, monkeypatch):
    usual, small = make_policy(learned=True), make_policy(learned=True)
    expected = [sample.data.text for sample in usual.generate(draws)]
    too_small(small, 2, monkeypatch)
    with pytest.warns(
        UserWarning, match="no memory for sampling 4 texts at once: .* sampling.batch_size below"
    ) as told:
        found = small.generate(draws)
    assert [sample.draw for sample in found] == draws and len(told) == 1
    assert [sample.data.text for sample in found] == expected


def test_a_pass_that_does_not_fit_is_split_and_teaches_the_same(make_policy, as_winner, monkeypatch):
    usual, small = make_policy(learned=True), make_policy(learned=True)
    tune = TextTuner(steps=2, batch_size=4, learning_rate=1e-3)
    expected = tune(usual, [as_winner(usual, *text) for text in TEXTS], seed=0)
    winners = [as_winner(small, *text) for text in TEXTS]
    sizes = too_small(small, 3, monkeypatch)
    with pytest.warns(UserWarning, match="no memory for tuning on 4 texts at once"):
        figures = tune(small, winners, seed=0)
    assert sizes == [4, 2, 2, 2, 2]
    assert figures == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(weights(small), weights(usual), rtol=1e-3, atol=1e-5)


def test_log_probabilities_do_not_depend_on_what_fits(make_policy, as_winner, monkeypatch):
    policy = make_policy(learned=True)
    completions = [as_winner(policy, *text).sample.data for text in TEXTS]
    expected = sums(policy, completions)
    too_small(policy, 1, monkeypatch)
    with pytest.warns(UserWarning, match="no memory for scoring 4 texts"):
        assert sums(policy, completions) == pytest.approx(expected, rel=1e-4)


def with_norms(monkeypatch, *norms: float) -> None:
    told = iter(norms)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(next(told)))


def test_a_step_that_is_not_finite_is_left_out_and_counted(make_policy, as_winner, monkeypatch):
    policy = make_policy(learned=True)
    winners = [as_winner(policy, *text) for text in TEXTS]
    with_norms(monkeypatch, math.inf, 2.0, math.nan)
    with pytest.warns(UserWarning, match="2 of 3 tuning steps were skipped"):
        figures = TextTuner(steps=3, batch_size=2, learning_rate=1e-3)(policy, winners, seed=0)
    assert (figures["skipped"], figures["grad_norm"]) == (2, 2.0)
    assert torch.isfinite(weights(policy)).all()


def test_three_in_a_row_are_too_many(make_policy, as_winner, monkeypatch):
    policy = make_policy(learned=True)
    before = weights(policy)
    forward = policy.model.forward

    def broken(*arguments, **inputs):
        out = forward(*arguments, **inputs)
        out.logits = out.logits * math.nan
        return out

    broken.__signature__ = inspect.signature(forward)
    monkeypatch.setattr(policy.model, "forward", broken)
    with pytest.raises(Diverged, match="the loss was not finite in 3 tuning steps in a row, the last of them step 3"):
        TextTuner(steps=9, batch_size=2, learning_rate=1e-3)(policy, [as_winner(policy, "1=", "1")], seed=0)
    assert torch.equal(weights(policy), before)
