"""The report of synthetic run folders: whole ones, and ones with pieces missing, broken or hostile."""

from __future__ import annotations

import base64
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from raft_diffusion.report import LORA, LOSERS, write_report
from raft_diffusion.report_charts import BOTTOM, LEFT, RIGHT, TOP, chart
from raft_diffusion.report_reader import Reader
from raft_diffusion.report_result import headline, read_measures, signed, written

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


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "monet"
    write(run / "metrics.jsonl", *[make_round(run, index) for index in (1, 2, 3)])
    make_evaluation(run)
    (run / "config.toml").write_text(CONFIG)
    write(run / "environment.json", {"torch": "2.15.0", "device": {"name": "a <GPU>"}})
    (run / "lora").mkdir()
    (run / "lora" / LORA).write_bytes(b"")
    return run


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "monet")


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
        self.words += "" if self.open and self.open[-1] == "style" else f" {data}"

    def all(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        return [have for name, have in self.tags if name == tag and attributes.items() <= have.items()]


def test_a_whole_run_says_its_result_first(run: Path) -> None:
    page = Page(run)
    assert (
        "A cat is now in 93 % of the pictures; before it was 20 % (95 % interval of the gain: +66 to +80 points)."
        in (page.words)
    )
    assert "Measured on 128 pairs" in page.words and "+73 points" in page.words
    assert "−9 points −15 to −4 worse" in page.words and "no clear change" in page.words
    assert "Not everything could be shown" not in page.words
    assert re.findall(r"<details( open)?>\s*<summary>Round (\d)", page.html) == [("", "1"), ("", "2"), (" open", "3")]


def test_the_page_needs_nothing_but_itself(run: Path) -> None:
    (run / "config.toml").write_text(CONFIG + '\n[track]\naddress = "https://example.org/x.js"\n')
    page = Page(run)
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "action", "data", "poster", "background"):
            if name in attributes:
                assert re.match(r"data:image/webp;base64,|#\w", attributes[name] or "")
    assert not {"script", "link", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.tags}
    assert "url(" not in page.html and "@import" not in page.html
    assert page.html.startswith("<!doctype html>")
    assert sorted(path.name for path in run.iterdir() if "report" in path.name) == ["report.html"]


def test_a_reader_without_eyes_gets_all_of_it(run: Path) -> None:
    page = Page(run)
    pictures, charts = page.all("img"), page.all("svg", role="img")
    assert len(pictures) == 2 * 4 + 3 * 2 * (2 + LOSERS)
    assert all((picture["alt"] or "").strip() and picture["loading"] == "lazy" for picture in pictures)
    ids = [have["id"] for _, have in page.tags if "id" in have]
    assert len(ids) == len(set(ids))
    for svg in charts:
        assert svg.get("aria-label") or set((svg["aria-labelledby"] or "").split()) <= set(ids)
    assert all((have["href"] or "")[1:] in ids for have in page.all("a"))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


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
    assert not {"script", "b", "i", "u", "s", "q", "tt", "em"} & {tag for tag, _ in page.tags}
    assert not [have for _, have in page.tags if "onload" in have]
    assert page.words.count("<script>alert(1)</script>") > 5


def test_small_pictures_stay_hard_and_large_ones_become_thumbnails(run: Path) -> None:
    paint(run / "evaluation/before/000.png", size=512)
    pictures = [have for have in Page(run).all("img") if (have["alt"] or "").startswith("before")]
    sizes = [Image.open(io.BytesIO(base64.b64decode((p["src"] or "").split(",")[1]))).size for p in pictures]
    assert sizes == [(256, 256), (64, 64), (64, 64), (64, 64)]
    assert [p["class"] for p in pictures] == ["", " hard", " hard", " hard"]


def test_winners_come_first_and_the_worst_losers_last(run: Path) -> None:
    keys = re.findall(r"(winner|not chosen), key ([\d.]+): monet", Page(run).html)[: 2 + LOSERS]
    assert [(kind, float(key)) for kind, key in keys] == [
        ("winner", 7),
        ("winner", 6),
        ("not chosen", 2),
        ("not chosen", 1),
        ("not chosen", 0),
    ]


