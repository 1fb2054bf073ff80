"""The command line. With `assemble` it is the only code that sees the configuration and chooses concrete classes.

Heavy imports (torch, diffusers, open_clip) happen inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .core.config import Config
    from .core.store import RunFolder

PRESETS = Path(__file__).parent / "presets"
DEMOS = {"monet": "pocket-monet", "resolution": "pocket-resolution"}
INTRO = {
    "monet": 'The base paints "monet style cat" as Monets without a cat. RAFT learns from the best of its pictures.',
    "resolution": "The base was made for 64 px and is nearly broken at 32 px, where pictures are cheap. RAFT mends it.",
}

app = typer.Typer(
    name="raft-diffusion",
    help="RAFT for Stable Diffusion: sample, rank, finetune a LoRA on the winners, repeat.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="The run folder. Default: runs/<name>-<hash>.")]
Json = Annotated[str | None, typer.Option("--json", metavar="FILE", help="Write the numbers as JSON; - is stdout.")]
Seed = Annotated[int | None, typer.Option("--seed", metavar="N", min=0, help="The run's seed.")]
Threads = Annotated[int | None, typer.Option("--threads", metavar="N", min=1, help="CPU threads. Default: all cores.")]


def main() -> None:
    """Entry point: one sentence and exit code 2 for what the user can mend, 130 for Ctrl-C."""
    try:
        code = app(standalone_mode=False)
    except (ValueError, OSError) as error:
        print(f"raft-diffusion: {error}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        show = getattr(error, "show", None)  # a usage error of the command-line parser
        if show is None:
            raise
        show()
        sys.exit(getattr(error, "exit_code", 2))
    if code == 130:  # typer's answer to Ctrl-C
        print("\nstopped; the same command goes on where this one stopped", file=sys.stderr)
    if code:
        sys.exit(code)


@app.command()
def demo(
    which: Annotated[str, typer.Argument(help="monet or resolution.", metavar="[monet|resolution]")] = "monet",
    out: Out = None,
    seed: Seed = None,
    threads: Threads = None,
    json_file: Json = None,
) -> None:
    """The whole job on the small model that the package carries: minutes on a CPU, nothing to download.

    Example: raft-diffusion demo monet --seed 1
    """
    if which not in DEMOS:
        raise ValueError(f"unknown demo {which!r}: use {' or '.join(DEMOS)}")
    config = load_config(DEMOS[which], seed=seed, threads=threads)
    console = _console(json_file)
    console.print(INTRO[which])
    root = out or default_folder(config)
    with _numbers(json_file) as numbers:
        numbers.update(finish_run(config, root, console))


@app.command()
def train(
    config: Annotated[str, typer.Argument(metavar="PRESET|CONFIG.toml", help="A preset's name or a TOML file.")],
    out: Out = None,
    seed: Seed = None,
    threads: Threads = None,
    changes: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting.")] = None,
    json_file: Json = None,
) -> None:
    """Run RAFT; the same command starts a run and goes on with it.

    Example: raft-diffusion train pocket-monet --out runs/mine --set rounds=6 --set tuning.rank=8
    """
    resolved = load_config(config, seed=seed, threads=threads, changes=changes or [])
    with _numbers(json_file) as numbers:
        numbers.update(finish_run(resolved, out or default_folder(resolved), _console(json_file)))


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    threads: Threads = None,
    json_file: Json = None,
) -> None:
    """Compare the base and the tuned model again on the run's evaluation seeds.

    Example: raft-diffusion evaluate runs/mine --json -
    """
    from .core.config import Config

    config = Config.load(_run_file(run, "config.toml"))
    with _numbers(json_file) as numbers:
        numbers.update(evaluate_run(config, run, _console(json_file), threads=threads))


@app.command()
def report(run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]) -> None:
    """Write RUN/report.html from the run folder alone.

    Example: raft-diffusion report runs/mine
    """
    from .report import write_report

    _run_file(run, "config.toml")
    print(write_report(run))


# --- what the commands share ----------------------------------------------------------------------------------------


def load_config(source: str, *, seed: int | None, threads: int | None, changes: list[str] | None = None) -> Config:
    """A preset by name or a TOML file, with the command line's changes."""
    from .core.config import Config

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

    _run_file(root, "lora/pytorch_lora_weights.safetensors")
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


def _run_file(run: Path, name: str) -> Path:
    path = run / name
    if not path.is_file():
        raise ValueError(f"{run} holds no {name}: give the folder of a run that `train` or `demo` has finished")
    return path


def _console(json_file: str | None) -> Console:
    """What people read goes to stderr when stdout carries the numbers."""
    return Console(stderr=json_file == "-")


@contextmanager
def _numbers(target: str | None) -> Iterator[dict[str, Any]]:
    """Collects the numbers and writes them at the end; an unwritable place is refused before the work."""
    numbers: dict[str, Any] = {}
    path = Path(target) if target not in (None, "-") else None
    if path is not None and ((path.exists() and not path.is_file()) or not os.access(path.parent or Path(), os.W_OK)):
        raise ValueError(f"--json {target}: cannot write there; name a file in a folder that exists")
    yield numbers
    if target == "-":
        print(json.dumps(numbers, indent=1))
    elif path is not None:
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, path)


if __name__ == "__main__":
    main()
