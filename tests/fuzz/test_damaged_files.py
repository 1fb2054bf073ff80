"""Whatever happens to a file, the commands that read it do without it, or refuse it by its name and change nothing."""

import json
import os
import re
import runpy
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from raft_diffusion import assemble, jobs, training
from raft_diffusion.core.store import RunFolder
from raft_diffusion.diffusion.lora_weights import load_weights
from raft_diffusion.lora.file import find_lora, read_lora
from raft_diffusion.report import watch
from raft_diffusion.review import server
from raft_diffusion.review.desk import Desk

FUZZ = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("fuzzing.py"))))
QUICK, WHOLE = 40, 500
CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
LORA = "pytorch_lora_weights.safetensors"
ROUND = "run/rounds/001"
RESUME, ATTACH = "(resume)", "(attach)"
GO_ON = ("train run/config.toml --out run", "train run/config.toml --out run --set rounds=2 --set stop_when_flat=1")
OF_LORA = ("inspect {}", "sample cat --lora {}", "merge pocket {} --out merged", "train tiny.toml --lora {} --out new")
READERS: dict[str, tuple[str, ...]] = {
    "run/config.toml": (
        *("report run", "export run --out pocket-x.safetensors", "rank run", "evaluate run", "review run", "watch run"),
        *("sample cat --run run", "merge pocket run --out merged", "plan run/config.toml", *GO_ON),
        "evaluate run --beside other",
    ),
    "run/metrics.jsonl": ("report run", "watch run", *GO_ON),
    "run/environment.json": ("report run", "export run --out pocket-x.safetensors", *GO_ON),
    "run/evaluation/evaluation.json": ("report run", "export run --out pocket-x.safetensors", *GO_ON),
    "run/guard.json": ("report run", "export run --out pocket-x.safetensors", "sample --run run", *GO_ON),
    "run/start/guard.json": ("report run", *GO_ON),
    f"{ROUND}/guard.json": ("report run", "export run --out pocket-x.safetensors", *GO_ON),
    f"{ROUND}/round.json": ("report run", "rank run", *GO_ON, RESUME),
    f"{ROUND}/time.json": ("report run", *GO_ON),
    f"{ROUND}/choices.json": ("review run", "report run", *GO_ON),
    f"{ROUND}/candidates/metadata.jsonl": (
        *("rank run", "rank run --weight aesthetic=1 --out best", "report run", "review run", *GO_ON),
        "export run --out pocket-x.safetensors",
        f"score {ROUND}/candidates --reward compressibility",
        f"rank {ROUND}/candidates --reward compressibility",
    ),
    f"{ROUND}/candidates/first.png": (
        f"score {ROUND}/candidates --reward compressibility",
        f"rank {ROUND}/candidates --reward incompressibility --out best",
        "report run",
        "rank run --out best",
    ),
    f"{ROUND}/winners/metadata.jsonl": (RESUME, *GO_ON),
    f"{ROUND}/winners/first.png": (RESUME, "report run"),
    f"{ROUND}/winners/latents.safetensors": (RESUME,),
    f"{ROUND}/adapter/{LORA}": (
        RESUME,
        "export run --out pocket-x.safetensors",
        *(o.format("run") for o in OF_LORA[1:]),
    ),
    "run/evaluation/before/000.png": ("report run", "export run --out pocket-x.safetensors"),
    "lora.safetensors": (*(one.format("lora.safetensors") for one in OF_LORA), ATTACH),
    "kohya.safetensors": (*(one.format("kohya.safetensors") for one in OF_LORA), ATTACH),
    "peft/adapter_config.json": tuple(one.format("peft") for one in OF_LORA[1:]),
    "peft/adapter_model.safetensors": (*(one.format("peft") for one in OF_LORA[1:]), ATTACH),
    **{
        f"pictures/{name}": (
            "score pictures --reward compressibility",
            "rank pictures --reward incompressibility --out best",
            "plan tiny.toml --generator folder:pictures",
            f"score pictures/{name} --reward compressibility --prompt cat",
        )
        for name in ("a.png", "b.jpg", "c.webp", "d.png")
    },
    "pictures/metadata.jsonl": (
        "score pictures --reward compressibility",
        "rank pictures --reward incompressibility",
        "plan tiny.toml --generator folder:pictures",
    ),
    "tiny.toml": ("plan tiny.toml", "train tiny.toml --out new"),
    "prompts.csv": ("plan tiny.toml --prompts prompts.csv", "sample prompts.csv"),
    "prompts.toml": ("plan tiny.toml --prompts prompts.toml", "sample prompts.toml"),
    "text.jsonl": ("plan text.toml --prompts text.jsonl", "train text.toml --prompts text.jsonl --out new"),
}
TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:e[+-]?\d+)?|true|false|null|\[\]|\{\}')
TOKENS = (
    *(b"null", b"true", b"0", b"-1", b"1e999", b"NaN", b"-Infinity", b"1" * 400, b"1" * 5000, b"0.5", b"[]", b"{}"),
    *(
        b'""',
        b'"../../../letter.txt"',
        b'"/etc/passwd"',
        b'"a\\nb"',
        b'"\\u0000"',
        b'"\\ud800"',
        b'"\\u202e<b>"',
        b"[1]",
    ),
    *(b'{"a": 1}', b'["a", "b"]', b"[" * 5000, b'"' + b"a" * 3000 + b'"', b"inf", b"1979-05-27"),
)
Damage = Callable[[bytes, list[bytes]], bytes]


