"""The arithmetic before the hours, against numbers counted by hand, torch's own counter, and measured runs."""

import dataclasses
import json
import math
import os
import struct
import subprocess
import sys

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from raft_diffusion import pocket, sd15
from raft_diffusion.commands.plan import plan
from raft_diffusion.core.config import Config
from raft_diffusion.core.timing import clock
from raft_diffusion.jobs import PRESETS
from raft_diffusion.planning import memory
from raft_diffusion.planning.costs import (
    decoder_cost,
    encoder_cost,
    text_encoder_cost,
    tiny_decoder_cost,
    tower_cost,
    unet_cost,
)
from raft_diffusion.planning.forecast import forecast, size
from raft_diffusion.planning.machine import Machine
from raft_diffusion.planning.networks import find_networks, find_tiny, find_tower
from raft_diffusion.planning.nfe import sampling_rows, unet_calls
from raft_diffusion.planning.parts import find_parts, number_width
from raft_diffusion.planning.speed import Measured, card_speed
from raft_diffusion.planning.walk import Walk
from raft_diffusion.webui import SCHEDULERS

ATTENTION = ("attention",)
EVERYTHING = ("attention", "feed_forward", "projection", "convolution")
PC = Machine(cores=2, memory=25 * 10**9)
CARD = Machine(cores=8, memory=10**11, card="NVIDIA A100-SXM4-80GB", card_memory=80 * 2**30, torch_cuda="13.2")


def preset(name: str, *changes: str) -> Config:
    return Config.load(PRESETS / f"{name}.toml").with_overrides(changes)


def expect(name: str, *changes: str, machine: Machine = PC):
    return forecast(preset(name, *changes), machine=machine)


# --- what is exact ----------------------------------------------------------------------------------------------------


def test_the_monet_preset_counted_by_hand():
    result = expect("pocket-monet")
    assert (result.prompts, result.groups, result.images_per_round) == (1, 8, 128)
    assert result.images == 4 * 8 * 16
    assert result.unet_evaluations == 512 * 12 * 2  # collected with guidance 1.5
    assert (result.tuning_steps, result.tuning_samples) == (4 * 60, 4 * 60 * 8)
    assert result.evaluation_images == 2 * (128 + 48)
    assert result.evaluation_unet_evaluations == 352 * 12 * 2


def test_the_resolution_preset_counted_by_hand():
    result = expect("pocket-resolution")
    assert (result.groups, result.images) == (10, 4 * 160)
    assert result.unet_evaluations == 640 * 12 * 2  # collected with guidance 3
    assert result.evaluation_unet_evaluations == 2 * (256 + 256) * 12  # evaluated without


def test_prompts_a_round_accumulation_and_no_held_out_prompts():
    changes = ("prompts.per_round=3", "prompts.held_out=[]", "tuning.gradient_accumulation=4", "rounds=2")
    result = expect("pocket-resolution", *changes)
    assert (result.prompts, result.images) == (3, 2 * 3 * 16)
    assert (result.tuning_steps, result.tuning_samples) == (300, 300 * 4 * 20)
    assert result.evaluation_images == 2 * 256


def test_candidates_are_guided_as_the_user_is_unless_told_otherwise():
    alone = expect("pocket-monet", "sampling.collect_guidance_scale=none", "sampling.guidance_scale=1")
    assert alone.unet_evaluations == 512 * 12


def test_guidance_of_the_first_round_alone_is_counted_by_rounds():
    """Guidance 3, 1, 1 and 1: the last three rounds look once a step."""
    ends = ("sampling.collect_guidance_scale=3", "sampling.collect_guidance_decay=0.0")
    result, guided = expect("pocket-monet", *ends), expect("pocket-monet")
    plain = expect("pocket-monet", "sampling.collect_guidance_scale=1")
    assert result.unet_evaluations == 128 * 12 * (2 + 1 + 1 + 1)
    assert result.seconds_per_round == pytest.approx((guided.seconds_per_round + 3 * plain.seconds_per_round) / 4)
    assert result.evaluation_unet_evaluations == guided.evaluation_unet_evaluations
    once = expect("pocket-monet", *ends, "rounds=1")
    assert once.unet_evaluations == 128 * 12 * 2


