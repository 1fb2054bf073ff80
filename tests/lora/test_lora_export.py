"""The exported LoRA: what WebUIs read of it, what lies beside it, what is refused, and that it paints the same."""

import base64
import io
import json
import platform
import runpy
import socket
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from raft_diffusion import cli, pocket
from raft_diffusion.commands.export import _size
from raft_diffusion.core.records import Draw, Prompt
from raft_diffusion.diffusion import DiffusionPolicy, Settings, load
from raft_diffusion.lora.export import plan_export, write_export
from raft_diffusion.lora.inspection import inspect_file

LORAS = runpy.run_path(str(Path(__file__).with_name("lora_runs.py")))
CONFIG, draw_lora, write_run = (LORAS[name] for name in ("CONFIG", "draw_lora", "write_run"))
LAYER = "down_blocks.1.attentions.0.transformer_blocks.0"
UNET = {f"{LAYER}.attn1.to_q": (640, 640), f"{LAYER}.attn2.to_k": (640, 768), f"{LAYER}.attn2.to_v": (640, 768)}
TEXT = {"encoder.layers.0.self_attn.q_proj": (768, 768)}
POCKET = CONFIG.replace('model = "stable-diffusion-v1-5/stable-diffusion-v1-5"', 'model = "pocket"')


@pytest.fixture
def run(tmp_path):
    """A finished run on Stable Diffusion 1.5 with a LoRA of a few layers: rank 4, alpha 2."""
    return write_run(tmp_path / "run", draw_lora({"unet": UNET, "text_encoder": TEXT}, rank=4), rank=4, alpha=2.0,
                     evaluated=True)  # fmt: skip


