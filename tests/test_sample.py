"""`raft-diffusion sample` on the carried model: pictures, names, sheets, refusals that write nothing."""

import json
import re
from pathlib import Path

import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from raft_diffusion import sampling
from raft_diffusion.commands.sample import sample
from raft_diffusion.core.config import Config
from raft_diffusion.core.records import Prompt
from raft_diffusion.lora.file import FILE_NAME
from raft_diffusion.webui import parse_infotext

PLAIN = {"count": 1, "seed": 0, "compare": False}


def order(texts=("cat",), run=None, negative=None, **given):
    fixed = {key: given.pop(key) for key in list(given) if key in PLAIN}
    return sampling.make_order(list(texts), run, given, negative=negative, **PLAIN | fixed)


@pytest.fixture
def app():
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(sample)
    return app


@pytest.fixture
def call(app, monkeypatch, tmp_path):
    """Run the command in an empty folder with two fast steps of 16 x 16 pixels; an exception comes through."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        small = ["--device", "cpu", "--threads", "1", "--steps", "2"]
        result = CliRunner().invoke(app, [*small, *arguments], catch_exceptions=False, standalone_mode=False)
        assert result.exit_code == 0
        return result.output

    return call


@pytest.fixture(scope="session")
def lora(tmp_path_factory):
    """A folder with a LoRA for the carried model that changes its pictures."""
    from raft_diffusion.diffusion import DiffusionPolicy, Settings, load

    settings = Settings(width=16, height=16, num_inference_steps=2, guidance_scale=1, scheduler="Euler", batch_size=1)
    policy = DiffusionPolicy(load("pocket", device="cpu", dtype=torch.float32), settings=settings)
    policy.add_adapter(rank=2, alpha=2.0)
    generator = torch.Generator().manual_seed(0)
    for parameter in policy.trained.parameters().values():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    folder = tmp_path_factory.mktemp("lora")
    policy.save(folder)
    return folder


@pytest.fixture
def run(lora, tmp_path):
    """A run's folder as it stands after its first round."""
    folder = tmp_path / "runs" / "mine"
    (folder / "rounds" / "001" / "adapter").mkdir(parents=True)
    (folder / "rounds" / "001" / "round.json").write_text("{}")
    (folder / "rounds" / "001" / "adapter" / FILE_NAME).write_bytes((lora / FILE_NAME).read_bytes())
    config = Config.parse(
        'name = "mine"\n[prompts]\ntrain = ["cat", "dog"]\n'
        '[sampling]\nwidth = 24\nheight = 16\nnum_inference_steps = 3\nguidance_scale = 1.5\nscheduler = "Euler a"\n'
        'clip_skip = 2\nnegative_prompt = "tree"\nbatch_size = 3\n'
    )
    (folder / "config.toml").write_text(config.to_toml())
    return folder


def info(path):
    with Image.open(path) as image:
        return parse_infotext(image.info["parameters"]), image.size


def test_pictures_are_numbered_on_and_carry_their_settings(call, tmp_path):
    arguments = ("monet style cat", "photo dog", "-n", "2", "--seed", "5", "--width", "24", "--height", "16")
    arguments += ("--sampler", "euler A", "--cfg-scale", "1.5", "--negative-prompt", "tree", "--out", "there/new")
    output = call(*arguments)
    folder = tmp_path / "there" / "new"
    names = ["00000-5.png", "00001-6.png", "00002-5.png", "00003-6.png"]
    assert sorted(path.name for path in folder.iterdir()) == [*names, "grid-0000.png"]
    assert [Path(line).name for line in output.split("\n")[-6:-1]] == [*names, "grid-0000.png"]
    read, size = info(folder / "00003-6.png")
    assert size == (24, 16) and (read.width, read.height, read.steps) == (24, 16, 2)
    assert (read.prompt, read.negative_prompt, read.seed) == ("photo dog", "tree", 6)
    assert (read.sampler, read.cfg_scale, read.model) == ("Euler a", 1.5, "pocket")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    call("monet style cat", "-n", "1", "--seed", "5", *arguments[6:])
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert after.keys() - before.keys() == {"00004-5.png"}  # one picture needs no sheet
    assert all(after[name] == content for name, content in before.items())
    assert after["00004-5.png"] == after["00000-5.png"]


