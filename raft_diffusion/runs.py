"""What a run goes through, from its settings to its report: load, rounds, evaluation, page."""

from __future__ import annotations

import difflib
import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .commands.options import file_of
from .core.config import Config
from .core.loop import raft
from .core.prompts import find_prompts
from .core.records import Round
from .core.stop import is_flat
from .core.store import RunFolder, read_metrics
from .core.toml import format_value
from .planning.forecast import forecast, this_machine

if TYPE_CHECKING:
    from rich.console import Console

Progress = Callable[[str, int, int], None]
PRESETS = Path(__file__).parent / "presets"


def load_config(
    source: str,
    *,
    seed: int | None = None,
    threads: int | None = None,
    device: str | None = None,
    model: str | None = None,
    revision: str | None = None,
    variant: str | None = None,
    prediction_type: str | None = None,
    prompts: str | None = None,
    held_out: float | None = None,
    changes: Sequence[str] = (),
) -> Config:
    """A preset by name or a TOML file, with the command line's changes.

    prompts: a carried list, a file or one prompt (see `find_prompts`); held_out: the share of them never trained on.
    Raises ValueError for everything that is not as it must be.
    """
    if held_out is not None and prompts is None:
        raise ValueError("--held-out splits the prompts of --prompts; give both")
    options = {"seed": seed, "threads": threads, "device": device, "model": model, "revision": revision}
    options |= {"variant": variant, "prediction_type": prediction_type}
    given = [f"{key}={format_value(value)}" for key, value in options.items() if value is not None]
    config = Config.load(_config_file(source)).with_overrides([*changes, *given])
    if prompts is None:
        return config
    found = find_prompts(prompts)
    config = config.with_prompts(found, held_out)
    dropped = len(found) - len(config.prompts.train)
    if held_out is None and dropped:
        warnings.warn(f"{dropped} of {len(found)} prompts are held out by the settings, not trained on", stacklevel=2)
    return config