@pytest.fixture
def carried(tmp_path):
    """A finished run on the carried model."""
    return write_run(tmp_path / "carried", draw_lora({"unet": UNET}, rank=4), rank=4, alpha=2.0, config=POCKET)


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """Run a command; its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["raft-diffusion", *map(str, arguments)])
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return call


def metadata(path):
    with safe_open(path, "np") as file:
        return file.metadata()


# --- what is written --------------------------------------------------------------------------------------------------


def test_the_files_of_an_export(run, call):
    code, out, err = call("export", run)
    assert (code, err) == (0, "")
    names = {path.name for path in (run / "export").iterdir()}
    assert names == {f"monet-cat.{ending}" for ending in ("safetensors", "png", "json", "md")}
    assert "rank 4, alpha 2, 4 layers, fp16, kohya's format" in out
    assert "monet style <lora:monet-cat:1>" in out and "ComfyUI" in out and "note:" not in out
    assert inspect_file(run / "export" / "monet-cat.safetensors").problems == ()


def test_the_metadata(run):
    """Every value by hand: 2 rounds of 2 prompts with one winner each, 80 steps a round, begun 2026-11-21T07:04:14Z."""
    plan = plan_export(run)
    write_export(plan)
    said = metadata(plan.target)
    assert all(isinstance(value, str) and value for value in said.values())
    expected = {
        "format": "pt",
        "ss_base_model_version": "sd_v1",
        "ss_v2": "False",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "ss_network_alpha": "2.0",
        "ss_output_name": "monet-cat",
        "ss_sd_model_name": "stable-diffusion-v1-5",
        "ss_clip_skip": "None",
        "ss_training_started_at": "1795244654.0",
        "ss_resolution": "(512, 512)",
        "ss_num_train_images": "4",
        "ss_epoch": "2",
        "ss_steps": "160",
        "ss_learning_rate": "0.0001",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": "monet-cat",
        "modelspec.date": "2026-11-21T07:04:14+00:00",
        "modelspec.resolution": "512x512",
        "modelspec.prediction_type": "epsilon",
        "modelspec.trigger_phrase": "monet style",
        "modelspec.license": "CreativeML Open RAIL-M",
        "raft.rounds": "2",
    }
    assert said.items() >= expected.items()
    parsed = {key: json.loads(said[key]) for key in said if said[key].startswith("{")}
    assert parsed == {
        "ss_tag_frequency": {"1_raft": {"monet style cat": 2, "monet style dog": 2}},
        "ss_dataset_dirs": {"1_raft": {"n_repeats": 1, "img_count": 4}},
        "ss_bucket_info": {"buckets": {"0": {"resolution": [512, 512], "count": 4}}},
        "raft.rewards": {"aesthetic": 0.5, "text_image": 1.0},
        "raft.evaluation": {
            "text_image": {"base": 20.0, "tuned": 26.25, "difference": 6.25, "ci95": [5.125, 7.5], "pairs": 64}
        },
    }
    assert "monet style" in said["modelspec.usage_hint"] and "512x512" in said["modelspec.usage_hint"]
    head, _, data = said["modelspec.thumbnail"].partition(",")
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert head == "data:image/jpeg;base64" and image.format == "JPEG" and max(image.size) == 256


def test_the_files_beside_it(run):
    plan = plan_export(run)
    write_export(plan)
    beside = json.loads(plan.target.with_suffix(".json").read_text(encoding="utf-8"))
    keys = {"description", "sd version", "activation text", "preferred weight", "negative text", "notes"}
    assert set(beside) == keys  # A1111's extensions-builtin/Lora/ui_edit_user_metadata.py
    assert (beside["sd version"], beside["activation text"], beside["preferred weight"]) == ("SD1", "monet style", 1.0)
    card = plan.target.with_suffix(".md").read_text(encoding="utf-8")
    assert "| text_image | 20.00 | 26.25 | +6.25 (+5.12 to +7.50) | 64 |" in card and "](monet-cat.png)" in card
    with Image.open(plan.target.with_suffix(".png")) as image:
        width, height = image.size
        assert (width, image.mode) == (516, "RGB") and height > 3 * 256
        red, blue = image.getpixel((100, height - 100)), image.getpixel((width - 100, height - 100))
    assert red == (255, 0, 0) and blue == (0, 0, 255)


def test_the_same_run_exported_twice_gives_the_same_bytes(run, tmp_path):
    first = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        plan = plan_export(run, out=tmp_path / name / "cat.safetensors")
        write_export(plan)
        first.append({path.name: path.read_bytes() for path in plan.files})
    assert len(first[0]) == 4 and first[0] == first[1]


def test_no_file_tells_a_path_a_host_or_a_user(tmp_path, monkeypatch):
    """A checkpoint and rewards from a private folder; what leaves the machine must not name it."""
    monkeypatch.setattr(socket, "gethostname", lambda: "annas-computer")
    monkeypatch.setattr(platform, "node", lambda: "annas-computer")
    for name in ("USER", "LOGNAME", "USERNAME"):
        monkeypatch.setenv(name, "anna")
    private = tmp_path / "anna" / "secret"
    private.mkdir(parents=True)
    config = CONFIG.replace("stable-diffusion-v1-5/stable-diffusion-v1-5", (private / "mix.safetensors").as_posix())
    config += f"[rewards.sources]\naesthetic = '{private.as_posix()}/head.pt'\n"
    run = write_run(
        private / "run", draw_lora({"unet": UNET}, rank=4), rank=4, alpha=2.0, config=config, evaluated=True
    )
    for format_, out in (("kohya", "a.safetensors"), ("diffusers", "b.safetensors")):
        plan = plan_export(run, format_=format_, out=private / out)
        write_export(plan)
        for path in plan.files:
            text = path.read_bytes()
            for word in (b"anna", b"secret", str(tmp_path).encode(), tmp_path.as_posix().encode()):
                assert word not in text, (path.name, word)
    assert metadata(private / "a.safetensors")["ss_sd_model_name"] == "mix"


def test_without_tags_no_file_tells_the_prompts(run):
    plan = plan_export(run, tags=False)
    write_export(plan)
    said = metadata(plan.target)
    assert not {"ss_tag_frequency", "modelspec.trigger_phrase"} & set(said)
    for path in plan.files:
        assert b"monet style" not in path.read_bytes()


def test_only_what_is_wanted_lies_beside_it(run, call):
    assert call("export", run, "--no-preview", "--no-sidecar", "--no-card")[0] == 0
    assert [path.name for path in (run / "export").iterdir()] == ["monet-cat.safetensors"]
    assert "modelspec.thumbnail" not in metadata(run / "export" / "monet-cat.safetensors")


def test_an_earlier_round_has_its_own_name_and_no_evaluation(run, call):
    code, out, _ = call("export", run, "--round", 1)
    assert code == 0 and "no preview: this round was not evaluated" in out
    said = metadata(run / "export" / "monet-cat-round1.safetensors")
    assert said["raft.rounds"] == "1" and said["ss_steps"] == "80" and "raft.evaluation" not in said
    assert not (run / "export" / "monet-cat-round1.png").exists()


@pytest.mark.parametrize(
    ("dtype", "number"), [("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)]
)
@pytest.mark.parametrize("format_", ["kohya", "diffusers"])
def test_the_dtype(run, dtype, number, format_):
    plan = plan_export(run, dtype=dtype, format_=format_)
    result = write_export(plan)
    assert {tensor.dtype for tensor in load_file(plan.target).values()} == {number}
    assert [note[:13] for note in result.notes] == (["it is in bf16"] if (dtype, format_) == ("bf16", "kohya") else [])


def test_the_diffusers_format_is_the_adapter_with_its_minimal_metadata_alone(run, call):
    code, out, _ = call("export", run, "--format", "diffusers", "--dtype", "fp32")
    assert code == 0 and 'weight_name="monet-cat.safetensors"' in out
    path = run / "export" / "monet-cat.safetensors"
    assert sorted(file.name for file in (run / "export").iterdir()) == ["monet-cat.md", path.name]
    adapter = run / "rounds" / "002" / "adapter" / "pytorch_lora_weights.safetensors"
    assert {n: t.tolist() for n, t in load_file(path).items()} == {n: t.tolist() for n, t in load_file(adapter).items()}
    said = metadata(path)
    assert set(said) == {"lora_adapter_metadata"}
    assert json.loads(said["lora_adapter_metadata"]) == json.loads(metadata(adapter)["lora_adapter_metadata"])


def test_without_attn2_a_layer_that_changes_nothing_tells_the_base(tmp_path):
    """InvokeAI and Draw Things look for that layer's width, 768, and for nothing else."""
    tensors = draw_lora({"unet": {"mid_block.resnets.0.conv1": (1280, 1280, 3, 3)}}, rank=2)
    run = write_run(tmp_path / "run", tensors, rank=2, alpha=2.0, rounds=1)
    plan = plan_export(run)
    write_export(plan)
    found = load_file(plan.target)
    telling = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    assert found[f"{telling}.lora_down.weight"].shape == (2, 768) and not found[f"{telling}.lora_up.weight"].any()
    assert found["lora_unet_mid_block_resnets_0_conv1.lora_down.weight"].shape == (2, 1280, 3, 3)
    assert found["lora_unet_mid_block_resnets_0_conv1.lora_up.weight"].shape == (1280, 2, 1, 1)
    assert inspect_file(plan.target).problems == ()


