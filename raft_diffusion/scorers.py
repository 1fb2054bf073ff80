"""From names to the objects that score pictures: CLIP towers, preference models, functions of the user's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .checks import HELD_OUT_PREFIX, TOWERS, check_heads, check_tower
from .core.config import Config
from .core.loop import Reward
from .process import pick_device


def make_tower(name: str, *, device: str, prefix: str = "", heads: Mapping[str, Path] | None = None) -> Any:
    """A carried CLIP tower by name, or any that `ClipTower.load` knows, with these aesthetic heads beside its own."""
    from .diffusion import choose_dtype
    from .rewards.clip import ClipTower

    device = pick_device(device)
    dtype = choose_dtype("auto", device)
    return ClipTower.load(_tower_source(name), device=device, dtype=dtype, prefix=prefix, aesthetic=heads or {})


def _tower_source(name: str) -> str:
    from . import pocket

    return str(pocket.WEIGHTS / TOWERS[name]) if name in TOWERS else name


def make_held_out(config: Config, name: str) -> Any:
    """A tower or a preference model that never ranks."""
    from .rewards import PREFERENCES

    if name in PREFERENCES:
        return _preference(name, config.device, config.rewards.sources, prefix=HELD_OUT_PREFIX)
    return make_tower(name, device=config.device, prefix=HELD_OUT_PREFIX)


def make_scorers(
    names: Sequence[str],
    *,
    scorer: str,
    device: str,
    sources: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> list[Reward]:
    """The rewards of these names; a name with a colon is a function of the user's, "module:function".

    scorer: the CLIP tower of `text_image` and the aesthetic scores. One object may give several scores: a tower scores
    everything it can in its one pass. sources: reward -> its weights, instead of the published ones.
    timeout: seconds that a call of the user's own function may take.
    Raises ValueError for an unknown name, a tower without the head asked for, and weights that cannot be had.
    """
    from .rewards import PREFERENCES, TOWER_REWARDS, check_names
    from .rewards.custom import load_custom

    check_names(names)
    sources = sources or {}
    rewards: list[Reward] = []
    if wanted := [name for name in names if name in TOWER_REWARDS]:
        from .rewards.heads import heads_for

        check_tower(scorer)
        check_heads(scorer, wanted, sources)
        tower = make_tower(scorer, device=device, heads=heads_for(_tower_source(scorer), wanted, sources))
        if missing := [name for name in wanted if name not in tower.names]:
            raise ValueError(f"the CLIP tower {scorer} gives {', '.join(tower.names)} and no {', '.join(missing)}")
        rewards.append(tower)
    rewards += [_preference(name, device, sources) for name in names if name in PREFERENCES]
    if {"compressibility", "incompressibility"} & set(names):
        from .rewards.compress import compressibility

        rewards.append(compressibility)
    return rewards + [load_custom(name, timeout=timeout) for name in names if ":" in name]


def _preference(name: str, device: str, sources: Mapping[str, str], *, prefix: str = "") -> Reward:
    from .diffusion import choose_dtype
    from .rewards.preference import load_preference

    source, device = sources.get(name), pick_device(device)
    return load_preference(name, source=source, device=device, dtype=choose_dtype("auto", device), prefix=prefix)
