"""LoRA files of other programs: written by diffusers, by peft, and by hand from the definition of kohya's format."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoHaConfig, LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from raft_diffusion.diffusion.adapter import Adapter
from raft_diffusion.diffusion.lora_weights import load_weights
from raft_diffusion.lora.file import FILE_NAME, TARGETS, find_lora, lora_name, read_lora

TEXT = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
UNET = [ending for group in TARGETS.values() for ending in group] + ["time_emb_proj", "conv_in"]


def make_unet():
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=12,
        attention_head_dim=4,
        norm_num_groups=4,
    )


def make_text_encoder():
    torch.manual_seed(1)
    sizes = {"hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2}
    return CLIPTextModel(CLIPTextConfig(vocab_size=30, bos_token_id=0, eos_token_id=1, pad_token_id=1, **sizes))


@pytest.fixture
def model():
    return SimpleNamespace(unet=make_unet(), text_encoder=make_text_encoder())


def trained(**changes):
    """A UNet and a text encoder under peft's own LoRA with random weights, and the change of every layer.

    changes: of the UNet's LoraConfig.
    """
    parts = {"unet": make_unet(), "text_encoder": make_text_encoder()}
    for part, module in parts.items():
        settings = {"r": 4, "lora_alpha": 6.0, "target_modules": UNET if part == "unet" else TEXT}
        module.add_adapter(LoraConfig(**settings | (changes if part == "unet" else {})))
    shake(*parts.values())
    return parts, {part: peft_changes(module) for part, module in parts.items()}


def shake(*modules):
    generator = torch.Generator().manual_seed(2)
    for module in modules:
        for name, parameter in module.named_parameters():
            if "lora_" in name:
                parameter.data = torch.randn(parameter.shape, generator=generator)


def peft_changes(module, adapter="default"):
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, LoraLayer)}
    return {
        name.removeprefix("base_model.model."): layer.get_delta_weight(adapter).detach()
        for name, layer in layers.items()
    }


def changes_of(path, model):
    """Part -> path -> change, as our reader has them."""
    found = {"unet": {}, "text_encoder": {}}
    for weights in load_weights(read_lora(find_lora(path)), model):
        found[weights.part][weights.path] = weights.delta()
    return found


def check_same(found, expected):
    for part, changes in expected.items():
        assert found[part].keys() == changes.keys() and changes
        for name, change in changes.items():
            torch.testing.assert_close(found[part][name], change, msg=f"{part}.{name}")


def layers_of(parts):
    for part, module in parts.items():
        for name, layer in module.named_modules():
            if isinstance(layer, LoraLayer):
                down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
                yield part, name, down.detach().contiguous(), up.detach().contiguous(), layer.scaling["default"]


def write_kohya(path, parts, *, text="lora_te_text_model_", dtype=torch.float32, squeeze=False, metadata=None):
    """kohya's format by its definition: names with _, and alpha = the module's scale x its rank."""
    tensors = {}
    for part, name, down, up, scale in layers_of(parts):
        key = ("lora_unet_" if part == "unet" else text) + name.replace(".", "_")
        if squeeze and down.shape[2:] == (1, 1):
            down, up = down[:, :, 0, 0].contiguous(), up[:, :, 0, 0].contiguous()
        tensors |= {f"{key}.lora_down.weight": down.to(dtype), f"{key}.lora_up.weight": up.to(dtype)}
        tensors[f"{key}.alpha"] = torch.tensor(scale * len(down)).to(dtype)
    save_file(tensors, path, metadata=metadata)


def states_of(parts):
    return {part: get_peft_model_state_dict(module) for part, module in parts.items()}


def write_diffusers(folder, parts, *, said=True):
    """By diffusers' own writer; what it is given are the names that transformers had before it dropped `text_model`."""
    states = states_of(parts)
    text = {f"text_model.{name}": tensor for name, tensor in states["text_encoder"].items()}
    StableDiffusionPipeline.save_lora_weights(
        folder,
        unet_lora_layers=states["unet"],
        text_encoder_lora_layers=text,
        **_collate_lora_metadata(parts) if said else {},
    )


