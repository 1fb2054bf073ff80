"""The run folder. A round is complete or absent: it is written under a temporary name, flushed, and renamed.

config.toml, environment.json, metrics.jsonl
rounds/001/round.json              the round's plain numbers
rounds/001/candidates/             every picture or text, what training needs of it, metadata.jsonl (imagefolder)
rounds/001/winners/                the winners again
rounds/001/adapter/                the adapter after the round
rounds/001/choices.json            what a person chose, if one did
rounds/002.waiting/                a round whose candidates wait for a person: candidates/, choices.json
unfinished/                        what the round in hand has made so far (see `unfinished`)
"""

from __future__ import annotations

import json
import math
import os
import shutil
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any, Protocol

from .choices import FILE as CHOICES
from .choices import HUMAN
from .files import rename_whole, write_atomically, write_part
from .guard import Look
from .lock import FILE as LOCK
from .looks import figures, write_look
from .loop import group
from .records import Group, Round, Sample, Scored, Selection, Winner, samples_of
from .rows import METADATA, checked, expect, is_integer, is_number, is_numbers, read_object, read_rows, to_draw, to_row
from .settings import Settings
from .unfinished import Packer

TUNER_BATCH = ("tuning.batch_size", "tuning.gradient_accumulation")


class Codec(Packer, Protocol):
    """How a modality's samples lie on disk. `keep`: with all that training needs, so that reading gives them back.
    `begin` says which samples will be written, so that what it takes can be made beside other work."""

    def begin(self, samples: Sequence[Sample]) -> None: ...
    def write_samples(self, folder: Path, samples: Sequence[Sample], *, keep: bool) -> list[str]: ...
    def read_samples(self, folder: Path, rows: Sequence[Mapping[str, Any]]) -> list[Any]: ...


