"""Several processes at one run, one a device: the first runs it, the others help with its sampling, scoring and tuning.

    torchrun --nproc-per-node 2 --no-python raft-diffusion train JOB

Only the first process knows of folders, rounds, rankings and the guard, so nothing is decided twice and nobody else
writes. A helper is sent a part of the work, with the adapter as it stands, and answers. Batches are made up as on one
process, and a tuning step covers the same pictures, so that results are the same up to rounding.

The words go through gloo, in the memory of the processes' machines: a LoRA is small, and no device waits for another
while the first one thinks. Samples and weights travel as pickles, between processes that were started together.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

from .core.loop import Reward
from .core.records import Draw, Sample
from .core.unfinished import Shelf

PATIENCE = timedelta(days=30)
"""How long a helper waits for its next part: a person may be ranking. A process that ends is noticed at once."""
SAMPLE, SCORE, TUNE, END = "sample", "score", "tune", "end"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stance:
    """How the first process's policy stands: the adapter's weights by name, whether it is on, how often it counts."""

    weights: Mapping[str, Any]
    on: bool
    strength: float


class Helped(Protocol):
    """A policy that can work in several processes."""

    def stance(self) -> Stance: ...
    def take(self, stance: Stance) -> None: ...
    def answer(self, batch: Sequence[Draw], settings: Any) -> list[Sample]: ...


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong in a helper. text: a sentence where the user can mend it, else the traceback."""

    text: str
    mendable: bool


class Hands:
    """What any process of a run can do. rewards: as the run's settings list them."""

    def __init__(self, policy: Helped, rewards: Sequence[Reward]) -> None:
        self._policy, self._rewards = policy, rewards
        self._tuning: tuple[object, Any] | None = None

    def do(self, task: str, how: Any, part: Any) -> Any:
        """One part of a task: (settings, draws) -> samples, (place of a reward, samples) -> scores, or (tuner, what it
        learns, a whole step's size, the loss's scale), a part of the step -> figures and gradients."""
        if task == SAMPLE:
            return self._policy.answer(part, how)
        if task == SCORE:
            return self._rewards[how](part)
        tuner, learned, whole, scale = how
        if self._tuning is None or self._tuning[0] != (tuner, learned):
            self._tuning = (tuner, learned), tuner.learner(self._policy, learned)
        learner = self._tuning[1]
        figures = learner.gradients(part, whole, scale)
        return figures, [None if p.grad is None else p.grad.cpu() for p in learner.parameters]

    def help(self, task: str, how: Any, part: Any, stance: Stance) -> Any:
        """`do`, as the first process's policy stands."""
        self._policy.take(stance)
        return self.do(task, how, part)


class Crew:
    """The processes of a run, as the first one sees them. size: how many there are, itself included."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._in_step = True
        self._policy: Any = None
        self._hands: Hands | None = None

    def meet(self, policy: Helped, rewards: Sequence[Reward]) -> None:
        """What the first process itself works with."""
        self._policy, self._hands = policy, Hands(policy, rewards)

    def share(self, task: str, parts: Sequence[Any], how: Any) -> list[Any]:
        """The answers to these parts, `size` at most, each by a process of its own and the first by this one.

        Raises ValueError where a helper could not do its part, or has ended.
        """
        assert self._hands is not None
        self._in_step = False
        with _lost_helpers():
            _tell((task, how, self._policy.stance()))
            _hand_out([*parts[1:], *[None] * (self.size - len(parts))])
        own: Any = None
        problem: BaseException | None = None
        try:
            own = self._hands.do(task, how, parts[0])
        except BaseException as error:  # helpers are heard first, for they answer whatever happens here
            problem = error
        with _lost_helpers():
            answers = _collect()
        self._in_step = True
        if problem is not None:
            raise problem
        for rank, answer in enumerate(answers, start=1):
            if isinstance(answer, Failure):
                kind = ValueError if answer.mendable else RuntimeError
                raise kind(answer.text if answer.mendable else f"process {rank} of this run failed:\n{answer.text}")
        return [own, *answers[: len(parts) - 1]]

    def rewards(self, rewards: Sequence[Reward]) -> list[Reward]:
        """The same rewards; those that may be asked in parts are asked in all processes. A function of the user's is
        not: it may look at all samples at once, and be dear."""

        def parted(place: int, samples: Sequence[Sample]) -> Mapping[str, Sequence[float]]:
            answers = self.share(SCORE, in_parts(samples, self.size), place)
            return {name: [value for answer in answers for value in answer[name]] for name in answers[0]}

        def asked(place: int) -> Reward:
            return lambda samples: parted(place, samples)

        return [asked(place) if getattr(reward, "in_parts", False) else reward for place, reward in enumerate(rewards)]

    def gradients(self, parts: Sequence[Any], how: Any, parameters: Sequence[Any]) -> list[list[float]]:
        """The figures of each part of a tuning step; the parameters' gradients are then the sums over the parts."""
        figures, gradients = zip(*self.share(TUNE, parts, how), strict=True)
        for parameter, parted in zip(parameters, zip(*gradients, strict=True), strict=True):
            known = [gradient.to(parameter.device) for gradient in parted if gradient is not None]
            parameter.grad = sum(known[1:], start=known[0]) if known else None
        return list(figures)

    def end(self) -> None:
        """Let the helpers go home. Those that wait for something else notice that this process ends."""
        if self._in_step:
            with suppress(RuntimeError):  # they are gone already
                _tell((END, None, None))


