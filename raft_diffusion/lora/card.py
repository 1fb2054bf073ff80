"""What lies beside an exported LoRA: a picture, WebUIs' sidecar and a model card, from the run folder alone."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .metadata import Facts, description, licence, measurements, model_name, usage_hint

CELL = 256  # px, a picture in the preview
PAIRS = 3  # of them: two columns by three rows fill the 2:3 of a WebUI's card
THUMBNAIL = 256  # px


def has_preview(run: Path, evaluation: Mapping[str, Any] | None) -> bool:
    """Whether the evaluation left pictures, each before and after."""
    rows = evaluation["examples"][:PAIRS] if evaluation else []
    return bool(rows) and all(
        (run / "evaluation" / row[side]).is_file() for row in rows for side in ("before", "after")
    )


def preview(run: Path, evaluation: Mapping[str, Any]) -> bytes:
    """A PNG of the evaluation's first pictures, not its best: left the base, right the same seed with the LoRA."""
    from PIL import Image

    from ..diffusion.sheet import grid

    rows = []
    for example in evaluation["examples"][:PAIRS]:
        pair = []
        for side in ("before", "after"):
            with Image.open(run / "evaluation" / example[side]) as image:
                picture = image.convert("RGB")
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
        "preferred weight": 1.0,
        "negative text": facts.config.sampling.negative_prompt if facts.tags else "",
        "notes": usage_hint(facts),
    }
    return json.dumps(rows, indent=4, ensure_ascii=False) + "\n"


def model_card(facts: Facts, *, picture: bool) -> str:
    """`<stem>.md`: what the LoRA is, how to use it, how it was made, and what was measured, with its interval."""
    sampling = facts.config.sampling
    rewards = sorted(facts.config.rewards.weights.items())
    rows = {
        "base model": model_name(facts.config.model),
        "rank, alpha": f"{facts.rank}, {facts.alpha:g}",
        "rounds, candidates a prompt": f"{facts.rounds}, {sampling.samples_per_prompt}",
        "ranked by": ", ".join(f"{name} (weight {weight:g})" for name, weight in rewards),
        "sampled with": f"{sampling.width} x {sampling.height} px, {sampling.scheduler}, "
        f"{sampling.num_inference_steps} steps, CFG scale {sampling.guidance_scale:g}",
        "prompts": ", ".join(facts.prompts),
        "date": facts.started.date().isoformat(),
        "licence": licence(facts),
    }
    lines = [f"# {facts.stem}", "", description(facts), "", usage_hint(facts), ""]
    if picture:
        lines += [f"![Left: before. Right: the same seeds with the LoRA.]({facts.stem}.png)", ""]
    if not facts.is_pocket:
        words = f"{facts.trigger} " if facts.trigger else ""
        lines += [f"In AUTOMATIC1111 and Forge: `{_cell(words)}<lora:{facts.stem}:1>`", ""]
    lines += ["| | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in rows.items() if value)]
    if facts.evaluation:
        lines += ["", "## Measured", "", "On the same seeds, on average:", ""]
        lines += ["| | base | with the LoRA | change, 95 % interval | pairs |", "|---|---|---|---|---|"]
        lines += [_measured(*row) for row in measurements(facts.evaluation)]
    return "\n".join(lines) + "\n"


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
