"""`train --lora` on the carried model: a run that starts from a LoRA, and `evaluate --lora` beside a run's own."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import raft_diffusion as rd
from raft_diffusion import assemble, cli
from raft_diffusion.jobs import load_config
from raft_diffusion.lora.file import FILE_NAME

BASE = """
name = "tiny"
rounds = 1
threads = 1
device = "cpu"
[prompts]
train = ["monet style cat"]
[sampling]
width = 32
height = 32
num_inference_steps = 2
guidance_scale = 2.0
samples_per_prompt = 4
batch_size = 4
[rewards]
weights = { compressibility = 1.0 }
[evaluation]
pairs = 2
ood_pairs = 0
best_of = 2
"""
TUNING = "[tuning]\nsteps = 2\nbatch_size = 2\nlearning_rate = 1e-5\n"
LAYER = "mid_block.attentions.0.transformer_blocks.0"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    """kohya's format, rank 2 and alpha 3: a self-attention, a layer of no group, one of the text encoder."""
    unet, text = (make(part) for part in ("unet", "text_encoder"))
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for model, prefix, name in (
        (unet, "lora_unet_", f"{LAYER}.attn1.to_v"),
        (unet, "lora_unet_", "mid_block.resnets.0.time_emb_proj"),
        (text, "lora_te_text_model_", "encoder.layers.0.mlp.fc1"),
    ):
        weight = model.get_submodule(name).weight
        key = prefix + name.replace(".", "_")
        tensors[f"{key}.lora_down.weight"] = torch.randn(2, weight.shape[1], generator=generator) * 0.2
        tensors[f"{key}.lora_up.weight"] = torch.randn(weight.shape[0], 2, generator=generator) * 0.2
        tensors[f"{key}.alpha"] = torch.tensor(3.0)
    path = tmp_path_factory.mktemp("lora") / "start.safetensors"
    save_file(tensors, path)
    return path


def make(part):
    return getattr(rd.load_model("pocket", device="cpu", dtype=torch.float32), part)


