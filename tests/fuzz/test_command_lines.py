"""Any command line at all ends before the work begins, well, or with one sentence; then nothing is changed."""

import json
import os
import runpy
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.main import get_command

from raft_diffusion import assemble, cli, doctor, jobs, training
from raft_diffusion.llm import assemble as text_assemble
from raft_diffusion.planning import measure
from raft_diffusion.report import watch
from raft_diffusion.review import server
from raft_diffusion.review.desk import Desk

FUZZ = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("fuzzing.py"))))
COMMANDS: dict[str, Any] = dict(sorted(get_command(cli.app).commands.items()))
PRESETS = sorted(path.stem for path in jobs.PRESETS.glob("*.toml"))
QUICK, WHOLE = 60, 1000
CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
PLACES = (
    *("run", "run/config.toml", "run/lora", "run/rounds/001/adapter", "run/rounds/001/candidates", "run/evaluation"),
    *("lora.safetensors", "tiny.toml", "text.toml", "half", "texts", "pictures", "pictures/a.png", "pictures/b.jpg"),
    *("pictures/metadata.jsonl", "prompts.txt", "prompts.csv", "prompts.toml", "broken.png", "broken.safetensors"),
    *("letter.txt", "empty", "empty.txt", "webui", "missing", "missing/deeper", "letter.txt/below", "odd\nname.png"),
    *(".", "..", "/", "/dev/null", "new.safetensors", "new.json", "new.toml", "~nobody/x", "a" * 300, "a" * 5000),
)
GOOD: dict[str, tuple[str, ...]] = {
    "config": (*PRESETS, "tiny.toml", "text.toml", "run/config.toml", "texts/config.toml", "pocket-manet"),
    "which": ("monet", "resolution", "text", "sums", "manet"),
    "name": (*PRESETS, "pocket-manet"),
    "format_": ("kohya", "diffusers", "ckpt"),
    "dtype": ("fp16", "bf16", "fp32", "fp8"),
    "device": ("auto", "cpu", "cuda:7", "gpu"),
    "recipe": ("default", "paper", "one-shot", "reward-weighted", "twoshot"),
    "prediction_type": ("epsilon", "v_prediction", "sample"),
    "method": ("zscore", "fixed", "mean"),
    "weights": ("aesthetic=1", "text_image=-0.5", "compressibility=2", "held_out.text_image=1", "aesthetic=nan", "x="),
    "rewards": ("compressibility", "incompressibility", "aesthetic", "text_image", "human", "my:own", "log_ratio"),
    "reward": ("aesthetic", "human", "compressibility", "my:own", "pickscore", "log_ratio"),
    "generators": ("policy", "folder:pictures", "folder:missing", "my:draw", "nothing"),
    "sources": ("aesthetic=letter.txt", "aesthetic_v2=missing.pth", "compressibility=x", "="),
    "sort": ("aesthetic", "compressibility", "text_image"),
    "sampler": ("Euler a", "DPM++ 2M", "DDIM", "Eulr"),
    "prompts": ("monet style cat", "cifar10", "styles", "prompts.txt", "prompts.csv", "prompts.toml", "text.jsonl"),
    "prompt": ("monet style cat", ""),
    "scorer": ("pocket", "poket", "pictures", "ViT-B-32:none"),
    "model": ("pocket", "pocket-sums", "a/b", "lora.safetensors", "run/lora", "poket"),
    "changes": (
        "rounds=6",
        "tuning.rank=3",
        "sampling.width=33",
        "guard.enabled=false",
        "evaluation.pairs=4",
        "x",
        "=",
    ),
    "steps": ("6", "6,12", "0", "a,b"),
    "run": ("run", "run", "run", "run", "half", "texts", "empty"),
    "target": ("run", "run", "pictures", "run/rounds/001/candidates"),
    "paths": ("pictures", "pictures/a.png", "run/rounds/001/candidates", "broken.png"),
    "file": ("lora.safetensors", "broken.safetensors", "run/lora/pytorch_lora_weights.safetensors"),
    "lora": ("lora.safetensors", "run", "run/lora", "broken.safetensors"),
    "out": ("new", "new/deeper", "new.safetensors", "run", "full", "empty"),
    "install": ("webui", "empty", "missing"),
    "json_file": ("-", "new.json", "missing/new.json"),
}
WHOLE_NUMBERS = ("seed", "threads", "round_", "port", "every", "best", "count", "width", "height", "batch_size")
WHOLE_NUMBERS += ("clip_skip", "pairs")
SHARES = ("held_out", "lora_scale", "cfg_scale", "strength")
in_range = st.integers(1, 8).map(str)
shares = st.sampled_from(("0.5", "0.25", "1", "0"))
no_number = st.sampled_from(("0", "-1", "65536", "9" * 5000, "1e3", "2.5", "٣", "0x10", "nan", "inf", "1e999", "1,5"))
typable = FUZZ.words.filter(lambda word: "\0" not in word).map(lambda word: word.encode("utf-8", "replace").decode())
half = st.just("half\udcff")
"""What an operating system passes on: never a null, and bytes that are no UTF-8 as halves of characters."""


