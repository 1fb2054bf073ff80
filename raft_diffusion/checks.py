"""What is refused before anything is loaded: settings that lead nowhere. Nothing here imports torch."""

from __future__ import annotations

import difflib
import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from .core.choices import HUMAN
from .core.config import Config, Rewards

POCKET = "pocket"
TOWERS = {"pocket": "clip", "pocket-held-out": "held_out"}
DEVICES = ("auto", "cpu", "cuda", "mps")
HELD_OUT_PREFIX = "held_out."


def check(config: Config) -> None:
    """Refuse, before anything is loaded, the names that lead nowhere. Raises ValueError with every problem."""
    from .rewards import check_comparable, check_names
    from .sources import check_sources
    from .webui import check_eta, find_scheduler

    rewards, selection = config.rewards, config.selection
    across = (selection.top_fraction is not None or selection.top_count is not None) and len(config.prompts.train) > 1
    ranking = published(rewards)
    checks: list[Callable[[], object]] = [
        lambda: check_device(config.device),
        lambda: (find_scheduler(config.sampling.scheduler), check_eta(config.sampling.eta, config.sampling.scheduler)),
        lambda: _check_person(config),
        lambda: _check_held_out(rewards.weights),
        lambda: check_names([*(n for n in ranking if not n.startswith(HELD_OUT_PREFIX)), *rewards.custom]),
        lambda: check_tower(rewards.scorer),
        lambda: _check_judge(rewards.held_out),
        lambda: _check_guard(config.guard.reward, rewards),
        lambda: check_comparable(rewards.weights, across=across),
        lambda: check_trackers(config.trackers),
        lambda: check_heads(rewards.scorer, list(rewards.weights), rewards.sources),
        lambda: check_model_here(config.model, revision=config.revision, variant=config.variant),
        lambda: check_sources(config),
        lambda: _check_prune(config),
    ]
    run_all(checks)


def run_all(checks: Sequence[Callable[[], object]]) -> None:
    """Run each; raises one ValueError with the sentences of all that did."""
    problems = []
    for run in checks:
        try:
            run()
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("; ".join(problems))


def published(rewards: Rewards) -> list[str]:
    """The ranking rewards that are none of the user's own functions, need no model that is being tuned, and no
    person."""
    from .rewards import LOG_RATIO

    own = {name.rpartition(":")[2] for name in rewards.custom}
    return [name for name in rewards.weights if name not in own | {LOG_RATIO, HUMAN}]


def ranks_by_person(weights: Mapping[str, float]) -> bool:
    return HUMAN in weights


def _check_person(config: Config) -> None:
    """A person's choice is no number that could be added to others, or compared with those of another day."""
    if not ranks_by_person(config.rewards.weights):
        return
    selection = config.selection
    odd = [f"rewards.weights.{name}" for name in config.rewards.weights if name != HUMAN]
    odd += ["rewards.custom"] if config.rewards.custom else []
    odd += [f"selection.{key}" for key in ("top_fraction", "top_count", "tau") if getattr(selection, key) is not None]
    odd += [f"selection.{key}" for key in ("min_spread", "diversity") if getattr(selection, key)]
    odd += ["sampling.prune"] if config.sampling.prune else []
    odd += ["stop_when_flat"] if config.stop_when_flat is not None else []
    if odd:
        raise ValueError(f"the reward {HUMAN} ranks alone, for you choose: take out {', '.join(odd)}")
    if config.rewards.weights[HUMAN] <= 0:
        raise ValueError(f"rewards.weights.{HUMAN} is {config.rewards.weights[HUMAN]:g}; it must be above 0")


def _check_prune(config: Config) -> None:
    """What ranks early must be able to rank an unfinished picture."""
    if (
        config.sampling.prune in ("preview", "predicted_x0")
        and ranks_by_log_ratio(config.rewards)
        and len(config.rewards.weights) == 1
    ):
        raise ValueError(
            f'sampling.prune = "{config.sampling.prune}" ranks by rewards of pictures, and log_ratio, which is none, '
            "ranks alone; add one, or leave prune out"
        )


def ranks_by_log_ratio(rewards: Rewards) -> bool:
    """Whether the tuned model itself has a say in the ranking (see `diffusion.log_ratio`)."""
    from .rewards import LOG_RATIO

    return LOG_RATIO in rewards.weights and LOG_RATIO not in {name.rpartition(":")[2] for name in rewards.custom}


def check_device(name: str) -> None:
    if name not in DEVICES and not (name.startswith("cuda:") and name[5:].isdigit()):
        raise ValueError(f"unknown device {name!r}; choose {', '.join(DEVICES)}, or cuda:1 for a second card")


def _check_held_out(weights: Mapping[str, float]) -> None:
    if any(name.startswith(HELD_OUT_PREFIX) for name in weights):
        raise ValueError("rewards.weights: the held-out reward never ranks; take it out of the weights")


def check_trackers(names: Sequence[str]) -> None:
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"trackers: {name} is not installed; install it, or take it out of the list")


def _check_judge(name: str | None) -> None:
    """The held-out reward: a tower or a preference model."""
    from .rewards import PREFERENCES

    if name is not None and name not in PREFERENCES:
        check_tower(name)


def _check_guard(name: str | None, rewards: Rewards) -> None:
    """The guard's own reward: as the held-out one, and nothing that ranks."""
    from .rewards import TOWER_REWARDS

    _check_judge(name)
    by_tower = name == rewards.scorer and set(TOWER_REWARDS) & set(rewards.weights)
    if name is not None and (by_tower or name in rewards.weights):
        raise ValueError(
            f"guard.reward is {name}, which ranks: a guard must take no part in the ranking, so give another tower, "
            "pickscore or hpsv2.1"
        )


def check_tower(name: str) -> None:
    if name in TOWERS or ":" in name or os.path.isdir(name):
        return
    near = difflib.get_close_matches(name, TOWERS, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ValueError(
        f"no CLIP tower {name!r}: {hint}Give {', '.join(TOWERS)}, a folder, or MODEL:PRETRAINED as open_clip names it"
    )


def check_model_here(name: str, *, revision: str | None = None, variant: str | None = None) -> None:
    """`sd15.source.check_model` for a model on this machine; of one on the hub the name alone, for nothing is
    downloaded before the work begins. Raises ValueError."""
    from .sd15.source import check_model, resolve_model

    if os.path.exists(Path(resolve_model(name))):
        check_model(name, revision=revision, variant=variant)


def check_heads(scorer: str, names: Sequence[str], sources: Mapping[str, str]) -> None:
    """Refuse an aesthetic score for which no head was published that reads this tower. Raises ValueError."""
    from .rewards import AESTHETICS
    from .rewards.heads import published

    for name in names:
        carried = name == "aesthetic" and scorer in TOWERS
        if name in AESTHETICS and name not in sources and not carried and not os.path.isdir(scorer):
            published(name, scorer)
