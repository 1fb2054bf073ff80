"""What a run goes through, from its settings to its report: load, rounds, evaluation, page."""

from __future__ import annotations

import difflib
import hashlib
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import recipes
from .commands.options import file_of
from .core.config import Config
from .core.guard import Look, Verdict, curve
from .core.looks import forget_ending, read_ending, read_look
from .core.loop import raft, score
from .core.prompts import find_prompts
from .core.records import Draw, Prompt, Round, Sample, Scored, Winner
from .core.stop import is_flat
from .core.store import RunFolder, read_metrics
from .core.timing import write_seconds
from .core.toml import format_value
from .guarding import held_out_score, looks_of, verdict_of, watch_of, why_off
from .lora.file import lora_name
from .lora.start import agree_with_lora
from .planning.forecast import forecast, this_machine

if TYPE_CHECKING:
    from rich.console import Console

    from .core.stats import Interval

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
    lora: str | None = None,
    prompts: str | None = None,
    held_out: float | None = None,
    recipe: str | None = None,
    changes: Sequence[str] = (),
) -> Config:
    """A preset by name or a TOML file, with the command line's changes.

    prompts: a carried list, a file or one prompt (see `find_prompts`); held_out: the share of them never trained on.
    lora: where the tuning starts; its rank, alpha and layers are taken where the user's own settings do not say them.
    recipe: one of `recipes.RECIPES`, put on top of the job that all the rest describes.
    Raises ValueError for everything that is not as it must be.
    """
    if held_out is not None and prompts is None:
        raise ValueError("--held-out splits the prompts of --prompts; give both")
    options = {"seed": seed, "threads": threads, "device": device, "model": model, "revision": revision}
    options |= {"variant": variant, "prediction_type": prediction_type, "lora": lora}
    given = [f"{key}={format_value(value)}" for key, value in options.items() if value is not None]
    file = _config_file(source)
    loaded = Config.load(file)
    config = loaded.with_overrides([*changes, *given])
    if prompts is not None:
        config = _with_prompts(config, prompts, held_out)
    changed = [change.partition("=")[0].strip() for change in changes]
    if recipe is not None:
        config = recipes.apply(config, recipe, given=changed)
    # What a preset says of its LoRA was not chosen for the one to start from.
    own = [] if file.parent == PRESETS else [f"tuning.{key}" for key in loaded.tuning.model_fields_set]
    return agree_with_lora(config, {*changed, *own})


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
    folder: where everything is kept; without one it is runs/<name>-<hash>, the same for the same settings.
    progress: called with (stage, done, total); stages are "sample", "tune", "guard" and "evaluate".
    Raises ValueError for settings, a folder, a model or a reward that cannot be used.
    """

    def __init__(self, config: Config, folder: Path | str | None = None, *, progress: Progress | None = None) -> None:
        from . import assemble, checks

        self.config, self._progress = config, progress
        self.folder = default_folder(config) if folder is None else Path(folder)
        self._stage: str | None = None  # what sampling is for, where it is not for candidates
        checks.check(config)
        RunFolder.check(self.folder, config=config, may_change=assemble.MAY_CHANGE)
        threads = assemble.prepare(config.threads)
        self._rewards = assemble.make_rewards(config)
        self._policy = assemble.make_policy(config, self._tell)
        self._rewards += assemble.bound_rewards(config, self._policy)
        from .diffusion import PictureCodec

        self._store = RunFolder.open(
            self.folder,
            codec=PictureCodec(),
            config=config,
            environment=assemble.environment(config, threads),
            may_change=assemble.MAY_CHANGE,
        )
        self._guard = assemble.make_guard(config, self._policy, self._rewards, self._store)
        self._trackers = assemble.make_trackers(config, self.folder)

    def rounds(self) -> Iterator[Round]:
        """The rounds that are left, each once it is on disk; at the end the LoRA lies in `folder`/lora.

        It is the last round's, unless the guard (see `core.guard`) says that an earlier one was better.
        """
        from . import assemble

        config = self.config
        outdated = self.folder / "evaluation" / "evaluation.json"
        outdated.unlink(missing_ok=True)  # were this start killed too, it would be taken for the new rounds' own
        self._look(self._guard.catch_up if self._guard else None)
        rounds = raft(
            self._policy,
            self._rewards,
            assemble.make_select(config),
            self._tune,
            self._store,
            self._draws,
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
        return verdict_of(self.config, self.folder, self._store.completed())

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

    def _draws(self, index: int) -> list[Draw]:
        """The requests of a round. The loop asks for them right before it samples, so the guidance of the round is set
        here."""
        from . import assemble

        self._policy.settings = assemble.collecting(self.config, index)
        return assemble.make_draws(self.config)(index)

    def _tune(self, policy: Any, winners: Sequence[Winner], *, seed: int) -> Mapping[str, float]:
        """The loop tunes right before it stores the round, so the store says which one it is."""
        from . import assemble

        index = self._store.completed() + 1
        return assemble.make_tuner(self.config, self._tell, index=index)(policy, winners, seed=seed)

    @property
    def _finished(self) -> bool:
        return is_finished(self.config, self._store.completed(), self.folder)

    def sample(self, prompt: str, count: int = 4, *, seed: int = 0, base: bool = False, **changes: Any) -> list[Sample]:
        """`count` pictures of `prompt` by the model as it stands; `sample.data.image` is the picture.

        After `rounds` the model is the one that lies in `folder`/lora.

        seed: of the first picture; the next ones add 1 each. base: without the LoRA.
        changes: what to sample otherwise than the user does, by the names of `Settings`, such as guidance_scale=3.
        """
        from . import assemble

        if count < 1:
            raise ValueError(f"{count} pictures cannot be sampled; give a count of 1 or more")
        settings = replace(assemble.user_settings(self.config), **changes)
        words = Prompt(prompt, negative=self.config.sampling.negative_prompt)
        draws = [Draw(words, k, seed + k) for k in range(count)]
        with self._policy.base() if base else self._policy.at_strength(self.config.sampling.lora_scale):
            return self._policy.generate(draws, settings=settings)

    def score(self, samples: Sequence[Sample]) -> list[Scored]:
        """These samples with the scores of all of the run's rewards, by name: `scored.scores["text_image"]`."""
        return score(samples, self._rewards)

    def curve(self) -> list[tuple[int, Interval]]:
        """(round, held-out score and the 95 % interval of its change since round 0), as the guard has seen it so far.
        Round 0 is before the first round. Empty where no guard watches."""
        looks = looks_of(self.config, self.folder, self._store.completed())
        return curve(looks) if looks else []

    def evaluate(self) -> dict[str, Any]:
        """Base and tuned on the same seeds, by judges that took no part in the ranking; see `evaluate.evaluate`."""
        from . import assemble

        return assemble.run_evaluation(self.config, self._policy, self._rewards, self.folder / "evaluation")


