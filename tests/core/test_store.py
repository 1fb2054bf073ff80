import json
import math
import os
import random
import re
import shutil
from datetime import UTC, datetime, timedelta
from itertools import islice

import pytest

from raft_diffusion.core.config import Config
from raft_diffusion.core.loop import raft
from raft_diffusion.core.prompts import draw_round
from raft_diffusion.core.records import Prompt, Sample
from raft_diffusion.core.select import Select
from raft_diffusion.core.stop import is_flat
from raft_diffusion.core.store import RunFolder, read_metrics, stored_rounds

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
    """Every file of a run, by its path; without the date."""
    files = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    if "environment.json" in files:
        files["environment.json"] = re.sub(rb'"started": "[^"]+"', b"", files["environment.json"])
    return files


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def test_layout(tmp_path):
    (round_,) = run(tmp_path / "runs" / "one", rounds=1)
    root = tmp_path / "runs" / "one"
    folder = root / "rounds" / "001"
    assert {path.name for path in root.iterdir()} == {"config.toml", "environment.json", "metrics.jsonl", "rounds"}
    assert {path.name for path in folder.iterdir()} == {"round.json", "candidates", "winners", "adapter"}
    assert Config.load(root / "config.toml") == configure()
    written = json.loads((root / "environment.json").read_text())
    assert abs(datetime.now(UTC) - datetime.fromisoformat(written.pop("started"))) < timedelta(minutes=10)
    assert written == ENVIRONMENT
    candidates, winners = rows(folder / "candidates/metadata.jsonl"), rows(folder / "winners/metadata.jsonl")
    assert (len(candidates), len(winners)) == (12, len(round_.selection.winners))
    for row in candidates + winners:
        assert (folder / "candidates" / row["file_name"]).is_file()
        assert row["file_name"] == f"{row['id']}.txt"
    every = {c.sample.id: c.sample.data for group in round_.groups for c in group.candidates}
    assert json.loads((folder / "candidates" / "latents.json").read_text()) == every  # a person may choose any of them


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
            "source": "policy",
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


def test_resume_reads_the_winners_alone_that_are_learned_again(tmp_path):
    done = list(run(tmp_path, rounds=3))
    shutil.rmtree(tmp_path / "rounds" / "001" / "winners")
    shutil.rmtree(tmp_path / "rounds" / "002" / "winners")
    policy = Gaussian()
    back = open_run(tmp_path, replay=1).resume(policy)
    assert [len(r.selection.winners) for r in back] == [0, 0, len(done[2].selection.winners)]
    assert facts(back[2]) == facts(done[2])
    assert [r.figures for r in back] == [r.figures for r in done]
    assert policy.mean == json.loads((tmp_path / "rounds/003/adapter/mean.json").read_text())
    assert [len(r.selection.winners) for r in open_run(tmp_path, replay=0).resume(policy)] == [0, 0, 0]
    with pytest.raises(ValueError, match=r"no run file .*002.winners.metadata"):
        open_run(tmp_path, replay=2).resume(policy)


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
    list(run(tmp_path, rounds=1))
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
    list(run(tmp_path, rounds=1))
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


def test_a_run_keeps_the_date_of_its_first_start(tmp_path):
    open_run(tmp_path / "run")
    path = tmp_path / "run" / "environment.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"started": "2020-02-02T02:02:02+00:00"}))
    open_run(tmp_path / "run")
    assert json.loads(path.read_text())["started"] == "2020-02-02T02:02:02+00:00"


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
    assert ENVIRONMENT.items() <= json.loads((tmp_path / "run" / "environment.json").read_text()).items()


def test_missing_round_is_refused_before_any_work(tmp_path):
    list(run(tmp_path, rounds=3))
    shutil.rmtree(tmp_path / "rounds" / "002")
    before = tree(tmp_path)
    for start in (open_run, lambda root: list(stored_rounds(root)), read_metrics):
        with pytest.raises(ValueError, match=r"002 is missing, yet round 3 stands"):
            start(tmp_path)
    assert tree(tmp_path) == before


def test_round_without_its_numbers_is_refused_before_any_work(tmp_path):
    list(run(tmp_path, rounds=2))
    (tmp_path / "rounds" / "002" / "round.json").unlink()
    with pytest.raises(ValueError, match=r"002 holds no round\.json; delete that folder"):
        open_run(tmp_path)