@pytest.mark.parametrize(
    ("evaluation", "sentence", "note"),
    [
        ({"judge": {"object": row(0.5, 0.6, 0.47, -0.09, 0.03)}}, "change: −9 to +3 points", "The interval holds 0"),
        (
            {"judge": {"object": {"base": 0.2, "tuned": 0.4}}},
            "It is now in 40 % of the pictures; before it was 20 %.",
            "",
        ),
        ({"judge": {"object": {"base": 0.2, "tuned": 0.4}}}, "It is now", "No interval was measured"),
        (
            {
                "judge": {"object_ood": row(0, 0, 1, 0, 1)},
                "rewards": {
                    "held_out.x_ood": row(0, 0, 1, 0, 1),
                    "aesthetic": row(5, 6, 5.5, 0.4, 0.6),
                    "held_out.x": row(-1, 0, 1234.4, 0.2, 1500),
                },
            },
            "held_out.x is now 1,234 on average; before it was −1.00 (95 % interval of the gain: +0.200 to +1,500)",
            "It took no part in the ranking.",
        ),
        ({"rewards": {"aesthetic": row(5, 6, 5.5, 0.4, 0.6)}}, "aesthetic is now 5.50", "It ranked the candidates"),
    ],
)
def test_headlines(evaluation: dict[str, Any], sentence: str, note: str) -> None:
    result = headline(read_measures(evaluation), "It")
    assert result is not None
    assert sentence in result.sentence and note in result.note


@pytest.mark.parametrize(
    ("texts", "subject"),
    [
        (["a Cat, monet style", "photo cat"], "A cat is"),
        (["monet style airplane"], "An airplane is"),
        (["photo cat", "photo dog"], "The object that the prompt names is"),
        (["cat and dog"], "The object that the prompt names is"),
        (["a catfish"], "The object that the prompt names is"),
    ],
)
def test_the_object_is_named_when_there_is_one(run: Path, texts: list[str], subject: str) -> None:
    shutil.rmtree(run / "rounds")
    for index, text in enumerate(texts, 1):
        make_round(run, index, text)
    assert f"{subject} now in 93 % of the pictures" in Page(run).words


def test_other_prompts_stand_apart(run: Path) -> None:
    paint(run / "evaluation/before/0.png")
    pictures = {"before": "before/0.png", "after": "before/0.png", "before_label": "not seen", "after_label": "right"}
    texts = ["monet style house", "monet style cat", "monet style rocket"]
    make_evaluation(
        run,
        examples=[{"text": text, "seed": i} | pictures for i, text in enumerate(texts)],
        settings={"best_of": 16},
        judge={"object": row(0.2, 0.6, 0.9, 0.6, 0.8), "object_ood": row(0.9, 0.9, 0.8, -0.2, 0.1)},
    )
    words = Page(run).words
    assert re.search("“monet style cat” Before .*Other prompts Before monet style house", words)
    assert words.count("✓ right") == 3 and "✓ not seen" not in words
    assert "The object asked for, other prompts" in words
    assert "Best of 16" in words and "Best of K" not in words


def test_numbers_are_written_for_people() -> None:
    assert [written(x) for x in (0.20123, 6.0, 60, -0.5, 123456.7, None, float("nan"))] == (
        ["0.201", "6.00", "60", "−0.500", "123,457", "–", "–"]
    )
    assert signed(0.25) == "+0.250" and signed(-2.5) == "−2.50"


def test_a_chart_spans_its_plot() -> None:
    drawn = chart("x", {"all": [(1, 0.21), (2, 0.3), (3, 0.39)], "none": []}, held_out=False)
    points = drawn.lines["all"]
    assert [label for _, label in drawn.y_ticks] == ["0.20", "0.25", "0.30", "0.35", "0.40"]
    assert list(drawn.lines) == ["all"] and [label for _, label in drawn.x_ticks] == ["1", "2", "3"]
    assert (points[0].x, points[-1].x) == (LEFT, RIGHT)
    assert points[1].y == pytest.approx((TOP + BOTTOM) / 2)
    assert points[0].y == pytest.approx(BOTTOM - 0.05 * (BOTTOM - TOP), abs=0.06)


