"""Whole runs of the carried model through the command line: pictures of 32 px in 2 steps, nothing of any quality."""

import errno
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from raft_diffusion import assemble, cli
from raft_diffusion.core.config import Config
from raft_diffusion.diffusion import PictureCodec
from raft_diffusion.terminal import LiveTable

TINY = """
name = "tiny"
rounds = 3
threads = 1
device = "cpu"
[prompts]
train = ["monet style cat"]
held_out = ["monet style house"]
[sampling]
width = 32
height = 32
num_inference_steps = 2
guidance_scale = 3.0
collect_guidance_scale = 1.5
samples_per_prompt = 4
batch_size = 4
[rewards]
held_out = "pocket-held-out"
weights = { text_image = 1.0, aesthetic = 0.5 }
[tuning]
rank = 2
alpha = 2
steps = 2
batch_size = 2
[guard]
pairs = 8
[evaluation]
pairs = 4
ood_pairs = 2
best_of = 2
"""
LORA = "pytorch_lora_weights.safetensors"


def command(*arguments: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["raft-diffusion", *map(str, arguments)])
        cli.main()


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory) -> Path:
    """One finished run; nobody may change it."""
    root = tmp_path_factory.mktemp("runs") / "finished"
    command("train", config, "--out", root)
    return root


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    return shutil.copytree(finished, tmp_path / "copy")


