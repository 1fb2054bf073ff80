import copy
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file

from raft_diffusion.core.records import Winner
from raft_diffusion.core.unfinished import Shelf
from raft_diffusion.diffusion.adapter import FILE_NAME
from raft_diffusion.diffusion.pictures import Picture, PictureCodec
from raft_diffusion.diffusion.sampler import DiffusionPolicy
from raft_diffusion.diffusion.tuner import DiffusionTuner, _Objective


def velocity_config(components):
    """The model's schedule, said to predict v."""
    schedule = {k: components.scheduler_config[k] for k in ("beta_start", "beta_end", "beta_schedule", "steps_offset")}
    return DDIMScheduler(**schedule, clip_sample=False, prediction_type="v_prediction").config


def zero_snr_config(components):
    """The same, rescaled so that the last level is pure noise."""
    config = dict(velocity_config(components)) | {"rescale_betas_zero_snr": True}
    del config["_use_default_values"]  # in which diffusers keeps what nobody said
    return config


@pytest.fixture
def make_policy(components, settings, shake):
    """A policy on a model of its own: every call starts from the same weights, B not 0 unless asked."""

    def make(velocity=False, learned=True, **adapter):
        parts = copy.deepcopy(components)
        parts = replace(parts, scheduler_config=velocity_config(parts)) if velocity else parts
        policy = DiffusionPolicy(parts, settings=settings)
        policy.add_adapter(**({"rank": 4, "alpha": 6.0} | adapter))
        if learned:
            shake(policy)
        return policy

    return make


def saved(policy, folder):
    policy.save(folder)
    return (folder / FILE_NAME).read_bytes()


def weights(policy):
    return torch.cat([parameter.detach().flatten() for parameter in policy.trained.parameters().values()])


def seen_by_unet(policy):
    """The arguments of the UNet's next calls, as they come."""
    calls = []
    policy.components.unet.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append((*args, kwargs["encoder_hidden_states"])), with_kwargs=True
    )
    return calls