def test_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"run cannot be made: .*notes\.txt is a file; give another"):
        open_run(tmp_path / "notes.txt" / "run")
    with pytest.raises(ValueError, match=r"cannot be made \(.+\); give another"):
        open_run(tmp_path / ("n" * 300))


def test_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path or not mode & os.W_OK)
    with pytest.raises(ValueError, match=r"runs.one cannot be written: .* is closed to you; give another"):
        open_run(tmp_path / "runs" / "one")
    assert tree(tmp_path) == {}


def test_check_writes_nothing(tmp_path):
    RunFolder.check(tmp_path / "runs" / "one", config=configure())
    assert not (tmp_path / "runs").exists()
    list(run(tmp_path / "run", rounds=1))
    before = tree(tmp_path)
    RunFolder.check(tmp_path / "run", config=configure(rounds=9), may_change=["rounds"])
    with pytest.raises(ValueError, match="seed was 0 and is now 1"):
        RunFolder.check(tmp_path / "run", config=configure(seed=1))
    assert tree(tmp_path) == before


def test_everything_may_change_before_the_first_round_is_complete(tmp_path):
    open_run(tmp_path)
    changed = configure(seed=1, tuning={"rank": 4})
    assert open_run(tmp_path, changed).completed() == 0
    assert Config.load(tmp_path / "config.toml") == changed


def test_batch_of_the_tuner_may_be_made_of_other_parts(tmp_path):
    list(run(tmp_path, rounds=1))
    parts = configure(tuning={"batch_size": 2, "gradient_accumulation": 4})
    open_run(tmp_path, parts)
    assert Config.load(tmp_path / "config.toml") == parts
    with pytest.raises(ValueError, match="other settings") as caught:
        open_run(tmp_path, configure(tuning={"batch_size": 4, "gradient_accumulation": 4}))
    assert (
        "tuning.batch_size x tuning.gradient_accumulation was 2 x 4 and is now 4 x 4, and these may only change with "
        "their product (8) kept"
    ) in str(caught.value)
    open_run(tmp_path, configure(tuning={"batch_size": 4, "gradient_accumulation": 4}), may_change=["tuning"])


def test_run_of_a_version_that_knew_fewer_settings_goes_on(tmp_path):
    list(run(tmp_path, rounds=1))
    path = tmp_path / "config.toml"
    old = [line for line in path.read_text().splitlines() if "clip_skip" not in line and "trackers" not in line]
    path.write_text("\n".join(old) + "\n")
    assert [r.index for r in run(tmp_path, rounds=2)] == [2]
    assert "clip_skip = 1\n" in path.read_text()


def test_stored_rounds_are_the_rounds_that_were_made(tmp_path):
    """Another prompt's words and the same id in the next round must not mix."""
    made = list(run(tmp_path, rounds=3))
    stored = list(stored_rounds(tmp_path))
    assert [round_.index for round_ in stored] == [1, 2, 3]
    for one, other in zip(stored, made, strict=True):
        assert one.keys == other.selection.keys
        assert one.winners == {winner.sample.id for winner in other.selection.winners}
        for group, known in zip(one.groups, other.groups, strict=True):
            assert group.prompt == known.prompt
            for candidate, scored in zip(group.candidates, known.candidates, strict=True):
                assert candidate.sample.draw == scored.sample.draw
                assert candidate.scores == scored.scores
                folder = tmp_path / "rounds" / f"{one.index:03d}" / "candidates"
                assert candidate.sample.data == folder / f"{scored.sample.id}.txt"
                assert candidate.sample.data.is_file()


def test_stored_scores_rank_again_by_other_weights(tmp_path):
    (made,) = run(tmp_path, rounds=1)
    (stored,) = stored_rounds(tmp_path)
    turned = Select(weights={"watched": 1.0})(stored.groups)  # watched is -x / 7: the last becomes the first
    for winner, group in zip(turned.winners, made.groups, strict=True):
        assert winner.sample.id == min(group.candidates, key=lambda c: c.sample.data).sample.id


def test_metrics_are_what_the_rounds_say(tmp_path):
    made = list(run(tmp_path, rounds=2))
    metrics = read_metrics(tmp_path)
    assert metrics == rows(tmp_path / "metrics.jsonl")
    for row, round_ in zip(metrics, made, strict=True):
        x = [c.scores["x"] for g in round_.groups for c in g.candidates]
        mean = sum(x) / len(x)
        assert row["round"] == round_.index
        assert row["deviation"]["x"] == pytest.approx(math.sqrt(sum((v - mean) ** 2 for v in x) / len(x)))
    assert is_flat(metrics, {"x": 1.0}, 1) == (metrics[1]["mean"]["x"] <= metrics[0]["mean"]["x"])


