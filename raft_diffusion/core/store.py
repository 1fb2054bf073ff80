"""The run folder. A round is complete or absent: it is written under a temporary name, flushed, and renamed.

config.toml, environment.json, metrics.jsonl
rounds/001/round.json              the round's plain numbers
rounds/001/candidates/             every picture or text, with metadata.jsonl (imagefolder layout)
rounds/001/winners/                the winners again, with what training needs of them
rounds/001/adapter/                the adapter after the round
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from .config import Config
from .files import write_atomically
from .records import Draw, Prompt, Round, Sample, Scored, Selection, Winner


class Codec(Protocol):
    """How a modality's samples lie on disk. `keep`: with all that training needs, so that reading gives them back."""

    def write_samples(self, folder: Path, samples: Sequence[Sample], *, keep: bool) -> list[str]: ...
    def read_samples(self, folder: Path, rows: Sequence[Mapping[str, Any]]) -> list[Any]: ...


class RunFolder:
    """A run on disk; it satisfies `core.loop.Store`."""

    def __init__(self, root: Path, *, codec: Codec) -> None:
        self.root = root
        self._codec = codec

    @classmethod
    def open(
        cls,
        root: Path,
        *,
        codec: Codec,
        config: Config,
        environment: Mapping[str, Any],
        may_change: Iterable[str] = (),
    ) -> RunFolder:
        """Start a run in `root`, or go on with the one that is there.

        may_change: dotted keys, or whole sections, that may differ from the run's own configuration.
        Raises ValueError for a file, for a folder that holds something else or cannot be made, for a changed setting,
        by its key, and for a round that is missing before a later one.
        """
        path = root / "config.toml"
        if root.exists() and not root.is_dir():
            raise ValueError(f"{root} is a file; give a folder for the run")
        if path.exists():
            _refuse_changes(Config.load(path), config, tuple(may_change), root)
        elif root.is_dir() and any(entry.name != "config.toml.tmp" for entry in root.iterdir()):
            raise ValueError(f"{root} is not empty and holds no run; give a new folder")
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"the run folder {root} cannot be made ({error.strerror}); give another one") from None
        write_atomically(path, config.to_toml())  # first: a start that is killed later is still known as a run
        (root / "rounds").mkdir(exist_ok=True)
        for leftover in (root / "rounds").glob(".*.partial"):
            shutil.rmtree(leftover)
        write_atomically(root / "environment.json", json.dumps(dict(environment), indent=1) + "\n")
        store = cls(root, codec=codec)
        store._refuse_gap()
        store._write_metrics()  # a run may have been killed between a round and its line
        return store

    def completed(self) -> int:
        """The index of the last complete round; 0 when there is none."""
        index = 0
        while (self._folder(index + 1) / "round.json").is_file():
            index += 1
        return index

    def resume(self, policy: Any) -> list[Round]:
        """The complete rounds with their winners (groups are left out), the policy standing where the last one left
        it."""
        last = self.completed()
        rounds = [self._read(index) for index in range(1, last + 1)]
        if last:
            policy.load(self._folder(last) / "adapter")
        return rounds

    def save(self, round_: Round, policy: Any) -> None:
        """Write one round whole, then its line of metrics.jsonl."""
        final = self._folder(round_.index)
        partial = final.with_name(f".{final.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        winners = {winner.sample.id: winner for winner in round_.selection.winners}
        rows = []
        for group, keys in zip(round_.groups, round_.selection.keys, strict=True):
            for scored, key in zip(group.candidates, keys, strict=True):
                rows.append(_row(scored, key, winners.get(scored.sample.id)))
        candidates = [scored.sample for group in round_.groups for scored in group.candidates]
        self._write_set(partial / "candidates", candidates, rows, keep=False)
        won = [_row(w.candidate, w.key, w) for w in round_.selection.winners]
        self._write_set(partial / "winners", [w.sample for w in round_.selection.winners], won, keep=True)
        (partial / "adapter").mkdir()
        policy.save(partial / "adapter")
        write_atomically(partial / "round.json", json.dumps(_summary(round_), indent=1) + "\n")
        for path in [*partial.rglob("*"), partial]:
            _flush(path)
        os.rename(partial, final)
        _flush(final.parent)
        self._write_metrics()

    def _refuse_gap(self) -> None:
        last = self.completed()
        later = sorted(int(p.name) for p in (self.root / "rounds").iterdir() if p.name.isdigit() and int(p.name) > last)
        if later:
            raise ValueError(
                f"{self._folder(last + 1)} is missing or incomplete, yet round {later[0]} stands in the same run; "
                f"put it back, or delete every round from {last + 1} on to make them again"
            )

    def _folder(self, index: int) -> Path:
        return self.root / "rounds" / f"{index:03d}"

    def _write_metrics(self) -> None:
        paths = (self._folder(i) / "round.json" for i in range(1, self.completed() + 1))
        texts = (json.dumps(json.loads(path.read_text(encoding="utf-8"))) for path in paths)
        write_atomically(self.root / "metrics.jsonl", "".join(f"{text}\n" for text in texts))

    def _write_set(
        self, folder: Path, samples: Sequence[Sample], rows: Sequence[dict[str, Any]], *, keep: bool
    ) -> None:
        folder.mkdir(parents=True)
        names = self._codec.write_samples(folder, samples, keep=keep)
        lines = (json.dumps({"file_name": n, **row}, ensure_ascii=False) for n, row in zip(names, rows, strict=True))
        write_atomically(folder / "metadata.jsonl", "".join(f"{line}\n" for line in lines))

    def _read(self, index: int) -> Round:
        folder = self._folder(index)
        lines = (folder / "winners" / "metadata.jsonl").read_text(encoding="utf-8").split("\n")
        rows = [json.loads(line) for line in lines if line]
        data = self._codec.read_samples(folder / "winners", rows)
        winners = tuple(_winner(row, item) for row, item in zip(rows, data, strict=True))
        figures = json.loads((folder / "round.json").read_text(encoding="utf-8"))["figures"]
        return Round(index, (), Selection((), winners), figures)


def _refuse_changes(old: Config, new: Config, may_change: tuple[str, ...], root: Path) -> None:
    before, after = old.flat(), new.flat()
    allowed = {key for key in after if any(key == name or key.startswith(f"{name}.") for name in may_change)}
    changed = [key for key in after if key not in allowed and before.get(key) != after[key]]
    if changed:
        told = "; ".join(f"{key} was {before.get(key)!r} and is now {after[key]!r}" for key in changed)
        raise ValueError(f"{root} holds a run with other settings: {told}. Change them back or give another folder")


def _row(scored: Scored, key: float, winner: Winner | None) -> dict[str, Any]:
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
        "scores": dict(scored.scores),
        "key": key,
        "winner": winner is not None,
        "weight": winner.weight if winner else 0.0,
    }


def _winner(row: Mapping[str, Any], data: Any) -> Winner:
    prompt = Prompt(row["text"], negative=row["negative"], weight=row["prompt_weight"])
    draw = Draw(prompt, row["k"], row["seed"], group=row["group"])
    return Winner(Scored(Sample(draw, data), row["scores"]), row["key"], row["weight"])


def _summary(round_: Round) -> dict[str, Any]:
    candidates = [scored for group in round_.groups for scored in group.candidates]
    winners = [winner.candidate for winner in round_.selection.winners]
    names = list(candidates[0].scores)
    return {
        "round": round_.index,
        "candidates": len(candidates),
        "winners": len(winners),
        "mean": {name: statistics.fmean(c.scores[name] for c in candidates) for name in names},
        "best": {name: statistics.fmean(c.scores[name] for c in winners) for name in names},
        "figures": dict(round_.figures),
    }


def _flush(path: Path) -> None:
    """Make a file or a folder's entries last; Windows cannot open a folder for that, and a file only for writing."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
