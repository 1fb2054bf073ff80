"""Fresh candidates: which contests the base draws, and that they are the base's."""

from collections import Counter

import numpy as np
import pytest

from raft_diffusion.core.prompts import draw_round
from raft_diffusion.core.records import Prompt, Sample
from raft_diffusion.fresh import FreshPolicy, fresh_contests
from raft_diffusion.jobs import load_config
from raft_diffusion.planning.nfe import guided_shares

PROMPTS = [Prompt(f"p{n}") for n in range(10)]


def draws(index: int, *, prompts=PROMPTS, groups: int = 1):
    return draw_round(prompts, index=index, seed=3, per_round=None, k=2, groups_per_prompt=groups)


@pytest.mark.parametrize(("share", "least", "most"), [(0.5, 5, 5), (0.75, 7, 8), (1.0, 10, 10), (0.0, 0, 0)])
def test_a_share_of_the_contests_is_the_bases(share, least, most):
    counts = [len(fresh_contests(draws(index), share)) for index in range(1, 20)]
    assert least <= min(counts) and max(counts) <= most


def test_every_prompt_gets_its_turn():
    turns = Counter(prompt for index in range(1, 101) for prompt, _ in fresh_contests(draws(index), 0.5))
    assert len(turns) == 10 and min(turns.values()) > 30 and max(turns.values()) < 70


def test_the_groups_of_one_prompt_are_shared_out():
    contests = fresh_contests(draws(1, prompts=PROMPTS[:1], groups=8), 0.25)
    assert len(contests) == 2 and len({group for _, group in contests}) == 2


class Tuned:
    def generate(self, draws):
        return [Sample(draw, "tuned") for draw in draws]


def test_a_contest_is_of_one_kind_and_the_order_is_kept():
    asked = draws(4, groups=2)
    policy = FreshPolicy(Tuned(), from_base=lambda some: [Sample(draw, "base") for draw in some], share=0.5)  # type: ignore[arg-type]
    samples = policy.generate(asked)
    assert [sample.draw for sample in samples] == asked
    kinds: dict[tuple[str, int], set[str]] = {}
    for sample in samples:
        kinds.setdefault((sample.prompt.id, sample.draw.group), set()).add(sample.data)
    assert all(len(kind) == 1 for kind in kinds.values())
    assert Counter(next(iter(kind)) for kind in kinds.values()) == {"base": 10, "tuned": 10}


def test_what_the_base_draws_is_what_it_drew_before_it_was_tuned():
    """With share 1 the adapter and the fading guidance change no candidate."""
    from raft_diffusion import assemble

    changes = ["threads=1", "sampling.num_inference_steps=2", "sampling.samples_per_prompt=2", "tuning.rank=2"]
    config = load_config("pocket-resolution", changes=[*changes, "sampling.base_share=1", "prompts.train=['cat']"])
    policy = assemble.make_policy(config)
    sampler = assemble.make_sampler(config, policy)
    expected = policy.generate(assemble.round_draws(config, policy, 1))
    for parameter in policy.trained.parameters().values():
        parameter.data += 0.1
    asked = assemble.round_draws(config, policy, 2)
    tuned = policy.generate([sample.draw for sample in expected])
    found = sampler.generate([sample.draw for sample in expected])
    assert policy.settings.guidance_scale < 3 and asked != [sample.draw for sample in expected]
    for one, other, changed in zip(expected, found, tuned, strict=True):
        assert np.array_equal(one.data.latent, other.data.latent)
        assert not np.array_equal(one.data.latent, changed.data.latent)


def test_the_plan_counts_the_bases_guidance():
    config = load_config("pocket-resolution", changes=["sampling.collect_guidance_decay=0", "rounds=3"])
    assert guided_shares(config) == pytest.approx([1, 0.75, 0.75])
    own = config.with_overrides(["sampling.base_share=0"])
    assert guided_shares(own) == [1, 0, 0]
