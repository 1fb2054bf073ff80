"""TOML in and out, as plain values; a mistake is told in one line."""

from __future__ import annotations

import datetime
import json
import tomllib
from typing import Any


def parse_toml(text: str, *, where: str) -> dict[str, Any]:
    """The values of a document. Raises ValueError for what is no TOML, naming `where`."""
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError(f"{where} is no valid TOML: it is nested too deeply") from None
    except ValueError as error:  # beside TOMLDecodeError: a number of more digits than Python reads
        raise ValueError(one_line(f"{where} is no valid TOML: {error}")) from None


def parse_value(text: str) -> Any:
    """What a person types after KEY=: a TOML value, `none`, or a bare string, which needs no quotes."""
    if text == "none":
        return None
    try:
        values = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    if values.keys() != {"value"} or isinstance(values["value"], datetime.date | datetime.time):
        return text  # no setting is a date: 2024-01-01 is a name
    return values["value"]


def format_value(value: Any) -> str:
    """A value as TOML that reads back as the same value."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return "[" + ", ".join(map(format_value, value)) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{format_value(k)} = {format_value(v)}" for k, v in value.items()) + " }"
    return repr(value)


def format_toml(values: dict[str, Any]) -> str:
    """A document: plain settings first, then one section for each table; a table inside a section is written inline."""
    lines = [f"{key} = {format_value(value)}" for key, value in values.items() if not isinstance(value, dict)]
    for section, table in values.items():
        if isinstance(table, dict):
            lines += ["", f"[{section}]", *(f"{key} = {format_value(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def show(value: Any) -> str:
    """A value as a message shows it: as TOML writes it where that differs from Python, and never long."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of more digits than Python prints
        text = "something too long to show"
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


def one_line(text: str) -> str:
    """The text with every character that breaks a line or does not print spelled out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