class RunFolder:
    """A run on disk; it satisfies `core.loop.Store`.

    replay: how many of the last rounds `resume` reads the winners of; None is all.
    """

    def __init__(self, root: Path, *, codec: Codec, replay: int | None = None) -> None:
        self.root = root
        self._codec, self._replay = codec, replay
        self._lines: list[str] = []  # of metrics.jsonl

    @classmethod
    def open(
        cls,
        root: Path,
        *,
        codec: Codec,
        config: Settings,
        environment: Mapping[str, Any],
        may_change: Iterable[str] = (),
        replay: int | None = None,
    ) -> RunFolder:
        """Start a run in `root`, or go on with the one that is there. Refuses what `check` refuses."""
        cls.check(root, config=config, may_change=may_change)
        make_folder(root)
        # first: a start that is killed later is still known as a run
        write_atomically(root / "config.toml", config.to_toml())
        (root / "rounds").mkdir(exist_ok=True)
        for leftover in (root / "rounds").glob(".*.partial"):
            shutil.rmtree(leftover)
        for leftover in (root / "rounds").glob("*/time.json.tmp"):  # the one file that nothing writes again
            leftover.unlink()
        for index in complete_rounds(root):  # it was killed between a round and the end of its wait
            shutil.rmtree(waiting_folder(root, index), ignore_errors=True)
        facts = {"started": _started(root), **environment}
        write_atomically(root / "environment.json", json.dumps(facts, indent=1) + "\n")
        store = cls(root, codec=codec, replay=replay)
        store._write_metrics(since=1)  # a run may have been killed between a round and its line
        return store

    @staticmethod
    def check(root: Path, *, config: Settings, may_change: Iterable[str] = ()) -> int:
        """Whether `open` would start or resume a run here; writes nothing. Returns how many rounds are complete.

        may_change: dotted keys, or whole sections, that may differ from the run's own configuration. The two sizes of
            the tuner's batch may always change together as long as their product stays. Before the first round is
            complete everything may change.

        Raises ValueError for a file, for a folder that holds something else or cannot be written, for a changed
        setting, by its key, and for a round that is missing before a later one.
        """
        try:
            root.stat()
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:  # a name that is too long, a folder that is closed
            raise ValueError(f"the run folder {root} cannot be made ({error.strerror}); give another one") from None
        if root.exists() and not root.is_dir():
            raise ValueError(f"{root} is a file; give a folder for the run")
        place = next(path for path in (root, *root.absolute().parents) if path.exists())
        if not place.is_dir():
            raise ValueError(f"the run folder {root} cannot be made: {place} is a file; give another folder")
        if not os.access(place, os.R_OK | os.W_OK | os.X_OK):
            raise ValueError(f"the run folder {root} cannot be written: {place} is closed to you; give another folder")
        path = root / "config.toml"
        if path.exists():
            before = type(config).load(path)
            _refuse_gap(root)
            if _completed(root) or waiting_folder(root, 1).is_dir():
                _refuse_changes(before, config, tuple(may_change), root)
        elif root.is_dir() and any(entry.name not in (LOCK, "config.toml.tmp") for entry in root.iterdir()):
            raise ValueError(f"{root} is not empty and holds no run; give a new folder")
        return _completed(root)

    def completed(self) -> int:
        """The index of the last complete round; 0 when there is none."""
        return _completed(self.root)

    def resume(self, policy: Any) -> list[Round]:
        """The complete rounds, the policy standing where the last one left it. Their groups are left out, and so are
        the winners of those that are too old to be learned again."""
        last = self.completed()
        oldest = 1 if self._replay is None else last + 1 - self._replay
        rounds = [self._read(index, winners=index >= oldest) for index in range(1, last + 1)]
        if last:
            policy.load(self._folder(last) / "adapter")
        return rounds

    def save(self, round_: Round, policy: Any) -> None:
        """Write one round whole, then its line of metrics.jsonl."""
        winners = {winner.sample.id: winner for winner in round_.selection.winners}
        rows = []
        for members, keys in zip(round_.groups, round_.selection.keys, strict=True):
            for scored, key in zip(members.candidates, keys, strict=True):
                rows.append(to_row(scored, key, winners.get(scored.sample.id)))
        won = [to_row(w.candidate, w.key, w) for w in round_.selection.winners]
        waiting = waiting_folder(self.root, round_.index)
        with _built(self._folder(round_.index)) as partial:
            self._write_set(partial / "candidates", samples_of(round_.groups), rows, keep=True)
            self._write_set(partial / "winners", [w.sample for w in round_.selection.winners], won, keep=True)
            (partial / "adapter").mkdir()
            policy.save(partial / "adapter")
            write_part(partial / "round.json", (json.dumps(_summary(round_), indent=1) + "\n").encode())
            if (waiting / CHOICES).is_file():
                write_part(partial / CHOICES, (waiting / CHOICES).read_bytes())
        shutil.rmtree(waiting, ignore_errors=True)
        self._write_metrics(since=round_.index)

    def wait(self, index: int, samples: Sequence[Sample]) -> None:
        """Keep the candidates of a round that waits for a person, so that no stop loses them."""
        rows = [to_row(Scored(sample, {HUMAN: 0.0}), 0.0, None) for sample in samples]
        with _built(waiting_folder(self.root, index)) as partial:
            self._write_set(partial / "candidates", samples, rows, keep=True)

    def waits(self, index: int) -> bool:
        return waiting_folder(self.root, index).is_dir()

    def waiting(self, index: int) -> list[Sample]:
        """The candidates of a round that waits, as they were sampled. Raises ValueError where one is lost."""
        folder = waiting_folder(self.root, index) / "candidates"
        rows = [checked(row, place) for place, row in read_rows(folder / METADATA)]
        data = self._codec.read_samples(folder, rows)
        return [Sample(to_draw(row), item) for row, item in zip(rows, data, strict=True)]

    def save_look(self, look: Look) -> None:
        """Write what the guard saw after a round, and its numbers into the round's line of metrics.jsonl."""
        write_look(self.root, look)
        self._write_metrics(since=max(1, look.round))

    def _folder(self, index: int) -> Path:
        return _folder(self.root, index)

    def _write_metrics(self, *, since: int) -> None:
        """Write the file anew, from what is known of the rounds before `since` and what the later ones say."""
        del self._lines[since - 1 :]
        for index in range(len(self._lines) + 1, self.completed() + 1):
            seen = figures(self.root, index)
            row = read_object(self._folder(index) / "round.json")
            self._lines.append(json.dumps(row | ({"guard": seen} if seen else {})) + "\n")
        write_atomically(self.root / "metrics.jsonl", "".join(self._lines))

    def _write_set(
        self, folder: Path, samples: Sequence[Sample], rows: Sequence[dict[str, Any]], *, keep: bool
    ) -> None:
        folder.mkdir(parents=True)
        names = self._codec.write_samples(folder, samples, keep=keep)
        lines = (json.dumps({"file_name": n, **row}, ensure_ascii=False) for n, row in zip(names, rows, strict=True))
        write_part(folder / METADATA, "".join(f"{line}\n" for line in lines).encode())

    def _read(self, index: int, *, winners: bool) -> Round:
        folder = self._folder(index)
        numbers = read_object(folder / "round.json").get("figures", {})
        expect(is_numbers(numbers), str(folder / "round.json"), "figures holds no numbers")
        if not winners:
            return Round(index, (), Selection((), ()), numbers)
        rows = []
        for place, row in read_rows(folder / "winners" / METADATA):
            rows.append(checked(row, place))
            expect(is_number(row.get("weight")), place, "weight is no finite number")
        data = self._codec.read_samples(folder / "winners", rows)
        won = tuple(_winner(row, item) for row, item in zip(rows, data, strict=True))
        return Round(index, (), Selection((), won), numbers)


