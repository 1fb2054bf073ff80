"""A person as a reward: the run draws its candidates, says where to choose, waits, and goes on with what was chosen.

Nothing that a person did is ever held in memory alone: candidates and choices lie in the run folder, where `review`
finds them too, so that a run can be stopped while it waits and chosen in without it.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .core.choices import HUMAN, Choices
from .core.overrule import ids_of
from .core.records import Draw, Sample
from .core.store import RunFolder, waiting_folder, waiting_round

PAUSE = 0.3
"""Seconds between two looks at what was chosen."""


class Person:
    """Stands between the loop and the policy where a person ranks; elsewhere it hands everything through.

    always: whether a person ranks every round, or only one that was overruled. best: pictures a group may have chosen.
    announce: told once at what address to choose. progress: called with ("choose", prompts done, prompts).
    """

    def __init__(
        self,
        policy: Any,
        store: RunFolder,
        *,
        always: bool,
        best: int,
        announce: Callable[[str], object],
        progress: Callable[[str, int, int], None],
    ) -> None:
        self._policy, self._store, self._always, self._best = policy, store, always, best
        self._announce, self._progress = announce, progress
        self._server: Any = None

    def generate(self, draws: Sequence[Draw]) -> list[Sample]:
        """The candidates that wait already, else new ones, kept before anybody looks at them."""
        index = self._index
        if self._store.waits(index):
            try:
                samples = self._store.waiting(index)
            except ValueError as error:  # every picture can be drawn again from its seed
                warnings.warn(f"{error}; round {index} is drawn again from its seeds", stacklevel=2)
                return self._policy.generate(draws)
            if [sample.draw for sample in samples] == list(draws):
                return samples
            raise ValueError(
                f"{waiting_folder(self._store.root, index)} holds candidates of other prompts or seeds; delete it to "
                "draw the round anew"
            )
        samples = self._policy.generate(draws)
        if self._always:
            self._store.wait(index, samples)
        return samples

    def save(self, folder: Path) -> None:
        self._policy.save(folder)

    def load(self, folder: Path) -> None:
        self._policy.load(folder)

    def score(self, samples: Sequence[Sample]) -> Mapping[str, Sequence[float]]:
        """A `Reward`: the person's score where a person ranks this round, else none."""
        if not self._store.waits(self._index):
            return {}
        choices = self._read()
        if not choices.finished:
            choices = self._ask()
        scores = choices.scores()
        return {HUMAN: [scores[sample.id] for sample in samples]}

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    @property
    def _index(self) -> int:
        return self._store.completed() + 1

    def _read(self) -> Choices:
        waiting = waiting_round(self._store.root)
        if waiting is None:
            folder = waiting_folder(self._store.root, self._index)
            raise ValueError(
                f"{folder} is gone, and with it what you chose; start the run again to draw the round anew"
            )
        folder = waiting_folder(self._store.root, waiting.index)
        return Choices.read(folder, ids_of(waiting), best=self._best)

    def _ask(self) -> Choices:
        from .review.server import ReviewServer

        if self._server is None:
            self._server = ReviewServer(self._store.root)
            self._announce(self._server.address)
        while not (choices := self._read()).finished:
            self._progress("choose", choices.done, len(choices.groups))
            time.sleep(PAUSE)
        return choices