@pytest.mark.parametrize("gamma", [None, 5.0])
@pytest.mark.parametrize("velocity", [False, True])
def test_the_loss_is_that_of_the_papers(make_policy, winners, velocity, gamma):
    policy, untouched = make_policy(velocity), make_policy(velocity)
    calls = seen_by_unet(policy)
    tune = DiffusionTuner(steps=1, batch_size=6, learning_rate=1e-4, snr_gamma=gamma)
    figures = tune(policy, winners[:1], seed=3)

    ((noisy, timesteps, text),) = calls
    assert torch.equal(text, untouched.embed(["cat"] * 6))
    clean = winners[0].sample.data.latent
    schedule = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    signal = schedule.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    noise = (noisy - signal.sqrt() * clean) / (1 - signal).sqrt()
    target = signal.sqrt() * noise - (1 - signal).sqrt() * clean if velocity else noise
    with torch.no_grad():
        predicted = untouched.components.unet(noisy, timesteps, text).sample
    snr = (signal / (1 - signal)).flatten()
    scale = torch.ones(6) if gamma is None else snr.clamp(max=gamma) / (snr + 1 if velocity else snr)
    loss = (scale * (predicted - target).pow(2).mean((1, 2, 3))).mean()
    assert figures["loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert figures["grad_norm"] > 0


def test_noise_and_its_levels_are_drawn_as_ddpm_says(make_policy, winners):
    policy = make_policy()
    calls = seen_by_unet(policy)
    DiffusionTuner(steps=2, batch_size=200, learning_rate=1e-4)(policy, winners[:1], seed=3)
    timesteps = torch.cat([timesteps for _, timesteps, _ in calls])
    assert timesteps.min() < 25 and timesteps.max() > 975 and abs(timesteps.float().mean() - 499.5) < 50
    assert timesteps.unique().numel() > 250
    schedule = DDPMScheduler.from_config(policy.components.scheduler_config)
    signal = schedule.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    noisy = torch.cat([noisy for noisy, _, _ in calls])
    noise = (noisy - signal.sqrt() * winners[0].sample.data.latent) / (1 - signal).sqrt()
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02


def test_one_step_is_adamw_on_the_mean_of_the_weighted_errors(make_policy, winners):
    policy, untouched = make_policy(), make_policy()
    calls = seen_by_unet(policy)
    weighted = [replace(winner, weight=weight) for winner, weight in zip(winners, [1.0, 2.0, 3.0, 6.0], strict=True)]
    tune = DiffusionTuner(steps=1, batch_size=4, learning_rate=1e-3, max_grad_norm=1e9)
    figures = tune(policy, weighted, seed=3)

    ((noisy, timesteps, text),) = calls
    schedule = DDPMScheduler.from_config(untouched.components.scheduler_config)
    signal = schedule.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    # The epoch's order is the first thing drawn; a wrong one would leave no standard normal noise behind.
    clean = torch.stack([winner.sample.data.latent for winner in weighted])
    order = torch.randperm(4, generator=torch.Generator().manual_seed(3))
    noise = (noisy - signal.sqrt() * clean[order]) / (1 - signal).sqrt()
    assert abs(noise.std() - 1) < 0.1
    predicted = untouched.components.unet(noisy, timesteps, text).sample
    scale = torch.tensor([1.0, 2.0, 3.0, 6.0])[order] / 3
    loss = (scale * (predicted - noise).pow(2).mean((1, 2, 3))).mean()
    parameters = list(untouched.trained.parameters().values())
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    loss.backward()
    norm = torch.cat([parameter.grad.flatten() for parameter in parameters]).norm()
    optimizer.step()
    assert figures["loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert figures["grad_norm"] == pytest.approx(norm.item(), rel=1e-3)
    torch.testing.assert_close(weights(policy), weights(untouched), atol=1e-5, rtol=0)


def test_the_adapter_learns_and_the_base_does_not(make_policy, winners):
    policy = make_policy(learned=False)
    base = {k: v.clone() for k, v in policy.components.unet.state_dict().items() if "lora_" not in k}
    tune = DiffusionTuner(steps=60, batch_size=4, learning_rate=1e-2)
    measure = DiffusionTuner(steps=8, batch_size=4, learning_rate=1e-12)
    before = measure(policy, winners, seed=9)["loss"]
    tune(policy, winners, seed=1)
    assert measure(policy, winners, seed=9)["loss"] < 0.95 * before
    assert all(torch.equal(policy.components.unet.state_dict()[k], v) for k, v in base.items())
    assert all(p.grad is None for p in policy.components.unet.parameters())


def test_the_same_seed_gives_the_same_bytes(make_policy, winners, tmp_path):
    tune = DiffusionTuner(steps=3, batch_size=3, learning_rate=1e-3, condition_drop=0.3, snr_gamma=5.0)
    contents = []
    for number, seed in enumerate([4, 4, 5]):
        torch.manual_seed(number)
        policy = make_policy()
        tune(policy, winners, seed=seed)
        contents.append(saved(policy, tmp_path / str(number)))
    assert contents[0] == contents[1] != contents[2]


def test_resuming_from_the_saved_adapter_is_exact(make_policy, winners, tmp_path):
    tune = DiffusionTuner(steps=2, batch_size=2, learning_rate=1e-3)
    through, resumed = make_policy(), make_policy()
    tune(through, winners, seed=1)
    through.save(tmp_path / "1")
    tune(through, winners, seed=2)
    resumed.load(tmp_path / "1")
    tune(resumed, winners, seed=2)
    assert saved(through, tmp_path / "a") == saved(resumed, tmp_path / "b")


def test_restart_learns_from_the_initial_weights(make_policy, winners, tmp_path):
    tune = DiffusionTuner(steps=2, batch_size=2, learning_rate=1e-3, restart=True)
    fresh, learned = make_policy(learned=False), make_policy()
    for policy in (fresh, learned):
        tune(policy, winners, seed=1)
    assert saved(fresh, tmp_path / "a") == saved(learned, tmp_path / "b")


def test_winners_of_weight_0_have_no_effect(make_policy, winners, tmp_path):
    tune = DiffusionTuner(steps=3, batch_size=2, learning_rate=1e-3)
    without, beside = make_policy(), make_policy()
    tune(without, winners[:2], seed=1)
    tune(beside, [*winners[:2], *(replace(winner, weight=0.0) for winner in winners[2:])], seed=1)
    assert saved(without, tmp_path / "a") == saved(beside, tmp_path / "b")


def test_only_the_ratio_of_the_weights_counts(make_policy, winners):
    tune = DiffusionTuner(steps=2, batch_size=4, learning_rate=1e-3)
    small, large = make_policy(), make_policy()
    tune(small, [replace(winner, weight=0.25) for winner in winners], seed=1)
    tune(large, [replace(winner, weight=4.0) for winner in winners], seed=1)
    torch.testing.assert_close(weights(small), weights(large), atol=1e-7, rtol=0)


def test_two_batches_of_four_are_one_of_eight(make_policy, winners):
    one, two = make_policy(), make_policy()
    common = {"steps": 3, "learning_rate": 1e-3, "max_grad_norm": 1e-2, "warmup_steps": 2}
    whole = DiffusionTuner(batch_size=8, **common)(one, winners, seed=1)
    halves = DiffusionTuner(batch_size=4, gradient_accumulation=2, **common)(two, winners, seed=1)
    assert halves == pytest.approx(whole, rel=1e-4)
    torch.testing.assert_close(weights(one), weights(two), atol=2e-5, rtol=0)


def test_dropping_every_condition_is_training_on_the_empty_prompt(make_policy, winners):
    dropped, never = make_policy(), make_policy()
    calls, others = seen_by_unet(dropped), seen_by_unet(never)
    DiffusionTuner(steps=2, batch_size=4, learning_rate=1e-3, condition_drop=1.0)(dropped, winners, seed=1)
    DiffusionTuner(steps=2, batch_size=4, learning_rate=1e-3)(never, winners, seed=1)
    empty = dropped.embed([""] * 4)
    assert all(torch.equal(text, empty) for _, _, text in calls)
    assert not any(torch.equal(text, empty) for _, _, text in others)


@pytest.mark.parametrize("batch_size", [3, 4, 7])
def test_every_winner_is_used_equally_often(make_policy, winners, batch_size):
    policy = make_policy()
    calls = seen_by_unet(policy)
    pictures = [Picture(torch.full((4, 2, 2), 1e4 * k), None) for k in range(4)]
    far_apart = [
        Winner(replace(w.candidate, sample=replace(w.sample, data=picture)), key=0.0)
        for w, picture in zip(winners, pictures, strict=True)
    ]
    DiffusionTuner(steps=5, batch_size=batch_size, learning_rate=1e-9)(policy, far_apart, seed=1)
    schedule = DDPMScheduler.from_config(policy.components.scheduler_config)
    used = [
        (noisy.mean((1, 2, 3)) / schedule.alphas_cumprod[timesteps].sqrt() / 1e4).round()
        for noisy, timesteps, _ in calls
    ]
    counts = torch.cat(used).long().bincount(minlength=4)
    assert counts.sum() == 5 * batch_size and counts.max() - counts.min() <= 1


def test_warm_up_is_linear(make_policy, winners):
    before = weights(make_policy())
    moved = {}
    for warmup_steps in (0, 1, 4):
        policy = make_policy()
        DiffusionTuner(steps=1, batch_size=2, learning_rate=1e-3, warmup_steps=warmup_steps)(policy, winners, seed=1)
        moved[warmup_steps] = (weights(policy) - before).abs().mean().item()
    assert moved[0] == moved[1] == pytest.approx(4 * moved[4], rel=1e-3)


def test_a_text_encoder_learns_on_request(make_policy, winners, draws):
    policy = make_policy(text_encoder=True)
    before = {name: parameter.detach().clone() for name, parameter in policy.trained.parameters().items()}
    DiffusionTuner(steps=2, batch_size=4, learning_rate=1e-3)(policy, winners, seed=1)
    moved = [name for name, value in policy.trained.parameters().items() if not torch.equal(value, before[name])]
    assert any(name.startswith("text_encoder.") for name in moved)
    assert policy.generate(draws)


def test_bfloat16_is_close_and_leaves_the_sampler_exact(make_policy, winners, draws):
    full, half = make_policy(), make_policy()
    exact = DiffusionTuner(steps=1, batch_size=4, learning_rate=1e-9)(full, winners, seed=1)
    figures = DiffusionTuner(steps=1, batch_size=4, learning_rate=1e-9, mixed_precision="bf16")(half, winners, seed=1)
    assert figures["loss"] != exact["loss"] and figures["loss"] == pytest.approx(exact["loss"], rel=0.02)
    for one, other in zip(full.generate(draws), half.generate(draws), strict=True):
        torch.testing.assert_close(one.data.latent, other.data.latent, atol=1e-4, rtol=1e-4)


def test_progress_is_told_after_each_step(make_policy, winners):
    told = []
    tune = DiffusionTuner(steps=2, batch_size=1, learning_rate=1e-3, progress=lambda *news: told.append(news))
    tune(make_policy(), winners, seed=1)
    assert told == [("tune", 1, 2), ("tune", 2, 2)]


def with_latent(winner, latent):
    return replace(
        winner, candidate=replace(winner.candidate, sample=replace(winner.sample, data=Picture(latent, None)))
    )


@pytest.mark.parametrize("text_encoder", [False, True])
def test_gradient_checkpointing_computes_twice_and_learns_the_same(make_policy, winners, tmp_path, text_encoder):
    def learned(folder, gradient_checkpointing):
        policy = make_policy(text_encoder=text_encoder)
        calls = []
        policy.components.unet.up_blocks[-1].resnets[-1].register_forward_pre_hook(
            lambda *_: calls.append(torch.is_grad_enabled())
        )
        tune = DiffusionTuner(steps=2, batch_size=2, learning_rate=1e-3, gradient_checkpointing=gradient_checkpointing)
        figures = tune(policy, winners, seed=3)
        assert not policy.components.unet.is_gradient_checkpointing
        return figures, saved(policy, folder), len(calls)

    plain, checkpointed = learned(tmp_path / "plain", False), learned(tmp_path / "less", True)
    assert (plain[2], checkpointed[2]) == (2, 4)
    assert checkpointed[0] == pytest.approx(plain[0], rel=1e-6)
    first, second = (load_file(tmp_path / name / FILE_NAME) for name in ("plain", "less"))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, atol=1e-6, rtol=1e-5)


def test_a_schedule_that_ends_without_signal_is_tuned_on_all_its_levels(make_policy, winners):
    """Zero terminal SNR: the last level is pure noise, where the velocity to be told is minus the picture."""
    policy = make_policy()
    config = zero_snr_config(policy.components)
    policy.components = replace(policy.components, scheduler_config=config)
    calls = seen_by_unet(policy)
    figures = DiffusionTuner(steps=1, batch_size=2000, learning_rate=1e-4, snr_gamma=5.0)(policy, winners[:1], seed=3)
    assert all(map(math.isfinite, figures.values()))
    ((noisy, timesteps, _),) = calls
    last = noisy[timesteps == 999]
    assert len(last) and abs(last.std() - 1) < 0.1
    clean = winners[0].sample.data.latent.flatten()
    assert abs(torch.corrcoef(torch.stack([clean, last[0].flatten()]))[0, 1]) < 0.25  # nothing of the picture


def test_the_weight_of_a_level_without_signal_is_finite(make_policy):
    policy = make_policy()
    config = zero_snr_config(policy.components)
    policy.components = replace(policy.components, scheduler_config=config)
    velocity = _Objective(policy, 5.0, [""])._level_weights
    assert velocity.isfinite().all() and velocity[-1] == 0 and velocity.max() < 1
    object.__setattr__(policy.components, "scheduler_config", config | {"prediction_type": "epsilon"})
    noise = _Objective(policy, 5.0, [""])._level_weights
    assert noise.isfinite().all() and noise[-1] == 1


@pytest.mark.parametrize(
    ("dtype", "asked", "used"),
    [
        (torch.float16, "no", "fp16"),
        (torch.float16, "bf16", "fp16"),
        (torch.bfloat16, "no", "no"),
        (torch.float32, "bf16", "bf16"),
    ],
)
def test_half_precision_weights_are_tuned_with_a_scaled_loss(monkeypatch, dtype, asked, used):
    given = {}
    monkeypatch.setattr("raft_diffusion.diffusion.tuner.Accelerator", lambda **options: given.update(options))
    components = SimpleNamespace(device=torch.device("cuda"), dtype=dtype)
    DiffusionTuner(steps=1, batch_size=1, learning_rate=1e-3, mixed_precision=asked).accelerator(components)
    assert (given["mixed_precision"], given["cpu"]) == (used, False)


def test_low_precision_weights_carry_a_lora_of_full_precision(make_policy, winners):
    policy = make_policy()
    for part in (policy.components.unet, policy.components.text_encoder):
        frozen = {name: p for name, p in part.named_parameters() if ".lora_" not in name}
        for parameter in frozen.values():
            parameter.data = parameter.data.bfloat16()
    before = weights(policy)
    figures = DiffusionTuner(steps=2, batch_size=2, learning_rate=1e-3, gradient_checkpointing=True)(
        policy, winners, seed=3
    )
    assert all(parameter.dtype == torch.float32 for parameter in policy.trained.parameters().values())
    assert math.isfinite(figures["loss"]) and not torch.equal(weights(policy), before)


def test_winners_it_cannot_learn_from_are_refused(make_policy, winners):
    policy, tune = make_policy(), DiffusionTuner(steps=1, batch_size=1, learning_rate=1e-3)
    with pytest.raises(ValueError, match="no winner with a weight above 0"):
        tune(policy, [], seed=1)
    with pytest.raises(ValueError, match=f"winner {winners[0].sample.id} has weight -1"):
        tune(policy, [replace(winners[0], weight=-1.0)], seed=1)
    with pytest.raises(ValueError, match=r"differ in size, \[\(4, 4, 4\), \(4, 6, 8\)\]"):
        tune(policy, [winners[0], with_latent(winners[1], torch.zeros(4, 4, 4))], seed=1)
    with pytest.raises(ValueError, match='"fp16" needs a GPU'):
        replace(tune, mixed_precision="fp16")(policy, winners, seed=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; it must be more than 0"),
        ({"snr_gamma": -1.0}, "snr_gamma is -1.0"),
        ({"condition_drop": 1.5}, "condition_drop is 1.5; a probability"),
        ({"warmup_steps": -1}, "warmup_steps is -1"),
        ({"mixed_precision": "fp8"}, "mixed_precision is 'fp8'; choose from no, fp16, bf16"),
    ],
)
def test_numbers_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        DiffusionTuner(**({"steps": 1, "batch_size": 1, "learning_rate": 1e-3} | change))


