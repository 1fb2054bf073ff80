import importlib
import re
import shutil

import pytest
import torch
from diffusers import StableDiffusionPipeline

from raft_diffusion.diffusion.load import load, resolve_model

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


def test_pocket_is_the_folder_inside_the_package(monkeypatch, model_folder):
    assert module.POCKET.parts[-4:] == ("raft_diffusion", "pocket", "weights", "model")
    monkeypatch.setattr(module, "POCKET", model_folder)
    assert resolve_model("pocket") == str(model_folder)


def test_a_hub_id_is_left_to_the_hub():
    assert resolve_model("owner/name") == "owner/name"


@pytest.mark.parametrize("name", ["nowhere", "./no/such", "/no/such", "a/b/c", "../x", ""])
def test_what_is_neither_folder_nor_hub_id_is_refused_in_one_sentence(name):
    with pytest.raises(ValueError, match=r"no model at|holds no model_index.json"):
        resolve_model(name)


def test_a_folder_that_is_no_model_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path} holds no model_index.json"):
        load(tmp_path, device="cpu", dtype=torch.float32)


def test_a_model_that_the_hub_does_not_have_is_named(monkeypatch):
    def refuse(*_, **__):
        raise OSError("404")

    monkeypatch.setattr(StableDiffusionPipeline, "from_pretrained", refuse)
    with pytest.raises(ValueError, match=r"cannot load the model 'owner/name' \(404\)"):
        load("owner/name", device="cpu", dtype=torch.float32)


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
    monkeypatch.setattr(module, "POCKET", model_folder)
    assert load("pocket", device="cpu", dtype=torch.float32).name == "pocket"
