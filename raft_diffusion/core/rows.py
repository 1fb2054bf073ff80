"""The lines of a round's metadata.jsonl, written and read back with every fault named by file and line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from .files import read_text
from .records import OWN, Draw, Prompt, Scored, Winner

METADATA = "metadata.jsonl"


def to_row(scored: Scored, key: float, winner: Winner | None) -> dict[str, Any]:
    draw = scored.sample.draw
    return {
        "text": draw.prompt.text,
        "negative": draw.prompt.negative,
        "prompt_weight": draw.prompt.weight,
        "id": draw.id,
        "prompt_id": draw.prompt.id,
        "group": draw.group,
        "k": draw.k,
        "seed": draw.seed,
        "source": draw.source,
        **({"item": draw.item} if draw.item else {}),
        "scores": dict(scored.scores),
        "key": key,
        "winner": winner is not None,
        "weight": winner.weight if winner else 0.0,
    }


def to_draw(row: Mapping[str, Any]) -> Draw:
    prompt = Prompt(row["text"], negative=row["negative"], weight=row["prompt_weight"])
    source, item = row.get("source", OWN), row.get("item", "")  # an older version knew no source but the policy
    return Draw(prompt, row["k"], row["seed"], group=row["group"], source=source, item=item)


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSONL file, each with its place for a complaint."""
    empty = True
    for number, line in enumerate(_text_of(path).split("\n"), start=1):
        if line:
            empty = False
            yield f"{path}, line {number}", _parse_object(line, f"{path}, line {number}")
    if empty:
        raise ValueError(f"{path} is empty; put it back from a copy of the run")


def read_object(path: Path) -> dict[str, Any]:
    return _parse_object(_text_of(path), str(path))


def _text_of(path: Path) -> str:
    return read_text(path, what="run file", advice="put it back from a copy of the run")


def _parse_object(text: str, place: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"{place} is no JSON object; put it back from a copy of the run")
    return value


def expect(holds: bool, place: str, problem: str) -> None:
    if not holds:
        raise ValueError(f"{place} is damaged: {problem}; put it back from a copy of the run")


def checked(row: dict[str, Any], place: str) -> dict[str, Any]:
    """A line of a metadata file as `to_row` writes it."""
    for key in ("file_name", "text", "negative", "id"):
        expect(isinstance(row.get(key), str), place, f"{key} is no text")
    for key in ("source", "item"):
        expect(isinstance(row.get(key, ""), str), place, f"{key} is no text")
    for key in ("k", "group", "seed"):
        expect(is_integer(row.get(key)), place, f"{key} is no integer")
    for key in ("prompt_weight", "key"):
        expect(is_number(row.get(key)), place, f"{key} is no finite number")
    expect(isinstance(row.get("winner"), bool), place, "winner is neither true nor false")
    expect(bool(row.get("scores")) and is_numbers(row["scores"]), place, "scores holds no numbers by reward")
    name = row["file_name"]
    plain = name == PurePosixPath(name).name == PureWindowsPath(name).name and name not in ("", "..")
    expect(plain, place, "file_name is no plain file name")
    return row


def is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether it is finite; an integer that no float can hold is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e308 <= value <= 1e308


def is_numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(map(is_number, value.values()))
