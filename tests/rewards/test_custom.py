"""A user's own function as a reward: what is found, what is refused, and with which sentence."""

import sys
from types import SimpleNamespace

import pytest

from raft_diffusion.core.loop import score
from raft_diffusion.core.records import Draw, Prompt, Sample
from raft_diffusion.rewards.custom import load_custom

MODULE = r"""
import numpy as np
import torch

LIMIT = 3

def brightness(images, prompts):
    assert len(images) == len(prompts)
    return [image / 10 + len(prompt) for image, prompt in zip(images, prompts)]

def numpy_array(images, prompts): return np.array(images, dtype=np.float32)
def numpy_scalars(images, prompts): return [np.int64(image) for image in images]
def torch_vector(images, prompts): return torch.tensor(images, dtype=torch.float64)
def torch_column(images, prompts): return torch.tensor(images, dtype=torch.float32)[:, None]
def torch_scalars(images, prompts): return tuple(torch.tensor(image) for image in images)

def one_number(images, prompts): return 0.5
def one_tensor(images, prompts): return torch.tensor(0.5)
def nothing(images, prompts): return None
def text(images, prompts): return "good"
def generator(images, prompts): return (1.0 for _ in images)

def texts(images, prompts): return ["good" for _ in images]
def truths(images, prompts): return np.array([True for _ in images])
def pairs(images, prompts): return torch.zeros(len(images), 2)
def not_a_number(images, prompts): return [float("nan") for _ in images]
def too_few(images, prompts): return [1.0]

def broken(images, prompts): return 1 / 0
def keyed(images, prompts): return {image: 1.0 for image in images}
def unordered(images, prompts): return {1.0, 2.0, 3.0}
def none_inside(images, prompts): return [None for _ in images]

def picky(images, prompts):
    if 5 in images:
        raise KeyError("no face\nfound")
    return [1.0 for _ in images]

def crowded(images, prompts):
    if len(images) > 1:
        raise MemoryError
    return [1.0]

def pictures_only(images): return [1.0 for _ in images]
def named(images, *, captions): return [1.0 for _ in images]

class Brightness:
    def __call__(self, images, prompts): return [1.0 for _ in images]

shining = Brightness()
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with my_rewards.py, made the current one; the import leaves no trace."""
    (tmp_path / "my_rewards.py").write_text(MODULE)
    (tmp_path / "my_broken.py").write_text("def f(:\n")
    (tmp_path / "my_script.py").write_text("import sys\nsys.exit('run me alone')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield tmp_path
    for name in ("my_rewards", "my_broken", "my_script"):
        sys.modules.pop(name, None)


def samples(count: int = 3) -> list[Sample]:
    prompt = Prompt("a cat")
    return [Sample(Draw(prompt, k, seed=k), SimpleNamespace(image=k + 1)) for k in range(count)]


def test_a_module_of_the_current_folder_scores_pictures_with_their_prompts(here):
    scored = score(samples(), [load_custom("my_rewards:brightness")])
    assert [item.scores for item in scored] == [{"brightness": pytest.approx(5 + k / 10)} for k in (1, 2, 3)]


def test_the_current_folder_is_put_on_the_path_once(here):
    load_custom("my_rewards:brightness")
    load_custom("my_rewards:texts")
    assert sys.path.count(str(here)) == 1


@pytest.mark.parametrize("name", ["numpy_array", "numpy_scalars", "torch_vector", "torch_column", "torch_scalars"])
def test_numpy_and_torch_numbers_become_plain_ones(here, name):
    scored = score(samples(), [load_custom(f"my_rewards:{name}")])
    assert [item.scores[name] for item in scored] == [1, 2, 3]
    assert all(type(item.scores[name]) is float for item in scored)


@pytest.mark.parametrize("name", ["my_rewards", "my_rewards:", ":brightness", "", "my_rewards.brightness", "a:b:c"])
def test_a_name_without_both_parts_is_refused(name):
    with pytest.raises(ValueError, match=r'must be written "module:function", such as my_rewards:brightness'):
        load_custom(name)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("no_such_module", "No module named .*; put no_such_module.py into the present folder, or install it"),
        ("my_reward", "No module named .*; did you mean my_rewards"),
        ("my_broken", "my_broken.py"),
        ("my_script", "SystemExit: run me alone"),
        (".up", "relative import"),
    ],
)
def test_a_module_that_cannot_be_imported_says_why(here, name, why):
    with pytest.raises(ValueError, match=rf"the reward '{name}:f': module '{name}' cannot be imported \(.*{why}"):
        load_custom(f"{name}:f")