# --- the formats ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["lora_te_text_model_", "lora_te1_text_model_", "lora_te_"])
def test_kohyas_names_give_the_trained_change_of_every_layer(tmp_path, model, text):
    parts, expected = trained()
    write_kohya(tmp_path / "x.safetensors", parts, text=text)
    check_same(changes_of(tmp_path / "x.safetensors", model), expected)
    stored = read_lora(tmp_path / "x.safetensors")
    assert (stored.format, stored.rank, stored.alpha, stored.note) == ("kohya", 4, 6.0, "")
    assert (stored.targets, stored.text_encoder) == (tuple(TARGETS), True)


def test_kernels_of_1_x_1_may_be_written_flat(tmp_path, model):
    parts, expected = trained()
    write_kohya(tmp_path / "x.safetensors", parts, squeeze=True)
    check_same(changes_of(tmp_path / "x.safetensors", model), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_comes_in(tmp_path, model, dtype):
    parts, _ = trained()
    write_kohya(tmp_path / "x.safetensors", parts, dtype=dtype)
    found = changes_of(tmp_path / "x.safetensors", model)
    for part, name, down, up, _ in layers_of(parts):
        rounded = up.to(dtype).double().flatten(1) @ down.to(dtype).double().flatten(1) * 1.5
        torch.testing.assert_close(found[part][name].flatten(1).double(), rounded, rtol=1e-5, atol=1e-5)


def test_diffusers_own_file_gives_the_trained_change(tmp_path, model):
    parts, expected = trained()
    write_diffusers(tmp_path, parts)
    check_same(changes_of(tmp_path, model), expected)
    stored = read_lora(find_lora(tmp_path))
    assert (stored.format, stored.rank, stored.alpha, stored.note) == ("diffusers", 4, 6.0, "")


@pytest.mark.parametrize(
    "changes",
    [
        {"use_rslora": True},
        {"rank_pattern": {"to_q": 2, "attn2.to_k": 3}, "alpha_pattern": {"to_v": 1.0, "mid_block.*conv1": 5.0}},
    ],
)
def test_pefts_patterns_and_scales_are_kept(tmp_path, model, changes):
    parts, expected = trained(**changes)
    write_diffusers(tmp_path / "a", parts)
    check_same(changes_of(tmp_path / "a", model), expected)
    unet = get_peft_model(make_unet(), LoraConfig(r=4, lora_alpha=6.0, target_modules=UNET, **changes))
    shake(unet)
    unet.save_pretrained(tmp_path / "b")
    check_same({"unet": changes_of(tmp_path / "b", model)["unet"]}, {"unet": peft_changes(unet)})


def test_a_file_that_says_no_alpha_is_read_as_diffusers_reads_it(tmp_path, model):
    parts, _ = trained()
    write_diffusers(tmp_path, parts, said=False)
    unet = make_unet()
    unet.load_lora_adapter(load_file(tmp_path / FILE_NAME), prefix="unet", adapter_name="default")
    check_same({"unet": changes_of(tmp_path, model)["unet"]}, {"unet": peft_changes(unet)})
    stored = read_lora(find_lora(tmp_path))
    assert stored.alpha == stored.rank == 4
    assert stored.note == (
        f"the LoRA {tmp_path / FILE_NAME} does not say its alpha; it is taken as the rank, as other programs do"
    )


def test_names_of_diffusers_training_scripts_are_read(tmp_path, model):
    parts, expected = trained(lora_alpha=4)
    expected["text_encoder"] = {name: change / 1.5 for name, change in expected["text_encoder"].items()}
    states = states_of(parts)
    tensors = {f"unet.{name}": t for name, t in convert_state_dict_to_diffusers(states["unet"]).items()}
    text = convert_state_dict_to_diffusers(states["text_encoder"])
    tensors |= {f"text_encoder.text_model.{name}": t for name, t in text.items()}
    assert any(".lora.down." in name for name in tensors) and any(".lora_linear_layer.up." in name for name in tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "x.safetensors")
    check_same(changes_of(tmp_path / "x.safetensors", model), expected)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # transformers', to peft
def test_pefts_folders_give_the_trained_change(tmp_path, model):
    makers = {"unet": (make_unet, UNET), "text_encoder": (make_text_encoder, TEXT)}
    expected = {}
    for part, (make, targets) in makers.items():
        wrapped = get_peft_model(make(), LoraConfig(r=4, lora_alpha=6, target_modules=targets))
        shake(wrapped)
        wrapped.save_pretrained(tmp_path / part)
        expected[part] = peft_changes(wrapped)
        check_same({part: changes_of(tmp_path / part, model)[part]}, {part: expected[part]})
        check_same(
            {part: changes_of(tmp_path / part / "adapter_model.safetensors", model)[part]}, {part: expected[part]}
        )
    check_same(changes_of(tmp_path, model), expected)
    assert read_lora(find_lora(tmp_path)).format == "peft"
    (tmp_path / "unet" / "adapter_config.json").unlink()
    with pytest.raises(
        ValueError, match=r"in peft's format, and its alpha is in adapter_config\.json: put that beside"
    ):
        read_lora(find_lora(tmp_path))


# --- ranks and alphas of their own, on layers of their own ------------------------------------------------------------


def mixed(path, *, layers):
    """A kohya file with another rank and alpha in each of some layers; returns the change of each by its name."""
    model = {"unet": make_unet(), "text_encoder": make_text_encoder()}
    generator = torch.Generator().manual_seed(3)
    tensors, expected = {}, {}
    for number, (part, name) in enumerate(layers):
        weight = model[part].get_submodule(name).weight
        rank, alpha = 1 + number % 3, 0.5 + number
        down = torch.randn(rank, *weight.shape[1:], generator=generator)
        up = torch.randn(len(weight), rank, *(1 for _ in weight.shape[2:]), generator=generator)
        prefix = "lora_unet_" if part == "unet" else "lora_te_text_model_"
        key = prefix + name.replace(".", "_")
        tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(alpha)}
        expected[part, name] = torch.einsum("or,ri->oi", up.flatten(1), down.flatten(1)).view_as(weight) * alpha / rank
    save_file(tensors, path)
    return expected