@pytest.mark.parametrize("value", [0.0, -3.0, 1e9, 1e-9])
def test_a_chart_of_one_point_is_a_point(value: float) -> None:
    drawn = chart("x", {"all": [(4, value)]}, held_out=True)
    (point,) = drawn.lines["all"]
    assert point.x == (LEFT + RIGHT) / 2 and TOP <= point.y <= BOTTOM


def test_a_long_run_keeps_its_axis_readable() -> None:
    drawn = chart("x", {"all": [(i, i) for i in range(1, 101)]}, held_out=False)
    assert len(drawn.x_ticks) <= 10 and 3 <= len(drawn.y_ticks) <= 7


def test_intervals_lie_within_the_chart():
    drawn = chart("x", {"all": [(0, 2.0), (1, 3.0)]}, held_out=True, spans=[(0, 2.0, 2.0), (1, 1.0, 6.0)])
    (low, high), points = drawn.spans[1], drawn.lines["all"]
    assert (low.x, low.value, high.value) == (points[1].x, 1.0, 6.0)
    assert TOP <= high.y < points[1].y < low.y <= BOTTOM
    assert drawn.spans[0][0].y == points[0].y


def test_a_run_without_evaluation_says_how_far_it_is(run: Path) -> None:
    shutil.rmtree(run / "evaluation")
    shutil.rmtree(run / "lora")
    words = Page(run).words
    assert "Round 3 of 4 is finished; the candidates' mean text_image went from 0.100 to 0.300." in words
    assert "There is no evaluation yet" in words
    assert 'pipe.load_lora_weights("rounds/003/adapter")' in words and "LoRA of its last round" in words


def test_a_run_of_one_round_and_one_of_none(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(CONFIG)
    words = Page(tmp_path).words
    assert "No round is finished yet." in words and "no LoRA in this run folder yet" in words
    make_round(tmp_path, 1)
    assert "Round 1 of 4 is finished." in Page(tmp_path).words


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


def test_how_to_use_the_lora(run: Path) -> None:
    words = Page(run).words
    assert "fits only the small model that raft_diffusion carries" in words and "no WebUI has that model" in words
    assert (
        'from_pretrained(resolve_model("pocket")) pipe.load_lora_weights("lora") pipe(\'monet style cat\', width=64'
        in words
    )
    (run / "config.toml").write_text('model = "owner/name"')
    words = Page(run).words
    assert "from_pretrained('owner/name', dtype=torch.float16)" in words and "carries" not in words
    assert f"raft-diffusion export {run.name} writes one checked file" in words


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no run folder"):
        write_report(tmp_path)


def test_the_report_needs_no_torch() -> None:
    code = "import sys, raft_diffusion.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_rounds_that_were_compared_are_drawn_and_damage_is_a_note(run):
    scores = {"object": {"mean": 0.25, "ci95": [0, 0]}, "object_ood": {"mean": 0.5, "ci95": [0, 0]}}
    later = {"object": {"mean": 0.75, "ci95": [0.25, 0.875]}, "object_ood": {"mean": 0.375, "ci95": [-0.25, 0.125]}}
    rows = [{"round": 0, "scores": scores}, {"round": 1, "scores": later}]
    place = run / "evaluation" / "rounds.json"
    place.parent.mkdir(exist_ok=True)
    place.write_text(json.dumps({"settings": {"pairs": 8}, "steps": {"12": {"rounds": rows}}}))
    page = write_report(run).read_text(encoding="utf-8")
    assert "12 sampler steps, 8 pictures a round" in page
    assert "round 1: 50 to 100" in page and "round 1, other prompts: 37.5" in page
    place.write_text('{"settings": {}, "steps": {"12": 3}}')
    page = write_report(run).read_text(encoding="utf-8")
    assert "evaluation/rounds.json is damaged and was left out." in page and "pictures a round" not in page