def test_the_base_and_the_lora_side_by_side(call, tmp_path, lora):
    named = tmp_path / "style.safetensors"
    named.write_bytes((lora / FILE_NAME).read_bytes())
    small = ("--width", "16", "--height", "16", "--out", "out")
    call("cat", "dog", "-n", "2", "--lora", str(named), "--lora-scale", "0.5", "--compare", "--json", "n.json", *small)
    numbers = json.loads((tmp_path / "n.json").read_text())
    assert numbers["grid"] == str(Path("out") / "grid-0000.png")
    told = [(row["prompt"], row["seed"], row["lora"]) for row in numbers["pictures"]]
    both = [("cat", 0), ("cat", 1), ("dog", 0), ("dog", 1)]
    assert told == [(*each, False) for each in both] + [(*each, True) for each in both]
    texts = [info(tmp_path / row["path"])[0].lora for row in numbers["pictures"]]
    assert texts == [{}] * 4 + [{"style": 0.5}] * 4
    base, tuned = (Image.open(tmp_path / numbers["pictures"][i]["path"]) for i in (2, 6))
    assert base.tobytes() != tuned.tobytes()
    with Image.open(tmp_path / numbers["grid"]) as sheet:  # the dog's rows are the third and the fourth
        left, top = sheet.width - 2 * 128 - 4, sheet.height - 4 * 132 + 4
        for number, image in ((2, base), (3, tuned)):
            corner = (left, top + number * 132)
            cell = sheet.crop((*corner, corner[0] + 128, corner[1] + 128))
            assert cell.tobytes() == image.resize((128, 128), Image.Resampling.NEAREST).tobytes()
    call("cat", "-n", "1", "--no-grid", *small)
    plain = Image.open(tmp_path / "out" / "00008-0.png")
    assert plain.tobytes() == Image.open(tmp_path / "out" / "00000-0.png").tobytes()


def test_a_run_gives_its_settings_and_its_lora(call, tmp_path, run):
    call("--run", str(run), "-n", "1", "--no-grid")
    paths = sorted((tmp_path / "samples").iterdir())
    assert [info(path)[0].prompt for path in paths] == ["cat", "dog"]
    read, size = info(paths[0])
    assert size == (24, 16) and (read.sampler, read.cfg_scale, read.clip_skip) == ("Euler a", 1.5, 2)
    assert (read.steps, read.negative_prompt, read.adapter, read.lora) == (2, "tree", "mine 1", {})


def test_a_run_without_options_is_taken_as_it_is(run):
    taken = order([], run)
    assert taken.steps == 3 and taken.batch_size == 3 and taken.lora == run
    assert taken.prompts == (Prompt("cat", negative="tree"), Prompt("dog", negative="tree"))
    assert order(["bird"], run, negative="").prompts == (Prompt("bird"),)
    assert order([], run, width=32, sampler="Heun", lora=Path("x")).width == 32


def test_the_strength_is_the_runs_for_its_own_lora_alone(run):
    config = Config.load(run / "config.toml").with_overrides(["sampling.lora_scale=0.7"])
    (run / "config.toml").write_text(config.to_toml())
    assert order([], run, lora_scale=None).lora_scale == 0.7
    assert order([], run, lora_scale=0.3).lora_scale == 0.3
    assert order([], run, lora=Path("x"), lora_scale=None).lora_scale == 1.0
    assert order(["cat"], lora=Path("x"), lora_scale=None).lora_scale == 1.0


def test_defaults_fit_the_model():
    small, large = order(), order(model="owner/name")
    assert (small.width, small.height, small.steps, small.cfg_scale) == (64, 64, 12, 2.0)
    assert (large.width, large.height, large.steps, large.cfg_scale) == (512, 512, 25, 7.5)
    assert order(count=3, seed=4).draws()[2].seed == 6


def test_what_a_model_needs_comes_from_the_run_unless_the_model_is_another(run):
    keys = ("revision", "variant", "prediction_type", "precision")
    changes = ["model=owner/name", "revision=v2", "variant=fp16", "prediction_type=v_prediction", "precision=bf16"]
    config = Config.load(run / "config.toml").with_overrides(changes)
    (run / "config.toml").write_text(config.to_toml())

    def chosen(*arguments, **given):
        taken = order([], *arguments, **given) if arguments else order(**given)
        return tuple(getattr(taken, key) for key in keys)

    assert chosen(run) == chosen(run, model="owner/name") == ("v2", "fp16", "v_prediction", "bf16")
    assert chosen(run, variant="x", prediction_type="epsilon") == ("v2", "x", "epsilon", "bf16")
    assert chosen(run, model="pocket") == (None, None, None, "bf16")
    assert chosen() == (None, None, None, "auto")
    assert chosen(model="owner/name", revision="v3") == ("v3", None, None, "auto")


