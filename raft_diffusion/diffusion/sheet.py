"""Pictures side by side on one sheet, with labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

_LEAST = 128  # px: smaller pictures are hard to see
_GAP = 4  # px between pictures
_PAD = 8  # px around a label
_FONT = 14  # px
_LABEL_WIDTH = 160  # px at most for the labels of rows
_INK = (40, 40, 40)


def grid(
    rows: Sequence[Sequence[Image.Image]],
    *,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
) -> Image.Image:
    """One RGB sheet of rows of pictures, on white. Small pictures are enlarged by a whole factor, never smoothed.

    row_labels, column_labels: one each, or none at all. A long one is wrapped where there is room and cut with an
    ellipsis where there is none. Raises ValueError when their number does not fit, or there is no picture.
    """
    columns = max(map(len, rows), default=0)
    if not columns:
        raise ValueError("a grid needs at least one picture")
    for what, labels, count in (("row", row_labels, len(rows)), ("column", column_labels, columns)):
        if labels and len(labels) != count:
            raise ValueError(f"a grid of {count} {what}s needs as many labels, not {len(labels)}")
    scale = max(1, -(-_LEAST // max(side for row in rows for image in row for side in image.size)))
    width = scale * max(image.width for row in rows for image in row)
    height = scale * max(image.height for row in rows for image in row)
    font: Any = ImageFont.load_default(_FONT)
    line = _FONT + 4
    side = [_wrapped(label, font, _LABEL_WIDTH, max(1, height // line)) for label in row_labels]
    head = [_wrapped(label, font, width - _PAD, 2) for label in column_labels]
    left = 2 * _PAD + round(max((font.getlength(text) for lines in side for text in lines), default=0)) if side else 0
    top = 2 * _PAD + line * max(map(len, head)) if head else 0
    size = (left + columns * (width + _GAP) - _GAP, top + len(rows) * (height + _GAP) - _GAP)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for number, lines in enumerate(head):
        middle = left + number * (width + _GAP) + width / 2
        for index, text in enumerate(lines):
            draw.text((middle, top - _PAD - (len(lines) - index) * line), text, _INK, font, "ma")
    for number, row in enumerate(rows):
        y = top + number * (height + _GAP)
        if side:
            start = y + (height - line * len(side[number])) / 2
            for index, text in enumerate(side[number]):
                draw.text((_PAD, start + index * line), text, _INK, font, "la")
        for column, image in enumerate(row):
            large = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
            sheet.paste(large, (left + column * (width + _GAP), y))
    return sheet


def _wrapped(text: str, font: Any, width: float, most: int) -> list[str]:
    """At most `most` lines of at most `width` px; what does not fit ends in an ellipsis."""
    words, lines = text[:1000].split(), []
    while words and len(lines) < most - 1:
        count = next((n for n in range(len(words), 1, -1) if font.getlength(" ".join(words[:n])) <= width), 1)
        lines.append(_cut(" ".join(words[:count]), font, width))
        words = words[count:]
    return [*lines, _cut(" ".join(words), font, width)] if words else lines


def _cut(text: str, font: Any, width: float) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text.rstrip()}…"