LAYERS = [
    ("unet", "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"),
    ("unet", "mid_block.attentions.0.proj_in"),
    ("unet", "up_blocks.0.resnets.0.conv_shortcut"),
    ("unet", "mid_block.resnets.1.conv2"),
    ("unet", "up_blocks.0.resnets.0.time_emb_proj"),
    ("text_encoder", "encoder.layers.1.mlp.fc1"),
    ("text_encoder", "encoder.layers.0.self_attn.q_proj"),
]


@pytest.mark.parametrize(
    "more", [{"targets": (), "text_encoder": False}, {"targets": ("attention",), "text_encoder": True}]
)
def test_an_adapter_starts_with_the_exact_change_of_every_layer_and_none_elsewhere(tmp_path, model, more):
    """Whether it is on the file's layers alone, or on those of groups too, whose rest is as fresh as any."""
    expected = mixed(tmp_path / "x.safetensors", layers=LAYERS)
    stored = read_lora(tmp_path / "x.safetensors")
    assert (stored.rank, stored.targets, stored.text_encoder) == (3, ("attention", "projection", "convolution"), True)
    adapter = Adapter(model, rank=3, alpha=stored.alpha, seed=7, start=load_weights(stored, model), **more)
    for _ in range(2):
        found = {(p, n): d for p in ("unet", "text_encoder") for n, d in peft_changes(getattr(model, p)).items()}
        for place, change in found.items():
            torch.testing.assert_close(change, expected.get(place, torch.zeros_like(change)))
        assert found.keys() >= expected.keys() and (len(found) > len(expected)) == bool(more["targets"])
        for parameter in adapter.parameters().values():
            parameter.data.normal_()
        adapter.reset()


def test_what_is_saved_is_read_again_by_us_and_by_diffusers(tmp_path, model):
    expected = mixed(tmp_path / "x.safetensors", layers=LAYERS)
    start = load_weights(read_lora(tmp_path / "x.safetensors"), model)
    Adapter(model, rank=5, alpha=2.0, targets=["feed_forward"], text_encoder=False, seed=0, start=start).save(
        tmp_path / "saved"
    )
    fresh = SimpleNamespace(unet=make_unet(), text_encoder=make_text_encoder())
    found = changes_of(tmp_path / "saved", fresh)
    for (part, name), change in expected.items():
        torch.testing.assert_close(found[part][name], change)
    unet = make_unet()
    unet.load_lora_adapter(tmp_path / "saved", weight_name=FILE_NAME, prefix="unet", adapter_name="default")
    check_same({"unet": peft_changes(unet)}, {"unet": found["unet"]})