def test_the_layers_that_kohya_leaves_out_are_warned_of(tmp_path, call):
    tensors = draw_lora({"unet": UNET | {"conv_in": (320, 4, 3, 3)}}, rank=2)
    code, out, _ = call("export", write_run(tmp_path / "run", tensors, rank=2, alpha=2.0, rounds=1))
    assert code == 0 and "note: kohya's scripts leave out conv_in" in out


def test_a_velocity_model_is_told_as_modelspec_tells_it(tmp_path):
    config = CONFIG.replace("rounds = 2", 'rounds = 2\nprediction_type = "v_prediction"')
    plan = plan_export(write_run(tmp_path / "run", draw_lora({"unet": UNET}, rank=2), rank=2, alpha=2.0, config=config))
    write_export(plan)
    assert metadata(plan.target)["modelspec.prediction_type"] == "v"


# --- the carried model's --------------------------------------------------------------------------------------------


def test_a_pocket_runs_export_says_what_it_is(carried, call):
    code, out, _ = call("export", carried)
    path = carried / "export" / "pocket-monet-cat.safetensors"
    assert code == 0 and "no WebUI has that model" in out and "<lora:" not in out
    said = metadata(path)
    assert said["ss_base_model_version"] == "raft_pocket_v1" and said["modelspec.architecture"] == "raft-pocket/lora"
    assert json.loads(path.with_suffix(".json").read_text())["sd version"] == "Unknown"
    (problem,) = inspect_file(path).problems
    assert "the small model that raft_diffusion carries" in problem


