"""A person overrules the ranking of a finished round: that round is tuned again, and what came of it is set aside.

replaced/1/rounds/002 ...          the rounds as they were, from the overruled one on
replaced/1/lora, evaluation, ...   the result that they led to
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from .choices import FILE, HUMAN, Choices
from .files import rename_whole
from .store import StoredRound, complete_rounds, round_folder, stored_round, waiting_folder

RESULTS = ("lora", "evaluation", "report.html", "before_after.png", "guard.json", "metrics.jsonl")


def ids_of(round_: StoredRound) -> list[list[str]]:
    """The sample ids of each group."""
    return [[candidate.sample.id for candidate in group.candidates] for group in round_.groups]


def overruled(root: Path, *, best: int) -> int | None:
    """The first complete round that a person has finished choosing in and that was tuned on other winners.

    Raises ValueError for choices that are damaged.
    """
    for index in complete_rounds(root):
        if not (round_folder(root, index) / FILE).is_file():
            continue
        stored = stored_round(root, index)
        choices = Choices.read(round_folder(root, index), ids_of(stored), best=best)
        if choices.finished and choices.scores() != _human_scores(stored):
            return index
    return None


def set_aside(root: Path, index: int) -> Path:
    """Move round `index`, the later ones and their result to a folder of their own, which is returned, and let the
    candidates of that round wait with the person's choices.

    A run that is killed on the way still has the overruled round, or has its candidates waiting: starting it again
    goes on.
    """
    waiting = waiting_folder(root, index)
    old = round_folder(root, index)
    partial = waiting.with_name(f".{waiting.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(waiting, ignore_errors=True)
    shutil.copytree(old / "candidates", partial / "candidates")
    shutil.copyfile(old / FILE, partial / FILE)
    rename_whole(partial, waiting)
    place = next(path for number in count(1) if not (path := root / "replaced" / str(number)).exists())
    (place / "rounds").mkdir(parents=True)
    for name in RESULTS:
        if (root / name).exists():
            os.rename(root / name, place / name)
    last = complete_rounds(root)[-1]
    if (unseen := waiting_folder(root, last + 1)).is_dir():  # drawn by an adapter that is set aside, too
        os.rename(unseen, place / "rounds" / unseen.name)
    for later in reversed(complete_rounds(root)[index - 1 :]):  # the overruled one last: it says what is to be done
        os.rename(round_folder(root, later), place / "rounds" / f"{later:03d}")
    return place


def what_follows(rounds: Sequence[int], index: int) -> str:
    """What an overruled round means for the others, in words."""
    later = [number for number in rounds if number > index]
    if not later:
        return f"round {index} is tuned again on what you chose"
    which = f"round {later[0]}" if len(later) == 1 else f"rounds {later[0]} to {later[-1]}"
    return f"round {index} is tuned again on what you chose, and {which}, which came of it, made anew"


def _human_scores(round_: StoredRound) -> dict[str, float]:
    candidates = [candidate for group in round_.groups for candidate in group.candidates]
    return {c.sample.id: c.scores[HUMAN] for c in candidates if HUMAN in c.scores}
