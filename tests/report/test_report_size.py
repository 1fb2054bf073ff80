"""A report of 5,000 candidates: how large it is, and how soon a browser shows it. The times are printed, not judged."""

from __future__ import annotations

import json
import os
import runpy
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from raft_diffusion.report import write_report

BROWSER = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "browser.py")))
RUNS = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("report_runs.py"))))
ROUNDS, PROMPTS, K = 4, 25, 50
KINDS = 60  # candidates' pictures that differ; the others are links to them
LARGE = 6  # the same of the evaluation's, which are shown larger


def photograph(seed: int, side: int) -> Image.Image:
    """Noise whose amplitude falls as 1/f, as that of photographs does, so that it is about as hard to compress."""
    generator = np.random.default_rng(seed)
    waves = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :]
    fall = 1 / np.maximum(np.hypot(*waves), 1 / side)
    noise = np.fft.rfft2(generator.standard_normal((3, side, side))) * fall
    values = np.fft.irfft2(noise, (side, side))
    shared = 0.7 * values.mean(0) * 3**0.5 + 0.3 * values  # the colours of a photograph go together
    return Image.fromarray(np.uint8(np.clip(128 + 55 * shared / shared.std(), 0, 255)).transpose(1, 2, 0))


def make_large(run: Path) -> None:
    (run / "pictures").mkdir(parents=True)
    for kind in range(KINDS + LARGE):
        photograph(kind, 160 if kind < KINDS else 512).save(run / f"pictures/{kind}.png", compress_level=1)
    for index in range(1, ROUNDS + 1):
        folder = run / f"rounds/{index:03d}/candidates"
        folder.mkdir(parents=True)
        rows = []
        for prompt in range(PROMPTS):
            for k in range(K):
                name = f"{prompt:02d}-{k:03d}.png"
                os.link(run / f"pictures/{(index * 7919 + prompt * K + k) % KINDS}.png", folder / name)
                scores = {"text_image": 20 + k / 7, "aesthetic": 5 + k / 70, "held_out.text_image": 21 + k / 8}
                row = {"file_name": name, "text": f"a watercolour of animal number {prompt}", "prompt_id": str(prompt)}
                rows.append(row | {"group": 0, "scores": scores, "key": k / 10, "winner": k >= K - 5})
        RUNS.write(folder / "metadata.jsonl", *rows)
        numbers = {"round": index, "candidates": PROMPTS * K, "winners": PROMPTS * 5, "figures": {"loss": 0.1}}
        numbers |= {"mean": {"text_image": index}, "deviation": {"text_image": 2.0}, "best": {"text_image": index + 1}}
        RUNS.write(run / f"rounds/{index:03d}/round.json", numbers)
    RUNS.make_evaluation(run)
    examples = []
    for place in range(36):
        for side in ("before", "after"):
            target = run / f"evaluation/{side}/{place:03d}.png"
            target.unlink(missing_ok=True)
            os.link(run / f"pictures/{KINDS + place % LARGE}.png", target)
        example = {"text": f"a watercolour of animal number {place % PROMPTS}", "seed": place}
        examples.append(example | {"before": f"before/{place:03d}.png", "after": f"after/{place:03d}.png"})
    path = run / "evaluation/evaluation.json"
    RUNS.write(path, json.loads(path.read_text(encoding="utf-8")) | {"examples": examples})
    (run / "config.toml").write_text(RUNS.CONFIG.replace("pocket", "owner/name"))


@pytest.mark.slow
def test_five_thousand_candidates_open_at_once(tmp_path, capsys):
    run = tmp_path / "large"
    make_large(run)
    began = time.monotonic()
    path = write_report(run)
    written, size = time.monotonic() - began, path.stat().st_size
    with BROWSER.open_browser() as browser:
        page = browser.new_page()
        costs = page.context.new_cdp_session(page)
        costs.send("Performance.enable", {"timeDomain": "threadTicks"})
        page.goto(path.as_uri(), wait_until="load")
        metrics = {row["name"]: row["value"] for row in costs.send("Performance.getMetrics")["metrics"]}
        paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
        loaded = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
        pictures = page.locator(".candidate img").count()
        began = time.monotonic()
        page.locator("#prompt-20 > summary").click()
        page.locator("#prompt-20-round-4 .candidate img").first.scroll_into_view_if_needed()
        opened = time.monotonic() - began
    numbers = {
        "candidates": ROUNDS * PROMPTS * K,
        "megabytes": round(size / 1e6, 1),
        "seconds_to_write": round(written, 1),
        "seconds_to_first_paint": round(paint / 1000, 2),
        "seconds_to_load": round(loaded / 1000, 2),
        "cpu_seconds_to_load": round(metrics["TaskDuration"], 2),  # what a busy machine does not change
        "seconds_to_open_a_prompt": round(opened, 2),
    }
    with capsys.disabled():
        print(f"\n{json.dumps(numbers)}")
    assert pictures == ROUNDS * PROMPTS * K and size < 25e6
