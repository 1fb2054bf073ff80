"""Every command that the README and the help pages show is run: on the carried model for real, only smaller; commands
for other models are parsed by the real command line, and planned."""

import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch
from typer.main import get_command

from raft_diffusion import cli
from raft_diffusion.core.config import Config
from raft_diffusion.llm.config import TextConfig

ROOT = Path(__file__).parents[1]
SMALLER = [
    "device=cpu",
    "threads=1",
    "sampling.width=32",
    "sampling.height=32",
    "sampling.num_inference_steps=2",
    "sampling.samples_per_prompt=4",
    "sampling.groups_per_prompt=1",
    "selection.best=1",
    "tuning.steps=2",
    "tuning.batch_size=2",
    "guard.pairs=8",
    "evaluation.pairs=4",
    "evaluation.ood_pairs=2",
    "evaluation.best_of=2",
]


def readme_commands() -> list[str]:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    found = [line.strip().removeprefix("uv run ") for line in lines if line.startswith("    ")]
    inline = re.findall(r"`(?:uv run )?(raft-diffusion [^`]+)`", "\n".join(lines))
    found = [line.partition("  #")[0].strip() for line in [*found, *inline]]
    return [line for line in found if re.match("raft-diffusion [a-z]", line) and "NAME" not in line]


def help_commands() -> list[str]:
    commands = get_command(cli.app).commands  # pyright: ignore[reportAttributeAccessIssue]
    pages = [command.help or "" for command in commands.values()]
    return [line.partition("Example:")[2].strip() for page in pages for line in page.splitlines() if "Example:" in line]


def is_carried(command: str) -> bool:
    """Whether a command needs no other model than the carried one."""
    others = (
        "stable-diffusion",
        ":openai",
        "resolution-256",
        "monet-style-cat",
        "style-prompts",
        "model.safetensors",
        "pickscore",
        "--random-weights",
    )
    return not any(word in command for word in others)


def waits_for_a_person(command: str) -> bool:
    return command.startswith("raft-diffusion review") or "--reward human" in command


ALL = list(dict.fromkeys([*readme_commands(), *help_commands()]))
REAL = [command for command in ALL if is_carried(command) and not waits_for_a_person(command)]


def python_block(marker: str) -> str:
    """The README's Python block that holds `marker`."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return next(block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if marker in block)


def run(command: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", shlex.split(command.partition(" > ")[0]))
        try:
            cli.main()
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """A folder with what the examples speak of: a run, pictures, a reward and a model of one's own."""
    here = tmp_path_factory.mktemp("workshop")
    (here / "my_rewards.py").write_text(python_block("def brightness"), encoding="utf-8")
    (here / "my_model.py").write_text(python_block("def draw"), encoding="utf-8")
    load, load_text = Config.load, TextConfig.load

    def smaller(path):
        config = load(path)
        return config.with_overrides([*SMALLER, f"rounds={min(2, config.rounds)}"])

    def smaller_text(path):
        return load_text(path).with_overrides(["rounds=1", "prompts.per_round=16", "evaluation.prompts=4"])

    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        patch.setattr(Config, "load", smaller)
        patch.setattr(TextConfig, "load", smaller_text)
        assert run("raft-diffusion train pocket-monet --out runs/mine") == 0
        assert run("raft-diffusion train pocket-monet --recipe one-shot --out runs/one-shot") == 0
        assert run('raft-diffusion sample "monet style cat" --run runs/mine --count 4 --out pictures') == 0
        shutil.copyfile("runs/mine/lora/pytorch_lora_weights.safetensors", "other.safetensors")
        yield here
    torch.set_num_threads(threads)


def test_there_are_examples_for_every_command():
    names = set(get_command(cli.app).commands)  # pyright: ignore[reportAttributeAccessIssue]
    assert {command.split()[1] for command in help_commands()} == names
    assert {command.split()[1] for command in readme_commands()} == names


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("command", REAL)
def test_an_example_of_the_carried_model_runs(workshop, command, capsys):
    assert run(command) == 0, capsys.readouterr().err


@pytest.mark.parametrize("command", [command for command in ALL if command not in REAL])
def test_an_example_of_another_model_or_for_a_person_is_parsed(command):
    name, *arguments = shlex.split(command)[1:]
    command_line = get_command(cli.app).commands[name]  # pyright: ignore[reportAttributeAccessIssue]
    assert command_line.make_context(name, arguments)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_ten_lines_of_python_run(workshop):
    code = python_block("import raft_diffusion")
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    exec(compile(code, "README.md", "exec"), {})