@st.composite
def given_to(draw: st.DrawFn, parameter: Any) -> str:
    """A value for an option or argument, mostly one that it may have."""
    name = parameter.name or ""
    good, bad = st.sampled_from(GOOD.get(name, PLACES)), st.sampled_from(PLACES)
    if name in WHOLE_NUMBERS + SHARES:
        good, bad = in_range if name in WHOLE_NUMBERS else shares, no_number | st.floats().map(str)
    return draw(good if draw(st.integers(0, 9)) else st.one_of(bad, typable, half))


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    name = draw(st.sampled_from(sorted(COMMANDS)))
    parameters = COMMANDS[name].params
    line = [name]
    for argument in (p for p in parameters if p.param_type_name == "argument"):
        many = (
            draw(st.sampled_from((1, 1, 1, 1, 2, 3, 0)))
            if argument.nargs == -1
            else draw(st.sampled_from((1,) * 18 + (0, 2)))
        )
        line += [draw(given_to(argument)) for _ in range(many)]
    options = [p for p in parameters if p.param_type_name == "option" and p.name != "help"]
    needed = [option for option in options if option.required and draw(st.integers(0, 9))]
    for option in [*needed, *draw(st.lists(st.sampled_from(options), max_size=4) if options else st.just([]))]:
        word = draw(st.sampled_from([*option.opts, *option.secondary_opts]))
        line += [word] if option.is_flag else [word, draw(given_to(option))]
    if draw(st.integers(0, 24)) == 0:
        line.insert(draw(st.integers(0, len(line))), draw(typable | st.sampled_from(("--help", "--nothing", "-"))))
    return line


@pytest.fixture(scope="module")
def pristine(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to be in, with one of each kind of file."""
    here = tmp_path_factory.mktemp("pristine") / "here"
    here.mkdir()
    shutil.copytree(finished, here / "run")
    shutil.copyfile(finished.parent / "tiny.toml", here / "tiny.toml")
    shutil.copyfile(finished / "lora" / "pytorch_lora_weights.safetensors", here / "lora.safetensors")
    for name in ("half", "texts", "pictures", "full", "empty", "webui/models/Lora"):
        (here / name).mkdir(parents=True)
    (here / "webui" / "webui.py").write_text("")
    text = (jobs.PRESETS / "pocket-sums.toml").read_text(encoding="utf-8")
    (here / "text.toml").write_text(text, encoding="utf-8")
    (here / "texts" / "config.toml").write_text(text, encoding="utf-8")
    (here / "half" / "config.toml").write_text((finished / "config.toml").read_text())
    for number, name in enumerate(("a.png", "b.jpg", "c.webp", "d.png")):
        Image.new("RGB", (40, 30), (60 * number, 90, 120)).save(here / "pictures" / name)
    rows = [{"file_name": name, "text": "a cat"} for name in ("a.png", "b.jpg", "c.webp")]
    (here / "pictures" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copyfile(here / "pictures" / "a.png", here / "odd\nname.png")
    (here / "broken.png").write_bytes((here / "pictures" / "a.png").read_bytes()[:60])
    (here / "broken.safetensors").write_bytes((here / "lora.safetensors").read_bytes()[:-100])
    (here / "prompts.txt").write_text("monet style cat\n# no more\na dog\n")
    (here / "prompts.csv").write_text("prompt,weight\nmonet style cat,2\n")
    (here / "prompts.toml").write_text('[[prompt]]\ntext = "monet style cat"\n')
    (here / "text.jsonl").write_text('{"prompt": "2+2=", "answer": "4"}\n')
    (here / "letter.txt").write_text("dear\n")
    (here / "full" / "letter.txt").write_text("dear\n")
    (here / "empty.txt").write_text("")
    (here / "my.py").write_text("def own(images, prompts):\n    return [1.0] * len(images)\n\n\ndraw = own\n")
    return here


def stop_here(*_: object, **__: object) -> None:
    raise FUZZ.Reached


class NoServer:
    """A review server that reads all that the page shows, and listens to nobody."""

    def __init__(self, root: Path, *, index: int | None = None, port: int = 0) -> None:
        desk = Desk(root, index)
        desk.show()
        desk.finished()
        raise FUZZ.Reached


@pytest.fixture(scope="module", autouse=True)
def no_work() -> Iterator[None]:
    """Whatever loads a model, serves a page or asks another machine ends the example instead."""
    keep_up = watch.watch
    with pytest.MonkeyPatch.context() as patch:
        for module, name in (
            *((training, "run_rounds"), (assemble, "prepare"), (text_assemble, "prepare"), (measure, "measure")),
            (socket.socket, "connect"),
            (socket, "getaddrinfo"),
        ):
            patch.setattr(module, name, stop_here)
        patch.setattr(server, "ReviewServer", NoServer)
        patch.setattr(watch, "watch", lambda run, **more: keep_up(run, **more, sleep=stop_here))
        torch = doctor.Torch(version="2", cuda=None, has_cuda=False, has_mps=False)
        patch.setattr(doctor, "look_at_torch", lambda: (torch, ""))
        patch.setattr(doctor, "reach", lambda url: "")
        patch.setenv("COLUMNS", "100")
        patch.setattr("sys.dont_write_bytecode", True)
        yield


def outcome(line: list[str], here: Path, pristine: Path) -> str:
    before = FUZZ.contents(here)
    end, _ = FUZZ.command(line)
    if (after := FUZZ.contents(here)) != before:
        shutil.rmtree(here)
        shutil.copytree(pristine, here)
        os.chdir(here)
        changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        assert end in ("finished", "accepted"), f"{end}, and changed {changed}"
    return end


def check_lines(ends: Any, count: int, pristine: Path, here: Path) -> None:
    @settings(max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=CHECKS)
    @given(line=command_lines())
    def each(line: list[str]) -> None:
        ends[outcome(line, here, pristine)] += 1

    each()


@pytest.fixture
def here(pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(pristine, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def test_any_command_line(pristine, here):
    check_lines(FUZZ.Ends(), QUICK, pristine, here)


@pytest.mark.slow
def test_many_command_lines(pristine, here, capsys):
    ends = FUZZ.Ends()
    check_lines(ends, WHOLE, pristine, here)
    with capsys.disabled():
        print(ends.told("command lines"))
    assert ends["accepted"] and ends["finished"] and ends["refused"]