def test_the_models_options_reach_it(monkeypatch):
    from raft_diffusion import diffusion

    given = {}

    def stop(model, **options):
        given.update(options, model=model)
        raise KeyboardInterrupt

    monkeypatch.setattr(diffusion, "load", stop)
    taken = order(model="owner/name", revision="r", variant="v", prediction_type="epsilon", precision="bf16")
    with pytest.raises(KeyboardInterrupt):
        sampling.load_policy(taken, device="cpu", threads=1)
    assert (given["model"], given["revision"], given["variant"]) == ("owner/name", "r", "v")
    assert (given["prediction_type"], given["dtype"]) == ("epsilon", torch.bfloat16)


def test_a_checkpoint_has_pictures_of_multiples_of_8(tmp_path):
    (tmp_path / "m.safetensors").touch()
    with pytest.raises(ValueError, match="--width is 60; this model needs a multiple of 8, such as 64"):
        sampling.check(order(model=str(tmp_path / "m.safetensors"), width=60), tmp_path)


def test_prompts_may_come_from_a_file_and_keep_their_own_negative(tmp_path):
    (tmp_path / "p.csv").write_text("prompt,negative_prompt\ncat,dog\nbird,\n")
    taken = order([str(tmp_path / "p.csv"), "tree"], negative="sea")
    assert [(p.text, p.negative) for p in taken.prompts] == [("cat", "dog"), ("bird", "sea"), ("tree", "sea")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "^give a prompt, such as"),
        (("cat", "--width", "30"), "--width is 30; this model needs a multiple of 4, such as 32"),
        (("cat", "--height", "10"), "--height is 10; this model needs a multiple of 4, such as 8"),
        (("cat", "--sampler", "Eulr"), "unknown scheduler 'Eulr'; nearest: Euler"),
        (("cat", "--sampler", "DPM++ SDE Karras"), r"the nearest is 'DPM\+\+ 2M SDE Karras'"),
        (("cat", "--lora", "nowhere"), "there is no LoRA nowhere"),
        (("cat", "--run", "nowhere"), "nowhere holds no config.toml, so it is no run"),
        (("cat", "--compare"), "give --lora or --run too"),
        (("cat", "--out", "file/below"), "--out .*file is no folder that can be written to"),
        (("cat", "--json", "none/n.json"), "--json none/n.json: cannot write there"),
    ],
)
def test_what_cannot_work_is_refused_before_the_model_is_loaded(call, tmp_path, monkeypatch, arguments, message):
    (tmp_path / "file").touch()
    monkeypatch.setattr(sampling, "load_policy", lambda *_, **__: pytest.fail("the model was loaded"))
    with pytest.raises(ValueError, match=message):
        call(*arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cat", "--clip-skip", "3"), "clip_skip is 3; this model's text encoder has 2 layers, so 1 to 2"),
        (("cat", "--vae", "vae.ckpt"), "there is no VAE vae.ckpt"),
        (("cat", "--sampler", "LCM", "--steps", "60"), "the scheduler 'LCM' cannot take 60 steps"),
        (("cat", "--model", "./none"), "no model at './none'"),
    ],
)
def test_what_the_model_refuses_leaves_nothing(call, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        call(*arguments)
    assert list(tmp_path.iterdir()) == []


def test_help_shows_options_and_examples(app):
    result = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"})
    text = re.sub(r"\x1b\[[0-9;]*m", "", result.output)
    assert result.exit_code == 0 and "--negative-prompt" in text and "Example: raft-diffusion sample" in text


def test_pictures_that_are_done_are_on_disk_when_the_rest_fails(tmp_path):
    wanted = order(count=3, width=16, height=16, steps=2, batch_size=1)
    policy = sampling.load_policy(wanted, device="cpu", threads=1)

    def stop(done):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sampling.sample_pictures(wanted, policy, tmp_path / "out", stop)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["00000-0.png", "00001-1.png"]
