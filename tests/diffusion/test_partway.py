"""Sampling that stops and goes on with some of the pictures, and guidance in a part of the steps."""

from dataclasses import replace

import pytest
import torch

from raft_diffusion.core.records import Draw, Prompt
from raft_diffusion.diffusion.settings import make_scheduler
from raft_diffusion.webui import SCHEDULERS, parse_infotext

PLAIN = [name for name, scheduler in SCHEDULERS.items() if name == scheduler.sampler]


@pytest.fixture
def six() -> list[Draw]:
    return [Draw(Prompt(f"cat {k % 2}", negative="dog"), k, 100 + k) for k in range(6)]


def latents(samples):
    return torch.stack([sample.data.latent for sample in samples])


@pytest.mark.parametrize("scheduler", PLAIN)
def test_some_that_go_on_are_the_pictures_that_all_would_have_become(policy, settings, six, shake, scheduler):
    """Two stops, other batches after each, whatever the scheduler remembers."""
    shake(policy)
    settings = replace(settings, scheduler=scheduler, num_inference_steps=6, batch_size=4)
    whole = policy.generate(six, settings)
    parts = policy.go_on(policy.start(six, settings), 2, settings)
    some = [parts[5], parts[0], parts[3]]
    later = policy.go_on(some, 4, replace(settings, batch_size=2))
    found = policy.finish([later[1], later[0]], settings)
    assert [sample.draw for sample in found] == [six[0], six[5]]
    torch.testing.assert_close(latents(found), latents([whole[0], whole[5]]), atol=1e-4, rtol=1e-4)
    again = policy.finish([parts[3]], settings)  # what was given stays as it was
    torch.testing.assert_close(latents(again), latents([whole[3]]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_what_is_foreseen_is_what_the_scheduler_takes_for_the_clean_latents(policy, settings, six, shake, prediction):
    shake(policy)
    config = {**policy.components.scheduler_config, "prediction_type": prediction}
    policy.components = replace(policy.components, scheduler_config=config)
    parts = policy.go_on(policy.start(six, settings), 2, settings)
    for part in parts:
        torch.testing.assert_close(part.foreseen, part.scheduler.model_outputs[-1], atol=1e-4, rtol=1e-4)
    seen = policy.foreseen(parts, settings)
    assert [sample.draw for sample in seen] == six and seen[0].data.image.size == (32, 24)


def test_the_divergence_is_the_sum_of_the_distances_between_both_predictions(policy, settings, six, shake):
    shake(policy)
    outputs: list[torch.Tensor] = []
    hook = policy.components.unet.register_forward_hook(lambda *call: outputs.append(call[-1][0]))
    parts = policy.go_on(policy.start(six, settings), 3, replace(settings, batch_size=6))
    hook.remove()
    pairs = [output.chunk(2) for output in outputs]
    expected = sum((with_prompt - without).square().sum(dim=(1, 2, 3)).sqrt() for without, with_prompt in pairs)
    assert len(pairs) == 3
    torch.testing.assert_close(torch.cat([part.divergence for part in parts]), expected)


def rows_of(policy, work) -> list[int]:
    """How many rows each call of the UNet had."""
    rows: list[int] = []
    hook = policy.components.unet.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    work()
    hook.remove()
    return rows


def test_guidance_in_all_steps_is_bit_by_bit_what_it_is_without_an_interval(policy, settings, six, shake):
    shake(policy)
    scheduler = make_scheduler("DPM++ 2M", policy.components.scheduler_config)
    scheduler.set_timesteps(4)
    state = torch.cat([torch.randn(1, 4, 6, 8, generator=torch.Generator().manual_seed(draw.seed)) for draw in six[:2]])
    state = state * scheduler.init_noise_sigma
    text = policy.embed(["dog", "dog", six[0].prompt.text, six[1].prompt.text])
    with torch.no_grad(), policy.trained.folded():
        for timestep in scheduler.timesteps:
            without, prompted = policy.components.unet(torch.cat([state, state]), timestep, text).sample.chunk(2)
            state = scheduler.step(without + 5.0 * (prompted - without), timestep, state).prev_sample
    told = replace(settings, guidance_interval=(0.0, 1.0))
    assert torch.equal(latents(policy.generate(six[:2], told)), state)


@pytest.mark.parametrize(
    ("interval", "rows"),
    [((0.0, 1.0), [2, 2, 2, 2]), ((0.25, 0.75), [1, 2, 2, 1]), ((0.5, 1.0), [1, 1, 2, 2]), ((0.0, 0.1), [1, 1, 1, 1])],
)
def test_a_step_outside_the_interval_looks_once(policy, settings, six, interval, rows):
    told = replace(settings, guidance_interval=interval, batch_size=1)
    assert rows_of(policy, lambda: policy.generate(six[:1], told)) == rows


def test_a_step_outside_the_interval_is_an_unguided_one(policy, settings, six, shake):
    """Two unguided steps of four, then two guided ones: by hand, with the scheduler of diffusers."""
    shake(policy)
    settings = replace(settings, scheduler="DDIM", guidance_interval=(0.5, 1.0))
    scheduler = make_scheduler("DDIM", policy.components.scheduler_config)
    scheduler.set_timesteps(4)
    draw = six[0]
    state = torch.randn(1, 4, 6, 8, generator=torch.Generator().manual_seed(draw.seed))
    negative, positive = policy.embed([draw.prompt.negative]), policy.embed([draw.prompt.text])
    with torch.no_grad():
        for number, timestep in enumerate(scheduler.timesteps):
            output = policy.components.unet(state, timestep, positive).sample
            if number >= 2:
                without = policy.components.unet(state, timestep, negative).sample
                output = without + 5.0 * (output - without)
            state = scheduler.step(output, timestep, state).prev_sample
    torch.testing.assert_close(latents(policy.generate([draw], settings)), state, atol=1e-4, rtol=1e-4)
    plain = latents(policy.generate([draw], replace(settings, guidance_interval=(0.0, 1.0))))
    assert not torch.allclose(plain, state, atol=1e-2)


def test_a_picture_says_which_part_was_guided(policy, settings, draws):
    sample = policy.generate(draws[:1], replace(settings, guidance_interval=(0.25, 0.8)))[0]
    words = sample.data.image.info["parameters"]
    assert "Guidance interval: 0.25 to 0.8" in words
    found = parse_infotext(words)
    assert found is not None and found.guidance_interval == "0.25 to 0.8" and found.text() == words
    assert "interval" not in policy.generate(draws[:1], settings)[0].data.image.info["parameters"]


@pytest.mark.parametrize("interval", [(0.5, 0.5), (0.8, 0.2), (-0.1, 1.0), (0.0, 1.1), (float("nan"), 1.0)])
def test_an_interval_that_is_none_is_refused(settings, interval):
    with pytest.raises(ValueError, match="it needs two shares of the steps"):
        replace(settings, guidance_interval=interval)
