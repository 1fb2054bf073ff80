"""What a model's name stands for, and folders of other kinds; no weights, no torch."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from raft_diffusion import sd15
from raft_diffusion.sd15 import source
from raft_diffusion.sd15.source import check_model, resolve_model

FILE = "diffusion_pytorch_model"


@pytest.fixture
def folder(tmp_path):
    """A folder that says of itself to be Stable Diffusion 1.5, its weights empty."""
    path = tmp_path / "model"
    for part in ("unet", "vae"):
        (path / part).mkdir(parents=True)
        (path / part / "config.json").write_text(json.dumps(sd15.config(part)))
    (path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "U"]}')
    (path / "unet" / f"{FILE}.safetensors").touch()
    return path


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_no_torch_is_needed():
    code = "import sys, raft_diffusion.sd15.source; assert not {'torch', 'diffusers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_pocket_is_the_folder_inside_the_package():
    assert Path(resolve_model("pocket")).parts[-4:] == ("raft_diffusion", "pocket", "weights", "model")
    assert check_model("pocket") == resolve_model("pocket")


def test_folders_files_and_hub_ids(folder, tmp_path):
    file = tmp_path / "m.safetensors"
    file.touch()
    assert resolve_model(folder) == check_model(str(folder)) == str(folder)
    assert resolve_model(str(file)) == resolve_model(file) == str(file)
    assert resolve_model("owner/name-1.5_x") == "owner/name-1.5_x"


@pytest.mark.parametrize(
    "name",
    [
        *("nowhere", "./no/such", "/no/such", "a/b/c", "../x", "", "a b/c", "a/", "größe/x"),
        *("models/m.safetensors", "models/m.ckpt", "m.safetensors"),
    ],
)
def test_what_is_nothing_is_refused_in_one_sentence(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"^no model at '.*give a folder .*, a hub id|holds no model_"):
        resolve_model(name)


@pytest.mark.parametrize("name", ["runwayml/stable-diffusion-v1-5", "RunwayML/stable-diffusion-v1-5"])
def test_the_deleted_id_names_the_new_one(name):
    with pytest.raises(ValueError, match=rf"^{name} was deleted from the hub; .* {sd15.HUB_ID}$"):
        check_model(name)


def test_revision_and_variant_need_what_they_choose_from(folder, tmp_path):
    with pytest.raises(
        ValueError, match=r"revision 'main' is for .* on the hub, and .* is on this machine; leave it out"
    ):
        check_model(folder, revision="main")
    with pytest.raises(ValueError, match="revision 'main' is for a model on the hub, and pocket is"):
        check_model("pocket", revision="main")
    (tmp_path / "m.safetensors").touch()
    with pytest.raises(ValueError, match=r"variant 'fp16' is for a folder or a hub id, and .* is one file"):
        check_model(tmp_path / "m.safetensors", variant="fp16")


@pytest.mark.parametrize(
    ("part", "values", "kind"),
    [
        ("unet", {"in_channels": 9}, "an inpainting model (its UNet takes 9 channels instead of 4)"),
        ("unet", {"in_channels": 8}, "an instruct-pix2pix model (its UNet takes 8 channels instead of 4)"),
        ("unet", {"cross_attention_dim": 1024}, "a Stable Diffusion 2.x model"),
        ("unet", {"cross_attention_dim": 2048}, "an SDXL model"),
        ("index", {"_class_name": "StableDiffusionXLPipeline"}, "an SDXL model"),
        ("index", {"_class_name": "StableDiffusion3Pipeline"}, "a Stable Diffusion 3 model"),
        ("index", {"_class_name": "FluxPipeline"}, "a FLUX model"),
        ("index", {"_class_name": "PixArtAlphaPipeline", "unet": None}, "a PixArtAlphaPipeline without a UNet"),
    ],
)
def test_folders_of_another_kind_say_what_they_are(folder, part, values, kind):
    change(folder / ("model_index.json" if part == "index" else f"{part}/config.json"), **values)
    with pytest.raises(ValueError, match=re.escape(f"{folder} is {kind}; this package takes Stable Diffusion 1.x")):
        check_model(folder)


def test_configurations_that_are_missing_or_broken_are_named(folder, tmp_path):
    config = folder / "unet" / "config.json"
    for text in ("{", "[1]", "[" * 100_000):
        config.write_text(text)
        with pytest.raises(ValueError, match=f"^{re.escape(str(config))} is no configuration in JSON; get that file"):
            check_model(folder)
    config.unlink()
    with pytest.raises(ValueError, match=f"^cannot read {re.escape(str(config))} "):
        check_model(folder)
    with pytest.raises(ValueError, match=r"holds no model_index\.json"):
        check_model(tmp_path)


@pytest.mark.parametrize(
    ("files", "variant", "message"),
    [
        ([f"{FILE}.safetensors"], None, None),
        ([f"{FILE}.fp16.safetensors", f"{FILE}.safetensors"], "fp16", None),
        ([f"{FILE}.fp16-00001-of-00002.safetensors"], "fp16", None),
        ([f"{FILE}-00001-of-00002.safetensors"], None, None),
        ([f"{FILE}.safetensors"], "fp16", "holds no weights of the variant 'fp16'; leave the variant out$"),
        ([f"{FILE}.fp16.safetensors"], None, "holds no weights without a variant; set the variant to 'fp16'$"),
        (
            [f"{FILE}.fp16.safetensors", f"{FILE}.non_ema.safetensors", f"{FILE}.safetensors"],
            "bf16",
            "of the variant 'bf16'; set the variant to 'fp16' or 'non_ema', or leave the variant out$",
        ),
        ([f"{FILE}.bin"], None, r"holds its weights as \.bin, a pickle, which can run any code when it is opened; get"),
        ([], None, r"holds no \.safetensors weights; get the model again"),
    ],
)
def test_weights_that_are_not_there_are_told(folder, files, variant, message):
    (folder / "unet" / f"{FILE}.safetensors").unlink()
    for name in files:
        (folder / "unet" / name).touch()
    if message is None:
        assert check_model(folder, variant=variant) == str(folder)
    else:
        with pytest.raises(ValueError, match=message):
            check_model(folder, variant=variant)


def test_a_checkpoint_is_looked_into(tmp_path):
    path = tmp_path / "m.ckpt"
    path.touch()
    with pytest.raises(ValueError, match="is a pickle"):
        check_model(path)
    path = tmp_path / "m.safetensors"
    path.write_bytes((2).to_bytes(8, "little") + b"{}")
    with pytest.raises(ValueError, match="is no Stable Diffusion checkpoint that is known here"):
        check_model(path)


def test_the_configurations_of_a_hub_id_are_fetched(folder, monkeypatch):
    asked = []

    def fetch(repo, name, *, revision):
        asked.append((repo, name, revision))
        return folder / name

    monkeypatch.setattr(source, "fetch", fetch)
    assert check_model("owner/name", revision="v2", variant="fp16") == "owner/name"
    assert asked == [("owner/name", f"{file}.json", "v2") for file in ("model_index", "unet/config", "vae/config")]
    change(folder / "unet" / "config.json", in_channels=9)
    with pytest.raises(ValueError, match=r"^owner/name is an inpainting model"):
        check_model("owner/name")
