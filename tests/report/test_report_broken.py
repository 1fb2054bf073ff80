"""The report of run folders with pieces missing, broken or hostile."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raft_diffusion.report.reader import Reader

RUNS = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("report_runs.py"))))
CONFIG, Page, make_evaluation, make_round = RUNS.CONFIG, RUNS.Page, RUNS.make_evaluation, RUNS.make_round
paint, row, write = RUNS.paint, RUNS.row, RUNS.write


def test_words_of_users_stay_words(tmp_path: Path) -> None:
    run, evil = tmp_path / "<i>run", "<script>alert(1)</script>\"' onload=x"
    write(run / "metrics.jsonl", make_round(run, 1, text=evil) | {"mean": {"<b>": 1.0}, "figures": {"<u>": 1.0}})
    (run / "rounds/001/round.json").unlink()
    paint(run / "evaluation/before/0.png")
    example = {"text": evil, "seed": evil, "before": "before/0.png", "after": evil, "after_label": evil}
    make_evaluation(run, examples=[example], settings={"<s>": evil}, judge={"<em>": row(0, 0, 1, 0, 1)})
    (run / "config.toml").write_text(f"model = {json.dumps(evil)}\n['<q>']\na = {json.dumps(evil)}\n")
    write(run / "environment.json", {"<tt>": evil})
    page = Page(run)
    assert page.all("script") == [{}]  # the page's own
    assert not {"b", "i", "u", "s", "q", "tt", "em"} & {tag for tag, _ in page.tags}
    assert not [have for _, have in page.tags if "onload" in have]
    assert page.words.count("<script>alert(1)</script>") > 5


def test_broken_pieces_are_named_and_left_out(run: Path) -> None:
    metadata = run / "rounds/003/candidates/metadata.jsonl"
    metadata.write_text(metadata.read_text()[:-30])
    (run / "rounds/002/candidates/aa-007.png").unlink()
    (run / "rounds/002/candidates/aa-006.png").write_bytes(b"no picture")
    shutil.rmtree(run / "rounds/001")
    (run / "rounds/.004.tmp").mkdir()
    (run / "evaluation/evaluation.json").write_text('{"judge": ')
    (run / "config.toml").write_text("model = ")
    (run / "environment.json").write_text("[1, 2]")
    words = Page(run).words
    for note in (
        "A line of rounds/003/candidates/metadata.jsonl is broken and was left out.",
        "A picture in rounds/002/candidates is missing or broken. (2 times)",
        "The folder of round 1 is gone",
        "evaluation/evaluation.json is no JSON object",
        "config.toml is no valid TOML",
        "environment.json is no JSON object",
    ):
        assert note in words
    assert "Round 3 is finished" in words and "picture missing" in words
    assert re.search(r"\bthe base model\b", words)


@pytest.mark.parametrize("junk", [None, 3, "x", [], [1], {"a": {"b": 1}}, {"object": 3}, float("nan"), 10**400])
def test_an_evaluation_of_any_shape_makes_a_page(run: Path, junk: Any) -> None:
    changes = dict.fromkeys(("judge", "rewards", "diversity", "examples", "settings", "images"), junk)
    make_evaluation(run, **changes)
    metadata = {"file_name": junk, "scores": junk, "key": junk, "winner": junk, "text": junk}
    write(run / "rounds/003/candidates/metadata.jsonl", metadata)
    write(run / "rounds/003/round.json", {"round": 3, "mean": junk, "best": junk, "figures": junk})
    assert "Round 3 of 4 is finished" in Page(run).words


NAMES = [
    "../../../secret.png",
    "/etc/secret.png",
    "deep/secret.png",
    "..\\secret.png",
    "..",
    ".",
    "",
    "a\0.png",
    "\ud800.png",
]


@pytest.mark.parametrize("name", [*NAMES, "link.png"])
def test_no_name_leads_out_of_its_folder(run: Path, name: str) -> None:
    paint(run.parent / "secret.png", "red")
    folder = run / "rounds/003/candidates"
    paint(folder / "deep/secret.png", "red")
    os.symlink(run.parent / "secret.png", folder / "link.png")
    write(folder / "metadata.jsonl", {"file_name": name, "text": "cat", "winner": True, "key": 1})
    page = Page(run)
    assert "refused: not in its folder" in page.words
    assert "rounds/003/candidates names a picture outside its folder; it was not opened." in page.words


@pytest.mark.parametrize("name", ["../config.png", "before/../../config.png", "/x.png", "before//x.png"])
def test_no_example_leads_out_of_the_evaluation(run: Path, name: str) -> None:
    paint(run / "config.png")
    make_evaluation(run, examples=[{"text": "cat", "seed": 1, "before": name, "after": name}])
    page = Page(run)
    assert page.words.count("refused: not in its folder") == 2


def test_the_page_stays_small(run: Path) -> None:
    reader = Reader(run, room=1000)
    shown = [reader.picture("rounds/003/candidates", f"aa-{k:03d}.png", side=64) for k in range(16)]
    assert shown[0].src and not shown[-1].src
    assert sum(len(picture.src) for picture in shown) < 1000 + max(len(picture.src) for picture in shown)
    assert any("left out to keep this page small" in note for note in reader.notes)
