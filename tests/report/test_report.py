"""The report of whole run folders, and of those that are not finished."""

from __future__ import annotations

import ast
import base64
import hashlib
import html
import io
import itertools
import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from raft_diffusion.report import prompts, write_report
from raft_diffusion.report.reader import Reader
from raft_diffusion.webui import parse_infotext

RUNS = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("report_runs.py"))))
CONFIG, Page, make_evaluation, make_round = RUNS.CONFIG, RUNS.Page, RUNS.make_evaluation, RUNS.make_round
paint, row, write = RUNS.paint, RUNS.row, RUNS.write


def test_a_whole_run_says_its_result_first(run: Path) -> None:
    page = Page(run)
    assert (
        "A cat is now in 93 % of the pictures; before it was 20 % (95 % interval of the gain: +66 to +80 points)."
        in (page.words)
    )
    assert "Measured on 128 pairs" in page.words and "+73 points" in page.words
    assert "−9 points −15 to −4 worse" in page.words and "no clear change" in page.words
    assert "Not everything could be shown" not in page.words
    folds = re.findall(r'<details id="prompt-1-round-(\d)"( open)?>', page.html)
    assert folds == [("3", " open"), ("2", ""), ("1", "")]


def test_the_page_needs_nothing_but_itself(run: Path) -> None:
    (run / "config.toml").write_text(CONFIG + '\n[track]\naddress = "https://example.org/x.js"\n')
    page = Page(run)
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "action", "data", "poster", "background"):
            if name in attributes:
                assert re.match(r"data:image/webp;base64,|#\w", attributes[name] or "")
    assert not {"link", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.tags}
    assert page.all("script") == [{}]
    assert "url(" not in page.html and "@import" not in page.html
    assert page.html.startswith("<!doctype html>")
    assert sorted(path.name for path in run.iterdir() if "report" in path.name) == ["report.html"]


def test_a_reader_without_eyes_gets_all_of_it(run: Path) -> None:
    page = Page(run)
    pictures, charts = page.all("img"), page.all("svg", role="img")
    assert len(pictures) == 2 * 4 + 3 * 16
    assert all((picture["alt"] or "").strip() and picture["loading"] == "lazy" for picture in pictures)
    ids = [have["id"] for _, have in page.tags if "id" in have]
    assert len(ids) == len(set(ids))
    for svg in charts:
        assert svg.get("aria-label") or set((svg["aria-labelledby"] or "").split()) <= set(ids)
    assert all((have["href"] or "")[1:] in ids for have in page.all("a"))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_small_pictures_stay_hard_and_large_ones_become_thumbnails(run: Path) -> None:
    paint(run / "evaluation/before/000.png", size=512)
    pictures = [have for have in Page(run).all("img") if (have["alt"] or "").startswith("Before")]
    sizes = [Image.open(io.BytesIO(base64.b64decode((p["src"] or "").split(",")[1]))).size for p in pictures]
    assert sizes == [(256, 256), (64, 64), (64, 64), (64, 64)]
    assert [p["class"] for p in pictures] == ["", " hard", " hard", " hard"]


def test_many_pictures_are_made_smaller_until_they_fit(run: Path) -> None:
    for path in run.glob("rounds/*/candidates/*.png"):
        RUNS.paint(path, size=256)
    sides = []
    for room in (1_000_000, 40_000, 25_000):
        reader = Reader(run, room=room)
        contests = [
            contest for view in prompts.read_prompts(reader) for held in view.rounds.values() for contest in held
        ]
        shown = [candidate.picture for contest in contests for candidate in contest.shown]
        assert len(shown) == 48 and all(picture.src for picture in shown)
        sides.append(Image.open(io.BytesIO(base64.b64decode(shown[0].src.split(",")[1]))).width)
    assert sides[0] == 144 > sides[1] > sides[2]


def test_the_parts_stand_in_the_order_of_the_questions(run: Path) -> None:
    order = re.findall(r'<(?:h1|section id="(\w+)")', Page(run).html)
    assert order == ["", "pictures", "curves", "evaluation", "prompts", "settings", "use"]


