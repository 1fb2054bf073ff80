"""What a run goes through, from its settings to its report: load, rounds, evaluation, page."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .commands.options import file_of
from .core.config import Config

if TYPE_CHECKING:
    from rich.console import Console

    from .core.store import RunFolder

PRESETS = Path(__file__).parent / "presets"


def load_config(source: str, *, seed: int | None, threads: int | None, changes: list[str] | None = None) -> Config:
    """A preset by name or a TOML file, with the command line's changes."""
    path = Path(source)
    if path.suffix != ".toml":
        presets = sorted(preset.stem for preset in PRESETS.glob("*.toml"))
        if source not in presets:
            raise ValueError(f"unknown preset {source!r}: use one of {', '.join(presets)}, or a file NAME.toml")
        path = PRESETS / f"{source}.toml"
    changes = list(changes or [])
    changes += [] if seed is None else [f"seed={seed}"]
    changes += [] if threads is None else [f"threads={threads}"]
    return Config.load(path).with_overrides(changes)


def default_folder(config: Config) -> Path:
    """runs/<name>-<hash>: the same settings find the same run."""
    from .assemble import MAY_CHANGE

    identity = config.model_dump(mode="json", exclude={key for key in MAY_CHANGE if "." not in key})
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    return Path("runs") / f"{config.name}-{digest}"


def predict(config: Config) -> str:
    """The arithmetic before the hours."""
    sampling, prompts = config.sampling, config.prompts
    groups = (prompts.per_round or len(prompts.train)) * sampling.groups_per_prompt
    images = groups * sampling.samples_per_prompt
    return (
        f"{config.rounds} rounds x {groups} groups x {sampling.samples_per_prompt} candidates = "
        f"{config.rounds * images} images of {sampling.width} x {sampling.height} px in {sampling.num_inference_steps} "
        f"steps each, {config.tuning.steps} tuning steps a round"
    )


def finish_run(config: Config, root: Path, console: Console) -> dict[str, Any]:
    """Train what is left to train, evaluate, report. A finished run shows its result."""
    from .core.store import RunFolder
    from .report import write_report
    from .terminal import clean, show_evaluation

    console.print(predict(config), highlight=False)
    evaluation = root / "evaluation" / "evaluation.json"
    with console.status("loading the model"):
        from . import assemble
        from .diffusion import PictureCodec

        threads = assemble.prepare(config.threads)
        store = RunFolder.open(
            root,
            codec=PictureCodec(),
            config=config,
            environment=assemble.environment(config, threads),
            may_change=assemble.MAY_CHANGE,
        )
        before = store.completed()
    if before:
        console.print(f"going on after round {before}" if before < config.rounds else f"{before} rounds are done")
    if before < config.rounds or not _is_evaluated(evaluation, config):
        evaluation.unlink(missing_ok=True)  # were this start killed too, it would be taken for the new rounds' own
        run_rounds(config, store, console)
    result = json.loads(evaluation.read_text(encoding="utf-8"))
    show_evaluation(console, result)
    page = write_report(root)
    places = {"report": page, "pictures": root / "before_after.png", "LoRA": root / "lora", "rounds": root / "rounds"}
    for what, path in places.items():
        console.print(clean(f"{what:10}{path}"), soft_wrap=True)
    return result


def run_rounds(config: Config, store: RunFolder, console: Console) -> None:
    """The rounds that are left, under the live table, then the evaluation."""
    from . import assemble
    from .core.loop import raft
    from .terminal import LiveTable

    ranking = max(config.rewards.weights, key=lambda name: abs(config.rewards.weights[name]))
    held_out = f"{assemble.HELD_OUT_PREFIX}text_image" if config.rewards.held_out else None  # every tower scores it
    table = LiveTable(console, rounds=config.rounds, ranking=ranking, held_out=held_out)
    with table.shown():
        policy = assemble.make_policy(config, table.progress)
        rewards = assemble.make_rewards(config)
        table.loaded()
        rounds = raft(
            policy,
            rewards,
            assemble.make_select(config),
            assemble.make_tuner(config, table.progress),
            store,
            assemble.make_draws(config),
            rounds=config.rounds,
            seed=config.seed,
            replay=config.selection.replay,
        )
        for round_ in rounds:
            table.add(round_)
        policy.save(store.root / "lora")
        assemble.run_evaluation(config, policy, rewards, store.root / "evaluation")


def evaluate_run(config: Config, root: Path, console: Console, *, threads: int | None) -> dict[str, Any]:
    """Sample and judge again from the stored LoRA, and write the report anew."""
    from .report import write_report
    from .terminal import LiveTable, show_evaluation

    file_of(root, "lora/pytorch_lora_weights.safetensors")
    with console.status("loading the model"):
        from . import assemble

        assemble.prepare(threads or config.threads)
    table = LiveTable(console, rounds=config.rounds, ranking="", held_out=None)
    with table.shown():
        policy = assemble.make_policy(config, table.progress)
        policy.load(root / "lora")
        result = assemble.run_evaluation(config, policy, assemble.make_rewards(config), root / "evaluation")
    show_evaluation(console, result)
    write_report(root)
    return result


def _is_evaluated(path: Path, config: Config) -> bool:
    """Whether the evaluation there, if any, is the one that the configuration asks for."""
    if not path.is_file():
        return False
    settings = json.loads(path.read_text(encoding="utf-8"))["settings"]
    return all(settings[key] == value for key, value in config.evaluation.model_dump().items())
