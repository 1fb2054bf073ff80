"""What a checkpoint is, on small files with the names and shapes that tell one kind from another."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from raft_diffusion.sd15.checkpoint import FIRST, TEXT_WIDTH, check_kind, prediction, read_header

VAE = "first_stage_model.decoder.conv_in.weight"
TEXT = "cond_stage_model.transformer.text_model.final_layer_norm.weight"


PART = "one part of a model (a UNet or a VAE), not a whole checkpoint"


def shapes(channels=4, width=768, **others):
    """The telling tensors of a Stable Diffusion checkpoint; a name with shape None is left out."""
    names = {FIRST: (2, channels, 3, 3), TEXT_WIDTH: (2, width), VAE: (2,), TEXT: (2,)} | others
    return {name: shape for name, shape in names.items() if shape is not None}


def write(path, names, **metadata):
    save_file({name: np.zeros(shape, np.float16) for name, shape in names.items()}, path, metadata=metadata or None)
    return path


def kind(tmp_path, names):
    path = write(tmp_path / "file.safetensors", names)
    with pytest.raises(ValueError, match=r"; this package takes Stable Diffusion 1\.x text-to-image models$") as caught:
        check_kind(read_header(path), path)
    return str(caught.value).removeprefix(f"{path} is ").partition(";")[0]


def test_a_header_holds_names_shapes_types_and_metadata(tmp_path):
    path = write(tmp_path / "m.safetensors", {"a": (2, 3), "b": ()}, title="x")
    header = read_header(path)
    assert header.tensors == {"a": ("F16", (2, 3)), "b": ("F16", ())}
    assert header.metadata == {"title": "x"}
    assert header.size == path.stat().st_size - 7 * 2


def test_stable_diffusion_1_is_taken(tmp_path):
    path = write(tmp_path / "m.safetensors", shapes(v_pred=(0,), ztsnr=(0,)))
    check_kind(read_header(path), path)
    assert prediction(read_header(path), path) == ("v_prediction", True)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (shapes(9), "an inpainting checkpoint (its UNet takes 9 channels instead of 4)"),
        (shapes(8), "an instruct-pix2pix checkpoint (its UNet takes 8 channels instead of 4)"),
        (shapes(5), "a checkpoint (its UNet takes 5 channels instead of 4)"),
        (shapes(4, 1024), "a Stable Diffusion 2.x checkpoint"),
        (shapes(9, 1024), "an inpainting checkpoint (its UNet takes 9 channels instead of 4)"),
        (
            shapes(**{TEXT_WIDTH: None, "cond_stage_model.model.ln_final.weight": (2,)}),
            "a Stable Diffusion 2.x checkpoint",
        ),
        (shapes(4, 640), "a checkpoint whose text width is 640 instead of 768"),
        (shapes(**{TEXT_WIDTH: None}), "a checkpoint whose text width is unknown instead of 768"),
        (shapes(4, 2048), "an SDXL checkpoint"),
        (shapes(**{"conditioner.embedders.1.model.ln_final.weight": (2,)}), "an SDXL checkpoint"),
        (shapes(**{"model.diffusion_model.label_emb.0.0.weight": (2,)}), "an SDXL checkpoint"),
        ({"double_blocks.0.img_attn.qkv.weight": (2,)}, "a FLUX checkpoint"),
        ({"model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": (2,)}, "a Stable Diffusion 3 checkpoint"),
        ({"lora_unet_mid_block.lora_down.weight": (2,)}, "a LoRA, not a checkpoint: give it with --lora"),
        ({"unet.mid_block.to_q.lora_A.weight": (2,)}, "a LoRA, not a checkpoint: give it with --lora"),
        ({"control_model.input_hint_block.0.weight": (2,)}, "a ControlNet"),
        (shapes(**{"control_model.zero_convs.0.0.weight": (2,)}), "a ControlNet"),
        ({"controlnet_cond_embedding.conv_in.weight": (2,), "down_blocks.0.x": (2,)}, "a ControlNet"),
        (
            shapes(8, 1024, **{"model.diffusion_model.input_blocks.1.1.time_stack.0.norm1.weight": (2,)}),
            "a video model or a part of one",
        ),
        (
            {"encoder.down.0.block.0.conv1.weight": (2,)},
            PART,
        ),
        (
            {"down_blocks.0.resnets.0.conv1.weight": (2,)},
            PART,
        ),
        ({"emb_params": (2, 768)}, "no Stable Diffusion checkpoint that is known here"),
        ({}, "no Stable Diffusion checkpoint that is known here"),
        (shapes(**{FIRST: (2,)}), "no Stable Diffusion checkpoint that is known here"),
        (shapes(**{VAE: None}), "a checkpoint without its VAE"),
        (shapes(**{VAE: None, TEXT: None}), "a checkpoint without its VAE and text encoder"),
    ],
)
def test_other_kinds_are_told(tmp_path, names, expected):
    assert kind(tmp_path, names) == expected


@pytest.mark.parametrize("name", ["m.ckpt", "m.CKPT", "m.pt", "m.pth", "m.bin"])
def test_pickles_are_refused_unread(tmp_path, name):
    with pytest.raises(ValueError, match=r"is a pickle, which can run any code when .*; give a \.safetensors"):
        read_header(tmp_path / name)


def raw(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


ENTRY = {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]}
BROKEN = "is no .safetensors file, or it is broken; download or write it again"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", BROKEN),
        (b"PK\x03\x04 a zip archive, as torch.save writes it", BROKEN),
        (raw(b"not json"), BROKEN),
        (raw(b"[" * 100_000), BROKEN),
        (raw(b"[1, 2]"), BROKEN),
        (raw({"a": 3}), BROKEN),
        (raw({"a": {"shape": [2]}}), BROKEN),
        (raw({"a": ENTRY | {"shape": 2}}), BROKEN),
        (raw({"a": ENTRY | {"shape": ["2"]}}), BROKEN),
        (raw({"a": ENTRY | {"shape": [-2]}}), BROKEN),
        (raw({"a": ENTRY | {"data_offsets": [0]}}), BROKEN),
        (raw({"a": ENTRY, "__metadata__": "text"}), BROKEN),
        (raw(b"{}", length=2**40), BROKEN),
        (raw({"a": ENTRY}, length=5000), "is cut off inside its header, after"),
        (raw({"a": ENTRY}, b"123"), "is cut off: 72 bytes of 73; download it again"),
        (raw({"a": ENTRY}, b"12345"), "is broken: 74 bytes, and its header speaks of 73; download it again"),
    ],
    ids=range(16),
)
def test_files_that_cannot_be_read_are_one_sentence(tmp_path, content, message):
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        read_header(path)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read .*none\.safetensors \(No such file"):
        read_header(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match=r"cannot read .* \(.+\); give a \.safetensors file"):
        read_header(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model:\n  params:\n    parameterization: v\n", ("v_prediction", False)),
        ("model:\n  params:\n    parameterization: v\n    zero_terminal_snr: true\n", ("v_prediction", True)),
        ("model:\n  params:\n    parameterization: eps\n    rescale_betas_zero_snr: true\n", ("epsilon", True)),
        ("model:\n  params:\n    linear_start: 0.00085\n", ("epsilon", False)),
        ("model:\n  params:\n", ("epsilon", False)),
    ],
)
def test_a_yaml_beside_the_file_says_what_it_predicts(tmp_path, text, expected):
    path = write(tmp_path / "my.model.safetensors", shapes())
    assert prediction(read_header(path), path) == ("epsilon", False)
    (tmp_path / "my.model.yaml").write_text(text)
    assert prediction(read_header(path), path) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("model: [", "ParserError"),
        ("model:\n", "TypeError"),
        ("other: 1\n", "KeyError"),
        ("model:\n  params: [1]\n", "it is list"),
        ("a: !!python/object/apply:os.getcwd []\n", "ConstructorError"),
    ],
)
def test_a_yaml_that_cannot_be_read_is_named(tmp_path, text, reason):
    path = write(tmp_path / "m.safetensors", shapes())
    (tmp_path / "m.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"m\.yaml has no section model\.params that .* \({reason}\); mend"):
        prediction(read_header(path), path)
