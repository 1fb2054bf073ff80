"""Pictures or texts: which module makes the objects of a run. Either passes its own to the same loop."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .core.config import Config
from .core.records import Progress
from .core.settings import read_values
from .llm.config import KIND, TextConfig

if TYPE_CHECKING:
    from .core.guard import Verdict
    from .core.loop import Policy, Reward, Selector, Tuner
    from .core.records import Draw, Group, Sample, Selection
    from .core.store import Codec, RunFolder
    from .guarding import Guard, Watch

AnyConfig = Config | TextConfig


class Modality(Protocol):
    """What a run needs; `assemble` has it for pictures and `llm.assemble` for texts.

    NOUN: what a candidate is, in the plural. ADAPTER: the file of its LoRA. MAY_CHANGE: what a resumed run may change.
    """

    @property
    def NOUN(self) -> str: ...
    @property
    def ADAPTER(self) -> str: ...
    @property
    def MAY_CHANGE(self) -> tuple[str, ...]: ...

    # before anything is loaded
    def check(self, config: Any) -> None: ...
    def outlook(self, config: Any) -> list[str]: ...
    def held_out_name(self, config: Any) -> str | None: ...
    def watch_of(self, config: Any) -> Watch | None: ...
    def verdict_of(self, config: Any, root: Path, done: int) -> Verdict | None: ...

    # a run's objects
    def prepare(self, threads: int | None) -> int: ...
    def make_policy(self, config: Any, progress: Progress | None = None) -> Any: ...
    def make_sampler(
        self,
        config: Any,
        policy: Any,
        progress: Progress | None = None,
        *,
        rewards: Sequence[Reward] = (),
        root: Path | None = None,
    ) -> Policy: ...
    def run_rewards(self, config: Any, policy: Any) -> list[Reward]: ...
    def make_select(self, config: Any) -> Selector: ...
    def figures(self, config: Any, groups: Sequence[Group], selection: Selection) -> Mapping[str, float]: ...
    def make_tuner(self, config: Any, progress: Progress | None = None, *, index: int = 1) -> Tuner: ...
    def make_codec(self) -> Codec: ...
    def make_guard(self, config: Any, policy: Any, rewards: Sequence[Reward], store: RunFolder) -> Guard | None: ...
    def begin(self, config: Any, policy: Any, folder: Path, progress: Progress | None = None) -> None: ...
    def sample_tracked(self, config: Any, policy: Any) -> Sequence[Sample]: ...
    def sample(
        self, config: Any, policy: Any, prompt: str, seeds: Sequence[int], *, base: bool, changes: Mapping[str, Any]
    ) -> list[Sample]: ...
    def round_draws(self, config: Any, policy: Any, index: int) -> Sequence[Draw]: ...

    # its result
    def run_evaluation(self, config: Any, policy: Any, rewards: Sequence[Reward], folder: Path) -> dict[str, Any]: ...
    def is_evaluated(self, config: Any, result: Mapping[str, Any]) -> bool: ...
    def show_evaluation(self, console: Any, result: dict[str, Any]) -> None: ...


def modality_of(config: AnyConfig) -> Modality:
    """The module for these settings. It imports no torch before an object is made."""
    if isinstance(config, TextConfig):
        from .llm import assemble

        return assemble
    from . import assemble

    return assemble


def identity_of(config: AnyConfig) -> str:
    """A hash of the settings without those that may change in a run."""
    free = tuple(f"{key}." for key in modality_of(config).MAY_CHANGE)
    fixed = {key: value for key, value in config.flat().items() if not f"{key}.".startswith(free)}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()


def is_text(path: Path) -> bool:
    """Whether a TOML file holds the settings of a text run. Raises ValueError for one that cannot be read."""
    return read_values(path).get("kind") == KIND
