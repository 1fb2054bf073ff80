"""The report as a browser shows it: usable by eye, keyboard and screen reader, and no foreign script runs."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from raft_diffusion.report import write_report

TESTS = Path(__file__).parents[1]
BROWSER = SimpleNamespace(**runpy.run_path(str(TESTS / "browser.py")))
RUNS = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("report_runs.py"))))
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
HOSTILE = (
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "</script><script>alert(1)</script>",
    "{{ 7 * 7 }} javascript:alert(1)",
    "\x1b[31mred\x1b]0;title\x07",
    "\u202eretsnom elyts tenom\u2066",
    "a long cat " * 1000,
)


@pytest.fixture(scope="module")
def browser():
    with BROWSER.open_browser() as opened:
        yield opened


def show(browser, run: Path, **context):
    """The report in a fresh window that goes nowhere; what the page complains of is collected in `page.faults`."""
    page = browser.new_context(offline=True, **context).new_page()
    page.faults = []
    page.on("dialog", lambda dialog: (page.faults.append(dialog.message), dialog.dismiss()))
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.on("console", lambda message: page.faults.append(message.text) if message.type == "error" else None)
    page.on(
        "request", lambda request: None if request.url[:5] in ("file:", "data:") else page.faults.append(request.url)
    )
    page.goto(write_report(run).as_uri())
    return page


def edge(page, place: str) -> str:
    """Where "after" begins in a pair, as the browser computes it."""
    return page.locator(place).first.evaluate("node => getComputedStyle(node).clipPath")


def test_the_slider_moves_by_keyboard_and_the_pointer_moves_one_pair(browser, run):
    page = show(browser, run)
    assert edge(page, ".after") == "inset(0px 0px 0px 50%)"
    page.locator("#split").focus()
    page.keyboard.press("End")
    assert edge(page, ".after") == "inset(0px 0px 0px 100%)"
    assert page.locator("#split").get_attribute("aria-valuetext") == "100 % before, 0 % after"
    frame = page.locator(".frame").first
    frame.hover(position={"x": frame.bounding_box()["width"] / 4, "y": 10})
    assert edge(page, ".after").startswith("inset(0px 0px 0px 2")
    assert edge(page, ".pair:nth-child(2) .after") == "inset(0px 0px 0px 100%)"
    page.mouse.move(0, 0)
    assert edge(page, ".after") == "inset(0px 0px 0px 100%)"
    page.locator("#view-slide").focus()
    page.keyboard.press("ArrowRight")
    before, after = (page.locator(f".pair .{side} img").first.bounding_box() for side in ("before", "after"))
    assert before["x"] + before["width"] <= after["x"] and before["y"] == after["y"]
    assert edge(page, ".after") == "none" and not page.faults


def test_without_scripts_both_pictures_stand_side_by_side(browser, run):
    page = show(browser, run, java_script_enabled=False)
    before, after = (page.locator(f".pair .{side} img").first.bounding_box() for side in ("before", "after"))
    assert before["x"] + before["width"] <= after["x"] and before["width"] == after["width"] > 50
    assert not page.locator(".controls").is_visible()
    assert page.locator(".candidate").first.is_visible()


@pytest.mark.parametrize("context", [{"viewport": {"width": 1280, "height": 800}}, PHONE, {"color_scheme": "dark"}])
def test_nothing_sticks_out_and_every_picture_is_shown(browser, run, context):
    page = show(browser, run, **context)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for picture in page.locator("img:visible").all():
        picture.scroll_into_view_if_needed()
        page.wait_for_function("picture => picture.complete && picture.naturalWidth > 0", arg=picture.element_handle())
    assert not page.faults


@pytest.mark.parametrize("context", [{"color_scheme": "light"}, {"color_scheme": "dark"}, PHONE])
def test_nobody_is_kept_out(browser, run, context):
    page = show(browser, run, **context)
    assert BROWSER.serious_faults(page) == []


def test_the_focus_is_seen_on_whatever_takes_it(browser, run):
    page = show(browser, run)
    seen = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        tag, outline = page.evaluate(
            """() => { const at = document.activeElement;
                       const shown = at.matches("input[type=radio]") ? at.parentElement : at;
                       return [at.tagName, getComputedStyle(shown).outlineStyle]; }"""
        )
        if tag == "BODY":
            break
        seen.add(tag)
        assert outline != "none", tag
    assert {"A", "INPUT", "SUMMARY", "PRE"} <= seen


@pytest.mark.parametrize("text", HOSTILE)
def test_no_prompt_does_anything(browser, run, text):
    RUNS.make_evaluation(run, examples=[dict.fromkeys(("text", "seed", "before", "after", "after_label"), text)])
    shutil.rmtree(run / "rounds")
    RUNS.make_round(run, 1, text)
    (run / "config.toml").write_text(f"model = {json.dumps(text)}\n[prompts]\ntrain = [{json.dumps(text)}]\n")
    page = show(browser, run)
    assert page.faults == [] and page.evaluate("document.scripts.length") == 1
    words = page.locator("body").inner_text()
    assert not set(words) & set("\x1b\x07\u202e\u2066")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    heading = page.locator(".prompt h3").inner_text()
    assert len(heading) <= 160
    if len(text) < 160:
        assert heading == text.replace("\x1b", "\\u001b").replace("\x07", "\\u0007").replace(
            "\u202e", "\\u202e"
        ).replace("\u2066", "\\u2066")


@pytest.mark.slow
def test_a_script_that_got_in_all_the_same_would_not_run(browser, run):
    page = show(browser, run)
    path = run / "report.html"
    path.write_text(
        path.read_text(encoding="utf-8").replace("<main>", "<main><script>alert(1)</script><b onclick=alert(1)>")
    )
    page.reload()
    page.locator("main > b").first.dispatch_event("click")
    assert all("Content Security Policy" in fault for fault in page.faults) and len(page.faults) == 2
