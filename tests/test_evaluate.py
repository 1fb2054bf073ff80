"""Before and after, on toy pictures of one colour whose every number can be had by hand."""

import json
import statistics
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from raft_diffusion.core.prompts import draw_round
from raft_diffusion.core.records import Draw, Prompt, Sample
from raft_diffusion.evaluate import Plan, Side, evaluate, oracle

CAT, DOG, HOUSE = Prompt("a cat"), Prompt("a dog"), Prompt("a house")
BASE = {CAT: [10, 120, 30, 200], DOG: [50, 60], HOUSE: [150, 20]}
TUNED = {CAT: [110, 130, 50, 210], DOG: [52, 62], HOUSE: [100, 10]}


def sample(prompt: Prompt, k: int, red: int) -> Sample:
    return Sample(Draw(prompt, k, seed=k), SimpleNamespace(image=Image.new("RGB", (2, 2), (red, 0, 0))))


def red(image: Image.Image) -> int:
    return image.getpixel((0, 0))[0]


def bright(samples):
    return {"bright": [float(red(s.data.image)) for s in samples]}


def dark(samples):
    return {"dark": [-float(red(s.data.image)) for s in samples]}


class ToyPolicy:
    """Paints the k-th picture of a prompt in a known red, and another one once it is tuned."""

    def __init__(self):
        self.tuned = True
        self.calls = []

    @contextmanager
    def base(self):
        self.tuned = False
        yield
        self.tuned = True

    def generate(self, draws):
        self.calls.append((self.tuned, list(draws)))
        reds = TUNED if self.tuned else BASE
        return [Sample(d, SimpleNamespace(image=sample(d.prompt, d.k, reds[d.prompt][d.k]).data.image)) for d in draws]


class ToyJudge:
    """Sees the object in a picture whose red is 100 or more."""

    def measure(self, images, texts):
        assert len(images) == len(texts)
        return {"object": [float(red(image) >= 100) for image in images]}

    def embed(self, images):
        return [red(image) for image in images]


def spread(features) -> float:
    return float(max(features) - min(features))


def plan(**changes) -> Plan:
    values = {"target": [CAT], "ood": [HOUSE], "pairs": 4, "ood_pairs": 2, "best_of": 2, "seed": 7}
    return Plan(**{**values, "weights": {"bright": 1.0}, **changes})


def compare(folder: Path, plan: Plan, *, rewards=(bright, dark), judge=None, **changes):
    policy = ToyPolicy()
    values = {"diversity": spread, "embed": lambda images: [red(i) / 255 for i in images], "settings": {"width": 2}}
    result = evaluate(policy, policy.generate, rewards, plan, folder=folder, judge=judge, **(values | changes))
    return result, policy


# --- means, oracle, intervals -----------------------------------------------------------------------------------------


def test_the_means_of_base_oracle_and_tuned(tmp_path):
    result, _ = compare(tmp_path, plan(), judge=ToyJudge())
    row = result["rewards"]["bright"]
    # windows of 2 in (10, 120, 30, 200), cyclic: 120, 120, 200, 200
    assert (row["base"], row["oracle"], row["tuned"]) == (90.0, 160.0, 125.0)
    assert (row["difference"], row["pairs"]) == (35.0, 4)
    row = result["judge"]["object"]
    assert (row["base"], row["oracle"], row["tuned"]) == (0.5, 1.0, 0.75)
    row = result["judge"]["object_ood"]
    assert (row["base"], row["oracle"], row["tuned"], row["pairs"]) == (0.5, 1.0, 0.5, 2)
    assert set(result["rewards"]) == {"bright", "dark", "bright_ood", "dark_ood"}


@pytest.mark.parametrize(
    ("best_of", "weights", "chosen"),
    [
        (2, {"bright": 1.0}, [1, 1, 3, 3]),
        (3, {"bright": 1.0}, [1, 3, 3, 3]),
        (4, {"bright": 1.0}, [3, 3, 3, 3]),
        (9, {"bright": 1.0}, [3, 3, 3, 3]),  # no more pictures than there are
        (2, {"bright": -1.0}, [0, 2, 2, 0]),
    ],
)
def test_the_oracle_slides_over_the_pictures_of_a_prompt(best_of, weights, chosen):
    samples = [sample(CAT, k, red) for k, red in enumerate(BASE[CAT])]
    side = Side(samples=samples, rewards=bright(samples))
    assert oracle(side, plan(best_of=best_of, weights=weights)) == chosen


def test_the_oracle_never_takes_another_prompts_picture():
    samples = [sample(CAT, 0, 10), sample(DOG, 0, 250), sample(CAT, 1, 20), sample(DOG, 1, 240)]
    side = Side(samples=samples, rewards=bright(samples))
    assert oracle(side, plan(best_of=2)) == [2, 1, 2, 1]


def test_the_oracle_ranks_by_the_weights_alone():
    samples = [sample(CAT, k, red) for k, red in enumerate((10, 20))]
    side = Side(samples=samples, rewards={**bright(samples), "other": [100.0, 0.0]})
    assert oracle(side, plan(best_of=2)) == [1, 1]
    assert oracle(side, plan(best_of=2, weights={"other": 1.0})) == [0, 0]