@st.composite
def damages(draw: st.DrawFn) -> tuple[str, Damage]:
    """(what it is, the damage): places are shares of the length, so that one damage fits every file."""
    kind = draw(
        st.sampled_from(("token", "token", "token", "cut", "flip", "insert", "zero", "lose", "other", "length"))
    )
    start, size = draw(st.floats(0, 1)), draw(st.sampled_from((1, 2, 8, 64, 1000)))
    if kind == "token":
        token = draw(st.sampled_from(TOKENS))
        return f"{token[:20]!r} at {start}", lambda text, _: _replace_token(text, start, token)
    if kind == "cut":
        return f"cut at {start}", lambda text, _: text[: int(start * len(text))]
    if kind == "flip":
        bits = draw(st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), min_size=1, max_size=20))
        return f"flip {bits}", lambda text, _: _flip(text, bits)
    if kind == "insert":
        more = draw(st.binary(min_size=1, max_size=40))
        return f"insert {more!r} at {start}", lambda text, _: text[: (at := int(start * len(text)))] + more + text[at:]
    if kind == "zero":
        return f"zero {size} at {start}", lambda text, _: _over(text, int(start * len(text)), bytes(size))
    if kind == "lose":
        return f"lose {size} at {start}", lambda text, _: text[: (at := int(start * len(text)))] + text[at + size :]
    if kind == "length":
        number = draw(st.sampled_from((0, 1, 7, 2**20, 2**31, 2**40, 2**63, 2**64 - 1)))
        return f"length {number}", lambda text, _: number.to_bytes(8, "little") + text[8:]
    return f"other {start}", lambda text, others: others[int(start * (len(others) - 1))]


def _replace_token(text: bytes, start: float, token: bytes) -> bytes:
    """One value of a JSON or TOML file is another; of a LoRA, in its header."""
    found = list(TOKEN.finditer(text[:200_000]))
    if not found:
        return text
    at = found[int(start * (len(found) - 1))]
    changed = text[: at.start()] + token + text[at.end() :]
    if text[8:9] == b"{" and text[:1] != b"{":  # the header's length comes first
        length = int.from_bytes(text[:8], "little") + len(changed) - len(text)
        return length.to_bytes(8, "little") + changed[8:]
    return changed


def _flip(text: bytes, bits: list[tuple[float, int]]) -> bytes:
    changed = bytearray(text)
    for share, bit in bits if text else []:
        changed[int(share * (len(text) - 1))] ^= bit
    return bytes(changed)


def _over(text: bytes, at: int, block: bytes) -> bytes:
    return (text[:at] + block + text[at + len(block) :])[: len(text)]


@pytest.fixture(scope="module")
def pristine(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("pristine") / "here"
    shutil.copytree(finished, here / "run")
    for part in ("candidates", "winners"):
        folder = here / ROUND / part
        name = min(path.name for path in folder.glob("*.png"))
        (folder / "first.png").symlink_to(name)
    tiny = (finished.parent / "tiny.toml").read_text()
    (here / "tiny.toml").write_text(
        tiny.replace("monet style cat", "a cat").replace("samples_per_prompt = 4", "samples_per_prompt = 2")
    )
    (here / "text.toml").write_text(re.sub("per_round = .*", "", (jobs.PRESETS / "pocket-sums.toml").read_text()))
    (here / "prompts.csv").write_text('prompt,weight,negative_prompt\nmonet style cat,2,"a, b"\na dog,1,\n')
    (here / "prompts.toml").write_text(
        '[[prompt]]\ntext = "monet style cat"\nweight = 2.0\n[[prompt]]\ntext = "a dog"\n'
    )
    (here / "text.jsonl").write_text('{"prompt": "2+2=", "answer": "4"}\n{"prompt": "1+2=", "answer": "3"}\n')
    (here / "letter.txt").write_text("dear\n")
    (here / "pictures").mkdir()
    for number, name in enumerate(("a.png", "b.jpg", "c.webp", "d.png")):
        image = Image.effect_noise((40, 30), 60).convert("RGB" if number < 3 else "P")
        image.save(here / "pictures" / name, exif=Image.Exif())
    rows = [{"file_name": name, "text": "a cat"} for name in ("a.png", "b.jpg", "c.webp", "d.png")]
    (here / "pictures" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copytree(finished, here / "other")
    source = finished / "lora" / LORA
    shutil.copyfile(source, here / "lora.safetensors")
    FUZZ.command(
        ["export", str(finished), "--out", str(here / "pocket-kohya.safetensors"), "--no-preview", "--no-card"]
    )
    (here / "pocket-kohya.safetensors").rename(here / "kohya.safetensors")
    (here / "pocket-kohya.json").unlink()
    tensors = {f"base_model.model.{name.removeprefix('unet.')}": t for name, t in load_file(source).items()}
    (here / "peft").mkdir()
    save_file(tensors, here / "peft" / "adapter_model.safetensors")
    (here / "peft" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 1}))
    return here


