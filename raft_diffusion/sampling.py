"""Pictures for prompts, with and without a LoRA: what `raft-diffusion sample` does. torch is imported late."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .core.config import Config
from .core.prompts import find_prompts
from .core.records import Draw, Prompt, Sample
from .lora.file import find_lora, read_lora
from .sd15.source import POCKET as CARRIED
from .webui import find_scheduler

if TYPE_CHECKING:
    from PIL import Image

    from .diffusion import DiffusionPolicy

POCKET = "pocket"
DEFAULTS = {
    True: {"width": 64, "height": 64, "steps": 12, "cfg_scale": 2.0},
    False: {"width": 512, "height": 512, "steps": 25, "cfg_scale": 7.5},
}
"""What is sampled with when nothing else is said: the carried model (True) and any other (False)."""
_OF_MODEL = ("revision", "variant", "prediction_type")


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to sample. Image i of a prompt has the seed `seed` + i, as in WebUIs.

    revision, variant, prediction_type, precision: as `diffusion.load` and `choose_dtype` take them.
    lora: a file, a folder or a run's folder. lora_scale: 1 is the LoRA as it was trained.
    width, height: pixels. compare: each picture twice, by the base and with the LoRA.
    """

    prompts: tuple[Prompt, ...]
    model: str
    revision: str | None
    variant: str | None
    prediction_type: str | None
    precision: str
    vae: str | None
    lora: Path | None
    lora_scale: float
    width: int
    height: int
    steps: int
    cfg_scale: float
    guidance_interval: tuple[float, float]
    sampler: str
    clip_skip: int
    count: int
    seed: int
    batch_size: int
    compare: bool

    @property
    def sides(self) -> tuple[bool, ...]:
        """Whether the LoRA is on, for each set of pictures."""
        return (False, True) if self.compare else (True,)

    @property
    def pictures(self) -> int:
        return len(self.sides) * len(self.prompts) * self.count

    def draws(self) -> list[Draw]:
        return [Draw(prompt, i, self.seed + i) for prompt in self.prompts for i in range(self.count)]


def make_order(
    texts: Sequence[str], run: Path | None, given: dict[str, Any], *, negative: str | None, **fixed: Any
) -> Order:
    """What the options and a run's settings come to.

    texts: prompts, names of carried lists or files; with a run, none means the prompts that it was trained on.
    given: options by the names of `Order`, None for those that were left out. negative: for prompts without their own.
    Raises ValueError for a run or a prompt that cannot be used.
    """
    values: dict[str, Any] = {"model": POCKET, "vae": None, "lora": None, "clip_skip": 1, "sampler": "DPM++ 2M"}
    values |= {"lora_scale": 1.0, "guidance_interval": (0.0, 1.0)}
    values |= {"batch_size": 8, "precision": "auto"} | dict.fromkeys(_OF_MODEL)
    prompts = [prompt for text in texts for prompt in find_prompts(text)]
    if run is not None:
        config = _config_of(run)
        values |= _settings_of(config) | {"lora": run}
        prompts = prompts or config.train_prompts()
        negative = config.sampling.negative_prompt if negative is None else negative
    if not prompts:
        raise ValueError('give a prompt, such as "monet style cat", a prompt file, or the name of a carried list')
    chosen = {key: value for key, value in given.items() if value is not None}
    if "lora" in chosen:
        values["lora_scale"] = 1.0  # the run's is that of its own LoRA
    if chosen.get("model", values["model"]) != values["model"]:
        values |= dict.fromkeys(_OF_MODEL)  # the run's own say nothing of another model
    if run is None:
        values |= DEFAULTS[chosen.get("model", POCKET) == POCKET]
    prompts = [Prompt(p.text, negative=p.negative or negative or "", weight=p.weight) for p in prompts]
    return Order(prompts=tuple(prompts), **(values | chosen | fixed))


def _config_of(run: Path) -> Config:
    if not os.path.isfile(run / "config.toml"):
        raise ValueError(f"{run} holds no config.toml, so it is no run; give the folder that `train` or `demo` wrote")
    return Config.load(run / "config.toml")


def _settings_of(config: Config) -> dict[str, Any]:
    sampling = config.sampling
    return {
        "model": config.model,
        **{key: getattr(config, key) for key in (*_OF_MODEL, "precision")},
        "vae": config.vae,
        "width": sampling.width,
        "height": sampling.height,
        "steps": sampling.num_inference_steps,
        "cfg_scale": sampling.guidance_scale,
        "guidance_interval": tuple(sampling.guidance_interval),
        "sampler": sampling.scheduler,
        "clip_skip": sampling.clip_skip,
        "lora_scale": sampling.lora_scale,
        "batch_size": sampling.batch_size,
    }


