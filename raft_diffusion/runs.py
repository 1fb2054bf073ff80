"""What a run goes through, from its settings to its report: load, rounds, evaluation, page."""

from __future__ import annotations

import difflib
import hashlib
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import recipes
from .commands.options import file_of
from .core.config import Config
from .core.guard import Look, Verdict
from .core.looks import forget_ending, read_ending, read_look
from .core.loop import raft
from .core.prompts import find_prompts
from .core.records import Round, Winner
from .core.stop import is_flat
from .core.store import RunFolder, read_metrics
from .core.timing import write_seconds
from .core.toml import format_value
from .llm.config import TextConfig
from .lora.file import lora_name
from .lora.start import agree_with_lora
from .modality import AnyConfig, Progress, is_text, modality_of

if TYPE_CHECKING:
    from rich.console import Console

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
    lora: str | None = None,
    prompts: str | None = None,
    held_out: float | None = None,
    recipe: str | None = None,
    changes: Sequence[str] = (),
) -> AnyConfig:
    """A preset by name or a TOML file, of a run that makes pictures or texts, with the command line's changes.

    prompts: a carried list, a file or one prompt (see `find_prompts`); held_out: the share of them never trained on.
    lora: where the tuning starts; its rank, alpha and layers are taken where the user's own settings do not say them.
    recipe: one of `recipes.RECIPES`, put on top of the job that all the rest describes.
    Of a text run, prompts is its JSONL file, and what pictures alone have is refused.
    Raises ValueError for everything that is not as it must be.
    """
    options = {"seed": seed, "threads": threads, "device": device, "model": model, "revision": revision}
    of_pictures = {"variant": variant, "prediction_type": prediction_type, "lora": lora}
    file = _config_file(source)
    loaded = config_of(file)
    if isinstance(loaded, TextConfig):
        _refuse_of_pictures(of_pictures | {"held_out": held_out, "recipe": recipe})
        return loaded.with_overrides([*changes, *_given(options | {"prompts.train": prompts})])
    if held_out is not None and prompts is None:
        raise ValueError("--held-out splits the prompts of --prompts; give both")
    given = _given(options | of_pictures)
    config = loaded.with_overrides([*changes, *given])
    if prompts is not None:
        config = _with_prompts(config, prompts, held_out)
    changed = [change.partition("=")[0].strip() for change in changes]
    if recipe is not None:
        config = recipes.apply(config, recipe, given=changed)
    # What a preset says of its LoRA was not chosen for the one to start from.
    own = [] if file.parent == PRESETS else [f"tuning.{key}" for key in loaded.tuning.model_fields_set]
    return agree_with_lora(config, {*changed, *own})


def config_of(path: Path) -> AnyConfig:
    """The settings in a TOML file, of either kind. Raises ValueError with every problem at once."""
    return (TextConfig if is_text(path) else Config).load(path)


def _given(options: Mapping[str, Any]) -> list[str]:
    """Those that were given, as `with_overrides` takes them."""
    return [f"{key}={format_value(value)}" for key, value in options.items() if value is not None]


def _refuse_of_pictures(options: Mapping[str, Any]) -> None:
    if given := [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]:
        raise ValueError(f"{given[0]} is for runs that make pictures, and this one writes texts; leave it out")


def _with_prompts(config: Config, prompts: str, held_out: float | None) -> Config:
    found = find_prompts(prompts)
    config = config.with_prompts(found, held_out)
    dropped = len(found) - len(config.prompts.train)
    if held_out is None and dropped:
        warnings.warn(f"{dropped} of {len(found)} prompts are held out by the settings, not trained on", stacklevel=3)
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


def default_folder(config: AnyConfig) -> Path:
    """runs/<name>-<hash>: the same settings find the same run; what may change in a run does not count."""
    free = tuple(f"{key}." for key in modality_of(config).MAY_CHANGE)
    identity = {key: value for key, value in config.flat().items() if not f"{key}.".startswith(free)}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    return Path("runs") / f"{config.name}-{digest}"