@pytest.fixture
def here(pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(pristine, tmp_path / "here", symlinks=True)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture(scope="module")
def policy(finished: Path) -> Any:
    return assemble.make_policy(jobs.config_of(finished / "config.toml"))


@pytest.fixture(scope="module")
def base(finished: Path) -> Any:
    return assemble.make_base(jobs.config_of(finished / "config.toml"))


def stop_here(*_: object, **__: object) -> None:
    raise FUZZ.Reached


def no_server(root: Path, *, index: int | None = None, port: int = 0) -> None:
    desk = Desk(root, index)
    desk.show()
    desk.finished()
    raise FUZZ.Reached


@pytest.fixture(autouse=True)
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """What loads a model or serves a page ends the example instead."""
    monkeypatch.setattr(training, "run_rounds", stop_here)
    monkeypatch.setattr(assemble, "prepare", stop_here)
    monkeypatch.setattr(server, "ReviewServer", no_server)
    keep_up = watch.watch
    monkeypatch.setattr(watch, "watch", lambda run, **more: keep_up(run, **more, sleep=stop_here))


def reading(name: str, reader: str, policy: Any, base: Any) -> tuple[str, str]:
    """How the reader of a file ends, and its sentence."""
    if reader not in (RESUME, ATTACH):
        return FUZZ.command(reader.split())
    with warnings.catch_warnings(), FUZZ.limited():
        warnings.simplefilter("ignore")
        try:
            if reader == RESUME:
                RunFolder(Path("run"), codec=assemble.make_codec()).resume(policy)
            else:
                lora = Path(name).parent if name.startswith("peft") else Path(name)
                load_weights(read_lora(find_lora(lora)), base.components)
        except ValueError as error:
            FUZZ.check_sentence(error, FUZZ.one_line(str(error)))
            return "refused", str(error)
    return "finished", ""


def outcome(name: str, reader: str, damage: Damage, here: Path, pristine: Path, policy: Any, base: Any) -> str:
    path = (here / name).resolve()
    whole = path.read_bytes()
    others = [(pristine / other).read_bytes() for other in ("letter.txt", "pictures/b.jpg", "lora.safetensors")]
    path.write_bytes(damage(whole, [*others, b"", b"{}", b"[]", b"\x80\x04K\x01."]))
    before = FUZZ.contents(here)
    try:
        end, sentence = reading(name, reader, policy, base)
        after = FUZZ.contents(here)
    finally:
        if FUZZ.contents(here) == before:
            path.write_bytes(whole)
        else:
            shutil.rmtree(here)
            shutil.copytree(pristine, here, symlinks=True)
            os.chdir(here)
    if end == "refused":
        changed = sorted(file for file in before.keys() | after.keys() if before.get(file) != after.get(file))
        assert not changed, f"refused, and changed {changed}"
        assert path.name in sentence or path.parent.name in sentence, sentence
    return end


READINGS = [(name, reader) for name, readers in READERS.items() for reader in readers]


def check_files(ends: Any, count: int, here: Path, pristine: Path, policy: Any, base: Any) -> None:
    @settings(max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=CHECKS)
    @given(file=st.sampled_from(READINGS), damage=damages())
    def each(file: tuple[str, str], damage: tuple[str, Damage]) -> None:
        ends[outcome(*file, damage[1], here, pristine, policy, base)] += 1

    each()


def test_any_damage(here, pristine, policy, base):
    check_files(FUZZ.Ends(), QUICK, here, pristine, policy, base)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "reader"), READINGS)
def test_a_whole_file_is_read(here, pristine, policy, base, name, reader):
    assert outcome(name, reader, lambda text, _: text, here, pristine, policy, base) in ("finished", "accepted")


@pytest.mark.slow
def test_much_damage(here, pristine, policy, base, capsys):
    ends = FUZZ.Ends()
    check_files(ends, WHOLE, here, pristine, policy, base)
    with capsys.disabled():
        print(ends.told("damaged files"))
    assert ends["accepted"] and ends["finished"] and ends["refused"]