def switched(policy):
    """Whether the adapter is on in the UNet's next calls."""
    states = []
    layer = next(module for module in policy.components.unet.modules() if isinstance(module, BaseTunerLayer))
    policy.components.unet.register_forward_pre_hook(lambda *_: states.append(not layer.disable_adapters))
    return states


@pytest.mark.parametrize("velocity", [False, True])
def test_drift_is_the_squared_distance_from_the_base_and_its_weight_multiplies_the_gradient(
    make_policy, winners, velocity
):
    policy, untouched = make_policy(velocity), make_policy(velocity)
    calls, states = seen_by_unet(policy), switched(policy)
    tune = DiffusionTuner(steps=1, batch_size=4, learning_rate=1e-3, max_grad_norm=1e9, anti_drift=2.5)
    figures = tune(policy, winners, seed=3)

    (base_call, tuned_call), (first, second) = calls, states
    assert (first, second) == (False, True)
    assert all(torch.equal(a, b) for a, b in zip(base_call, tuned_call, strict=True))
    noisy, timesteps, text = tuned_call
    with torch.no_grad(), untouched.base():
        base = untouched.components.unet(noisy, timesteps, text).sample
    tuned = untouched.components.unet(noisy, timesteps, text).sample
    drift = (tuned - base).square().mean()
    assert figures["drift"] == pytest.approx(drift.item(), rel=1e-4) and drift > 1e-4

    plain = make_policy(velocity)
    without = DiffusionTuner(steps=1, batch_size=4, learning_rate=1e-3, max_grad_norm=1e9)(plain, winners, seed=3)
    assert figures["loss"] == without["loss"] and "drift" not in without
    clean = torch.stack([winner.sample.data.latent for winner in winners])
    order = torch.randperm(4, generator=torch.Generator().manual_seed(3))
    signal = DDPMScheduler.from_config(policy.components.scheduler_config).alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    noise = (noisy - signal.sqrt() * clean[order]) / (1 - signal).sqrt()
    target = signal.sqrt() * noise - (1 - signal).sqrt() * clean[order] if velocity else noise
    total = (tuned - target).square().mean() + 2.5 * drift
    parameters = list(untouched.trained.parameters().values())
    gradients = torch.autograd.grad(total, parameters)
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    assert figures["grad_norm"] == pytest.approx(norm.item(), rel=1e-3)


