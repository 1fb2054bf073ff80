"""A run in Python: its pictures, scores and curve, where no folder is given too."""

import json
import statistics
from pathlib import Path

import pytest
import torch
from PIL import ImageChops

import raft_diffusion as rd
from raft_diffusion import assemble
from raft_diffusion.core.config import Config
from raft_diffusion.core.records import Draw, Prompt
from raft_diffusion.scorers import make_tower
from raft_diffusion.webui import parse_infotext

TINY = """
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
negative_prompt = "dog"
samples_per_prompt = 2
batch_size = 4
[tuning]
rank = 2
alpha = 2
learning_rate = 0.01
steps = 2
batch_size = 1
[guard]
pairs = 8
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of one round, in the folder that it chose."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("work"))
        run = rd.Run(Config.parse(TINY))
        run.start_curve = run.curve()
        list(run.rounds())
        yield run
    torch.set_num_threads(threads)


def pixels(samples):
    return [sample.data.image.tobytes() for sample in samples]


def levels_apart(one, other):
    """The largest difference of two pictures, of 255; a batch of another size rounds otherwise."""
    return max(high for _, high in ImageChops.difference(one.data.image, other.data.image).getextrema())


def test_without_a_folder_the_settings_name_it(run):
    assert run.folder.parent == Path("runs") and run.folder.name.startswith("tiny-")
    assert (run.folder / "lora").is_dir()


def test_base_pictures_are_those_of_the_model_alone(run):
    draws = [Draw(Prompt("photo house", negative="dog"), k, 7 + k) for k in range(2)]
    model = assemble.make_base(run.config)
    alone = model.generate(draws, settings=assemble.user_settings(run.config))
    assert pixels(run.sample("photo house", 2, seed=7, base=True)) == pixels(alone)
    assert pixels(run.sample("photo house", 2, seed=7)) != pixels(alone)


def test_a_picture_depends_on_its_own_seed_and_says_how_it_was_made(run):
    first, second = run.sample("photo house", 2, seed=7, num_inference_steps=1)
    (alone,) = run.sample("photo house", 1, seed=8, num_inference_steps=1)
    assert levels_apart(alone, second) <= 1 < levels_apart(alone, first)
    said = parse_infotext(first.data.image.info["parameters"])
    assert (said.prompt, said.seed, said.steps) == ("photo house", 7, 1)


def test_other_settings_hold_for_the_call_alone(run):
    (large,) = run.sample("photo house", 1, width=64, height=48)
    (usual,) = run.sample("photo house", 1)
    assert large.data.image.size == (64, 48) and usual.data.image.size == (32, 32)


def test_samples_are_scored_by_every_reward_of_the_run(run):
    (scored,) = run.score(run.sample("photo house", 1))
    tower = make_tower("pocket", device="cpu")
    assert scored.scores["text_image"] == pytest.approx(tower([scored.sample])["text_image"][0])


def test_the_curve_is_the_mean_of_what_the_guard_saw(run):
    assert run.start_curve == []
    looks = [json.loads((run.folder / place / "guard.json").read_text()) for place in ("start", "rounds/001")]
    points = run.curve()
    assert [number for number, _ in points] == [0, 1]
    assert [point.mean for _, point in points] == pytest.approx([statistics.fmean(look["scores"]) for look in looks])
    assert points[1][1].low <= points[1][1].mean <= points[1][1].high


@pytest.mark.parametrize(
    ("count", "changes", "sentence"),
    [(0, {}, "0 images cannot be sampled"), (1, {"guidance_scale": -1}, "guidance_scale is -1")],
)
def test_what_cannot_be_sampled_is_refused(run, count, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        run.sample("photo house", count, **changes)
