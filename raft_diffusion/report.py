"""One HTML page from a run folder alone: no model, no network, no torch.

    config.toml, environment.json, metrics.jsonl, rounds/, evaluation/, lora/  ->  report.html

The page carries everything, its pictures as data URIs. A piece that is missing or broken is said on the page, in
`notes`, and never raised: a run that broke off is the one whose report is wanted most.

Legend: K candidates a prompt. Every shown word that came from a user is escaped by jinja2, never by hand.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from .llm.config import KIND
from .llm.report import write_report as write_text_report
from .pocket.objects import OBJECTS
from .report_charts import Chart, chart
from .report_guard import read_guard
from .report_reader import Picture, Reader, is_number, numbers, rows, table
from .report_result import Headline, headline, is_held_out, percent, read_measures, signed, written
from .report_rounds import read_rounds

LOSERS = 3  # the worst candidates shown of each group; its winners are all shown
THUMBNAIL = 144  # px, the longer side of a candidate
EXAMPLE = 256  # px, the longer side of a picture of the evaluation
LORA = "pytorch_lora_weights.safetensors"


def write_report(run: Path) -> Path:
    """Write RUN/report.html, one page that needs no other file, and return its path.

    Reads nothing but the run folder; `llm.report` has the page of a run that writes texts. Raises ValueError when `run`
    is no run folder.
    """
    run = Path(run)
    if Reader(run).toml("config.toml").get("kind") == KIND:
        return write_text_report(run)
    if not any((run / name).exists() for name in ("config.toml", "metrics.jsonl", "rounds", "evaluation")):
        raise ValueError(f"{run} is no run folder: it holds no config.toml, metrics.jsonl, rounds or evaluation")
    folder = Path(__file__).parent
    pages = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters |= {"number": written, "percent": percent, "signed": signed}
    html = pages.get_template("report.html.j2").render(_page(Reader(run))).strip()
    report, unfinished = run / "report.html", run / f".report.{os.getpid()}.html"
    unfinished.write_text(html, encoding="utf-8", errors="replace")
    unfinished.replace(report)
    return report


def _page(reader: Reader) -> dict[str, Any]:
    """All that the template shows."""
    config, environment = reader.toml("config.toml"), reader.json("environment.json")
    evaluation = reader.json("evaluation/evaluation.json")
    settings = table(evaluation.get("settings"))
    examples = _examples(reader, evaluation)
    measures = read_measures(evaluation)
    figures = _figures(reader)
    rounds = _rounds(reader, figures)
    model = str(_find(config, "model") or "")
    lora = next((f for f in ("lora", *_adapters(reader)) if reader.has(f"{f}/{LORA}")), "")
    trained = {g.text for r in rounds for g in r.groups}
    prompt = next((e.text for e in examples), next((g.text for r in rounds for g in r.groups), "a cat"))
    return {
        "name": reader.name,
        "headline": headline(measures, _asked_for(trained or {e.text for e in examples}))
        or _progress(figures, _find(config, "rounds")),
        "lead": next((m for m in measures if m.name == "object" and m.kind == "judge"), None),
        "measures": measures,
        "diversity": numbers(evaluation.get("diversity")),
        "pairs": max((m.pairs for m in measures), default=0),
        "evaluated": _flat({k: evaluation[k] for k in ("images", "seconds") if k in evaluation} | settings),
        "best_of": f"Best of {settings['best_of']}" if is_number(settings.get("best_of")) else "Best of K",
        "galleries": _galleries(examples, trained),
        "charts": _charts(figures),
        "compared": read_rounds(reader),
        "guard": read_guard(reader, [int(name) for name in _round_names(reader)]),
        "figures": figures,
        "by_round": {f.index: f for f in figures},
        "rounds": rounds,
        "losers": LOSERS,
        "config": _groups(config),
        "environment": _flat(environment),
        "model": model,
        "lora": lora,
        "recipe": _recipe(model, lora, prompt, settings),
        "notes": [f"{note} ({count} times)" if count > 1 else note for note, count in reader.notes.items()],
    }


def _recipe(model: str, lora: str, prompt: str, settings: Mapping[str, Any]) -> str:
    """The lines of Python that sample with the LoRA, at the evaluation's settings where there was one."""
    names = ("width", "height", "num_inference_steps", "guidance_scale")
    call = "".join(f", {name}={settings[name]}" for name in names if is_number(settings.get(name)))
    lines = ["from diffusers import StableDiffusionPipeline"]
    if model == "pocket":
        lines += ["from raft_diffusion.diffusion.load import resolve_model", ""]
        lines += ['pipe = StableDiffusionPipeline.from_pretrained(resolve_model("pocket"))']
    else:
        lines = ["import torch", *lines, ""]
        lines += [
            f"pipe = StableDiffusionPipeline.from_pretrained({model or 'the base model'!r}, dtype=torch.float16)",
            'pipe.to("cuda")',
        ]
    lines += [f'pipe.load_lora_weights("{lora}")', f'pipe({prompt!r}{call}).images[0].save("picture.png")']
    return "\n".join(lines)


