"""A checkpoint in the LDM layout against the same weights as a diffusers folder: Stable Diffusion 1.5, but narrow."""

import json
import runpy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from raft_diffusion import sd15
from raft_diffusion.core.records import Draw, Prompt
from raft_diffusion.diffusion.load import load
from raft_diffusion.diffusion.sampler import DiffusionPolicy, Settings

write_model = runpy.run_path(str(Path(__file__).parents[1] / "checkpoints.py"))["write_model"]
PARTS = ("unet", "vae", "text_encoder")
NARROW = {
    "unet": {"block_out_channels": [32, 32, 64, 64], "attention_head_dim": 4},
    "vae": {"block_out_channels": [32, 32, 64, 64], "layers_per_block": 1},
    "text_encoder": {"num_hidden_layers": 2, "intermediate_size": 64},
    "scheduler": {},
}
PUBLISHED = sd15.config


@pytest.fixture(scope="module", autouse=True)
def narrow():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sd15, "config", lambda part: PUBLISHED(part) | NARROW[part])
        yield


@pytest.fixture(scope="module")
def model(narrow, tmp_path_factory):
    """(folder, file) of the same random weights, in float16."""
    path = tmp_path_factory.mktemp("narrow")
    (path / "folder").mkdir()
    write_model(path / "folder", path / "model.safetensors")
    return path / "folder", path / "model.safetensors"


@pytest.fixture(scope="module")
def from_folder(model):
    return load(model[0], device="cpu", dtype=torch.float32)


@pytest.fixture
def variation(model, tmp_path):
    """Writes the checkpoint with its tensors changed."""

    def write(change, name="changed.safetensors"):
        save_file(change(load_file(model[1])), tmp_path / name)
        return tmp_path / name

    return write


def check_same(found, expected):
    for part in PARTS:
        weights = getattr(expected, part).state_dict()
        assert getattr(found, part).state_dict().keys() == weights.keys()
        assert all(torch.equal(v, weights[k]) for k, v in getattr(found, part).state_dict().items()), part


def picture(components):
    settings = Settings(width=64, height=64, num_inference_steps=2, guidance_scale=2.0, scheduler="Euler", batch_size=1)
    (sample,) = DiffusionPolicy(components, settings=settings).generate([Draw(Prompt("a cat", "a dog"), 0, 7)])
    return sample.data


def test_a_file_gives_the_weights_and_the_latents_of_the_folder(model, from_folder, caplog):
    found = load(model[1], device="cpu", dtype=torch.float32)
    assert caplog.records == []
    check_same(found, from_folder)
    assert not any(
        p.requires_grad or p.dtype != torch.float32 for part in PARTS for p in getattr(found, part).parameters()
    )
    assert (found.name, found.prediction_type, found.scale_factor) == ("model.safetensors", "epsilon", 8)
    assert len(found.tokenizer) == 49408
    mine, theirs = picture(found), picture(from_folder)
    assert torch.equal(mine.latent, theirs.latent) and mine.image.tobytes() == theirs.image.tobytes()


def test_files_with_old_names_of_the_text_encoder_or_more_tensors_are_read(variation, from_folder):
    def old(tensors):
        names = {name: name.replace(".transformer.text_model.", ".transformer.") for name in tensors}
        positions = {"cond_stage_model.transformer.embeddings.position_ids": torch.arange(77)[None]}
        ema = {"model_ema.decay": torch.zeros(())}
        return {names[name]: tensor for name, tensor in tensors.items()} | positions | ema

    check_same(load(variation(old), device="cpu", dtype=torch.float32), from_folder)


def test_weights_come_in_the_type_asked_for(model):
    found = load(model[1], device="cpu", dtype=torch.bfloat16)
    assert {p.dtype for part in PARTS for p in getattr(found, part).parameters()} == {torch.bfloat16}
    assert picture(found).latent.dtype == torch.float32


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ("cond_stage_model.transformer.text_model.encoder.layers.1.", "Missing key"),
        (
            "model.diffusion_model.middle_block.1.proj_in.",
            "2 weights are missing, such as model.diffusion_model.middle_block.1.proj_in.weight",
        ),
        (
            "first_stage_model.decoder.norm_out.",
            "2 weights are missing, such as first_stage_model.decoder.norm_out.weight",
        ),
    ],
)
def test_weights_that_are_missing_are_told(variation, start, message):
    path = variation(lambda tensors: {name: t for name, t in tensors.items() if not name.startswith(start)})
    with pytest.raises(ValueError, match=r"^cannot load the model .*its safetensors weights must be whole") as caught:
        load(path, device="cpu", dtype=torch.float32)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_weights_of_another_size_are_told(variation):
    name = "model.diffusion_model.out.2.weight"
    path = variation(lambda tensors: tensors | {name: torch.zeros(4, 16, 3, 3)})
    with pytest.raises(ValueError, match=r"^cannot load the model .*must be whole"):
        load(path, device="cpu", dtype=torch.float32)


def test_other_kinds_are_refused_before_they_are_loaded(variation, monkeypatch):
    path = variation(lambda tensors: tensors | {"model.diffusion_model.label_emb.0.0.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"changed\.safetensors is an SDXL checkpoint; this package takes"):
        load(path, device="cpu", dtype=torch.float32)


def test_keys_and_yaml_files_set_the_prediction(model, variation):
    path = variation(lambda tensors: tensors | {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)})
    found = load(path, device="cpu", dtype=torch.float32)
    config = found.scheduler_config
    assert found.prediction_type == "v_prediction"
    assert (config["rescale_betas_zero_snr"], config["timestep_spacing"]) == (True, "trailing")
    assert config["beta_end"] == 0.012 and picture(found).latent.isfinite().all()

    path = variation(lambda tensors: tensors, "other.safetensors")
    path.with_suffix(".yaml").write_text(json.dumps({"model": {"params": {"parameterization": "v"}}}))
    found = load(path, device="cpu", dtype=torch.float32)
    assert (found.prediction_type, found.scheduler_config.get("rescale_betas_zero_snr")) == ("v_prediction", None)
    assert load(path, device="cpu", dtype=torch.float32, prediction_type="epsilon").prediction_type == "epsilon"


def test_a_schedule_without_signal_needs_velocity(variation):
    path = variation(lambda tensors: tensors | {"ztsnr": torch.zeros(0)})
    with pytest.raises(ValueError, match=r'ends without any signal, .*: set prediction_type to "v_prediction" if'):
        load(path, device="cpu", dtype=torch.float32)
    found = load(path, device="cpu", dtype=torch.float32, prediction_type="v_prediction")
    assert found.prediction_type == "v_prediction"