def test_a_fresh_adapter_does_not_drift_and_a_strong_weight_holds_it_near_the_base(make_policy, winners):
    """The base's own prediction is the only minimum of a term that outweighs all else."""
    fresh = make_policy(learned=False)
    figures = DiffusionTuner(steps=1, batch_size=4, learning_rate=1e-3, anti_drift=1.0)(fresh, winners, seed=3)
    assert figures["drift"] == 0

    def drift(anti_drift):
        policy = make_policy(learned=False)
        tune = DiffusionTuner(steps=30, batch_size=4, learning_rate=1e-2, anti_drift=anti_drift)
        return tune(policy, winners, seed=3)["drift"]

    assert drift(1e3) < drift(1e-9) / 3


def test_the_adapter_is_on_again_after_an_error_in_the_base(make_policy, winners, monkeypatch):
    policy = make_policy()
    embed = policy.embed
    monkeypatch.setattr(policy, "embed", lambda texts: (_ for _ in ()).throw(KeyError) if texts[0] else embed(texts))
    with pytest.raises(KeyError):
        DiffusionTuner(steps=1, batch_size=2, learning_rate=1e-3, anti_drift=1.0)(policy, winners, seed=3)
    states = switched(policy)
    monkeypatch.undo()
    DiffusionTuner(steps=1, batch_size=2, learning_rate=1e-3)(policy, winners, seed=3)
    assert states == [True]


