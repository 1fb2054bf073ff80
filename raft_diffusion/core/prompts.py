"""Prompt files, the train / held-out split, and what to draw each round.

Legend: P prompts a round, K candidates a group, G groups a prompt, N = P * G * K candidates.
"""

from __future__ import annotations

import csv
import difflib
import io
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .files import read_text
from .records import Draw, Prompt, derive_seed
from .toml import one_line, parse_toml, show

CARRIED = Path(__file__).parents[1] / "prompts"
COLUMNS = {"prompt": "text", "text": "text", "weight": "weight", "negative_prompt": "negative", "negative": "negative"}
KEYS = ("text", "weight", "negative")
Row = tuple[str, dict[str, Any]]
"""Where a prompt stands in its file ("line 3") and what is said of it, by KEYS."""


def carried() -> dict[str, Path]:
    """The prompt lists that the package carries, by name."""
    return {path.stem: path for path in sorted(CARRIED.glob("*.txt"))}


def find_prompts(source: str) -> list[Prompt]:
    """The prompts of a carried list by its name, of a file (see `read_prompts`), or the words themselves as one prompt.

    What is there as a file, ends in .txt, .csv or .toml, or ends as a folder does is a file; anything else are words.
    Raises ValueError for no words at all, and as `read_prompts` does.
    """
    words = source.strip()
    lists = carried()
    if not words:
        raise ValueError(f"the prompt is empty; give words, a prompt file, or one of the lists {', '.join(lists)}")
    if words in lists:
        return read_prompts(lists[words])
    named_as_file = Path(words).suffix.lower() in _READERS or words.endswith(("/", os.sep))
    if named_as_file or os.path.exists(words):  # not Path.exists: it raises for words too long for a name
        return read_prompts(words)
    if any("\ud800" <= character <= "\udfff" for character in words):
        raise ValueError(f"the prompt {words!r} holds characters that are no UTF-8; type them again")
    return [Prompt(words)]


def read_prompts(path: Path | str) -> list[Prompt]:
    """The prompts of a UTF-8 file, by its suffix.

    .csv: a header with the column `prompt` (or `text`) and, if wanted, `weight` and `negative_prompt` (or `negative`).
    .toml: a table `[[prompt]]` for each, with `text` and, if wanted, `weight` and `negative`.
    Any other: one prompt a line; blank lines and lines that start with `#` are skipped.

    Raises ValueError for a file that is missing, a folder, not UTF-8, malformed or without a prompt, for a weight that
    is no finite number above 0, and for a prompt given twice.
    """
    path = Path(path)
    text = read_text(path, what="prompt file", advice="give a text file with one prompt a line, a .csv or a .toml")
    read, form = _READERS.get(path.suffix.lower(), _READERS[".txt"])
    first: dict[str, str] = {}
    repeats: list[str] = []
    prompts: list[Prompt] = []
    for place, values in read(text, f"the prompt file {path}"):
        prompt = _prompt(values, f"the prompt file {path}, {place}")
        if prompt.text in first:
            repeats.append(f"{place} repeats {first[prompt.text]} ({prompt.text!r})")
        first.setdefault(prompt.text, place)
        prompts.append(prompt)
    if repeats:
        raise ValueError(f"the prompt file {path} holds a prompt twice: {'; '.join(repeats)}; keep one of each")
    if not prompts:
        raise ValueError(f"the prompt file {path} holds no prompt; write {form}")
    return prompts