def is_finished(config: Config, done: int, root: Path) -> bool:
    """Whether the run in `root`, of which `done` rounds are complete, needs no more: all are there, the reward is flat
    (see `core.stop`), or the guard stops it (see `core.guard`)."""
    patience = config.stop_when_flat
    flat = patience is not None and done > patience and is_flat(read_metrics(root), config.rewards.weights, patience)
    if flat or done >= config.rounds:
        return True
    verdict = verdict_of(config, root, done)
    return verdict is not None and verdict.fired


def finish_run(config: Config, root: Path, console: Console) -> dict[str, Any]:
    """Train what is left to train, evaluate, report. A finished run shows its result, and no model is loaded."""
    from . import assemble, checks
    from .report import write_report
    from .terminal import clean, show_evaluation

    checks.check(config)
    before = RunFolder.check(root, config=config, may_change=assemble.MAY_CHANGE)
    evaluation = root / "evaluation" / "evaluation.json"
    settled = is_finished(config, before, root) and _keeps_the_right_round(config, before, root)
    if not settled or not _is_evaluated(evaluation, config):
        outlook = forecast(config, machine=this_machine())
        console.print(outlook.sentence(), highlight=False)
        for note in outlook.notes:
            console.print(clean(f"note: {note}"), soft_wrap=True)
        if (unwatched := why_off(config)) is not None:
            console.print(clean(f"note: {unwatched}"), soft_wrap=True)
        if before:
            console.print(f"going on after round {before}" if before < config.rounds else f"{before} rounds are done")
        run_rounds(config, root, console)
    else:
        console.print(f"this run is finished: {before} rounds", highlight=False)
    tell_ending(console, root)
    result = json.loads(evaluation.read_text(encoding="utf-8"))
    show_evaluation(console, result)
    page = write_report(root)
    places = {"report": page, "pictures": root / "before_after.png", "LoRA": root / "lora", "rounds": root / "rounds"}
    for what, path in places.items():
        console.print(clean(f"{what:10}{path}"), soft_wrap=True)
    return result


