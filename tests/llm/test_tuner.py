import math

import pytest
import torch
import torch.nn.functional as F

from raft_diffusion.core.records import Draw, Prompt
from raft_diffusion.llm.log_prob import sums
from raft_diffusion.llm.tuner import TextTuner


def gradients(policy, winners, **how):
    """What one step of tiny learning rate and no clipping leaves in the optimiser's place: the loss's gradients."""
    kept = {}
    original = torch.nn.utils.clip_grad_norm_

    def spy(parameters, limit):
        kept.update({name: p.grad.clone() for name, p in policy.trained.parameters().items()})
        return original(parameters, limit)

    torch.nn.utils.clip_grad_norm_ = spy
    try:
        figures = TextTuner(steps=1, learning_rate=1e-9, **how)(policy, winners, seed=0)
    finally:
        torch.nn.utils.clip_grad_norm_ = original
    return figures, kept


def test_only_the_completion_has_a_loss_with_a_chat_template(make_policy, as_winner):
    """By hand: the template is 0<prompt>;2, the answer follows, so the labels of the first four tokens are off."""
    policy = make_policy(chat=True)
    winner = as_winner(policy, "7", "14")
    tokenizer = policy.tokenizer
    ids = torch.tensor([[*tokenizer("07;214").input_ids, tokenizer.eos_token_id]])
    assert winner.sample.data.prompt_ids + winner.sample.data.ids == tuple(ids[0].tolist())
    labels = ids.clone()
    labels[0, :4] = -100
    with torch.no_grad():
        logits = policy.model(ids).logits
    by_hand = F.cross_entropy(logits[0, 3:6], ids[0, 4:7])  # "1", "4" and the end, each told one place earlier
    assert policy.model(ids, labels=labels).loss.item() == pytest.approx(by_hand.item(), abs=1e-6)
    figures, _ = gradients(policy, [winner], batch_size=1)
    assert figures["loss"] == pytest.approx(by_hand.item(), abs=1e-5)


def test_the_loss_weighs_winners_and_counts_tokens(policy, as_winner):
    pairs = [("1+2=", "3", 1.0), ("13+45=", "3+5=8;1+4=5:58", 3.0)]
    winners = [as_winner(policy, *pair) for pair in pairs]
    one, other = sums(policy, [winner.sample.data for winner in winners])
    figures, _ = gradients(policy, winners, batch_size=2)
    assert figures["loss"] == pytest.approx(-(0.5 * one + 1.5 * other) / (2 + 15), rel=1e-5)


def test_accumulation_changes_nothing(make_policy, as_winner):
    texts = [("1=", "1"), ("22=", "2:2"), ("3+3=", "66666"), ("4=", "4;4")]
    whole, parts = make_policy(learned=True), make_policy(learned=True)
    first, a = gradients(whole, [as_winner(whole, *text) for text in texts], batch_size=4)
    second, b = gradients(parts, [as_winner(parts, *text) for text in texts], batch_size=1, gradient_accumulation=4)
    assert first == pytest.approx(second, rel=1e-5)
    assert all((a[name] - b[name]).norm() <= 1e-4 * a[name].norm() for name in a)


def test_tuning_makes_winners_likelier_and_is_repeatable(make_policy, as_winner):
    tuner = TextTuner(steps=20, batch_size=2, learning_rate=1e-2, warmup_steps=3)

    def run():
        policy = make_policy()
        winners = [as_winner(policy, "1+2=", "3"), as_winner(policy, "3+4=", "7")]
        before = sums(policy, [winner.sample.data for winner in winners])
        tuner(policy, winners, seed=3)
        return policy, before, sums(policy, [winner.sample.data for winner in winners])

    policy, before, after = run()
    again, _, same = run()
    assert all(later > earlier + 2 for earlier, later in zip(before, after, strict=True))
    assert after == same
    own, other = policy.trained.parameters(), again.trained.parameters()
    assert all(torch.equal(own[name], other[name]) for name in own)
    fresh = make_policy()
    with policy.base():  # the base itself was never touched
        ids = torch.tensor([policy.encode("5+5=")])
        assert torch.equal(policy.model(ids).logits, fresh.model(ids).logits)
    assert policy.generate([Draw(Prompt("1+2="), 0, 1)])[0].data.text == "3"


def test_what_cannot_be_learned_from_is_refused(policy, as_winner):
    tuner = TextTuner(steps=1, batch_size=1, learning_rate=1e-3)
    with pytest.raises(ValueError, match="no winner"):
        tuner(policy, [as_winner(policy, "1=", "1", weight=0.0)], seed=0)
    with pytest.raises(ValueError, match="weight nan"):
        tuner(policy, [as_winner(policy, "1=", "1", weight=math.nan)], seed=0)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"warmup_steps": -1}])
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TextTuner(**({"steps": 1, "batch_size": 1, "learning_rate": 1e-3} | wrong))
