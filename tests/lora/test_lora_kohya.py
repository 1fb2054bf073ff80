"""kohya's format: its names from Stable Diffusion 1.5's own table, its numbers through diffusers' loader."""

import hashlib
import itertools
import json
import math
import runpy
import struct
from pathlib import Path

import pytest
import torch
from diffusers.loaders import StableDiffusionLoraLoaderMixin as Loader
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from raft_diffusion.lora import kohya
from raft_diffusion.lora.export import plan_export, write_export
from raft_diffusion.lora.file import find_lora, read_lora
from raft_diffusion.lora.kohya import Module, kohya_name, read_modules, to_kohya
from raft_diffusion.lora.tensors import write_tensors
from raft_diffusion.sd15.modules import text_encoder_modules, unet_modules

LORAS = runpy.run_path(str(Path(__file__).with_name("lora_runs.py")))
full_models, layers, draw_lora, write_run = (LORAS[k] for k in ("full_models", "layers", "draw_lora", "write_run"))
LIMIT = {"fp32": 1e-6, "fp16": 1e-3}

# --- names ------------------------------------------------------------------------------------------------------------

# The UNet of Stable Diffusion 1.x block by block, as CompVis/stable-diffusion's configs/stable-diffusion/
# v1-inference.yaml builds it in ldm/modules/diffusionmodules/openaimodel.py (channel_mult 1 2 4 4, num_res_blocks 2,
# attention_resolutions 4 2 1): what each holds beside the other blocks' names for it in diffusers 0.10, which kohya's
# sd-scripts (networks/lora.py) flatten with underscores. R: a ResBlock, S: with a skip_connection, T: a
# SpatialTransformer, D: a Downsample, U: an Upsample.
LDM = {
    "input_blocks.1": ("RT", "down_blocks_0", 0),
    "input_blocks.2": ("RT", "down_blocks_0", 1),
    "input_blocks.3": ("D", "down_blocks_0", 0),
    "input_blocks.4": ("ST", "down_blocks_1", 0),
    "input_blocks.5": ("RT", "down_blocks_1", 1),
    "input_blocks.6": ("D", "down_blocks_1", 0),
    "input_blocks.7": ("ST", "down_blocks_2", 0),
    "input_blocks.8": ("RT", "down_blocks_2", 1),
    "input_blocks.9": ("D", "down_blocks_2", 0),
    "input_blocks.10": ("R", "down_blocks_3", 0),
    "input_blocks.11": ("R", "down_blocks_3", 1),
    "middle_block.0": ("R", "mid_block", 0),
    "middle_block.1": ("T", "mid_block", 0),
    "middle_block.2": ("R", "mid_block", 1),
    "output_blocks.0": ("S", "up_blocks_0", 0),
    "output_blocks.1": ("S", "up_blocks_0", 1),
    "output_blocks.2": ("SU", "up_blocks_0", 2),
    "output_blocks.3": ("ST", "up_blocks_1", 0),
    "output_blocks.4": ("ST", "up_blocks_1", 1),
    "output_blocks.5": ("STU", "up_blocks_1", 2),
    "output_blocks.6": ("ST", "up_blocks_2", 0),
    "output_blocks.7": ("ST", "up_blocks_2", 1),
    "output_blocks.8": ("STU", "up_blocks_2", 2),
    "output_blocks.9": ("ST", "up_blocks_3", 0),
    "output_blocks.10": ("ST", "up_blocks_3", 1),
    "output_blocks.11": ("ST", "up_blocks_3", 2),
}
TRANSFORMER = (
    "proj_in",
    *(f"transformer_blocks_0_attn{i}_to_{kind}" for i in (1, 2) for kind in ("q", "k", "v", "out_0")),
    "transformer_blocks_0_ff_net_0_proj",
    "transformer_blocks_0_ff_net_2",
    "proj_out",
)
RESNET = ("conv1", "time_emb_proj", "conv2")
TEXT = ("self_attn_q_proj", "self_attn_k_proj", "self_attn_v_proj", "self_attn_out_proj", "mlp_fc1", "mlp_fc2")