class Run:
    """A run with its models loaded: `for round_ in run.rounds(): ...`, then `run.evaluate()`.

    Whatever can be refused is refused before anything is written into `folder`; an interrupted run goes on.
    progress: called with (stage, done, total); stages are "sample", "tune", "guard" and "evaluate".
    Raises ValueError for settings, a folder, a model or a reward that cannot be used.
    """

    def __init__(self, config: AnyConfig, folder: Path | str, *, progress: Progress | None = None) -> None:
        from .process import environment, open_trackers

        self.config, self.folder, self._progress = config, Path(folder), progress
        self._stage: str | None = None  # what sampling is for, where it is not for candidates
        self._make = make = modality_of(config)
        make.check(config)
        RunFolder.check(self.folder, config=config, may_change=make.MAY_CHANGE)
        threads = make.prepare(config.threads)
        self._policy = make.make_policy(config, self._tell)
        self._rewards = make.run_rewards(config, self._policy)
        self._sampler = make.make_sampler(config, self._policy, self._tell)
        self._store = RunFolder.open(
            self.folder,
            codec=make.make_codec(),
            config=config,
            environment=environment(config.device, threads),
            may_change=make.MAY_CHANGE,
        )
        self._guard = make.make_guard(config, self._policy, self._rewards, self._store)
        self._trackers = open_trackers(config.trackers, self.folder, name=config.name, device=config.device)

    def rounds(self) -> Iterator[Round]:
        """The rounds that are left, each once it is on disk; at the end the LoRA lies in `folder`/lora.

        It is the last round's, unless the guard (see `core.guard`) says that an earlier one was better.
        """
        config = self.config
        outdated = self.folder / "evaluation" / "evaluation.json"
        outdated.unlink(missing_ok=True)  # were this start killed too, it would be taken for the new rounds' own
        self._make.begin(config, self._policy, self.folder, self._tell)
        self._look(self._guard.catch_up if self._guard else None)
        rounds = raft(
            self._sampler,
            self._rewards,
            self._make.make_select(config),
            self._tune,
            self._store,
            partial(self._make.round_draws, config, self._policy),
            rounds=self._store.completed() if self._finished else config.rounds,
            seed=config.seed,
            replay=config.selection.replay,
            replay_decay=config.selection.replay_decay,
        )
        began = time.monotonic()
        for round_ in rounds:
            write_seconds(self.folder, round_.index, time.monotonic() - began)
            self._look(partial(self._guard.look, round_.index) if self._guard else None)
            for track in self._trackers:
                track(read_metrics(self.folder)[-1])
            yield round_
            if self._finished:
                break
            began = time.monotonic()
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
            self._stage = "guard"
            look()
            self._stage = None

    def _tell(self, stage: str, done: int, total: int) -> None:
        if self._progress:
            self._progress(self._stage or stage, done, total)

    def _tune(self, policy: Any, winners: Sequence[Winner], *, seed: int) -> Mapping[str, float]:
        """The policy that learns, whatever the candidates came from. The loop tunes right before it stores the round,
        so the store says which one it is."""
        index = self._store.completed() + 1
        return self._make.make_tuner(self.config, self._tell, index=index)(self._policy, winners, seed=seed)

    @property
    def _finished(self) -> bool:
        return is_finished(self.config, self._store.completed(), self.folder)

    def evaluate(self) -> dict[str, Any]:
        """Base and tuned on the same seeds, by judges that took no part in the ranking."""
        return self._make.run_evaluation(self.config, self._policy, self._rewards, self.folder / "evaluation")


def is_finished(config: AnyConfig, done: int, root: Path) -> bool:
    """Whether the run in `root`, of which `done` rounds are complete, needs no more: all are there, the reward is flat
    (see `core.stop`), or the guard stops it (see `core.guard`)."""
    patience = config.stop_when_flat
    flat = patience is not None and done > patience and is_flat(read_metrics(root), config.rewards.weights, patience)
    if flat or done >= config.rounds:
        return True
    verdict = modality_of(config).verdict_of(config, root, done)
    return verdict is not None and verdict.fired


def finish_run(config: AnyConfig, root: Path, console: Console) -> dict[str, Any]:
    """Train what is left to train, evaluate, report. A finished run shows its result, and no model is loaded."""
    from .report import write_report
    from .terminal import clean

    make = modality_of(config)
    make.check(config)
    before = RunFolder.check(root, config=config, may_change=make.MAY_CHANGE)
    evaluation = root / "evaluation" / "evaluation.json"
    settled = is_finished(config, before, root) and _keeps_the_right_round(config, before, root)
    if not settled or not _is_evaluated(evaluation, config):
        for line in make.outlook(config):
            console.print(clean(line), soft_wrap=True)
        if before:
            console.print(f"going on after round {before}" if before < config.rounds else f"{before} rounds are done")
        run_rounds(config, root, console)
    else:
        console.print(f"this run is finished: {before} rounds", highlight=False)
    tell_ending(console, root)
    result = json.loads(evaluation.read_text(encoding="utf-8"))
    make.show_evaluation(console, result)
    page = write_report(root)
    places = {"report": page, "pictures": root / "before_after.png", "LoRA": root / "lora", "rounds": root / "rounds"}
    for what, path in places.items():
        if path.exists():
            console.print(clean(f"{what:10}{path}"), soft_wrap=True)
    return result


