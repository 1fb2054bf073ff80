"""A LoRA baked into a model: Stable Diffusion 1.5, but narrow, and the carried model; once at full size."""

import json
import runpy
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from raft_diffusion import sd15
from raft_diffusion.commands.merge import merge as command
from raft_diffusion.core.records import Draw, Prompt
from raft_diffusion.diffusion import ldm
from raft_diffusion.diffusion.load import load
from raft_diffusion.diffusion.sampler import DiffusionPolicy, Settings
from raft_diffusion.lora import merge as merging
from raft_diffusion.lora.file import FILE_NAME
from raft_diffusion.lora.merge import plan_merge
from raft_diffusion.sd15.checkpoint import read_header

write_model = runpy.run_path(str(Path(__file__).parents[1] / "checkpoints.py"))["write_model"]
NARROW = {
    "unet": {"block_out_channels": [32, 32, 64, 64], "attention_head_dim": 4},
    "vae": {"block_out_channels": [32, 32, 64, 64], "layers_per_block": 1},
    "text_encoder": {"num_hidden_layers": 2, "intermediate_size": 64},
    "scheduler": {},
}
PUBLISHED = sd15.config
PARTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
LAYERS = {
    "unet": [
        "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k",
        "mid_block.attentions.0.proj_in",
        "up_blocks.1.resnets.0.conv_shortcut",
        "up_blocks.2.upsamplers.0.conv",
        "mid_block.resnets.1.time_emb_proj",
    ],
    "text_encoder": ["encoder.layers.1.mlp.fc1", "encoder.layers.0.self_attn.q_proj"],
}


@pytest.fixture(scope="module")
def narrow():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sd15, "config", lambda part: PUBLISHED(part) | NARROW[part])
        yield


@pytest.fixture(scope="module")
def model(narrow, tmp_path_factory):
    """{"folder", "file"} of the same random weights, in float16."""
    path = tmp_path_factory.mktemp("narrow")
    (path / "folder").mkdir()
    write_model(path / "folder", path / "model.safetensors")
    return {"folder": path / "folder", "file": path / "model.safetensors"}


@pytest.fixture(scope="module")
def lora(model, tmp_path_factory):
    """A kohya file of rank 4 and alpha 3."""
    path = tmp_path_factory.mktemp("lora") / "my style.safetensors"
    write_lora(path, {part: load_file(model["folder"] / part / PARTS[part]) for part in LAYERS}, LAYERS, size=0.2)
    return path


def write_lora(path, weights, layers, *, size):
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for part, names in layers.items():
        prefix, level = ("lora_unet_", "") if part == "unet" else ("lora_te_text_model_", "text_model.")
        for name in names:
            out, *inputs = weights[part][f"{level}{name}.weight"].shape
            key = prefix + name.replace(".", "_")
            down = torch.randn(4, *inputs, generator=generator) * size
            up = torch.randn(out, 4, *(1 for _ in inputs[1:]), generator=generator) * size
            tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(3.0)}
    save_file(tensors, path)


def run(model, lora, out, **options):
    merge = plan_merge(str(model), lora, out, **options)
    components = merging.load_model(merge)
    size = merging.merge_size(merge, components)
    steps = []
    merging.bake(merge, components, lambda *step: steps.append(step))
    merging.write(merge, components, lambda *step: steps.append(step))
    assert steps[-1] == ("write", size, size)
    return out


SETTINGS = Settings(width=64, height=64, num_inference_steps=2, guidance_scale=2.0, scheduler="Euler", batch_size=1)


def sampled(policy):
    (sample,) = policy.generate([Draw(Prompt("a cat", "a dog"), 0, 7)])
    return sample.data.latent


def latents(components, lora=None, scale=1.0):
    policy = DiffusionPolicy(components, settings=SETTINGS)
    if lora:
        policy.attach(lora, scale=scale)
    return sampled(policy)


def loaded(path):
    return load(path, device="cpu", dtype=torch.float32)


def bits(path):
    return {name: tensor.view(torch.int16) for name, tensor in load_file(path).items()}


@pytest.fixture(scope="module")
def half(model, lora, tmp_path_factory):
    """The LoRA at 0.5 in fp16: a folder made from the file, and a file made from the folder."""
    path = tmp_path_factory.mktemp("half")
    return {
        "folder": run(model["file"], lora, path / "merged", strength=0.5),
        "file": run(model["folder"], lora, path / "merged.safetensors", strength=0.5),
    }


