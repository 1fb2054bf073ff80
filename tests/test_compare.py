"""The base against every round, measured on the same draws."""

import io
import itertools
import json

import numpy as np
import pytest

from raft_diffusion import compare, jobs, runs
from raft_diffusion.core.config import Config

SMALL = [
    "rounds=2",
    "threads=1",
    "sampling.num_inference_steps=2",
    "sampling.samples_per_prompt=2",
    "sampling.groups_per_prompt=1",
    "selection.best=1",
    "tuning.steps=1",
    "tuning.batch_size=2",
    "guard.enabled=false",
    "evaluation.ood_pairs=4",
]


def test_the_frechet_distance_of_two_gaussians_is_the_closed_form():
    """Diagonal covariances: |m1 - m2|^2 + sum (s1 - s2)^2 (Dowson and Landau 1982)."""
    random_ = np.random.default_rng(0)
    deviations = np.array([1.0, 0.5, 2.0]), np.array([1.5, 0.5, 1.0])
    first = random_.standard_normal((40_000, 3)) * deviations[0]
    second = random_.standard_normal((40_000, 3)) * deviations[1] + [1.0, 0.0, 0.0]
    expected = 1.0 + np.square(deviations[0] - deviations[1]).sum()
    assert compare.frechet_distance(first, second) == pytest.approx(expected, rel=0.03)


def test_the_frechet_distance_of_correlated_features_is_the_papers_formula():
    linalg = pytest.importorskip("scipy.linalg")
    random_ = np.random.default_rng(1)
    first, second = random_.standard_normal((30, 5)) @ random_.standard_normal((5, 5)), random_.random((50, 5))
    covariances = [np.cov(x, rowvar=False) for x in (first, second)]
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    means = first.mean(0) - second.mean(0)
    expected = means @ means + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert compare.frechet_distance(first, second) == pytest.approx(expected)
    assert compare.frechet_distance(first, first) == pytest.approx(0, abs=1e-9)


def test_diversity_is_the_mean_over_the_pairs_of_each_prompt():
    features = np.random.default_rng(2).standard_normal((7, 4))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    texts = ["a", "b", "a", "b", "a", "b", "alone"]
    means = [
        np.mean([1 - features[i] @ features[j] for i, j in itertools.combinations(rows, 2)])
        for rows in ([0, 2, 4], [1, 3, 5])
    ]
    assert compare.diversity_within(features, texts, [1.0] * 7) == pytest.approx(np.mean(means))
    without = 1 - features[0] @ features[4]
    some = [1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0]
    assert compare.diversity_within(features, texts, some) == pytest.approx(np.mean([without, means[1]]))
    assert compare.diversity_within(features, texts, [0.0] * 7) == 0


def test_drift_is_0_for_the_base_and_1_for_pictures_of_other_seeds():
    random_ = np.random.default_rng(3)
    base, other = random_.standard_normal((2, 4000, 1, 4, 4))
    assert compare.drift(list(base), list(base)) == 0
    assert compare.drift(list(base), list(other)) == pytest.approx(1, rel=0.02)


def test_wins_are_counted_by_prompt_and_a_tie_is_nobodys():
    contenders = {"base": [1.0, 5.0, 2.0, 2.0], "1": [2.0, 1.0, 2.0, 2.0], "2": [3.0, 0.0, 0.0, 0.0]}
    assert compare.win_count(contenders, ["a", "b", "c", "c"]) == {"base": 1, "1": 0, "2": 1}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("compare") / "run"
    config = jobs.load_config("pocket-resolution", changes=SMALL)
    for _ in runs.Run(config, root).rounds():
        pass
    return root


@pytest.mark.slow
def test_every_round_is_measured_on_the_bases_draws_and_only_once(run, monkeypatch):
    config, seen = Config.load(run / "config.toml"), []
    result = compare.compare_rounds(config, run, pairs=4, progress=lambda *done: seen.append(done))
    assert seen == [("measure", n, 3) for n in (1, 2, 3)]
    ((steps, found),) = result["steps"].items()
    assert steps == "2" and [row["round"] for row in found["rounds"]] == [0, 1, 2]
    base, first, _ = found["rounds"]
    assert base["drift"] == 0 < first["drift"]
    assert set(base["scores"]) >= {"object", "style", "text_image", "held_out.text_image", "object_ood"}
    assert all(score["difference"] == 0 and score["win_rate"] == 0.5 for score in base["scores"].values())
    assert json.loads((run / "evaluation" / "rounds.json").read_text(encoding="utf-8")) == result
    monkeypatch.setattr(compare, "measure", lambda *_: pytest.fail("measured again"))
    assert compare.compare_rounds(config, run, pairs=4) == result


@pytest.mark.slow
def test_a_change_is_measured_anew_and_other_step_counts_lie_beside(run):
    config = Config.load(run / "config.toml")
    few = compare.compare_rounds(config, run, pairs=4, steps=[2, 3], numbers=[2])
    assert list(few["steps"]) == ["2", "3"]
    assert [row["round"] for row in few["steps"]["3"]["rounds"]] == [0, 2]
    more = compare.compare_rounds(config, run, pairs=6, numbers=[2])
    assert more["settings"]["pairs"] == 6 and more["steps"]["2"]["rounds"] != few["steps"]["2"]["rounds"]


def test_the_numbers_are_those_of_the_final_evaluation(run):
    """The last round's means equal what `evaluate` says of the finished run, on the same draws."""
    from raft_diffusion.assemble import make_policy, make_rewards, run_evaluation

    config = Config.load(run / "config.toml").with_overrides(["evaluation.pairs=4", "evaluation.ood_pairs=4"])
    policy = make_policy(config)
    policy.load(run / "lora")
    expected = run_evaluation(config, policy, make_rewards(config), run / "again")
    row = compare.compare_rounds(config, run, pairs=4)["steps"]["2"]["rounds"][-1]
    for kind in ("judge", "rewards"):
        for name, numbers in expected[kind].items():
            assert row["scores"][name]["mean"] == pytest.approx(numbers["tuned"], rel=1e-5)


def test_a_round_that_is_not_there_is_named(run, tmp_path):
    config = Config.load(run / "config.toml")
    with pytest.raises(ValueError, match=r"has no round 7; it has 1 to 2$"):
        compare.compare_rounds(config, run, numbers=[7])
    with pytest.raises(ValueError, match="has no complete round to compare with the base; train it first"):
        compare.rounds_of(tmp_path, None)


@pytest.mark.parametrize(("width", "told"), [(80, False), (160, True)])
def test_the_table_fits_a_narrow_terminal_and_always_says_the_round(width, told):
    from rich.console import Console

    from raft_diffusion.commands.evaluate import table

    names = ("object", "style", "object_ood", "style_ood", "held_out.text_image")
    score = {"mean": 0.81, "difference": 0.4, "ci95": [0.42, 0.81], "win_rate": 0.9}
    rows = [
        {
            "round": number,
            "scores": dict.fromkeys(names, score),
            "diversity": 0.14,
            "drift": 0.3,
            "unet_evaluations": {"sampling": 123_456},
            "seconds": 600.0,
        }
        for number in range(3)
    ]
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table(rows, title="12 sampler steps", width=width))
    lines = console.export_text().splitlines()
    assert not any("\u2026" in line for line in lines)  # nothing was cut
    assert [line.split()[0] for line in lines[-3:]] == ["0", "1", "2"]
    assert ("123,456" in lines[-1]) is told