def run_rounds(config: AnyConfig, root: Path, console: Console) -> None:
    """The rounds that are left, under the live table, then the evaluation."""
    from .terminal import LiveTable

    make = modality_of(config)
    table = LiveTable(
        console,
        rounds=config.rounds,
        ranking=max(config.rewards.weights, key=lambda name: abs(config.rewards.weights[name])),
        held_out=make.held_out_name(config),
        guarded=make.watch_of(config) is not None,
        noun=make.NOUN,
    )
    with console.status("loading the model"):
        run = Run(config, root, progress=table.progress)
    with table.shown():
        table.loaded()
        last, verdict = 0, None
        for round_ in run.rounds():
            verdict = run.verdict
            table.add(round_, start=run.start, look=verdict.look if verdict else None)
            last = round_.index
        if 0 < last < config.rounds and not (verdict and verdict.fired):
            console.print(f"stopped after round {last}: no better mean reward in {config.stop_when_flat} rounds")
        run.evaluate()


def _keeps_the_right_round(config: AnyConfig, done: int, root: Path) -> bool:
    """Whether the LoRA of the finished run in `root` is the one that its guard keeps by the present settings."""
    verdict, ending = modality_of(config).verdict_of(config, root, done), read_ending(root, after=done)
    return (verdict.keep if verdict else done) == (ending.keep if ending else done)


def tell_ending(console: Console, root: Path) -> None:
    """What the guard says of the finished run in `root`, if it says anything."""
    from .terminal import clean

    ending = read_ending(root, after=len(read_metrics(root)))
    if ending is not None and ending.sentence:
        console.print()  # the table of rounds ends without a line break where its output is no terminal
        console.print(clean(ending.sentence), soft_wrap=True)
    if ending is not None and ending.stopped:
        console.print("to go on all the same: --set guard.enabled=false", highlight=False)


def evaluate_run(
    config: AnyConfig, root: Path, console: Console, *, threads: int | None, lora: Path | None = None
) -> dict[str, Any]:
    """Sample and judge again from the stored LoRA, and write the report anew.

    lora: another one to compare the base with, for pictures. Its numbers and pictures go to `other_evaluation`, and the
        run's own evaluation and report stay.
    """
    from .report import write_report
    from .terminal import LiveTable, clean

    make = modality_of(config)
    if lora is None:
        file_of(root, f"lora/{make.ADAPTER}")
    else:
        assert isinstance(config, Config)
        config = config.with_overrides(["sampling.lora_scale=1.0"])  # the run's is that of its own LoRA
    table = LiveTable(console, rounds=config.rounds, ranking="", held_out=None)
    with console.status("loading the model"):
        make.prepare(threads or config.threads)
        policy = _policy(config, root, lora, table.progress)
        rewards = make.run_rewards(config, policy)
    folder = root if lora is None else other_evaluation(root, lora)
    with table.shown():
        result = make.run_evaluation(config, policy, rewards, folder / "evaluation")
    make.show_evaluation(console, result)
    if lora is None:
        write_report(root)
    else:
        console.print(clean(f"pictures and numbers: {folder}"), soft_wrap=True)
    return result


def _policy(config: AnyConfig, root: Path, lora: Path | None, progress: Progress) -> Any:
    """The model with the run's LoRA, or with another one."""
    if lora is None:
        policy = modality_of(config).make_policy(config, progress)
        policy.load(root / "lora")
        return policy
    from .assemble import make_base

    assert isinstance(config, Config)
    policy = make_base(config, progress)
    policy.attach(lora)
    return policy


def other_evaluation(root: Path, lora: Path) -> Path:
    """Where the comparison with a LoRA that is not the run's own goes: RUN/evaluations/<its name>."""
    return root / "evaluations" / lora_name(lora)


def _is_evaluated(path: Path, config: AnyConfig) -> bool:
    """Whether the evaluation there, if any, is the one that the configuration asks for."""
    return path.is_file() and modality_of(config).is_evaluated(config, json.loads(path.read_text(encoding="utf-8")))