def test_levers_that_take_time_are_counted():
    plain = expect("pocket-monet")
    looked = expect("pocket-monet", "rewards.weights.log_ratio=-0.1")
    assert looked.unet_evaluations == 512 * (12 * 2 + 8)  # four noise levels, with and without the adapter
    assert looked.evaluation_unet_evaluations == 352 * (12 * 2 + 8)
    assert plain.seconds_per_round < looked.seconds_per_round < 1.4 * plain.seconds_per_round
    assert plain.seconds_evaluation < looked.seconds_evaluation < 1.4 * plain.seconds_evaluation
    held = expect("pocket-monet", "tuning.anti_drift=1")
    assert plain.seconds_per_round < held.seconds_per_round
    assert held.peak_memory_bytes == plain.peak_memory_bytes


@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")  # diffusers under numpy 2
@pytest.mark.parametrize("name", sorted(SCHEDULERS))
@pytest.mark.parametrize("model", ["pocket", "a/b"])
def test_the_unets_calls_are_the_schedulers_timesteps(name, model):
    import diffusers

    networks = find_networks(model)
    found = SCHEDULERS[name]
    scheduler = getattr(diffusers, found.kind).from_config({**networks.scheduler}, **found.changes)
    for steps in (12, 25):
        scheduler.set_timesteps(steps)
        assert unet_calls(name, steps, networks) == len(scheduler.timesteps)


# --- the networks -----------------------------------------------------------------------------------------------------


def test_the_parameters_of_stable_diffusion_and_clip_are_the_published_ones():
    vae = sd15.config("vae")
    assert unet_cost(sd15.config("unet"), size=(64, 64), tokens=77).parameters == 859_520_964
    assert decoder_cost(vae, size=(64, 64)).parameters + encoder_cost(vae, size=(512, 512)).parameters == 83_653_863
    assert text_encoder_cost(sd15.config("text_encoder")).parameters == 123_060_480
    for name, count in (("ViT-L-14-quickgelu:openai", 427_616_513), ("ViT-B-32:laion2b_s34b_b79k", 151_277_313)):
        config, note = find_tower(name)
        assert sum(half.parameters for half in tower_cost(config)) == count
        assert note is None


def stored_numbers(path) -> int:
    """The numbers that a safetensors file holds, from its header."""
    with path.open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")


def test_the_parameters_of_the_carried_model_are_those_in_its_files():
    networks = find_networks("pocket")
    vae = decoder_cost(networks.vae, size=(16, 16)).parameters + encoder_cost(networks.vae, size=(64, 64)).parameters
    files = {
        "unet/diffusion_pytorch_model": unet_cost(networks.unet, size=(16, 16), tokens=32).parameters,
        "vae/diffusion_pytorch_model": vae,
        "text_encoder/model": text_encoder_cost(networks.text_encoder).parameters,
    }
    for name, count in files.items():
        assert stored_numbers(pocket.MODEL / f"{name}.safetensors") == count


@pytest.mark.parametrize(
    ("part", "latent", "targets"),
    [
        ("pocket", (16, 16), ATTENTION),
        ("pocket", (8, 8), EVERYTHING),
        ("pocket", (9, 14), EVERYTHING),
        ("a/b", (64, 64), ATTENTION),
        ("a/b", (33, 47), EVERYTHING),
    ],
)
def test_the_unets_operations_and_adapter_are_those_that_torch_counts(part, latent, targets):
    import torch
    from diffusers import UNet2DConditionModel  # pyright: ignore
    from peft import LoraConfig
    from torch.utils.flop_counter import FlopCounterMode

    from raft_diffusion.diffusion.adapter import TARGETS

    networks = find_networks(part)
    tokens = networks.text_encoder["max_position_embeddings"]
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(dict(networks.unet)).eval()
        inputs = (
            torch.zeros(2, 4, *latent),
            torch.ones(2),
            torch.zeros(2, tokens, networks.unet["cross_attention_dim"]),
        )
        unet.add_adapter(LoraConfig(r=6, target_modules=[ending for name in targets for ending in TARGETS[name]]))
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            unet(*inputs)
    cost = unet_cost(networks.unet, size=latent, tokens=tokens, rank=6, targets=targets)
    assert cost.parameters + cost.adapter == sum(weights.numel() for weights in unet.parameters())
    assert 2 * cost.flops == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_the_known_size_of_stable_diffusions_forward_pass():
    """401.6 billion multiply-adds at 512 px, as papers on faster samplers give it."""
    assert unet_cost(sd15.config("unet"), size=(64, 64), tokens=77).flops == pytest.approx(2 * 401.6e9, rel=0.01)


