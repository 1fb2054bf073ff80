"""What random settings, command lines and damage have brought to light, each by itself."""

import errno
import json
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from raft_diffusion import assemble, images, jobs
from raft_diffusion.checks import check
from raft_diffusion.cli import advice_on
from raft_diffusion.core.evaluated import read_evaluation
from raft_diffusion.core.files import read_text, within
from raft_diffusion.core.rows import is_number
from raft_diffusion.core.store import RunFolder
from raft_diffusion.diffusion.pictures import PictureCodec
from raft_diffusion.llm.checks import check as check_text
from raft_diffusion.lora.card import has_preview
from raft_diffusion.lora.file import read_lora
from raft_diffusion.report.reader import Reader
from raft_diffusion.runs import is_finished
from raft_diffusion.sd15.checkpoint import read_header
from raft_diffusion.sd15.source import resolve_model

FUZZ = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("fuzzing.py"))))
LONG = "a" * 5000
ROW = {"base": 1.0, "tuned": 2.0, "difference": 1.0, "ci95": [0.5, 1.5], "oracle": 3.0, "pairs": 2}
PAIR = {"text": "a cat", "before": "before/0.png", "after": "after/0.png"}
WHOLE = {"settings": {}, "judge": {}, "rewards": {"aesthetic": ROW}, "examples": [PAIR]}


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