@pytest.mark.parametrize("options", [{"gradient_checkpointing": True}, {"mixed_precision": "bf16"}])
def test_drift_is_measured_in_every_way_to_tune(make_policy, winners, options):
    policy = make_policy(text_encoder=True)
    start = weights(policy)
    tune = DiffusionTuner(steps=2, batch_size=2, learning_rate=1e-3, anti_drift=0.5, **options)
    figures = tune(policy, winners, seed=3)
    assert figures["drift"] > 0 and not torch.equal(weights(policy), start)
    assert all(parameter.requires_grad for parameter in policy.trained.parameters().values())


def test_drift_looks_at_the_bases_own_text(make_policy, winners):
    policy, untouched = make_policy(text_encoder=True), make_policy(text_encoder=True)
    calls = seen_by_unet(policy)
    DiffusionTuner(steps=1, batch_size=2, learning_rate=1e-3, anti_drift=1.0)(policy, winners[:2], seed=3)
    (_, _, base), (_, _, tuned) = calls
    assert torch.equal(tuned, untouched.embed(["cat", "cat"])) and not torch.equal(base, tuned)
    with untouched.base():
        assert torch.equal(base, untouched.embed(["cat", "cat"]))


@pytest.mark.parametrize("value", [-0.1, math.inf, math.nan])
def test_a_weight_of_the_drift_that_means_nothing_is_refused(value):
    with pytest.raises(ValueError, match=f"anti_drift is {value}; it must be a finite number, 0 or more"):
        DiffusionTuner(steps=1, batch_size=1, learning_rate=1e-3, anti_drift=value)