def test_the_decoders_operations_are_those_that_torch_counts():
    import torch
    from diffusers import AutoencoderKL  # pyright: ignore
    from torch.utils.flop_counter import FlopCounterMode

    for name in ("pocket", "a/b"):
        config = find_networks(name).vae
        with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
            AutoencoderKL.from_config(dict(config)).eval().decode(torch.zeros(2, 4, 16, 24))
        assert 2 * decoder_cost(config, size=(16, 24)).flops == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize("targets", [ATTENTION, EVERYTHING])
@pytest.mark.parametrize("half", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.filterwarnings("ignore:There are modules")
def test_a_training_step_keeps_what_torch_keeps_and_costs_twice_the_forward_pass(targets, half):
    import torch
    from diffusers import UNet2DConditionModel  # pyright: ignore
    from peft import LoraConfig
    from torch.utils.flop_counter import FlopCounterMode

    from raft_diffusion.diffusion.adapter import TARGETS

    config = find_networks("pocket").unet
    dtype = torch.bfloat16 if half else torch.float32
    unet = UNet2DConditionModel.from_pretrained(pocket.MODEL / "unet", torch_dtype=dtype).eval().requires_grad_(False)
    unet.add_adapter(LoraConfig(r=16, target_modules=[ending for name in targets for ending in TARGETS[name]]))
    for parameter in filter(lambda parameter: parameter.requires_grad, unet.parameters()):
        parameter.data = parameter.data.float()  # as `diffusion.adapter` does
    weights = {parameter.untyped_storage()._cdata for parameter in unet.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = tensor  # alive until the end, so that no number is given twice
        return tensor

    inputs = (torch.zeros(2, 4, 16, 16, dtype=dtype), torch.ones(2), torch.zeros(2, 32, 96, dtype=dtype))
    costs = {
        recompute: unet_cost(
            config, size=(16, 16), tokens=32, rank=16, targets=targets, width=2 if half else 4, recompute=recompute
        )
        for recompute in (False, True)
    }
    for recompute, cost in costs.items():
        if recompute:
            unet.enable_gradient_checkpointing()
        kept.clear()
        with FlopCounterMode(display=False) as counter:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                loss = unet(*inputs).sample.float().sum()
            loss.backward()
        found = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
        if recompute:  # torch's hooks see what is kept between the blocks, and not the one that is run again
            assert 0.4 * 2 * cost.saved < found < 2 * cost.saved < 0.6 * 2 * costs[False].saved
        else:
            assert 2 * cost.saved == pytest.approx(found, rel=0.15)
        factor = 2 * (2.05 + recompute) * cost.flops / counter.get_total_flops()
        assert 0.9 < factor < (1.25 if recompute else 1.1)  # a block before anything learns is not run again


def test_a_recomputed_block_keeps_its_input_and_the_largest_is_there_again():
    """Counted by hand: a LoRA of rank 2 on a layer of 10 numbers to 10, on 3 tokens, between norms of 30 numbers."""

    def saved(*, recompute: bool, width: int = 4) -> int:
        walk = Walk(rank=2, targets=("attention",), width=width, recompute=recompute)
        walk.norm(10, 3)  # before anything learns: kept by nobody
        for norms in (1, 3, 2):
            with walk.block(30):
                walk.linear(10, 10, 3, group="attention")
                for _ in range(norms):
                    walk.norm(10, 3)
        return walk.cost().saved

    layer = 30 + 2 * 3
    assert saved(recompute=False) == 4 * (3 * layer + 6 * 30)
    assert saved(recompute=True) == 4 * (3 * 30 + layer + 3 * 30)
    assert saved(recompute=False, width=2) == 3 * 4 * layer + 2 * 6 * 30  # the LoRA keeps float32 copies


def test_the_tiny_decoder_is_diffusers_own():
    import torch
    from diffusers import AutoencoderTiny  # pyright: ignore
    from torch.utils.flop_counter import FlopCounterMode

    config = find_tiny("someone/taesd")
    assert config is not None
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        tiny = AutoencoderTiny().eval()
        tiny.decode(torch.zeros(2, 4, 16, 24))
    cost = tiny_decoder_cost(config, size=(16, 24))
    assert cost.parameters == sum(weights.numel() for weights in tiny.decoder.parameters())
    assert 2 * cost.parameters == pytest.approx(sum(weights.numel() for weights in tiny.parameters()), rel=0.01)
    assert 2 * cost.flops == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_what_is_taken_over_from_the_code_that_runs_is_the_same_there(monkeypatch):
    import torch

    from raft_diffusion.diffusion import choose_dtype, sampler

    assert memory.DECODED_PIXELS == sampler.DECODED_PIXELS
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    for precision in ("auto", "fp32", "bf16", "fp16"):
        for device in ("cpu", "cuda", "mps"):
            if (precision, device) != ("fp16", "cpu"):
                assert number_width(precision, device) == choose_dtype(precision, device).itemsize


# --- what is estimated ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "idle", "busy", "peak", "disk"),
    [("pocket-monet", 134, 194, 1.87e9, 11.70e6), ("pocket-resolution", 134, 196, 1.71e9, 20.83e6)],
)
def test_the_demos_as_they_were_measured(name, idle, busy, peak, disk):
    """Seconds of CPU time on an idle and on a busy machine; the greatest resident size; the run folder's bytes; without
    a guard. The latents of the candidates, 4 bytes x 4 x (size / 4)^2 each, came to it afterwards."""
    result = expect(name, "threads=1", "guard.enabled=false")
    assert 0.7 * busy < result.seconds < 1.3 * idle
    assert result.peak_memory_bytes == pytest.approx(peak, rel=0.2)
    assert result.disk_bytes == pytest.approx(disk, rel=0.2)
    assert result.known


def test_a_full_size_round_as_it_was_measured():
    """7.18 GB: float32 on a CPU at 256 px, 2 prompts x 2 pictures x 2 steps sampled at once, 2 steps of 2 trained."""
    changes = [f"sampling.{key}={value}" for key, value in SMALL_ROUND.items()]
    others = ("prompts.held_out=[]", "rewards.held_out=none", "rewards.weights={ compressibility = 1.0 }")
    tuning = ("selection.best=1", "tuning.rank=4", "tuning.steps=2", "tuning.batch_size=2", "evaluation.pairs=2")
    result = expect("pocket-monet", "model=a/b", "prompts.train=['cat', 'dog']", *changes, *others, *tuning)
    assert (result.images_per_round, result.unet_evaluations // result.rounds) == (4, 4 * 2 * 2)
    assert result.peak_memory_bytes == pytest.approx(7.18e9, rel=0.2)
    least = expect("pocket-monet", "model=a/b", *changes, *others, *tuning, "sampling.batch_size=1")
    assert least.peak_memory_bytes == pytest.approx(7.01e9, rel=0.2)  # while it loads


SMALL_ROUND = {
    "width": 256,
    "height": 256,
    "num_inference_steps": 2,
    "guidance_scale": 7.5,
    "collect_guidance_scale": "none",
    "samples_per_prompt": 2,
    "groups_per_prompt": 1,
    "batch_size": 4,
}


@settings(deadline=None)
@given(st.integers(1, 50), st.integers(1, 64))
def test_more_rounds_take_as_much_longer_and_a_larger_batch_more_memory(rounds, batch):
    one = expect("pocket-monet", "rounds=1", f"sampling.batch_size={batch}")
    many = expect("pocket-monet", f"rounds={rounds}", f"sampling.batch_size={batch}")
    assert many.seconds_per_round == one.seconds_per_round
    assert many.seconds == pytest.approx(one.seconds + (rounds - 1) * one.seconds_per_round)
    assert many.images == rounds * one.images
    assert expect("pocket-monet", f"sampling.batch_size={batch + 1}").peak_memory_bytes >= one.peak_memory_bytes


def test_threads_help_and_a_trained_text_encoder_costs():
    one, four = (expect("pocket-monet", f"threads={n}") for n in (1, 4))
    assert four.seconds_per_round < one.seconds_per_round
    assert (one.device, four.device) == ("1 CPU thread", "4 CPU threads")
    assert expect("pocket-monet", "tuning.text_encoder=true", "threads=1").seconds > one.seconds


@pytest.mark.parametrize(
    ("changes", "winners"),
    [
        ((), 8 * 4),
        (("selection.best=1", "selection.tau=1.0"), 128),
        (("rewards.method=fixed", "selection.top_fraction=0.5"), 64),
        (("rewards.method=fixed", "selection.top_count=5"), 5),
    ],
)
def test_the_disk_holds_each_winner_once_more_with_its_latent(changes, winners):
    """A winner's copy: 1.5 bytes a pixel, 600 bytes of its line, and 4 x 16 x 16 float32."""
    none = expect("pocket-monet", "rewards.method=fixed", "selection.top_count=1", "rounds=1").disk_bytes
    copy = 1.5 * 64 * 64 + 600 + 4 * 4 * 16 * 16
    assert expect("pocket-monet", *changes, "rounds=1").disk_bytes - none == pytest.approx((winners - 1) * copy, abs=2)


def test_a_card_is_an_estimate_that_nobody_measured():
    result = expect("pocket-monet", "model=a/b", machine=CARD)
    assert result.device == "NVIDIA A100-SXM4-80GB"
    assert not result.known
    assert "not yet measured" in result.basis and "A100" in result.basis
    assert any("a/b is taken to be of Stable Diffusion 1.5's size" in note for note in result.notes)
    assert "a guess, as NVIDIA X1 is not in its table" in card_speed("NVIDIA X1").basis
    assert card_speed("NVIDIA A10").flops > card_speed("Tesla T4").flops
    assert "A100" in card_speed("NVIDIA A100-PCIE-40GB").basis  # not A10


def test_a_macs_gpu_is_a_guess():
    result = expect("pocket-monet", machine=Machine(cores=8, apple=True))
    assert result.device == "the Mac's GPU"
    assert not result.known


def noted(*changes: str, machine: Machine = PC) -> str:
    return "\n".join(expect("pocket-monet", *changes, machine=machine).notes)


def test_the_notes():
    assert "not counted" in noted("rewards.custom=['mine:bright']", "rewards.weights={ bright = 1.0 }")
    assert "CLIP tower odd:one is taken to be of ViT-L-14's size" in noted("rewards.scorer=odd:one")
    assert "may end earlier: after 3 rounds" in noted("stop_when_flat=3")
    assert "no NVIDIA card is seen here" in noted("device=cuda", machine=Machine(cores=2, torch_cuda="13.2"))
    idle = dataclasses.replace(CARD, torch_cuda=None)
    assert "--torch-backend=auto" in noted(machine=idle)
    assert "--torch-backend=auto" not in noted("device=cpu", machine=idle)


FULL = ("model=a/b", "rewards.scorer='ViT-L-14-quickgelu:openai'", "rewards.held_out='ViT-B-32:laion2b_s34b_b79k'")
LARGE = (*FULL, "sampling.width=512", "sampling.height=512")


def test_the_weights_take_their_precisions_bytes():
    """Parameters as published: UNet, VAE, text encoder, ViT-L/14, ViT-B/32; PickScore is a ViT-H/14."""
    model, towers = 859_520_964 + 83_653_863 + 123_060_480, 427_616_513 + 151_277_313

    def weights(*changes: str, device: str = "cuda") -> int:
        config = preset("pocket-monet", *FULL, *changes)
        return find_parts(config, find_networks("a/b"), latent=(8, 8), device=device).weights

    assert weights() == 2 * (model + towers)
    assert weights(device="cpu") == weights(device="mps") == 4 * (model + towers)
    assert weights("precision=fp32") == 4 * model + 2 * towers  # the towers' precision is the device's own
    assert weights("precision=bf16", device="cpu") == 2 * model + 4 * towers
    more = weights("rewards.weights={ text_image = 1.0, pickscore = 1.0 }") - weights()
    assert more == 2 * 986_109_441
    alone = weights("rewards.weights={ pickscore = 1.0 }", "rewards.held_out=none")
    assert alone == 2 * (model + 986_109_441)
    assert weights("rewards.held_out=hpsv2.1") == 2 * (model + 427_616_513 + 986_109_441)


def test_gradient_checkpointing_takes_less_memory_and_one_more_forward_pass():
    changes = (*LARGE, "sampling.batch_size=4")
    plain, again = (
        expect("pocket-monet", *changes, f"tuning.gradient_checkpointing={on}", machine=CARD)
        for on in ("false", "true")
    )
    assert again.peak_memory_bytes < 0.8 * plain.peak_memory_bytes
    none = expect("pocket-monet", *changes, "tuning.steps=1", machine=CARD)
    tuning = plain.seconds_per_round - none.seconds_per_round
    assert again.seconds_per_round - plain.seconds_per_round == pytest.approx(tuning / 2.05, rel=0.15)


def test_pictures_are_decoded_four_at_once_and_a_tiny_decoder_saves_time():
    changes = (*LARGE, "tuning.gradient_checkpointing=true", "tuning.batch_size=1", "sampling.num_inference_steps=4")

    def peak(batch: int) -> int:
        return expect("pocket-monet", *changes, f"sampling.batch_size={batch}", machine=CARD).peak_memory_bytes

    assert peak(2) < peak(4) == peak(6)
    whole, tiny = (
        expect("pocket-monet", *changes, f"sampling.tiny_decoder={name}", machine=CARD) for name in ("none", "a/taesd")
    )
    assert tiny.seconds_per_round < 0.9 * whole.seconds_per_round
    assert tiny.seconds_evaluation == whole.seconds_evaluation  # which decodes with the VAE


@pytest.mark.parametrize("gigabytes", [10, 8, 6])
def test_what_helps_where_memory_is_short_does_help(gigabytes):
    card = dataclasses.replace(CARD, card_memory=gigabytes * 10**9)
    changes = (*LARGE, "sampling.batch_size=16", "tuning.batch_size=8")
    before = expect("pocket-monet", *changes, machine=card)
    note = before.notes[-1]
    assert f"more memory than the {gigabytes} GB that are there: set tuning.gradient_checkpointing = true" in note
    told = note.partition(": set ")[2].partition(", which brings it to ")[0].split(" and ")
    after = expect("pocket-monet", *changes, *(setting.replace(" = ", "=") for setting in told), machine=card)
    assert f"which brings it to {size(after.peak_memory_bytes)} and changes no picture" in note
    assert after.peak_memory_bytes <= gigabytes * 10**9 < before.peak_memory_bytes
    assert (after.images, after.tuning_samples) == (before.images, before.tuning_samples)
    assert not any("more memory" in note for note in after.notes)


def test_where_nothing_helps_enough():
    small = dataclasses.replace(CARD, card_memory=10**9)
    assert "would bring it to" in expect("pocket-monet", *LARGE, machine=small).notes[-1]
    assert "which is still too much: make smaller pictures" in expect("pocket-monet", *LARGE, machine=small).notes[-1]
    least = ("sampling.batch_size=1", "tuning.batch_size=1", "tuning.gradient_checkpointing=true")
    note = noted(*least, machine=Machine(cores=2, memory=10**9))
    assert "more memory than the 1 GB that are there, and no setting but smaller pictures" in note


def test_a_measurement_corrects_the_time():
    before = expect("pocket-monet", "evaluation.pairs=2", "prompts.held_out=[]")
    config = preset("pocket-monet", "guard.enabled=false")
    assert sampling_rows(config) == 2 * 64  # guided: 64 pictures at once
    assert sampling_rows(preset("pocket-monet", "sampling.collect_guidance_scale=1")) == 64
    assert sampling_rows(preset("pocket-monet", "sampling.batch_size=500")) == 2 * 128  # a round has no more
    slow = forecast(config, machine=PC, measured=Measured(unet_seconds=60.0, tuning_seconds=10.0))
    calls = 128 // 64 * 12
    assert slow.seconds_per_round == pytest.approx(calls * 60.0 + 60 * 10.0, rel=0.25)  # decoding and scoring besides
    assert slow.seconds_per_round > calls * 60.0 + 60 * 10.0
    assert slow.known
    assert "measured here, 60 s for a UNet call of 128 rows and 10 s for a pass of finetuning" in slow.basis
    assert slow.peak_memory_bytes == before.peak_memory_bytes


def test_the_sentence_before_a_run():
    sentence = expect("pocket-monet").sentence()
    assert sentence.startswith(
        "4 rounds x 8 groups x 16 candidates = 512 images of 64 x 64 px in 12 steps each, "
        "60 tuning steps a round; about "
    )
    assert sentence.endswith("on 2 CPU threads")


def test_seconds_and_bytes_as_people_say_them():
    spans = {0.2: "1 s", 59.4: "59 s", 59.6: "1 min", 94: "1 min 35 s", 598: "10 min", 3000: "50 min"}
    spans |= {7200: "2 h", 7800: "2 h 10 min", 400_000: "5 days"}
    assert {seconds: clock(seconds) for seconds in spans} == spans
    sizes = {12: "12 bytes", 9.6e6: "9.6 MB", 1.69e9: "1.69 GB", 999.9e6: "1 GB", 2e15: "2e+03 TB"}
    assert {count: size(count) for count in sizes} == sizes


# --- refusals ---------------------------------------------------------------------------------------------------------


def model_folder(root, **parts) -> None:
    """A folder in the diffusers layout that holds configurations alone."""
    (root / "model_index.json").write_text("{}", encoding="utf-8")
    for part, config in parts.items():
        (root / part).mkdir()
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        (root / part / name).write_text(json.dumps(config), encoding="utf-8")


def test_a_models_folder_is_read_and_its_factor_divides_the_size(tmp_path):
    parts = {part: sd15.config(part) for part in ("unet", "text_encoder", "scheduler")}
    vae = sd15.config("vae")
    vae["block_out_channels"] = [*vae["block_out_channels"], 512]
    model_folder(tmp_path, vae=vae, **parts)
    with pytest.raises(ValueError, match=r"width is 72; this model needs a multiple of 16, such as 64"):
        expect("pocket-monet", f"model={json.dumps(str(tmp_path))}", "sampling.width=72")
    larger = expect("pocket-monet", f"model={json.dumps(str(tmp_path))}")
    assert larger.seconds > expect("pocket-monet").seconds
    assert not any("is taken to be" in note for note in larger.notes)


def test_models_that_are_none(tmp_path):
    for name, message in (
        ("pockets", r"no model at 'pockets'; give a folder in the diffusers layout, a .safetensors checkpoint, a hub"),
        ("runwayml/stable-diffusion-v1-5", r"was deleted from the hub; the same model is there as stable-diffusion"),
        (str(tmp_path), r"holds no model_index.json"),
    ):
        with pytest.raises(ValueError, match=message):
            expect("pocket-monet", f"model={json.dumps(name)}")
    model_folder(tmp_path)
    with pytest.raises(ValueError, match=r"there is no configuration .*config.json; the model's folder must hold it"):
        find_networks(str(tmp_path))
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"config.json is no valid JSON"):
        find_networks(str(tmp_path))


def checkpoint(path, channels: int = 4):
    """A checkpoint in the LDM layout, of zeros; its file takes no room on the disk."""
    shapes = {
        "model.diffusion_model.input_blocks.0.0.weight": [320, channels, 3, 3],
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": [320, 768],
        "first_stage_model.decoder.conv_in.weight": [512, 4, 3, 3],
        "cond_stage_model.transformer.text_model.final_layer_norm.weight": [768],
    }
    table, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        table[name] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    header = json.dumps(table).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    os.truncate(path, 8 + len(header) + end)
    return f"model={json.dumps(str(path))}"


def test_a_checkpoint_is_told_from_its_header(tmp_path):
    file = checkpoint(tmp_path / "mine.safetensors")
    hub, own = expect("pocket-monet", "model=a/b"), expect("pocket-monet", file)
    assert (own.seconds, own.peak_memory_bytes) == (hub.seconds, hub.peak_memory_bytes)
    assert not any("is taken to be" in note for note in own.notes)
    (tmp_path / "mine.yaml").write_text("model: 3", encoding="utf-8")
    with pytest.raises(ValueError, match=r"mine.yaml has no section model.params that can be read"):
        expect("pocket-monet", file)
    with pytest.raises(ValueError, match=r"is an inpainting checkpoint"):
        expect("pocket-monet", checkpoint(tmp_path / "other.safetensors", channels=9))
    (tmp_path / "old.ckpt").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"is a pickle"):
        expect("pocket-monet", f"model={json.dumps(str(tmp_path / 'old.ckpt'))}")