def _read_lines(text: str, where: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        words = line.strip()
        if words and not words.startswith("#"):
            yield f"line {number}", {"text": words}


def _read_csv(text: str, where: str) -> Iterator[Row]:
    """Rows are counted as a spreadsheet does: the header is row 1, a cell with a line break is in one row."""
    columns: list[str] = []
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    number = 0
    try:
        for number, cells in enumerate(rows, start=1):
            if not any(cell.strip() for cell in cells):
                continue
            if not columns:
                columns = _columns(cells, where)
                continue
            if len(cells) > len(columns):
                raise ValueError(
                    f"{where}, row {number} has {len(cells)} cells under {len(columns)} column names; put a text that "
                    "holds a comma in double quotes"
                )
            given = {key: cell.strip() for key, cell in zip(columns, cells, strict=False)}
            values = {key: _number(cell) if key == "weight" else cell for key, cell in given.items() if cell}
            yield f"row {number}", values
    except csv.Error as error:
        raise ValueError(f"{where} is no valid CSV after row {number}: {error}") from None


def _columns(cells: Sequence[str], where: str) -> list[str]:
    names = [cell.strip().lower() for cell in cells]
    for number, name in enumerate(names, start=1):
        if name not in COLUMNS:
            near = difflib.get_close_matches(name, COLUMNS, n=2, cutoff=0.5) or list(COLUMNS)
            advice = "separate the columns with commas" if ";" in name or "\t" in name else f"use {' or '.join(near)}"
            raise ValueError(f"{where}: its first row names column {number} {name!r}, which is unknown; {advice}")
    columns = [COLUMNS[name] for name in names]
    if "text" not in columns:
        raise ValueError(f"{where} has no column prompt; name one so in its first row")
    if repeated := [names[i] for i, column in enumerate(columns) if column in columns[:i]]:
        raise ValueError(f"{where}: column {repeated[0]!r} says what another column says; keep one of them")
    return columns


def _read_toml(text: str, where: str) -> Iterator[Row]:
    values = parse_toml(text, where=where)
    if unknown := sorted(values.keys() - {"prompt"}):
        raise ValueError(
            one_line(f"{where} holds the unknown key {unknown[0]!r}; write one [[prompt]] for each prompt")
        )
    tables = values.get("prompt", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ValueError(f"{where}: prompt is no list of tables; write [[prompt]] above each prompt")
    for number, table in enumerate(tables, start=1):
        if unknown := sorted(table.keys() - set(KEYS)):
            near = difflib.get_close_matches(unknown[0], KEYS, n=2, cutoff=0.4) or KEYS
            raise ValueError(
                one_line(f"{where}, prompt {number}: unknown key {unknown[0]}, did you mean {' or '.join(near)}?")
            )
        yield f"prompt {number}", table


_READERS: dict[str, tuple[Callable[[str, str], Iterator[Row]], str]] = {
    ".txt": (_read_lines, "one a line"),
    ".csv": (_read_csv, "one a row, under a first row with the column name prompt"),
    ".toml": (_read_toml, "one [[prompt]] with a text for each"),
}


def _prompt(values: Mapping[str, Any], where: str) -> Prompt:
    text, negative = values.get("text", ""), values.get("negative", "")
    for key, value in (("text", text), ("negative", negative)):
        if not isinstance(value, str):
            raise ValueError(f"{where}: {key} is {show(value)}; put it in quotes")
    if not text.strip():
        raise ValueError(f"{where} has no prompt; write its words or take it out")
    return Prompt(text.strip(), negative=negative.strip(), weight=_weight(values.get("weight", 1.0), where))


def _number(cell: str) -> float | str:
    """The number that a cell holds, or its text for the complaint."""
    try:
        return float(cell)
    except ValueError:
        return cell


def _weight(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{where}: the weight is {show(value)}; it must be a finite number above 0")
    return float(value)


def split(prompts: Sequence[Prompt], fraction: float, *, seed: int) -> tuple[list[Prompt], list[Prompt]]:
    """(train, held out), both in the given order; about `fraction` of them, in [0, 1), are held out.

    Each prompt is placed by its own id and the seed, so that a prompt added or moved changes no other's side.
    Raises ValueError for a fraction out of range and where no prompt is left to train on.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"the held-out fraction must be at least 0 and below 1, not {fraction}")
    train: list[Prompt] = []
    held_out: list[Prompt] = []
    for prompt in prompts:
        (held_out if _uniform(seed, "split", prompt.id) < fraction else train).append(prompt)
    if not train:
        raise ValueError(
            f"holding out {fraction:g} of {len(prompts)} prompts leaves none to train on; lower it or add prompts"
        )
    return train, held_out


def draw_round(
    prompts: Sequence[Prompt], *, index: int, seed: int, per_round: int | None, k: int, groups_per_prompt: int = 1
) -> list[Draw]:
    """The N requests of round `index`, group after group, prompts in the given order.

    per_round: P, drawn without replacement with probability by `Prompt.weight` (Efraimidis and Spirakis 2006: the P
        highest u ** (1 / weight)); None takes all prompts.
    k: K candidates a group. groups_per_prompt: G; k of one prompt runs over 0 .. G * K - 1.

    Raises ValueError for a repeated prompt, a weight that is not positive, and a P that is out of range.
    """
    _distinct(prompts)
    chosen = list(prompts)
    if per_round is not None:
        if not 1 <= per_round <= len(prompts):
            raise ValueError(f"cannot draw {per_round} of {len(prompts)} prompts a round; 1 to {len(prompts)} can be")
        ranked = sorted(prompts, key=lambda p: -math.log(_uniform(seed, "draw", index, p.id)) / p.weight)
        drawn = {prompt.id for prompt in ranked[:per_round]}
        chosen = [prompt for prompt in prompts if prompt.id in drawn]
    return [
        Draw(prompt, number, derive_seed(seed, "sample", index, prompt.id, number), group=number // k)
        for prompt in chosen
        for number in range(groups_per_prompt * k)
    ]


def evaluation_draws(prompts: Sequence[Prompt], count: int, *, seed: int) -> list[Draw]:
    """`count` requests spread evenly over the prompts: the first of each, then the second of each, and so on.

    Their seeds come from a stream of their own, so that no evaluated picture was ever a candidate.
    """
    _distinct(prompts)
    if not prompts and count:
        raise ValueError(f"{count} evaluation pictures need at least one prompt; give one or ask for 0")
    turns = ((prompts[i % len(prompts)], i // len(prompts)) for i in range(count))
    return [Draw(prompt, k, derive_seed(seed, "evaluate", prompt.id, k)) for prompt, k in turns]


def _uniform(seed: int, purpose: str, *position: int | str) -> float:
    """A number in (0, 1) from its position."""
    return (derive_seed(seed, purpose, *position) + 1) / (2**63 + 2)


def _distinct(prompts: Sequence[Prompt]) -> None:
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.id in seen:
            raise ValueError(f"the prompt {prompt.text!r} is given twice; its pictures would be the same, keep one")
        if not (prompt.weight > 0 and math.isfinite(prompt.weight)):
            raise ValueError(f"the weight of {prompt.text!r} is {prompt.weight}; it must be a finite number above 0")
        seen.add(prompt.id)
