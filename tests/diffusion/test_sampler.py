import inspect
import warnings
from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from raft_diffusion.core.records import Draw, Prompt
from raft_diffusion.diffusion.sampler import DiffusionPolicy
from raft_diffusion.diffusion.settings import make_scheduler
from raft_diffusion.webui import SCHEDULERS, WITH_ETA, Infotext, PromptWarning, parse_infotext


def pipeline(components, scheduler):
    kind, changes = SCHEDULERS[scheduler].kind, SCHEDULERS[scheduler].changes
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
    torch.testing.assert_close(latents(samples), expected, atol=1e-4, rtol=1e-4)  # the noise is up to 60 wide


@pytest.mark.parametrize("scheduler", ["Euler a", "DPM2 a", "DPM++ 2M SDE", "DPM++ 3M SDE", "LCM", "DDPM", "DDIM"])
def test_noise_within_the_steps_equals_that_of_diffusers(policy, settings, draws, shake, scheduler):
    shake(policy)
    settings = replace(settings, scheduler=scheduler, width=32, height=32, eta=0.5 if scheduler == "DDIM" else 0.0)
    generators = [torch.Generator().manual_seed(draw.seed) for draw in draws]
    expected = reference(policy.components, settings, draws, generator=generators)
    torch.testing.assert_close(latents(policy.generate(draws, settings)), expected, atol=1e-4, rtol=1e-4)


def test_the_initial_noise_is_as_wide_as_it_is_told(policy, settings, draws):
    settings = replace(settings, width=32, height=32, noise_scale=0.8)
    noise = [0.8 * torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(draw.seed)) for draw in draws]
    expected = reference(policy.components, settings, draws, latents=torch.cat(noise))
    torch.testing.assert_close(latents(policy.generate(draws, settings)), expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(expected, latents(policy.generate(draws, replace(settings, noise_scale=1.0))), atol=0.1)


def test_the_samplers_with_eta_are_those_whose_steps_take_one():
    taking = {
        s.sampler for s in SCHEDULERS.values() if "eta" in inspect.signature(getattr(diffusers, s.kind).step).parameters
    }
    assert taking == set(WITH_ETA)


def test_pictures_equal_those_of_diffusers(policy, settings, draws):
    settings = replace(settings, width=32, height=32)
    noise = [torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(draw.seed)) for draw in draws]
    expected = reference(policy.components, settings, draws, "pil", latents=torch.cat(noise))
    for sample, image in zip(policy.generate(draws, settings), expected, strict=True):
        assert sample.data.image.mode == "RGB" and sample.data.image.size == (32, 32)
        difference = np.asarray(sample.data.image).astype(int) - np.asarray(image)
        assert abs(difference).max() <= 1


@pytest.mark.parametrize("scheduler", [name for name, s in SCHEDULERS.items() if name == s.sampler])
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


def told(policy, text):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        policy.encode([text])
    assert all(warning.category is PromptWarning for warning in caught)
    return [str(warning.message) for warning in caught]


def test_a_prompt_that_is_too_long_is_told_once_with_what_is_cut(policy):
    text = "cat " * 75 + "Dog, seen"  # a letter is a token, and so is the comma
    (message,) = told(policy, text)
    assert message.endswith("has 83 tokens, and the first 75 are read; this is cut: 'Dog, seen'")
    assert told(policy, text) == []
    assert told(policy, "cat " * 75) == []


def test_commands_of_webuis_are_told_once(policy):
    (message,) = told(policy, "a (cat:1.2)")
    assert message == "the prompt 'a (cat:1.2)' is read as plain text; a WebUI would take for commands: '(cat:1.2)'"
    assert told(policy, "a (cat:1.2)") == []


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_sampler_makes_a_picture(policy, settings, draws, scheduler):
    # Four steps: PNDM's first needs as many.
    (sample,) = policy.generate(draws[:1], replace(settings, scheduler=scheduler, width=16, height=16))
    assert sample.data.latent.isfinite().all()
    read = parse_infotext(sample.data.image.info["parameters"])
    assert (read.sampler, read.schedule_type) == (SCHEDULERS[scheduler].sampler, SCHEDULERS[scheduler].schedule_type)


@pytest.mark.parametrize(("name", "space"), [("Euler Karras", "root"), ("Euler Exponential", "logarithm")])
def test_noise_levels_of_a_schedule_type_are_those_of_its_formula(components, name, space):
    scheduler = make_scheduler(name, components.scheduler_config)
    scheduler.set_timesteps(7)
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    levels = np.sqrt(1 / np.cumprod(1 - betas) - 1)
    if space == "root":  # Karras et al. 2022, arXiv:2206.00364, equation 5 with rho = 7
        expected = np.linspace(levels[-1] ** (1 / 7), levels[0] ** (1 / 7), 7) ** 7
    else:
        expected = np.exp(np.linspace(np.log(levels[-1]), np.log(levels[0]), 7))
    np.testing.assert_allclose(scheduler.sigmas.numpy(), [*expected, 0], rtol=1e-3)


