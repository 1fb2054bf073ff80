"""Rounds and bare networks in turns, so that whatever else the machine does slows both alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..core.config import Config
from ..planning.machine import Machine
from .result import FLOOR, Lap, Result, Work
from .setup import count_work, peak_flops

Tell = Callable[[int, int], None]
"""(units done, units in all)"""
Round = Callable[[], tuple[dict[str, float], dict[str, float]]]
"""A whole round: seconds of its stages, and of the networks within."""
Clock = Callable[[], float]


class Units:
    """How far a bench is: one unit for each picture sampled and each optimiser step, and as many for the bare calls.

    It is told of a round's stages as the policy and the tuner tell them.
    """

    def __init__(self, *, images: int, steps: int, repeats: int, tell: Tell) -> None:
        self._images, self._half, self._tell = images, images + steps, tell
        self._total, self._base = 2 * (repeats + 1) * self._half, 0

    def stage(self, stage: str, done: int, total: int) -> None:
        before = 0 if stage == "sample" else self._images
        self._tell(self._base + min(before + done, self._half), self._total)

    def half_done(self) -> None:
        """A round, or the bare calls of one."""
        self._base += self._half
        self._tell(self._base, self._total)


def take_laps(
    round_: Round,
    bare: dict[str, Callable[[], None]],
    *,
    repeats: int,
    clock: Clock,
    units: Units,
    warm: Callable[[], None] = lambda: None,
) -> list[Lap]:
    """`repeats` laps after one that does not count, for it sets up kernels and memory.

    Which comes first, the round or the bare networks, changes from lap to lap. warm: called after the first round,
    before anything of ours and anything bare could be mixed up.
    """
    _time_round(round_, clock, units)
    warm()
    _time_bare(bare, clock, units)
    laps = []
    for repeat in range(repeats):
        if repeat % 2:
            alone = _time_bare(bare, clock, units)
            wall, stages, inside = _time_round(round_, clock, units)
        else:
            wall, stages, inside = _time_round(round_, clock, units)
            alone = _time_bare(bare, clock, units)
        laps.append(Lap(wall=wall, stages=stages, inside=inside, bare=alone))
    return laps


def _time_round(round_: Round, clock: Clock, units: Units) -> tuple[float, dict[str, float], dict[str, float]]:
    began = clock()
    stages, inside = round_()
    wall = clock() - began
    units.half_done()
    return wall, stages, inside


def _time_bare(bare: dict[str, Callable[[], None]], clock: Clock, units: Units) -> dict[str, float]:
    seconds = {}
    for name in FLOOR:
        began = clock()
        bare[name]()
        seconds[name] = clock() - began
    units.half_done()
    return seconds


def bench(config: Config, *, repeats: int, random_weights: bool, machine: Machine, tell: Tell) -> Result:
    """Load the model, and measure a round of `config` and its floor.

    Raises ValueError for a model or a device that cannot be used.
    """
    from .. import assemble
    from ..process import pick_device
    from .models import make_subject

    assemble.prepare(config.threads)
    kind = pick_device(config.device).partition(":")[0]
    work = count_work(config, device=kind)
    units = Units(images=work.images, steps=config.tuning.steps, repeats=repeats, tell=tell)
    policy, towers = make_subject(config, random_weights=random_weights, tell=units.stage)
    return measure(policy, towers, config, work, units=units, repeats=repeats, machine=machine)


def measure(
    policy: Any,
    towers: Sequence[Any],
    config: Config,
    work: Work,
    *,
    units: Units,
    repeats: int,
    machine: Machine,
) -> Result:
    """The laps of this policy, whose adapter is fresh."""
    from .bare import Bare
    from .watch import forget_peak, peak_memory, wait_and_look
    from .whole import run_round

    device = policy.components.device
    bare = Bare(policy, towers, config, work)
    peaks: list[int] = []
    forget_peak(device)
    laps = take_laps(
        lambda: run_round(policy, towers, config, tell=units.stage),
        bare.parts,
        repeats=repeats,
        clock=lambda: wait_and_look(device),
        units=units,
        warm=lambda: peaks.append(peak_memory(device)),
    )
    width = policy.components.dtype.itemsize
    peak = peak_flops(device.type, machine.card, width=width)
    return Result(work=work, laps=laps, peak_memory=peaks[0], peak_flops=peak)
