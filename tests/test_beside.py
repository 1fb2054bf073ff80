"""Runs of one job side by side: the same draws, their cost, and what cannot be compared."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from raft_diffusion import beside, compare, jobs, runs
from raft_diffusion.cli import app
from raft_diffusion.core.config import Config
from raft_diffusion.core.timing import FILE, read_seconds, seconds_until, write_seconds
from raft_diffusion.planning.nfe import evaluations

SMALL = [
    "threads=1",
    "sampling.num_inference_steps=2",
    "sampling.samples_per_prompt=2",
    "tuning.steps=1",
    "tuning.batch_size=2",
    "selection.best=1",
    "guard.enabled=false",
    "evaluation.pairs=4",
    "evaluation.ood_pairs=4",
]


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """Two rounds of the default, and all of it in one round."""
    folder = tmp_path_factory.mktemp("beside")
    for name, recipe in (("mine", None), ("single", "one-shot")):
        run = runs.Run(
            jobs.load_config("pocket-resolution", changes=[*SMALL, "rounds=2"], recipe=recipe), folder / name
        )
        for _ in run.rounds():
            pass
    return folder


@pytest.mark.slow
def test_every_run_is_measured_on_the_first_ones_draws(job):
    config, seen = Config.load(job / "mine" / "config.toml"), []
    result = beside.compare_runs(
        config, job / "mine", [job / "single"], pairs=4, progress=lambda *done: seen.append(done)
    )
    assert seen == [("measure", 1, 2), ("measure", 2, 2)]
    base, mine, single = result["rows"]
    assert [row["run"] for row in result["rows"]] == ["base", "mine", "single"]
    assert (mine["rounds"], single["rounds"]) == (2, 1)
    last = compare.compare_rounds(config, job / "mine", pairs=4)["steps"]["2"]["rounds"]
    assert (base["scores"], mine["scores"]) == (last[0]["scores"], last[-1]["scores"])
    assert (mine["drift"], mine["frechet"]) == (last[-1]["drift"], last[-1]["frechet"])
    for name, change in result["against"]["single"].items():
        expected = mine["scores"][name]["mean"] - single["scores"][name]["mean"]
        assert change["difference"] == pytest.approx(expected) and change["ci95"][0] <= expected <= change["ci95"][1]
    assert json.loads((job / "mine" / beside.RESULT).read_text(encoding="utf-8")) == result


def test_one_shot_samples_and_tunes_as_much_as_the_rounds_do(job):
    """By hand: 10 prompts x 2 pictures x 2 steps x 2 for guidance, in 2 rounds; 2 steps of 2 pictures of tuning."""
    for name, rounds in (("mine", 2), ("single", 1)):
        spent = evaluations(Config.load(job / name / "config.toml"), rounds)
        assert (spent.sampling, spent.tuning) == (10 * 2 * 2 * 2 * 2, 2 * 2)


@pytest.mark.parametrize(
    ("changes", "sampling", "tuning"),
    [
        (["sampling.collect_guidance_scale=none"], 20 * 2 * 3, 3 * 2),  # at the user's guidance 1 one a step
        (["sampling.collect_guidance_decay=0"], 20 * 2 * 2 + 2 * (15 * 2 * 2 + 5 * 2), 3 * 2),  # 3 of 4 are the base's
        (["sampling.collect_guidance_decay=0", "sampling.base_share=0"], 20 * 2 * (2 + 1 + 1), 3 * 2),
        (["tuning.anti_drift=0.5"], 20 * 2 * 2 * 3, 3 * 2 * 2),  # the base looks, too
        (["tuning.gradient_accumulation=4"], 20 * 2 * 2 * 3, 3 * 8),
        (["sampling.scheduler=Heun"], 20 * 3 * 2 * 3, 3 * 2),  # the last step looks once
    ],
)
def test_network_evaluations_are_those_counted_by_hand(changes, sampling, tuning):
    config = jobs.load_config("pocket-resolution", changes=[*SMALL, "rounds=3", *changes])
    spent = evaluations(config, 3)
    assert (spent.sampling, spent.tuning) == (sampling, tuning)


def test_a_round_says_how_long_it_took(job, tmp_path):
    first, second = (read_seconds(job / "mine", index) for index in (1, 2))
    assert first and second and seconds_until(job / "mine", 2) == pytest.approx(first + second)
    assert seconds_until(job / "mine", 3) is None and seconds_until(job / "mine", 0) == 0
    (tmp_path / "rounds" / "001").mkdir(parents=True)
    for damaged in ("", "[]", '{"seconds": "x"}', '{"seconds": NaN}', '{"seconds": -1}'):
        (tmp_path / "rounds" / "001" / FILE).write_text(damaged)
        assert read_seconds(tmp_path, 1) is None
    write_seconds(tmp_path, 1, 2.5)
    assert read_seconds(tmp_path, 1) == 2.5


def test_the_command_shows_a_line_for_each_run(job):
    found = CliRunner().invoke(
        app, ["evaluate", str(job / "mine"), "--beside", str(job / "single"), "--pairs", "4"], env={"COLUMNS": "120"}
    )
    assert found.exit_code == 0, found.output
    lines = found.output.splitlines()
    rows = [
        line.split()[0] for line in lines if line.startswith(("base ", "mine ", "single ")) and " against " not in line
    ]
    assert rows == ["base", "mine", "single"]
    assert any(line.startswith("mine against single, object: ") for line in lines)


def refused(job, *arguments):
    found = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
    assert isinstance(found.exception, ValueError)
    return str(found.exception)


def test_what_cannot_be_compared_is_refused(job, tmp_path):
    mine = job / "mine"
    assert "holds no finished run; train it first" in refused(job, mine, "--beside", tmp_path)
    assert "mine is the name of two things to compare" in refused(job, mine, "--beside", mine)
    other = tmp_path / "other"
    shutil.copytree(job / "single", other)
    text = (other / "config.toml").read_text(encoding="utf-8")
    (other / "config.toml").write_text(text.replace("rank = 16", "rank = 8"), encoding="utf-8")
    assert "tuning.rank is 8 in" in refused(job, mine, "--beside", other)
    (other / "config.toml").write_text(text.replace('model = "pocket"', 'model = "else"'), encoding="utf-8")
    assert "is a run of else and" in refused(job, mine, "--beside", other)
    assert "--each-round and --beside measure different things" in refused(
        job, mine, "--beside", job / "single", "--each-round"
    )
    assert "--pairs belongs to" in refused(job, mine, "--pairs", 4)