def test_a_pocket_runs_export_is_called_pocket_and_never_installed(carried, call, tmp_path):
    (tmp_path / "ui" / "models" / "Lora").mkdir(parents=True)
    before = set(tmp_path.rglob("*"))
    code, _, err = call("export", carried, "--out", "cat.safetensors")
    assert code == 2 and "call it pocket-cat.safetensors" in err
    code, _, err = call("export", carried, "--install", "ui")
    assert code == 2 and "no WebUI has; it stays here" in err
    assert set(tmp_path.rglob("*")) == before


# --- refusals ---------------------------------------------------------------------------------------------------------

REFUSED = {
    "a format": (["--format", "koyha"], "unknown format 'koyha': use kohya"),
    "a dtype": (["--dtype", "fp8"], "unknown dtype 'fp8': use fp"),
    "another ending": (["--out", "cat.ckpt"], "ends in .safetensors"),
    "a name that WebUIs cannot say": (["--out", "my cat:1.safetensors"], "letters, digits, dots, _ and -"),
    "a reserved name": (["--out", "none.safetensors"], "mean something else there"),
    "a folder that is none": (["--out", "nowhere/cat.safetensors"], "there is no folder nowhere"),
    "a round that is none": (["--round", "7"], "has no round 7: it has 1 to 2"),
    "diffusers' format for a WebUI": (["--format", "diffusers", "--install", "."], "leave out --format"),
    "a folder that is no WebUI's": (["--install", "."], "no folder of AUTOMATIC1111, Forge or ComfyUI"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_before_anything_is_written(run, call, tmp_path, case):
    arguments, words = REFUSED[case]
    before = set(tmp_path.rglob("*"))
    code, _, err = call("export", run, *arguments)
    assert code == 2 and words in err and err.count("\n") == 1
    assert set(tmp_path.rglob("*")) == before


def test_a_folder_that_is_no_run(call, tmp_path):
    code, _, err = call("export", tmp_path)
    assert code == 2 and "holds no config.toml" in err


@pytest.mark.parametrize("ending", ["safetensors", "png", "json", "md"])
def test_nothing_is_overwritten_without_force(run, call, ending):
    (run / "export").mkdir()
    (run / "export" / f"monet-cat.{ending}").write_text("dear")
    code, _, err = call("export", run)
    assert code == 2 and f"monet-cat.{ending} is there already: give --force" in err
    assert [path.read_text() for path in (run / "export").iterdir()] == ["dear"]
    assert call("export", run, "--force")[0] == 0
    assert b"dear" not in (run / "export" / f"monet-cat.{ending}").read_bytes()


MAKE_WRONG = {
    "a DoRA": ({f"unet.{LAYER}.attn2.to_k.lora_magnitude_vector": torch.ones(640)}, "DoRA"),
    "a LoHa": ({f"unet.{LAYER}.attn2.to_k.hada_w1_a": torch.ones(2, 2)}, "LoHa"),
    "half a pair": ({"unet.mid_block.attentions.0.proj_in.lora_A.weight": torch.ones(4, 1280)}, "lora_B"),
    "a layer of another model": (draw_lora({"unet": {"down_blocks.7.proj": (3, 3)}}, rank=4), "no layer of Stable"),
    "another text encoder's": (draw_lora({"unet": {f"{LAYER}.attn2.to_k": (640, 96)}}, rank=4), "text 96 wide, and"),
    "numbers that are not finite": (
        {f"unet.{LAYER}.attn2.to_k.lora_B.weight": torch.full((640, 4), torch.nan)},
        "finite",
    ),
    "numbers too large": ({f"unet.{LAYER}.attn2.to_k.lora_B.weight": torch.full((640, 4), 1e6)}, "--dtype fp32"),
    "numbers too small": (
        {f"unet.{LAYER}.attn2.to_k.lora_B.weight": torch.full((640, 4), 1e-20)},
        "too small; export with --dtype fp32",
    ),
}


@pytest.mark.parametrize("case", MAKE_WRONG)
def test_an_adapter_that_cannot_be_exported_leaves_what_was_there(tmp_path, call, case):
    more, words = MAKE_WRONG[case]
    run = write_run(tmp_path / "run", draw_lora({"unet": UNET}, rank=4) | more, rank=4, alpha=4.0, rounds=1)
    (run / "export").mkdir()
    (run / "export" / "monet-cat.safetensors").write_text("dear")
    code, _, err = call("export", run, "--force")
    assert code == 2 and words in err
    assert [path.read_text() for path in (run / "export").iterdir()] == ["dear"]


def test_a_run_that_lost_its_date(run, call):
    (run / "environment.json").write_text("{}")
    assert "does not say when the run started" in call("export", run)[2]
    (run / "environment.json").write_text("{")
    assert "is no JSON" in call("export", run)[2]
    (run / "environment.json").unlink()
    assert "there is no run file" in call("export", run)[2]


@pytest.mark.parametrize(("size", "text"), [(1, "1 kB"), (411_000, "411 kB"), (6_400_000, "6.4 MB")])
def test_the_size_that_is_shown(tmp_path, size, text):
    (tmp_path / "a").write_bytes(bytes(size))
    assert _size(tmp_path / "a") == text


# --- the same pictures ------------------------------------------------------------------------------------------------

SETTINGS = Settings(width=64, height=64, num_inference_steps=6, guidance_scale=2.0, scheduler="DPM++ 2M", batch_size=4)
DRAWS = [Draw(Prompt("monet style cat"), k, 100 + k) for k in range(4)]


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    """(a run of the carried model with a LoRA on every group of layers, its pictures from the live adapter)."""
    policy = DiffusionPolicy(load(pocket.MODEL, device="cpu", dtype=torch.float32), settings=SETTINGS)
    groups = ("attention", "feed_forward", "projection", "convolution")
    policy.add_adapter(rank=4, alpha=6.0, targets=groups, text_encoder=True)
    base = pixels(policy.generate(DRAWS))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in policy.trained.parameters().items():
        if ".lora_B." in name:
            parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)
    folder = tmp_path_factory.mktemp("live")
    policy.save(folder / "adapter")
    tensors = load_file(folder / "adapter" / "pytorch_lora_weights.safetensors")
    run = write_run(folder / "run", tensors, rank=4, alpha=6.0, config=POCKET, rounds=1)
    tuned = pixels(policy.generate(DRAWS))
    assert np.abs(tuned - base).mean() > 5  # the LoRA does something
    return run, tuned


def pixels(samples):
    return np.stack([np.asarray(sample.data.image, dtype=int) for sample in samples])


@pytest.mark.parametrize("format_", ["kohya", "diffusers"])
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_diffusers_paints_with_the_file_as_the_live_adapter_does(live, tmp_path, dtype, format_):
    run, expected = live
    out = tmp_path / "pocket-a.safetensors"
    write_export(plan_export(run, out=out, dtype=dtype, format_=format_, sides=()))
    pipe = StableDiffusionPipeline.from_pretrained(pocket.MODEL, safety_checker=None, requires_safety_checker=False)
    pipe.to(torch.float32)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(out.parent, weight_name=out.name)
    noise = [torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(draw.seed)) for draw in DRAWS]
    images = pipe(
        [draw.prompt.text for draw in DRAWS], latents=torch.cat(noise), num_inference_steps=6, guidance_scale=2.0
    ).images
    wrong = np.abs(np.stack([np.asarray(image, dtype=int) for image in images]) - expected)
    if dtype == "fp32":
        assert wrong.max() <= 1
    else:
        assert (wrong <= 2).mean() >= 0.99