def by_hand():
    """(the names of the transformers' layers, of the resnets' and samplers', of the text encoder's)."""
    transformers, convolutions = set(), set()
    for kinds, block, place in LDM.values():
        for kind in kinds:
            if kind == "T":
                transformers |= {f"lora_unet_{block}_attentions_{place}_{layer}" for layer in TRANSFORMER}
            if kind in "RS":
                convolutions |= {f"lora_unet_{block}_resnets_{place}_{layer}" for layer in RESNET}
            if kind == "S":
                convolutions.add(f"lora_unet_{block}_resnets_{place}_conv_shortcut")
            if kind in "DU":
                convolutions.add(f"lora_unet_{block}_{'down' if kind == 'D' else 'up'}samplers_0_conv")
    text = {f"lora_te_text_model_encoder_layers_{layer}_{kind}" for layer in range(12) for kind in TEXT}
    return transformers, convolutions, text


def test_the_names_are_those_of_the_table_none_missing_and_none_unknown():
    transformers, convolutions, text = by_hand()
    assert (len(transformers), len(text), len(transformers | text)) == (192, 72, 264)
    assert (len(transformers | convolutions), len(transformers | convolutions | text)) == (278, 350)
    assert {kohya_name("unet", name) for name in unet_modules()} == transformers | convolutions
    assert {kohya_name("text_encoder", name) for name in text_encoder_modules()} == text


def test_the_four_layers_that_kohya_leaves_out_are_all_that_the_table_lacks():
    models = full_models()
    linear = (torch.nn.Linear, torch.nn.Conv2d)
    names = {part: {n for n, m in model.named_modules() if isinstance(m, linear)} for part, model in models.items()}
    four = {"conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2"}
    assert names["unet"] - four == set(unet_modules()) and four < names["unet"] == names["unet"] | four
    assert {f"text_model.{name}" for name in names["text_encoder"]} == set(text_encoder_modules())
    assert set(kohya.UNKNOWN_TO_KOHYA) == four


@pytest.mark.parametrize("path", ["encoder.layers.3.mlp.fc1", "text_model.encoder.layers.3.mlp.fc1"])
def test_the_text_encoders_names_have_text_model_whatever_transformers_calls_it(path):
    assert kohya_name("text_encoder", path) == "lora_te_text_model_encoder_layers_3_mlp_fc1"


# --- numbers, through diffusers' own loader at full size --------------------------------------------------------------


def distance(down, up, scale, expected_down, expected_up, expected_scale):
    """||delta W - expected|| / ||expected|| in Frobenius' norm.

    up @ down of full size has up to 29 million numbers, so the norm is taken of its small factors, in float64:
    ||up @ down||^2 = tr(down^T up^T up down) = tr(up^T up  down down^T).
    """

    def square(up, down):
        return torch.trace((up.T @ up) @ (down @ down.T)).item()

    down, up, expected_down, expected_up = (t.double().flatten(1) for t in (down, up, expected_down, expected_up))
    both = torch.cat([up * scale, -expected_up * expected_scale], 1), torch.cat([down, expected_down])
    return math.sqrt(max(0.0, square(*both)) / square(expected_up * expected_scale, expected_down))


def load_into(models, file):
    """What `load_lora_weights` does with a file, as an adapter "file" of the models."""
    state, alphas, *rest = Loader.lora_state_dict(file, unet_config=models["unet"].config, return_lora_metadata=True)
    said = rest[0] if rest else None
    for part, load in (("unet", Loader.load_lora_into_unet), ("text_encoder", Loader.load_lora_into_text_encoder)):
        if any(name.startswith(f"{part}.") for name in state):
            load(state, alphas, models[part], adapter_name="file", metadata=said)


def tuned_layers(model, adapter="file"):
    """Name -> (down, up, scale) of the layers that carry it."""
    return {
        name: (m.lora_A[adapter].weight.detach(), m.lora_B[adapter].weight.detach(), m.scaling[adapter])
        for name, m in model.named_modules()
        if isinstance(m, BaseTunerLayer) and adapter in m.lora_A
    }


