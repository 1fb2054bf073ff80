"""What lies beside an exported LoRA: a picture, WebUIs' sidecar and a model card, from the run folder alone."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.files import within
from .metadata import Facts, description, licence, measurements, model_name, usage_hint

CELL = 256  # px, a picture in the preview
PAIRS = 3  # of them: two columns by three rows fill the 2:3 of a WebUI's card
THUMBNAIL = 256  # px
PROMPTS = 20  # named on the card


def has_preview(run: Path, evaluation: Mapping[str, Any] | None) -> bool:
    """Whether the evaluation left pictures, each before and after."""
    rows = evaluation["examples"][:PAIRS] if evaluation else []
    places = [within(run / "evaluation", row[side]) for row in rows for side in ("before", "after")]
    return bool(places) and all(place is not None and place.is_file() for place in places)


def preview(run: Path, evaluation: Mapping[str, Any]) -> bytes:
    """A PNG of the evaluation's first pictures, not its best: left the base, right the same seed with the LoRA."""
    from PIL import Image

    from ..diffusion.sheet import grid
    from ..images import read_own

    rows = []
    for example in evaluation["examples"][:PAIRS]:
        pair = []
        for side in ("before", "after"):
            picture = read_own(run / "evaluation" / example[side])
            picture.thumbnail((CELL, CELL), Image.Resampling.LANCZOS)
            pair.append(picture)
        rows.append(pair)
    buffer = io.BytesIO()
    grid(rows, column_labels=("before", "after")).save(buffer, "PNG")
    return buffer.getvalue()


def thumbnail(png: bytes) -> str:
    """The preview as a data URL, a JPEG of at most 256 px."""
    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def sidecar(facts: Facts) -> str:
    """`<stem>.json` as AUTOMATIC1111 and Forge keep it; InvokeAI's installer reads the same keys."""
    rows: dict[str, Any] = {
        "description": description(facts),
        "sd version": "Unknown" if facts.is_pocket else "SD1",
        "activation text": facts.trigger,
        "preferred weight": facts.weight,
        "negative text": facts.config.sampling.negative_prompt if facts.tags else "",
        "notes": usage_hint(facts),
    }
    return json.dumps(rows, indent=4, ensure_ascii=False) + "\n"


def model_card(facts: Facts, *, format_: str, picture: bool) -> str:
    """`<stem>.md`: what the LoRA is, how to use it, how it was made, what was measured, with its interval, and what it
    cannot do. format_: the file's, "kohya" or "diffusers"; picture: whether a preview lies beside it."""
    lines = [f"# {facts.stem}", "", description(facts), "", usage_hint(facts), ""]
    if picture:
        lines += [f"![Left: before. Right: the same seeds with the LoRA.]({facts.stem}.png)", ""]
    sections = {
        "How to use it": _use(facts, format_),
        "How it was made": _table(_making(facts)),
        "Measured": _measurements(facts),
        "Licence": [_licence(facts)],
        "Limits": [f"- {limit}" for limit in _limits(facts)],
    }
    for title, text in sections.items():
        lines += [f"## {title}", "", *text, ""]
    return "\n".join(lines)


def _use(facts: Facts, format_: str) -> list[str]:
    file, words = f"{facts.stem}.safetensors", f"{_cell(facts.trigger)} " if facts.trigger else ""
    lines = []
    if format_ == "kohya" and not facts.is_pocket:
        lines += [f"- AUTOMATIC1111, Forge: `{words}<lora:{facts.stem}:{facts.weight:g}>` in the prompt"]
        lines += [f"- ComfyUI: node Load LoRA with `{file}`, both strengths {facts.weight:g}"]
    scale = "" if facts.weight == 1 else f', then `pipe(..., cross_attention_kwargs={{"scale": {facts.weight:g}}})`'
    return [*lines, f'- diffusers: `pipe.load_lora_weights(".", weight_name="{file}")`{scale}']