# --- the settings -----------------------------------------------------------------------------------------------------


def _find(config: Mapping[str, Any], name: str) -> Any:
    """A setting by its name, at the top or in the first table that has it."""
    if name in config and not isinstance(config[name], dict):
        return config[name]
    return next((table[name] for table in config.values() if isinstance(table, dict) and name in table), None)


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested tables as dotted names, values as a person would write them."""
    flat: dict[str, str] = {}
    for name, value in table.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            plain = isinstance(value, list) and not any(isinstance(item, dict | list) for item in value)
            flat[f"{prefix}{name}"] = ", ".join(map(str, value)) if plain else str(value)
    return flat


def _groups(config: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """The settings by TOML table; those above the first table come first, under an empty name."""
    tables = {name: value for name, value in config.items() if isinstance(value, dict)}
    top = {name: value for name, value in config.items() if name not in tables}
    return {name: _flat(values) for name, values in ({"": top} | tables).items() if values}


# --- the pictures of the evaluation -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Example:
    """One seed before and after. The labels are the judge's words, or empty: "right", or what it sees."""

    text: str
    seed: str
    before: Picture
    after: Picture
    before_label: str
    after_label: str

    def right(self, label: str) -> bool:
        return label in ("right", self.text)


def _examples(reader: Reader, evaluation: Mapping[str, Any]) -> list[Example]:
    def picture(row: dict[str, Any], side: str) -> Picture:
        name = str(row.get(side)).removeprefix(f"{side}/")
        return reader.picture(f"evaluation/{side}", name, side=EXAMPLE, lossless=True)

    return [
        Example(
            text=str(row.get("text", "")),
            seed=str(row.get("seed", "")),
            before=picture(row, "before"),
            after=picture(row, "after"),
            before_label=str(row.get("before_label") or ""),
            after_label=str(row.get("after_label") or ""),
        )
        for row in rows(evaluation.get("examples"))
    ]


def _galleries(examples: list[Example], trained: set[str]) -> dict[str, list[Example]]:
    """The examples under a heading: those of the trained prompts before those of others."""
    if not trained & {e.text for e in examples}:
        return {"All prompts": examples} if examples else {}
    here = [e for e in examples if e.text in trained]
    others = [e for e in examples if e.text not in trained]
    return {"Prompts of the run": here} | ({"Other prompts": others} if others else {})


def _asked_for(texts: set[str]) -> str:
    """Such as "A cat", when all prompts name one object of the judge's world, and that one only; else in general."""
    named = [OBJECTS.keys() & set(text.lower().replace(",", " ").split()) for text in texts]
    if not named or len(named[0]) != 1 or any(names != named[0] for names in named):
        return "The object that the prompt names"
    (word,) = named[0]
    return f"{'An' if word[0] in 'aeiou' else 'A'} {word}"


# --- the rounds -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Figures:
    """The numbers of one round: means over all candidates and over the winners, by reward, and the tuner's figures."""

    index: int
    candidates: int
    winners: int
    mean: dict[str, float]
    best: dict[str, float]
    other: dict[str, float]


