"""The command line: it collects the commands and turns mistakes into one sentence."""

from __future__ import annotations

import sys

import typer

from .commands.demo import demo
from .commands.evaluate import evaluate
from .commands.report import report
from .commands.train import train

app = typer.Typer(
    name="raft-diffusion",
    help="RAFT for Stable Diffusion: sample, rank, finetune a LoRA on the winners, repeat.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (demo, train, evaluate, report):
    app.command()(command)


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


if __name__ == "__main__":
    main()
