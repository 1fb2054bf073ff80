"""A run's curves and pictures for the programs that people watch them with, through accelerate's trackers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .core.records import Sample
from .process import pick_device
from .webui import shortened

TRACKED = 8
"""Pictures a round: half of a trained prompt and half of one that is held out, where there is any."""
PICTURES = "held-out seeds"
"""What the pictures are filed under; a prompt has a row of its own."""


def open_trackers(kinds: Sequence[str], root: Path, *, name: str, device: str) -> Trackers | None:
    """What logs the run `name` in `root` to where its settings say; None where they name nothing."""
    if not kinds:
        return None
    from accelerate import PartialState

    PartialState(cpu=pick_device(device) == "cpu")
    return Trackers(kinds, name=name, root=root)


class Trackers:
    """Logs to each of `kinds`: "tensorboard", whose files lie in `root`/tensorboard, or "wandb", under `name`."""

    def __init__(self, kinds: Sequence[str], *, name: str, root: Path) -> None:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        arguments: dict[str, tuple[Any, dict[str, Any]]] = {
            "tensorboard": (root.name, {"logging_dir": root / "tensorboard"}),
            "wandb": (name, {}),
        }
        self._trackers: dict[str, Any] = {}
        for kind in kinds:
            where, more = arguments[kind]
            self._trackers[kind] = LOGGER_TYPE_TO_CLASS[kind](where, **more)
            self._trackers[kind].start()

    def log(self, index: int, samples: Sequence[Sample], metrics: Mapping[str, Any] | None) -> None:
        """Log pictures and numbers of a round, 0 before the first. metrics: its line of metrics.jsonl, None for 0.

        samples: of pictures; none of a run that writes texts.
        """
        import numpy as np

        pictures: dict[str, list[Any]] = {}
        for sample in samples:
            title = f"{PICTURES}/{shortened(sample.prompt.text)}"
            pictures.setdefault(title, []).append(np.asarray(sample.data.image.convert("RGB")))
        numbers = {
            f"{kind}/{name}": value
            for kind in ("mean", "best", "figures", "guard")
            for name, value in (metrics or {}).get(kind, {}).items()
        }
        for kind, tracker in self._trackers.items():
            if not pictures:
                pass
            elif kind == "tensorboard":  # it takes a stack, and has to be told which axis is what
                stacks = {title: np.stack(images) for title, images in pictures.items()}
                tracker.log_images(stacks, step=index, dataformats="NHWC")
            else:
                tracker.log_images(pictures, step=index)
            tracker.log(numbers, step=index)  # last, as it writes all to disk
