"""What `train`, the demos and `evaluate` do around a run: tell, go on, evaluate, report."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .commands.options import file_of
from .core.config import Config
from .core.evaluated import read_evaluation
from .core.looks import read_ending
from .core.overrule import overruled, what_follows
from .core.store import RunFolder, complete_rounds, read_metrics
from .core.unfinished import Unfinished
from .crew import Crew, Hands, assembled, help_out
from .lora.file import lora_name
from .modality import AnyConfig, Progress, identity_of, modality_of
from .runs import Run, is_finished
from .stopping import Stop

if TYPE_CHECKING:
    from rich.console import Console


def finish_run(config: AnyConfig, root: Path, console: Console) -> dict[str, Any]:
    """Train what is left to train, evaluate, report. A finished run shows its result, and no model is loaded."""
    with assembled() as crew:
        return _finish(config, root, console, crew)


def _finish(config: AnyConfig, root: Path, console: Console, crew: Crew | None) -> dict[str, Any]:
    from .report import write_report
    from .terminal import clean

    make = modality_of(config)
    make.check(config)
    before = RunFolder.check(root, config=config, may_change=make.MAY_CHANGE)
    settled = is_finished(config, before, root) and _keeps_the_right_round(config, before, root)
    if not settled or not _is_evaluated(root, config):
        for line in make.outlook(config):
            console.print(clean(line), soft_wrap=True)
        index = overruled(root, best=config.selection.best)
        if index is not None:
            kept = f"what is there now is kept in {root / 'replaced'}"
            console.print(clean(f"{what_follows(complete_rounds(root), index)}; {kept}"), soft_wrap=True)
        elif before:
            console.print(f"going on after round {before}" if before < config.rounds else f"{before} rounds are done")
        run_rounds(config, root, console, crew)
    else:
        console.print(f"this run is finished: {before} rounds", highlight=False)
    tell_ending(console, root)
    result = read_evaluation(root)
    assert result is not None
    make.show_evaluation(console, result)
    page = write_report(root)
    places = {"report": page, "pictures": root / "before_after.png", "LoRA": root / "lora", "rounds": root / "rounds"}
    for what, path in places.items():
        if path.exists():
            console.print(clean(f"{what:10}{path}"), soft_wrap=True)
    return result


def help_with(config: AnyConfig) -> None:
    """Be a helper of the first process, which runs these settings, until it ends (see `crew`)."""

    def load() -> Hands:
        make = modality_of(config)
        make.prepare(config.threads)
        policy = make.make_policy(config)
        return Hands(policy, make.run_rewards(config, policy))

    help_out(load)


def run_rounds(config: AnyConfig, root: Path, console: Console, crew: Crew | None = None) -> None:
    """The rounds that are left, under the live table, then the evaluation."""
    from .terminal import LiveTable, say_where

    make = modality_of(config)
    table = LiveTable(
        console,
        rounds=config.rounds,
        ranking=max(config.rewards.weights, key=lambda name: abs(config.rewards.weights[name])),
        held_out=make.held_out_name(config),
        guarded=make.watch_of(config) is not None,
        noun=make.NOUN,
    )
    stop = Stop()
    with console.status("loading the model"):
        announce = partial(say_where, console)
        run = Run(config, root, progress=stop.checked(table.progress), announce=announce, crew=crew)
    with stop.gently(), table.shown():
        table.loaded()
        last, verdict = 0, None
        for round_ in run.rounds():
            verdict = run.verdict
            table.add(round_, start=run.start, look=verdict.look if verdict else None)
            last = round_.index
            stop.check()
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
    table, stop = LiveTable(console, rounds=config.rounds, ranking="", held_out=None), Stop()
    unfinished = Unfinished(root, packer=make.make_codec(), identity=identity_of(config))
    with console.status("loading the model"):
        make.prepare(threads or config.threads)
        policy = _policy(config, root, lora, stop.checked(table.progress))
        policy.shelf = unfinished.shelf("evaluate")
        rewards = make.run_rewards(config, policy)
    folder = root if lora is None else other_evaluation(root, lora)
    with stop.gently(), table.shown():
        result = make.run_evaluation(config, policy, rewards, folder / "evaluation")
    unfinished.clear()
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


def _is_evaluated(root: Path, config: AnyConfig) -> bool:
    """Whether the evaluation there, if any, is the one that the configuration asks for. A damaged one is made again."""
    try:
        result = read_evaluation(root)
    except ValueError:
        return False
    return result is not None and modality_of(config).is_evaluated(config, result)
