"""Candidates from folders and programs: how contests are shared out, what is refused, what a run keeps of them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from raft_diffusion import cli
from raft_diffusion.core.config import Config
from raft_diffusion.core.prompts import draw_round
from raft_diffusion.core.records import Draw, Prompt, Sample
from raft_diffusion.gallery import captioned
from raft_diffusion.planning.forecast import forecast
from raft_diffusion.planning.machine import Machine
from raft_diffusion.planning.nfe import evaluations, sampling_rows
from raft_diffusion.sources import MixedPolicy, _from_function, check_sources, counts, shared_out

TINY = """
name = "tiny"
rounds = 2
threads = 1
device = "cpu"
[prompts]
train = ["monet style cat", "monet style dog"]
[sampling]
width = 32
height = 32
num_inference_steps = 2
guidance_scale = 1.0
samples_per_prompt = 4
groups_per_prompt = 2
batch_size = 4
[rewards]
weights = { incompressibility = 1.0 }
custom = []
[tuning]
rank = 2
alpha = 2
steps = 2
batch_size = 2
[guard]
enabled = false
[evaluation]
pairs = 2
ood_pairs = 0
best_of = 2
"""
GENERATORS = """
from PIL import Image

def draw(prompts, seeds):
    assert len(prompts) == len(seeds) <= 4
    return [Image.new("RGBA", (40, 30), (seed % 256, len(prompt), 0, 255)) for prompt, seed in zip(prompts, seeds)]

def breaks(prompts, seeds):
    raise KeyError("no quota")

def too_few(prompts, seeds):
    return [Image.new("RGB", (8, 8))]

def words(prompts, seeds):
    return ["a.png" for _ in prompts]

def nothing(prompts, seeds):
    return None
"""


def save(path: Path, level: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise((48, 40), 40 + level).convert("RGB").save(path)


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Eight pictures of either prompt: of the one in a folder that is called so, of the other in metadata.jsonl."""
    folder = tmp_path / "pictures"
    for number in range(8):
        save(folder / "monet style cat" / f"{number}.png", number)
        save(folder / f"dog-{number}.jpg", number)
    rows = [{"file_name": f"dog-{number}.jpg", "prompt": "monet style dog"} for number in range(8)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_generators", raising=False)
    (tmp_path / "my_generators.py").write_text(GENERATORS)
    return tmp_path


def config(*sources: str, **changes: object) -> Config:
    shares = "{ " + ", ".join(f"'{source}' = 1.0" for source in sources) + " }"
    return Config.parse(TINY).with_overrides(
        [f"sampling.sources={shares}", *(f"{key.replace('__', '.')}={value}" for key, value in changes.items())]
    )


def command(*arguments: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["raft-diffusion", *map(str, arguments)])
        cli.main()


# --- sharing out ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shares", "k", "expected"),
    [
        ({"policy": 1.0}, 8, {"policy": 8}),
        ({"policy": 0.5, "b": 0.5}, 8, {"policy": 4, "b": 4}),
        ({"a": 1.0, "b": 1.0, "c": 1.0}, 8, {"a": 3, "b": 3, "c": 2}),  # 2.67 each: two are rounded up
        ({"a": 3.0, "b": 1.0}, 6, {"a": 5, "b": 1}),  # 4.5 and 1.5: the first of equals
        ({"a": 0.2, "b": 0.7}, 9, {"a": 2, "b": 7}),
    ],
)
def test_the_largest_remainders_are_rounded_up(shares, k, expected):
    assert counts(shares, k) == expected


def test_a_source_that_would_make_nothing_is_refused():
    with pytest.raises(ValueError, match=r"sampling\.sources: b would make none of the 4 candidates of a contest"):
        counts({"a": 0.9, "b": 0.1}, 4)


def test_every_contest_is_shared_out_in_the_same_way(pictures):
    mixed = config("policy", f"folder:{pictures}")
    drawn = draw_round(mixed.train_prompts(), index=1, seed=0, per_round=None, k=4, groups_per_prompt=2)
    draws = shared_out(drawn, mixed, 1)
    assert [draw.id for draw in draws] == [draw.id for draw in drawn]
    assert [draw.seed for draw in draws] == [draw.seed for draw in drawn]
    assert [draw.source for draw in draws] == ["policy", "policy", f"folder:{pictures}", f"folder:{pictures}"] * 4
    assert all(bool(draw.item) == (draw.source != "policy") for draw in draws)


