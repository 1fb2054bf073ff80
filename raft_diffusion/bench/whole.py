"""A whole round as a run has it, from its draws to its folder on disk, under a stopwatch."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from .. import assemble
from ..core.config import Config
from ..core.loop import raft
from ..core.records import Group, Selection, samples_of
from ..core.store import RunFolder
from .watch import Stopwatch, network_watch

Tell = Callable[[str, int, int], None]
"""(stage, done, total)"""


@dataclass(frozen=True, slots=True)
class _Policy:
    """What the loop asks of a policy."""

    generate: Any
    save: Any
    load: Any


@dataclass(frozen=True, slots=True)
class _Store:
    """What the loop asks of a run folder; nothing is there before."""

    save: Any

    def resume(self, policy: Any) -> list[Any]:
        return []


def run_round(
    policy: Any, rewards: Sequence[Any], config: Config, *, tell: Tell | None = None
) -> tuple[dict[str, float], dict[str, float]]:
    """One round of `config` from the adapter's initial weights, in a folder that is taken away again.

    rewards: CLIP towers alone.

    Returns seconds of its stages, and of the networks within it: "unet" while it samples, "vae", "tower", "optimizer".
    """
    policy.trained.reset()
    stages, inside = Stopwatch(), network_watch(policy.components.device)
    now: list[str] = []  # the stage at work

    def timed(stage: str, work: Callable[..., Any]) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            now.append(stage)
            with stages.running(stage):
                result = work(*args, **options)
            now.pop()
            return result

        return call

    tuner, sampler = assemble.make_tuner(config, tell), assemble.make_sampler(config, policy)
    select, codec = assemble.make_select(config), assemble.make_codec()

    def choose(groups: Sequence[Group]) -> Selection:
        codec.begin(samples_of(groups))  # as a run does
        return select(groups)

    with tempfile.TemporaryDirectory() as name, _watched(policy, rewards, inside, now):
        folder = RunFolder.open(Path(name) / "run", codec=codec, config=config, environment={})
        loop = raft(
            _Policy(timed("sample", sampler.generate), policy.save, policy.load),
            [timed("score", reward) for reward in rewards],
            timed("select", choose),
            timed("tune", lambda _, winners, seed: tuner(policy, winners, seed=seed)),
            _Store(timed("store", folder.save)),
            lambda index: assemble.round_draws(config, policy, index),
            rounds=1,
            seed=config.seed,
        )
        next(loop)
    return stages.take(), dict.fromkeys(("unet", "vae", "tower", "optimizer"), 0.0) | inside.take()


@contextmanager
def _watched(policy: Any, rewards: Sequence[Any], watch: Stopwatch, now: list[str]) -> Iterator[None]:
    """Hands of `watch` on the networks, by the hooks that torch has for it."""
    parts = policy.components
    decoder = parts.tiny_decoder if policy.settings.tiny_decoder else parts.vae
    watched = [(policy.unet, "unet", "sample"), (decoder.decoder, "vae", "sample")]
    watched += [(reward.model.visual, "tower", "score") for reward in rewards]
    hooks: list[Any] = []
    for module, name, stage in watched:
        begin, end = _hands(watch, name, lambda stage=stage: now[-1:] == [stage])
        hooks += [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]
    begin, end = _hands(watch, "optimizer", lambda: True)
    hooks += [register_optimizer_step_pre_hook(begin), register_optimizer_step_post_hook(end)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _hands(watch: Stopwatch, name: str, counts: Callable[[], bool]) -> tuple[Callable[..., None], Callable[..., None]]:
    """(what starts, what stops), whatever they are called with."""
    return (lambda *_: watch.start(name) if counts() else None, lambda *_: watch.stop(name) if counts() else None)
