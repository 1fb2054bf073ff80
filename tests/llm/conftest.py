"""Small Llamas with random weights over the characters of the carried sums."""

import pytest
import torch

from raft_diffusion.core.records import Draw, Prompt, Sample, Scored, Winner
from raft_diffusion.llm.pocket import nets
from raft_diffusion.llm.policy import TextPolicy, TextSettings

CHAT = (
    "{% for m in messages %}{{ '0' if m.role == 'user' else '1' if m.role == 'system' else '2' }}{{ m.content }};"
    "{% endfor %}{% if add_generation_prompt %}2{% endif %}"
)
"""A chat template within the characters of the sums: the role's digit, the words, a semicolon."""


def _model(seed):
    """Weights large enough to prefer some tokens to others."""
    torch.manual_seed(seed)
    model = nets.make_writer(len(nets.characters_tokenizer())).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


@pytest.fixture
def make_model():
    return _model


@pytest.fixture
def make_policy():
    def make(*, settings=None, chat=False, system="", seed=0, learned=False):
        tokenizer = nets.characters_tokenizer()
        tokenizer.chat_template = CHAT if chat else None
        settings = settings or TextSettings(max_new_tokens=12, batch_size=4)
        policy = TextPolicy(_model(seed), tokenizer, settings=settings, chat=chat, system=system)
        policy.add_adapter(rank=4, alpha=8, seed=1)
        if learned:
            generator = torch.Generator().manual_seed(5)
            with torch.no_grad():
                for parameter in policy.trained.parameters().values():
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
        return policy

    return make


@pytest.fixture
def policy(make_policy):
    return make_policy()


@pytest.fixture
def draws():
    """Prompts of different lengths, two samples of each."""
    texts = ("1+2=", "13+45=", "7=", "123+456+789=")
    return [Draw(Prompt(text), k, 1000 * place + k) for place, text in enumerate(texts) for k in range(2)]


@pytest.fixture
def as_winner():
    def make(policy, prompt, text, weight=1.0):
        sample = Sample(Draw(Prompt(prompt), 0, 0), policy.completion(prompt, text))
        return Winner(Scored(sample, {"r": 0.0}), 0.0, weight)

    return make
