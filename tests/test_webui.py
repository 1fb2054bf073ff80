"""Sampler names, infotext and prompt syntax as WebUIs have them. No torch."""

import re
import subprocess
import sys

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from raft_diffusion.webui import SCHEDULERS, Infotext, find_scheduler, literal_syntax, parse_infotext

BASE = {"steps": 20, "sampler": "Euler a", "cfg_scale": 7.0, "seed": 965400086, "width": 512, "height": 768}


def webui_reads(text):
    """AUTOMATIC1111's documented way to read a picture's settings, written again from its regular expression."""
    import json

    pattern = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
    *lines, last = text.strip().split("\n")
    if len(pattern.findall(last)) < 3:
        lines, last = [*lines, last], ""
    prompt, negative, in_negative = "", "", False
    for line in lines:
        line = line.strip()
        if line.startswith("Negative prompt:"):
            in_negative, line = True, line[16:].strip()
        if in_negative:
            negative += line if not negative else "\n" + line
        else:
            prompt += line if not prompt else "\n" + line
    values = {"Prompt": prompt, "Negative prompt": negative}
    for key, value in pattern.findall(last):
        if value[:1] == '"' and value[-1:] == '"':
            value = json.loads(value)
        size = re.match(r"^(\d+)x(\d+)$", value)
        values |= {f"{key}-1": size[1], f"{key}-2": size[2]} if size else {key: value}
    return values


def test_torch_stays_out():
    script = (
        "import sys, raft_diffusion.webui, raft_diffusion.sampling, raft_diffusion.commands.sample, raft_diffusion."
    )
    script += "lora.file; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("DPM++ 2M Karras", "DPM++ 2M Karras"),
        ("  dpm++  2m karras ", "DPM++ 2M Karras"),
        ("euler A", "Euler a"),
        ("Euler Uniform", "Euler"),
        ("EulerDiscreteScheduler", "Euler"),
        ("DPMSolverMultistepScheduler", "DPM++ 2M"),
        ("PNDMScheduler", "PLMS"),
        ("DEISMultistepScheduler", "DEIS"),
        ("dpmsolversinglestepscheduler", "DPMSolverSinglestepScheduler"),
        ("DPM++ 2M SDE sgm uniform", "DPM++ 2M SDE SGM Uniform"),
    ],
)
def test_a_name_is_found_whatever_its_spelling(name, canonical):
    assert find_scheduler(name).name == canonical


@pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=list(SCHEDULERS))
def test_the_two_fields_of_newer_webuis_name_the_same_sampler(scheduler):
    assert find_scheduler(f"{scheduler.sampler} {scheduler.schedule_type}") is scheduler
    assert find_scheduler(scheduler.name.upper()) is scheduler


def test_the_documented_mapping():
    # diffusers' documentation, "Schedulers", the table of k-diffusion's names; the first settings are the class's own
    documented = {
        "DPM++ 2M": ("DPMSolverMultistepScheduler", {}),
        "DPM++ 2M Karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
        "DPM++ 2M SDE": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
        "DPM2": ("KDPM2DiscreteScheduler", {}),
        "DPM2 Karras": ("KDPM2DiscreteScheduler", {"use_karras_sigmas": True}),
        "DPM2 a": ("KDPM2AncestralDiscreteScheduler", {}),
        "DPM2 a Karras": ("KDPM2AncestralDiscreteScheduler", {"use_karras_sigmas": True}),
        "Euler": ("EulerDiscreteScheduler", {}),
        "Euler a": ("EulerAncestralDiscreteScheduler", {}),
        "Euler SGM Uniform": ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
        "Euler Simple": ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
        "Heun": ("HeunDiscreteScheduler", {}),
        "DEIS": ("DEISMultistepScheduler", {}),
        "UniPC": ("UniPCMultistepScheduler", {}),
    }
    for name, (kind, changes) in documented.items():
        assert SCHEDULERS[name].kind == kind
        assert SCHEDULERS[name].changes.items() >= changes.items()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("DPM++ SDE", r"^the sampler 'DPM\+\+ SDE' cannot be had here; the nearest is 'DPM\+\+ 2M SDE'$"),
        ("dpm++ sde karras", r"the nearest is 'DPM\+\+ 2M SDE Karras'$"),
        ("DPM++ 2S a Karras", "the nearest is 'DPM2 a Karras'$"),
        ("DPM fast", r"the nearest is 'DPM\+\+ 2M'$"),
        ("DPM adaptive", r"the nearest is 'DPM\+\+ 2M'$"),
        ("LMS Karras", r"the nearest is 'DPM\+\+ 2M Karras'$"),
        ("LMSDiscreteScheduler", "cannot be had here"),
        ("Restart", "the nearest is 'Heun'$"),
        ("DDIM CFG++", "the nearest is 'DDIM'$"),
        ("Euler a Karras", "^the sampler 'Euler a' has no schedule type 'Karras' here; use it with Uniform, SGM Unif"),
        ("Euler Beta", "has no schedule type 'Beta' here"),
        ("DDIM Karras", "use it without a schedule type$"),
        (
            "DPM++ 2N",
            r"^unknown scheduler 'DPM\+\+ 2N'; nearest: DPM\+\+ 2M, .*; known: DPM\+\+ 2M, .*, most with Karr",
        ),
        ("", "^unknown scheduler ''; known"),
    ],
)
def test_a_name_that_cannot_be_had_is_answered_with_the_nearest(name, message):
    with pytest.raises(ValueError, match=message):
        find_scheduler(name)


