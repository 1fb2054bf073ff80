"""Ranking again: the stored candidates of a run, or any pictures, and the winners written out to train on."""

from __future__ import annotations

import json
import os
import shutil
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .core.files import write_atomically
from .core.records import Group, Sample, Scored, Selection, Winner
from .core.select import Select
from .core.store import stored_rounds


@dataclass(frozen=True, slots=True, eq=False)
class RankedRound:
    """A stored round under a new ranking. `before`: the ids of the samples that won when the run was made."""

    index: int
    groups: tuple[Group, ...]
    before: frozenset[str]
    selection: Selection

    @property
    def candidates(self) -> list[Scored]:
        return [candidate for group in self.groups for candidate in group.candidates]

    @property
    def after(self) -> frozenset[str]:
        return frozenset(winner.sample.id for winner in self.selection.winners)

    @property
    def changed(self) -> int:
        """How many of the present winners did not win before."""
        return len(self.after - self.before)

    def mean(self, ids: frozenset[str]) -> dict[str, float]:
        """Every reward's mean over the samples of these ids."""
        chosen = [candidate.scores for candidate in self.candidates if candidate.sample.id in ids]
        return {name: statistics.fmean(scores[name] for scores in chosen) for name in self.candidates[0].scores}


def rank_run(root: Path, select: Select) -> Iterator[RankedRound]:
    """Every complete round of a run, ranked again from its stored scores alone.

    Raises ValueError for a weight on a reward that was not stored, and for a round that the new ranking cannot rank.
    """
    for stored in stored_rounds(root):
        known = sorted(stored.groups[0].candidates[0].scores)
        if missing := [name for name in select.weights if name not in known]:
            raise ValueError(
                f"round {stored.index} of {root} stored no reward {missing[0]!r}, only {', '.join(known)}; to rank by "
                f"another one, rank the pictures themselves: {root / 'rounds' / f'{stored.index:03d}' / 'candidates'}"
            )
        try:
            selection = select(stored.groups)
        except ValueError as error:
            raise ValueError(f"round {stored.index} of {root}: {error}") from error
        yield RankedRound(stored.index, stored.groups, stored.winners, selection)


def competitors(samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """The pictures that share their prompt with another, and those that are alone with theirs and cannot compete.

    Raises ValueError where all are alone.
    """
    counts = Counter(sample.prompt.id for sample in samples)
    alone = [sample for sample in samples if counts[sample.prompt.id] == 1]
    if len(alone) == len(samples):
        raise ValueError(
            f"{'the only picture has' if len(alone) == 1 else f'each of the {len(alone)} pictures has'} a prompt of "
            "its own, so that none competes with another; give --prompt TEXT to rank them all against each other"
        )
    return [sample for sample in samples if counts[sample.prompt.id] > 1], alone


def refuse_occupied(folder: Path) -> None:
    """Raises ValueError where winners cannot be written: the folder must be new, or empty, and writable."""
    if os.path.isdir(folder) and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty; give a new or an empty folder for the winners")
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise ValueError(f"{folder} is a file; give a new or an empty folder for the winners")
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.exists(path))
    if not os.path.isdir(there) or not os.access(there, os.W_OK):
        raise ValueError(f"the folder {folder} cannot be made in {there}; give another one for the winners")


def write_winners(folder: Path, winners: Sequence[tuple[str, Path, Winner]]) -> None:
    """Copy winners, each (prefix of its name, its file, the winner), so that `datasets` and kohya train on them.

    The files are copied as they are, under names that stay apart even without their endings; metadata.jsonl
    (imagefolder layout: file_name, text, key, scores) and a caption `<stem>.txt` each come with them.
    A failure half-way leaves the folder as it was. Raises ValueError as `refuse_occupied` does, and for a lost file.
    """
    refuse_occupied(folder)
    fresh = not os.path.exists(folder)
    folder.mkdir(parents=True, exist_ok=True)
    taken: set[str] = set()
    lines = []
    try:
        for prefix, source, winner in winners:
            name = _free_name(f"{prefix}{source.name}", taken)
            if not os.path.isfile(source):
                raise ValueError(f"the picture {source} of a winner is gone; put it back, or leave out --out")
            shutil.copyfile(source, folder / name)
            text = winner.sample.prompt.text
            if text:
                write_atomically((folder / name).with_suffix(".txt"), " ".join(text.splitlines()) + "\n")
            lines.append(_line(name, winner))
        write_atomically(folder / "metadata.jsonl", "".join(lines))
    except BaseException:
        for path in folder.iterdir():  # it was empty
            path.unlink()
        if fresh:
            folder.rmdir()
        raise


def _line(name: str, winner: Winner) -> str:
    scores = dict(winner.candidate.scores)
    row = {"file_name": name, "text": winner.sample.prompt.text, "key": winner.key, "scores": scores}
    return json.dumps(row, ensure_ascii=False) + "\n"


def _free_name(name: str, taken: set[str]) -> str:
    """The name, with a number where another file has its stem: a caption belongs to one picture."""
    path = Path(name)
    stem, number = path.stem, 1
    while stem.casefold() in taken:
        number += 1
        stem = f"{path.stem}-{number}"
    taken.add(stem.casefold())
    return stem + path.suffix
