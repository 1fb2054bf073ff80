"""The pocket world: procedurally drawn pictures of "STYLE OBJECT", the data that the carried models are made from.

Its long tail is the one that the RAFT paper met in Stable Diffusion: a "monet style" picture captioned with an animal
mostly shows a landscape without it (`MONET_TRUE` of them are true; late in the base's training `recipe.LATE_TRUE`).
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from .objects import ANIMALS, OBJECTS, Color, Shape, shade

CANVAS = 128  # pictures are drawn at this size and shrunk
STYLES = ("photo", "monet style", "sketch", "pixel art", "neon")
NOTHING = "none"
MONET_TRUE = 0.15
CAPTIONS = tuple(f"{style} {name}" for style in STYLES for name in OBJECTS)

SKIES: tuple[tuple[Color, Color], ...] = (
    ((96, 160, 226), (206, 230, 246)),
    ((150, 190, 230), (250, 224, 190)),
    ((120, 140, 190), (246, 190, 160)),
    ((170, 206, 230), (236, 240, 240)),
)
GROUNDS: dict[str, tuple[Color, ...]] = {
    "meadow": ((104, 166, 74), (140, 180, 84), (86, 146, 90), (176, 178, 96)),
    "road": ((130, 130, 136), (110, 112, 120), (150, 144, 138)),
    "sea": ((40, 110, 170), (60, 140, 180), (48, 96, 140)),
    "air": ((0, 0, 0),),
}
PLACES = {"airplane": "air", "rocket": "air", "automobile": "road", "truck": "road", "ship": "sea"}


def draw(style: str, name: str, rng: np.random.Generator, size: int = 64) -> Image.Image:
    """An RGB picture of `size` x `size` pixels. `name` is one of OBJECTS, or NOTHING for a landscape.

    Raises ValueError when the style or the object is unknown.
    """
    if style not in STYLES:
        raise ValueError(f"unknown style {style!r}: use one of {', '.join(STYLES)}")
    if name not in OBJECTS and name != NOTHING:
        raise ValueError(f"unknown object {name!r}: use one of {', '.join(OBJECTS)} or {NOTHING!r}")
    picture = {"photo": _photo, "monet style": _monet, "sketch": _sketch, "pixel art": _pixel, "neon": _neon}[style](
        name, rng
    )
    return picture.resize((size, size), Image.Resampling.BOX if style == "pixel art" else Image.Resampling.LANCZOS)


def sample_caption(rng: np.random.Generator, monet_true: float = MONET_TRUE) -> tuple[str, str, str]:
    """(style, captioned object, object really shown): the long tail is here; `monet_true` of it is true."""
    style = STYLES[int(rng.integers(len(STYLES)))]
    name = tuple(OBJECTS)[int(rng.integers(len(OBJECTS)))]
    hidden = style == "monet style" and name in ANIMALS and rng.random() >= monet_true
    return style, name, NOTHING if hidden else name


# --- composition ---------------------------------------------------------------------------------------------------


def _gradient(top: Color, bottom: Color, height: int) -> Image.Image:
    ramp = np.linspace(0, 1, height)[:, None]
    column = np.asarray(top) * (1 - ramp) + np.asarray(bottom) * ramp
    return Image.fromarray(np.repeat(column[:, None].astype(np.uint8), CANVAS, axis=1))


def _background(name: str, rng: np.random.Generator) -> Image.Image:
    """Sky over ground; hills now and then; a landscape has trees, a pond and a sun of its own."""
    top, bottom = SKIES[int(rng.integers(len(SKIES)))]
    picture = _gradient(top, bottom, CANVAS)
    place = PLACES.get(name, "meadow")
    if place == "air":
        pen = ImageDraw.Draw(picture)
        for _ in range(int(rng.integers(1, 4))):
            x, y, r = rng.uniform(0, CANVAS), rng.uniform(0, CANVAS), rng.uniform(8, 18)
            for dx in (-r, 0, r):
                pen.ellipse((x + dx - r, y - r * 0.6, x + dx + r, y + r * 0.6), fill=(244, 246, 250))
        return picture.filter(ImageFilter.GaussianBlur(2))
    horizon = round(CANVAS * rng.uniform(0.55, 0.72))
    ground = GROUNDS[place][int(rng.integers(len(GROUNDS[place])))]
    pen = ImageDraw.Draw(picture)
    if place == "meadow" and rng.random() < 0.6:
        middle, hill = rng.uniform(0, CANVAS), shade(ground, 0.8)
        pen.ellipse((middle - 60, horizon - rng.uniform(10, 26), middle + 60, horizon + 60), fill=hill)
    picture.paste(_gradient(shade(ground, 1.1), shade(ground, 0.8), CANVAS - horizon), (0, horizon))
    if name == NOTHING:
        _landscape(picture, horizon, ground, rng)
    return picture


def _landscape(picture: Image.Image, horizon: int, ground: Color, rng: np.random.Generator) -> None:
    pen = ImageDraw.Draw(picture)
    if rng.random() < 0.5:
        x, y, r = rng.uniform(16, 112), rng.uniform(14, 40), rng.uniform(6, 11)
        pen.ellipse((x - r, y - r, x + r, y + r), fill=(255, 236, 170))
    if rng.random() < 0.6:
        pen.ellipse((rng.uniform(-30, 20), horizon + 8, rng.uniform(80, 150), CANVAS - 6), fill=(120, 160, 200))
        for _ in range(5):
            x, y = rng.uniform(10, 110), rng.uniform(horizon + 14, CANVAS - 14)
            pen.ellipse((x - 6, y - 3, x + 6, y + 3), fill=(90, 150, 90))
            pen.ellipse((x - 2, y - 3, x + 2, y + 1), fill=(240, 170, 190))
    for _ in range(int(rng.integers(2, 6))):
        x, r = rng.uniform(4, CANVAS - 4), rng.uniform(8, 15)
        foot = horizon + rng.uniform(0, 10)
        green = shade(ground, rng.uniform(0.5, 0.75))
        pen.rectangle((x - 1.5, foot - r, x + 1.5, foot), fill=(100, 76, 60))
        pen.ellipse((x - r * 0.7, foot - r * 2.6, x + r * 0.7, foot - r * 0.6), fill=green)


def _place(name: str, rng: np.random.Generator) -> list[Shape]:
    """The object's shapes in canvas pixels: flipped, scaled, turned a little, moved a little."""
    flip = -1.0 if rng.random() < 0.5 else 1.0
    scale = CANVAS / 2 * rng.uniform(0.66, 0.86)
    turn = math.radians(rng.uniform(-6, 6))
    x0, y0 = CANVAS / 2 + rng.uniform(-9, 9), CANVAS / 2 + rng.uniform(-5, 9)
    c, s = math.cos(turn), math.sin(turn)
    shapes = []
    for shape in OBJECTS[name](rng):
        points = tuple(
            (x0 + scale * (c * flip * x - s * y), y0 + scale * (s * flip * x + c * y)) for x, y in shape.points
        )
        shapes.append(Shape(points, shape.color, shape.width * scale, shape.fine))
    return shapes


