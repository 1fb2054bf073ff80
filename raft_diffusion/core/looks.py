"""Where a run folder keeps what its guard saw (see `guard`).

start/guard.json, start/adapter/   before the first round: the look, and the adapter that the run starts from
rounds/001/guard.json              after it
guard.json                         what the run was left with: the last round, the one kept, why, in a sentence
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .files import write_atomically
from .guard import Look

FILE = "guard.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """after: the last round of the run; stopped: whether the guard ended it; keep: the round whose adapter is the
    result, 0 for what the run started from; sentence: what happened, empty where all went well."""

    after: int
    stopped: bool
    keep: int
    sentence: str


def place_of(root: Path, index: int) -> Path:
    """The folder of a round, or of the start."""
    return root / "rounds" / f"{index:03d}" if index else root / "start"


def adapter_of(root: Path, index: int) -> Path:
    """The folder of the adapter after a round, or of the one that the run started from."""
    return place_of(root, index) / "adapter"


def write_look(root: Path, look: Look) -> None:
    write_atomically(place_of(root, look.round) / FILE, json.dumps(look.to_json()) + "\n")


def read_look(root: Path, index: int) -> Look | None:
    """None where there is none. One that is damaged counts as none, for it can be measured again."""
    try:
        look = Look.from_json(_read(place_of(root, index) / FILE))
    except ValueError:
        return None
    return look if look.round == index else None


def figures(root: Path, index: int) -> dict[str, float]:
    """The plain numbers of a look by name: the score's, and `diversity`; none where there is no look."""
    look = read_look(root, index)
    return {} if look is None else {look.reward: look.score, "diversity": look.diversity}


def write_ending(root: Path, ending: Ending) -> None:
    write_atomically(root / FILE, json.dumps(asdict(ending)) + "\n")


def forget_ending(root: Path) -> None:
    (root / FILE).unlink(missing_ok=True)


def read_ending(root: Path, *, after: int) -> Ending | None:
    """How the run ended, if the guard said so after this round; None for a run that went on since, or had no guard."""
    values = _read(root / FILE)
    kinds = {"after": int, "stopped": bool, "keep": int, "sentence": str}
    if any(type(values.get(name)) is not kind for name, kind in kinds.items()):
        return None
    ending = Ending(**{name: values[name] for name in kinds})
    return ending if ending.after == after and 0 <= ending.keep <= after else None


def _read(path: Path) -> dict[str, Any]:
    """The object in a file, or an empty one."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