def check(order: Order, folder: Path) -> None:
    """Refuse what can be known to fail before a model is loaded, and write nothing. Raises ValueError."""
    find_scheduler(order.sampler)
    if order.compare and order.lora is None:
        raise ValueError("--compare shows the base and a LoRA side by side: give --lora or --run too")
    if order.lora is not None:
        read_lora(find_lora(order.lora))
    factor = _vae_factor(order.model)
    for name in ("width", "height"):
        pixels = getattr(order, name)
        if pixels % factor:
            near = max(factor, round(pixels / factor) * factor)
            raise ValueError(f"--{name} is {pixels}; this model needs a multiple of {factor}, such as {near}")
    parent = next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))
    if not os.path.isdir(parent) or not os.access(parent, os.W_OK):
        raise ValueError(f"--out {folder}: {parent} is no folder that can be written to; give another one")


def _vae_factor(model: str) -> int:
    """How many pixels a latent cell spans, from a model folder's own words; 1, which refuses nothing, if unknown."""
    folder = CARRIED if model == POCKET else Path(os.path.expanduser(model))
    if os.path.isfile(folder):
        return 8  # a checkpoint is a Stable Diffusion 1.x, or is refused
    try:
        vae = json.loads((folder / "vae" / "config.json").read_text(encoding="utf-8"))
        return 2 ** (len(vae["block_out_channels"]) - 1)
    except (OSError, ValueError, KeyError, TypeError):
        return 1


def load_policy(order: Order, *, device: str, threads: int | None) -> DiffusionPolicy:
    """The model with its LoRA, ready to sample."""
    from . import assemble

    assemble.prepare(threads)
    from .diffusion import DiffusionPolicy, Settings, choose_dtype, load

    settings = Settings(
        width=order.width,
        height=order.height,
        num_inference_steps=order.steps,
        guidance_scale=order.cfg_scale,
        guidance_interval=order.guidance_interval,
        scheduler=order.sampler,
        batch_size=order.batch_size,
    )
    device = assemble.pick_device(device)
    components = load(
        order.model,
        device=device,
        dtype=choose_dtype(order.precision, device),
        vae=order.vae,
        revision=order.revision,
        variant=order.variant,
        prediction_type=order.prediction_type,
    )
    policy = DiffusionPolicy(components, settings=settings, clip_skip=order.clip_skip)
    if order.lora is not None:
        policy.attach(order.lora, scale=order.lora_scale)
    return policy


def sample_pictures(
    order: Order, policy: DiffusionPolicy, folder: Path, progress: Callable[[int], None]
) -> list[dict[str, Any]]:
    """Sample everything and write each picture as it comes: `00000-<seed>.png`, numbered on from those there.

    progress: called with the number of pictures that are done. Returns a row for each picture: its path, prompt,
    negative prompt, seed, and whether the LoRA was on.
    """
    from .diffusion import save_png

    rows: list[dict[str, Any]] = []
    for with_lora, sample in _samples(order, policy):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{next_number(folder):05d}-{sample.draw.seed}.png"
        save_png(sample.data.image, path)
        rows.append(
            {
                "path": str(path),
                "prompt": sample.prompt.text,
                "negative_prompt": sample.prompt.negative,
                "seed": sample.draw.seed,
                "lora": with_lora and order.lora is not None,
            }
        )
        progress(len(rows))
    return rows


def _samples(order: Order, policy: DiffusionPolicy) -> Iterator[tuple[bool, Sample]]:
    draws = order.draws()
    for with_lora in order.sides:
        for start in range(0, len(draws), order.batch_size):
            with nullcontext() if with_lora else policy.base():
                batch = policy.generate(draws[start : start + order.batch_size])
            yield from ((with_lora, sample) for sample in batch)


def next_number(folder: Path, pattern: str = r"(\d+)-.*\.png") -> int:
    """One more than the largest number of the files whose name matches; 0 for none."""
    found = (re.fullmatch(pattern, path.name) for path in folder.iterdir())
    return max((int(match[1]) + 1 for match in found if match), default=0)


def write_grid(order: Order, rows: Sequence[dict[str, Any]], folder: Path) -> Path:
    """One sheet: a row for each prompt, the base's above the LoRA's in a comparison, and a column for each seed."""
    from .diffusion import grid

    half, count = len(order.prompts) * order.count, order.count
    lines: list[list[Image.Image]] = []
    labels: list[str] = []
    for number, prompt in enumerate(order.prompts):
        for side, with_lora in enumerate(order.sides):
            first = side * half + number * count
            lines.append([_open(row["path"]) for row in rows[first : first + count]])
            labels.append(f"{'LoRA' if with_lora else 'base'}: {prompt.text}" if order.compare else prompt.text)
    sheet = grid(lines, row_labels=labels, column_labels=[f"seed {order.seed + i}" for i in range(count)])
    number = next_number(folder, r"grid-(\d+)\.png")
    path = folder / f"grid-{number:04d}.png"
    sheet.save(path)
    return path


def _open(path: str) -> Image.Image:
    from PIL import Image

    with Image.open(path) as image:
        return image.convert("RGB")
