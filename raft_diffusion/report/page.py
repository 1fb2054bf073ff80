"""One HTML page from a run folder alone: no model, no network, no torch.

    config.toml, environment.json, metrics.jsonl, rounds/, evaluation/, lora/  ->  report.html

The page carries everything, its pictures as data URIs. A piece that is missing or broken is said on the page, in
`notes`, and never raised: a run that broke off is the one whose report is wanted most.

Every shown word that came from a user is escaped by jinja2, never by hand, and its control characters made visible; no
script runs but the page's own, which the page names by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import os
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..llm.config import KIND
from ..pocket.objects import OBJECTS
from ..webui import shortened
from .charts import Chart, chart
from .examples import galleries, read_examples
from .guard import GuardView, read_guard
from .prompts import read_prompts
from .reader import Reader, Thumbnails, is_number, numbers, round_names, table
from .result import Headline, headline, is_held_out, percent, read_measures, signed, written
from .rounds import read_rounds
from .runs import read_runs
from .settings import flattened, grouped, mattered
from .use import read_use

FOLDER = Path(__file__).parent
BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Marks that turn the direction of all the text around them."""


def write_report(run: Path, *, refresh: int | None = None, thumbnails: Thumbnails | None = None) -> Path:
    """Write RUN/report.html, one page that needs no other file, and return its path.

    Reads nothing but the run folder; `llm.report` has the page of a run that writes texts, which loads itself never.
    refresh: seconds after which the page loads itself again, None for never.
    thumbnails: kept between pages of one run, so that no picture is opened twice.
    Raises ValueError when `run` is no run folder.
    """
    run = Path(run)
    if Reader(run).toml("config.toml").get("kind") == KIND:
        from ..llm.report import write_report as write_text_report

        return write_text_report(run)
    if not any(os.path.exists(run / name) for name in ("config.toml", "metrics.jsonl", "rounds", "evaluation")):
        raise ValueError(f"{run} is no run folder: it holds no config.toml, metrics.jsonl, rounds or evaluation")
    pages = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )
    pages.filters |= {"number": written, "percent": percent, "signed": signed, "shortened": shortened}
    reader = Reader(run, done={} if thumbnails is None else thumbnails)
    html = pages.get_template("page.html.j2").render(_page(reader) | _own_parts() | {"refresh": refresh}).strip()
    report, unfinished = run / "report.html", run / f".report.{os.getpid()}.html"
    try:
        unfinished.write_text(html, encoding="utf-8", errors="replace")
        unfinished.replace(report)
    finally:
        unfinished.unlink(missing_ok=True)
    return report


def _visible(value: Any) -> Any:
    """Control characters and marks of direction as what they are, such as "\\u202e", so that none of them acts."""
    if not isinstance(value, str) or isinstance(value, Markup) or value.isprintable():
        return value
    return "".join(f"\\u{ord(c):04x}" if _acts(c) else c for c in value)


def _acts(character: str) -> bool:
    return character in BIDI or (unicodedata.category(character) == "Cc" and character not in "\n\t")


