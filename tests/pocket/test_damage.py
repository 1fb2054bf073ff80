import numpy as np
import pytest
import torch

from raft_diffusion.pocket import world
from raft_diffusion.pocket.damage import BREAKING, KINDS, READABLE, damage


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    rng = np.random.default_rng(0)
    names = tuple(world.OBJECTS)
    drawn = [np.asarray(world.draw(world.STYLES[i % 5], names[i % 18], rng, 32)) for i in range(24)]
    return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).float() / 255


def hurt(pictures: torch.Tensor, level: float, kinds=KINDS, seed: int = 1) -> torch.Tensor:
    return damage(pictures, torch.full((len(pictures),), level), torch.Generator().manual_seed(seed), kinds)


def test_level_0_leaves_a_picture_untouched(pictures):
    assert torch.equal(hurt(pictures, 0.0), pictures)


def test_each_picture_has_a_level_of_its_own_and_the_input_stays(pictures):
    before, level = pictures.clone(), torch.tensor([0.0, 0.8] * 12)
    after = damage(pictures, level, torch.Generator().manual_seed(2))
    changed = (after != pictures).flatten(1).any(1)
    assert changed.tolist() == [False, True] * 12
    assert torch.equal(pictures, before)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__.strip("_"))
def test_a_higher_level_is_further_away(pictures, kind):
    distances = []
    for level in (0.0, 0.25, 0.5, 0.75, 1.0):
        after = hurt(pictures, level, (kind,))
        assert after.shape == pictures.shape and after.min() >= 0 and after.max() <= 1
        distances.append((after - pictures).abs().mean().item())
    assert distances == sorted(distances)
    assert distances[0] == 0 and distances[-1] > distances[1] + 0.01


def test_the_same_generator_gives_the_same_damage(pictures):
    assert torch.equal(hurt(pictures, 0.7), hurt(pictures, 0.7))
    assert not torch.equal(hurt(pictures, 0.7), hurt(pictures, 0.7, seed=2))


def test_kinds_are_readable_or_breaking():
    assert len({*READABLE, *BREAKING}) == len(KINDS) == len(READABLE) + len(BREAKING)