@dataclass(frozen=True, slots=True, eq=False)
class StoredRound:
    """A round as it lies on disk, for readers that need no model.

    groups: every candidate in the stored order; `Sample.data` is the path of its file.
    winners: their sample ids, which are unique within a round only.
    keys: what the candidates were ranked by, `(P, K)`.
    """

    index: int
    groups: tuple[Group, ...]
    winners: frozenset[str]
    keys: tuple[tuple[float, ...], ...]


def stored_rounds(root: Path) -> Iterator[StoredRound]:
    """The complete rounds of a run, in order, each read when it is asked for.

    Raises ValueError for a folder without a complete round and, naming file and line, for damaged metadata.
    """
    return (_stored_round(_folder(root, index), index) for index in range(1, _some_rounds(root) + 1))


def read_metrics(root: Path) -> list[dict[str, Any]]:
    """The plain numbers of the complete rounds of a run, in order, as `metrics.jsonl` holds them.

    Raises ValueError as `stored_rounds` does.
    """
    _some_rounds(root)
    metrics = []
    for place, row in read_rows(root / "metrics.jsonl"):
        expect(is_integer(row.get("round")), place, "round is no integer")
        for key in ("mean", "deviation"):  # an older version wrote no deviation
            expect(is_numbers(row.get(key, {} if key == "deviation" else None)), place, f"{key} holds no numbers")
        metrics.append(row)
    return metrics


def make_folder(root: Path) -> None:
    """The run's folder, if it is not there. Raises ValueError where it cannot be made."""
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"the run folder {root} cannot be made ({error.strerror}); give another one") from None


def waiting_folder(root: Path, index: int) -> Path:
    """Where the candidates of a round wait for a person."""
    return _folder(root, index).with_name(f"{index:03d}.waiting")


def waiting_round(root: Path) -> StoredRound | None:
    """The round that waits for a person, if one does: it follows on the last complete one. Nobody has won in it yet."""
    index = _completed(root) + 1
    folder = waiting_folder(root, index)
    return _stored_round(folder, index) if folder.is_dir() else None


def stored_round(root: Path, index: int) -> StoredRound:
    """One complete round. Raises ValueError for one that the run does not have, and as `stored_rounds` does."""
    if not 1 <= index <= (last := _some_rounds(root)):
        raise ValueError(f"{root} has no complete round {index}; give 1{f' to {last}' if last > 1 else ''}")
    return _stored_round(_folder(root, index), index)


def round_folder(root: Path, index: int) -> Path:
    return _folder(root, index)


def complete_rounds(root: Path) -> list[int]:
    """The indices of a run's complete rounds, in order."""
    return list(range(1, _completed(root) + 1))


def _started(root: Path) -> str:
    """When the run began, ISO 8601 in UTC: what its first start wrote, else now."""
    try:
        return str(json.loads((root / "environment.json").read_text(encoding="utf-8"))["started"])
    except (OSError, ValueError, KeyError, TypeError):
        return datetime.now(UTC).isoformat(timespec="seconds")


