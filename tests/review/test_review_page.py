"""The review page in a browser: a whole round by keyboard and by mouse, a server that is killed, hostile prompts."""

import json
import os
import runpy
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from raft_diffusion.core.store import stored_round
from raft_diffusion.review.server import ReviewServer

HERE = Path(__file__).parent
TOYS = SimpleNamespace(**runpy.run_path(str(HERE / "toys.py")))
BROWSER = SimpleNamespace(**runpy.run_path(str(HERE.parent / "browser.py")))
WAITING = "rounds/001.waiting"
HOSTILE = (
    "<script>document.title = 'broken'</script><img src=x onerror=\"document.title = 'broken'\">",
    "\"'`</h1></script>${document.title = 'broken'}{{ 7 * 7 }}&lt;b&gt;",
    "\x1b[31mred\x1b]0;broken\x07",
    "abc\u202egnp.tac\u2066",
    "long " * 2000,
)


@pytest.fixture(scope="module")
def browser():
    with BROWSER.open_browser() as opened:
        yield opened


@contextmanager
def opened(browser, address, **context):
    """The page; nothing may go wrong in it, and it may ask nobody else."""
    frame = browser.new_context(**context)
    page = frame.new_page()
    page.set_default_timeout(120_000)  # a busy machine takes its time
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: faults.append(request.url) if not request.url.startswith(address) else None)
    page.goto(address)
    yield page
    frame.close()
    assert [fault for fault in faults if not fault.startswith("data:")] == []


def marks(run: Path) -> list[tuple[int, int]]:
    """How many pictures of each prompt are chosen and rejected, replayed from the file."""
    from raft_diffusion.review.desk import Desk

    return [(len(group["chosen"]), len(group["rejected"])) for group in Desk(run).show()["choices"]["groups"]]


def kept(run: Path) -> int:
    path = run / WAITING / "choices.json"
    return len(json.loads(path.read_text())["actions"]) if path.exists() else 0


def done(page, words: str) -> None:
    page.wait_for_function("words => document.getElementById('count').textContent === words", arg=words)


def pressed(page) -> list[int]:
    return page.eval_on_selector_all(".pick", "all => all.flatMap((b, i) => b.ariaPressed === 'true' ? [i] : [])")


def test_a_whole_round_by_keyboard(browser, tmp_path):
    run = TOYS.waiting_run(tmp_path / "run")
    with ReviewServer(run) as server, opened(browser, server.address) as page:
        done(page, "0 of 3 done")
        assert page.inner_text("#prompt") == "a cat"
        page.keyboard.press("2")
        page.wait_for_selector("li.chosen:nth-child(2)")
        page.keyboard.press("3")  # the best is one: the choice moves
        page.wait_for_selector("li.chosen:nth-child(3)")
        assert pressed(page) == [2]
        page.keyboard.press("Shift+Digit1")
        page.wait_for_selector("li.rejected:nth-child(1)")
        page.keyboard.press("u")
        page.wait_for_selector("li.rejected", state="detached")
        page.keyboard.press("Enter")
        done(page, "1 of 3 done")
        assert page.inner_text("#prompt") == "a dog"
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Space")
        page.wait_for_selector("li.chosen:nth-child(2)")
        page.keyboard.press("x")
        page.wait_for_selector("li.rejected:nth-child(2)")
        assert pressed(page) == []
        page.keyboard.press("n")
        done(page, "2 of 3 done")
        page.keyboard.press("b")
        page.wait_for_function("() => document.getElementById('prompt').textContent === 'a dog'")
        page.keyboard.press("n")
        page.keyboard.press("1")
        page.wait_for_selector("li.chosen:nth-child(1)")
        page.keyboard.press("Enter")
        page.wait_for_selector("#finish:visible")
        assert page.inner_text("#end-title") == "Every prompt is done"
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.wait_for_function("() => document.getElementById('end-title').textContent === 'Round 1 is chosen'")
        assert server.desk.finished()
    assert marks(run) == [(1, 0), (0, 1), (1, 0)]


@pytest.mark.slow
def test_a_whole_round_by_mouse_on_a_phone(browser, tmp_path):
    run = TOYS.waiting_run(tmp_path / "run", best=2)
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    with ReviewServer(run) as server, opened(browser, server.address, **phone) as page:
        for count in range(3):
            done(page, f"{count} of 3 done")
            page.locator(".pick").nth(0).tap()
            page.wait_for_selector("li.chosen:nth-child(1)")
            page.locator(".pick").nth(2).tap()
            page.wait_for_selector("li.chosen:nth-child(3)")
            page.locator(".pick").nth(1).tap()
            page.wait_for_selector("#trouble:visible")
            assert "take one back first" in page.inner_text("#trouble")
            page.locator(".reject").nth(1).tap()
            page.wait_for_selector("li.rejected:nth-child(2)")
            assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
            page.locator("#next").tap()
        page.wait_for_selector("#finish:visible")
        page.locator("#undo").tap()
        done(page, "2 of 3 done")
        page.locator("#next").tap()
        page.locator("#finish").tap()
        page.wait_for_function("() => document.getElementById('end-title').textContent === 'Round 1 is chosen'")
    assert marks(run) == [(2, 1)] * 3


def test_nothing_chosen_cannot_be_finished(browser, tmp_path):
    run = TOYS.waiting_run(tmp_path / "run")
    with ReviewServer(run) as server, opened(browser, server.address) as page:
        for count in range(3):
            done(page, f"{count} of 3 done")
            assert page.inner_text("#next") == "None of these, next"
            page.click("#next")
        page.wait_for_selector("#end:visible")
        assert "choose at least one" in page.inner_text("#end-words")
        assert page.is_hidden("#finish")