def test_infotext_is_written_as_a_webui_writes_it():
    info = Infotext(
        prompt="a cat",
        negative_prompt="a dog",
        **BASE | {"sampler": "DPM++ 2M", "schedule_type": "Karras", "cfg_scale": 7.5},
        model="toy, best: v2",
        vae="ft-mse",
        clip_skip=2,
        lora={"style": 0.8},
        rng="CPU",
        version="raft_diffusion 1.0",
    )
    assert info.text() == (
        "a cat <lora:style:0.8>\n"
        "Negative prompt: a dog\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 965400086, Size: 512x768, "
        'Model: "toy, best: v2", VAE: ft-mse, Clip skip: 2, RNG: CPU, Version: raft_diffusion 1.0'
    )
    assert parse_infotext(info.text()) == info
    assert Infotext(prompt="cat", **BASE).text() == (
        "cat\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 965400086, Size: 512x768"
    )


def test_what_webuis_write_is_read():
    text = """a (cat:1.2) <lora:style:0.5>,
second line
Negative prompt: ugly, [blurry]
more of it
Steps: 30, Sampler: DPM++ 2M Karras, CFG scale: 6.5, Seed: 12, Size: 640x384, Model hash: cc6cb27103, Model: v1-5, \
Clip skip: 2, Lora hashes: "style: 123abc, other: 456", Denoising strength: 0.4, Version: v1.6.0"""
    assert parse_infotext(text) == Infotext(
        prompt="a (cat:1.2),\nsecond line",
        negative_prompt="ugly, [blurry]\nmore of it",
        steps=30,
        sampler="DPM++ 2M",
        schedule_type="Karras",
        cfg_scale=6.5,
        seed=12,
        width=640,
        height=384,
        model="v1-5",
        clip_skip=2,
        lora={"style": 0.5},
        version="v1.6.0",
    )
    newer = "cat\nSteps: 8, Sampler: Euler, Schedule type: Simple, CFG scale: 1, Seed: 1, Size: 8x8, Version: f2.0.1"
    read = parse_infotext(newer)
    assert read is not None and (read.sampler, read.schedule_type) == ("Euler", "Simple")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a cat",
        "Steps: 20",
        "cat\nSteps: many, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 8x8",
        "cat\nSteps: 1, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 8",
        "a: 1, b: 2, cc: 3, dd: 4",
        'cat\nSteps: "1, Sampler: "Euler", CFG scale: 7',
    ],
)
def test_rubbish_is_no_infotext(text):
    assert parse_infotext(text) is None


@given(st.text())
def test_nothing_makes_the_reader_raise(text):
    parse_infotext(text)
    parse_infotext(f"{text}\nSteps: {text}, Sampler: {text}, CFG scale: 7, Seed: 1, Size: {text}x{text}")


LINES = st.lists(st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"])), max_size=3)


def tidy(lines):
    text = "\n".join(line.strip() for line in lines).strip()
    assume("Negative prompt:" not in text and "<lora:" not in text)
    return text


@given(LINES, LINES, st.text(st.characters(exclude_categories=["Cs"])))
def test_prompts_survive_both_readers(prompt, negative, model):
    prompt, negative = tidy(prompt), tidy(negative)
    assume(not re.fullmatch(r"\d+x\d+", model))  # a WebUI would take it for a size
    info = Infotext(prompt=prompt, negative_prompt=negative, **BASE, model=model)
    assert parse_infotext(info.text()) == info
    theirs = webui_reads(info.text())
    assert (theirs["Prompt"], theirs["Negative prompt"]) == (prompt, negative)
    assert theirs.get("Model", "") == model
    assert (theirs["Steps"], theirs["CFG scale"], theirs["Size-1"], theirs["Size-2"]) == ("20", "7", "512", "768")


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("a (cat:1.2)", "'(cat:1.2)'"),
        ("a ((cat))", "'(cat)'"),
        ("a [cat] and [dog:cat:10]", "'[cat]', '[dog:cat:10]'"),
        ("cat <lora:style:1>", "'<lora:style:1>'"),
        ("cat BREAK dog AND bird", "'BREAK', 'AND'"),
        (r"cat \(animal\)", r"'\\(', '\\)'"),
        ("(a) (b) (c) (d) (e)", "'(a)', '(b)', '(c)', '(d)' and more"),
    ],
)
def test_webui_commands_are_noticed(prompt, found):
    sentence = f"the prompt {prompt!r} is read as plain text; a WebUI would take for commands: {found}"
    assert literal_syntax(prompt) == sentence


@pytest.mark.parametrize("prompt", ["", "a cat and a dog", "break, BREAKFAST, SAND", "1 < 2 > 1", "cat :)"])
def test_plain_words_are_no_commands(prompt):
    assert literal_syntax(prompt) is None
