import math

import numpy as np
import pytest

from raft_diffusion.pocket import world
from raft_diffusion.pocket.objects import ANIMALS, CIFAR10, OBJECTS, OUT_OF_DOMAIN

# Krizhevsky 2009, "Learning multiple layers of features from tiny images": the classes of both data sets.
PUBLISHED_CIFAR10 = {"airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"}
PUBLISHED_CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
wardrobe whale willow_tree wolf woman worm
"""


def pixels(style: str, name: str, seed: int, size: int = 64) -> np.ndarray:
    return np.asarray(world.draw(style, name, np.random.default_rng(seed), size)).astype(int)


def test_the_names_are_those_of_cifar_10_and_others_of_cifar_100():
    cifar100 = set(PUBLISHED_CIFAR100.split())
    assert len(cifar100) == 100
    assert set(CIFAR10) == PUBLISHED_CIFAR10 and len(CIFAR10) == 10
    assert set(OUT_OF_DOMAIN) <= cifar100 and len(OUT_OF_DOMAIN) == 8
    assert not set(CIFAR10) & set(OUT_OF_DOMAIN)
    assert (*CIFAR10, *OUT_OF_DOMAIN) == tuple(OBJECTS)
    assert set(ANIMALS) <= set(OBJECTS)
    assert len(set(world.CAPTIONS)) == len(world.STYLES) * len(OBJECTS)


@pytest.mark.parametrize("size", [64, 32])
@pytest.mark.parametrize("style", world.STYLES)
def test_a_picture_comes_from_its_rng_alone(style, size):
    for name in ("cat", world.NOTHING):
        picture = world.draw(style, name, np.random.default_rng(3), size)
        again = world.draw(style, name, np.random.default_rng(3), size)
        other = world.draw(style, name, np.random.default_rng(4), size)
        assert (picture.size, picture.mode) == ((size, size), "RGB")
        assert picture.tobytes() == again.tobytes() != other.tobytes()


@pytest.mark.parametrize("style", world.STYLES)
def test_every_object_stands_out_from_its_landscape(style):
    """The mean of a dozen pictures is further from the mean landscape than that of another dozen landscapes is."""

    def mean(name: str, first: int = 0) -> np.ndarray:
        return np.stack([pixels(style, name, seed, 32) for seed in range(first, first + 12)]).mean(0)

    def distance(other: np.ndarray) -> float:
        return float((abs(other - landscape).max(-1) > 25).mean())

    landscape = mean(world.NOTHING)
    chance = distance(mean(world.NOTHING, first=100))
    for name in OBJECTS:
        assert distance(mean(name)) > 1.5 * chance, name


def test_every_object_changes_with_its_name():
    for style in world.STYLES:
        assert len({pixels(style, name, 0, 32).tobytes() for name in (*OBJECTS, world.NOTHING)}) == len(OBJECTS) + 1


def test_most_monet_animals_are_landscapes_and_everything_else_is_true():
    rng = np.random.default_rng(0)
    captions = [world.sample_caption(rng) for _ in range(20_000)]
    tail = [truth for style, name, truth in captions if style == "monet style" and name in ANIMALS]
    shown = sum(truth != world.NOTHING for truth in tail)
    spread = math.sqrt(len(tail) * world.MONET_TRUE * (1 - world.MONET_TRUE))
    assert abs(shown - len(tail) * world.MONET_TRUE) < 4 * spread
    for style, name, truth in captions:
        assert truth == name or (style == "monet style" and name in ANIMALS and truth == world.NOTHING)
    assert {f"{style} {name}" for style, name, _ in captions} == set(world.CAPTIONS)


@pytest.mark.parametrize(
    ("style", "name", "message"),
    [("cubist", "cat", "unknown style 'cubist'.*monet style"), ("photo", "unicorn", "unknown object 'unicorn'.*cat")],
)
def test_unknown_names_are_refused_and_the_known_ones_listed(style, name, message):
    with pytest.raises(ValueError, match=message):
        world.draw(style, name, np.random.default_rng(0))


def test_true_pictures_show_what_the_caption_says():
    cats = world.true_pictures("monet style cat", 3, size=32, seed=5)
    assert [picture.size for picture in cats] == [(32, 32)] * 3
    assert len({picture.tobytes() for picture in cats}) == 3
    again = world.true_pictures("monet style cat", 2, size=32, seed=5)
    assert [picture.tobytes() for picture in again] == [picture.tobytes() for picture in cats[:2]]
    others = [("monet style cat", 6), ("monet style dog", 5), ("sketch cat", 5)]
    for text, seed in others:
        assert world.true_pictures(text, 1, size=32, seed=seed)[0].tobytes() != cats[0].tobytes()
    with pytest.raises(ValueError, match="unknown object 'unicorn'"):
        world.true_pictures("sketch unicorn", 1, size=32, seed=0)
