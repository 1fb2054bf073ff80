"""How good the carried base model is, by the judge: `python -m raft_diffusion.pocket.quality`.

Every row is measured at the settings at which the presets pocket-monet and pocket-resolution evaluate.
Exit code 1 when a row misses its range.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ..core.prompts import evaluation_draws
from ..core.records import Prompt, derive_seed
from . import CLIP, HELD_OUT, JUDGE, MODEL, world
from .objects import ANIMALS, CIFAR10, OBJECTS

MONET = "monet style"
OTHERS = tuple(style for style in world.STYLES if style != MONET)
SEED = 7


@dataclass(frozen=True, slots=True)
class Row:
    """One measured number with the range it must lie in."""

    name: str
    value: float
    low: float
    high: float = math.inf
    unit: str = "%"

    @property
    def holds(self) -> bool:
        return self.low <= self.value <= self.high


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m raft_diffusion.pocket.quality", description=__doc__)
    parser.add_argument("--images", type=int, default=256, help="pictures a row")
    parser.add_argument("--pictures", type=Path, help="also write a sheet of each row's pictures into this folder")
    options = parser.parse_args(arguments)
    rows = [*true_rows(options.images), *base_rows(options.images, options.pictures)]
    table = Table(box=None, header_style="bold")
    for head in ("measure", "value", "must be", ""):
        table.add_column(head)
    for row in rows:
        scale = 100 if row.unit == "%" else 1
        bound = f"{row.low * scale:g} to {row.high * scale:g}" if row.high < 1 else f"at least {row.low * scale:g}"
        table.add_row(
            row.name, f"{row.value * scale:.1f} {row.unit}", f"{bound} {row.unit}", "" if row.holds else "MISSED"
        )
    Console().print(table)
    return 0 if all(row.holds for row in rows) else 1


def base_rows(count: int, pictures: Path | None = None) -> list[Row]:
    """What the base samples, named by the judge."""
    import torch

    from ..assemble import user_settings
    from ..core.config import Config
    from ..diffusion import DiffusionPolicy, load
    from ..jobs import PRESETS
    from .judge import Judge

    judge = Judge.load(JUDGE)
    settings, small = (
        user_settings(Config.load(PRESETS / f"{name}.toml")) for name in ("pocket-monet", "pocket-resolution")
    )
    policy = DiffusionPolicy(load(str(MODEL), device="cpu", dtype=torch.float32), settings=settings)
    others = [f"{style} {name}" for style in OTHERS for name in OBJECTS]
    animals = [f"{MONET} {name}" for name in ANIMALS]
    drawn = [f"photo {name}" for name in CIFAR10]
    rows = []
    for title, texts, sizes in (
        ("other styles", others, settings),
        ("monet animals", animals, settings),
        ("photos", drawn, small),
    ):
        samples = policy.generate(evaluation_draws([Prompt(t) for t in texts], count, seed=SEED), sizes)
        images = [sample.data.image for sample in samples]
        judged = {k: statistics.fmean(v) for k, v in judge.measure(images, [s.prompt.text for s in samples]).items()}
        label = f"base, {title}, {sizes.width} px"
        ranges = {"other styles": (0.85, math.inf), "monet animals": (0.10, 0.35), "photos": (0.20, 0.60)}
        rows.append(Row(f"{label}: object right", judged["object"], *ranges[title]))
        if title == "other styles":
            rows.append(Row(f"{label}: style right", judged["style"], 0.95))
        if pictures:
            pictures.mkdir(parents=True, exist_ok=True)
            sheet(images[:72], 12).save(pictures / f"{title.replace(' ', '-')}.png")
    return rows


def true_rows(count: int) -> list[Row]:
    """The parts against true pictures that they have not seen."""
    import numpy as np
    import torch

    from ..diffusion import load
    from ..rewards.clip import ClipTower
    from .judge import Judge

    rng = np.random.default_rng(derive_seed(SEED, "quality"))
    names = tuple(OBJECTS)
    wanted = [(world.STYLES[i % 5], names[i % len(names)]) for i in range(count)]
    large = [world.draw(style, name, rng, 64) for style, name in wanted]
    small = [world.draw(style, name, rng, 32) for style, name in wanted]
    empty = [world.draw(style, world.NOTHING, rng, 64) for style, _ in wanted]
    judge, texts = Judge.load(JUDGE), [f"{style} {name}" for style, name in wanted]
    rows = []
    for size, images, least in (("64 px", large, 0.98), ("32 px", small, 0.95)):
        value = statistics.fmean(judge.measure(images, texts)["object"])
        rows.append(Row(f"judge, true pictures, {size}: object right", value, least))
    value = statistics.fmean(v.object == world.NOTHING for v in judge.name(empty))
    rows.append(Row('judge, true landscapes: "none"', value, 0.95))
    for title, folder in (("ranking", CLIP), ("held-out", HELD_OUT)):
        tower = ClipTower.load(folder, device="cpu")
        likeness = tower.embed_images(large) @ tower.embed_texts(list(world.CAPTIONS)).T
        best = [world.CAPTIONS[i] for i in likeness.argmax(1).tolist()]
        value = statistics.fmean(a == b for a, b in zip(best, texts, strict=True))
        rows.append(Row(f"{title} CLIP tower, zero-shot over {len(world.CAPTIONS)} captions", value, 0.97))
    vae: Any = load(str(MODEL), device="cpu", dtype=torch.float32).vae
    pixels = torch.from_numpy(np.stack([np.asarray(i) for i in large])).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.inference_mode():
        back = torch.cat([vae.decode(vae.encode(x).latent_dist.mode()).sample for x in pixels.split(64)])
    error = (back.clamp(-1, 1) - pixels).square().mean((1, 2, 3))
    rows.append(Row("VAE reconstruction", (10 * torch.log10(4 / error)).mean().item(), 26, unit="dB"))
    return rows


def sheet(images: Sequence[Any], columns: int) -> Any:
    """The pictures in a grid."""
    from PIL import Image

    width, height = images[0].size
    picture = Image.new("RGB", (columns * width, -(-len(images) // columns) * height))
    for index, image in enumerate(images):
        picture.paste(image, (index % columns * width, index // columns * height))
    return picture


if __name__ == "__main__":
    sys.exit(main())