def test_an_interval_lies_on_the_side_of_the_change(tmp_path):
    result, _ = compare(tmp_path, plan())
    low, high = result["rewards"]["bright"]["ci95"]
    assert 10 <= low < 35 < high <= 100  # the smallest and the largest change of a cat
    low, high = result["rewards"]["dark"]["ci95"]
    assert -100 <= low < -35 < high <= -10
    low, high = result["rewards"]["bright_ood"]["ci95"]
    assert (low, high) == (-50.0, -10.0)


def test_with_several_prompts_the_interval_resamples_prompts(tmp_path):
    result, _ = compare(tmp_path, plan(target=[DOG, HOUSE], ood=[]))
    row = result["rewards"]["bright"]
    assert row["difference"] == -14.0  # +2 and +2 for the dogs, -50 and -10 for the houses
    assert row["ci95"] == [-30.0, 2.0]  # only houses to only dogs


# --- what is left out without a judge, and diversity ------------------------------------------------------------------


def test_without_a_judge_there_are_rewards_only(tmp_path):
    result, _ = compare(tmp_path, plan())
    assert result["judge"] == {}
    assert set(result["rewards"]) == {"bright", "dark", "bright_ood", "dark_ood"}
    assert all("before_label" not in row for row in result["examples"])
    assert result["diversity"] == pytest.approx({"base": 190 / 255, "tuned": 160 / 255})  # all pictures, by `embed`


def test_without_other_prompts_nothing_is_said_of_them(tmp_path):
    for settings in (plan(ood=[]), plan(ood_pairs=0)):
        result, _ = compare(tmp_path, settings)
        assert set(result["rewards"]) == {"bright", "dark"}
        assert result["images"] == 8
    assert plan().images == 12


def test_diversity_counts_only_the_rightly_named(tmp_path):
    result, _ = compare(tmp_path, plan(), judge=ToyJudge())
    assert result["diversity"] == {"base": 80.0, "tuned": 100.0}  # (120, 200) and (110, 130, 210)


def test_a_side_with_fewer_than_two_right_pictures_has_no_diversity(tmp_path):
    result, _ = compare(tmp_path, plan(target=[HOUSE], ood=[], pairs=2), judge=ToyJudge())
    assert result["diversity"] == {}


def test_the_true_pictures_diversity_stands_beside(tmp_path):
    asked = []

    def truth(text, count):
        asked.append((text, count))
        return [Image.new("RGB", (2, 2), (value, 0, 0)) for value in (0, 140)]

    result, _ = compare(tmp_path, plan(), judge=ToyJudge(), truth=truth)
    assert result["diversity"]["true"] == 140.0
    assert asked == [("a cat", 32)]


# --- what is written --------------------------------------------------------------------------------------------------


def test_evaluation_json_is_what_is_returned(tmp_path):
    result, _ = compare(tmp_path / "new" / "evaluation", plan(), judge=ToyJudge())
    assert json.loads((tmp_path / "new" / "evaluation" / "evaluation.json").read_text(encoding="utf-8")) == result
    assert result["settings"] == {"width": 2, "seed": 7, "pairs": 4, "ood_pairs": 2}
    assert result["images"] == 12
    assert result["seconds"] >= 0
    assert not list(tmp_path.rglob("*.tmp"))


def test_the_examples_are_the_pictures_of_both_sides(tmp_path):
    result, policy = compare(tmp_path, plan(), judge=ToyJudge(), examples=3)
    rows = result["examples"]
    assert [row["text"] for row in rows] == ["a cat", "a cat", "a cat", "a house"]
    assert [row["seed"] for row in rows[:3]] == [draw.seed for draw in policy.calls[0][1][:3]]
    for row, before, after in zip(rows, (10, 120, 30, 150), (110, 130, 50, 100), strict=True):
        for side, value in (("before", before), ("after", after)):
            with Image.open(tmp_path / row[side]) as image:
                assert red(image) == value
            assert row[f"{side}_label"] == ("right" if value >= 100 else "not seen")


# --- draws ------------------------------------------------------------------------------------------------------------


def test_both_sides_share_draws_and_the_base_is_the_base(tmp_path):
    _, policy = compare(tmp_path, plan())
    assert [tuned for tuned, _ in policy.calls] == [False, True, False, True]
    (_, base), (_, tuned), (_, other), _ = policy.calls
    assert base == tuned
    assert [draw.k for draw in base] == [0, 1, 2, 3]
    assert {draw.prompt for draw in other} == {HOUSE}


def test_no_evaluated_picture_was_ever_a_candidate(tmp_path):
    _, policy = compare(tmp_path, plan(target=[CAT], ood=[HOUSE]))
    evaluated = {draw.seed for _, draws in policy.calls for draw in draws}
    trained = {
        draw.seed
        for index in range(1, 40)
        for draw in draw_round([CAT, HOUSE], index=index, seed=7, per_round=None, k=16, groups_per_prompt=2)
    }
    assert len(evaluated) == 6
    assert not evaluated & trained


def test_the_same_plan_gives_the_same_numbers(tmp_path):
    first, _ = compare(tmp_path / "a", plan(), judge=ToyJudge())
    again, _ = compare(tmp_path / "b", plan(), judge=ToyJudge())
    assert {**first, "seconds": 0} == {**again, "seconds": 0}
    assert statistics.fmean(BASE[CAT]) == first["rewards"]["bright"]["base"]
