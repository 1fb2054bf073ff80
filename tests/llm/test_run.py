"""Whole text runs through the command line, on hardly trained models: resume, run folder, guard, evaluation, page."""

import json
import statistics
import sys

import pytest
import torch

from raft_diffusion import cli
from raft_diffusion.core.looks import read_look
from raft_diffusion.core.store import read_metrics, stored_rounds
from raft_diffusion.jobs import load_config
from raft_diffusion.llm import assemble, data, pocket
from raft_diffusion.llm.pocket.build import build
from raft_diffusion.llm.policy import TextPolicy
from raft_diffusion.report import write_report
from raft_diffusion.runs import Run

SMALL = [
    "rounds=2", "threads=1", "prompts.per_round=4", "sampling.samples_per_prompt=4", "sampling.max_new_tokens=20",
    "tuning.steps=2", "evaluation.prompts=4", "evaluation.samples=2", "guard.samples=16", "guard.max_drop=100.0",
    "guard.min_diversity=0.0",
]  # fmt: skip
DIGITS = ['rewards.custom=["my_digits:digits"]', "rewards.weights.digits=1.0"]
"""Hardly trained, a model is never right: this keeps the ranking of sums alive."""


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """The recipe in small: every stage takes a few steps."""
    folder = tmp_path_factory.mktemp("pocket-lm")
    manifest = build(folder / "work", folder / "weights", scale=0.005)
    assert set(manifest["stages"]) == {"reviews", "reviews_small", "sums", "sentiment", "held_out", "judge"}
    return folder / "weights"


@pytest.fixture(autouse=True)
def carried(weights, monkeypatch, tmp_path):
    monkeypatch.setattr(pocket, "CARRIED", {name: weights / path.name for name, path in pocket.CARRIED.items()})
    monkeypatch.setattr(pocket, "JUDGE", weights / "judge")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "my_digits.py").write_text(
        "def digits(texts, prompts):\n    return [sum(map(str.isdigit, text)) for text in texts]\n"
    )
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def small(name, *changes):
    return load_config(name, changes=[*SMALL, *changes])


def command(*arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["raft-diffusion", *map(str, arguments)])
        cli.main()


def train(name, out, *changes, options=()):
    given = [part for change in (*SMALL, *changes) for part in ("--set", change)]
    command("train", name, "--out", out, *given, *options)


