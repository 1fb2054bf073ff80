import math

import pytest
import torch
import torch.nn.functional as F

from raft_diffusion.core.records import Draw, Prompt, Sample
from raft_diffusion.llm.completion import Completion
from raft_diffusion.llm.log_prob import TextLogRatio, log_probs, perplexity, sums

TEXTS = (("1+2=", "3"), ("13+45=", "3+5=8;1+4+1=5:58"), ("7=", "7"), ("123+456=", "579:579"), ("9=", ":;:;:;9"))


def plain(model, completion):
    """One unpadded forward pass of transformers, one number a token of the answer."""
    ids = torch.tensor([completion.prompt_ids + completion.ids])
    with torch.no_grad():
        shares = F.log_softmax(model(ids).logits[0, :-1], dim=-1)
    start = len(completion.prompt_ids)
    return [shares[place - 1, ids[0, place]].item() for place in range(start, ids.shape[1])]


@pytest.mark.parametrize("size", [1, 2, 5])
def test_log_probabilities_equal_a_plain_forward_pass(make_policy, size):
    policy = make_policy(learned=True)
    completions = [policy.completion(*pair) for pair in TEXTS]
    for start in range(0, len(completions), size):
        part = completions[start : start + size]
        told, counted = log_probs(policy.model, part, pad=policy.pad)
        for row, mask, completion in zip(told, counted, part, strict=True):
            assert row[mask].tolist() == pytest.approx(plain(policy.model, completion), abs=1e-5)
            assert row[~mask].abs().sum() == 0


def test_gpt2_with_learned_positions_agrees_too(policy):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=1)
    model = GPT2LMHeadModel(config).eval()
    completions = [
        Completion("", (5, 6, 7), (8, 9)),
        Completion("", (4,), (3, 2, 30, 31, 1)),
        Completion("", (9, 9), (8,)),
    ]
    told, counted = log_probs(model, completions, pad=0)
    for row, mask, completion in zip(told, counted, completions, strict=True):
        assert row[mask].tolist() == pytest.approx(plain(model, completion), abs=1e-5)


def test_perplexity_is_that_of_a_plain_pass(make_policy):
    policy = make_policy(learned=True)
    completions = [policy.completion(*pair) for pair in TEXTS]
    every = [x for completion in completions for x in plain(policy.model, completion)]
    assert perplexity(policy, completions) == pytest.approx(math.exp(-sum(every) / len(every)), rel=1e-6)


def test_an_answer_without_a_token_is_refused(policy):
    with pytest.raises(ValueError, match="no token"):
        sums(policy, [Completion("", (3,), ())])


def test_the_log_ratio_is_zero_before_and_the_difference_after_learning(make_policy):
    fresh, learned = make_policy(), make_policy(learned=True)
    samples = [Sample(Draw(Prompt(prompt), 0, 0), learned.completion(prompt, text)) for prompt, text in TEXTS]
    assert TextLogRatio(fresh)(samples) == {"log_ratio": [0.0] * len(samples)}
    expected = []
    for sample in samples:
        tuned = math.fsum(plain(learned.model, sample.data))
        expected.append(tuned - math.fsum(plain(fresh.model, sample.data)))
    assert TextLogRatio(learned)(samples)["log_ratio"] == pytest.approx(expected, abs=1e-4)
    with learned.base():  # the evaluation scores the base's samples, too
        assert TextLogRatio(learned)(samples)["log_ratio"] == pytest.approx(expected, abs=1e-4)