def _figures(reader: Reader) -> list[Figures]:
    """By round: round.json where there is one, else the line of metrics.jsonl."""
    rows = reader.jsonl("metrics.jsonl")
    rows += [reader.json(f"rounds/{name}/round.json") for name in _round_names(reader)]
    figures = {}
    for row in rows:
        counts = numbers(row)
        if "round" in counts:
            index, candidates, winners = (int(counts.get(key, 0)) for key in ("round", "candidates", "winners"))
            means = (numbers(row.get(key)) for key in ("mean", "best", "figures"))
            figures[index] = Figures(index, candidates, winners, *means)
    return [figures[index] for index in sorted(figures)]


def _progress(figures: list[Figures], rounds: Any) -> Headline:
    """How far a run without an evaluation has come."""
    note = "There is no evaluation yet, so nothing is shown yet: evaluate the run, then write this report again."
    if not figures:
        return Headline("No round is finished yet.", note)
    first, last = figures[0], figures[-1]
    done = f"Round {last.index}{f' of {rounds}' if is_number(rounds) else ''} is finished"
    name = next((name for name in first.mean if name in last.mean), None)
    if name is None or first is last:
        return Headline(f"{done}.", note)
    change = f"{written(first.mean[name])} to {written(last.mean[name])}"
    return Headline(f"{done}; the candidates' mean {name} went from {change}.", note)


def _adapters(reader: Reader) -> list[str]:
    """The adapters of the finished rounds, newest first."""
    return [f"rounds/{name}/adapter" for name in reversed(_round_names(reader))]


def _round_names(reader: Reader) -> list[str]:
    folder = reader.run / "rounds"
    names = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    return sorted((name for name in names if re.fullmatch(r"\d{3,}", name)), key=int)


@dataclass(frozen=True, slots=True)
class Candidate:
    picture: Picture
    winner: bool
    key: float
    scores: dict[str, float]


@dataclass(frozen=True, slots=True)
class Contest:
    """The candidates of one prompt that competed; `shown` are the winners, best first, and then the worst losers."""

    text: str
    negative: str
    size: int
    shown: list[Candidate]


@dataclass(frozen=True, slots=True)
class RoundView:
    index: int
    groups: list[Contest]


def _rounds(reader: Reader, figures: list[Figures]) -> list[RoundView]:
    """In order, but read newest first, so that the newest get their pictures before the room is used up."""
    names = _round_names(reader)
    gone = {f.index for f in figures} - {int(name) for name in names}
    for index in sorted(gone):
        reader.notes[f"The folder of round {index} is gone: its pictures are not shown."] += 1
    return [RoundView(int(name), _contests(reader, name)) for name in reversed(names)][::-1]


def _contests(reader: Reader, name: str) -> list[Contest]:
    kinds = [f"rounds/{name}/{kind}" for kind in ("candidates", "winners")]
    folder = next((kind for kind in kinds if reader.has(f"{kind}/metadata.jsonl")), None)
    if folder is None:
        reader.notes[f"rounds/{name} holds no metadata.jsonl: its pictures are not shown."] += 1
        return []
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in reader.jsonl(f"{folder}/metadata.jsonl"):
        groups.setdefault(f"{row.get('prompt_id')} {row.get('group')}", []).append(row)
    return [_contest(reader, folder, members) for members in groups.values()]


def _contest(reader: Reader, folder: str, members: list[dict[str, Any]]) -> Contest:
    candidates = sorted(
        (
            (row.get("winner") is True, float(row["key"]) if is_number(row.get("key")) else -math.inf, row)
            for row in members
        ),
        key=lambda item: item[:2],
        reverse=True,
    )
    winners = [item for item in candidates if item[0]]
    shown = [
        Candidate(reader.picture(folder, row.get("file_name"), side=THUMBNAIL), won, key, numbers(row.get("scores")))
        for won, key, row in winners + candidates[len(winners) :][-LOSERS:]
    ]
    return Contest(str(members[0].get("text", "")), str(members[0].get("negative") or ""), len(members), shown)


def _charts(figures: list[Figures]) -> list[Chart]:
    """One chart a reward, those that never ranked last."""
    names = sorted({name: None for f in figures for name in f.mean}, key=is_held_out)
    curves = {
        name: {
            "all candidates": [(f.index, f.mean[name]) for f in figures if name in f.mean],
            "winners": [(f.index, f.best[name]) for f in figures if name in f.best],
        }
        for name in names
    }
    return [chart(name, lines, held_out=is_held_out(name)) for name, lines in curves.items()]