@pytest.fixture(scope="module")
def carried_lora(tmp_path_factory):
    """A folder with a LoRA for the carried model and its text encoder."""
    settings = Settings(width=16, height=16, num_inference_steps=1, guidance_scale=1, scheduler="DDIM", batch_size=1)
    policy = DiffusionPolicy(loaded("pocket"), settings=settings)
    policy.add_adapter(rank=2, alpha=2.0, text_encoder=True)
    generator = torch.Generator().manual_seed(0)
    for parameter in policy.trained.parameters().values():
        parameter.data.normal_(std=0.1, generator=generator)
    folder = tmp_path_factory.mktemp("carried") / "my lora"
    policy.save(folder)
    return folder


@pytest.mark.parametrize("source", [pytest.param("folder", marks=pytest.mark.slow), "file"])
def test_folder_and_file_give_the_latents_of_base_plus_lora(model, lora, tmp_path, source):
    live = DiffusionPolicy(loaded(model[source]), settings=SETTINGS)
    live.attach(lora)
    plain = latents(loaded(model[source]))
    for strength in (0.0, 0.5, 1.0):
        live.trained.set_strength(strength)
        expected = sampled(live)
        assert torch.allclose(expected, plain, atol=1e-2) == (strength == 0)
        name = {"folder": "merged.safetensors", "file": "merged"}[source]
        out = run(model[source], lora, tmp_path / f"{strength}" / name, strength=strength, dtype="fp32")
        torch.testing.assert_close(latents(loaded(out)), expected, rtol=1e-4, atol=1e-4)


def test_at_strength_0_every_tensor_is_the_bases_bit_for_bit(model, lora, tmp_path):
    run(model["file"], lora, tmp_path / "merged", strength=0.0)
    run(model["folder"], lora, tmp_path / "merged.safetensors", strength=0.0)
    pairs = [(tmp_path / "merged.safetensors", model["file"])]
    pairs += [(tmp_path / "merged" / part / name, model["folder"] / part / name) for part, name in PARTS.items()]
    for found, base in pairs:
        ours, theirs = bits(found), bits(base)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_sum_is_rounded_once(model, lora, half):
    """W + strength * alpha / rank * up @ down, by hand in float64; all other tensors are untouched."""
    tensors = load_file(lora)
    for part, names in LAYERS.items():
        level, prefix = ("", "lora_unet_") if part == "unet" else ("text_model.", "lora_te_text_model_")
        base, found = (load_file(path / part / PARTS[part]) for path in (model["folder"], half["folder"]))
        for name in names:
            key = prefix + name.replace(".", "_")
            up, down = (tensors[f"{key}.lora_{way}.weight"].double() for way in ("up", "down"))
            weight = base.pop(f"{level}{name}.weight").double()
            change = torch.einsum("or,ri->oi", up.flatten(1), down.flatten(1)).view_as(weight)
            rounded = found.pop(f"{level}{name}.weight")
            torch.testing.assert_close(rounded, (weight + 0.5 * 3 / 4 * change).half(), rtol=2**-10, atol=1e-7)
        assert all(torch.equal(found[name], base[name]) for name in base) and base.keys() == found.keys()


def test_the_carried_model_is_written_as_a_folder(carried_lora, tmp_path):
    for strength in (0.5, 1.0):
        expected = latents(loaded("pocket"), carried_lora, strength)
        out = run("pocket", carried_lora, tmp_path / str(strength), strength=strength, dtype="fp32")
        torch.testing.assert_close(latents(loaded(out)), expected, rtol=1e-4, atol=1e-4)
    facts = json.loads((out / "merge.json").read_text(encoding="utf-8"))
    assert facts.pop("version")
    assert facts == {"model": "pocket", "lora": "my lora", "strength": 1.0, "dtype": "fp32"}
    with pytest.raises(ValueError, match="the carried model is of a size of its own, which a checkpoint file has no"):
        plan_merge("pocket", carried_lora, tmp_path / "merged.safetensors")


def test_the_same_merge_gives_the_same_bytes(model, lora, carried_lora, half, tmp_path):
    again = run(model["folder"], lora, tmp_path / "merged.safetensors", strength=0.5)
    assert again.read_bytes() == half["file"].read_bytes()
    folders = [run("pocket", carried_lora, tmp_path / number / "merged") for number in "12"]
    first, second = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in folders
    )
    assert first == second and len(first) == 13


def test_no_place_of_this_machine_is_named(model, lora, half):
    texts = [path.read_text(encoding="utf-8") for path in half["folder"].rglob("*.json")]
    for path in [half["file"], *half["folder"].rglob("*.safetensors")]:
        texts.append(path.read_bytes()[8 : read_header(path).size].decode())
    places = [str(place.parent) for place in (half["file"], model["file"], lora)]
    assert len(texts) == 13 and not [text for text in texts for place in places if place in text]


