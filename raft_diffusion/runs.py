"""What a run goes through, from its settings to its report: load, rounds, evaluation, page."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checks import ranks_by_person
from .core.choices import HUMAN, select_chosen
from .core.guard import Look, Verdict, curve
from .core.lock import RunLock
from .core.looks import forget_ending, read_look
from .core.loop import Reward, raft, score
from .core.overrule import overruled, set_aside
from .core.records import Group, Round, Sample, Scored, Selection, Winner, samples_of
from .core.stop import is_flat
from .core.store import RunFolder, make_folder, read_metrics, round_folder
from .core.timing import write_seconds
from .core.unfinished import Unfinished
from .crew import Crew
from .guarding import looks_of
from .human import Person
from .jobs import default_folder
from .modality import AnyConfig, Progress, identity_of, modality_of
from .skips import Diverged

if TYPE_CHECKING:
    from .core.stats import Interval


ROUND = "round"


class Run:
    """A run with its models loaded: `for round_ in run.rounds(): ...`, then `run.evaluate()`.

    Whatever can be refused is refused before anything is written into `folder`; an interrupted run goes on.
    folder: where everything is kept; without one it is runs/<name>-<hash>, the same for the same settings. It is this
    process's for as long as the object lives; another process is refused.
    progress: called with (stage, done, total) after each batch, reward and tuning step; stages are "sample", "score",
    "choose", "tune", "guard", "track" and "evaluate". It may raise KeyboardInterrupt to stop: nothing is lost then.
    announce: told the address at which a person chooses, where one ranks; the run waits meanwhile.
    crew: the processes that share the work, where there are several.
    Raises ValueError for settings, a folder, a model or a reward that cannot be used.
    """

    def __init__(
        self,
        config: AnyConfig,
        folder: Path | str | None = None,
        *,
        progress: Progress | None = None,
        announce: Callable[[str], object] = print,
        crew: Crew | None = None,
    ) -> None:
        from .process import environment
        from .tracking import open_trackers

        self.config, self._progress = config, progress
        self.folder = default_folder(config) if folder is None else Path(folder)
        self._stage: str | None = None  # what sampling is for, where it is not for candidates
        self._make = make = modality_of(config)
        make.check(config)
        RunFolder.check(self.folder, config=config, may_change=make.MAY_CHANGE)
        if (self.folder / "config.toml").exists():
            self._lock = RunLock.take(self.folder)  # before the minutes that loading may take
        threads = make.prepare(config.threads)
        self._codec = codec = make.make_codec()
        self._unfinished = Unfinished(self.folder, packer=codec, identity=identity_of(config))
        self._policy = make.make_policy(config, self._tell)
        self._policy.shelf = self._unfinished.shelf(ROUND)
        self._rewards = make.run_rewards(config, self._policy)
        self._crew = self._policy.crew = crew
        if crew:
            crew.meet(self._policy, self._rewards)
        sampler = make.make_sampler(config, self._policy, self._tell, rewards=self._rewards, root=self.folder)
        self._figures: Mapping[str, float] = {}  # of the round in hand, beside the tuner's
        make_folder(self.folder)
        self._lock = RunLock.take(self.folder)
        if (index := overruled(self.folder, best=config.selection.best)) is not None:
            set_aside(self.folder, index)
        self._store = RunFolder.open(
            self.folder,
            codec=codec,
            config=config,
            environment=environment(config.device, threads),
            may_change=make.MAY_CHANGE,
            replay=config.selection.replay,
        )
        self._guard = make.make_guard(config, self._policy, self._rewards, self._store)
        self._trackers = open_trackers(config.trackers, self.folder, name=config.name, device=config.device)
        self._person = Person(
            sampler,
            self._store,
            always=ranks_by_person(config.rewards.weights),
            best=config.selection.best,
            announce=announce,
            progress=self._tell,
        )

    def rounds(self) -> Iterator[Round]:
        """The rounds that are left, each once it is on disk; at the end the LoRA lies in `folder`/lora.

        It is the last round's, unless the guard (see `core.guard`) says that an earlier one was better.
        """
        config = self.config
        outdated = self.folder / "evaluation" / "evaluation.json"
        outdated.unlink(missing_ok=True)  # were this start killed too, it would be taken for the new rounds' own
        self._make.begin(config, self._policy, self.folder, self._tell)
        if not self._store.completed():
            self._track(0)
        self._look(self._guard.catch_up if self._guard else None)
        rounds = raft(
            self._person,
            self._telling([*self._scorers, self._person.score]),
            self._select,
            self._tune,
            self._store,
            partial(self._make.round_draws, config, self._policy),
            rounds=self._store.completed() if self._finished else config.rounds,
            seed=config.seed,
            replay=config.selection.replay,
            replay_decay=config.selection.replay_decay,
        )
        with closing(self._person):
            began = time.monotonic()
            for round_ in rounds:
                self._unfinished.shelf(ROUND).clear()
                write_seconds(self.folder, round_.index, time.monotonic() - began)
                self._look(partial(self._guard.look, round_.index) if self._guard else None)
                self._track(round_.index)
                yield round_
                if self._finished:
                    break
                began = time.monotonic()
        self._unfinished.shelf(ROUND).clear()
        verdict = self.verdict
        if self._guard and verdict:
            self._guard.finish(verdict)
        else:
            forget_ending(self.folder)
        self._policy.save(self.folder / "lora")

    @property
    def verdict(self) -> Verdict | None:
        """What the guard says of the last complete round; None without a guard or a round."""
        return self._make.verdict_of(self.config, self.folder, self._store.completed())

    @property
    def start(self) -> Look | None:
        """What the guard saw before the first round."""
        return read_look(self.folder, 0) if self._guard else None

    def _look(self, look: Callable[[], object] | None) -> None:
        if look is not None:
            with self._work("guard"):
                look()

    def _track(self, index: int) -> None:
        """Send the round's pictures and numbers to the trackers; before the first round, pictures alone."""
        if self._trackers is None:
            return
        with self._work("track"):
            samples = self._make.sample_tracked(self.config, self._policy)
        metrics = read_metrics(self.folder)[-1] if index else None
        self._trackers.log(index, samples, metrics)

    @property
    def _scorers(self) -> Sequence[Reward]:
        return self._crew.rewards(self._rewards) if self._crew else self._rewards

    @contextmanager
    def _work(self, stage: str) -> Iterator[None]:
        """Sampling for something else than candidates, with a shelf of its own."""
        shelf = self._unfinished.shelf(stage)
        self._stage, self._policy.shelf = stage, shelf
        try:
            yield
        finally:
            self._stage, self._policy.shelf = None, self._unfinished.shelf(ROUND)
        shelf.clear()

    def _telling(self, rewards: Sequence[Reward]) -> list[Reward]:
        """The same rewards, each of which says when it is done."""

        def told(place: int, reward: Reward, samples: Sequence[Sample]) -> Mapping[str, Sequence[float]]:
            self._tell("score", place, len(rewards))
            scores = reward(samples)
            self._tell("score", place + 1, len(rewards))
            return scores

        return [partial(told, place, reward) for place, reward in enumerate(rewards)]

    def _tell(self, stage: str, done: int, total: int) -> None:
        if self._progress:
            self._progress(self._stage or stage, done, total)

    def _select(self, groups: Sequence[Group]) -> Selection:
        """By the person where one has scored the round, else as the settings say. What the round writes is begun, to be
        made while the tuner works."""
        self._figures = {}
        self._codec.begin(samples_of(groups))
        if HUMAN in groups[0].candidates[0].scores:
            return select_chosen(self.config.selection.best)(groups)
        selection = self._make.make_select(self.config)(groups)
        self._figures = self._make.figures(self.config, groups, selection)
        return selection

    def _tune(self, policy: Any, winners: Sequence[Winner], *, seed: int) -> Mapping[str, float]:
        """The policy that learns, whatever the candidates came from. The loop tunes right before it stores the round,
        so the store says which one it is."""
        index = self._store.completed() + 1
        try:
            tuner = self._make.make_tuner(self.config, self._tell, index=index)
            return {**tuner(self._policy, winners, seed=seed), **self._figures}
        except Diverged as error:
            raise ValueError(self._stop_before(index, error)) from error

    def _stop_before(self, index: int, error: Diverged) -> str:
        """Leave the LoRA of the last good round as the run's; the sentence that says so."""
        if index == 1:
            return f"round 1 cannot be learned, and none is before it: {error}"
        self._policy.load(round_folder(self.folder, index - 1) / "adapter")
        self._policy.save(self.folder / "lora")
        return f"the run stops at round {index - 1}, whose LoRA is its result, for in round {index} {error}"

    @property
    def _finished(self) -> bool:
        return is_finished(self.config, self._store.completed(), self.folder)

    def sample(self, prompt: str, count: int = 4, *, seed: int = 0, base: bool = False, **changes: Any) -> list[Sample]:
        """`count` answers to `prompt` by the model as it stands: `sample.data.image` is the picture, of a text run
        `sample.data.text` the text. After `rounds` the model is the one that lies in `folder`/lora.

        seed: of the first one; the next ones add 1 each. base: without the LoRA.
        changes: what to sample otherwise than the user does, by the names of `Settings`, such as guidance_scale=3, or
        of `TextSettings`, such as temperature=0.7.
        """
        if count < 1:
            raise ValueError(f"{count} {self._make.NOUN} cannot be sampled; give a count of 1 or more")
        seeds = range(seed, seed + count)
        self._policy.shelf = None  # an answer to a person belongs to no round
        try:
            return self._make.sample(self.config, self._policy, prompt, seeds, base=base, changes=changes)
        finally:
            self._policy.shelf = self._unfinished.shelf(ROUND)

    def score(self, samples: Sequence[Sample]) -> list[Scored]:
        """These samples with the scores of all of the run's rewards, by name, such as `scored.scores["text_image"]`."""
        return score(samples, self._rewards)

    def curve(self) -> list[tuple[int, Interval]]:
        """(round, held-out score and the 95 % interval of its change since round 0), as the guard has seen it so far.
        Round 0 is before the first round. Empty where no guard watches."""
        looks = looks_of(self._make.watch_of(self.config), self.folder, self._store.completed())
        return curve(looks) if looks else []

    def evaluate(self) -> dict[str, Any]:
        """Base and tuned on the same seeds, by judges that took no part in the ranking."""
        with self._work("evaluate"):
            result = self._make.run_evaluation(self.config, self._policy, self._rewards, self.folder / "evaluation")
        self._unfinished.clear()
        return result


def is_finished(config: AnyConfig, done: int, root: Path) -> bool:
    """Whether the run in `root`, of which `done` rounds are complete, needs no more: all are there, the reward is flat
    (see `core.stop`), or the guard stops it (see `core.guard`); and no person has overruled one since."""
    if overruled(root, best=config.selection.best) is not None:
        return False
    patience = config.stop_when_flat
    flat = patience is not None and done > patience and is_flat(read_metrics(root), config.rewards.weights, patience)
    if flat or done >= config.rounds:
        return True
    verdict = modality_of(config).verdict_of(config, root, done)
    return verdict is not None and verdict.fired
