"""Any settings at all are taken, or refused in one sentence; what is taken reads back as it is."""

import io
import runpy
import tomllib
import types
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from rich.console import Console

from raft_diffusion import jobs
from raft_diffusion.commands import plan
from raft_diffusion.core.config import Config
from raft_diffusion.llm.config import TextConfig
from raft_diffusion.modality import modality_of

FUZZ = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("fuzzing.py"))))
PRESETS = sorted(path.stem for path in jobs.PRESETS.glob("*.toml"))
QUICK, WHOLE = 60, 500  # examples of each of the two tests
CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


def leaves(kind: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """Every setting by its dotted key, with its type; and every section."""
    found = {}
    for name, field in kind.model_fields.items():
        found[prefix + name] = field.annotation
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found |= leaves(field.annotation, f"{prefix}{name}.")
    return found


KEYS = {Config: leaves(Config), TextConfig: leaves(TextConfig)}
WORDY = {kind: sorted(key for key, type_ in known.items() if "str" in str(type_)) for kind, known in KEYS.items()}
GOOD = {
    "device": ("auto", "cpu", "cuda", "mps", "cuda:1"),
    "sampling.scheduler": ("Euler a", "DPM++ 2M", "DDIM", "LCM", "TCD", "Euler"),
    "rewards.held_out": ("pocket-held-out", "pickscore", "hpsv2.1", "ViT-B-32:laion2b_s34b_b79k"),
    "rewards.weights": ({"aesthetic": 1.0}, {"human": 1.0}, {"compressibility": -1.0, "log_ratio": 0.1}),
    "sampling.sources": ({"policy": 1.0}, {"folder:.": 1.0, "policy": 2.0}, {"a:b": 1.0}),
    "rewards.sources": ({"aesthetic_v2": "head.pth"},),
    "prompts.template": ("a photo of {}",),
    "guard.reward": ("pocket-held-out", "pickscore", "exact"),
    "model": ("pocket", "pocket-sums", "a/b", "model.safetensors"),
}


def typed(annotation: Any) -> st.SearchStrategy[Any]:
    """Values of this type, in and out of their range."""
    if get_origin(annotation) is Annotated:
        return typed(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return st.sampled_from(get_args(annotation))
    if get_origin(annotation) in (Union, types.UnionType):
        return st.one_of(*(typed(kind) for kind in get_args(annotation) if kind is not type(None)))
    if get_origin(annotation) is list:
        return st.lists(typed(get_args(annotation)[0]), max_size=4)
    if get_origin(annotation) is dict:
        return st.dictionaries(FUZZ.words, typed(get_args(annotation)[1]), max_size=3)
    plain = {
        bool: st.booleans(),
        int: st.integers(-1, 12) | st.sampled_from((16, 32, 64, 512, 4096, 10_000, 1_000_000)),
    }
    plain |= {float: st.floats(0, 1) | st.floats(-1, 100), str: FUZZ.words}
    if annotation in plain:
        return plain[annotation] | FUZZ.numbers.filter(lambda n: annotation is float or type(n) is annotation)
    return FUZZ.values


def near(key: str, place: int) -> str:
    """The key with a letter left out, or twice."""
    at = place % len(key)
    return key[:at] + (key[at + 1 :] if place % 2 else key[at] + key[at:])


@st.composite
def changes(draw: st.DrawFn, kind: type) -> tuple[str, Any]:
    known = KEYS[kind]
    key = draw(st.sampled_from(WORDY[kind]) | st.sampled_from(sorted(known)))
    form = draw(st.integers(0, 15))
    if form < 4 and key in GOOD:
        return key, draw(st.sampled_from(GOOD[key]))
    if form < 11:
        return key, draw(typed(known[key]))
    if form == 11:
        return near(key, draw(st.integers(0, 40))), draw(typed(known[key]))
    if form == 12:
        return f"{key}.{draw(FUZZ.words)}", draw(FUZZ.values)
    if form == 13:
        return draw(FUZZ.words), draw(FUZZ.values)
    return key, draw(FUZZ.values)


@st.composite
def jobs_and_changes(draw: st.DrawFn) -> tuple[str, list[tuple[str, Any]]]:
    preset = draw(st.sampled_from(PRESETS))
    kind = TextConfig if isinstance(jobs.load_config(preset), TextConfig) else Config
    return preset, draw(st.lists(changes(kind), min_size=1, max_size=draw(st.sampled_from((1, 1, 3)))))


def outcome(source: str, texts: list[str]) -> str:
    """What `plan` makes of it. What it takes is written into a run's folder and read back, so it must come back."""
    with warnings.catch_warnings(), FUZZ.limited():
        warnings.simplefilter("ignore")  # notes for a person
        try:
            config = jobs.load_config(source, changes=texts)
            modality_of(config).check(config)
            folder = jobs.default_folder(config)
            show = plan._of_pictures if isinstance(config, Config) else plan._of_texts
            show(config, Console(file=io.StringIO(), width=120), folder, measured=False)
            modality_of(config).outlook(config)
        except ValueError as error:
            FUZZ.check_sentence(error, FUZZ.one_line(str(error)))
            return "refused"
    kind = type(config)
    assert kind._validated(tomllib.loads(config.to_toml()), "what is read back") == config
    config.to_toml().encode()
    return "accepted"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("here")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def text_of(key: str, value: Any, bare: bool) -> str:
    return f"{key}={value if bare and isinstance(value, str) else FUZZ.to_toml(value)}"


def check_changes(ends: Any, count: int) -> None:
    @settings(max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=CHECKS)
    @given(job=jobs_and_changes(), bare=st.booleans())
    def each(job: tuple[str, list[tuple[str, Any]]], bare: bool) -> None:
        preset, pairs = job
        ends[outcome(preset, [text_of(key, value, bare) for key, value in pairs])] += 1

    each()


def put(table: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        inner = table.setdefault(section, {})
        table[section] = table = inner if isinstance(inner, dict) else {}
    table[name] = value


def check_files(ends: Any, count: int, here: Path) -> None:
    @settings(max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=CHECKS)
    @given(job=jobs_and_changes(), left_out=st.lists(st.sampled_from(sorted(KEYS[Config])), max_size=2))
    def each(job: tuple[str, list[tuple[str, Any]]], left_out: list[str]) -> None:
        preset, pairs = job
        table = tomllib.loads((jobs.PRESETS / f"{preset}.toml").read_text(encoding="utf-8"))
        for key, value in pairs:
            put(table, key, value)
        for key in left_out:
            table.pop(key, None)
        text = "".join(f"{FUZZ.to_toml(key)} = {FUZZ.to_toml(value)}\n" for key, value in table.items())
        (here / "mine.toml").write_bytes(text.encode("utf-8", "surrogatepass"))
        ends[outcome("mine.toml", [])] += 1

    each()


def test_any_changes(here):
    check_changes(FUZZ.Ends(), QUICK)


def test_any_file(here):
    check_files(FUZZ.Ends(), QUICK, here)


@pytest.mark.slow
def test_many_changes(here, capsys):
    ends = FUZZ.Ends()
    check_changes(ends, WHOLE)
    with capsys.disabled():
        print(ends.told("--set"))
    assert ends["accepted"] and ends["refused"]


@pytest.mark.slow
def test_many_files(here, capsys):
    ends = FUZZ.Ends()
    check_files(ends, WHOLE, here)
    with capsys.disabled():
        print(ends.told("config.toml"))
    assert ends["accepted"] and ends["refused"]