def serve(run: Path) -> tuple[subprocess.Popen, str]:
    """`review` in a process of its own, and the address that it prints."""
    command = [sys.executable, "-u", "-m", "raft_diffusion.cli", "review", str(run)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8")
    assert process.stdout is not None
    return process, next(line.strip() for line in process.stdout if line.strip().startswith("http"))


@pytest.mark.slow
def test_a_server_that_is_killed_loses_no_choice(browser, tmp_path):
    run = TOYS.waiting_run(tmp_path / "run")
    process, address = serve(run)
    try:
        with opened(browser, address) as page:
            done(page, "0 of 3 done")
            page.keyboard.press("2")
            page.wait_for_selector("li.chosen:nth-child(2)")
            page.keyboard.press("Enter")
            done(page, "1 of 3 done")
            page.keyboard.press("4")
            page.wait_for_selector("li.chosen:nth-child(4)")
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            page.keyboard.press("Enter")
            page.wait_for_selector("#trouble:visible")
            assert "What you chose is kept" in page.inner_text("#trouble")
    finally:
        process.kill()
        process.communicate()
    assert kept(run) == 3
    process, address = serve(run)
    try:
        with opened(browser, address) as page:
            done(page, "1 of 3 done")
            assert page.inner_text("#prompt") == "a dog"
            assert pressed(page) == [3]
            for count in (2, 3):
                page.keyboard.press("Enter")
                done(page, f"{count} of 3 done")
            page.click("#finish")
            page.wait_for_function("() => document.getElementById('end-title').textContent === 'Round 1 is chosen'")
            out, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        assert f"train {run / 'config.toml'} --out {run}" in out
    finally:
        process.kill()
        process.communicate()
    assert marks(run) == [(1, 0), (1, 0), (0, 0)]


def test_a_run_waits_goes_on_and_shows_its_next_round_on_the_same_page(browser, tmp_path):
    """The darkest picture of every prompt is chosen in both rounds, by its colour in the browser."""
    told: list[str] = []
    known = threading.Event()

    def announce(address):
        told.append(address)
        known.set()

    found = []

    def go():
        found.extend(TOYS.rounds_of(tmp_path / "run", TOYS.configure(rounds=2), announce=announce))

    worker = threading.Thread(target=go, daemon=True)
    worker.start()
    assert known.wait(30)
    with opened(browser, told[0]) as page:
        for index in (1, 2):
            page.wait_for_function(f"() => document.getElementById('where').textContent.endsWith('round {index} of 2')")
            for count in range(3):
                done(page, f"{count} of 3 done")
                page.wait_for_function("() => [...document.images].every(image => image.complete)")
                dark = page.evaluate(DARKEST)
                page.locator(".pick").nth(dark).click()
                page.wait_for_selector(f"li.chosen:nth-child({dark + 1})")
                page.click("#next")
            page.click("#finish")
            page.wait_for_selector("#end:visible")
    worker.join(30)
    assert not worker.is_alive() and len(told) == 1
    assert [round_.index for round_ in found] == [1, 2]
    for index in (1, 2):
        stored = stored_round(tmp_path / "run", index)
        for group in stored.groups:
            darkest = min(group.candidates, key=lambda c: TOYS.level_of(c.sample.data))
            assert darkest.sample.id in stored.winners
    assert found[1].figures["level"] < found[0].figures["level"] < 128


DARKEST = """() => {
  const greys = [...document.querySelectorAll(".pick img")].map((image) => {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = 1;
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0, 1, 1);
    return context.getImageData(0, 0, 1, 1).data[0];
  });
  return greys.indexOf(Math.min(...greys));
}"""


def test_hostile_prompts_are_words_and_nothing_else(browser, tmp_path):
    run = TOYS.waiting_run(tmp_path / "run", HOSTILE)
    with ReviewServer(run) as server, opened(browser, server.address) as page:
        for number, prompt in enumerate(HOSTILE):
            done(page, f"{number} of {len(HOSTILE)} done")
            shown = page.text_content("#prompt")
            assert shown == "".join(c if c not in "\x1b\x07\u202e\u2066" else "\ufffd" for c in prompt)
            assert page.query_selector("#prompt *") is None
            assert page.evaluate("() => document.querySelectorAll('script').length") == 1
            box = page.locator(".pick").nth(0).bounding_box()
            assert box and box["y"] < 500  # 10,000 characters push nothing off the page
            page.keyboard.press("1")
            page.wait_for_selector("li.chosen")
            page.keyboard.press("n")
        page.wait_for_selector("#finish:visible")
        assert page.title() == "Choose the best pictures"


def test_nothing_serious_keeps_people_out(browser, tmp_path):
    run = TOYS.waiting_run(tmp_path / "run")
    for scheme in ("light", "dark"):
        with ReviewServer(run) as server, opened(browser, server.address, color_scheme=scheme) as page:
            done(page, "0 of 3 done")
            page.keyboard.press("1")
            page.wait_for_selector("li.chosen")
            page.keyboard.press("Shift+Digit2")
            page.wait_for_selector("li.rejected")
            assert BROWSER.serious_faults(page) == []
            page.keyboard.press("u")
            page.keyboard.press("u")
            page.wait_for_selector("li.chosen", state="detached")