def test_other_settings_make_other_pictures(live):
    """The comparison above would see a LoRA at twice its strength: its pictures are far from these."""
    run, expected = live
    policy = DiffusionPolicy(load(pocket.MODEL, device="cpu", dtype=torch.float32), settings=replace(SETTINGS))
    policy.attach(run, scale=2.0)
    assert (np.abs(pixels(policy.generate(DRAWS)) - expected) <= 2).mean() < 0.5


# --- into a WebUI -----------------------------------------------------------------------------------------------------


def tree(root, *paths):
    for path in paths:
        place = root / path
        if place.suffix:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text("")
        else:
            place.mkdir(parents=True, exist_ok=True)
    return root


TREES = {
    "a fresh clone of AUTOMATIC1111": (["webui.py", "modules", "models"], "models/Lora"),
    "AUTOMATIC1111 after a start": (["models/Lora"], "models/Lora"),
    "Forge": (["webui.py", "modules", "modules_forge", "models/Lora"], "models/Lora"),
    "Forge's package": (["webui/webui.py", "webui/modules"], "webui/models/Lora"),
    "ComfyUI": (["main.py", "nodes.py", "comfy", "models/loras"], "models/loras"),
    "ComfyUI's portable package": (["ComfyUI/nodes.py", "ComfyUI/comfy"], "ComfyUI/models/loras"),
}