def test_the_file_says_what_it_is(half):
    with safe_open(half["file"], "pt") as file:
        metadata = file.metadata()
    assert metadata.pop("raft.version")
    assert metadata == {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1",
        "modelspec.title": "merged",
        "modelspec.prediction_type": "epsilon",
        "raft.model": "folder",
        "raft.lora": "my style",
        "raft.strength": "0.5",
        "raft.dtype": "fp16",
    }


def test_diffusers_loads_the_folder_in_silence_and_the_configurations_are_the_bases(model, half, caplog):
    out = half["folder"]
    StableDiffusionPipeline.from_pretrained(out, safety_checker=None, requires_safety_checker=False)
    assert caplog.records == []
    for name in ("unet/config.json", "vae/config.json", "scheduler/scheduler_config.json", "text_encoder/config.json"):
        ours, theirs = (json.loads((path / name).read_text(encoding="utf-8")) for path in (out, model["folder"]))
        ours.pop("_diffusers_version", None)
        unsaid = {"dtype", "transformers_version", "architectures", "_diffusers_version"}
        assert {k: v for k, v in ours.items() if k not in unsaid} == {
            k: v for k, v in theirs.items() if k not in unsaid and (k in ours or not name.startswith("text"))
        }
    merges = [(path / "tokenizer" / "merges.txt").read_text(encoding="utf-8") for path in (out, model["folder"])]
    words = [json.loads((path / "tokenizer" / "vocab.json").read_bytes()) for path in (out, model["folder"])]
    assert merges[0].split("\n")[1:] == merges[1].split("\n")[1:] and words[0] == words[1]


def test_a_model_that_predicts_velocity_is_told_by_its_keys(model, lora, tmp_path):
    tensors = load_file(model["file"]) | {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    save_file(tensors, tmp_path / "v.safetensors")
    merge = plan_merge(str(tmp_path / "v.safetensors"), lora, tmp_path / "merged.safetensors", dtype="bf16")
    components = merging.load_model(merge)
    merging.write(merge, components, lambda *step: None)
    merging.write(replace(merge, out=tmp_path / "merged"), components, lambda *step: None)
    for name in ("merged", "merged.safetensors"):
        found = loaded(tmp_path / name)
        assert found.prediction_type == "v_prediction" and found.scheduler_config["rescale_betas_zero_snr"]


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": float("nan")}, "--strength is nan; it must be a finite number"),
        ({"dtype": "fp8"}, "unknown --dtype 'fp8'; choose from fp16, bf16, fp32"),
        ({"out": "folder"}, "folder is there already: give --force to replace it, or another name with --out"),
        ({"out": "folder", "force": True}, "--force replaces a model alone, and .*folder is none"),
        ({"out": "folder.safetensors", "force": True}, "--force replaces a model alone"),
        ({"out": "file", "force": True}, "--force replaces a model alone"),
        ({"out": "file/merged"}, "file is no folder that can be written to; give another one"),
        ({"out": "."}, "is or holds .*, which is read; name another place"),
        ({"out": "x.safetensors", "force": True}, "is or holds .*, which is read; name another place"),
    ],
)
def test_what_cannot_be_is_refused_before_a_model_is_loaded(model, lora, tmp_path, options, message):
    for name in ("folder", "folder.safetensors"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "diary.txt").touch()
    (tmp_path / "file").touch()
    shutil.copyfile(lora, tmp_path / "x.safetensors")
    out = tmp_path / options.pop("out", "merged")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=message):
        plan_merge(str(model["folder"]), tmp_path / "x.safetensors", out, **options)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_model_or_a_lora_that_is_none_is_refused(model, lora, tmp_path):
    with pytest.raises(ValueError, match="no model at 'nothing here'"):
        plan_merge("nothing here", lora, tmp_path / "merged")
    with pytest.raises(ValueError, match="there is no LoRA"):
        plan_merge("pocket", tmp_path / "none", tmp_path / "merged")


def test_only_stable_diffusion_1_5_is_written_as_one_file(model, lora, tmp_path, monkeypatch):
    other = shutil.copytree(model["folder"], tmp_path / "other")
    values = json.loads((other / "vae" / "config.json").read_text(encoding="utf-8"))
    (other / "vae" / "config.json").write_text(json.dumps(values | {"scaling_factor": 0.5}), encoding="utf-8")
    merge = plan_merge(str(other), lora, tmp_path / "merged.safetensors")
    with pytest.raises(ValueError, match=r"is no Stable Diffusion 1\.5 \(vae\.scaling_factor is 0\.5, not 0\.18215\)"):
        merging.load_model(merge)


