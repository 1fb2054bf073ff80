import importlib
import json
import re
import shutil

import pytest
import torch
from diffusers import StableDiffusionPipeline

from raft_diffusion.diffusion.load import choose_dtype, load
from raft_diffusion.diffusion.settings import make_scheduler
from raft_diffusion.sd15 import source

module = importlib.import_module("raft_diffusion.diffusion.load")


def test_half_precision_weights_come_in_float32_frozen_and_in_evaluation_mode(components):
    parts = (components.unet, components.vae, components.text_encoder)
    assert all(p.dtype == torch.float32 and not p.requires_grad for part in parts for p in part.parameters())
    assert not any(part.training for part in parts)


def test_weights_are_those_on_disk(components, model_folder):
    pipe = StableDiffusionPipeline.from_pretrained(model_folder, safety_checker=None, requires_safety_checker=False)
    for part in ("unet", "vae", "text_encoder"):
        stored = getattr(pipe, part).state_dict()
        assert all(torch.equal(v, stored[k].float()) for k, v in getattr(components, part).state_dict().items())


def test_the_model_describes_itself(components):
    assert (components.scale_factor, components.prediction_type) == (4, "epsilon")
    assert (components.device.type, components.dtype) == ("cpu", torch.float32)
    assert components.scheduler_config["beta_end"] == 0.012


def test_a_folder_that_is_no_model_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path} holds no model_index.json"):
        load(tmp_path, device="cpu", dtype=torch.float32)


def test_what_a_download_raises_is_one_sentence(monkeypatch):
    def refuse(*_, **__):
        raise OSError("Error no file\nnamed x")

    monkeypatch.setattr(module, "check_model", lambda name, **_: name)
    monkeypatch.setattr(StableDiffusionPipeline, "from_pretrained", refuse)
    message = "cannot load the model 'owner/name' (Error no file named x); its safetensors weights must be there"
    with pytest.raises(ValueError, match=f"^{re.escape(message)} with the variant fp16$"):
        load("owner/name", device="cpu", dtype=torch.float32, variant="fp16")


def test_the_prediction_can_be_set_where_the_folder_does_not_say_it(model_folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(model_folder, copy)
    config = copy / "scheduler" / "scheduler_config.json"
    said = json.loads(config.read_text())
    assert said.pop("prediction_type") == "epsilon"
    config.write_text(json.dumps(said))
    found = load(copy, device="cpu", dtype=torch.float32, prediction_type="v_prediction")
    assert found.prediction_type == "v_prediction" and found.scheduler_config["beta_end"] == 0.012
    for name in ("DDPM", "Euler", "DPM++ 2M"):
        assert make_scheduler(name, found.scheduler_config).config.prediction_type == "v_prediction"
    with pytest.raises(ValueError, match="unknown prediction_type 'v'; choose from epsilon, v_prediction"):
        load(model_folder, device="cpu", dtype=torch.float32, prediction_type="v")


def test_a_variant_of_the_weights_is_read(components, model_folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(model_folder, copy)
    for path in copy.rglob("*.safetensors"):
        path.rename(path.with_suffix(".fp16.safetensors"))
    found = load(copy, device="cpu", dtype=torch.float32, variant="fp16").unet.state_dict()
    assert all(torch.equal(value, components.unet.state_dict()[name]) for name, value in found.items())
    with pytest.raises(ValueError, match="holds no weights without a variant; set the variant to 'fp16'"):
        load(copy, device="cpu", dtype=torch.float32)


@pytest.mark.parametrize(
    ("precision", "device", "capability", "expected"),
    [
        ("auto", "cpu", None, torch.float32),
        ("auto", "mps", None, torch.float32),
        ("auto", "cuda", (8, 0), torch.bfloat16),
        ("auto", "cuda:1", (7, 5), torch.float16),
        ("fp32", "cuda", (9, 0), torch.float32),
        ("fp16", "mps", None, torch.float16),
        ("bf16", "cpu", None, torch.bfloat16),
        ("bf16", "cuda", (7, 5), torch.bfloat16),
    ],
)
def test_the_precision_suits_the_device(monkeypatch, precision, device, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda name: capability if name == device else None)
    assert choose_dtype(precision, device) == expected


def test_a_precision_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match='precision "fp16" needs a GPU; on the CPU choose "fp32" or "bf16"'):
        choose_dtype("fp16", "cpu")
    with pytest.raises(ValueError, match="unknown precision 'fp8'; choose from auto, fp32, fp16, bf16"):
        choose_dtype("fp8", "cuda")


def test_an_inpainting_unet_is_refused(components):
    components.unet.register_to_config(in_channels=9)
    with pytest.raises(ValueError, match="inpainting"):
        module.Components(**vars(components))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_damaged_weights_are_named(model_folder, tmp_path, part):
    copy = tmp_path / "copy"
    shutil.copytree(model_folder, copy)
    (weights,) = (copy / part).glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(
        ValueError, match=f"^the weights {re.escape(str(weights))} are damaged or cut off; get that file"
    ):
        load(copy, device="cpu", dtype=torch.float32)


def test_weights_of_another_size_are_one_sentence(model_folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(model_folder, copy)
    config = copy / "unet" / "config.json"
    config.write_text(config.read_text().replace('"cross_attention_dim": 32', '"cross_attention_dim": 48'))
    with pytest.raises(ValueError, match="cannot load the model") as caught:
        load(copy, device="cpu", dtype=torch.float32)
    assert "\n" not in str(caught.value)


def test_a_model_knows_its_name(monkeypatch, model_folder):
    assert load(model_folder, device="cpu", dtype=torch.float32).name == model_folder.name
    monkeypatch.chdir(model_folder)
    assert load(".", device="cpu", dtype=torch.float32).name == model_folder.name
    monkeypatch.setattr(source, "POCKET", model_folder)
    assert load("pocket", device="cpu", dtype=torch.float32).name == "pocket"
