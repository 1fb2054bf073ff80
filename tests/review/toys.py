"""A run whose pictures are plain greys, without any model: what a person chooses can be read off the winners."""

import json
import math
import random
from pathlib import Path

from PIL import Image

from raft_diffusion.core.choices import HUMAN, select_chosen
from raft_diffusion.core.config import Config
from raft_diffusion.core.loop import raft
from raft_diffusion.core.prompts import draw_round
from raft_diffusion.core.records import Prompt, Sample
from raft_diffusion.core.select import Select
from raft_diffusion.core.store import RunFolder
from raft_diffusion.human import Person

PROMPTS = ("a cat", "a dog", "a house")
K = 4


class GreyCodec:
    """A picture is its grey level; exact in one JSON file where training needs it."""

    def write_samples(self, folder, samples, *, keep):
        for sample in samples:
            grey = min(255, max(0, round(sample.data)))
            Image.new("RGB", (16, 16), (grey, grey, grey)).save(folder / f"{sample.id}.png")
        if keep:
            (folder / "levels.json").write_text(json.dumps({sample.id: sample.data for sample in samples}))
        return [f"{sample.id}.png" for sample in samples]

    def read_samples(self, folder, rows):
        if not (folder / "levels.json").is_file():
            raise ValueError(f"{folder / 'levels.json'} is missing")
        levels = json.loads((folder / "levels.json").read_text())
        return [levels[row["id"]] for row in rows]


class Painter:
    """Paints greys around a level, and learns the mean of the winners."""

    def __init__(self):
        self.level, self.asked = 128.0, 0

    def generate(self, draws):
        self.asked += 1
        return [Sample(draw, self.level + random.Random(draw.seed).gauss(0, 30)) for draw in draws]

    def save(self, folder):
        (folder / "level.json").write_text(json.dumps(self.level))

    def load(self, folder):
        self.level = json.loads((folder / "level.json").read_text())


def brightness(samples):
    return {"brightness": [sample.data for sample in samples]}


def configure(prompts=PROMPTS, *, human=True, best=1, rounds=2) -> Config:
    values = {
        "name": "greys",
        "rounds": rounds,
        "prompts": {"train": list(prompts)},
        "sampling": {"width": 16, "height": 16, "samples_per_prompt": K},
        "rewards": {"weights": {HUMAN if human else "brightness": 1.0}},
        "selection": {"best": best},
    }
    return Config.model_validate(values)


def open_run(root: Path, config: Config) -> RunFolder:
    return RunFolder.open(root, codec=GreyCodec(), config=config, environment={})


def rounds_of(root: Path, config: Config, *, painter=None, announce=print, progress=lambda *_: None):
    """The run's rounds by the project's own loop, store and person."""
    store, painter = open_run(root, config), painter or Painter()
    always = HUMAN in config.rewards.weights
    best = config.selection.best
    person = Person(painter, store, always=always, best=best, announce=announce, progress=progress)
    own = Select(weights=config.rewards.weights, method="fixed", best=best)

    def select(groups):
        return (select_chosen(best) if HUMAN in groups[0].candidates[0].scores else own)(groups)

    def tune(_, winners, *, seed):
        painter.level = math.fsum(winner.sample.data for winner in winners) / len(winners)
        return {"level": painter.level}

    def draws(index):
        prompts = [Prompt(text) for text in config.prompts.train]
        return draw_round(prompts, index=index, seed=0, per_round=None, k=K)

    rewards = [person.score] if always else [brightness, person.score]
    try:
        yield from raft(person, rewards, select, tune, store, draws, rounds=config.rounds, seed=0)
    finally:
        person.close()


def waiting_run(root: Path, prompts=PROMPTS, *, best=1) -> Path:
    """A run whose first round waits, its process gone."""
    config = configure(prompts, best=best)
    store = open_run(root, config)
    drawn = draw_round([Prompt(text) for text in prompts], index=1, seed=0, per_round=None, k=K)
    store.wait(1, Painter().generate(drawn))
    return root


def finished_run(root: Path, *, best=1, rounds=3) -> Path:
    """A run that the brightest pictures won."""
    assert len(list(rounds_of(root, configure(human=False, best=best, rounds=rounds)))) == rounds
    return root


def level_of(path: Path) -> int:
    with Image.open(path) as image:
        return image.getpixel((0, 0))[0]