def test_the_browser_is_told_to_run_the_pages_own_script_alone(run: Path) -> None:
    text = Page(run).html
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text and "default-src 'none'" in text


def test_winners_come_first_and_every_score_is_told(run: Path) -> None:
    page = Page(run)
    keys = [(have["alt"] or "").split(", key ") for have in page.all("img") if "key" in (have["alt"] or "")]
    expected = [("Winner", 7), ("Winner", 6), *(("Not chosen", key) for key in range(5, -1, -1))]
    assert keys[:8] == [[kind, f"{key}.00"] for kind, key in expected]
    assert "winner , key 7.00 0.0700 text_image" in page.words and "48 candidates, 12 winners" in page.words


def test_of_a_large_run_the_winners_and_the_worst_losers_are_shown(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "FULL", 47)
    page = Page(run)
    keys = [have["alt"] for have in page.all("img") if "key" in (have["alt"] or "")]
    assert len(keys) == 3 * 2 * (2 + prompts.LOSERS)
    assert keys[:5] == ["Winner, key 7.00", "Winner, key 6.00", *(f"Not chosen, key {k}.00" for k in (2, 1, 0))]
    assert "8 candidates, 5 of them shown" in page.words
    monkeypatch.setattr(prompts, "MOST", 17)
    page = Page(run)
    assert len(page.all("img")) == 8 + 17
    assert "A group of an early round was left out to keep this page small. (2 times)" in page.words


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
    assert re.search("“monet style cat” .*Other prompts .* after monet style house not seen → ✓ right", words)
    assert words.count("→ ✓ right") == 3 and "✓ not seen" not in words
    assert "The object asked for, other prompts" in words
    assert "Best of 16" in words and "Best of K" not in words


def test_how_to_use_the_lora(run: Path) -> None:
    words = Page(run).words
    assert "fits only the small model that raft_diffusion carries" in words and "<lora:" not in words
    assert (
        'from_pretrained(resolve_model("pocket")) pipe.load_lora_weights("lora") pipe(\'monet style cat\', width=64'
        in words
    )


SD15 = """
name = "monet-cat"
model = "owner/name"
[sampling]
width = 512
height = 384
num_inference_steps = 20
guidance_scale = 6.5
lora_scale = 0.8
scheduler = "DPM++ 2M Karras"
negative_prompt = "blurry"
"""


def test_how_to_use_a_lora_of_stable_diffusion(run: Path) -> None:
    (run / "config.toml").write_text(SD15)
    make_evaluation(run, settings={})
    page = Page(run)
    lines = [html.unescape(text) for text in re.findall(r"<pre[^>]*><code>(.*?)</code></pre>", page.html, re.DOTALL)]
    export, webui, comfy, python = lines
    assert export == f"raft-diffusion export {run.name}"
    infotext = parse_infotext(f"{webui}, Seed: 1")
    assert infotext is not None and infotext.lora == {"monet-cat": 0.8}
    assert (infotext.prompt, infotext.negative_prompt) == ("monet style cat", "blurry")
    assert (infotext.sampler, infotext.schedule_type, infotext.cfg_scale) == ("DPM++ 2M", "Karras", 6.5)
    assert (infotext.steps, infotext.width, infotext.height) == (20, 512, 384)
    assert "lora_name monet-cat.safetensors, strength_model 0.8, strength_clip 0.8" in comfy
    assert "steps 20, cfg 6.5, sampler_name dpmpp_2m, scheduler karras" in comfy
    ast.parse(python)
    assert "from_pretrained('owner/name', dtype=torch.float16)" in python and '"scale": 0.8' in python
    assert "Trigger words monet style cat Weight 0.8" in page.words and "carries" not in page.words
    (run / "export").mkdir()
    (run / "export/monet-cat.safetensors").touch()
    page = Page(run)
    assert "export/monet-cat.safetensors in the run folder" in page.words and "raft-diffusion export" not in page.words