def test_a_round_takes_no_picture_twice_and_each_round_draws_anew(pictures):
    alone = config(f"folder:{pictures}", sampling__samples_per_prompt=2)

    def items(index: int) -> list[str]:
        drawn = draw_round(alone.train_prompts(), index=index, seed=0, per_round=None, k=2, groups_per_prompt=2)
        return [draw.item for draw in shared_out(drawn, alone, index)]

    rounds = [items(index) for index in range(1, 31)]
    assert all(len(set(some)) == 8 for some in rounds)
    assert all(name.startswith("monet style cat/") for some in rounds for name in some[:4])
    assert all(name.startswith("dog-") for some in rounds for name in some[4:])
    assert len({tuple(some) for some in rounds}) == 30
    assert len({name for some in rounds for name in some}) == 16  # by then each picture had its turn
    assert items(3) == rounds[2]


@pytest.mark.parametrize("size", [3, 5, 8])
def test_pictures_come_again_once_all_have_come_and_never_twice_in_a_contest(pictures, size):
    alone = config(f"folder:{pictures}", sampling__samples_per_prompt=size)
    drawn = draw_round(alone.train_prompts()[:1], index=1, seed=0, per_round=None, k=size, groups_per_prompt=8)
    items = [draw.item for draw in shared_out(drawn, alone, 1)]
    assert all(len(set(items[start : start + size])) == size for start in range(0, 8 * size, size))
    assert {items.count(name) for name in items} == {size}  # 8 contests of `size`, dealt from 8 pictures


def test_each_source_is_asked_for_its_own_and_the_order_is_kept():
    asked: dict[str, list[str]] = {}

    class Own:
        def generate(self, draws):
            asked["policy"] = [draw.id for draw in draws]
            return [Sample(draw, "own") for draw in draws]

    def other(draws):
        asked["a:b"] = [draw.id for draw in draws]
        return [Sample(draw, "other") for draw in draws]

    draws = [Draw(Prompt("cat"), k, k, source="a:b" if k % 3 == 1 else "policy") for k in range(5)]
    samples = MixedPolicy(Own(), {"a:b": other}).generate(draws)  # pyright: ignore[reportArgumentType]
    assert [sample.draw for sample in samples] == draws
    assert [sample.data for sample in samples] == ["own", "other", "own", "own", "other"]
    assert [len(ids) for ids in asked.values()] == [3, 2]


# --- folders ----------------------------------------------------------------------------------------------------------


def test_a_pictures_prompt_is_found_in_every_layout(tmp_path):
    for name in ("1.png", "2.png", "cat/3.png", "cat/4.png", "cat/10.png", ".hidden/5.png"):
        save(tmp_path / name)
    rows = [{"file_name": "1.png", "text": "dog"}, {"file_name": "cat/3.png", "text": "bird"}]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "2.txt").write_text("cat\n")
    found = {
        text: [path.relative_to(tmp_path).as_posix() for path in paths] for text, paths in captioned(tmp_path).items()
    }
    assert found == {"dog": ["1.png"], "cat": ["2.png", "cat/4.png", "cat/10.png"], "bird": ["cat/3.png"]}


def test_a_folder_without_prompts_is_refused(tmp_path):
    save(tmp_path / "1.png")
    with pytest.raises(ValueError, match=r"no picture of the folder .* has a prompt: name them in metadata\.jsonl"):
        captioned(tmp_path)


def test_what_is_not_there_or_too_little_is_refused_before_anything_is_loaded(pictures, tmp_path):
    def sentence(*sources: str, **changes: object) -> str:
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            check_sources(config(*sources, **changes))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "there is no folder of pictures" in sentence(f"folder:{tmp_path / 'gone'}")
    few = sentence(f"folder:{pictures}", sampling__samples_per_prompt=9)
    assert "holds 8 of the 9 different pictures of 'monet style cat' that a contest takes: add some" in few
    other = sentence(f"folder:{pictures}", prompts__train='["monet style cow"]')
    assert "holds no picture of 'monet style cow'; what it holds is of 'monet style " in other
    assert "the generator 'draw' must be written \"module:function\"" in sentence("draw")
    assert "sampling.base_share is a share of" in sentence(f"folder:{pictures}", sampling__base_share=0.5)
    check_sources(config(f"folder:{pictures}"))
    check_sources(config("policy", "my_generators:draw", f"folder:{pictures}"))


def test_a_share_must_be_a_number_above_zero():
    with pytest.raises(ValueError, match=r"sampling\.sources\.policy: input should be greater than 0"):
        Config.parse(TINY).with_overrides(["sampling.sources={ policy = 0.0 }"])


# --- the arithmetic ---------------------------------------------------------------------------------------------------

MACHINE = Machine(cores=1, memory=None, card=None, card_memory=None, apple=False, torch_cuda=None)