class Killed(BaseException):
    """Nobody catches it: what comes after it never happened."""


@pytest.mark.parametrize(("stop", "first"), [(Killed, 3), (KeyboardInterrupt, 6)])
def test_a_tuning_that_was_cut_off_goes_on_to_the_same_bytes(make_policy, winners, tmp_path, stop, first):
    how = {"steps": 6, "batch_size": 2, "gradient_accumulation": 2, "learning_rate": 1e-3, "warmup_steps": 3}
    how |= {"anti_drift": 0.5, "condition_drop": 0.3}
    shelf, steps = Shelf(tmp_path / "shelf", packer=PictureCodec(), identity=""), []

    def tune(end=99, seed=5):
        def progress(_, done, steps_in_all):
            steps.append(done)
            if done == end:
                raise stop

        policy = make_policy()
        policy.shelf = shelf
        steps.clear()
        return policy, DiffusionTuner(**how, progress=progress)(policy, winners, seed=seed)

    alone = make_policy()
    figures = DiffusionTuner(**how)(alone, winners, seed=5)
    for end in (2, 5):
        with pytest.raises(stop):
            tune(end)
    policy, again = tune()
    assert steps[0] >= first
    assert again == figures
    assert saved(policy, tmp_path / "again") == saved(alone, tmp_path / "alone")
    tune(seed=6)
    assert steps == [1, 2, 3, 4, 5, 6]
