import json
import math
import os
import random
import shutil
from itertools import islice

import pytest

from raft_diffusion.core.config import Config
from raft_diffusion.core.loop import raft
from raft_diffusion.core.prompts import draw_round
from raft_diffusion.core.records import Prompt, Sample
from raft_diffusion.core.select import Select
from raft_diffusion.core.store import RunFolder

PROMPTS = [Prompt("a cat", weight=0.1), Prompt("größe \u2028🐈", negative="blurry"), Prompt('"a\\dog"')]
ENVIRONMENT = {"python": "3.11"}


class TextCodec:
    """Samples are numbers: text for people, and exact in one JSON file where training needs them."""

    def write_samples(self, folder, samples, *, keep):
        for sample in samples:
            (folder / f"{sample.id}.txt").write_text(f"{sample.data:.2f}")
        if keep:
            (folder / "latents.json").write_text(json.dumps({sample.id: sample.data for sample in samples}))
        return [f"{sample.id}.txt" for sample in samples]

    def read_samples(self, folder, rows):
        latents = json.loads((folder / "latents.json").read_text())
        return [latents[row["id"]] for row in rows]


class Gaussian:
    """Samples mean + z; tuned to the winners' weighted mean. `broken` fails the next save half-way."""

    def __init__(self):
        self.mean = 0.1
        self.broken = False

    def generate(self, draws):
        return [Sample(draw, self.mean + random.Random(draw.seed).gauss(0, 1)) for draw in draws]

    def save(self, folder):
        (folder / "mean.json").write_text(json.dumps(self.mean))
        if self.broken:
            raise KeyboardInterrupt

    def load(self, folder):
        self.mean = json.loads((folder / "mean.json").read_text())


def tune(policy, winners, *, seed):
    policy.mean = math.fsum(w.weight * w.sample.data for w in winners) / len(winners) + seed * 1e-22
    return {"loss": policy.mean / 3}


def reward(samples):
    return {"x": [s.data for s in samples], "watched": [-s.data / 7 for s in samples]}


def configure(**values):
    return Config.model_validate({"name": "run", "prompts": {"train": ["a cat"]}} | values)


def open_run(root, config=None, **options):
    return RunFolder.open(root, codec=TextCodec(), config=config or configure(), environment=ENVIRONMENT, **options)


def run(root, *, policy=None, rounds=4):
    """The generator of a run of 3 prompts with 2 groups of 3 candidates each, all of which win by weight."""
    return raft(
        policy or Gaussian(),
        [reward],
        Select(weights={"x": 1.0}, tau=0.7),
        tune,
        open_run(root),
        lambda index: draw_round(PROMPTS, index=index, seed=0, per_round=2, k=3, groups_per_prompt=2),
        rounds=rounds,
        seed=0,
    )