def check_round_trip(tmp_path, parts, *, attention, rank, alpha, dtypes):
    """A run's adapter exported, loaded by diffusers into a model of full size, and compared layer by layer."""
    models = full_models()
    found = {part: layers(models[part], attention=attention) for part in parts}
    tensors = draw_lora(found, rank=rank)
    run = write_run(tmp_path / "run", tensors, rank=rank, alpha=alpha, rounds=1)
    for dtype in dtypes:
        models = full_models()
        out = tmp_path / f"{dtype}.safetensors"
        write_export(plan_export(run, out=out, dtype=dtype, sides=()))
        load_into(models, str(out))
        for part in parts:
            loaded = tuned_layers(models[part])
            extra = set(loaded) - set(found[part])
            assert not set(found[part]) - set(loaded)
            assert all(not loaded[name][1].any() for name in extra)
            prefix = f"{part}." + ("text_model." if part == "text_encoder" else "")
            for name in found[part]:
                expected = (tensors[f"{prefix}{name}.lora_{side}.weight"] for side in "AB")
                wrong = distance(*loaded[name], *expected, alpha / rank)
                assert wrong <= LIMIT[dtype], (dtype, part, name, wrong)


BOTH = ("unet", "text_encoder")


@pytest.mark.parametrize("ratio", [pytest.param(1, marks=pytest.mark.slow), 0.5, 2])
def test_a_round_trip_of_all_layers(tmp_path, ratio):
    check_round_trip(tmp_path, BOTH, attention=False, rank=4, alpha=4 * ratio, dtypes=("fp32", "fp16"))


PARTS = (("unet",), ("text_encoder",), BOTH)
GRID = list(itertools.product(PARTS, (True, False), (1, 4), (1, 0.5, 2)))
GRID += [
    (*case, 128, ratio) for case, ratio in zip(itertools.product(PARTS, (True, False)), 2 * (1, 0.5, 2), strict=True)
]


