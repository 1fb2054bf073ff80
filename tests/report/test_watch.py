"""`watch`: the page follows the run, and ends with it."""

from __future__ import annotations

import runpy
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from raft_diffusion import cli
from raft_diffusion.report import reader
from raft_diffusion.report.watch import watch

BROWSER = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "browser.py")))
RUNS = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("report_runs.py"))))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run in its second round."""
    root = RUNS.make_whole(tmp_path / "monet")
    shutil.rmtree(root / "evaluation")
    shutil.rmtree(root / "rounds/003")
    RUNS.write(root / "metrics.jsonl")
    return root


def read(run: Path) -> str:
    return (run / "report.html").read_text(encoding="utf-8")


def test_the_page_follows_the_run_to_its_end(run, monkeypatch):
    opened, told, pages = [], [], []
    monkeypatch.setattr(
        reader.Image, "open", lambda path, original=reader.Image.open, **k: opened.append(path) or original(path, **k)
    )
    steps = iter(
        [
            lambda: None,
            lambda: RUNS.make_round(run, 3),
            lambda: RUNS.make_evaluation(run),
        ]
    )

    def sleep(seconds: float) -> None:
        assert seconds == 7
        pages.append(read(run))
        next(steps)()

    watch(run, every=7, tell=told.append, sleep=sleep)
    assert told == [run / "report.html"] * 3  # nothing new, nothing written
    assert all('data-refresh="7"' in page for page in pages) and "data-refresh" not in read(run)
    assert "Round 2 of 4" in pages[0] and "Round 3 of 4" in pages[2] and "A cat is now" in read(run)
    assert len(opened) == len(set(opened)) == 3 * 16 + 2 * 4  # no picture twice


def test_ctrl_c_leaves_a_page_that_rests(run, capsys, monkeypatch):
    def interrupted(seconds: float) -> None:
        assert 'data-refresh="3"' in read(run)
        raise KeyboardInterrupt

    monkeypatch.setattr("raft_diffusion.report.watch.watch.__kwdefaults__", {"sleep": interrupted})
    monkeypatch.setattr(sys, "argv", ["raft-diffusion", "watch", str(run), "--every", "3"])
    cli.main()
    assert "stopped watching" in capsys.readouterr().out and "data-refresh" not in read(run)


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["raft-diffusion", "watch", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2 and "holds no config.toml" in capsys.readouterr().err


def test_the_page_reloads_itself_and_stays_where_its_reader_was(run):
    from raft_diffusion.report import write_report

    with BROWSER.open_browser() as browser:
        page = browser.new_page()
        page.clock.install()  # the page's seconds pass when we say so
        page.goto(write_report(run, refresh=30).as_uri())
        page.locator("#prompt-1-round-1 summary").click()
        page.locator("#prompt-1-round-2 summary").click()
        candidate = page.locator("#prompt-1-round-1 .candidate").nth(9)
        candidate.scroll_into_view_if_needed()
        before = candidate.bounding_box()["y"]
        assert page.evaluate("scrollY") > 500
        RUNS.make_evaluation(run)
        write_report(run)
        page.clock.run_for(31_000)
        page.locator("h1", has_text="A cat is now").wait_for()
        assert candidate.bounding_box()["y"] == pytest.approx(before, abs=2)  # though all above it has grown
        folds = page.evaluate("[...document.querySelectorAll('.prompt details')].map(fold => [fold.id, fold.open])")
        assert folds == [["prompt-1-round-2", False], ["prompt-1-round-1", True]]
        page.evaluate("document.title = 'still here'")
        page.clock.run_for(600_000)
        assert page.title() == "still here"  # the last page does not load itself again