def test_the_guards_verdict_stands_on_every_chart(run: Path) -> None:
    for index, scores in enumerate([(1, 2, 3, 4), (5, 6, 7, 8), (6, 7, 8, 9), (1, 2, 2, 3)]):
        look = {"round": index, "judge": "clip", "reward": "held_out.x", "draws": [f"a-{k}" for k in range(4)]}
        place = run / (f"rounds/{index:03d}" if index else "start")
        place.mkdir(exist_ok=True)
        write(place / "guard.json", look | {"scores": scores, "distances": [1, 1, 1, 1]})
    write(run / "guard.json", {"after": 3, "stopped": True, "keep": 2, "sentence": "round 3: it fell <b>"})
    page = Page(run)
    charts = len(page.all("svg", role="img")) - len(page.all("svg", **{"class": "interval"}))
    assert charts == 3 and page.html.count(">kept</text>") == page.html.count(">stopped</text>") == 3
    assert "Round 3: it fell <b>." in page.words and "Its LoRA is round 2's" in page.words


def test_curves_carry_intervals(run: Path) -> None:
    numbers = json.loads((run / "rounds/003/round.json").read_text()) | {"deviation": {"text_image": 0.5}}
    write(run / "rounds/003/round.json", numbers)
    # 16 candidates, mean 0.3: 1.96 * 0.5 / sqrt(16 - 1) = 0.253
    assert "round 3: 0.0470 to 0.553" in Page(run).html and "0.300 ± 0.253" in Page(run).words


def test_the_settings_that_mattered_come_first(run: Path) -> None:
    changes = "negative_prompt = 'blurry'\nbatch_size = 99\n[tuning]\nanti_drift = 0.1\nrank = 4\nalpha = 2.0\n"
    (run / "config.toml").write_text(SD15.replace('negative_prompt = "blurry"', changes))
    words = Page(run).words.partition("What decided this result")[2].partition("All settings")[0]
    assert "The LoRA rank 4, alpha 2" in words and "512 × 384 px, DPM++ 2M Karras, 20 steps, guidance 6.5" in words
    assert "sampling.lora_scale 0.8" in words and "tuning.anti_drift 0.1" in words
    assert "batch_size" not in words  # it changes no picture


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


def test_runs_side_by_side_are_shown_and_damage_is_a_note(run):
    def row(name, mean, ci95, **more):
        scores = {"object": {"mean": mean, "ci95": ci95}, "held_out.text_image": {"mean": 70, "ci95": [-1, 2]}}
        return {"run": name, "scores": scores, "unet_evaluations": {"sampling": 4000, "tuning": 600}} | more

    result = {
        "settings": {"pairs": 64},
        "rows": [
            row("base", 0.25, [0, 0], seconds=0.0),
            row("mine", 0.75, [0.375, 0.625], rounds=4, kept=3, seconds=150.0),
            row("<b>other</b>", 0.5, [0.125, 0.375], rounds=1, kept=1, seconds=None),
        ],
        "against": {"<b>other</b>": {"object": {"difference": 0.25, "ci95": [0.125, 0.375]}}},
        "win_count": {"score": "held_out.text_image", "wins": {"base": 0, "mine": 2, "<b>other</b>": 1}},
    }
    place = run / "evaluation" / "beside.json"
    place.write_text(json.dumps(result))
    page, words = write_report(run).read_text(encoding="utf-8"), Page(run).words
    assert "Runs side by side: 64 pictures of each" in words
    assert "mine round 3 of 4 75 %" in words and "4,600 2 min 30 s" in words
    assert "mine minus this: +25 points (+12 to +38)" in words
    assert "<b>other</b>" not in page and "&lt;b&gt;other&lt;/b&gt;" in page
    place.write_text('{"settings": {}, "rows": [3]}')
    assert "evaluation/beside.json is damaged and was left out." in Page(run).words


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no run folder"):
        write_report(tmp_path)


def test_the_report_needs_no_torch() -> None:
    code = "import sys, raft_diffusion.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