@pytest.mark.parametrize("read", [stored_rounds, read_metrics])
def test_folder_without_rounds_is_refused(tmp_path, read):
    open_run(tmp_path / "run")
    for root in (tmp_path, tmp_path / "run", tmp_path / "none"):
        with pytest.raises(ValueError, match="holds no complete round; give the folder of a run"):
            read(root)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": {"x": math.nan}}, "scores holds no numbers by reward"),
        ({"scores": {"x": True}}, "scores holds no numbers by reward"),
        ({"scores": {}}, "scores holds no numbers by reward"),
        ({"scores": {"x": 1.0}}, "its rewards are not those of the first line"),
        ({"k": 1.0}, "k is no integer"),
        ({"seed": None}, "seed is no integer"),
        ({"key": math.inf}, "key is no finite number"),
        ({"prompt_weight": "1"}, "prompt_weight is no finite number"),
        ({"text": 3}, "text is no text"),
        ({"text": "a caption that was written later"}, "its id '.*' is not that of its prompt"),
        ({"winner": 1}, "winner is neither true nor false"),
        ({"file_name": "../config.toml"}, "file_name is no plain file name"),
        ({"file_name": ".."}, "file_name is no plain file name"),
        ({"file_name": "C:\\x.png"}, "file_name is no plain file name"),
    ],
)
def test_damaged_metadata_is_refused_by_file_and_line(tmp_path, change, message):
    list(run(tmp_path, rounds=1))
    path = tmp_path / "rounds" / "001" / "candidates" / "metadata.jsonl"
    lines = rows(path)
    lines[2] |= change
    path.write_text("\n".join(json.dumps(line) for line in lines))
    with pytest.raises(ValueError, match=rf"candidates.metadata\.jsonl, line 3 is damaged: {message}.*; put it back"):
        list(stored_rounds(tmp_path))


def test_metadata_that_says_a_sample_twice_or_nothing_is_refused(tmp_path):
    list(run(tmp_path, rounds=1))
    path = tmp_path / "rounds" / "001" / "candidates" / "metadata.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n")
    for text, message in (
        ("\n".join([*lines[:2], lines[1]]), "line 3 is damaged: sample .* was there before"),
        ("\n".join([lines[0], lines[1][:40]]), "line 2 is no JSON object"),
        ("", r"metadata\.jsonl is empty"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            list(stored_rounds(tmp_path))
    path.unlink()
    with pytest.raises(ValueError, match=r"there is no run file .*metadata\.jsonl; put it back"):
        list(stored_rounds(tmp_path))


def test_damaged_winners_and_numbers_are_refused_by_file(tmp_path):
    list(run(tmp_path, rounds=1))
    (tmp_path / "rounds/001/winners/metadata.jsonl").write_text('{"text": "a cat"}\n')
    with pytest.raises(ValueError, match=r"winners.metadata\.jsonl, line 1 is damaged: file_name is no text"):
        open_run(tmp_path).resume(Gaussian())
    (tmp_path / "rounds/001/round.json").write_text("{")
    with pytest.raises(ValueError, match=r"001.round\.json is no JSON object"):
        open_run(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1]", "line 2 is no JSON object"),
        ('{"round": "2"}', "line 2 is damaged: round is no integer"),
        ('{"round": 2}', "line 2 is damaged: mean holds no numbers"),
        ('{"round": 2, "mean": {"x": NaN}}', "line 2 is damaged: mean holds no numbers"),
        ('{"round": 2, "mean": {"x": 1}, "deviation": 3}', "line 2 is damaged: deviation holds no numbers"),
    ],
)
def test_damaged_metrics_are_refused_by_line(tmp_path, line, message):
    list(run(tmp_path, rounds=1))
    path = tmp_path / "metrics.jsonl"
    first = path.read_text()
    path.write_text(f"{first}{line}\n")
    with pytest.raises(ValueError, match=rf"metrics\.jsonl, {message}"):
        read_metrics(tmp_path)
    path.write_text(first + '{"round": 2, "mean": {"x": 1}}\n')
    assert read_metrics(tmp_path)[1] == {"round": 2, "mean": {"x": 1}}
