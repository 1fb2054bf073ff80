"""The command line: it collects the commands and turns mistakes into one sentence."""

from __future__ import annotations

import re
import sys
import warnings

import typer

from .commands.bench import bench
from .commands.demo import demo
from .commands.doctor import doctor
from .commands.evaluate import evaluate
from .commands.export import export
from .commands.inspect import inspect
from .commands.merge import merge
from .commands.plan import plan
from .commands.presets import presets
from .commands.rank import rank
from .commands.report import report
from .commands.review import review
from .commands.sample import sample
from .commands.score import score
from .commands.train import train
from .commands.watch import watch
from .core.files import advice_on
from .core.toml import one_line
from .crew import is_helper
from .stopping import end_as_by_ctrl_c

PANELS = {
    "Train": (demo, presets, plan, train),
    "Look and compare": (watch, sample, score, rank, review, evaluate, report),
    "Take away": (export, inspect, merge),
    "This machine": (doctor, bench),
}

app = typer.Typer(
    name="raft-diffusion",
    help="RAFT for Stable Diffusion: sample, rank, finetune a LoRA on the winners, repeat.\n\n"
    "Start with: raft-diffusion demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for panel, commands in PANELS.items():
    for command in commands:
        app.command(rich_help_panel=panel)(command)


def main() -> None:
    """Entry point: one sentence and exit code 2 for what the user can mend, 130 for Ctrl-C and SIGTERM."""
    if is_helper() and sys.argv[1:2] not in (["train"], ["demo"]):
        return  # other commands are done by the first process alone
    warnings.showwarning = _note
    end_as_by_ctrl_c()
    try:
        code = app(standalone_mode=False)
    except (ValueError, OSError) as error:
        _say(f"raft-diffusion: {_shown(advice_on(error) if isinstance(error, OSError) else str(error))}")
        sys.exit(2)
    except Exception as error:
        show = getattr(error, "show", None)  # a usage error of the command-line parser
        if show is None:
            raise
        if not is_helper():
            show()
        sys.exit(getattr(error, "exit_code", 2))
    if code == 130:  # typer's answer to Ctrl-C
        _say("\nstopped; the same command goes on where this one stopped")
    if code:
        sys.exit(code)


def _note(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    """A warning as one line for a person, without the place in the code that gave it."""
    _say(f"note: {_shown(str(message))}")


def _say(words: str) -> None:
    """On stderr. What a helper would say, the first process of its run says."""
    if not is_helper():
        print(words, file=sys.stderr)


def _shown(sentence: str) -> str:
    """On one line whatever names and prompts it holds, with a word of thousands of characters cut short."""
    return re.sub(r"\S{1000,}", lambda word: f"{word[0][:60]}... ({len(word[0])} characters)", one_line(sentence))


if __name__ == "__main__":
    main()