def test_a_full_disk_is_told_before_anything_is_written(carried_lora, tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(merging.shutil, "disk_usage", lambda path: usage(1_000_000))
    with pytest.raises(ValueError, match=r"merged needs 0\.01 GB, and .* has 0\.00 GB left$"):
        merging.load_model(plan_merge("pocket", carried_lora, tmp_path / "merged"))
    assert list(tmp_path.iterdir()) == []


def test_a_lora_that_does_not_fit_or_is_too_strong_is_refused(lora, carried_lora, tmp_path):
    merge = plan_merge("pocket", carried_lora, tmp_path / "merged", strength=1e9)
    with pytest.raises(ValueError, match=r"with the LoRA at 1000000000\.0 is not finite in fp16; lower --strength, or"):
        merging.bake(merge, merging.load_model(merge), lambda *step: None)
    merge = plan_merge("pocket", lora, tmp_path / "merged")
    with pytest.raises(ValueError, match="does not fit this model"):
        merging.bake(merge, merging.load_model(merge), lambda *step: None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["merged", "merged.safetensors"])
def test_a_failure_leaves_what_was_there_and_nothing_else(model, lora, carried_lora, half, tmp_path, monkeypatch, name):
    out = tmp_path / name
    if out.suffix:
        source = model["folder"], lora
        shutil.copyfile(half["file"], out)
    else:
        source = "pocket", carried_lora
        run(*source, out, strength=0.5)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    true = merging.write_tensors

    def broken(path, tensors, metadata, *, count):
        if path.suffix == ".partial" or path.parent.name == "vae":
            count = failing
        true(path, tensors, metadata, count=count)

    def failing(size):
        raise OSError("no space left")

    monkeypatch.setattr(merging, "write_tensors", broken)
    with pytest.raises(OSError, match="no space left"):
        run(*source, out, strength=1.0, force=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    monkeypatch.setattr(merging, "write_tensors", true)
    run(*source, out, strength=1.0, force=True)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after.keys() == before.keys() and after != before


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_says_what_it_does(tmp_path, carried_lora):
    threads = torch.get_num_threads()
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(command)
    bare = tmp_path / "bare.safetensors"
    save_file(load_file(carried_lora / FILE_NAME), bare)
    arguments = ["pocket", str(bare), "--out", str(tmp_path / "merged"), "--strength", "0.5", "--threads", "1"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False, standalone_mode=False)
    torch.set_num_threads(threads)
    layers = len(load_file(bare)) // 2
    size = sum(path.stat().st_size for path in (tmp_path / "merged").rglob("*.safetensors"))
    assert f"{layers} layers at 0.5; {size / 1e6:.0f} MB of fp16 to write\n" in result.output
    assert "does not say its alpha; it is taken as the rank" in " ".join(result.output.split())
    assert result.output.endswith(f"{tmp_path / 'merged'}\n")
    assert (tmp_path / "merged" / "model_index.json").is_file()


# --- full size --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_full_size(tmp_path, monkeypatch):
    """All of Stable Diffusion 1.5's tensors under their published names, and diffusers' own reader of such files."""
    monkeypatch.setattr(sd15, "config", PUBLISHED)  # whatever the tests before it have made narrow
    (tmp_path / "folder").mkdir()
    write_model(tmp_path / "folder", tmp_path / "model.safetensors")
    weights = {part: load_file(tmp_path / "folder" / part / PARTS[part]) for part in ("unet", "vae", "text_encoder")}
    layers = {
        "unet": [n.removesuffix(".weight") for n in weights["unet"] if n.endswith((".to_k.weight", ".proj_in.weight"))],
        "text_encoder": ["encoder.layers.11.self_attn.q_proj"],
    }
    write_lora(tmp_path / "x.safetensors", weights, layers, size=0.02)
    out = run(tmp_path / "model.safetensors", tmp_path / "x.safetensors", tmp_path / "merged.safetensors", strength=0.5)
    lora = load_file(tmp_path / "x.safetensors")
    for part, names in layers.items():
        level, prefix = ("", "lora_unet_") if part == "unet" else ("text_model.", "lora_te_text_model_")
        for name in names:
            up, down = (lora[f"{prefix}{name.replace('.', '_')}.lora_{way}.weight"] for way in ("up", "down"))
            weight = weights[part][f"{level}{name}.weight"]
            change = torch.einsum("or,ri->oi", up.flatten(1), down.flatten(1)).view_as(weight) * (0.5 * 3 / 4)
            weights[part][f"{level}{name}.weight"] = (weight.float() + change).half()
    tensors = load_file(out)
    expected = ldm.to_ldm(weights["unet"], weights["vae"], weights["text_encoder"], config=sd15.config("unet"))
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(tensors[name], tensor, rtol=2**-10, atol=1e-7, msg=name)
    found = load(out, device="cpu", dtype=torch.float16)
    for name, tensor in found.unet.state_dict().items():
        torch.testing.assert_close(tensor, weights["unet"][name], rtol=2**-10, atol=1e-7, msg=name)
    shutil.rmtree(tmp_path)
