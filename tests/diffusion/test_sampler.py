from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from raft_diffusion.core.records import Draw, Prompt
from raft_diffusion.diffusion.sampler import SCHEDULERS, DiffusionPolicy, make_scheduler


def pipeline(components, scheduler):
    kind, changes = SCHEDULERS[scheduler]
    pipe = StableDiffusionPipeline(
        vae=components.vae,
        unet=components.unet,
        text_encoder=components.text_encoder,
        tokenizer=components.tokenizer,
        scheduler=getattr(diffusers, kind).from_config(components.scheduler_config, **changes),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def reference(components, settings, draws, output_type="latent", **changes):
    """What diffusers' own pipeline makes of the draws, all in one batch."""
    return pipeline(components, settings.scheduler)(
        prompt=[draw.prompt.text for draw in draws],
        negative_prompt=[draw.prompt.negative for draw in draws],
        num_inference_steps=settings.num_inference_steps,
        guidance_scale=settings.guidance_scale,
        width=settings.width,
        height=settings.height,
        eta=settings.eta,
        output_type=output_type,
        **changes,
    ).images


def latents(samples):
    return torch.stack([sample.data.latent for sample in samples])


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
@pytest.mark.parametrize("scheduler", ["DPM++ 2M", "Euler", "DDIM"])
def test_latents_equal_those_of_diffusers(policy, settings, draws, shake, scheduler, guidance_scale, learned):
    if learned:
        shake(policy)
    settings = replace(settings, scheduler=scheduler, guidance_scale=guidance_scale, width=32, height=32)
    noise = [torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(draw.seed)) for draw in draws]
    expected = reference(policy.components, settings, draws, latents=torch.cat(noise))
    samples = policy.generate(draws, settings)
    assert [sample.draw for sample in samples] == draws
    torch.testing.assert_close(latents(samples), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scheduler", ["Euler a", "DPM++ 2M SDE", "DDPM", "DDIM"])
def test_noise_within_the_steps_equals_that_of_diffusers(policy, settings, draws, shake, scheduler):
    shake(policy)
    settings = replace(settings, scheduler=scheduler, width=32, height=32, eta=0.5 if scheduler == "DDIM" else 0.0)
    generators = [torch.Generator().manual_seed(draw.seed) for draw in draws]
    expected = reference(policy.components, settings, draws, generator=generators)
    torch.testing.assert_close(latents(policy.generate(draws, settings)), expected, atol=1e-4, rtol=1e-4)


def test_pictures_equal_those_of_diffusers(policy, settings, draws):
    settings = replace(settings, width=32, height=32)
    noise = [torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(draw.seed)) for draw in draws]
    expected = reference(policy.components, settings, draws, "pil", latents=torch.cat(noise))
    for sample, image in zip(policy.generate(draws, settings), expected, strict=True):
        assert sample.data.image.mode == "RGB" and sample.data.image.size == (32, 32)
        difference = np.asarray(sample.data.image).astype(int) - np.asarray(image)
        assert abs(difference).max() <= 1


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_picture_does_not_depend_on_its_batch(policy, settings, draws, shake, scheduler):
    shake(policy)
    together = policy.generate(draws, replace(settings, scheduler=scheduler, batch_size=3))
    in_pairs = policy.generate(draws, replace(settings, scheduler=scheduler, batch_size=2))
    turned = policy.generate(draws[::-1], replace(settings, scheduler=scheduler, batch_size=1))[::-1]
    torch.testing.assert_close(latents(in_pairs), latents(together), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(latents(turned), latents(together), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(latents(together)[0], latents(together)[1], atol=0.1)


def test_the_live_adapter_samples_and_base_is_the_untouched_model(policy, settings, draws, shake, components):
    fresh = latents(policy.generate(draws))
    shake(policy)
    tuned = latents(policy.generate(draws))
    with policy.base():
        base = latents(policy.generate(draws))
    assert torch.equal(base, fresh) and not torch.allclose(tuned, fresh, atol=1e-2)
    assert torch.equal(latents(policy.generate(draws)), tuned)


def test_a_policy_without_an_adapter_is_the_base(components, settings, draws):
    policy = DiffusionPolicy(components, settings=settings)
    with policy.base():
        inside = latents(policy.generate(draws))
    assert torch.equal(latents(policy.generate(draws)), inside)


def test_a_text_encoder_that_learns_is_asked_anew(components, settings, draws, shake):
    policy = DiffusionPolicy(components, settings=settings)
    before = latents(policy.generate(draws))
    policy.add_adapter(rank=4, alpha=4.0, text_encoder=True)
    for name, parameter in policy.trained.parameters().items():
        if name.startswith("text_encoder.") and ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(0))
    after = latents(policy.generate(draws))
    with policy.base():
        assert torch.equal(latents(policy.generate(draws)), before)
    assert not torch.equal(after, before)


def test_texts_are_encoded_once(policy, draws, monkeypatch):
    asked = []
    encode = policy.encode
    monkeypatch.setattr(policy, "encode", lambda texts: asked.extend(texts) or encode(texts))
    policy.generate(draws)
    policy.generate(draws)
    assert sorted(asked) == ["", "a big dog", "cat", "dog"]


def test_progress_is_told_after_each_batch_and_the_last_may_be_partial(components, settings, draws):
    told = []
    policy = DiffusionPolicy(components, settings=settings, progress=lambda *news: told.append(news))
    samples = policy.generate(draws)
    assert told == [("sample", 2, 3), ("sample", 3, 3)]
    # A latent of its own, not a view that keeps the whole batch alive.
    assert all(sample.data.latent.untyped_storage().nbytes() == 4 * 4 * 6 * 8 for sample in samples)
    assert policy.generate([]) == []


def test_odd_latent_sizes_are_sampled_as_diffusers_does(policy, settings, draws):
    (sample,) = policy.generate(draws[:1], replace(settings, width=28, height=36))
    assert sample.data.latent.shape == (4, 9, 7) and sample.data.image.size == (28, 36)


def test_a_prompt_that_is_too_long_is_told(policy):
    with pytest.warns(UserWarning, match="has 92 tokens, and the model reads the first 77"):
        policy.encode(["cat " * 90])


def test_class_names_and_short_names_mean_the_same(components):
    short = make_scheduler("DPM++ 2M", components.scheduler_config)
    long = make_scheduler("DPMSolverMultistepScheduler", components.scheduler_config)
    assert type(short) is type(long) and short.config == long.config
    assert short.config.beta_end == 0.012 and not short.config.use_karras_sigmas
    assert make_scheduler("DPM++ 2M Karras", components.scheduler_config).config.use_karras_sigmas


def test_an_unknown_scheduler_is_answered_with_the_nearest(components):
    with pytest.raises(ValueError, match=r"unknown scheduler 'dpm\+\+ 2m'; nearest: DPM\+\+ 2M"):
        make_scheduler("dpm++ 2m", components.scheduler_config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 30}, "width is 30; this model needs a multiple of 4, such as 32"),
        ({"num_inference_steps": 1001}, "only 1000 noise levels"),
        ({"eta": 0.5}, "eta is 0.5, but the scheduler 'DPM\\+\\+ 2M' has none"),
        ({"eta": 2.0}, "eta is 2.0; it must lie between 0 and 1"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
    ],
)
def test_settings_that_do_not_fit_are_refused(components, settings, change, message):
    with pytest.raises(ValueError, match=message):
        DiffusionPolicy(components, settings=replace(settings, **change))


def test_a_broken_adapter_is_noticed(policy):
    next(iter(policy.trained.parameters().values())).data.fill_(float("nan"))
    draw = Draw(Prompt("cat"), 0, 1)
    with pytest.raises(RuntimeError, match=f"sample {draw.id} .'cat'. is not finite"):
        policy.generate([draw])
