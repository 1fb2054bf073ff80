"""What a person chose in a round, as the list of what they did, and as scores that rank.

Legend: P groups of K candidates; an action names its group by its place p, from 0, and a candidate by its sample id.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from .files import read_text, write_atomically
from .select import Select

HUMAN = "human"
"""The score that a person gives: CHOSEN, REJECTED, or 0 for what was neither."""
CHOSEN, REJECTED = 1.0, -1.0
FILE = "choices.json"
Verb = Literal["choose", "reject", "clear", "done", "finish"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """do: mark the candidate `id` of a group as chosen or rejected, or take its mark back ("clear"); leave the group
    ("done"); say that the whole round is chosen ("finish")."""

    do: Verb
    group: int = 0
    id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """What holds of one group. done: a person has left it, with or without a candidate chosen."""

    chosen: tuple[str, ...] = ()
    rejected: tuple[str, ...] = ()
    done: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """A round's choices so far. groups: the candidates' ids, P tuples; best: how many a group can have chosen (m);
    marks: where `actions` lead."""

    groups: tuple[tuple[str, ...], ...]
    best: int
    actions: tuple[Action, ...]
    marks: tuple[Mark, ...]

    @classmethod
    def replay(cls, groups: Sequence[Sequence[str]], *, best: int, actions: Sequence[Action] = ()) -> Choices:
        """Raises ValueError for an action that was not possible."""
        known = tuple(map(tuple, groups))
        marks = [Mark() for _ in known]
        for action in actions:
            _apply(marks, action, known, best)
        return cls(groups=known, best=best, actions=tuple(actions), marks=tuple(marks))

    @classmethod
    def read(cls, folder: Path, groups: Sequence[Sequence[str]], *, best: int) -> Choices:
        """The choices that lie in a round's folder; none yet where there is no file.

        Raises ValueError for a file that is damaged or belongs to other candidates.
        """
        path = folder / FILE
        if not path.is_file():
            return cls.replay(groups, best=best)
        text = read_text(path, what="choices", advice="choose again")
        try:
            actions = [_action(row) for row in json.loads(text)["actions"]]
            return cls.replay(groups, best=best, actions=actions)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(
                f"{path} does not hold choices of this round ({error}); delete it to choose again"
            ) from None

    def write(self, folder: Path) -> None:
        """Into a round's folder, whole or not at all."""
        rows = [{key: value for key, value in asdict(action).items() if value != ""} for action in self.actions]
        write_atomically(folder / FILE, json.dumps({"actions": rows}) + "\n")

    def then(self, action: Action) -> Choices:
        """With one action more. Raises ValueError where it is not possible."""
        marks = list(self.marks)
        _apply(marks, action, self.groups, self.best)
        return replace(self, actions=(*self.actions, action), marks=tuple(marks))

    def undone(self) -> Choices:
        """Without the last action. Raises ValueError where there is none."""
        if not self.actions:
            raise ValueError("there is nothing to undo")
        return Choices.replay(self.groups, best=self.best, actions=self.actions[:-1])

    @property
    def done(self) -> int:
        """How many groups were left."""
        return sum(mark.done for mark in self.marks)

    @property
    def finished(self) -> bool:
        """Whether the person said so and changed nothing since."""
        return bool(self.actions) and self.actions[-1].do == "finish"

    def scores(self) -> dict[str, float]:
        """The score HUMAN by sample id."""
        scores = {name: 0.0 for ids in self.groups for name in ids}
        for mark in self.marks:
            scores |= dict.fromkeys(mark.chosen, CHOSEN) | dict.fromkeys(mark.rejected, REJECTED)
        return scores


def select_chosen(best: int) -> Select:
    """The ranking by a person: whoever was chosen wins, at most `best` a group, and nobody else does."""
    return Select(weights={HUMAN: 1.0}, method="fixed", best=best, above=0.0)


def _apply(marks: list[Mark], action: Action, groups: Sequence[Sequence[str]], best: int) -> None:
    if action.do == "finish":
        if not all(mark.done for mark in marks):
            raise ValueError("not every prompt is done")
        if not any(mark.chosen for mark in marks):
            raise ValueError("nothing is chosen in the whole round, so it would teach nothing: choose one picture")
        return
    if not 0 <= action.group < len(groups):
        raise ValueError(f"there is no prompt number {action.group + 1}")
    mark = marks[action.group]
    if action.do == "done":
        marks[action.group] = replace(mark, done=True)
        return
    name = action.id
    if name not in groups[action.group]:
        raise ValueError(f"prompt number {action.group + 1} has no picture {name!r}")
    chosen, rejected = ([i for i in ids if i != name] for ids in (mark.chosen, mark.rejected))
    if action.do == "choose":
        chosen = [name] if best == 1 else [*chosen, name]  # one alone: a new choice takes the place of the old one
        if len(chosen) > best:
            raise ValueError(f"{best} are chosen, which is all this run learns from; take one back first")
    elif action.do == "reject":
        rejected = [*rejected, name]
    marks[action.group] = replace(mark, chosen=tuple(chosen), rejected=tuple(rejected))


def _action(row: Any) -> Action:
    action = Action(**row)
    if action.do not in get_args(Verb) or type(action.group) is not int or type(action.id) is not str:
        raise ValueError("an action is unknown")
    return action
