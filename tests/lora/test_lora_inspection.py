"""What `inspect` says of a LoRA file: of right ones nothing, of each wrong one what is wrong with it."""

import json
import math
import runpy
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from raft_diffusion import cli
from raft_diffusion.lora import kohya
from raft_diffusion.lora.export import plan_export, write_export
from raft_diffusion.lora.inspection import CARRIED, SD1, inspect_file

LORAS = runpy.run_path(str(Path(__file__).with_name("lora_runs.py")))
draw_lora, write_run = (LORAS[name] for name in ("draw_lora", "write_run"))
BLOCK = "down_blocks.1.attentions.0.transformer_blocks.0"
UNET = {f"{BLOCK}.attn2.to_k": (640, 768), f"{BLOCK}.attn2.to_q": (640, 640), "mid_block.resnets.0.conv1": (8, 4, 3, 3)}
TEXT = {"encoder.layers.0.self_attn.q_proj": (768, 768)}
SAID = {"modelspec.architecture": "stable-diffusion-v1/lora"}
TO_K = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
TE = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"


def layer(name, *, inputs=768, rank=2, alpha=2.0):
    tensors = {f"{name}.lora_down.weight": torch.ones(rank, inputs), f"{name}.lora_up.weight": torch.ones(8, rank)}
    return tensors | ({} if alpha is None else {f"{name}.alpha": torch.tensor(alpha)})


GOOD = layer(TO_K) | layer(TE)


@pytest.fixture
def file(tmp_path):
    """Writes tensors as a file and looks at it."""

    def file(tensors, said=SAID):
        save_file(tensors, tmp_path / "a.safetensors", metadata=said)
        return inspect_file(tmp_path / "a.safetensors")

    return file


@pytest.fixture
def exported(tmp_path):
    tensors = draw_lora({"unet": UNET, "text_encoder": TEXT}, rank=4)
    plan = plan_export(write_run(tmp_path / "run", tensors, rank=4, alpha=2.0), sides=())
    write_export(plan)
    return plan.target


@pytest.fixture
def call(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["raft-diffusion", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "120")
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capsys.readouterr()

    return call


# --- right ones -------------------------------------------------------------------------------------------------------


def test_an_exported_lora_has_no_problem(exported):
    found = inspect_file(exported)
    assert (found.format, found.base, found.problems) == ("kohya", SD1, ())
    assert (len(found.modules), found.ranks, found.alphas, found.dtypes) == (4, (4,), (2.0,), ("fp16",))
    assert found.metadata["ss_output_name"] == "monet-cat"


def test_the_norm_of_a_block_is_that_of_its_layers_changes_together(file):
    """Two layers of ones, 8 x 768 and 8 x 4: alpha / r * up @ down is 3 / 2 * 2 = 3 everywhere in the one and, with
    alpha 1, 1 / 2 * 2 = 1 in the other: sqrt(8 * 768 * 9 + 8 * 4) together."""
    found = file(layer(TO_K, alpha=3.0) | layer(TO_K.replace("to_k", "to_q"), inputs=4, alpha=1.0) | layer(TE))
    assert list(found.norms) == ["text encoder", "down 1"]
    assert found.norms["down 1"] == pytest.approx(math.sqrt(8 * 768 * 9 + 32))
    assert found.norms["text encoder"] == pytest.approx(math.sqrt(8 * 768 * 4))


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("lora_unet_mid_block_attentions_0_proj_in", "middle"),
        ("lora_unet_up_blocks_3_attentions_0_proj_in", "up 3"),
        ("lora_unet_input_blocks_4_1_proj_in", "down 1"),
        ("lora_unet_output_blocks_11_1_proj_in", "up 3"),
        ("lora_unet_conv_in", "others"),
    ],
)
def test_the_blocks(file, name, block):
    assert list(file(layer(name)).norms) == [block]


# --- six files made wrong on purpose ----------------------------------------------------------------------------------


def test_no_alpha(file):
    (problem,) = file(layer(TO_K, alpha=None) | layer(TE)).problems
    assert "1 of 2 modules have no alpha" in problem and "alpha = rank" in problem


def test_the_prefix_te1(file):
    (problem,) = file(layer(TO_K) | layer(TE.replace("lora_te_", "lora_te1_"))).problems
    assert "lora_te1_ instead of lora_te_" in problem and "kohya's scripts and InvokeAI" in problem


