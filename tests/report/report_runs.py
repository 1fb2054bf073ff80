"""Synthetic run folders for the report's tests, and its page as tags and words."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from raft_diffusion.report import write_report
from raft_diffusion.report.use import LORA

VOID = {"meta", "img", "input", "br", "wbr"}
CONFIG = """
model = "pocket"
rounds = 4

[select]
fraction = 0.25

[select.weights]
text_image = 1.0
"""


def row(base: float, oracle: float, tuned: float, low: float, high: float) -> dict[str, Any]:
    return {"base": base, "oracle": oracle, "tuned": tuned, "ci95": [low, high], "pairs": 128}


def paint(path: Path, color: str = "orange", size: int = 64) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", (size, size), "skyblue")
    ImageDraw.Draw(picture).ellipse((size // 4, size // 4, size * 3 // 4, size * 3 // 4), fill=color)
    picture.save(path)


def write(path: Path, *rows: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_round(run: Path, index: int, text: str = "monet style cat") -> dict[str, Any]:
    """Two contests of 8 candidates, of which the two best of each win."""
    folder = run / f"rounds/{index:03d}"
    candidates = []
    for k in range(16):
        name = f"aa-{k:03d}.png"
        paint(folder / "candidates" / name, color=f"hsl({20 * k}, 80%, 50%)")
        candidates.append(
            {"file_name": name, "text": text, "negative": "", "id": f"aa-{k:03d}", "prompt_id": "aa", "group": k // 8}
            | {"k": k, "seed": k, "scores": {"text_image": k / 100}, "key": k % 8, "winner": k % 8 > 5, "weight": 1.0}
        )
    write(folder / "candidates/metadata.jsonl", *candidates)
    (folder / "adapter").mkdir()
    (folder / "adapter" / LORA).write_bytes(b"")
    numbers = {"round": index, "candidates": 16, "winners": 4, "figures": {"loss": 0.1}}
    numbers |= {"mean": {"text_image": index / 10, "held_out.sharp": 0.5}, "best": {"text_image": index / 5}}
    write(folder / "round.json", numbers)
    return numbers


def make_evaluation(run: Path, **changes: Any) -> None:
    examples = []
    for i in range(4):
        paint(run / f"evaluation/before/{i:03d}.png", "green")
        paint(run / f"evaluation/after/{i:03d}.png", "orange")
        example = {"text": "monet style cat", "seed": i, "before": f"before/{i:03d}.png", "after": f"after/{i:03d}.png"}
        examples.append(example | {"before_label": "monet style landscape", "after_label": "monet style cat"})
    evaluation = {
        "images": 512,
        "seconds": 61.2,
        "settings": {"guidance_scale": 4.0, "num_inference_steps": 15, "width": 64, "height": 64, "seed": 0},
        "judge": {"object": row(0.2, 0.6, 0.93, 0.66, 0.8), "style": row(0.88, 0.9, 0.79, -0.15, -0.04)},
        "rewards": {"text_image": row(0.21, 0.29, 0.3, 0.08, 0.1), "held_out": row(0.42, 0.43, 0.43, -0.01, 0.03)},
        "diversity": {"base": 0.52, "tuned": 0.41, "true": 0.55},
        "examples": examples,
    }
    write(run / "evaluation/evaluation.json", evaluation | changes)


def make_whole(run: Path) -> Path:
    """Three rounds, an evaluation and a LoRA."""
    write(run / "metrics.jsonl", *[make_round(run, index) for index in (1, 2, 3)])
    make_evaluation(run)
    (run / "config.toml").write_text(CONFIG)
    write(run / "environment.json", {"torch": "2.15.0", "device": {"name": "a <GPU>"}})
    (run / "lora").mkdir()
    (run / "lora" / LORA).write_bytes(b"")
    return run


class Page(HTMLParser):
    """The page as tags and visible words; asserts that every tag is closed."""

    def __init__(self, run: Path) -> None:
        super().__init__()
        self.html = write_report(run).read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words = ""
        self.feed(self.html)
        assert not self.open
        self.words = " ".join(self.words.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID and not (self.get_starttag_text() or "").endswith("/>"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += "" if self.open and self.open[-1] in ("style", "script") else f" {data}"

    def all(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        return [have for name, have in self.tags if name == tag and attributes.items() <= have.items()]
