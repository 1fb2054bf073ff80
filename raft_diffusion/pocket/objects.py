"""The eighteen things of the pocket world, as flat shapes in a unit square: x to the right, y down, both in [-1, 1]."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Color = tuple[int, int, int]
Point = tuple[float, float]

DARK: Color = (38, 34, 40)
WHITE: Color = (245, 243, 236)


@dataclass(frozen=True, slots=True)
class Shape:
    """A filled polygon, or a line of `width` when that is set. `fine` shapes are details that an outline may skip."""

    points: tuple[Point, ...]
    color: Color
    width: float = 0.0
    fine: bool = False


def poly(color: Color, *points: Point, fine: bool = False) -> Shape:
    return Shape(points, color, fine=fine)


def line(color: Color, width: float, *points: Point, fine: bool = False) -> Shape:
    return Shape(points, color, width, fine)


def oval(color: Color, x: float, y: float, rx: float, ry: float, turn: float = 0.0, fine: bool = False) -> Shape:
    """An ellipse, turned clockwise by `turn` degrees."""
    c, s = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    angles = [2 * math.pi * i / 28 for i in range(28)]
    points = ((rx * math.cos(a), ry * math.sin(a)) for a in angles)
    return Shape(tuple((x + c * u - s * v, y + s * u + c * v) for u, v in points), color, fine=fine)


def shade(color: Color, factor: float) -> Color:
    r, g, b = (max(0, min(255, round(c * factor))) for c in color)
    return r, g, b


def pick(rng: np.random.Generator, *colors: Color) -> Color:
    return colors[int(rng.integers(len(colors)))]


def airplane(rng: np.random.Generator) -> list[Shape]:
    body = pick(rng, (236, 238, 242), (214, 222, 232), (240, 226, 200))
    trim = pick(rng, (204, 52, 48), (42, 92, 178), (240, 150, 30))
    return [
        poly(shade(trim, 0.8), (0.1, -0.08), (0.4, -0.55), (0.55, -0.55), (0.42, -0.06)),
        poly(trim, (0.62, -0.1), (0.86, -0.56), (1.0, -0.56), (0.94, -0.04)),
        oval(body, 0.02, 0.02, 0.98, 0.2),
        poly(trim, (-0.12, 0.1), (0.3, 0.1), (0.62, 0.66), (0.44, 0.68)),
        poly((60, 90, 130), (-0.88, -0.06), (-0.66, -0.13), (-0.62, 0.0), (-0.84, 0.02), fine=True),
        *(oval((60, 90, 130), x, -0.03, 0.055, 0.06, fine=True) for x in (-0.42, -0.2, 0.02, 0.24, 0.46)),
    ]


def _wheel(x: float, y: float, r: float) -> list[Shape]:
    return [oval(DARK, x, y, r, r), oval((190, 190, 196), x, y, r * 0.45, r * 0.45, fine=True)]


def automobile(rng: np.random.Generator) -> list[Shape]:
    body = pick(rng, (214, 44, 44), (36, 98, 200), (246, 190, 40), (60, 160, 96))
    return [
        poly(body, (-0.52, -0.04), (-0.3, -0.46), (0.34, -0.46), (0.6, -0.04)),
        poly((190, 222, 240), (-0.38, -0.06), (-0.22, -0.36), (0.0, -0.36), (0.0, -0.06), fine=True),
        poly((190, 222, 240), (0.08, -0.06), (0.08, -0.36), (0.27, -0.36), (0.44, -0.06), fine=True),
        poly(body, (-0.96, 0.3), (-0.95, 0.06), (-0.5, -0.08), (0.62, -0.08), (0.92, 0.04), (0.96, 0.3)),
        oval((255, 240, 170), -0.9, 0.12, 0.07, 0.07, fine=True),
        *_wheel(-0.54, 0.32, 0.24),
        *_wheel(0.54, 0.32, 0.24),
    ]


def truck(rng: np.random.Generator) -> list[Shape]:
    cab = pick(rng, (214, 60, 50), (40, 110, 190), (70, 150, 80))
    box = pick(rng, (238, 236, 228), (226, 200, 150), (196, 208, 220))
    return [
        poly(box, (-0.34, -0.62), (0.98, -0.62), (0.98, 0.34), (-0.34, 0.34)),
        line(shade(box, 0.75), 0.04, (0.1, -0.6), (0.1, 0.3), fine=True),
        line(shade(box, 0.75), 0.04, (0.54, -0.6), (0.54, 0.3), fine=True),
        poly(cab, (-0.98, 0.34), (-0.98, -0.02), (-0.8, -0.36), (-0.38, -0.36), (-0.38, 0.34)),
        poly((190, 222, 240), (-0.88, -0.02), (-0.76, -0.26), (-0.5, -0.26), (-0.5, -0.02), fine=True),
        *_wheel(-0.66, 0.42, 0.21),
        *_wheel(0.28, 0.42, 0.21),
        *_wheel(0.74, 0.42, 0.21),
    ]


def ship(rng: np.random.Generator) -> list[Shape]:
    hull = pick(rng, (60, 64, 90), (160, 50, 44), (40, 90, 140))
    funnel = pick(rng, (220, 70, 50), (240, 170, 50))
    return [
        poly(funnel, (0.08, -0.32), (0.1, -0.78), (0.36, -0.78), (0.38, -0.32)),
        poly(DARK, (0.1, -0.78), (0.11, -0.9), (0.35, -0.9), (0.36, -0.78), fine=True),
        poly(WHITE, (-0.5, 0.04), (-0.44, -0.34), (0.58, -0.34), (0.62, 0.04)),
        *(oval((70, 110, 150), x, -0.14, 0.07, 0.07, fine=True) for x in (-0.28, -0.02, 0.24, 0.48)),
        poly(hull, (-1.0, 0.0), (0.98, 0.0), (0.76, 0.5), (-0.7, 0.5)),
        line(WHITE, 0.06, (-0.92, 0.12), (0.92, 0.12), fine=True),
    ]


def bird(rng: np.random.Generator) -> list[Shape]:
    body = pick(rng, (64, 134, 208), (222, 78, 58), (240, 196, 60), (120, 110, 160))
    return [
        line((120, 84, 50), 0.09, (-0.02, 0.5), (-0.08, 0.92)),
        line((120, 84, 50), 0.09, (0.2, 0.5), (0.2, 0.92)),
        poly(shade(body, 0.7), (0.42, 0.06), (1.0, -0.14), (0.96, 0.24), (0.46, 0.42)),
        oval(body, 0.1, 0.2, 0.52, 0.4, -8),
        oval(body, -0.4, -0.34, 0.32, 0.3),
        oval(shade(body, 1.35), -0.1, 0.36, 0.3, 0.2, -8, fine=True),
        poly((246, 160, 40), (-0.68, -0.44), (-1.0, -0.26), (-0.66, -0.2)),
        oval(shade(body, 0.62), 0.26, 0.14, 0.36, 0.2, 14),
        oval(DARK, -0.48, -0.4, 0.07, 0.07, fine=True),
    ]


def cat(rng: np.random.Generator) -> list[Shape]:
    fur = pick(rng, (236, 150, 62), (128, 130, 140), (66, 60, 68), (240, 226, 204), (160, 112, 76))
    eye = pick(rng, (120, 200, 80), (250, 210, 70))
    inner = (238, 160, 160)
    return [
        line(shade(fur, 0.85), 0.17, (0.38, 0.78), (0.8, 0.7), (0.88, 0.32), (0.7, 0.08)),
        oval(fur, 0.0, 0.52, 0.46, 0.46),
        oval(shade(fur, 1.25), 0.0, 0.6, 0.22, 0.32, fine=True),
        poly(fur, (-0.52, -0.36), (-0.56, -0.96), (-0.06, -0.6)),
        poly(fur, (0.52, -0.36), (0.56, -0.96), (0.06, -0.6)),
        poly(inner, (-0.42, -0.5), (-0.46, -0.78), (-0.2, -0.6), fine=True),
        poly(inner, (0.42, -0.5), (0.46, -0.78), (0.2, -0.6), fine=True),
        oval(fur, 0.0, -0.24, 0.56, 0.44),
        oval(eye, -0.22, -0.28, 0.13, 0.14, fine=True),
        oval(eye, 0.22, -0.28, 0.13, 0.14, fine=True),
        oval(DARK, -0.22, -0.28, 0.05, 0.12, fine=True),
        oval(DARK, 0.22, -0.28, 0.05, 0.12, fine=True),
        poly((220, 110, 120), (-0.08, -0.1), (0.08, -0.1), (0.0, 0.0), fine=True),
    ]


def dog(rng: np.random.Generator) -> list[Shape]:
    fur = pick(rng, (202, 148, 90), (236, 214, 176), (124, 84, 56), (226, 222, 216))
    ear = shade(fur, 0.55)
    leg = shade(fur, 0.88)
    return [
        line(fur, 0.14, (0.66, 0.06), (0.86, -0.2), (0.9, -0.5)),
        *(poly(leg, (x, 0.2), (x + 0.2, 0.2), (x + 0.18, 0.9), (x + 0.0, 0.9)) for x in (-0.36, -0.1, 0.34, 0.58)),
        oval(fur, 0.2, 0.16, 0.58, 0.3),
        oval(fur, -0.48, -0.3, 0.36, 0.34),
        oval(shade(fur, 1.2), -0.8, -0.16, 0.26, 0.18),
        oval(ear, -0.22, -0.2, 0.17, 0.36, 8),
        oval(DARK, -1.0, -0.22, 0.09, 0.08, fine=True),
        oval(DARK, -0.62, -0.38, 0.07, 0.07, fine=True),
        line((220, 70, 80), 0.1, (-0.78, 0.0), (-0.78, 0.16), fine=True),
        line((200, 50, 50), 0.1, (-0.5, 0.06), (-0.16, 0.0), fine=True),
    ]


def deer(rng: np.random.Generator) -> list[Shape]:
    fur = pick(rng, (176, 112, 62), (200, 140, 84), (150, 98, 64))
    horn = (112, 80, 52)
    return [
        *(
            line(shade(fur, 0.8), 0.1, (x, 0.3), (x + d, 0.96))
            for x, d in ((-0.3, 0.0), (-0.14, 0.06), (0.42, 0), (0.56, 0.06))
        ),
        oval(fur, 0.14, 0.24, 0.54, 0.25),
        poly(fur, (-0.42, 0.26), (-0.6, -0.28), (-0.34, -0.34), (-0.02, 0.06)),
        oval(fur, -0.58, -0.32, 0.27, 0.16, 18),
        line(horn, 0.08, (-0.46, -0.42), (-0.34, -0.66), (-0.4, -1.0)),
        line(horn, 0.08, (-0.34, -0.66), (-0.1, -0.9)),
        line(horn, 0.08, (-0.56, -0.44), (-0.72, -0.68), (-0.68, -1.0)),
        line(horn, 0.08, (-0.72, -0.68), (-0.96, -0.86)),
        oval(WHITE, 0.68, 0.14, 0.1, 0.12, fine=True),
        *(oval(WHITE, x, y, 0.05, 0.05, fine=True) for x, y in ((0.0, 0.14), (0.2, 0.1), (0.38, 0.18), (0.14, 0.28))),
        oval(DARK, -0.6, -0.36, 0.05, 0.05, fine=True),
    ]


def horse(rng: np.random.Generator) -> list[Shape]:
    coat = pick(rng, (126, 72, 40), (92, 60, 48), (222, 212, 198), (172, 106, 54))
    mane = shade(coat, 0.45) if sum(coat) < 500 else (120, 110, 104)
    return [
        line(mane, 0.2, (0.7, 0.02), (0.92, 0.2), (0.94, 0.66)),
        *(
            poly(shade(coat, 0.82), (x, 0.2), (x + 0.2, 0.2), (x + 0.16, 0.96), (x + 0.02, 0.96))
            for x in (-0.34, -0.12, 0.36, 0.56)
        ),
        oval(coat, 0.18, 0.1, 0.6, 0.32),
        poly(coat, (-0.44, 0.22), (-0.58, -0.5), (-0.2, -0.72), (0.14, -0.08)),
        poly(coat, (-0.52, -0.72), (-0.2, -0.66), (-0.34, -0.36), (-0.84, -0.1), (-0.96, -0.28)),
        poly(mane, (-0.42, -0.82), (-0.2, -0.84), (0.24, -0.14), (-0.02, -0.2)),
        poly(coat, (-0.44, -0.7), (-0.42, -0.98), (-0.26, -0.72)),
        oval(DARK, -0.52, -0.54, 0.05, 0.05, fine=True),
    ]


def frog(rng: np.random.Generator) -> list[Shape]:
    skin = pick(rng, (92, 178, 64), (60, 150, 80), (150, 190, 60))
    belly = (224, 232, 160)
    return [
        oval(shade(skin, 0.8), -0.66, 0.56, 0.32, 0.28, 20),
        oval(shade(skin, 0.8), 0.66, 0.56, 0.32, 0.28, -20),
        oval(skin, 0.0, 0.36, 0.64, 0.48),
        oval(belly, 0.0, 0.5, 0.4, 0.3, fine=True),
        oval(skin, 0.0, -0.1, 0.7, 0.4),
        oval(skin, -0.4, -0.46, 0.26, 0.26),
        oval(skin, 0.4, -0.46, 0.26, 0.26),
        oval(WHITE, -0.4, -0.48, 0.17, 0.17, fine=True),
        oval(WHITE, 0.4, -0.48, 0.17, 0.17, fine=True),
        oval(DARK, -0.4, -0.46, 0.09, 0.1, fine=True),
        oval(DARK, 0.4, -0.46, 0.09, 0.1, fine=True),
        line((170, 50, 60), 0.07, (-0.48, -0.04), (-0.2, 0.1), (0.2, 0.1), (0.48, -0.04), fine=True),
        *(line(shade(skin, 0.8), 0.12, (s * 0.3, 0.6), (s * 0.36, 0.84)) for s in (-1, 1)),
    ]


def mushroom(rng: np.random.Generator) -> list[Shape]:
    cap = pick(rng, (214, 46, 42), (200, 110, 50), (170, 60, 90))
    top = [(0.92 * math.cos(a), -0.06 - 0.78 * math.sin(a)) for a in np.linspace(0, math.pi, 20)]
    return [
        poly((240, 228, 204), (-0.24, -0.1), (0.24, -0.1), (0.34, 0.9), (-0.34, 0.9)),
        poly(cap, *top, (-0.7, 0.12), (0.7, 0.12)),
        *(
            oval(WHITE, x, y, r, r, fine=True)
            for x, y, r in ((-0.48, -0.26, 0.14), (0.0, -0.5, 0.16), (0.46, -0.24, 0.14), (0.06, -0.1, 0.1))
        ),
    ]


def rocket(rng: np.random.Generator) -> list[Shape]:
    trim = pick(rng, (210, 50, 48), (50, 100, 200), (240, 150, 40))
    return [
        poly((255, 190, 60), (-0.22, 0.56), (0.22, 0.56), (0.0, 1.0)),
        poly(trim, (-0.26, 0.1), (-0.66, 0.62), (-0.24, 0.56)),
        poly(trim, (0.26, 0.1), (0.66, 0.62), (0.24, 0.56)),
        poly((236, 238, 242), (-0.28, 0.56), (-0.32, -0.3), (0.0, -0.62), (0.32, -0.3), (0.28, 0.56)),
        poly(trim, (-0.31, -0.4), (0.0, -1.0), (0.31, -0.4)),
        oval((70, 120, 180), 0.0, -0.12, 0.15, 0.15, fine=True),
    ]


def castle(rng: np.random.Generator) -> list[Shape]:
    stone = pick(rng, (170, 166, 160), (200, 180, 150), (150, 150, 170))
    roof = pick(rng, (180, 60, 60), (70, 90, 160))
    dark = shade(stone, 0.82)
    return [
        poly(
            stone,
            (-0.5, 0.8),
            (-0.5, 0.0),
            (-0.3, 0.0),
            (-0.3, -0.14),
            (-0.1, -0.14),
            (-0.1, 0.0),
            (0.1, 0.0),
            (0.1, -0.14),
            (0.3, -0.14),
            (0.3, 0.0),
            (0.5, 0.0),
            (0.5, 0.8),
        ),
        poly(dark, (-0.9, 0.8), (-0.9, -0.34), (-0.44, -0.34), (-0.44, 0.8)),
        poly(dark, (0.9, 0.8), (0.9, -0.34), (0.44, -0.34), (0.44, 0.8)),
        poly(roof, (-1.0, -0.34), (-0.67, -0.94), (-0.34, -0.34)),
        poly(roof, (1.0, -0.34), (0.67, -0.94), (0.34, -0.34)),
        poly((80, 56, 44), (-0.17, 0.8), (-0.17, 0.42), (0.0, 0.26), (0.17, 0.42), (0.17, 0.8), fine=True),
        oval((60, 56, 70), -0.67, -0.06, 0.08, 0.12, fine=True),
        oval((60, 56, 70), 0.67, -0.06, 0.08, 0.12, fine=True),
    ]


def apple(rng: np.random.Generator) -> list[Shape]:
    skin = pick(rng, (208, 40, 44), (150, 190, 50), (230, 110, 50))
    return [
        line((100, 70, 44), 0.1, (0.0, -0.42), (0.08, -0.86)),
        oval((80, 150, 60), 0.34, -0.72, 0.3, 0.14, -24),
        poly(
            skin,
            *(
                (
                    0.84 * math.sin(a) * (1 - 0.1 * math.cos(a)),
                    0.18 - 0.66 * math.cos(a) + 0.2 * math.exp(-((a / 0.45) ** 2)),
                )
                for a in np.linspace(-math.pi, math.pi, 40)
            ),
        ),
        oval(shade(skin, 1.5), -0.44, -0.08, 0.13, 0.2, 20, fine=True),
    ]


def butterfly(rng: np.random.Generator) -> list[Shape]:
    wing = pick(rng, (240, 140, 40), (80, 110, 210), (200, 80, 170), (240, 205, 70))
    return [
        *(oval(wing, s * 0.54, -0.34, 0.5, 0.38, s * -32) for s in (-1, 1)),
        *(oval(shade(wing, 0.78), s * 0.44, 0.4, 0.38, 0.32, s * 36) for s in (-1, 1)),
        *(oval(WHITE, s * 0.62, -0.38, 0.15, 0.12, fine=True) for s in (-1, 1)),
        *(line(DARK, 0.06, (0.0, -0.5), (s * 0.26, -0.92)) for s in (-1, 1)),
        oval(DARK, 0.0, 0.02, 0.1, 0.6),
    ]


def sunflower(rng: np.random.Generator) -> list[Shape]:
    petal = pick(rng, (250, 200, 40), (246, 170, 40), (255, 220, 90))
    angles = [i * 360 / 12 for i in range(12)]
    return [
        line((84, 140, 60), 0.12, (0.0, 0.1), (0.02, 1.0)),
        oval((84, 150, 60), 0.34, 0.72, 0.32, 0.14, -28),
        oval((84, 150, 60), -0.32, 0.8, 0.3, 0.13, 28),
        *(
            oval(petal, 0.48 * math.cos(math.radians(a)), -0.3 + 0.48 * math.sin(math.radians(a)), 0.22, 0.1, a)
            for a in angles
        ),
        oval((96, 60, 36), 0.0, -0.3, 0.34, 0.34),
    ]


def house(rng: np.random.Generator) -> list[Shape]:
    wall = pick(rng, (240, 226, 190), (226, 180, 150), (210, 220, 226))
    roof = pick(rng, (186, 70, 54), (110, 80, 70), (80, 100, 130))
    return [
        poly(shade(roof, 0.7), (0.36, -0.4), (0.36, -0.9), (0.6, -0.9), (0.6, -0.2)),
        poly(wall, (-0.74, 0.84), (-0.74, -0.1), (0.74, -0.1), (0.74, 0.84)),
        poly(roof, (-0.98, -0.06), (0.0, -0.86), (0.98, -0.06)),
        poly((120, 76, 46), (-0.14, 0.84), (-0.14, 0.3), (0.16, 0.3), (0.16, 0.84), fine=True),
        *(
            poly((110, 170, 210), (x, 0.14), (x + 0.28, 0.14), (x + 0.28, 0.44), (x, 0.44), fine=True)
            for x in (-0.58, 0.32)
        ),
    ]


def turtle(rng: np.random.Generator) -> list[Shape]:
    shell = pick(rng, (90, 120, 60), (130, 94, 56), (70, 110, 100))
    skin = pick(rng, (150, 190, 90), (170, 180, 110))
    dome = [(0.08 + 0.72 * math.cos(a), 0.36 - 0.8 * math.sin(a)) for a in np.linspace(0, math.pi, 20)]
    return [
        poly(skin, (0.7, 0.3), (1.0, 0.42), (0.7, 0.46)),
        oval(skin, -0.42, 0.52, 0.18, 0.26, 14),
        oval(skin, 0.5, 0.52, 0.18, 0.26, -14),
        oval(skin, -0.8, 0.12, 0.25, 0.2),
        poly(shell, *dome),
        line(shade(shell, 1.5), 0.06, (-0.52, 0.14), (0.68, 0.14), fine=True),
        *(
            line(shade(shell, 1.5), 0.06, (x, -0.36), (x + d, 0.3), fine=True)
            for x, d in ((-0.12, -0.14), (0.28, 0.14))
        ),
        poly(shade(shell, 0.7), (-0.7, 0.3), (0.86, 0.3), (0.8, 0.46), (-0.62, 0.46)),
        oval(DARK, -0.88, 0.06, 0.05, 0.05, fine=True),
    ]


OBJECTS: dict[str, Callable[[np.random.Generator], list[Shape]]] = {
    f.__name__: f
    for f in (
        *(airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck),
        *(apple, butterfly, castle, house, mushroom, rocket, sunflower, turtle),
    )
}
CIFAR10 = tuple(OBJECTS)[:10]
OUT_OF_DOMAIN = tuple(OBJECTS)[10:]
ANIMALS = ("bird", "cat", "deer", "dog", "frog", "horse", "butterfly", "turtle")
