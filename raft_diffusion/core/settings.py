"""What the settings of every modality share: read TOML, take changes, write TOML, tell every mistake at once."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .files import read_text
from .toml import format_toml, format_value, one_line, parse_toml, parse_value, show

Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A frozen table of settings; an unknown key is a mistake."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True, strict=True)


class Selection(Section):
    """Who wins."""

    best: int = Field(1, ge=1, description="winners a group (m); the paper's is 1")
    top_fraction: float | None = Field(None, gt=0, le=1, description="share of the round's best that is kept")
    top_count: int | None = Field(None, ge=1, le=1_000_000, description="number of the round's best that is kept")
    tau: float | None = Field(None, gt=0, description="all candidates win with weight exp(key / tau)")
    min_spread: float = Field(
        0.0, ge=0, description="a group whose rewards vary less than this share of the round's typical has no winner"
    )
    diversity: float = Field(
        0.0, ge=0, description="margin below the best key within which the least similar candidate wins"
    )
    replay: int | None = Field(None, ge=0, le=10_000, description="earlier rounds whose winners are kept; none: all")
    replay_decay: float = Field(1.0, gt=0, le=1, description="an earlier winner's weight shrinks by this a round")


class Settings(Protocol):
    """All settings of a run, of whatever modality."""

    @classmethod
    def load(cls, path: Path | str) -> Self: ...
    def to_toml(self) -> str: ...
    def flat(self) -> dict[str, Any]: ...


Kind = TypeVar("Kind", bound=BaseModel)


def read_values(path: Path | str) -> dict[str, Any]:
    """The values of a TOML file. Raises ValueError for one that cannot be read."""
    text = read_text(Path(path), what="configuration", advice="give the path of a TOML file")
    return parse_toml(text, where=str(path))


def changed(values: dict[str, Any], changes: Sequence[str], *, tables: Sequence[str]) -> dict[str, Any]:
    """The values with changes such as "tuning.rank=8"; a value is TOML, or a bare string; `none` clears a setting.

    tables: dotted names of tables whose keys are the user's own: `none` takes a key out, and a key may hold dots.
    Raises ValueError for what is no change.
    """
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals or not key.strip():
            raise ValueError(one_line(f"--set {change}: write KEY=VALUE, such as tuning.rank=8"))
        own = next((name for name in tables if key.strip().startswith(f"{name}.")), None)
        *sections, name = key.strip().split(".", own.count(".") + 1 if own else -1)
        table = values
        for section in sections:
            table = table.setdefault(section, {})
            if not isinstance(table, dict):
                raise ValueError(one_line(f"--set {change}: {section!r} is a setting, not a section"))
        table[name] = parse_value(text.strip())
        if own and table[name] is None:
            del table[name]
    return values


def validated(
    kind: type[Kind],
    values: dict[str, Any],
    where: str,
    *,
    misfits: Callable[..., Iterator[str]],
    sections: Sequence[str],
    entry: type[Section] | None = None,
    hidden: Sequence[str] = (),
) -> Kind:
    """The settings of these values. Raises ValueError with every problem in one message.

    misfits: what is wrong between these sections; it gets None for one that is wrong by itself.
    entry: the table that an item of a list may be. hidden: parts of pydantic's places that no user wrote.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problems = [_explain(problem, kind, entry, hidden) for problem in error.errors()]
        if error.errors()[0]["loc"]:  # a field is wrong, so the sections were not yet held against each other
            problems += misfits(*(_sound(kind, name, values) for name in sections))
    raise ValueError(one_line(f"{where}: " + "; ".join(problems)))


def not_utf8(flat: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with settings that hold half a character: a command line or a file name in another encoding."""
    for key, value in flat.items():
        try:
            format_value(value).encode()
        except UnicodeEncodeError:
            yield f"{key} holds characters that are no UTF-8; type them again"


def selection_misfits(selection: Selection, *, candidates: int | None, method: str | None) -> Iterator[str]:
    """What a selection contradicts. candidates: K; method: how rewards are combined; None: not known."""
    if candidates is not None and selection.best > candidates:
        yield f"selection.best is {selection.best}, more than sampling.samples_per_prompt ({candidates}); lower it"
    across = [key for key in ("top_fraction", "top_count") if getattr(selection, key) is not None]
    if across and method not in (None, "fixed"):
        yield f'selection.{across[0]} compares prompts with each other: set rewards.method to "fixed"'
    if len(across) > 1 or (across and selection.tau is not None):
        yield "selection: choose one of top_fraction, top_count and tau"
    if selection.tau is not None and selection.best != 1:
        yield (
            f"selection.tau lets every candidate win by weight, so selection.best = {selection.best} says "
            "nothing: leave one of them out"
        )
    if selection.tau is not None and selection.diversity:
        yield "selection.tau lets every candidate win, and selection.diversity chooses nothing: leave one out"
    if across and selection.min_spread:
        yield (
            f"selection.min_spread leaves out prompts, which selection.{across[0]} does by its own rule: leave one "
            "of them out"
        )


def to_toml(settings: BaseModel) -> str:
    """TOML that reads back as the same settings; those that are none are left out."""
    return format_toml(settings.model_dump(mode="json", exclude_none=True))


def flatten(values: Mapping[str, Any], *, tables: Sequence[str], prefix: str = "") -> dict[str, Any]:
    """Every setting by its dotted key; `tables` are settings as a whole."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and prefix + key not in tables:
            flat |= flatten(value, tables=tables, prefix=f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _sound(kind: type[BaseModel], name: str, values: dict[str, Any]) -> Any:
    """The section of this name, or None where something in it is wrong."""
    section: Any = kind.model_fields[name].annotation
    try:
        return section.model_validate(values.get(name, {}))
    except ValidationError:
        return None


def _explain(problem: Any, kind: type[BaseModel], entry: type[Section] | None, hidden: Sequence[str]) -> str:
    """One mistake in words; an unknown key gets its nearest known names."""
    location = [part for part in problem["loc"] if part not in hidden] or list(problem["loc"])
    key = ".".join(map(str, location))
    if problem["type"] == "extra_forbidden":
        known: Any = kind
        for part in location[:-1]:
            known = entry if isinstance(part, int) else known.model_fields[part].annotation
        names = list(known.model_fields)
        near = difflib.get_close_matches(str(location[-1]), names, n=3, cutoff=0.4) or names
        return f"unknown key {key}, did you mean {' or '.join(near)}?"
    if problem["type"] == "missing":
        return f"{key} is missing"
    message = _MESSAGES.get(problem["type"]) or problem["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    given = "" if problem["type"] == "value_error" else f", not {show(problem['input'])}"
    return f"{key}: {message}{given}" if key else message


_MESSAGES = {
    "string_type": "input should be a text in quotes",
    "list_type": 'input should be a list such as ["a", "b"]',
    "model_type": "input should be a section of settings",
}
