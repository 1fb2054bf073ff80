"""The model card beside an exported LoRA says what a stranger must know before using it."""

import json
import re
import runpy
from pathlib import Path

import pytest

from raft_diffusion.lora.export import plan_export, write_export

LORAS = runpy.run_path(str(Path(__file__).with_name("lora_runs.py")))
CONFIG, draw_lora, write_run = (LORAS[name] for name in ("CONFIG", "draw_lora", "write_run"))
UNET = {"down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k": (640, 768)}


@pytest.fixture
def run(tmp_path):
    config = f"{CONFIG}[sampling]\nlora_scale = 0.8\n[selection]\nbest = 1\n"
    tensors = draw_lora({"unet": UNET}, rank=4)
    return write_run(tmp_path / "run", tensors, rank=4, alpha=2.0, config=config, evaluated=True)


def card(run, **options):
    plan = plan_export(run, force=True, **options)
    write_export(plan)
    return plan.target.with_suffix(".md").read_text(encoding="utf-8")


def kept(run, index):
    ending = {"after": 2, "stopped": False, "keep": index, "sentence": "round 2 was worse"}
    (run / "guard.json").write_text(json.dumps(ending))


def test_what_a_stranger_must_know(run):
    text = card(run)
    assert re.findall("^## (.*)", text, re.MULTILINE) == [
        "How to use it",
        "How it was made",
        "Measured",
        "Licence",
        "Limits",
    ]
    for words in (
        "`monet style <lora:monet-cat:0.8>`",
        "node Load LoRA with `monet-cat.safetensors`, both strengths 0.8",
        'weight_name="monet-cat.safetensors")`, then `pipe(..., cross_attention_kwargs={"scale": 0.8})`',
        "| base model | stable-diffusion-v1-5 |",
        "| rounds | 2 |",
        "| ranked by | aesthetic (weight 0.5), text_image (weight 1) |",
        "| winners | the best 1 of a group |",
        "| prompts | monet style cat, monet style dog |",
        "| text_image | 20.00 | 26.25 | +6.25 (+5.12 to +7.50) | 64 |",
        "CreativeML Open RAIL-M: that of the base model",
        "Made for stable-diffusion-v1-5;",
        "what aesthetic and text_image likes",
        "No safety checker",
    ):
        assert words in text, words


def test_the_diffusers_format_has_a_card_too(run):
    text = card(run, format_="diffusers")
    assert 'weight_name="monet-cat.safetensors"' in text and "| text_image | 20.00 |" in text
    assert "<lora:" not in text and "ComfyUI" not in text and ".png" not in text


def test_the_round_that_the_guard_kept_is_the_one_that_is_told(run):
    kept(run, 1)
    assert "| rounds | 1 of 2; a later one was worse by the guard |" in card(run)
    assert "| text_image | 20.00 |" in card(run, last_round=1)  # the evaluation is of the result
    assert "Nothing: this LoRA was not compared" in card(run, last_round=2)


def test_what_was_not_measured_and_many_prompts(tmp_path):
    prompts = ", ".join(f'"cat {k:02d}"' for k in range(25))
    config = CONFIG.replace('"monet style cat", "monet style dog"', prompts)
    run = write_run(tmp_path / "run", draw_lora({"unet": UNET}, rank=4), rank=4, alpha=2.0, config=config)
    text = card(run)
    assert "Nothing: this LoRA was not compared with its base." in text
    assert "cat 19 and 5 more |" in text and "cat 20" not in text


def test_diversity_is_told_where_it_was_measured(run):
    path = run / "evaluation/evaluation.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"diversity": {"base": 0.5, "tuned": 0.25}}))
    assert "The diversity of one prompt's pictures went from 0.5 to 0.25" in card(run)