def in_parts(items: Sequence[Any], count: int) -> list[Sequence[Any]]:
    """`count` consecutive parts of nearly equal size, fewer where there are fewer items."""
    size = max(1, -(-len(items) // count))
    return [items[start : start + size] for start in range(0, len(items), size)]


def made(
    batches: Sequence[Sequence[Draw]],
    settings: Any,
    policy: Any,
    *,
    shelf: Shelf | None,
    made_of: object,
    crew: Crew | None,
) -> Iterator[list[Sample]]:
    """The samples of these batches, in order, a few batches at a time: as many as there are processes.

    Batches that the shelf holds are taken from there, the others are put on it. made_of: see `Shelf.find`.
    """
    size = crew.size if crew else 1
    for start in range(0, len(batches), size):
        wave = batches[start : start + size]
        found = {place: shelf.find(batch, made_of) if shelf else None for place, batch in enumerate(wave)}
        missing = [place for place, samples in found.items() if samples is None]
        asked = [wave[place] for place in missing]
        if crew and asked:
            answers = crew.share(SAMPLE, asked, settings)
        else:
            answers = [policy.answer(batch, settings) for batch in asked]
        for place, samples in zip(missing, answers, strict=True):
            found[place] = samples
            if shelf:
                shelf.keep(wave[place], made_of, samples)
        yield [sample for place in range(len(wave)) for sample in found[place] or ()]


# --- the processes ----------------------------------------------------------------------------------------------------


def is_helper() -> bool:
    """Whether this process was started beside a first one."""
    return _world() > 1 and int(os.environ.get("RANK", "0")) > 0


@contextmanager
def assembled() -> Iterator[Crew | None]:
    """The crew of this run while it works; None where this process is alone."""
    size = _world()
    if size < 2:
        yield None
        return
    with _joined():
        crew = Crew(size)
        try:
            yield crew
        finally:
            crew.end()


def help_out(load: Callable[[], Hands]) -> None:
    """Do what the first process asks for until it ends. load: what a helper works with; where it fails, the first
    process is told. Signals that stop the run are the first process's business."""
    import signal

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    with _joined(), suppress(RuntimeError):  # the first process has ended
        hands: Any = None
        problem: Failure | None = None
        try:
            hands = load()
        except Exception as error:
            problem = _failure(error)
        while True:
            task, how, stance = _hear()
            if task == END:
                return
            part = _receive()
            _answer(problem or (None if part is None else _done(hands, task, how, part, stance)))


def _done(hands: Hands, task: str, how: Any, part: Any, stance: Stance) -> Any:
    try:
        return hands.help(task, how, part, stance)
    except Exception as error:
        return _failure(error)


def _failure(error: Exception) -> Failure:
    mendable = isinstance(error, ValueError | OSError)
    return Failure(str(error) if mendable else "".join(traceback.format_exception(error)), mendable)


@contextmanager
def _lost_helpers() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo's words for it name no process
        raise ValueError(
            "another process of this run has ended; what was finished is kept, and the same command goes on, on any "
            "number of processes"
        ) from error


@contextmanager
def _joined() -> Iterator[None]:
    """Within this context the processes can talk to each other, each with a GPU of its own where there are any.

    No thread of gloo's may outlive it: one that lets go of a tensor while Python ends aborts the process. They live as
    long as the group, which the functions of torch.distributed.nn take as a default when they are first imported.
    """
    import torch
    import torch.distributed.nn.functional  # before there is a group that it could keep
    from torch import distributed

    distributed.init_process_group("gloo", timeout=PATIENCE)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    before = {name: os.environ.pop(name) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE") if name in os.environ}
    try:
        yield  # without those, what is for one process stays so: accelerate would share out the device once more
    finally:
        os.environ.update(before)
        with suppress(RuntimeError):
            distributed.destroy_process_group()


def _world() -> int:
    """As torchrun and accelerate's launcher say it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "MASTER_ADDR" in os.environ else 1


def _tell(words: object) -> None:
    from torch import distributed

    distributed.broadcast_object_list([words])


def _hear() -> Any:
    from torch import distributed

    heard: list[Any] = [None]
    distributed.broadcast_object_list(heard)
    return heard[0]


def _hand_out(parts: Sequence[Any]) -> None:
    """Each helper its part."""
    from torch import distributed

    distributed.scatter_object_list([None], [None, *parts])


def _receive() -> Any:
    from torch import distributed

    received: list[Any] = [None]
    distributed.scatter_object_list(received)
    return received[0]


def _collect() -> list[Any]:
    """What the helpers answer."""
    from torch import distributed

    answers: list[Any] = [None] * distributed.get_world_size()
    distributed.gather_object(None, answers)
    return answers[1:]


def _answer(words: object) -> None:
    from torch import distributed

    distributed.gather_object(words)
