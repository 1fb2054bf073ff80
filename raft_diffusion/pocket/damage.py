"""Graded damage to pictures: what a failing generator does to them, from barely visible (0) to unreadable (1)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

Tensor = torch.Tensor


def _noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator)


def _smooth(batch: int, channels: int, size: int, cells: int, generator: torch.Generator) -> Tensor:
    """Low-frequency noise of unit scale, (B, C, size, size)."""
    coarse = _noise((batch, channels, cells, cells), generator)
    return F.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False)


def _blur(x: Tensor, level: Tensor, generator: torch.Generator) -> Tensor:
    taps = torch.arange(-6, 7, dtype=x.dtype)
    sigma = (0.2 + 3.3 * level)[:, None]
    kernel = torch.exp(-(taps**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(3, 0)
    flat = x.reshape(1, -1, *x.shape[2:])
    flat = F.conv2d(F.pad(flat, (6, 6, 0, 0), mode="replicate"), kernel[:, None, None, :], groups=len(kernel))
    flat = F.conv2d(F.pad(flat, (0, 0, 6, 6), mode="replicate"), kernel[:, None, :, None], groups=len(kernel))
    return flat.reshape(x.shape)


def _blotches(x: Tensor, level: Tensor, generator: torch.Generator) -> Tensor:
    return x + 0.55 * level[:, None, None, None] * _smooth(len(x), 3, x.shape[-1], 8, generator)


def _grain(x: Tensor, level: Tensor, generator: torch.Generator) -> Tensor:
    return x + 0.45 * level[:, None, None, None] * _noise(tuple(x.shape), generator)


def _warp(x: Tensor, level: Tensor, generator: torch.Generator) -> Tensor:
    field = _smooth(len(x), 2, x.shape[-1], 6, generator) * (0.28 * level)[:, None, None, None]
    grid = F.affine_grid(torch.eye(2, 3).expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid + field.permute(0, 2, 3, 1), padding_mode="reflection", align_corners=False)


def _smear(x: Tensor, level: Tensor, generator: torch.Generator) -> Tensor:
    """Blobs of the picture's own background wash over it."""
    wash = F.interpolate(F.avg_pool2d(x, x.shape[-1] // 2), size=x.shape[-2:], mode="bilinear", align_corners=False)
    cover = _smooth(len(x), 1, x.shape[-1], 5, generator)
    return torch.where(cover > (2.0 - 2.6 * level)[:, None, None, None], wash, x)


def _ghost(x: Tensor, level: Tensor, generator: torch.Generator) -> Tensor:
    """Another picture of the batch shines through."""
    return torch.lerp(x, x.roll(1, 0).flip(-1), 0.5 * level[:, None, None, None])


def _scramble(x: Tensor, level: Tensor, generator: torch.Generator) -> Tensor:
    """Cells of an 8 x 8 grid change places."""
    cell = x.shape[-1] // 8
    cells = F.unfold(x, cell, stride=cell)
    order = torch.argsort(torch.rand(len(x), 64, generator=generator), 1)
    moved = torch.gather(cells, 2, order[:, None].expand_as(cells))
    chosen = torch.rand(len(x), 1, 64, generator=generator) < 0.8 * level[:, None, None]
    return F.fold(torch.where(chosen, moved, cells), x.shape[-2:], cell, stride=cell)


def _burn(x: Tensor, level: Tensor, generator: torch.Generator) -> Tensor:
    """Contrast far too high, as too much guidance gives, with its blotches."""
    mean = x.mean((2, 3), keepdim=True)
    burnt = mean + (x - mean) * (1 + 3 * level)[:, None, None, None]
    return _blotches(burnt, 0.6 * level, generator)


Kind = Callable[[Tensor, Tensor, torch.Generator], Tensor]
READABLE: tuple[Kind, ...] = (_blur, _blotches, _grain, _burn)
BREAKING: tuple[Kind, ...] = (_warp, _smear, _ghost, _scramble)
KINDS = READABLE + BREAKING


def damage(pictures: Tensor, level: Tensor, generator: torch.Generator, kinds: tuple[Kind, ...] = KINDS) -> Tensor:
    """Each of `pictures` (B, 3, H, W) in [0, 1], hurt in one way drawn from `kinds`, as much as its `level` (B,) says.

    At level 1 the BREAKING kinds leave nothing to name; the READABLE ones leave an ugly but nameable picture.
    """
    hurt = pictures.clone()
    kind = torch.randint(len(kinds), (len(pictures),), generator=generator)
    for index, hurting in enumerate(kinds):
        chosen = (kind == index) & (level > 0)
        if chosen.any():
            hurt[chosen] = hurting(pictures[chosen], level[chosen], generator)
    return hurt.clamp(0, 1)