def test_a_lora_of_a_larger_rank_than_the_adapter_is_refused(tmp_path, model):
    mixed(tmp_path / "x.safetensors", layers=LAYERS)
    start = load_weights(read_lora(tmp_path / "x.safetensors"), model)
    with pytest.raises(ValueError, match=r"has the rank 3 in up_blocks.*, more than the adapter's 2; give the adapter"):
        Adapter(model, rank=2, alpha=2.0, targets=["attention"], text_encoder=False, seed=0, start=start)


# --- what is refused --------------------------------------------------------------------------------------------------

Q = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
PAIR = {f"{Q}.lora_down.weight": torch.zeros(4, 12), f"{Q}.lora_up.weight": torch.zeros(16, 4)}
WHOLE = {**PAIR, f"{Q}.alpha": torch.tensor(4.0)}
DOTTED = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
PLAIN = {f"{DOTTED}.lora_A.weight": torch.zeros(4, 12), f"{DOTTED}.lora_B.weight": torch.zeros(16, 4)}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (WHOLE | {f"{Q}.dora_scale": torch.ones(1)}, "is a DoRA, and only a plain LoRA can be used here"),
        (PLAIN | {f"{DOTTED}.lora_magnitude_vector": torch.ones(1)}, "is a DoRA, and only a plain"),
        ({f"{Q}.hada_w1_a": torch.ones(1)}, "is a LoHa, and only a plain"),
        ({f"{Q}.lokr_w1": torch.ones(1)}, "is a LoKr, and only a plain"),
        (WHOLE | {f"{Q}.lora_mid.weight": torch.ones(1)}, "is a LoCon in Tucker's form, and only a plain"),
        (WHOLE | {"lora_te2_text_model_x.alpha": torch.ones(1)}, "was made for SDXL, and only one for Stable Diff"),
        (PLAIN | {"text_encoder_2.x.lora_A.weight": torch.ones(1)}, "was made for SDXL"),
        ({f"{Q}.lora_down.weight": torch.zeros(4, 2048)}, "was made for SDXL"),
        ({f"{DOTTED}.lora_A.weight": torch.zeros(4, 1024)}, r"was made for Stable Diffusion 2\.x"),
        ({"lora_unet_double_blocks_0_img_attn.alpha": torch.ones(1)}, "was made for a transformer such as FLUX"),
        ({"transformer.x.lora_A.weight": torch.ones(1)}, "was made for a transformer such as FLUX"),
        (WHOLE | {f"{Q}.scalar": torch.ones(1)}, rf"holds {Q}\.scalar, which is no part of a plain LoRA"),
        (WHOLE | {"bundle_emb.x": torch.ones(1)}, r"holds bundle_emb\.x, which is no part of a plain LoRA"),
        (PLAIN | {"unet.conv_in.bias": torch.ones(1)}, r"holds unet\.conv_in\.bias, which is no part"),
        ({k: t for k, t in WHOLE.items() if "up" not in k}, rf"lacks {Q}\.lora_up\.weight, so it is not whole"),
        (
            WHOLE | {f"{Q}.lora_up.weight": torch.zeros(16, 5)},
            r"is broken: .* of \[4, 12\] does not go with .* \[16, 5\]",
        ),
        (WHOLE | {f"{Q}.alpha": torch.tensor(0.0)}, rf"says {Q}\.alpha = 0\.0; it must be a number above 0"),
        (WHOLE | {f"{Q}.alpha": torch.tensor(torch.inf)}, rf"says {Q}\.alpha = inf; it must be"),
        (WHOLE | {f"{Q}.alpha": torch.ones(2)}, rf"says {Q}\.alpha = nan; it must be"),
        ({"decoder.conv_in.weight": torch.zeros(1)}, "holds no LoRA of Stable Diffusion; give one in kohya's, diff"),
    ],
)
def test_what_is_no_plain_lora_of_this_kind_is_refused_by_name(tmp_path, tensors, message):
    path = tmp_path / "x.safetensors"
    save_file(tensors, path)
    with pytest.raises(ValueError, match=message) as caught:
        read_lora(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [({"ss_base_model_version": "sdxl_base_v1-0"}, "was made for SDXL"), ({"ss_v2": "True"}, r"Stable Diffusion 2\.x")],
)
def test_the_metadata_may_name_another_model(tmp_path, metadata, message):
    save_file(WHOLE, tmp_path / "x.safetensors", metadata=metadata)
    with pytest.raises(ValueError, match=message):
        read_lora(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("[]", "has a broken lora_adapter_metadata; get it again"),
        ("{", "has a broken lora_adapter_metadata; get it again"),
        ({"r": 8, "lora_alpha": 8}, "has the rank 4 in mid_block.*, and its settings say 8; get it again"),
        ({"r": 4}, "says lora_alpha = None; it must be a number above 0"),
        ({"r": 4, "lora_alpha": True}, "says lora_alpha = True"),
        ({"lora_alpha": 4, "use_dora": True}, r"is a DoRA \(use_dora\), and only a plain LoRA"),
        ({"lora_alpha": 4, "lora_bias": True}, r"is a LoRA with biases \(lora_bias\), and only a plain"),
        ({"lora_alpha": 4, "init_lora_weights": "pissa_niter_4"}, r"changed the base too \(init_lora_weights = pissa"),
        ({"lora_alpha": 4, "alpha_pattern": {"(": 1}}, r"has a broken alpha_pattern: '\('; get it again"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused(tmp_path, settings, message):
    text = settings if isinstance(settings, str) else json.dumps({f"unet.{key}": v for key, v in settings.items()})
    save_file(PLAIN, tmp_path / "x.safetensors", metadata={"lora_adapter_metadata": text})
    with pytest.raises(ValueError, match=message):
        read_lora(tmp_path / "x.safetensors")


def test_pefts_other_kinds_are_refused_by_name(tmp_path):
    get_peft_model(make_unet(), LoHaConfig(r=2, target_modules=["to_q"])).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a LoHa, and only a plain LoRA"):
        read_lora(find_lora(tmp_path))
    save_file({f"base_model.model.{name[5:]}": t for name, t in PLAIN.items()}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"adapter_config\.json is of peft's kind LOHA, and only a plain LoRA"):
        read_lora(find_lora(tmp_path))


def test_pickles_and_broken_files_are_refused(tmp_path):
    (tmp_path / "x.ckpt").write_bytes(b"x")
    with pytest.raises(ValueError, match="is a pickle, which can run any code when it is opened"):
        read_lora(find_lora(tmp_path / "x.ckpt"))
    (tmp_path / "x.safetensors").write_bytes(b"no LoRA at all")
    with pytest.raises(ValueError, match=r"is no \.safetensors file, or it is broken"):
        read_lora(find_lora(tmp_path / "x.safetensors"))


def test_the_same_layer_twice_is_refused(tmp_path):
    twice = {name.replace(".lora_A.weight", ".lora.down.weight"): t for name, t in PLAIN.items()}
    twice = {name.replace(".lora_B.weight", ".lora.up.weight"): t.clone() for name, t in twice.items()}
    save_file(PLAIN | twice, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"has unet mid_block_.*to_k twice; keep one of them"):
        read_lora(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda name, t: (name.replace("mid_block", "up_blocks_7"), t),
            "1 of its 1 layers are not there, such as up_bl",
        ),
        (lambda name, t: (name, t.repeat(1, 2) if "down" in name else t), r"is of \[4, 24\] and \[16, 4\] instead of"),
        (lambda name, t: (name, t / 0 if "up" in name else t), "holds numbers that are not finite in mid_block"),
    ],
)
def test_a_lora_that_does_not_fit_the_model_is_refused(tmp_path, model, change, message):
    save_file(dict(change(name, tensor) for name, tensor in WHOLE.items()), tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=message):
        load_weights(read_lora(tmp_path / "x.safetensors"), model)


# --- places and names -------------------------------------------------------------------------------------------------


def test_a_lora_is_called_as_people_call_it(tmp_path):
    for name, expected in {"my cat.safetensors": "my cat", FILE_NAME: tmp_path.name, "run.1": "run.1"}.items():
        (tmp_path / name).mkdir() if name == "run.1" else (tmp_path / name).touch()
        assert lora_name(tmp_path / name) == expected


def test_headers_are_read_without_torch(tmp_path):
    save_file(PLAIN, tmp_path / "x.safetensors")
    code = (
        "import sys\nfrom pathlib import Path\nimport raft_diffusion.lora.start, raft_diffusion.lora.merge\n"
        "from raft_diffusion.lora.file import read_lora\n"
        "import raft_diffusion.lora.tensors, raft_diffusion.commands.merge\n"
        f"print(read_lora(Path({str(tmp_path / 'x.safetensors')!r})).rank, 'torch' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout == "4 False\n"