@pytest.mark.parametrize(("name", "offered"), [("brightnes", "brightness"), ("LIMIT", "brightness, numpy_array")])
def test_a_function_that_is_not_there_is_answered_with_those_that_are(here, name, offered):
    with pytest.raises(ValueError, match=rf"my_rewards has no function '{name}'; it has {offered}"):
        load_custom(f"my_rewards:{name}")


@pytest.mark.parametrize("name", ["one_number", "one_tensor", "nothing", "text", "generator", "keyed", "unordered"])
def test_what_is_no_list_of_numbers_is_refused(here, name):
    reward, first = load_custom(f"my_rewards:{name}"), samples()[0].id
    with pytest.raises(ValueError, match=rf"reward 'my_rewards:{name}' returned .*{first} .* one number a picture"):
        score(samples(), [reward])


def test_what_came_back_is_told_with_its_kind(here):
    with pytest.raises(ValueError, match=r"returned \{1: 1.0, 2: 1.0, 3: 1.0\} \(dict\) for"):
        score(samples(), [load_custom("my_rewards:keyed")])
    with pytest.raises(ValueError, match=r"returned None for"):
        score(samples(), [load_custom("my_rewards:nothing")])


@pytest.mark.parametrize("name", ["texts", "truths", "pairs", "not_a_number", "none_inside"])
def test_what_is_no_number_is_refused_with_the_sample(here, name):
    reward, first = load_custom(f"my_rewards:{name}"), samples()[0].id
    with pytest.raises(ValueError, match=rf"reward '{name}' scored sample {first} \('a cat'\) as .*finite number"):
        score(samples(), [reward])


def test_a_wrong_count_is_refused(here):
    with pytest.raises(ValueError, match="'too_few' returned 1 scores for 3 samples"):
        score(samples(), [load_custom("my_rewards:too_few")])


@pytest.mark.parametrize("name", ["pictures_only", "named"])
def test_a_function_of_other_arguments_is_refused_at_once(here, name):
    sentence = rf"the reward 'my_rewards:{name}' takes \(images.*as in def {name}\(images, prompts\)"
    with pytest.raises(ValueError, match=sentence):
        load_custom(f"my_rewards:{name}")


def test_an_object_is_a_reward_and_its_class_is_none(here):
    assert score(samples(), [load_custom("my_rewards:shining")])[2].scores == {"shining": 1}
    with pytest.raises(ValueError, match="'my_rewards:Brightness' is a class; name a function, or an object"):
        load_custom("my_rewards:Brightness")


def test_an_error_inside_the_function_names_the_first_sample(here):
    first = samples()[0].id
    with pytest.raises(ValueError, match=rf"'my_rewards:broken' failed on sample {first} \('a cat'\): ZeroDiv.*: div"):
        load_custom("my_rewards:broken")(samples())


@pytest.mark.parametrize("count", [5, 6, 8, 13])
def test_the_one_sample_that_makes_the_function_fail_is_found(here, count):
    batch = samples(count)  # their pictures are 1, 2, 3 ...
    with pytest.raises(ValueError, match=rf"failed on sample {batch[4].id} \('a cat'\): KeyError: 'no face.nfound'$"):
        load_custom("my_rewards:picky")(batch)


def test_a_function_that_fails_on_no_sample_alone_is_told_so(here):
    first = samples()[0].id
    with pytest.raises(ValueError, match=rf"the 3 samples from {first} on, though on none of them alone: MemoryError$"):
        load_custom("my_rewards:crowded")(samples())