def test_devices_that_cannot_be():
    with pytest.raises(ValueError, match=r"the device 'mps' is not there: it is the GPU of Apple's own chips"):
        expect("pocket-monet", "device=mps")
    with pytest.raises(ValueError, match=r"the device 'cuda' is not there: this torch is a build without CUDA"):
        expect("pocket-monet", "device=cuda")
    with pytest.raises(ValueError, match=r"the device 'cuda:1' is not there: there is an NVIDIA card \(NVIDIA A100"):
        expect("pocket-monet", "device=cuda:1", machine=dataclasses.replace(CARD, torch_cuda=None))


def test_an_unknown_sampler():
    with pytest.raises(ValueError, match=r"Eular"):
        expect("pocket-monet", "sampling.scheduler=Eular")


# --- the command ------------------------------------------------------------------------------------------------------

app = typer.Typer()
app.command()(plan)


def test_the_table_fits_a_terminal_of_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    out = CliRunner().invoke(app, ["pocket-monet"], catch_exceptions=False).stdout
    assert "1 prompt x 8 groups x 16 candidates = 128 images" in out
    assert "12,288 evaluations" in out
    assert "time, memory and disk are estimates" in out
    assert max(map(len, out.splitlines())) <= 80


def test_the_numbers_as_json(tmp_path):
    target = tmp_path / "plan.json"
    arguments = ["pocket-monet", "--set", "rounds=2", "--threads", "1", "--device", "cpu", "--json", str(target)]
    assert CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code == 0
    numbers = json.loads(target.read_text(encoding="utf-8"))
    assert (numbers["images"], numbers["unet_evaluations"], numbers["tuning_steps"]) == (256, 6144, 120)
    assert numbers["seconds"] > 2 * numbers["seconds_per_round"] > 0
    assert numbers["peak_memory_bytes"] > 10**9
    assert numbers["folder"].startswith("runs")
    assert numbers["device"] == "1 CPU thread"
    assert numbers["measured"] is None