def texts_of(folder):
    return [
        (c.sample.id, c.sample.data.read_text()) for r in stored_rounds(folder) for g in r.groups for c in g.candidates
    ]


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path):
    whole = Run(small("pocket-reviews"), tmp_path / "whole")
    assert [round_.index for round_ in whole.rounds()] == [1, 2]
    next(Run(small("pocket-reviews"), tmp_path / "parts").rounds())
    again = Run(small("pocket-reviews"), tmp_path / "parts")
    assert [round_.index for round_ in again.rounds()] == [2]
    assert texts_of(tmp_path / "whole") == texts_of(tmp_path / "parts")
    for name in ("lora/adapter_model.safetensors", "metrics.jsonl"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    with pytest.raises(ValueError, match=r"sampling\.temperature was 1\.0 and is now 0\.5"):
        Run(small("pocket-reviews", "sampling.temperature=0.5"), tmp_path / "parts")


def test_a_run_in_python_writes_with_the_lora_and_without_scores_and_has_a_curve(tmp_path):
    run = Run(small("pocket-reviews", "rounds=1", "tuning.learning_rate=0.5"), tmp_path / "run")
    opening = data.held_out_prompts(run.config)[0].text

    def written(**how):
        return [sample.data.ids for sample in run.sample(opening, 2, seed=3, **how)]

    untrained = written()
    list(run.rounds())
    assert written(base=True) == untrained != written()
    assert all(len(ids) <= 5 for ids in written(max_new_tokens=5))
    (scored,) = run.score(run.sample(opening, 1))
    assert set(scored.scores) == {"classifier", "log_ratio"}
    means = [statistics.fmean(read_look(run.folder, index).scores) for index in (0, 1)]
    assert [point.mean for _, point in run.curve()] == pytest.approx(means)
    with pytest.raises(ValueError, match="0 texts cannot be sampled"):
        run.sample(opening, 0)


class Killed(BaseException):
    """Nobody catches it: what comes after it never happened."""


def killed_after(events, config, folder):
    """Let a run go on in `folder` until its progress was told so often. Returns how many batches it began to sample."""
    batches, left = [], iter(range(events, 0, -1))

    def progress(*_):
        if next(left, 0) == 1:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        answers = TextPolicy._answers
        patch.setattr(TextPolicy, "_answers", lambda *words: (batches.append(1), answers(*words))[1])
        try:
            run = Run(config, folder, progress=progress)
            list(run.rounds())
            run.evaluate()
        except Killed:
            pass
    return len(batches)


@pytest.mark.slow
def test_a_text_run_that_is_killed_repeats_no_batch_and_ends_the_same(tmp_path):
    config = small("pocket-reviews", "sampling.batch_size=4", "tuning.steps=4", "evaluation.samples=4")
    alone = killed_after(10**9, config, tmp_path / "alone")
    # in the guard's start, among the candidates, while scoring, tuning, in the next round, in the evaluation
    again = sum(killed_after(events, config, tmp_path / "killed") for events in (2, 6, 7, 10, 18, 35, 10**9))
    assert again == alone  # each was told between two batches
    for name in ("lora/adapter_model.safetensors", "metrics.jsonl", "rounds/001/candidates/metadata.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    ends = [json.loads((tmp_path / name / "evaluation/evaluation.json").read_text()) for name in ("alone", "killed")]
    assert {**ends[0], "seconds": 0} == {**ends[1], "seconds": 0}
    assert not (tmp_path / "killed" / "unfinished").exists()


def test_train_evaluates_reports_and_shows_a_finished_run_without_a_model(tmp_path, capsys, monkeypatch):
    train("pocket-reviews", "run", options=("--json", "one.json"))
    out = capsys.readouterr().out
    assert "2 rounds x 4 groups x 4 candidates = 32 texts of up to 20 tokens, 2 tuning steps a round" in out
    assert "texts/s" in out and "positive, judge" in out
    result = json.loads((tmp_path / "one.json").read_text(encoding="utf-8"))
    assert {"base", "tuned", "ci95"} <= set(result["judge"]["positive"])
    names = ("perplexity", "perplexity_both_kinds", "distinct_2")
    assert all({"base", "tuned"} <= set(result[name]) for name in names)
    assert len(result["curve"]["positive"]) == 3
    assert result["curve"]["positive"][0] == result["judge"]["positive"]["base"]
    assert result["curve"]["positive"][2] == result["judge"]["positive"]["tuned"]
    assert json.loads((tmp_path / "run/evaluation/evaluation.json").read_text(encoding="utf-8")) == result
    monkeypatch.setattr(assemble, "make_policy", lambda *_: pytest.fail("a model was loaded"))
    train("pocket-reviews", "run", options=("--json", "two.json"))
    assert "this run is finished: 2 rounds" in capsys.readouterr().out
    assert json.loads((tmp_path / "two.json").read_text(encoding="utf-8")) == result


def test_evaluate_and_report_repeat_a_run(tmp_path, capsys):
    train("pocket-reviews", "run", "rounds=1")
    before = json.loads((tmp_path / "run/evaluation/evaluation.json").read_text(encoding="utf-8"))
    command("evaluate", "run", "--threads", "1", "--json", "again.json")
    after = json.loads((tmp_path / "again.json").read_text(encoding="utf-8"))
    assert {**before, "seconds": None} == {**after, "seconds": None}
    (tmp_path / "run/report.html").unlink()
    capsys.readouterr()
    command("report", "run")
    assert capsys.readouterr().out == "run/report.html\n"
    for option in (["--each-round"], ["--lora", "run"]):
        with pytest.raises(SystemExit):
            command("evaluate", "run", *option)
        assert f"{option[0]} is for runs that make pictures" in capsys.readouterr().err


def test_the_guard_stops_a_run_and_keeps_its_best_round(tmp_path, capsys, monkeypatch):
    variety = iter((1.0, 0.9, 0.1))
    monkeypatch.setattr(assemble, "distances_within", lambda samples: [next(variety)] * len(samples))
    train("pocket-reviews", "run", "rounds=3", "guard.min_diversity=0.5")
    out = capsys.readouterr().out
    assert "round 2: what it makes of one prompt became alike: 10 % of the diversity of the start" in out
    assert "stopped; round 1's LoRA is the result" in out
    assert len(read_metrics(tmp_path / "run")) == 2
    lora = (tmp_path / "run/lora/adapter_model.safetensors").read_bytes()
    assert lora == (tmp_path / "run/rounds/001/adapter/adapter_model.safetensors").read_bytes()
    assert read_look(tmp_path / "run", 0).judge == "pocket-held-out, temperature 1"
    page = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert "The guard" in page and "stopped; " in page


def test_the_page_shows_winners_and_losers_and_escapes_them(tmp_path):
    run = Run(small("pocket-reviews", "rounds=1"), tmp_path / "run")
    (round_,) = run.rounds()
    best = round_.selection.winners[0].sample
    path = tmp_path / "run" / "rounds" / "001" / "candidates" / f"{best.id}.txt"
    path.write_text("<script>alert(1)</script>", encoding="utf-8")
    page = write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script" not in page
    assert page.count("<h3>") == 1
    assert "http" not in page


def test_the_sums_have_their_curve(tmp_path):
    train("pocket-sums", "run", *DIGITS, options=("--json", "sums.json"))
    result = json.loads((tmp_path / "sums.json").read_text(encoding="utf-8"))
    assert result["pass_at_1"]["tuned"] == pytest.approx(result["judge"]["exact"]["tuned"])
    assert "pass_at_2" in result
    assert {"base", "tuned", "ci95"} <= set(result["judge"]["exact"])
    assert len(result["curve"]["exact"]) == 3


def test_a_warm_up_and_a_teacher_come_before_and_beside(tmp_path):
    rows = [{"prompt": "a drama from norway", "completion": " : see it ."}] * 3
    path = tmp_path / "examples.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = small(
        "pocket-reviews", "rounds=1", f"tuning.examples={path}", "tuning.example_steps=2", "teacher=pocket-reviews"
    )
    run = Run(config, tmp_path / "run")
    assert [round_.index for round_ in run.rounds()] == [1]
    assert (tmp_path / "run" / "warm_up" / "adapter_model.safetensors").is_file()
    taught = small(
        "pocket-reviews", "rounds=1", "model=pocket-reviews-small", "teacher=pocket-reviews",
        f"teacher_lora={tmp_path / 'run' / 'lora'}",
    )  # fmt: skip
    assert [round_.index for round_ in Run(taught, tmp_path / "taught").rounds()] == [1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["model=pocket-revews"], "no carried language model 'pocket-revews': did you mean pocket-reviews"),
        (["prompts.train=none.jsonl"], "there is no examples file none.jsonl"),
        (["prompts.per_round=1000"], "prompts.per_round is 1000, more than the 144 prompts"),
        (["guard.reward=pocket"], "guard.reward is pocket, which ranks"),
        (["guard.reward=exact"], 'has no "answer"'),
        (["device=gpu"], "unknown device 'gpu'"),
        (["teacher=pocket-reviews", "teacher_lora=nowhere"], "nowhere holds no adapter"),
        (["rewards.custom=['a:b:c']"], "module:function"),
    ],
)
def test_what_leads_nowhere_is_refused_before_a_model_is_loaded(tmp_path, monkeypatch, changes, words):
    monkeypatch.setattr(assemble, "make_policy", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(ValueError, match=words):
        Run(small("pocket-reviews", *changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_plan_counts_and_says_what_it_does_not_know(capsys, tmp_path):
    command("plan", "pocket-sums", "--json", "plan.json")
    out = capsys.readouterr().out
    assert "64 prompts x 4 candidates = 256 texts" in out
    assert "is not forecast" in out
    numbers = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))
    assert (numbers["texts"], numbers["guard_texts"], numbers["evaluation_texts"]) == (6 * 256, 7 * 64, 2 * 128 * 4)
    with pytest.raises(SystemExit):
        command("plan", "math")
    assert "there is no examples file math-train.jsonl" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command("plan", "pocket-sums", "--measure")
    assert "--measure times the parts of an image model" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["export", "rank"])
def test_a_command_for_pictures_says_so(name, capsys):
    train("pocket-reviews", "run", "rounds=1")
    with pytest.raises(SystemExit):
        command(name, "run")
    assert "config.toml is of a text run, and this is for runs that make pictures" in capsys.readouterr().err