@pytest.fixture
def write(tmp_path):
    def write(text=BASE + TUNING, name="run.toml"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return write


def start(source, lora, **more):
    with pytest.warns(UserWarning, match="the run starts from .* and takes from it: "):
        return load_config(source, lora=str(lora), **more)


def latents(samples):
    return torch.stack([sample.data.latent for sample in samples])


# --- settings ---------------------------------------------------------------------------------------------------------


def test_what_the_user_did_not_set_comes_from_the_file_with_one_note(write, lora):
    with pytest.warns(UserWarning, match="the run starts from") as told:
        config = load_config(write(), lora=str(lora))
    assert [str(note.message) for note in told] == [
        f"the run starts from {lora} and takes from it: tuning.rank=2, tuning.alpha=3.0, "
        'tuning.targets=["attention"], tuning.text_encoder=true'
    ]
    tuning = config.tuning
    assert (config.lora, tuning.rank, tuning.alpha) == (str(lora), 2, 3.0)
    assert (tuning.targets, tuning.text_encoder, tuning.steps) == (["attention"], True, 2)
    assert load_config(write(config.to_toml(), "again.toml")) == config  # all is said now, so nothing is taken


def test_a_presets_own_settings_are_not_the_users(lora):
    config = start("pocket-monet", lora)
    assert (config.tuning.rank, config.tuning.alpha, config.tuning.text_encoder) == (2, 3.0, True)


def test_more_layers_than_the_file_has_may_be_set(write, lora):
    config = start(write(), lora, changes=['tuning.targets=["attention", "projection"]'])
    assert config.tuning.targets == ["attention", "projection"] and config.tuning.rank == 2


@pytest.mark.parametrize(
    ("text", "changes", "message"),
    [
        (TUNING + "rank = 8\n", [], r"tuning\.rank is 8 and that of the LoRA 2: to start from .*, leave it out or set"),
        (TUNING, ["tuning.alpha=8"], r"tuning\.alpha is 8\.0 and that of the LoRA 3\.0: to start"),
        (
            TUNING,
            ['tuning.targets=["projection"]'],
            r'tuning\.targets is \["projection"\] and that of .* \["attention"\]',
        ),
        (TUNING + "text_encoder = false\n", [], r"tuning\.text_encoder is false and that of the LoRA true"),
        (TUNING + "rank = 8\nalpha = 4\n", [], r"rank is 8 .* 2; tuning\.alpha is 4\.0 .*, leave them out or set what"),
    ],
)
def test_what_the_user_set_must_go_with_the_file(write, lora, text, changes, message):
    with pytest.raises(ValueError, match=message):
        load_config(write(BASE + text), lora=str(lora), changes=changes)


def test_a_lora_that_is_none_is_refused(write, tmp_path):
    with pytest.raises(ValueError, match="there is no LoRA"):
        load_config(write(), lora=str(tmp_path / "none"))


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(write, lora, tmp_path):
    config = start(write(), lora, changes=["rounds=2"])
    return config, tmp_path / "run"


def test_the_first_candidates_are_those_of_base_plus_lora_and_tuning_goes_on_from_it(run, lora):
    config, folder = run
    rounds = rd.Run(config, folder).rounds()
    first = next(rounds)
    samples = [candidate.sample for group in first.groups for candidate in group.candidates]
    policy = assemble.make_base(config)
    base = latents(policy.generate([sample.draw for sample in samples]))
    policy.attach(lora)
    expected = latents(policy.generate([sample.draw for sample in samples]))
    torch.testing.assert_close(latents(samples), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, base, atol=1e-2)

    after = load_file(folder / "rounds" / "001" / "adapter" / FILE_NAME)
    given = load_file(lora)
    places = {
        f"unet.{LAYER}.attn1.to_v": f"lora_unet_{LAYER.replace('.', '_')}_attn1_to_v",
        "unet.mid_block.resnets.0.time_emb_proj": "lora_unet_mid_block_resnets_0_time_emb_proj",
        "text_encoder.text_model.encoder.layers.0.mlp.fc1": "lora_te_text_model_encoder_layers_0_mlp_fc1",
    }
    moved = [
        (after[f"{ours}.lora_{side}.weight"] - given[f"{theirs}.lora_{way}.weight"]).abs().max().item()
        for ours, theirs in places.items()
        for side, way in (("A", "down"), ("B", "up"))
    ]
    assert all(0 < step < 3e-5 for step in moved)  # two steps of AdamW at 1e-5

    second = next(rounds)
    later = [candidate.sample for group in second.groups for candidate in group.candidates]
    assert not torch.equal(latents(later), latents(samples))


@pytest.mark.slow
def test_an_interrupted_run_goes_on_from_its_own_round(run):
    config, folder = run
    next(rd.Run(config, folder).rounds())
    list(rd.Run(config, folder).rounds())
    whole = folder.with_name("whole")
    list(rd.Run(config, whole).rounds())
    ours, theirs = (load_file(path / "lora" / FILE_NAME) for path in (folder, whole))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_lora_of_one_layer_restarts_from_itself(lora, write):
    """tuning.restart begins every round where the first began."""
    config = start(write(), lora, changes=["tuning.restart=true"])
    policy = assemble.make_policy(config)
    before = {name: parameter.detach().clone() for name, parameter in policy.trained.parameters().items()}
    for parameter in policy.trained.parameters().values():
        parameter.data.normal_()
    policy.trained.reset()
    assert all(torch.equal(parameter, before[name]) for name, parameter in policy.trained.parameters().items())


@pytest.mark.slow
def test_evaluate_compares_with_another_lora_and_keeps_the_runs_own(write, lora, tmp_path, monkeypatch, capsys):
    root = tmp_path / "run"

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["raft-diffusion", *map(str, arguments)])
        monkeypatch.setattr(cli, "_note", lambda *_, **__: None)
        cli.main()

    text = BASE.replace("guidance_scale", "lora_scale = 0.25\nguidance_scale") + TUNING + "rank = 1\n"
    call("train", write(text), "--out", root)
    own = (root / "evaluation" / "evaluation.json").read_bytes()
    report = (root / "report.html").read_bytes()
    call("evaluate", root, "--lora", lora, "--json", tmp_path / "numbers.json")
    assert (root / "evaluation" / "evaluation.json").read_bytes() == own
    assert (root / "report.html").read_bytes() == report
    other = json.loads((root / "evaluations" / "start" / "evaluation" / "evaluation.json").read_text(encoding="utf-8"))
    assert other == json.loads((tmp_path / "numbers.json").read_text(encoding="utf-8"))
    before, after = (data["rewards"]["compressibility"] for data in (json.loads(own), other))
    assert other["settings"]["lora_scale"] == 1  # the run's own strength is that of its own LoRA
    assert before["base"] == after["base"] and before["tuned"] != after["tuned"]
    assert f"pictures and numbers: {root / 'evaluations' / 'start'}" in capsys.readouterr().out.replace("\n", "")
    call("train", tmp_path / "run.toml", "--out", root)  # a run is not disturbed by it
    assert "this run is finished" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        call("evaluate", root, "--lora", tmp_path / "none")
    assert f"there is no LoRA {tmp_path / 'none'}" in capsys.readouterr().err