@pytest.mark.parametrize("case", TREES)
def test_installing_into_an_empty_tree(run, call, tmp_path, case):
    paths, place = TREES[case]
    ui = tree(tmp_path / "ui", *paths)
    code, out, _ = call("export", run, "--install", ui)
    assert code == 0 and "installed in" in out
    there = {path.name: path.read_bytes() for path in (ui / place).iterdir()}
    assert set(there) == {"monet-cat.safetensors", "monet-cat.png", "monet-cat.json"}
    assert all((run / "export" / name).read_bytes() == data for name, data in there.items())
    assert ("ComfyUI" in out.partition("installed in ")[2].partition(",")[0]) is ("loras" in place)


@pytest.mark.parametrize("name", ["monet-cat.safetensors", "monet-cat.json", "Monet-Cat.pt"])
def test_installing_never_overwrites_without_force(run, call, tmp_path, name):
    ui = tree(tmp_path / "ui", "models/Lora")
    (ui / "models" / "Lora" / name).write_text("dear")
    before = set(tmp_path.rglob("*"))
    code, _, err = call("export", run, "--install", ui)
    assert code == 2 and f"{name} is there already: give --force" in err
    assert set(tmp_path.rglob("*")) == before
    assert (ui / "models" / "Lora" / name).read_text() == "dear"


def test_installing_with_force_replaces(run, call, tmp_path):
    ui = tree(tmp_path / "ui", "models/loras")
    for _ in range(2):
        assert call("export", run, "--install", ui, "--force")[0] == 0
    assert len(list((ui / "models" / "loras").iterdir())) == 3


def test_a_lora_of_the_same_name_in_a_subfolder_is_refused_even_with_force(run, call, tmp_path):
    ui = tree(tmp_path / "ui", "models/Lora/styles/monet-cat.safetensors")
    code, _, err = call("export", run, "--install", ui, "--force")
    assert code == 2 and "WebUIs go by the name alone" in err


def test_a_file_where_the_folder_should_be(run, call, tmp_path):
    ui = tree(tmp_path / "ui", "webui.py", "modules", "models")
    (ui / "models" / "Lora").write_text("")
    code, _, err = call("export", run, "--install", ui)
    assert code == 2 and "is a file and no folder" in err
