import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from raft_diffusion.pocket import world
from raft_diffusion.pocket.judge import NAMES, Judge, JudgeNet, Verdict, parse_caption

CODES = {"photo cat": 10, "monet style dog": 90, "neon none": 170}


class ByBrightness(torch.nn.Module):
    """Names a flat picture by its grey value; its one feature vector is that value."""

    def forward(self, x):
        grey = ((x.mean((1, 2, 3)) + 1) * 127.5).round()
        codes = torch.tensor(list(CODES.values()))
        names = [text.rsplit(" ", 1) for text in CODES]
        best = (grey[:, None] - codes).abs().argmin(1).tolist()
        objects = torch.eye(len(NAMES))[[NAMES.index(names[i][1]) for i in best]]
        return objects, torch.eye(len(world.STYLES))[[world.STYLES.index(names[i][0]) for i in best]]

    def features(self, x):
        return self.forward(x)[0] * 3


def picture(text: str, size: tuple[int, int] = (64, 64)) -> Image.Image:
    return Image.new("RGB", size, (CODES[text],) * 3)


@pytest.fixture
def judge() -> Judge:
    return Judge(ByBrightness(), batch_size=2)  # type: ignore[arg-type]


@pytest.mark.parametrize("style", world.STYLES)
@pytest.mark.parametrize("name", world.OBJECTS)
def test_a_caption_is_read_as_it_was_made(style, name):
    assert parse_caption(f"{style} {name}") == Verdict(name, style)


def test_a_caption_may_say_more_or_name_no_style():
    assert parse_caption("a Cat, in Monet style") == Verdict("cat", "monet style")
    assert parse_caption("beautiful horse") == Verdict("horse", "")
    assert parse_caption("truck") == Verdict("truck", "")


@pytest.mark.parametrize("text", ["", "photo", "monet style landscape", "cat and dog", "photo category", "photo none"])
def test_a_caption_without_a_single_object_is_refused(text):
    with pytest.raises(ValueError, match=r"no single object.*cat.*turtle"):
        parse_caption(text)


def test_it_names_what_it_sees_in_order_whatever_the_batch(judge):
    images = [picture(text) for text in ("neon none", "photo cat", "monet style dog", "photo cat", "neon none")]
    cat, dog, none = Verdict("cat", "photo"), Verdict("dog", "monet style"), Verdict("none", "neon")
    assert judge.name(images) == [none, cat, dog, cat, none]


def test_it_measures_objects_and_styles_apart(judge):
    images = [picture(text) for text in ("photo cat", "photo cat", "monet style dog", "neon none")]
    texts = ["photo cat", "photo dog", "sketch dog", "neon frog"]
    assert judge.measure(images, texts) == {"object": [1, 0, 1, 0], "style": [1, 1, 0, 1]}


def test_only_what_every_caption_asks_for_is_measured(judge):
    assert judge.measure([picture("photo cat")] * 2, ["photo cat", "cat"]) == {"object": [1, 1]}
    with pytest.raises(ValueError, match="no single object"):
        judge.measure([picture("photo cat")], ["photo unicorn"])
    with pytest.raises(ValueError, match="no picture"):
        judge.measure([], [])


@pytest.mark.parametrize("size", [(16, 16), (32, 32), (256, 256), (48, 96)])
def test_the_picture_size_does_not_matter(judge, size):
    images = [picture(text, size) for text in CODES]
    assert judge.name(images) == judge.name([picture(text) for text in CODES])
    torch.testing.assert_close(judge.embed(images).norm(dim=1), torch.ones(3))


def test_the_net_sees_a_grey_or_transparent_picture_as_rgb(judge):
    rgba = picture("photo cat").convert("RGBA")
    assert judge.name([picture("photo cat").convert("L"), rgba]) == [Verdict("cat", "photo")] * 2


def test_a_saved_net_is_loaded_from_half_precision(tmp_path):
    torch.manual_seed(0)
    net = JudgeNet()
    save_file({name: value.half() for name, value in net.state_dict().items()}, tmp_path / "model.safetensors")
    images = [world.draw("photo", name, np.random.default_rng(0), 64) for name in ("cat", "ship", "castle")]
    loaded, fresh = Judge.load(tmp_path).embed(images), Judge(net).embed(images)
    assert loaded.shape == (3, 448) and loaded.dtype == torch.float32
    torch.testing.assert_close(loaded, fresh, atol=1e-3, rtol=0)