def test_simple_takes_the_noise_levels_that_webuis_take(components):
    scheduler = make_scheduler("Euler Simple", components.scheduler_config)
    scheduler.set_timesteps(20)
    assert scheduler.timesteps.tolist() == [999 - 50 * i for i in range(20)]


def test_a_name_means_what_it_says_whatever_the_model_is_set_to(components):
    config = {**components.scheduler_config, "use_karras_sigmas": True, "algorithm_type": "sde-dpmsolver++"}
    plain = make_scheduler("DPM++ 2M", config).config
    assert (plain.use_karras_sigmas, plain.algorithm_type) == (False, "dpmsolver++")


def zero_snr_config(components):
    """The model's schedule as that of a velocity model whose last level is pure noise."""
    return {**components.scheduler_config, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_schedule_that_ends_without_signal_starts_from_pure_noise(components, settings, draws, scheduler):
    """Zero terminal SNR, of a folder with any scheduler: the first step is the last level, and it is rescaled."""
    config = zero_snr_config(components)
    changed = replace(components, scheduler_config=config)
    settings = replace(settings, scheduler=scheduler)
    kind = getattr(diffusers, SCHEDULERS[scheduler].kind)
    if "rescale_betas_zero_snr" not in inspect.signature(kind).parameters:
        with pytest.raises(ValueError, match=f"^the scheduler {scheduler!r} cannot start from pure noise, .* DPM"):
            DiffusionPolicy(changed, settings=settings)
        return
    policy = DiffusionPolicy(changed, settings=settings)
    made = make_scheduler(scheduler, config)
    assert (made.config.rescale_betas_zero_snr, made.config.timestep_spacing) == (True, "trailing")
    assert made.alphas_cumprod[-1] < 1e-6
    made.set_timesteps(4)
    assert float(made.timesteps[0]) >= 998  # of 999: exponential levels come as 998.99997, which diffusers cuts
    (sample,) = policy.generate(draws[:1])
    assert sample.data.latent.isfinite().all()


@pytest.mark.parametrize("scheduler", ["DDIM", "Euler", "DPM++ 2M"])
def test_velocity_without_signal_is_sampled_as_diffusers_does(components, settings, draws, scheduler):
    kind = {"DDIM": "DDIMScheduler", "Euler": "EulerDiscreteScheduler", "DPM++ 2M": "DPMSolverMultistepScheduler"}
    config = zero_snr_config(components)
    policy = DiffusionPolicy(
        replace(components, scheduler_config=config), settings=replace(settings, scheduler=scheduler)
    )
    noise = [torch.randn(1, 4, 6, 8, generator=torch.Generator().manual_seed(draw.seed)) for draw in draws]
    pipe = pipeline(components, "DDIM")
    pipe.scheduler = getattr(diffusers, kind[scheduler]).from_config(
        config, timestep_spacing="trailing", **({"algorithm_type": "dpmsolver++"} if scheduler == "DPM++ 2M" else {})
    )
    expected = pipe(
        prompt=[draw.prompt.text for draw in draws],
        negative_prompt=[draw.prompt.negative for draw in draws],
        num_inference_steps=4,
        guidance_scale=5.0,
        width=32,
        height=24,
        latents=torch.cat(noise),
        output_type="latent",
    ).images
    torch.testing.assert_close(latents(policy.generate(draws)), expected, atol=1e-4, rtol=1e-4)


def test_pictures_that_are_not_square_equal_those_of_diffusers(policy, settings, shake):
    shake(policy)
    settings = replace(settings, width=40, height=24)
    draws = [Draw(Prompt("a cat", negative="dog"), 0, 3)]
    noise = torch.randn(1, 4, 6, 10, generator=torch.Generator().manual_seed(3))
    (expected,) = reference(policy.components, settings, draws, "pil", latents=noise)
    (sample,) = policy.generate(draws, settings)
    assert sample.data.image.size == (40, 24)
    difference = np.asarray(sample.data.image).astype(int) - np.asarray(expected)
    assert abs(difference).max() <= 1


@pytest.mark.parametrize("clip_skip", [1, 2])
def test_clip_skip_reads_the_layer_that_diffusers_reads(components, settings, clip_skip):
    policy = DiffusionPolicy(components, settings=settings, clip_skip=clip_skip)
    encoder = components.text_encoder
    if not hasattr(encoder, "text_model"):  # diffusers asks for a level that transformers has dropped
        object.__setattr__(encoder, "text_model", encoder)
    expected, negative = pipeline(components, "Euler").encode_prompt(
        "a cat", "cpu", 1, True, "dog", clip_skip=clip_skip - 1
    )
    torch.testing.assert_close(policy.embed(["a cat"]), expected)
    last = DiffusionPolicy(components, settings=settings)
    assert torch.equal(policy.embed(["a cat"]), last.embed(["a cat"])) == (clip_skip == 1)
    # diffusers takes the negative prompt from the last layer whatever is asked for; WebUIs treat both alike
    torch.testing.assert_close(last.embed(["dog"]), negative)


@pytest.mark.parametrize("clip_skip", [0, 3])
def test_a_layer_that_is_not_there_is_refused(components, settings, clip_skip):
    with pytest.raises(ValueError, match=f"clip_skip is {clip_skip}; this model's text encoder has 2 layers"):
        DiffusionPolicy(components, settings=settings, clip_skip=clip_skip)


def test_a_picture_tells_how_it_was_made(components, settings, draws, model_folder):
    policy = DiffusionPolicy(components, settings=replace(settings, scheduler="dpm++ 2m karras"), clip_skip=2)
    sample = policy.generate(draws)[0]
    read = parse_infotext(sample.data.image.info["parameters"])
    assert read.version.startswith("raft_diffusion ")
    assert replace(read, version="") == Infotext(
        prompt="cat",
        negative_prompt="dog",
        steps=4,
        sampler="DPM++ 2M",
        schedule_type="Karras",
        cfg_scale=5.0,
        seed=11,
        width=32,
        height=24,
        model=model_folder.name,
        clip_skip=2,
        rng="CPU",
    )


def test_class_names_and_short_names_mean_the_same(components):
    short = make_scheduler("DPM++ 2M", components.scheduler_config)
    long = make_scheduler("DPMSolverMultistepScheduler", components.scheduler_config)
    assert type(short) is type(long) and short.config == long.config
    assert short.config.beta_end == 0.012 and not short.config.use_karras_sigmas
    assert make_scheduler("DPM++ 2M Karras", components.scheduler_config).config.use_karras_sigmas


def test_an_unknown_scheduler_is_answered_with_the_nearest(components):
    with pytest.raises(ValueError, match=r"unknown scheduler 'dpm\+\+ 2n'; nearest: DPM\+\+ 2M"):
        make_scheduler("dpm++ 2n", components.scheduler_config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 30}, "width is 30; this model needs a multiple of 4, such as 32"),
        ({"num_inference_steps": 1001}, "only 1000 noise levels"),
        ({"num_inference_steps": 51, "scheduler": "LCM"}, "the scheduler 'LCM' cannot take 51 steps: LCM and TCD"),
        (
            {"num_inference_steps": 3, "scheduler": "PNDM"},
            "the scheduler 'PNDM' cannot take 3 steps: .*PNDM 4 at least",
        ),
        ({"eta": 0.5}, "eta is 0.5, but the scheduler 'DPM\\+\\+ 2M' has none; set it to 0, or choose DDIM or TCD"),
        ({"noise_scale": 0.0}, "noise_scale is 0.0; it must be a finite number above 0"),
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
    with pytest.raises(ValueError, match=f"sample {draw.id} .'cat'. is not finite"):
        policy.generate([draw])


def test_batches_that_do_not_fit_are_halved_and_draw_the_same(policy, draws, settings, monkeypatch):
    expected = policy.generate(draws, settings)
    unet, vae = policy.components.unet, policy.components.vae
    forward, decode = unet.forward, vae.decode

    def sampled(sample, *arguments, **options):
        if len(sample) > 2:  # guided, so one picture
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(sample, *arguments, **options)

    def decoded(latents, **options):
        if len(latents) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return decode(latents, **options)

    monkeypatch.setattr(unet, "forward", sampled)
    monkeypatch.setattr(vae, "decode", decoded)
    with pytest.warns(UserWarning, match="no memory for sampling 2 pictures at once"):
        found = policy.generate(draws, settings)
    assert [sample.draw for sample in found] == draws
    latents, before = (torch.stack([sample.data.latent for sample in some]) for some in (found, expected))
    torch.testing.assert_close(latents, before, rtol=1e-4, atol=1e-4)
    with pytest.warns(UserWarning, match="no memory for decoding 3 pictures at once"):
        images = policy.decode(before)
    for image, other in zip(images, expected, strict=True):
        assert np.abs(np.asarray(image).astype(int) - np.asarray(other.data.image)).max() <= 1