def _making(facts: Facts) -> dict[str, str]:
    config, sampling, selection = facts.config, facts.config.sampling, facts.config.selection
    revision = f" ({config.revision})" if config.revision else ""
    kept = f" of {facts.finished}; a later one was worse by the guard" if facts.rounds < facts.finished else ""
    chosen = {
        "top_fraction": f"the best {selection.top_fraction or 0:.3g} of a round",
        "top_count": f"the best {selection.top_count} of a round",
        "tau": f"all, weighted by exp(key / {selection.tau})",
    }
    winners = next((words for key, words in chosen.items() if getattr(selection, key) is not None), "")
    more = f" and {len(facts.prompts) - PROMPTS} more" if len(facts.prompts) > PROMPTS else ""
    return {
        "base model": model_name(config.model) + revision,
        "rank, alpha": f"{facts.rank}, {facts.alpha:g}",
        "rounds": f"{facts.rounds}{kept}",
        "candidates": f"{sampling.samples_per_prompt} in a group",
        "ranked by": ", ".join(
            f"{name} (weight {weight:g})" for name, weight in sorted(config.rewards.weights.items())
        ),
        "winners": winners or f"the best {selection.best} of a group",
        "sampled with": f"{sampling.width} x {sampling.height} px, {sampling.scheduler}, "
        f"{sampling.num_inference_steps} steps, CFG scale {sampling.guidance_scale:g}",
        "prompts": ", ".join(facts.prompts[:PROMPTS]) + more,
        "date": facts.started.date().isoformat(),
    }


def _table(rows: Mapping[str, str]) -> list[str]:
    return ["| | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in rows.items() if value)]


def _measurements(facts: Facts) -> list[str]:
    if not facts.evaluation:
        return ["Nothing: this LoRA was not compared with its base."]
    return [
        "Means on the same prompts and seeds, without and with the LoRA. A change whose interval holds 0 is none that "
        "was shown.",
        "",
        "| | base | with the LoRA | change, 95 % interval | pairs |",
        "|---|---|---|---|---|",
        *(_measured(*row) for row in measurements(facts.evaluation)),
    ]


def _licence(facts: Facts) -> str:
    if facts.is_pocket:
        return "MIT, as the base model, which raft_diffusion carries."
    return (
        f"{licence(facts)}: that of the base model, whose terms and restrictions of use hold for what is made from it. "
        "Read them before you pass this LoRA on."
    )


def _limits(facts: Facts) -> list[str]:
    rewards = " and ".join(sorted(facts.config.rewards.weights))
    base = "the small model of raft_diffusion" if facts.is_pocket else model_name(facts.config.model)
    limits = [
        f"Made for {base}; with a relative of it, it may work less well, with another kind not at all.",
        f"It has learned what {rewards} likes, faults included: a score that ranked proves little, judge by eye.",
        "It can draw nothing that its base never drew: it makes frequent what was rare.",
    ]
    if facts.evaluation:
        limits += [
            "The numbers hold for the settings and prompts above; other sizes, samplers and prompts were not measured."
        ]
        diversity = facts.evaluation.get("diversity") or {}
        if {"base", "tuned"} <= diversity.keys():
            change = f"from {diversity['base']:.3g} to {diversity['tuned']:.3g}"
            limits += [f"The diversity of one prompt's pictures went {change}; a fall means that it repeats itself."]
    return [*limits, "No safety checker took part in making it: what it draws is yours to check."]


def _measured(kind: str, name: str, row: Mapping[str, Any]) -> str:
    """A line of the table; what the judge sees is a share of the pictures."""
    unit, digits, sign = (100, 0, " %") if kind == "judge" else (1, 2, "")
    base, tuned, change, low, high = (
        f"{value * unit:{plus}.{digits}f}"
        for value, plus in zip(
            (row["base"], row["tuned"], row["difference"], *row["ci95"]), ("", "", "+", "+", "+"), strict=True
        )
    )
    plain = name.removesuffix("_ood") + (", other prompts" if name.endswith("_ood") else "")
    what = f"right {plain}" if kind == "judge" else plain
    return f"| {_cell(what)} | {base}{sign} | {tuned}{sign} | {change} ({low} to {high}) | {row['pairs']} |"


def _cell(text: str) -> str:
    """Words from a user inside a table: on one line, and no end of the cell."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("`", "'")