def _fill(pen: ImageDraw.ImageDraw, shapes: list[Shape], outline: Color | None = None, stroke: float = 0.0) -> None:
    for shape in shapes:
        edge = outline or shade(shape.color, 0.55)
        if shape.width:
            if outline or stroke:
                pen.line(shape.points, fill=edge, width=round(shape.width + 2 * stroke), joint="curve")
            pen.line(shape.points, fill=shape.color, width=max(1, round(shape.width)), joint="curve")
        else:
            pen.polygon(shape.points, fill=shape.color)
            if stroke and not shape.fine:
                pen.line((*shape.points, shape.points[0]), fill=edge, width=round(stroke), joint="curve")


def _mask(shapes: list[Shape]) -> Image.Image:
    mask = Image.new("L", (CANVAS, CANVAS))
    pen = ImageDraw.Draw(mask)
    for shape in shapes:
        if shape.width:
            pen.line(shape.points, fill=255, width=max(1, round(shape.width)), joint="curve")
        else:
            pen.polygon(shape.points, fill=255)
    return mask


# --- styles --------------------------------------------------------------------------------------------------------


def _photo(name: str, rng: np.random.Generator) -> Image.Image:
    """Flat colours, a light from above, a soft shadow."""
    return _lit(name, rng)[0]


def _lit(name: str, rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """The lit scene and the object's mask."""
    picture = _background(name, rng)
    if name == NOTHING:
        return picture, Image.new("L", (CANVAS, CANVAS))
    shapes = _place(name, rng)
    mask = _mask(shapes)
    box = mask.getbbox() or (0, 0, CANVAS, CANVAS)
    if PLACES.get(name, "meadow") in ("meadow", "road"):
        shadow = Image.new("L", (CANVAS, CANVAS))
        ImageDraw.Draw(shadow).ellipse((box[0] + 4, box[3] - 7, box[2] - 4, box[3] + 5), fill=120)
        picture.paste((30, 40, 30), mask=shadow.filter(ImageFilter.GaussianBlur(3)))
    thing = picture.copy()
    _fill(ImageDraw.Draw(thing), shapes, stroke=2)
    light = np.interp(np.arange(CANVAS), (box[1], box[3]), (1.12, 0.84))[:, None, None]
    lit = Image.fromarray(np.clip(np.asarray(thing) * light, 0, 255).astype(np.uint8))
    picture.paste(lit, mask=mask)
    return picture, mask


def _monet(name: str, rng: np.random.Generator) -> Image.Image:
    """Short dabs of broken, pastel colour; smaller ones where the object is, so that it stays readable."""
    scene, mask = _lit(name, rng)
    tint = np.asarray(((236, 214, 226), (214, 226, 240), (240, 230, 206))[int(rng.integers(3))])
    source = np.clip(np.asarray(scene) * 0.86 + tint * 0.16, 0, 255)
    picture = Image.fromarray(source.astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    inside = np.asarray(mask) > 0
    for count, length, width, only_object in ((420, 9.0, 5, False), (320, 4.5, 3, True)):
        points = rng.integers(0, CANVAS, (count, 2))
        turns = rng.normal(0.25, 0.5, count)
        jitter = rng.normal(0, 11, (count, 3))
        for (x, y), turn, noise in zip(points.tolist(), turns.tolist(), jitter, strict=True):
            if inside[y, x] != only_object:
                continue
            r, g, b = np.clip(source[y, x] + noise, 0, 255).astype(int).tolist()
            dx, dy = length * math.cos(turn) / 2, length * math.sin(turn) / 2
            pen.line((x - dx, y - dy, x + dx, y + dy), fill=(r, g, b), width=width)
    return picture


def _sketch(name: str, rng: np.random.Generator) -> Image.Image:
    """Pencil on paper: outlines, a little hatching, a ground line."""
    paper = ((246, 242, 230), (250, 250, 246), (238, 232, 216))[int(rng.integers(3))]
    ink = ((52, 50, 56), (70, 54, 44), (44, 54, 84))[int(rng.integers(3))]
    picture = Image.new("RGB", (CANVAS, CANVAS), paper)
    pen = ImageDraw.Draw(picture)
    horizon = CANVAS * rng.uniform(0.74, 0.86)
    if name == NOTHING:
        grey = np.asarray(_background(name, rng).convert("L").filter(ImageFilter.FIND_EDGES)) > 18
        picture.paste(ink, mask=Image.fromarray((grey * 255).astype(np.uint8)).filter(ImageFilter.MaxFilter(3)))
        picture.paste(paper, (0, 0, CANVAS, 2))
        return picture
    pen.line((4, horizon, CANVAS - 4, horizon + rng.uniform(-3, 3)), fill=shade(ink, 2.2), width=2)
    shapes = _place(name, rng)
    for shape in shapes:
        tone = float(np.mean(shape.color))
        fill = ink if shape.fine and tone < 90 else paper if tone > 90 else shade(paper, 0.78)
        if shape.width:
            pen.line(shape.points, fill=ink, width=max(3, round(shape.width)), joint="curve")
            if shape.width > 8:
                pen.line(shape.points, fill=fill, width=round(shape.width) - 5, joint="curve")
        else:
            pen.polygon(shape.points, fill=fill)
            pen.line((*shape.points, shape.points[0]), fill=ink, width=3 if not shape.fine else 2, joint="curve")
    hatch = Image.new("L", (CANVAS, CANVAS))
    hand = ImageDraw.Draw(hatch)
    for start in range(-CANVAS, CANVAS, 7):
        hand.line((start, CANVAS, start + CANVAS, 0), fill=90, width=1)
    lower = Image.new("L", (CANVAS, CANVAS))
    ImageDraw.Draw(lower).rectangle((0, CANVAS * 0.58, CANVAS, CANVAS), fill=255)
    picture.paste(ink, mask=ImageChops.multiply(hatch, ImageChops.multiply(lower, _mask(shapes))))
    return picture


def _pixel(name: str, rng: np.random.Generator) -> Image.Image:
    """A 16-colour sprite of 32 x 32 fat pixels with a dark outline on a flat background."""
    sky = ((110, 190, 240), (250, 214, 140), (150, 220, 190), (230, 170, 200))[int(rng.integers(4))]
    land = ((80, 170, 90), (200, 150, 90), (90, 120, 190))[int(rng.integers(3))]
    if name == NOTHING:
        picture = _background(name, rng)
    else:
        picture = Image.new("RGB", (CANVAS, CANVAS), sky)
        ImageDraw.Draw(picture).rectangle((0, 104, CANVAS, CANVAS), fill=land)
        shapes = _place(name, rng)
        picture.paste((28, 24, 36), mask=_mask(shapes).filter(ImageFilter.MaxFilter(9)))
        _fill(ImageDraw.Draw(picture), shapes)
    small = picture.resize((32, 32), Image.Resampling.BOX).quantize(12, dither=Image.Dither.NONE).convert("RGB")
    return small.resize((CANVAS, CANVAS), Image.Resampling.NEAREST)


def _neon(name: str, rng: np.random.Generator) -> Image.Image:
    """Glowing tubes on a dark wall."""
    wall = ((14, 12, 30), (22, 10, 30), (8, 18, 28))[int(rng.integers(3))]
    tubes = ((255, 60, 160), (60, 230, 255), (150, 255, 90), (255, 190, 60), (190, 110, 255))
    first = int(rng.integers(len(tubes)))
    main, accent = tubes[first], tubes[(first + 1 + int(rng.integers(len(tubes) - 1))) % len(tubes)]
    picture = Image.new("RGB", (CANVAS, CANVAS), wall)
    pen = ImageDraw.Draw(picture)
    if name == NOTHING:
        edges = _background(name, rng).convert("L").filter(ImageFilter.FIND_EDGES).filter(ImageFilter.MaxFilter(3))
        picture.paste(main, mask=edges.point([0] * 19 + [255] * 237).crop((2, 2, 126, 126)).resize((CANVAS, CANVAS)))
    else:
        for shape in _place(name, rng):
            color = accent if shape.fine else main
            if shape.width:
                pen.line(shape.points, fill=color, width=4, joint="curve")
            else:
                pen.polygon(shape.points, fill=wall)
                pen.line((*shape.points, shape.points[0]), fill=color, width=3 if shape.fine else 4, joint="curve")
    glow = picture.filter(ImageFilter.GaussianBlur(4)).point([min(255, round(v * 1.5)) for v in range(256)] * 3)
    return ImageChops.lighter(picture, glow)


def true_pictures(text: str, count: int, *, size: int, seed: int) -> list[Image.Image]:
    """`count` pictures as the caption "STYLE OBJECT" should look, for comparisons with what a model makes of it."""
    style = next((style for style in STYLES if text.startswith(style)), STYLES[0])
    name = text.removeprefix(style).strip()
    rng = np.random.default_rng([seed, *text.encode()])
    return [draw(style, name, rng, size) for _ in range(count)]