def tree(root):
    """Every file of a run, by its path."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def test_layout(tmp_path):
    (round_,) = run(tmp_path / "runs" / "one", rounds=1)
    root = tmp_path / "runs" / "one"
    folder = root / "rounds" / "001"
    assert {path.name for path in root.iterdir()} == {"config.toml", "environment.json", "metrics.jsonl", "rounds"}
    assert {path.name for path in folder.iterdir()} == {"round.json", "candidates", "winners", "adapter"}
    assert Config.load(root / "config.toml") == configure()
    assert json.loads((root / "environment.json").read_text()) == ENVIRONMENT
    candidates, winners = rows(folder / "candidates/metadata.jsonl"), rows(folder / "winners/metadata.jsonl")
    assert (len(candidates), len(winners)) == (12, len(round_.selection.winners))
    for row in candidates + winners:
        assert (folder / "candidates" / row["file_name"]).is_file()
        assert row["file_name"] == f"{row['id']}.txt"
    assert not (folder / "candidates" / "latents.json").exists()


def test_rows_hold_what_ranking_again_needs(tmp_path):
    (round_,) = run(tmp_path, rounds=1)
    candidates = rows(tmp_path / "rounds/001/candidates/metadata.jsonl")
    weights = {w.sample.id: w.weight for w in round_.selection.winners}
    expected = [
        {
            "file_name": f"{c.sample.id}.txt",
            "text": c.sample.prompt.text,
            "negative": c.sample.prompt.negative,
            "prompt_weight": c.sample.prompt.weight,
            "id": c.sample.id,
            "prompt_id": c.sample.prompt.id,
            "group": c.sample.draw.group,
            "k": c.sample.draw.k,
            "seed": c.sample.draw.seed,
            "scores": c.scores,
            "key": key,
            "winner": c.sample.id in weights,
            "weight": weights.get(c.sample.id, 0.0),
        }
        for group, keys in zip(round_.groups, round_.selection.keys, strict=True)
        for c, key in zip(group.candidates, keys, strict=True)
    ]
    assert candidates == expected


def test_losers_are_rows_without_weight(tmp_path):
    store = open_run(tmp_path)
    draws = draw_round(PROMPTS[:1], index=1, seed=0, per_round=None, k=3)
    list(raft(Gaussian(), [reward], Select(weights={"x": 1.0}), tune, store, lambda _: draws, rounds=1, seed=0))
    candidates = rows(tmp_path / "rounds/001/candidates/metadata.jsonl")
    best = max(candidates, key=lambda row: row["scores"]["x"])
    assert [(row["winner"], row["weight"]) for row in candidates] == [
        (row is best, float(row is best)) for row in candidates
    ]
    assert rows(tmp_path / "rounds/001/winners/metadata.jsonl") == [best]


def test_summary_is_the_mean_of_candidates_and_of_winners(tmp_path):
    (round_,) = run(tmp_path, rounds=1)
    every = [c.scores["x"] for g in round_.groups for c in g.candidates]
    won = [w.candidate.scores["x"] for w in round_.selection.winners]
    summary = json.loads((tmp_path / "rounds/001/round.json").read_text())
    assert (summary["round"], summary["candidates"], summary["winners"]) == (1, 12, len(won))
    assert set(summary["mean"]) == set(summary["best"]) == {"x", "watched"}
    assert summary["mean"]["x"] == pytest.approx(sum(every) / 12)
    assert summary["best"]["x"] == pytest.approx(sum(won) / len(won))
    assert summary["figures"] == round_.figures
    assert rows(tmp_path / "metrics.jsonl") == [summary]


def facts(round_):
    winners = round_.selection.winners
    return [
        (w.sample.draw, w.sample.id, w.sample.prompt.negative, w.sample.data, w.candidate.scores, w.key, w.weight)
        for w in winners
    ]


def test_resume_gives_the_same_winners_and_policy(tmp_path):
    policy, fresh = Gaussian(), Gaussian()
    done = list(run(tmp_path, policy=policy, rounds=2))
    back = open_run(tmp_path).resume(fresh)
    assert [r.index for r in back] == [1, 2]
    assert [facts(r) for r in back] == [facts(r) for r in done]
    assert [r.figures for r in back] == [r.figures for r in done]
    assert fresh.mean == policy.mean


def test_resume_of_a_new_run_leaves_the_policy_alone(tmp_path):
    policy = Gaussian()
    store = open_run(tmp_path)
    assert (store.completed(), store.resume(policy), policy.mean) == (0, [], 0.1)


def test_interrupted_run_ends_as_an_uninterrupted_one(tmp_path):
    list(run(tmp_path / "whole"))
    assert [r.index for r in islice(run(tmp_path / "parts"), 2)] == [1, 2]
    assert [r.index for r in run(tmp_path / "parts")] == [3, 4]
    assert tree(tmp_path / "parts") == tree(tmp_path / "whole")


def test_round_that_was_not_finished_is_made_again(tmp_path):
    list(run(tmp_path / "whole", rounds=2))
    root, policy = tmp_path / "parts", Gaussian()
    rounds = run(root, policy=policy, rounds=2)
    next(rounds)
    policy.broken = True
    with pytest.raises(KeyboardInterrupt):
        next(rounds)
    assert {path.name for path in (root / "rounds").iterdir()} == {"001", ".002.partial"}
    assert RunFolder(root, codec=TextCodec()).completed() == len(rows(root / "metrics.jsonl")) == 1
    open_run(root)
    assert {path.name for path in (root / "rounds").iterdir()} == {"001"}
    assert [r.index for r in run(root, rounds=2)] == [2]
    assert tree(root) == tree(tmp_path / "whole")


def test_metrics_that_were_lost_are_written_again(tmp_path):
    """A run may be killed after the round's folder is complete and before its line of metrics.jsonl."""
    list(run(tmp_path, rounds=2))
    before = tree(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("")
    open_run(tmp_path)
    assert tree(tmp_path) == before


def test_changed_settings_are_refused_by_key(tmp_path):
    open_run(tmp_path)
    before = tree(tmp_path)
    changed = configure(seed=7, tuning={"rank": 4}, selection={"tau": 0.5}, rewards={"weights": {"aesthetic": 1.0}})
    with pytest.raises(ValueError, match="holds a run with other settings") as caught:
        open_run(tmp_path, changed)
    for part in (
        "seed was 0 and is now 7",
        "tuning.rank was 8 and is now 4",
        "selection.tau was None and is now 0.5",
        "rewards.weights was {'text_image': 1.0} and is now {'aesthetic': 1.0}",
    ):
        assert part in str(caught.value)
    assert "rounds" not in str(caught.value).partition("settings")[2]
    assert tree(tmp_path) == before


def test_settings_that_may_change_do(tmp_path):
    open_run(tmp_path)
    changed = configure(rounds=9, evaluation={"pairs": 2})
    with pytest.raises(ValueError, match=r"evaluation\.pairs was 64 and is now 2"):
        open_run(tmp_path, changed, may_change=["rounds", "eval"])
    open_run(tmp_path, changed, may_change=iter(["rounds", "evaluation"]))
    assert Config.load(tmp_path / "config.toml") == changed


def test_file_and_foreign_folder_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds no run"):
        open_run(tmp_path)
    with pytest.raises(ValueError, match=r"notes\.txt is a file; give a folder"):
        open_run(tmp_path / "notes.txt")
    assert tree(tmp_path) == {"notes.txt": b"mine"}


def test_folder_of_another_tool_is_refused(tmp_path):
    (tmp_path / "config.toml").write_text("[trainer]\nsteps = 3\n")
    with pytest.raises(ValueError, match=r"config\.toml: .*unknown key trainer"):
        open_run(tmp_path)
    assert set(tree(tmp_path)) == {"config.toml"}


@pytest.mark.parametrize("lost", ["config.toml", "environment.json"])
def test_start_that_was_killed_can_be_started_again(tmp_path, monkeypatch, lost):
    """The process dies while it renames one of the run's first two files into place."""
    replace = os.replace

    def killed(source, target):
        if target.name == lost:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            open_run(tmp_path / "run")
    assert open_run(tmp_path / "run").completed() == 0
    assert json.loads((tmp_path / "run" / "environment.json").read_text()) == ENVIRONMENT


def test_missing_round_is_refused_before_any_work(tmp_path):
    list(run(tmp_path, rounds=3))
    shutil.rmtree(tmp_path / "rounds" / "002")
    before = tree(tmp_path)
    with pytest.raises(ValueError, match=r"002 is missing or incomplete, yet round 3 stands"):
        open_run(tmp_path)
    assert tree(tmp_path) == before


def test_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="cannot be made"):
        open_run(tmp_path / "notes.txt" / "run")