def run_rounds(config: Config, root: Path, console: Console) -> None:
    """The rounds that are left, under the live table, then the evaluation."""
    from .terminal import LiveTable

    ranking = max(config.rewards.weights, key=lambda name: abs(config.rewards.weights[name]))
    held_out = held_out_score(config.rewards.held_out) if config.rewards.held_out else None
    guarded = watch_of(config) is not None
    table = LiveTable(console, rounds=config.rounds, ranking=ranking, held_out=held_out, guarded=guarded)
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


def _keeps_the_right_round(config: Config, done: int, root: Path) -> bool:
    """Whether the LoRA of the finished run in `root` is the one that its guard keeps by the present settings."""
    verdict, ending = verdict_of(config, root, done), read_ending(root, after=done)
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
    config: Config, root: Path, console: Console, *, threads: int | None, lora: Path | None = None
) -> dict[str, Any]:
    """Sample and judge again from the stored LoRA, and write the report anew.

    lora: another one to compare the base with. Its numbers and pictures go to `other_evaluation`, and the run's own
        evaluation and report stay.
    """
    from . import assemble
    from .report import write_report
    from .terminal import LiveTable, clean, show_evaluation

    if lora is None:
        file_of(root, "lora/pytorch_lora_weights.safetensors")
    else:
        config = config.with_overrides(["sampling.lora_scale=1.0"])  # the run's is that of its own LoRA
    table = LiveTable(console, rounds=config.rounds, ranking="", held_out=None)
    with console.status("loading the model"):
        assemble.prepare(threads or config.threads)
        if lora is None:
            policy = assemble.make_policy(config, table.progress)
            policy.load(root / "lora")
        else:
            policy = assemble.make_base(config, table.progress)
            policy.attach(lora)
        rewards = assemble.make_rewards(config) + assemble.bound_rewards(config, policy)
    folder = root if lora is None else other_evaluation(root, lora)
    with table.shown():
        result = assemble.run_evaluation(config, policy, rewards, folder / "evaluation")
    show_evaluation(console, result)
    if lora is None:
        write_report(root)
    else:
        console.print(clean(f"pictures and numbers: {folder}"), soft_wrap=True)
    return result


def other_evaluation(root: Path, lora: Path) -> Path:
    """Where the comparison with a LoRA that is not the run's own goes: RUN/evaluations/<its name>."""
    return root / "evaluations" / lora_name(lora)


def _is_evaluated(path: Path, config: Config) -> bool:
    """Whether the evaluation there, if any, is the one that the configuration asks for."""
    if not path.is_file():
        return False
    settings = json.loads(path.read_text(encoding="utf-8"))["settings"]
    strength = settings.get("lora_scale", 1.0)  # an older version knew no other
    return strength == config.sampling.lora_scale and all(
        settings[key] == value for key, value in config.evaluation.model_dump().items()
    )