@pytest.mark.parametrize("name", [LONG, f"{LONG}/b", "~nobody-of-this-name/x"])
def test_a_name_that_no_file_can_have_is_no_file(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = jobs.load_config("pocket-monet")
    for key in ("rewards.scorer", "rewards.held_out"):
        with pytest.raises(ValueError, match="no CLIP tower"):
            check(config.with_overrides([f"{key}={name}"]))
    if name != f"{LONG}/b":  # that may be one of the hub's
        with pytest.raises(ValueError, match="no model at"):
            resolve_model(name)
    with pytest.raises(ValueError, match=r"(cannot be read \(File name too long\)|there is no thing)"):
        read_text(Path(name), what="thing", advice="give another")
    text = jobs.load_config("pocket-reviews")
    with pytest.raises(ValueError, match="examples file"):
        check_text(text.with_overrides([f"prompts.reference={name}"]))


@pytest.mark.parametrize(
    "line",
    [
        f"evaluate {LONG}", f"report {LONG}", f"export {LONG}", f"rank {LONG}", f"inspect {LONG}", f"score {LONG}",
        f"sample cat --lora {LONG}", f"sample cat --out {LONG}", f"merge pocket {LONG} --out x", f"train {LONG}.toml",
        f"score . --reward compressibility --csv {LONG}", f"plan pocket-monet --generator folder:{LONG}",
        "merge ~nobody-of-this-name/x ~nobody-of-this-name/y --out ~nobody-of-this-name/z",
    ],
)  # fmt: skip
def test_such_a_name_is_refused_by_every_command(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert FUZZ.command(line.split())[0] == "refused"


def test_a_refusal_stays_on_one_line_whatever_names_it_holds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    end, sentence = FUZZ.command(["score", "two\nlines\x1b[31m\u202e.png"])
    assert (end, "two\\nlines\\x1b[31m\\u202e.png" in sentence) == ("refused", True)
    end, sentence = FUZZ.command(["presets", LONG])
    assert (end, len(sentence) < 1000, "... (500" in sentence) == ("refused", True, True)


def test_an_error_of_the_system_is_told_in_words():
    told = advice_on(OSError(errno.ENAMETOOLONG, "File name too long", "x.txt"))
    assert told == "x.txt cannot be used (file name too long); give another file or folder"


def test_doctor_shows_a_name_with_half_a_character(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert FUZZ.command(["doctor", "--model", "half\udcff\x1b[31m"])[0] == "finished"


@pytest.mark.parametrize("line", ["evaluate run", "evaluate run --each-round", "evaluate run --beside run"])
def test_a_refused_evaluation_leaves_no_lock(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text('name = "x"\n[prompts]\ntrain = ["a cat"]\n')
    assert FUZZ.command(line.split())[0] == "refused"
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.toml"]


@pytest.mark.parametrize(
    "damage",
    [
        "[]", "", "{", '{"settings": {}}', "[" * 5000, b"\xff",
        {"judge": []}, {"rewards": {"aesthetic": 1}}, {"rewards": {"aesthetic": {**ROW, "ci95": [1]}}},
        {"rewards": {"aesthetic": {**ROW, "base": 10**400}}}, {"rewards": {"aesthetic": {**ROW, "oracle": "1"}}},
        {"examples": {}}, {"examples": [{**PAIR, "after": 1}]}, {"diversity": {"base": None}}, {"curve": {"a": 1}},
    ],
)  # fmt: skip
def test_a_damaged_evaluation_is_named_and_made_again(run, damage):
    path = run / "evaluation" / "evaluation.json"
    content = json.dumps(WHOLE | damage) if isinstance(damage, dict) else damage
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=r"evaluation\.json"):
        read_evaluation(run)
    reached = []
    with pytest.MonkeyPatch.context() as patch:

        def again(config, root, *_):
            reached.append(root)
            raise FUZZ.Reached

        patch.setattr("raft_diffusion.training.run_rounds", again)
        assert FUZZ.command(["train", str(run / "config.toml"), "--out", str(run)])[0] == "accepted"
    assert reached == [run]


def test_a_whole_evaluation_is_read(run):
    assert read_evaluation(run) is not None
    (run / "evaluation" / "evaluation.json").write_text(json.dumps(WHOLE))
    assert read_evaluation(run) == WHOLE
    (run / "evaluation" / "evaluation.json").unlink()
    assert read_evaluation(run) is None


def test_an_example_outside_its_folder_is_not_shown(tmp_path):
    for name in ("evaluation/a.png", "b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    assert has_preview(tmp_path, {"examples": [{"before": "a.png", "after": "a.png"}]})
    for outside in ("../b.png", str(tmp_path / "b.png"), "a\0.png"):
        assert not has_preview(tmp_path, {"examples": [{"before": "a.png", "after": outside}]})
    assert within(tmp_path, "evaluation/a.png") == (tmp_path / "evaluation" / "a.png").resolve()


def test_a_broken_picture_of_a_run_is_named(tmp_path):
    Image.effect_noise((32, 32), 50).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])
    with pytest.raises(ValueError, match=r"the picture .*a\.png is broken"):
        images.read_own(tmp_path / "a.png")


@pytest.mark.parametrize(
    "latent", [torch.zeros(4, 4), torch.full((4, 4, 4), float("nan")), torch.zeros(4, 4, 4, dtype=torch.float64), None]
)
def test_damaged_latents_are_named(tmp_path, latent):
    Image.new("RGB", (32, 32)).save(tmp_path / "x.png")
    if latent is None:
        (tmp_path / "latents.safetensors").write_bytes(b"\xff" * 100)
    else:
        save_file({"x": latent}, tmp_path / "latents.safetensors")
    with pytest.raises(ValueError, match=r"latents\.safetensors"):
        PictureCodec().read_samples(tmp_path, [{"id": "x", "file_name": "x.png"}])


def test_a_damaged_adapter_is_named(run):
    adapter = run / "rounds" / "001" / "adapter"
    policy = assemble.make_policy(jobs.config_of(run / "config.toml"))
    policy.load(adapter)
    file = adapter / "pytorch_lora_weights.safetensors"
    tensors, text = load_file(file), file.read_bytes()
    file.write_bytes(text[:-4] + b"\xff" * 4)  # the last of the weights is no number
    with pytest.raises(ValueError, match=r"weights\.safetensors holds numbers that are not finite"):
        policy.load(adapter)
    for metadata in ("{", "[]", "1", "[" * 5000):
        save_file(tensors, file, metadata={"lora_adapter_metadata": metadata})
        with pytest.raises(ValueError, match=r"weights\.safetensors has a broken lora_adapter_metadata"):
            policy.load(adapter)


@pytest.mark.parametrize(("file", "key"), [("round.json", "figures"), ("winners/metadata.jsonl", "weight")])
def test_a_round_without_its_numbers_is_named(run, file, key):
    path = run / "rounds" / "001" / file
    row = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(row | {key: "many"}) + "\n")
    with pytest.raises(ValueError, match=f"{path.name}.*{key}"):
        RunFolder(run, codec=PictureCodec()).resume(SimpleNamespace(load=lambda folder: None))


def test_an_integer_that_no_float_holds_is_no_number():
    assert is_number(10**300) and not is_number(10**400) and not is_number(-(10**400))


def test_the_report_notes_a_number_of_too_many_digits(tmp_path):
    (tmp_path / "config.toml").write_text(f"rounds = {'9' * 5000}\n")
    reader = Reader(tmp_path)
    assert reader.toml("config.toml") == {}
    assert any("config.toml is no valid TOML" in note for note in reader.notes)


def test_a_finished_run_is_still_finished(run):
    assert is_finished(jobs.config_of(run / "config.toml"), 1, run)


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]},
        {"dtype": "F32", "shape": [2], "data_offsets": [-8, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 16]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
    ],
)
def test_a_header_that_does_not_fit_its_data_is_refused(tmp_path, change):
    path = tmp_path / "a.safetensors"
    for metadata in ({"format": "pt"}, {"format": 1}, {"format": "\ud800"}):
        entry = change if metadata == {"format": "pt"} else {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
        header = json.dumps({"__metadata__": metadata, "a": entry}).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
        with pytest.raises(ValueError, match=r"a\.safetensors is no \.safetensors file, or it is broken"):
            read_header(path)


def test_a_lora_whose_alpha_cannot_be_read_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    name = "lora_unet_mid_block_attentions_0_proj_in"
    save_file(
        {f"{name}.alpha": torch.tensor(1.0), f"{name}.lora_down.weight": torch.ones(1, 4)}
        | {f"{name}.lora_up.weight": torch.ones(4, 1)},
        path,
    )
    assert read_lora(path).alpha == 1
    path.write_bytes(path.read_bytes().replace(b'"shape":[1,4]', b'"shape":[1,5]'))
    with pytest.raises(ValueError, match=r"a\.safetensors is no \.safetensors file, or it is broken"):
        read_lora(path)
