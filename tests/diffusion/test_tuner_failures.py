"""What the tuner does where a loss is not finite, and where the device has too little memory."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator

from raft_diffusion.diffusion.pictures import Picture
from raft_diffusion.diffusion.sampler import DiffusionPolicy
from raft_diffusion.diffusion.tuner import DiffusionTuner, _Batches
from raft_diffusion.skips import Diverged, Skips


@pytest.fixture
def make_policy(components, settings, shake):
    """A policy on a model of its own: every call starts from the same weights."""

    def make():
        policy = DiffusionPolicy(copy.deepcopy(components), settings=settings)
        policy.add_adapter(rank=4, alpha=6.0)
        shake(policy)
        return policy

    return make


def weights(policy):
    return torch.cat([parameter.detach().flatten() for parameter in policy.trained.parameters().values()])


def with_latent(winner, latent):
    sample = replace(winner.sample, data=Picture(latent, winner.sample.data.image))
    return replace(winner, candidate=replace(winner.candidate, sample=sample))


# --- numbers ----------------------------------------------------------------------------------------------------------


def with_norms(monkeypatch, *norms: float) -> None:
    told = iter(norms)
    monkeypatch.setattr(Accelerator, "clip_grad_norm_", lambda *_: torch.tensor(next(told)))


def test_a_step_whose_gradient_is_not_finite_is_left_out_and_counted(make_policy, winners, monkeypatch):
    tune = DiffusionTuner(steps=4, batch_size=2, learning_rate=1e-3, max_grad_norm=1e9)
    usual, shaken = make_policy(), make_policy()
    with_norms(monkeypatch, 1.0, 2.0, 3.0, 4.0)
    assert "skipped" not in tune(usual, winners, seed=1)
    with_norms(monkeypatch, math.inf, math.nan, 3.0, math.inf)
    with pytest.warns(UserWarning, match="3 of 4 tuning steps were skipped, for their loss or gradient was not finite"):
        figures = tune(shaken, winners, seed=1)
    assert (figures["skipped"], figures["grad_norm"]) == (3, 3.0)
    assert torch.isfinite(weights(shaken)).all() and not torch.equal(weights(shaken), weights(usual))


def test_nothing_of_a_step_that_is_left_out_is_learned(make_policy, winners, monkeypatch):
    """Its gradients would add up to the next step's: only the step that was good may have moved the weights."""
    policy, alone = make_policy(), make_policy()
    asked, first = [], _Batches.draw

    def twice_the_same(self, count, levels):
        asked.append(first(self, count, levels) if not asked else asked[0])
        return asked[-1]

    monkeypatch.setattr(_Batches, "draw", twice_the_same)
    with_norms(monkeypatch, math.inf, 1.0)
    with pytest.warns(UserWarning, match="1 of 2 tuning steps were skipped"):
        DiffusionTuner(steps=2, batch_size=2, learning_rate=1e-3)(policy, winners, seed=1)
    with_norms(monkeypatch, 1.0)
    DiffusionTuner(steps=1, batch_size=2, learning_rate=1e-3)(alone, winners, seed=1)
    assert torch.equal(weights(policy), weights(alone))


def test_three_in_a_row_are_too_many(make_policy, winners, monkeypatch):
    with_norms(monkeypatch, math.inf, math.inf, 1.0, math.inf, math.inf, math.inf, 1.0)
    with pytest.raises(
        Diverged, match="the gradient was not finite in 3 tuning steps in a row, the last of them step 6"
    ):
        DiffusionTuner(steps=7, batch_size=1, learning_rate=1e-12)(make_policy(), winners, seed=1)


def test_a_round_without_a_good_step_is_refused(make_policy, winners, monkeypatch):
    with_norms(monkeypatch, math.inf, math.inf)
    with pytest.raises(Diverged, match="none of the 2 tuning steps had a finite loss and gradient; tune more steps"):
        DiffusionTuner(steps=2, batch_size=1, learning_rate=1e-3)(make_policy(), winners, seed=1)


def test_a_scaled_loss_may_overflow_more_often_until_its_scale_is_found():
    skips = Skips()
    for step in range(1, 6):
        skips.add(step, "gradient", scaled=True)
    assert (skips.total, skips.row) == (5, 0)
    skips.add(6, "loss")
    skips.add(7, "loss")
    skips.add(8, "gradient", scaled=True)
    with pytest.raises(Diverged, match="the loss was not finite in 3 tuning steps in a row"):
        skips.add(9, "loss")


def test_a_loss_that_is_not_finite_is_left_out_before_it_is_learned(make_policy, winners):
    broken = with_latent(winners[0], torch.full((4, 6, 8), float("nan")))
    policy = make_policy()
    with pytest.warns(UserWarning, match="2 of 4 tuning steps were skipped"):  # each of the two is used twice
        figures = DiffusionTuner(steps=4, batch_size=1, learning_rate=1e-3)(policy, [winners[1], broken], seed=1)
    assert figures["skipped"] == 2 and math.isfinite(figures["loss"]) and torch.isfinite(weights(policy)).all()
    with pytest.raises(Diverged, match="the loss was not finite in 3 tuning steps in a row, the last of them step 3"):
        DiffusionTuner(steps=9, batch_size=1, learning_rate=1e-3)(make_policy(), [broken], seed=1)


# --- memory -----------------------------------------------------------------------------------------------------------


def too_small(policy, most: int, *, after: int = 0):
    """The UNet of a device with memory for `most` pictures at once, from the call `after` on."""
    forward, sizes = policy.components.unet.forward, []

    def limited(sample, *arguments, **options):
        sizes.append(len(sample))
        if len(sample) > most and len(sizes) > after:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return forward(sample, *arguments, **options)

    policy.components.unet.forward = limited
    return sizes


@pytest.mark.parametrize("after", [0, 1])
def test_a_pass_that_does_not_fit_is_split_and_teaches_the_same(make_policy, winners, after):
    """after 1: the step fails half-way, and what its first half left behind must not count."""
    tune = DiffusionTuner(steps=2, batch_size=4, gradient_accumulation=2, learning_rate=1e-3)
    usual, small = make_policy(), make_policy()
    expected = tune(usual, winners, seed=3)
    sizes = too_small(small, 3, after=after)
    with pytest.warns(UserWarning, match="no memory for tuning on 4 pictures at once: batches are halved") as told:
        figures = tune(small, winners, seed=3)
    assert sizes == [4] * after + [4] + [2] * 8 and len(told) == 1
    assert figures == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(weights(small), weights(usual), rtol=1e-4, atol=1e-6)


def test_what_does_not_fit_one_by_one_is_told(make_policy, winners):
    policy = make_policy()
    too_small(policy, 0)
    with (
        pytest.warns(UserWarning, match="batches are halved"),
        pytest.raises(ValueError, match="no memory for tuning on even one of the pictures at a time"),
    ):
        DiffusionTuner(steps=1, batch_size=2, learning_rate=1e-3)(policy, winners, seed=3)