@pytest.mark.parametrize(
    ("down", "up"),
    [
        ("to_k.lora_A.weight", "to_k.lora_B.weight"),
        ("to_k.lora.down.weight", "to_k.lora.up.weight"),
        ("processor.to_k_lora.down.weight", "processor.to_k_lora.up.weight"),
    ],
)
def test_dotted_names(file, down, up):
    tensors = {f"unet.{BLOCK}.attn2.{down}": torch.ones(2, 768), f"unet.{BLOCK}.attn2.{up}": torch.ones(8, 2)}
    found = file(tensors)
    assert (found.format, found.ranks, len(found.modules)) == ("diffusers", (2,), 1)
    assert f"its names have dots, as diffusers writes them (unet.{BLOCK}" in found.problems[0]
    assert "AUTOMATIC1111" in found.problems[0] and ("ComfyUI" in found.problems[0]) is ("lora_A" in down)


def test_sdxls_keys(file):
    name = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
    for tensors in (layer(name, inputs=2048), layer(name) | layer(TE.replace("lora_te_", "lora_te2_"))):
        found = file(tensors)
        assert found.base == "SDXL"
        assert any("made for SDXL" in problem for problem in found.problems)
        assert not any("lora_te1_" in problem for problem in found.problems)


@pytest.mark.parametrize("kept", [0.5, 0.01])
def test_a_truncated_file(exported, kept):
    whole = exported.read_bytes()
    exported.write_bytes(whole[: int(kept * len(whole))])
    found = inspect_file(exported)
    assert found.format == "no LoRA"
    assert found.problems[0].startswith("it is cut off") and "download it again" in found.problems[0]


NOT_A_LORA = {
    "something else": ({"weight": torch.ones(2)}, "none of its 1 tensors"),
    "an embedding": ({"emb_params": torch.ones(2, 768)}, "an embedding (textual inversion)"),
    "a ControlNet": ({"control_model.input_blocks.0.0.weight": torch.ones(2)}, "no LoRA but a ControlNet"),
    "a VAE": ({"encoder.down.0.block.0.conv1.weight": torch.ones(2)}, "one part of a model"),
    "a checkpoint": (
        {
            "model.diffusion_model.input_blocks.0.0.weight": torch.ones(320, 4, 3, 3),
            "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": torch.ones(320, 768),
            "first_stage_model.a": torch.ones(1),
            "cond_stage_model.transformer.a": torch.ones(1),
        },
        "a whole Stable Diffusion 1.x checkpoint",
    ),
}


@pytest.mark.parametrize("case", NOT_A_LORA)
def test_not_a_lora(file, case):
    tensors, words = NOT_A_LORA[case]
    found = file(tensors)
    assert found.format == "no LoRA" and words in found.problems[0] and "no LoRA" in found.problems[0]