def files(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def metadata(root: Path, part: str) -> list[dict]:
    paths = sorted(root.glob(f"rounds/*/{part}/metadata.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()]


def evaluation(root: Path) -> dict:
    """Without what depends on the clock."""
    result = json.loads((root / "evaluation" / "evaluation.json").read_text(encoding="utf-8"))
    return {**result, "seconds": None}


def same_run(one: Path, other: Path) -> bool:
    """The same pictures, scores, winners, adapters and numbers; how long a round took may differ."""
    before, after = files(one), files(other)
    telling = [name for name in before if name.startswith(("rounds/", "lora/", "metrics", "evaluation/before"))]
    telling = [name for name in telling if not name.endswith("/time.json")]
    return set(before) == set(after) and all(before[name] == after[name] for name in telling)


# --- what a run leaves ------------------------------------------------------------------------------------------------


def test_the_run_folder_holds_everything(finished):
    names = set(files(finished))
    assert {"report.html", "config.toml", "environment.json", "metrics.jsonl", f"lora/{LORA}"} <= names
    assert {"evaluation/evaluation.json", "before_after.png"} <= names
    for index in ("001", "002", "003"):
        here = {name.removeprefix(f"rounds/{index}/") for name in names if name.startswith(f"rounds/{index}/")}
        assert {"round.json", "candidates/metadata.jsonl", "winners/metadata.jsonl"} <= here
        assert {"winners/latents.safetensors", f"adapter/{LORA}"} <= here
        assert sum(name.startswith("candidates/") and name.endswith(".png") for name in here) == 4
        assert sum(name.startswith("winners/") and name.endswith(".png") for name in here) == 1
    assert not [name for name in names if "partial" in name or name.endswith(".tmp")]


def test_the_configuration_is_written_as_resolved(finished, config):
    assert Config.load(finished / "config.toml") == Config.load(config)
    environment = json.loads((finished / "environment.json").read_text(encoding="utf-8"))
    assert environment["torch"] == torch.__version__.partition("+")[0]
    assert (environment["device"], environment["threads"]) == ("cpu", 1)


def test_the_rounds_say_what_was_ranked_and_what_won(finished):
    rows, winners = metadata(finished, "candidates"), metadata(finished, "winners")
    assert len(rows) == 12
    assert [row["id"] for row in rows if row["winner"]] == [row["id"] for row in winners]
    names = {"text_image", "aesthetic", "held_out.text_image", "held_out.aesthetic"}
    assert all(set(row["scores"]) == names for row in rows)
    for start in (0, 4, 8):
        group = rows[start : start + 4]
        assert max(group, key=lambda row: row["key"])["winner"]
    lines = (finished / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    stored = [json.loads((finished / f"rounds/00{i}/round.json").read_text(encoding="utf-8")) for i in (1, 2, 3)]
    looks = [json.loads((finished / f"rounds/00{i}/guard.json").read_text(encoding="utf-8")) for i in (1, 2, 3)]
    for line, row, look in zip(map(json.loads, lines), stored, looks, strict=True):
        score, diversity = (statistics.fmean(look[key]) for key in ("scores", "distances"))
        assert line == {**row, "guard": pytest.approx({"held_out.text_image": score, "diversity": diversity})}
    assert [(row["round"], row["candidates"], row["winners"]) for row in stored] == [(1, 4, 1), (2, 4, 1), (3, 4, 1)]


def test_the_final_lora_is_the_last_rounds(finished):
    contents = files(finished)
    assert contents[f"lora/{LORA}"] == contents[f"rounds/003/adapter/{LORA}"]
    assert contents[f"rounds/003/adapter/{LORA}"] != contents[f"rounds/002/adapter/{LORA}"]


def test_the_evaluation_measures_both_models(finished):
    result = evaluation(finished)
    assert set(result["judge"]) == {"object", "object_ood", "style", "style_ood"}
    assert {"text_image", "held_out.text_image", "aesthetic_ood"} <= set(result["rewards"])
    assert (result["images"], result["judge"]["object"]["pairs"], result["judge"]["object_ood"]["pairs"]) == (12, 4, 2)
    assert result["settings"]["guidance_scale"] == 3.0  # the user's, not the candidates'
    trained = {row["seed"] for row in metadata(finished, "candidates")}
    assert not trained & {row["seed"] for row in result["examples"]}
    for row in result["examples"]:
        assert (finished / "evaluation" / row["before"]).is_file()
        assert (finished / "evaluation" / row["after"]).is_file()


# --- the same again ---------------------------------------------------------------------------------------------------


def test_the_same_run_twice_is_the_same_and_json_stands_alone(finished, config, tmp_path, capsys):
    command("train", config, "--out", tmp_path / "again", "--json", "-")
    captured = capsys.readouterr()
    numbers = json.loads(captured.out)
    assert set(numbers) >= {"images", "seconds", "judge", "rewards"}
    assert set(numbers["judge"]["object"]) >= {"base", "tuned", "ci95"}
    assert "tuning steps a round" in captured.err
    assert {**numbers, "seconds": None} == evaluation(finished)
    assert metadata(tmp_path / "again", "winners") == metadata(finished, "winners")
    assert same_run(finished, tmp_path / "again")


def test_a_finished_run_shows_its_result_without_a_model(copy, config, capsys, monkeypatch):
    for name in ("make_policy", "make_rewards", "run_evaluation"):
        monkeypatch.setattr(assemble, name, lambda *_, name=name: pytest.fail(f"{name} was called"))
    before = files(copy)
    command("train", config, "--out", copy)
    out = capsys.readouterr().out
    assert "this run is finished: 3 rounds" in out
    assert str(copy / "report.html") in out
    assert "before and after" in out
    assert {name: files(copy)[name] for name in before if name != "report.html"} == {
        name: content for name, content in before.items() if name != "report.html"
    }


def test_evaluate_repeats_the_numbers(copy, finished, tmp_path, capsys):
    command("evaluate", copy, "--json", tmp_path / "numbers.json")
    numbers = json.loads((tmp_path / "numbers.json").read_text(encoding="utf-8"))
    assert {**numbers, "seconds": None} == evaluation(finished) == evaluation(copy)
    assert "before and after" in capsys.readouterr().out


def test_report_writes_the_page_anew(copy, capsys):
    (copy / "report.html").unlink()
    command("report", copy)
    assert capsys.readouterr().out == f"{copy / 'report.html'}\n"
    assert "</html>" in (copy / "report.html").read_text(encoding="utf-8")


def test_a_folder_may_be_named_like_markup(finished, config, tmp_path, capsys):
    root = shutil.copytree(finished, tmp_path / "[red]run[" / "b]")  # joined: "[/b]"
    command("train", config, "--out", root)
    assert str(root / "lora") in capsys.readouterr().out


# --- going on ---------------------------------------------------------------------------------------------------------


def test_a_run_stopped_after_round_2_goes_on_to_the_same_end(copy, finished, config, capsys):
    for part in ("rounds/003", "lora", "evaluation"):
        shutil.rmtree(copy / part)
    (copy / "report.html").unlink()
    command("train", config, "--out", copy)
    assert "going on after round 2" in capsys.readouterr().out
    assert same_run(finished, copy)
    assert evaluation(copy) == evaluation(finished)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_killed_run_goes_on_to_the_same_end(finished, config, tmp_path):
    root = tmp_path / "killed"
    code = f"""
        import os, signal, sys
        from raft_diffusion.cli import main
        from raft_diffusion.diffusion import PictureCodec

        write = PictureCodec.write_samples

        def write_or_die(self, folder, samples, *, keep):
            names = write(self, folder, samples, keep=keep)
            if (folder.parents[1] / "001").is_dir():  # round 2 lies there half written
                os.kill(os.getpid(), signal.SIGKILL)
            return names

        PictureCodec.write_samples = write_or_die
        sys.argv = ["raft-diffusion", "train", {str(config)!r}, "--out", {str(root)!r}]
        main()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, timeout=300, check=False)
    assert done.returncode == -signal.SIGKILL
    assert sorted(path.name for path in (root / "rounds").iterdir()) == [".002.partial", "001"]
    command("train", config, "--out", root)
    assert same_run(finished, root)


def test_pictures_of_a_round_are_made_while_its_tuner_works(config, tmp_path):
    begin, tell, events = PictureCodec.begin, LiveTable.progress, []

    def begun(self, samples):
        events.append(len(samples))
        begin(self, samples)

    def told(self, stage, *counts):
        events.append(stage)
        tell(self, stage, *counts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PictureCodec, "begin", begun)
        patch.setattr(LiveTable, "progress", told)
        command("train", config, "--out", tmp_path / "run", "--set", "rounds=1")
    assert events.index(4) < events.index("tune")


@pytest.mark.parametrize(("number", "stage"), [(signal.SIGINT, ("sample", 4, 4)), (signal.SIGTERM, ("tune", 1, 2))])
def test_ctrl_c_finishes_the_batch_and_the_same_command_goes_on(finished, config, tmp_path, capfd, number, stage):
    root = tmp_path / "stopped"
    tell = LiveTable.progress

    def told(self, *event):
        tell(self, *event)
        if event == stage:
            os.kill(os.getpid(), number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LiveTable, "progress", told)
        with pytest.raises(SystemExit) as stop:
            command("train", config, "--out", root)
    assert stop.value.code == 130
    err = capfd.readouterr().err
    assert "stopping after the batch in hand, which is kept; Ctrl-C again stops at once" in err
    assert "stopped; the same command goes on where this one stopped" in err
    kinds = {path.suffix for path in (root / "unfinished" / "round").iterdir()}
    assert kinds == ({".batch"} if stage[0] == "sample" else {".batch", ".tuning"})
    command("train", config, "--out", root)
    assert same_run(finished, root)


def test_a_second_process_is_refused_in_one_line_before_it_loads_a_model(copy, config, capsys, monkeypatch):
    shutil.rmtree(copy / "rounds" / "003")
    before = files(copy)
    code = (
        "import sys; from raft_diffusion.core.lock import *; held = RunLock.take(Path(sys.argv[1])); print(flush=True)"
    )
    monkeypatch.setattr(assemble, "make_policy", lambda *_: pytest.fail("a model was loaded"))
    command_line = [sys.executable, "-c", f"{code}; sys.stdin.read()", str(copy)]
    with subprocess.Popen(command_line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout
        other.stdout.readline()
        with pytest.raises(SystemExit) as stop:
            command("train", config, "--out", copy)
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert f"another process works in {copy}; wait until it ends" in err
    assert files(copy) == before


def test_a_full_disk_is_said_in_one_line_and_the_same_command_goes_on(finished, config, tmp_path, capfd):
    root, flush, calls = tmp_path / "full", os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) > 40:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(handle)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(SystemExit) as stop:
            command("train", config, "--out", root)
    assert stop.value.code == 2
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith("raft-diffusion: the disk of ")
    assert last.endswith(" is full; make room on it, then the same command goes on where this one stopped")
    moved = root.rename(tmp_path / "another disk")
    command("train", config, "--out", moved)
    (moved / "rounds" / "001" / "time.json").touch()  # the disk filled up before it was written
    assert same_run(finished, moved)


def test_a_changed_setting_in_the_same_folder_is_refused(copy, config, capsys):
    before = files(copy)
    with pytest.raises(SystemExit) as stop:
        command("train", config, "--out", copy, "--seed", 5)
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "seed was 0 and is now 5" in err
    assert files(copy) == before


def test_more_rounds_are_evaluated_anew_even_after_a_stop(copy, finished, config, monkeypatch):
    with monkeypatch.context() as patch:

        def stopped(*_):
            raise KeyboardInterrupt

        patch.setattr(assemble, "run_evaluation", stopped)
        with pytest.raises(SystemExit):
            command("train", config, "--out", copy, "--set", "rounds=4")
    command("train", config, "--out", copy, "--set", "rounds=4")
    contents = files(copy)
    assert contents[f"lora/{LORA}"] == contents[f"rounds/004/adapter/{LORA}"]
    assert {k: v for k, v in files(finished).items() if k.startswith("rounds/")}.items() <= contents.items()
    assert evaluation(copy)["rewards"] != evaluation(finished)["rewards"]


def test_other_evaluation_settings_are_evaluated_anew(copy, finished, config):
    command("train", config, "--out", copy, "--set", "evaluation.pairs=6")
    assert evaluation(copy)["judge"]["object"]["pairs"] == 6
    assert evaluation(finished)["judge"]["object"]["pairs"] == 4
    assert files(copy)[f"lora/{LORA}"] == files(finished)[f"lora/{LORA}"]


# --- other rewards ----------------------------------------------------------------------------------------------------


def test_any_reward_may_rank_beside_a_held_out_tower(config, tmp_path):
    weights = "rewards.weights={ compressibility = 1.0 }"
    command("train", config, "--out", tmp_path / "run", "--set", weights, "--set", "rounds=1")
    (row,) = [row for row in metadata(tmp_path / "run", "candidates") if row["winner"]]
    assert set(row["scores"]) >= {"compressibility", "held_out.text_image"}
    assert row["key"] == max(r["key"] for r in metadata(tmp_path / "run", "candidates"))


def test_an_unknown_reward_is_refused_in_one_line(config, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        command("train", config, "--out", tmp_path / "run", "--set", 'rewards.weights={ "[/b]" = 1.0 }')
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "[/b]" in err
