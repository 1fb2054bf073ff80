"""The reward that asks the tuned model, against the loss of diffusers' own parts."""

import copy
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from raft_diffusion.core.records import Prompt, Sample
from raft_diffusion.diffusion.log_ratio import LogRatio
from raft_diffusion.diffusion.sampler import DiffusionPolicy
from raft_diffusion.diffusion.tuner import DiffusionTuner


@pytest.fixture
def samples(winners):
    return [replace(w.sample, draw=replace(w.sample.draw, seed=90 + k)) for k, w in enumerate(winners)]


@pytest.fixture
def learned(policy, shake):
    shake(policy)
    return policy


def seen_by_unet(policy):
    calls = []
    policy.components.unet.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append((*args, kwargs["encoder_hidden_states"])), with_kwargs=True
    )
    return calls


@pytest.mark.parametrize("velocity", [False, True])
def test_it_is_how_much_less_the_tuned_model_errs_in_the_noise(components, settings, shake, samples, velocity):
    parts = components
    if velocity:
        schedule = {k: parts.scheduler_config[k] for k in ("beta_start", "beta_end", "beta_schedule", "steps_offset")}
        config = DDIMScheduler(**schedule, clip_sample=False, prediction_type="v_prediction").config
        parts = replace(parts, scheduler_config=config)
    policy = DiffusionPolicy(parts, settings=settings)
    policy.add_adapter(rank=4, alpha=6.0)
    shake(policy)
    calls = seen_by_unet(policy)
    found = LogRatio(policy)(samples[:1])["log_ratio"]
    seen = calls.copy()

    clean = samples[0].data.latent
    alphas = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").alphas_cumprod
    assert [int(timesteps[0]) for _, timesteps, _ in seen[::2]] == [125, 375, 625, 875]
    ratio = 0.0
    for (noisy, timesteps, text), (again, _, _) in zip(seen[::2], seen[1::2], strict=True):
        assert torch.equal(noisy, again) and torch.equal(text, policy.embed(["cat"]))
        signal = alphas[timesteps[0]]
        noise = (noisy[0] - signal.sqrt() * clean) / (1 - signal).sqrt()
        assert abs(noise.std() - 1) < 0.2
        errors = {}
        with torch.no_grad():
            for name, context in (("base", policy.base()), ("tuned", policy.tuned())):
                with context:
                    output = parts.unet(noisy, timesteps, encoder_hidden_states=text).sample[0]
                predicted = signal.sqrt() * output + (1 - signal).sqrt() * noisy[0] if velocity else output
                errors[name] = (noise - predicted).square().sum().item()
        ratio += (errors["base"] - errors["tuned"]) / 4
    assert found == [pytest.approx(ratio, rel=1e-3, abs=1e-3)]
    assert abs(ratio) > 0.01


def test_an_adapter_that_has_not_learned_scores_exactly_nothing(policy, samples):
    assert LogRatio(policy)(samples) == {"log_ratio": [0.0] * 4}


def test_it_rises_for_what_was_learned(policy, winners, samples):
    DiffusionTuner(steps=60, batch_size=2, learning_rate=1e-2)(policy, winners[:1] * 2, seed=3)
    scores = LogRatio(policy)(samples)["log_ratio"]
    assert scores[0] == max(scores) and scores[0] > 0


def test_a_score_is_the_same_each_time_in_any_company(learned, samples):
    reward = LogRatio(learned)
    scores = reward(samples)["log_ratio"]
    assert reward(samples)["log_ratio"] == scores
    alone = [reward([sample])["log_ratio"][0] for sample in reversed(samples)]
    assert alone == pytest.approx(scores[::-1], rel=1e-3, abs=1e-3)
    other = [Sample(replace(samples[0].draw, seed=1), samples[0].data)]
    assert reward(other)["log_ratio"][0] != scores[0]
    asked = [Sample(replace(samples[0].draw, prompt=Prompt("dog")), samples[0].data)]
    assert reward(asked)["log_ratio"][0] != pytest.approx(scores[0], rel=1e-3)


def test_the_policy_is_left_as_it_was(learned, samples, draws):
    reward = LogRatio(learned)
    outside = reward(samples)
    before = learned.generate(draws[:1])[0].data.latent
    with learned.base():
        plain = learned.generate(draws[:1])[0].data.latent
        assert reward(samples) == outside
        assert torch.equal(learned.generate(draws[:1])[0].data.latent, plain)
    assert torch.equal(learned.generate(draws[:1])[0].data.latent, before)
    assert not torch.equal(before, plain)


def test_the_adapter_counts_as_often_as_it_is_told(learned, draws):
    def made(policy):
        return policy.generate(draws[:1])[0].data.latent

    once = made(learned)
    with learned.at_strength(0.5):
        half = made(learned)
    assert torch.equal(made(learned), once)
    parameters = learned.trained.parameters()
    kept = copy.deepcopy({name: parameter.data for name, parameter in parameters.items()})
    for name, parameter in parameters.items():
        parameter.data = kept[name] * (0.5 if ".lora_B." in name else 1.0)
    assert torch.allclose(made(learned), half, atol=1e-5) and not torch.allclose(once, half, atol=1e-3)
    with pytest.raises(MemoryError), learned.at_strength(0.0):
        raise MemoryError
    assert learned.trained.strength == 1.0