@pytest.mark.slow
@pytest.mark.parametrize(("parts", "attention", "rank", "ratio"), GRID)
def test_every_round_trip(tmp_path, parts, attention, rank, ratio):
    check_round_trip(tmp_path, parts, attention=attention, rank=rank, alpha=rank * ratio, dtypes=("fp32", "fp16"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute")
def test_a_live_adapter_on_a_model_of_full_size_equals_its_export_beside_it(tmp_path):
    """Random weights in memory, our adapter trained on nothing but noise, and the whole delta W of every layer."""
    from types import SimpleNamespace

    from raft_diffusion.diffusion.adapter import Adapter
    from raft_diffusion.lora.file import TARGETS

    models = full_models()
    generator = torch.Generator().manual_seed(0)
    for model in models.values():
        for parameter in model.parameters():
            parameter.data.uniform_(-0.02, 0.02, generator=generator)
            parameter.requires_grad_(False)
    adapter = Adapter(SimpleNamespace(**models), rank=8, alpha=4.0, targets=tuple(TARGETS), text_encoder=True, seed=0)
    for name, parameter in adapter.parameters().items():
        if ".lora_B." in name:
            parameter.data.normal_(std=0.01, generator=generator)
    adapter.save(tmp_path)
    tensors = load_file(tmp_path / "pytorch_lora_weights.safetensors")
    run = write_run(tmp_path / "run", tensors, rank=8, alpha=4.0, rounds=1)
    write_export(plan_export(run, out=tmp_path / "cat.safetensors", sides=()))
    load_into(models, str(tmp_path / "cat.safetensors"))
    compared = 0
    for model in models.values():
        for name, layer in model.named_modules():
            if isinstance(layer, BaseTunerLayer):
                trained, loaded = layer.get_delta_weight("default"), layer.get_delta_weight("file")
                assert loaded.shape == layer.get_base_layer().weight.shape
                assert torch.linalg.norm(loaded - trained) <= 1e-3 * torch.linalg.norm(trained), name
                compared += 1
    assert compared == 192 + (22 * 2 + 14 + 6) + 12 * 4


# --- one alpha for each part, whatever was trained --------------------------------------------------------------------


def module(part, path, alpha, rank=2, up=1.0):
    return Module(part, path, torch.full((rank, 3), 0.5), torch.full((5, rank), up), alpha)


def test_other_alphas_are_folded_into_lora_up():
    """Two of the three UNet layers have alpha 2; the third's is 6: its up is three times as large and its alpha 2."""
    parts = [("unet", "a", 2.0), ("unet", "b", 6.0), ("unet", "c", 2.0), ("text_encoder", "d", 8.0)]
    tensors = to_kohya([module(*part) for part in parts], dtype="fp32")
    alphas = {name.partition(".")[0]: t.item() for name, t in tensors.items() if name.endswith(".alpha")}
    assert alphas == {"lora_unet_a": 2, "lora_unet_b": 2, "lora_unet_c": 2, "lora_te_text_model_d": 8}
    assert tensors["lora_unet_b.lora_up.weight"].unique().tolist() == [3.0]
    assert tensors["lora_unet_a.lora_up.weight"].unique().tolist() == [1.0]
    assert list(tensors) == sorted(tensors)


@pytest.mark.parametrize("alpha", [0.1, 3.3, 1e-6, 1e6])
def test_an_alpha_that_fp16_does_not_have_loses_nothing(alpha):
    tensors = to_kohya([module("unet", "a", alpha, up=1e-3)], dtype="fp16")
    down, up, written = (
        tensors[f"lora_unet_a.{kind}"].double() for kind in ("lora_down.weight", "lora_up.weight", "alpha")
    )
    assert tensors["lora_unet_a.alpha"].dtype == torch.float16 and 0 < written < torch.inf
    torch.testing.assert_close(
        (up @ down) * written / 2, torch.full((5, 3), alpha / 2 * 1e-3).double(), rtol=1e-3, atol=0
    )


def test_the_scale_of_rslora_and_of_patterns_is_the_real_one(tmp_path):
    """peft's scale with use_rslora is alpha / sqrt(r) (arXiv:2312.03732): 6 / sqrt(4) = 3, as alpha 12 gives it."""
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    tensors = {f"unet.{name}.lora_A.weight": torch.ones(4, 3), f"unet.{name}.lora_B.weight": torch.ones(5, 4)}
    said = {"unet.r": 4, "unet.lora_alpha": 1.0, "unet.use_rslora": True, "unet.alpha_pattern": {"attn2.to_k": 6.0}}
    save_file(tensors, tmp_path / "a.safetensors", metadata={"lora_adapter_metadata": json.dumps(said)})
    (found,) = read_modules(read_lora(tmp_path / "a.safetensors"))
    assert (found.part, found.path, found.rank, found.alpha) == ("unet", name, 4, 12.0)


def test_a_barely_trained_layer_keeps_its_digits_in_fp16():
    """1e-7 is the smallest number but one that float16 has: written as it is, it would be off by up to a half."""
    up = 1e-7 * (1 + torch.rand(64, 4, generator=torch.Generator().manual_seed(0)))
    small = Module("unet", "a", torch.ones(4, 8), up, 4.0)
    tensors = to_kohya([small], dtype="fp16")
    parts = (tensors["lora_unet_a.lora_down.weight"], tensors["lora_unet_a.lora_up.weight"], 1.0)
    assert distance(*parts, small.down, small.up, 1.0) < 1e-3


@pytest.mark.parametrize(
    ("value", "dtype", "words"), [(torch.nan, "fp32", "not finite"), (1e5, "fp16", "--dtype fp32")]
)
def test_numbers_that_would_paint_black_are_refused(value, dtype, words):
    with pytest.raises(ValueError, match=words) as refusal:
        to_kohya([module("unet", "mid_block.proj_in", 2.0, up=value)], dtype=dtype)
    assert "unet.mid_block.proj_in" in str(refusal.value)


def test_an_adapter_in_kohyas_format_is_refused(tmp_path):
    name = "lora_unet_mid_block_attentions_0_proj_in"
    save_file(
        {f"{name}.lora_down.weight": torch.ones(1, 3), f"{name}.lora_up.weight": torch.ones(3, 1)}, tmp_path / "a"
    )
    with pytest.raises(ValueError, match="kohya's format, and a run's adapter in diffusers'"):
        read_modules(read_lora(tmp_path / "a"))


# --- bytes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
def test_safetensors_reads_the_file_back(tmp_path, dtype):
    tensors = to_kohya([module("unet", "a", 2.0), module("text_encoder", "b", 1.0, rank=3)], dtype=dtype)
    write_tensors(tmp_path / "a.safetensors", tensors, {"z": "é", "a": '"{}"'})
    back = load_file(tmp_path / "a.safetensors")
    assert all(torch.equal(back[name], tensor) and back[name].dtype == tensor.dtype for name, tensor in tensors.items())
    assert back["lora_unet_a.alpha"].shape == () and len(back) == len(tensors)
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"z": "é", "a": '"{}"'}


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_the_export_is_read_back_by_lora(tmp_path, dtype):
    """What `sample`, `evaluate` and `train` read of a kohya file of ours is what was trained."""
    from raft_diffusion.assemble import make_base
    from raft_diffusion.diffusion.lora_weights import load_weights
    from raft_diffusion.jobs import load_config

    policy = make_base(load_config("pocket-monet"))
    policy.add_adapter(rank=4, alpha=2.0, targets=("attention", "convolution"), text_encoder=True, seed=1)
    with torch.no_grad():
        for number, parameter in enumerate(policy.trained.parameters().values()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    policy.save(tmp_path)
    stored, bare = read_lora(find_lora(tmp_path)), make_base(load_config("pocket-monet")).components
    own = {(w.part, w.path): w.delta() for w in load_weights(stored, bare)}
    write_tensors(tmp_path / "k.safetensors", kohya.to_kohya(read_modules(stored), dtype=dtype), {})
    found = {(w.part, w.path): w.delta() for w in load_weights(read_lora(tmp_path / "k.safetensors"), bare)}
    assert own.keys() == found.keys() and len(own) > 60
    for name, delta in own.items():
        assert (found[name] - delta).norm() <= (1e-6 if dtype == "fp32" else 1e-3) * delta.norm()


def test_the_hashes_are_those_of_the_file(tmp_path):
    """The definitions: kohya's addnet_hash_safetensors (all bytes after the header), addnet_hash_legacy (64 KiB from
    1 MiB on, 8 digits)."""
    tensors = to_kohya([Module("unet", "a", torch.rand(8, 50_000), torch.rand(64, 8), 8.0)], dtype="fp32")
    write_tensors(tmp_path / "a", tensors, kohya.with_hashes(tensors, {"ss_output_name": "a"}))
    whole = (tmp_path / "a").read_bytes()
    (size,) = struct.unpack("<Q", whole[:8])
    said = json.loads(whole[8 : 8 + size])["__metadata__"]
    assert len(whole) > 0x110000 and size % 8 == 0
    assert said["sshs_model_hash"] == hashlib.sha256(whole[8 + size :]).hexdigest()
    assert said["modelspec.hash_sha256"] == f"0x{said['sshs_model_hash']}"
    assert said["sshs_legacy_hash"] == hashlib.sha256(whole[0x100000:0x110000]).hexdigest()[:8]


def test_a_header_of_a_megabyte_is_refused():
    tensors = to_kohya([module("unet", "a", 2.0)], dtype="fp16")
    with pytest.raises(ValueError, match="--no-tags"):
        kohya.with_hashes(tensors, {"ss_tag_frequency": "x" * 2**20})
    said = kohya.with_hashes(tensors, {"ss_tag_frequency": "x" * (2**20 - 2**10)})
    assert len(said) == 4