def _own_parts() -> dict[str, Any]:
    """The page's style and script, and the hash by which browsers know that the script is the page's own."""
    style, script = ((FOLDER / name).read_text(encoding="utf-8").strip() for name in ("style.css", "script.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    return {"style": Markup(style), "script": Markup(script), "script_hash": f"sha256-{digest}"}


def _page(reader: Reader) -> dict[str, Any]:
    """All that the template shows."""
    config, environment = reader.toml("config.toml"), reader.json("environment.json")
    evaluation = reader.json("evaluation/evaluation.json")
    settings = table(evaluation.get("settings"))
    examples = read_examples(reader, evaluation)
    measures = read_measures(evaluation)
    figures = _figures(reader)
    guard = read_guard(reader, [int(name) for name in round_names(reader)])
    prompts = read_prompts(reader)
    trained = {view.text for view in prompts}
    example = next((text for text in (*(v.text for v in prompts), *(e.text for e in examples)) if text), "a cat")
    return {
        "name": reader.name,
        "headline": headline(measures, _asked_for(trained or {e.text for e in examples}))
        or _progress(figures, config.get("rounds")),
        "lead": next((m for m in measures if m.name == "object" and m.kind == "judge"), None),
        "measures": measures,
        "diversity": numbers(evaluation.get("diversity")),
        "pairs": max((m.pairs for m in measures), default=0),
        "evaluated": flattened({k: evaluation[k] for k in ("images", "seconds") if k in evaluation} | settings),
        "best_of": f"Best of {settings['best_of']}" if is_number(settings.get("best_of")) else "Best of K",
        "galleries": galleries(examples, trained),
        "charts": _charts(figures, guard),
        "compared": read_rounds(reader, guard.marks if guard else {}),
        "beside": read_runs(reader),
        "guard": guard,
        "figures": figures,
        "by_round": {f.index: f for f in figures},
        "prompts": prompts,
        "mattered": mattered(config),
        "config": grouped(config),
        "environment": flattened(environment),
        "model": str(config.get("model") or ""),
        "use": read_use(reader, config, settings, [view.text for view in prompts if view.winners], example),
        "notes": [f"{note} ({count} times)" if count > 1 else note for note, count in _notes(reader, figures).items()],
    }


def _notes(reader: Reader, figures: list[Figures]) -> dict[str, int]:
    """What could not be read, and the pieces of a run that are not there."""
    rounds = round_names(reader)
    for index in sorted({f.index for f in figures} - {int(name) for name in rounds}):
        reader.notes[f"The folder of round {index} is gone: its pictures are not shown."] += 1
    for name in rounds:
        if not reader.has(f"rounds/{name}/round.json"):
            reader.notes[f"rounds/{name} is incomplete: it holds no round.json."] += 1
    for name in ("config.toml", "metrics.jsonl"):
        if rounds and not reader.has(name):
            reader.notes[f"{name} is missing."] += 1
    return reader.notes


def _asked_for(texts: set[str]) -> str:
    """Such as "A cat", when all prompts name one object of the judge's world, and that one only; else in general."""
    named = [OBJECTS.keys() & set(text.lower().replace(",", " ").split()) for text in texts]
    if not named or len(named[0]) != 1 or any(names != named[0] for names in named):
        return "The object that the prompt names"
    (word,) = named[0]
    return f"{'An' if word[0] in 'aeiou' else 'A'} {word}"


# --- the rounds' numbers ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Figures:
    """The numbers of one round: means over all candidates and over the winners, by reward, and the tuner's figures."""

    index: int
    candidates: int
    winners: int
    mean: dict[str, float]
    deviation: dict[str, float]
    best: dict[str, float]
    other: dict[str, float]

    def reach(self, name: str) -> float | None:
        """Half of the 95 % interval of the candidates' mean: 1.96 standard errors, the candidates taken as independent
        draws. None where the round does not say how they vary."""
        if name not in self.deviation or self.candidates < 2:
            return None
        return 1.96 * self.deviation[name] / (self.candidates - 1) ** 0.5  # the stored deviation divides by n


def _figures(reader: Reader) -> list[Figures]:
    """By round: round.json where there is one, else the line of metrics.jsonl."""
    rows = reader.jsonl("metrics.jsonl")
    rows += [reader.json(f"rounds/{name}/round.json") for name in round_names(reader)]
    figures = {}
    for row in rows:
        counts = numbers(row)
        if "round" in counts:
            index, candidates, winners = (int(counts.get(key, 0)) for key in ("round", "candidates", "winners"))
            means = (numbers(row.get(key)) for key in ("mean", "deviation", "best", "figures"))
            figures[index] = Figures(index, candidates, winners, *means)
    return [figures[index] for index in sorted(figures)]


def _progress(figures: list[Figures], rounds: Any) -> Headline:
    """How far a run without an evaluation has come."""
    note = "There is no evaluation yet, so whether the pictures got better is not known; the end of a run brings one."
    if not figures:
        return Headline("No round is finished yet.", note)
    first, last = figures[0], figures[-1]
    done = f"Round {last.index}{f' of {rounds}' if is_number(rounds) else ''} is finished"
    name = next((name for name in first.mean if name in last.mean), None)
    if name is None or first is last:
        return Headline(f"{done}.", note)
    change = f"{written(first.mean[name])} to {written(last.mean[name])}"
    return Headline(f"{done}; the candidates' mean {name} went from {change}.", note)


def _charts(figures: list[Figures], guard: GuardView | None) -> list[Chart]:
    """One chart a reward, those that never ranked last."""
    names = sorted({name: None for f in figures for name in f.mean}, key=is_held_out)
    return [_chart(figures, name, guard.marks if guard else {}) for name in names]


def _chart(figures: list[Figures], name: str, marks: Mapping[int, str]) -> Chart:
    curves = {
        "all candidates": [(f.index, f.mean[name]) for f in figures if name in f.mean],
        "winners": [(f.index, f.best[name]) for f in figures if name in f.best],
    }
    reaches = [(f, f.reach(name)) for f in figures if name in f.mean]
    spans = [(f.index, f.mean[name] - reach, f.mean[name] + reach) for f, reach in reaches if reach is not None]
    return chart(name, curves, held_out=is_held_out(name), spans=spans, marks=marks)
