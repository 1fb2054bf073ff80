"""Each prompt's candidates on the report's page: who won, who lost, by which scores.

Legend: K candidates compete in a group; a prompt may have several groups a round.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from ..core.records import OWN
from .charts import MINUS
from .reader import Picture, Reader, is_number, numbers, round_names
from .result import written

FULL = 6000  # candidates of a run that are all shown; of a larger one the winners and the worst of each group
LOSERS = 3  # those worst
MOST = 12_000  # candidates on a page; each takes about half a kilobyte besides its picture
SIZES = ((144, 82), (112, 75), (96, 65), (80, 55), (64, 45))  # (px, WebP's quality), the first that fits the page
PROBES = 12  # pictures that are made in a size to see whether it fits


@dataclass(frozen=True, slots=True)
class Candidate:
    picture: Picture
    winner: bool
    key: float
    scores: dict[str, float]
    origin: str

    @property
    def key_text(self) -> str:
        return f"{self.key:.2f}".replace("-", MINUS) if math.isfinite(self.key) else written(None)


@dataclass(frozen=True, slots=True)
class Contest:
    """The candidates that competed; `shown` are the winners, best first, and then the others, best first."""

    size: int
    shown: list[Candidate]


@dataclass(slots=True)
class PromptView:
    """One prompt: its contests by round, newest round first."""

    text: str
    negative: str
    rounds: dict[int, list[Contest]] = field(default_factory=dict)

    @property
    def candidates(self) -> int:
        return sum(contest.size for contests in self.rounds.values() for contest in contests)

    @property
    def winners(self) -> int:
        return sum(c.winner for contests in self.rounds.values() for contest in contests for c in contest.shown)


Row = tuple[bool, float, dict[str, Any]]  # of metadata.jsonl: (winner, key, all of it)


def read_prompts(reader: Reader) -> list[PromptView]:
    """By prompt, in the order of the newest round; read newest first, so that the newest get their pictures before the
    room is used up."""
    found = {int(name): _groups(reader, name) for name in reversed(round_names(reader))}
    total = sum(len(members) for _, groups in found.values() for members in groups)
    shown = {
        index: [_worth_showing(members, all_of_them=total <= FULL) for members in groups]
        for index, (_, groups) in found.items()
    }
    names = [
        (found[index][0], row.get("file_name"))
        for index, groups in shown.items()
        for members in groups
        for _, _, row in members
    ]
    side, quality = _size_that_fits(reader, names[:MOST])
    prompts: dict[tuple[str, str], PromptView] = {}
    left = MOST
    for index, (folder, groups) in found.items():
        for members, chosen in zip(groups, shown[index], strict=True):
            chosen = chosen[:left]
            left -= len(chosen)
            if not chosen:
                reader.notes["A group of an early round was left out to keep this page small."] += 1
                continue
            row = members[0][2]
            texts = str(row.get("text", "")), str(row.get("negative") or "")
            view = prompts.setdefault(texts, PromptView(*texts))
            candidates = [
                Candidate(
                    reader.picture(folder, row.get("file_name"), side=side, quality=quality),
                    won,
                    key,
                    numbers(row.get("scores")),
                    _origin(row),
                )
                for won, key, row in chosen
            ]
            view.rounds.setdefault(index, []).append(Contest(len(members), candidates))
    return list(prompts.values())


def _size_that_fits(reader: Reader, names: list[tuple[str, Any]]) -> tuple[int, int]:
    """The largest of SIZES in which all these pictures, (folder, file), will about fit into the room that is left."""
    probes = names[:: math.ceil(len(names) / PROBES)] if names else []
    for side, quality in SIZES:
        scout = Reader(reader.run, room=reader.room, done=reader.done)
        for folder, name in probes:
            scout.picture(folder, name, side=side, quality=quality)
        if (reader.room - scout.room) * len(names) <= 0.95 * reader.room * len(probes):
            return side, quality
    return SIZES[-1]


def _groups(reader: Reader, name: str) -> tuple[str, list[list[Row]]]:
    """Where a round's pictures lie, and its groups, each with the winners first, best first."""
    kinds = [f"rounds/{name}/{kind}" for kind in ("candidates", "winners")]
    folder = next((kind for kind in kinds if reader.has(f"{kind}/metadata.jsonl")), None)
    if folder is None:
        reader.notes[f"rounds/{name} holds no metadata.jsonl: its pictures are not shown."] += 1
        return "", []
    groups: dict[str, list[Row]] = {}
    for row in reader.jsonl(f"{folder}/metadata.jsonl"):
        key = float(row["key"]) if is_number(row.get("key")) else -math.inf
        members = groups.setdefault(f"{row.get('prompt_id')} {row.get('group')}", [])
        members.append((row.get("winner") is True, key, row))
    return folder, [sorted(members, key=lambda row: row[:2], reverse=True) for members in groups.values()]


def _origin(row: dict[str, Any]) -> str:
    """Who made a candidate, where the model did not; of a folder's, its file."""
    source = row.get("source", OWN)
    return "" if source == OWN else str(row.get("item") or source)


def _worth_showing(members: list[Row], *, all_of_them: bool) -> list[Row]:
    winners = [row for row in members if row[0]]
    return members if all_of_them else winners + members[len(winners) :][-LOSERS:]