def test_pictures_from_elsewhere_take_no_evaluation_of_the_unet(pictures):
    own, half, none = config("policy"), config("policy", "a:b"), config(f"folder:{pictures}")
    images = 2 * 2 * 2 * 4  # rounds, prompts, groups, candidates
    plans = [forecast(each, machine=MACHINE) for each in (own, half, none)]
    assert [plan.images for plan in plans] == [images] * 3
    assert [plan.unet_evaluations for plan in plans] == [2 * images, images, 0]  # 2 steps a picture, no guidance
    assert [evaluations(each, 2).sampling for each in (own, half, none)] == [2 * images, images, 0]
    assert plans[0].seconds_per_round > plans[1].seconds_per_round > plans[2].seconds_per_round
    assert sampling_rows(none) == 1
    told = [note for note in plans[1].notes if "contest" in note]
    assert told == [
        "2 of the 4 candidates of a contest come from a:b, without the UNet; what a program of your own takes is not "
        "counted"
    ]


# --- programs ---------------------------------------------------------------------------------------------------------


class Whole:
    """Stands for the VAE: keeps the picture's size and its first pixel."""

    def picture(self, image, *, name, key=None):
        assert image.mode == "RGB"
        return image.size, image.getpixel((0, 0))


def test_a_program_is_asked_batch_by_batch_and_its_pictures_may_be_of_any_kind(here):
    told = []
    answer = _from_function("my_generators:draw", Whole(), 4, lambda *heard: told.append(heard))
    draws = [Draw(Prompt("cat"), k, 300 + k) for k in range(5)]
    assert [sample.data for sample in answer(draws)] == [((40, 30), (44 + k, 3, 0)) for k in range(5)]
    assert told == [("sample", 4, 5), ("sample", 5, 5)]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "breaks",
            r"generator 'my_generators:breaks' failed on the 2 from sample [0-9a-f]{10}-000 \('cat'\) on: KeyErr",
        ),
        ("too_few", r"generator 'my_generators:too_few' returned 1 for 2 prompts \(first sample: [0-9a-f]{10}-000\)"),
        (
            "words",
            r"generator 'my_generators:words' returned str for sample [0-9a-f]{10}-000 \('cat'\); it must be a PIL",
        ),
        ("nothing", r"generator 'my_generators:nothing' returned NoneType for 2 prompts"),
        ("missing", "the generator 'my_generators:missing': my_generators has no function 'missing'; it has"),
    ],
)
def test_a_faulty_program_is_told_by_its_sample(here, name, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        _from_function(f"my_generators:{name}", Whole(), 4, None)([Draw(Prompt("cat"), k, k) for k in range(2)])
    assert "\n" not in str(caught.value)


# --- whole runs -------------------------------------------------------------------------------------------------------


def rows(root: Path) -> list[dict]:
    paths = sorted(root.glob("rounds/*/candidates/metadata.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_a_run_of_mixed_experts_keeps_who_made_what_and_goes_on_to_the_same_end(pictures, here):
    (here / "tiny.toml").write_text(TINY)
    given = [
        "tiny.toml",
        "--generator",
        "policy",
        "--generator",
        "my_generators:draw",
        "--generator",
        f"folder:{pictures}",
    ]
    command("train", *given, "--out", "whole")
    command("train", *given, "--out", "parts", "--set", "rounds=1")
    command("train", *given, "--out", "parts")
    for name in ("rounds/002/adapter/pytorch_lora_weights.safetensors", "rounds/002/candidates/metadata.jsonl"):
        assert (here / "whole" / name).read_bytes() == (here / "parts" / name).read_bytes()

    kept = rows(here / "whole")
    assert [row["source"] for row in kept[:4]] == ["policy", "policy", "my_generators:draw", f"folder:{pictures}"]
    assert len(kept) == 32 and all(("item" in row) == (row["source"] == f"folder:{pictures}") for row in kept)
    page = (here / "whole" / "report.html").read_text(encoding="utf-8")
    assert f"from <bdi>{kept[3]['item']}</bdi>" in page and "from <bdi>my_generators:draw</bdi>" in page
    assert "my_generators:draw (share 1)" in page


def test_a_broken_picture_is_told_before_anything_is_written(pictures, here, capsys):
    broken = pictures / "monet style cat" / "7.png"
    broken.write_bytes(broken.read_bytes()[:200])
    (here / "tiny.toml").write_text(TINY)
    with pytest.raises(SystemExit) as stop:
        command("train", "tiny.toml", "--generator", f"folder:{pictures}", "--out", "run")
    assert stop.value.code == 2
    assert "7.png is broken or cannot be read" in capsys.readouterr().err
    assert not (here / "run").exists()


def test_importing_leaves_torch_out():
    code = "import sys, raft_diffusion.sources; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
