"""What the review page shows of a round, and what a person does there. It knows no network and no HTML.

The page speaks of places: group p of P, and the picture at place s of its K, in an order that says nothing of scores.
"""

from __future__ import annotations

import os
import threading
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from ..core.choices import Action, Choices, Verb
from ..core.config import Config
from ..core.files import inside
from ..core.overrule import ids_of
from ..core.records import derive_seed
from ..core.store import StoredRound, complete_rounds, round_folder, stored_round, waiting_folder, waiting_round


class Outdated(ValueError):
    """The page shows what is no longer so: it must be asked for again."""


@dataclass(frozen=True, slots=True, eq=False)
class Sheet:
    """A round to choose in. order: for each group the places of its candidates as they are shown."""

    round: StoredRound
    folder: Path
    waits: bool
    order: tuple[tuple[int, ...], ...]

    def id_at(self, group: int, place: int) -> str:
        return self.round.groups[group].candidates[self.order[group][place]].sample.id


class Desk:
    """The choosing in one run folder. Everything lies on disk: two desks of one run see the same.

    index: the finished round to choose in; None for the one that waits, whichever that is at the time.
    """

    def __init__(self, root: Path, index: int | None = None) -> None:
        self._root, self._index = root, index
        config = Config.load(root / "config.toml")
        self._best, self._rounds = config.selection.best, config.rounds
        self._shape = config.sampling.width / config.sampling.height
        self._lock = threading.RLock()
        self._sheet: tuple[Any, Sheet] | None = None

    def show(self) -> dict[str, Any]:
        """All that the page needs to draw itself; without a round there is nothing to choose at present."""
        with self._lock:
            sheet = self._open()
            run = {"run": plain(self._root.resolve().name), "rounds": self._rounds}
            if sheet is None:
                return {**run, "round": None}
            groups = [{"prompt": plain(g.prompt.text), "pictures": len(g.candidates)} for g in sheet.round.groups]
            index = sheet.round.index
            later = 0 if sheet.waits else complete_rounds(self._root)[-1] - index
            about = {"round": index, "waits": sheet.waits, "later": later, "best": self._best, "shape": self._shape}
            return {**run, **about, "groups": groups, "choices": self._told(sheet, self._read(sheet))}

    def act(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Do what the page says, keep it, and return the choices as they are then.

        message: `round`, `revision` (how many actions the page knows), `do` (a verb, or "undo"), and `group` and
        `place` where the verb needs them. Raises Outdated where the page knows another state, ValueError for what
        cannot be done.
        """
        with self._lock:
            sheet = self._open()
            if sheet is None or message.get("round") != sheet.round.index:
                raise Outdated("this round is no longer open")
            choices = self._read(sheet)
            if message.get("revision") != len(choices.actions):
                raise Outdated("something was chosen in another window")
            choices = choices.undone() if message.get("do") == "undo" else choices.then(_action(sheet, message))
            choices.write(sheet.folder)
            return self._told(sheet, choices)

    def picture(self, round_: int, group: int, place: int) -> Path | None:
        """The file of a picture; None for one that is not there, or not in its folder."""
        with self._lock:
            sheet = self._open()
        if sheet is None or sheet.round.index != round_ or not group < len(sheet.order):
            return None
        if not place < len(sheet.order[group]):
            return None
        path = sheet.round.groups[group].candidates[sheet.order[group][place]].sample.data
        found = inside(sheet.folder / "candidates", path.name)
        return found if found is not None and found.is_file() else None

    def finished(self) -> int | None:
        """How many actions finished the round, -1 for one that waits no more; None while it is chosen in."""
        with self._lock:
            sheet = self._open()
            if sheet is None:
                return -1
            choices = self._read(sheet)
            return len(choices.actions) if choices.finished else None

    def _open(self) -> Sheet | None:
        """The sheet of the round, read again only where its file has changed: a round can have thousands of lines."""
        index = self._index if self._index is not None else len(complete_rounds(self._root)) + 1
        place = round_folder if self._index is not None else waiting_folder
        folder = place(self._root, index)
        try:
            facts = os.stat(folder / "candidates" / "metadata.jsonl")
        except OSError:
            return None
        mark = (index, facts.st_ino, facts.st_mtime_ns)
        if self._sheet is None or self._sheet[0] != mark:
            stored = waiting_round(self._root) if self._index is None else stored_round(self._root, index)
            if stored is None:
                return None
            sheet = Sheet(stored, folder, self._index is None, _shuffled(stored))
            self._sheet = (mark, sheet)
        return self._sheet[1]

    def _read(self, sheet: Sheet) -> Choices:
        return Choices.read(sheet.folder, ids_of(sheet.round), best=self._best)

    def _told(self, sheet: Sheet, choices: Choices) -> dict[str, Any]:
        groups = []
        for p, (mark, ids) in enumerate(zip(choices.marks, choices.groups, strict=True)):
            places = {ids[k]: place for place, k in enumerate(sheet.order[p])}
            marked = {kind: sorted(places[i] for i in getattr(mark, kind)) for kind in ("chosen", "rejected")}
            groups.append({**marked, "done": mark.done})
        last = choices.actions[-1].group if choices.actions else None
        return {"revision": len(choices.actions), "last": last, "finished": choices.finished, "groups": groups}


def plain(text: str) -> str:
    """Words for a screen: what controls a terminal or turns the line around is shown as a sign of its own. Line breaks
    stay, and so do the joiners that emoji and some scripts are written with."""
    kept, controls = "\n\t\u200c\u200d", ("Cc", "Cf", "Cs")
    return "".join("\ufffd" if unicodedata.category(c) in controls and c not in kept else c for c in text)


def _shuffled(round_: StoredRound) -> tuple[tuple[int, ...], ...]:
    """The candidates of each group in an order of its own, the same whenever the page is opened."""
    seeds = [[derive_seed(0, "review", round_.index, name) for name in ids] for ids in ids_of(round_)]
    return tuple(tuple(sorted(range(len(row)), key=row.__getitem__)) for row in seeds)


def _action(sheet: Sheet, message: Mapping[str, Any]) -> Action:
    do, group, place = (message.get(key) for key in ("do", "group", "place"))
    if do not in get_args(Verb):
        raise ValueError(f"the page asked for something unknown; it can {', '.join(get_args(Verb))} and undo")
    do = cast(Verb, do)
    if do == "finish":
        return Action(do=do)
    if type(group) is not int or not 0 <= group < len(sheet.order):
        raise ValueError("the page named no prompt of this round")
    if do == "done":
        return Action(do=do, group=group)
    if type(place) is not int or not 0 <= place < len(sheet.order[group]):
        raise ValueError("the page named no picture of this prompt")
    return Action(do=do, group=group, id=sheet.id_at(group, place))