def test_measure_runs_the_model_and_says_so(tmp_path):
    target = tmp_path / "plan.json"
    chosen = ["sampling.batch_size=4", "tuning.batch_size=2", "sampling.collect_guidance_scale=none"]
    changes = [argument for setting in chosen for argument in ("--set", setting)]
    arguments = ["pocket-resolution", "--threads", "1", "--device", "cpu", *changes]
    result = CliRunner().invoke(app, [*arguments, "--measure", "--json", str(target)], catch_exceptions=False)
    numbers = json.loads(target.read_text(encoding="utf-8"))
    assert "time is corrected by a measurement" in result.stdout
    unet, tuning = (numbers["measured"][key] for key in ("unet_seconds", "tuning_seconds"))
    assert min(unet, tuning) > 0
    batches, steps = 160 // 4, 150
    assert numbers["seconds_per_round"] > batches * 12 * unet + steps * tuning
    assert f"a UNet call of 4 rows and {tuning:.3g} s" in numbers["basis"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pocket-manet"], "pocket-monet"),
        (["pocket-monet", "--set", "rewards.weights={ asthetic = 1.0 }"], "aesthetic"),
        (["pocket-monet", "--set", "sampling.scheduler=Eular"], "Euler"),
        (["pocket-monet", "--model", "nowhere"], "no model at 'nowhere'"),
        (["pocket-monet", "--revision", "main"], "revision 'main' is for a model on the hub"),
    ],
)
def test_it_refuses_what_train_would(arguments, message):
    with pytest.raises(ValueError, match=message):
        CliRunner().invoke(app, arguments, catch_exceptions=False)


@pytest.mark.skipif(os.name == "nt", reason="no resource usage on Windows")
def test_it_answers_within_a_second_of_processor_time_without_torch():
    code = (
        "import resource, sys, typer\n"
        "from raft_diffusion.commands.plan import plan\n"
        "app = typer.Typer()\n"
        "app.command()(plan)\n"
        "app(['pocket-monet', '--model', 'a/b', '--json', '-'], standalone_mode=False)\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print('torch' in sys.modules, used.ru_utime + used.ru_stime, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    torch, seconds = done.stderr.splitlines()[-1].split()
    assert torch == "False"
    assert float(seconds) < 1
    assert json.loads(done.stdout)["images"] == 512