def test_a_picture_and_a_pickle(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    assert "no .safetensors file" in inspect_file(tmp_path / "a.png").problems[0]
    (tmp_path / "a.pt").write_bytes(b"\x80\x02")
    assert "it is a pickle" in inspect_file(tmp_path / "a.pt").problems[0]


def test_no_file(tmp_path):
    with pytest.raises(ValueError, match="there is no file"):
        inspect_file(tmp_path / "a.safetensors")


# --- other things that do not load somewhere --------------------------------------------------------------------------

WRONG = {
    "text_model missing": (layer(TO_K) | layer("lora_te_encoder_layers_0_mlp_fc1"), SAID, "lack text_model_: Forge"),
    "a checkpoint's names": (
        layer("lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"),
        SAID,
        "names are those of a checkpoint",
    ),
    "one stranger": (GOOD | layer("lora_unet_down_blocks_9_x"), SAID, "(lora_unet_down_blocks_9_x): diffusers refuses"),
    "many strangers": (
        GOOD | {f"extra.{i}": torch.ones(1) for i in range(13)},
        SAID,
        "13 of its names are no layer of Stable Diffusion 1.5 (extra.0, extra.1, ...): Forge drops the whole file",
    ),
    "what kohya leaves out": (GOOD | layer("lora_unet_conv_in"), SAID, "kohya's scripts leave out conv_in"),
    "half a pair": (
        GOOD | {"lora_unet_mid_block_attentions_0_proj_in.alpha": torch.tensor(1.0)},
        SAID,
        "1 of its modules",
    ),
    "no attn2": (layer(TO_K.replace("attn2", "attn1")), SAID, "InvokeAI and Draw Things cannot tell its base"),
    "two alphas": (GOOD | layer(TO_K.replace("to_k", "to_v"), alpha=4.0), SAID, "its UNet has 2 different alphas"),
    "no metadata": (GOOD, None, "it has no metadata"),
    "no architecture": (GOOD, {"format": "pt"}, "no modelspec.architecture: Forge"),
    "peft's metadata": (GOOD, SAID | {"lora_adapter_metadata": "{}"}, "diffusers refuses that in kohya's format"),
    "a wrong hash": (GOOD, SAID | {"sshs_model_hash": "e3b0c44298fc"}, "its sshs_model_hash is wrong"),
    "a long header": (GOOD, SAID | {"ssmd_cover_images": "x" * 2**20}, "ComfyUI shows no metadata"),
    "bf16": ({name: tensor.bfloat16() for name, tensor in GOOD.items()}, SAID, "it is in bf16"),
    "not finite": (GOOD | {f"{TO_K}.lora_up.weight": torch.full((8, 2), torch.inf)}, SAID, "pictures turn black"),
    "DoRA": (GOOD | {f"{TO_K}.dora_scale": torch.ones(8, 1)}, SAID, "it is a DoRA"),
    "LoHa": ({f"{TO_K}.hada_w1_a": torch.ones(8, 1)}, SAID, "it is a LoHa"),
    "LoKr": ({f"{TO_K}.lokr_w1": torch.ones(8, 1)}, SAID, "it is a LoKr"),
    "Tucker": (GOOD | {f"{TO_K}.lora_mid.weight": torch.ones(2, 2, 3, 3)}, SAID, "LoCon in Tucker form"),
    "Stable Diffusion 2": (layer(TO_K, inputs=1024), SAID, "made for Stable Diffusion 2.x"),
    "another text encoder": (layer(TO_K, inputs=96), SAID, "made for a model whose text is 96 wide"),
    "FLUX": (layer("lora_unet_double_blocks_0_img_attn_qkv"), SAID, "made for FLUX"),
    "Stable Diffusion 3": (layer("lora_unet_joint_blocks_0_x"), SAID, "made for Stable Diffusion 3"),
    "peft": (
        {
            "base_model.model.mid.to_k.lora_A.weight": torch.ones(2, 3),
            "base_model.model.mid.to_k.lora_B.weight": torch.ones(3, 2),
        },
        SAID,
        "dots, as peft writes them",
    ),
    "the carried model's": (GOOD, SAID | {"ss_base_model_version": "raft_pocket_v1"}, f"made for {CARRIED}"),
}


@pytest.mark.parametrize("case", WRONG)
def test_each_problem_is_named_alone(file, case):
    tensors, said, words = WRONG[case]
    found = file({name: tensor.clone() for name, tensor in tensors.items()}, said)
    assert any(words in problem for problem in found.problems), found.problems
    alone = ("DoRA", "LoHa", "LoKr", "Tucker", "peft", "a checkpoint's names", "half a pair", "long header", "no attn2")
    assert case in alone or len(found.problems) == 1, found.problems


def test_nothing_is_said_of_the_good_file(file):
    assert file(GOOD).problems == ()


def test_a_diffusers_file_says_its_alpha_in_its_metadata(file):
    tensors = {f"unet.{BLOCK}.attn2.to_k.lora_A.weight": torch.ones(2, 768)}
    tensors |= {f"unet.{BLOCK}.attn2.to_k.lora_B.weight": torch.ones(8, 2)}
    assert file(tensors, {"lora_adapter_metadata": '{"unet.r": 2, "unet.lora_alpha": 1}'}).alphas == (1.0,)
    assert file(tensors, {"lora_adapter_metadata": "["}).alphas == ()
    assert file(tensors).norms["down 1"] == pytest.approx(2 * math.sqrt(8 * 768))


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_as_json(exported, call):
    code, out, err = call("inspect", exported, "--json", "-")
    found = json.loads(out)
    assert code == 0 and "no problem" in err
    shown = {key: found[key] for key in ("format", "modules", "rank", "alpha", "dtype", "problems")}
    assert shown == {"format": "kohya", "modules": 4, "rank": 4, "alpha": 2.0, "dtype": "fp16", "problems": []}
    assert found["metadata"]["ss_network_dim"] == "4" and len(found["module_names"]) == 4


def test_the_command_for_people(exported, call):
    code, out, err = call("inspect", exported)
    assert code == 0 and err == ""
    for words in (
        "kohya",
        SD1,
        "4: 3 in the UNet, 1 in the text encoder",
        "strength, down 1",
        "ss_output_name",
        "no problem",
    ):
        assert words in out


def test_the_command_names_a_problem_and_hides_what_a_terminal_would_obey(tmp_path, call):
    save_file(GOOD, tmp_path / "a.safetensors", metadata={"modelspec.title": "[bold]\x1b[31mred"})
    code, out, _ = call("inspect", tmp_path / "a.safetensors")
    assert code == 0 and "problem: its metadata has no modelspec.architecture" in out
    assert "[bold]" in out and "\x1b[31m" not in out
    (tmp_path / "a.safetensors").write_bytes(b"\x00")
    assert "problem: it is no .safetensors file" in call("inspect", tmp_path / "a.safetensors")[1]


def test_the_command_without_a_file(tmp_path, call):
    code, _, err = call("inspect", tmp_path / "nothing.safetensors")
    assert code == 2 and "there is no file" in err
    assert kohya.HEADER_LIMIT == 2**20
