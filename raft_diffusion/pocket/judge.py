"""The judge: names the object and the style of a pocket picture. Only `evaluate` may ask it.

It shares nothing with the scorers that rank: a plain convolutional classifier with group norm (the scorers are CLIP
towers with batch norm), another seed, other pictures, trained with damage. It answers "none" for a landscape or for
a picture in which nothing can be named. No sampling, ranking, tuning or stopping code imports this file: a test
follows the imports and says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from .objects import OBJECTS
from .world import NOTHING, STYLES

NAMES = (*OBJECTS, NOTHING)
SIZE = 64


class _Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, before), nn.GroupNorm(8, after)
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1)
        self.skip = nn.Conv2d(before, after, stride, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.conv2(F.gelu(self.norm2(self.conv1(F.gelu(self.norm1(x))))))


class JudgeNet(nn.Module):
    """(B, 3, 64, 64) in [-1, 1] -> logits of the objects and "none" (B, 19) and of the styles (B, 5)."""

    def __init__(self) -> None:
        super().__init__()
        widths = (24, 48, 80, 112)
        self.stem = nn.Conv2d(3, widths[0], 3, 1, 1)
        blocks = zip((widths[0], *widths), widths, strict=False)
        self.blocks = nn.Sequential(*(_Block(a, b, 2) for a, b in blocks))
        self.norm = nn.GroupNorm(8, widths[-1])
        self.objects = nn.Linear(widths[-1] * 4, len(NAMES))
        self.styles = nn.Linear(widths[-1] * 4, len(STYLES))

    def features(self, x: Tensor) -> Tensor:
        """(B, 448): the last feature map, pooled to 2 x 2."""
        return F.adaptive_avg_pool2d(F.gelu(self.norm(self.blocks(self.stem(x)))), 2).flatten(1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(x)
        return self.objects(features), self.styles(features)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the judge sees in one picture."""

    object: str
    style: str


def parse_caption(text: str) -> Verdict:
    """What a prompt asks for: its object and its style ("" if it names none). Raises ValueError without an object."""
    words = text.lower().replace(",", " ").split()
    names = [name for name in OBJECTS if name in words]
    styles = [style for style in STYLES if style in text.lower()]
    if len(names) != 1:
        raise ValueError(f"the judge knows no single object in {text!r}; the carried model draws {', '.join(OBJECTS)}")
    return Verdict(names[0], styles[0] if styles else "")


def knows(text: str) -> bool:
    """Whether the judge can say if a picture fits this prompt."""
    try:
        return bool(parse_caption(text).style)
    except ValueError:
        return False


class Judge:
    """The carried judge. Pictures of any size are brought to 64 x 64 first."""

    def __init__(self, net: JudgeNet, *, batch_size: int = 128) -> None:
        self._net = net.eval().requires_grad_(False)
        self._batch_size = batch_size

    @classmethod
    def load(cls, folder: Path) -> Judge:
        from safetensors.torch import load_file

        net = JudgeNet()
        net.load_state_dict({name: value.float() for name, value in load_file(folder / "model.safetensors").items()})
        return cls(net)

    @torch.inference_mode()
    def name(self, images: Sequence[Image.Image]) -> list[Verdict]:
        """One verdict a picture, in order."""
        verdicts = []
        for batch in self._batches(images):
            objects, styles = self._net(batch)
            pairs = zip(objects.argmax(1).tolist(), styles.argmax(1).tolist(), strict=True)
            verdicts += [Verdict(NAMES[o], STYLES[s]) for o, s in pairs]
        return verdicts

    def measure(self, images: Sequence[Image.Image], texts: Sequence[str]) -> dict[str, list[float]]:
        """1.0 where the object, and where the style, of the caption is in the picture. Only what a caption asks for
        is measured: a text with no object of the world raises ValueError."""
        verdicts = self.name(images)
        wanted = [parse_caption(text) for text in texts]
        pairs = list(zip(verdicts, wanted, strict=True))
        measures = {"object": [float(v.object == w.object) for v, w in pairs]}
        if all(w.style for _, w in pairs):
            measures["style"] = [float(v.style == w.style) for v, w in pairs]
        return measures

    @torch.inference_mode()
    def embed(self, images: Sequence[Image.Image]) -> Tensor:
        """L2-normalised features, (N, 448), for diversity and distances between sets of pictures."""
        return F.normalize(torch.cat([self._net.features(batch) for batch in self._batches(images)]), dim=1)

    def _batches(self, images: Sequence[Image.Image]) -> list[Tensor]:
        if not images:
            raise ValueError("the judge was given no picture")
        resized = [i.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC) for i in images]
        pixels = torch.from_numpy(np.stack([np.asarray(i) for i in resized])).permute(0, 3, 1, 2).float() / 127.5 - 1
        return list(pixels.split(self._batch_size))