def _folder(root: Path, index: int) -> Path:
    return root / "rounds" / f"{index:03d}"


def _completed(root: Path) -> int:
    """The index of the last complete round that follows on the ones before; 0 when there is none."""
    return next(index for index in count() if not (_folder(root, index + 1) / "round.json").is_file())


def _refuse_gap(root: Path) -> None:
    last = _completed(root)
    names = (path.name for path in (root / "rounds").glob("*"))
    later = sorted(int(name) for name in names if name.isdecimal() and int(name) > last)
    if later and later[0] == last + 1:
        raise ValueError(f"{_folder(root, last + 1)} holds no round.json; delete that folder to make the round again")
    if later:
        raise ValueError(
            f"{_folder(root, last + 1)} is missing, yet round {later[0]} stands in the same run; "
            f"put it back, or delete every round from {last + 1} on to make them again"
        )


def _some_rounds(root: Path) -> int:
    if last := _completed(root):
        _refuse_gap(root)
        return last
    raise ValueError(f"{root} holds no complete round; give the folder of a run that has one, such as runs/NAME")


def _stored_round(folder: Path, index: int) -> StoredRound:
    path = folder / "candidates" / METADATA
    scored: dict[str, Scored] = {}
    keys: dict[str, float] = {}
    winners: set[str] = set()
    names: set[str] = set()
    for place, row in read_rows(path):
        draw = to_draw(checked(row, place))
        names = names or set(row["scores"])
        expect(row["id"] == draw.id, place, f"its id {row['id']!r} is not that of its prompt ({draw.id})")
        expect(draw.id not in scored, place, f"sample {draw.id} was there before")
        expect(set(row["scores"]) == names, place, "its rewards are not those of the first line")
        scored[draw.id] = Scored(Sample(draw, path.parent / row["file_name"]), row["scores"])
        keys[draw.id] = row["key"]
        if row["winner"]:
            winners.add(draw.id)
    groups = group(list(scored.values()))
    ranks = tuple(tuple(keys[candidate.sample.id] for candidate in members.candidates) for members in groups)
    return StoredRound(index, groups, frozenset(winners), ranks)


def _refuse_changes(old: Settings, new: Settings, may_change: tuple[str, ...], root: Path) -> None:
    before, after = old.flat(), new.flat()
    allowed = {key for key in after if any(key == name or key.startswith(f"{name}.") for name in may_change)}
    changed = [key for key in after if key not in allowed and before.get(key) != after[key]]
    told = [f"{key} was {before.get(key)!r} and is now {after[key]!r}" for key in changed if key not in TUNER_BATCH]
    if set(TUNER_BATCH) & set(changed):
        was, now = ([values[key] for key in TUNER_BATCH] for values in (before, after))
        if math.prod(was) != math.prod(now):
            told.append(
                f"{' x '.join(TUNER_BATCH)} was {was[0]} x {was[1]} and is now {now[0]} x {now[1]}, and these may only "
                f"change with their product ({math.prod(was)}) kept"
            )
    if told:
        raise ValueError(
            f"{root} holds a run with other settings: {'; '.join(told)}. Change them back or give another folder"
        )


def _winner(row: Mapping[str, Any], data: Any) -> Winner:
    return Winner(Scored(Sample(to_draw(row), data), row["scores"]), row["key"], row["weight"])


def _summary(round_: Round) -> dict[str, Any]:
    candidates = [scored for members in round_.groups for scored in members.candidates]
    winners = [winner.candidate for winner in round_.selection.winners]
    names = list(candidates[0].scores)
    return {
        "round": round_.index,
        "candidates": len(candidates),
        "winners": len(winners),
        "mean": {name: statistics.fmean(c.scores[name] for c in candidates) for name in names},
        "deviation": {name: statistics.pstdev(c.scores[name] for c in candidates) for name in names},
        "best": {name: statistics.fmean(c.scores[name] for c in winners) for name in names},
        "figures": dict(round_.figures),
    }


@contextmanager
def _built(final: Path) -> Iterator[Path]:
    """A folder to fill, which gets its name when it is whole. A disk that was full gets its room back."""
    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        yield partial
        rename_whole(partial, final)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