def _config_file(source: str) -> Path:
    if Path(source).suffix == ".toml":
        return Path(source)
    presets = sorted(preset.stem for preset in PRESETS.glob("*.toml"))
    if source not in presets:
        near = difflib.get_close_matches(source, presets, n=2, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"use one of {', '.join(presets)}."
        raise ValueError(f"unknown preset {source!r}: {hint} A file NAME.toml will do, too")
    return PRESETS / f"{source}.toml"


def default_folder(config: Config) -> Path:
    """runs/<name>-<hash>: the same settings find the same run; what may change in a run does not count."""
    from .assemble import MAY_CHANGE

    free = tuple(f"{key}." for key in MAY_CHANGE)
    identity = {key: value for key, value in config.flat().items() if not f"{key}.".startswith(free)}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    return Path("runs") / f"{config.name}-{digest}"


class Run:
    """A run with its models loaded: `for round_ in run.rounds(): ...`, then `run.evaluate()`.

    Whatever can be refused is refused before anything is written into `folder`; an interrupted run goes on.
    progress: called with (stage, done, total); stages are "sample", "tune" and "evaluate".
    Raises ValueError for settings, a folder, a model or a reward that cannot be used.
    """

    def __init__(self, config: Config, folder: Path | str, *, progress: Progress | None = None) -> None:
        from . import assemble, checks

        self.config, self.folder, self._progress = config, Path(folder), progress
        checks.check(config)
        RunFolder.check(self.folder, config=config, may_change=assemble.MAY_CHANGE)
        threads = assemble.prepare(config.threads)
        self._rewards = assemble.make_rewards(config)
        self._policy = assemble.make_policy(config, progress)
        from .diffusion import PictureCodec

        self._store = RunFolder.open(
            self.folder,
            codec=PictureCodec(),
            config=config,
            environment=assemble.environment(config, threads),
            may_change=assemble.MAY_CHANGE,
        )
        self._trackers = assemble.make_trackers(config, self.folder)

    def rounds(self) -> Iterator[Round]:
        """The rounds that are left, each once it is on disk; at the end the LoRA lies in `folder`/lora."""
        from . import assemble

        config = self.config
        outdated = self.folder / "evaluation" / "evaluation.json"
        outdated.unlink(missing_ok=True)  # were this start killed too, it would be taken for the new rounds' own
        rounds = raft(
            self._policy,
            self._rewards,
            assemble.make_select(config),
            assemble.make_tuner(config, self._progress),
            self._store,
            assemble.make_draws(config),
            rounds=self._store.completed() if self._finished else config.rounds,
            seed=config.seed,
            replay=config.selection.replay,
        )
        for round_ in rounds:
            for track in self._trackers:
                track(read_metrics(self.folder)[-1])
            yield round_
            if self._finished:
                break
        self._policy.save(self.folder / "lora")

    @property
    def _finished(self) -> bool:
        return is_finished(self.config, self._store.completed(), self.folder)

    def evaluate(self) -> dict[str, Any]:
        """Base and tuned on the same seeds, by judges that took no part in the ranking; see `evaluate.evaluate`."""
        from . import assemble

        return assemble.run_evaluation(self.config, self._policy, self._rewards, self.folder / "evaluation")


def is_finished(config: Config, done: int, root: Path) -> bool:
    """Whether the run in `root`, of which `done` rounds are complete, needs no more: all are there, or the reward is
    flat (see `core.stop`)."""
    patience = config.stop_when_flat
    flat = patience is not None and done > patience and is_flat(read_metrics(root), config.rewards.weights, patience)
    return flat or done >= config.rounds


def finish_run(config: Config, root: Path, console: Console) -> dict[str, Any]:
    """Train what is left to train, evaluate, report. A finished run shows its result, and no model is loaded."""
    from . import assemble, checks
    from .report import write_report
    from .terminal import clean, show_evaluation

    checks.check(config)
    before = RunFolder.check(root, config=config, may_change=assemble.MAY_CHANGE)
    evaluation = root / "evaluation" / "evaluation.json"
    if not is_finished(config, before, root) or not _is_evaluated(evaluation, config):
        outlook = forecast(config, machine=this_machine())
        console.print(outlook.sentence(), highlight=False)
        for note in outlook.notes:
            console.print(clean(f"note: {note}"), soft_wrap=True)
        if before:
            console.print(f"going on after round {before}" if before < config.rounds else f"{before} rounds are done")
        run_rounds(config, root, console)
    else:
        console.print(f"this run is finished: {before} rounds", highlight=False)
    result = json.loads(evaluation.read_text(encoding="utf-8"))
    show_evaluation(console, result)
    page = write_report(root)
    places = {"report": page, "pictures": root / "before_after.png", "LoRA": root / "lora", "rounds": root / "rounds"}
    for what, path in places.items():
        console.print(clean(f"{what:10}{path}"), soft_wrap=True)
    return result


def run_rounds(config: Config, root: Path, console: Console) -> None:
    """The rounds that are left, under the live table, then the evaluation."""
    from .checks import HELD_OUT_PREFIX
    from .rewards import PREFERENCES
    from .terminal import LiveTable

    ranking = max(config.rewards.weights, key=lambda name: abs(config.rewards.weights[name]))
    judge = config.rewards.held_out
    held_out = f"{HELD_OUT_PREFIX}{judge if judge in PREFERENCES else 'text_image'}" if judge else None
    table = LiveTable(console, rounds=config.rounds, ranking=ranking, held_out=held_out)
    with console.status("loading the model"):
        run = Run(config, root, progress=table.progress)
    with table.shown():
        table.loaded()
        last = 0
        for round_ in run.rounds():
            table.add(round_)
            last = round_.index
        if 0 < last < config.rounds:
            console.print(f"stopped after round {last}: no better mean reward in {config.stop_when_flat} rounds")
        run.evaluate()


def evaluate_run(config: Config, root: Path, console: Console, *, threads: int | None) -> dict[str, Any]:
    """Sample and judge again from the stored LoRA, and write the report anew."""
    from . import assemble
    from .report import write_report
    from .terminal import LiveTable, show_evaluation

    file_of(root, "lora/pytorch_lora_weights.safetensors")
    table = LiveTable(console, rounds=config.rounds, ranking="", held_out=None)
    with console.status("loading the model"):
        assemble.prepare(threads or config.threads)
        policy = assemble.make_policy(config, table.progress)
        policy.load(root / "lora")
        rewards = assemble.make_rewards(config)
    with table.shown():
        result = assemble.run_evaluation(config, policy, rewards, root / "evaluation")
    show_evaluation(console, result)
    write_report(root)
    return result


def _is_evaluated(path: Path, config: Config) -> bool:
    """Whether the evaluation there, if any, is the one that the configuration asks for."""
    if not path.is_file():
        return False
    settings = json.loads(path.read_text(encoding="utf-8"))["settings"]
    return all(settings[key] == value for key, value in config.evaluation.model_dump().items())
