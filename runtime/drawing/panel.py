"""Lines of text in a corner of an image: classes with their probabilities, legends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from deploykit.errors import UsageError
from deploykit.runtime.arrays import Array
from deploykit.runtime.drawing.fonts import Typeface, plain_text, rendered, typeface_for
from deploykit.runtime.drawing.labels import blend, line_mask, text_size
from deploykit.runtime.drawing.palette import Colour

__all__ = ["Line", "draw_lines", "draw_panel"]

MOST_WIDTH = 0.9  # of the image
SMALLEST = 7  # pixels of the em square; a panel that is still too large loses its last lines
WORTH_MOVING = 0.7  # another corner is taken if it has less than this share of the first one's edges
INK: Colour = (255, 255, 255)
BAR: Colour = (200, 150, 60)


@dataclass(frozen=True)
class Line:
    """A line of a panel: its text, a font that has it, the colour of a field before it, and a bar behind it, 0 to 1."""

    text: str
    typeface: Typeface
    field: Colour | None = None
    bar: float | None = None


def draw_lines(image: Array, lines: Sequence[str]) -> Array:
    """Write lines of text on a dark ground at the top left of a copy of an image (BGR ``uint8 (H, W, 3)``).

    Raises:
        UsageError: no font has one of the lines.
    """
    found = []
    for line in lines:
        text = plain_text(line)
        typeface = typeface_for(text)
        if typeface is None:
            raise UsageError(f"no font here has all characters of {text!r}: install opencv-python>=5")
        found.append(Line(text, typeface))
    return draw_panel(image, found, steady=True)


def draw_panel(image: Array, lines: Sequence[Line], *, steady: bool) -> Array:
    """Draw lines on a dark ground in a corner of a copy of an image (BGR ``uint8 (H, W, 3)``), as large as fits.

    The image keeps its size, so the panel covers a part of it.

    Args:
        image: the image.
        lines: the lines, the most important first; those at the end are left out if there is no room.
        steady: use the top left corner, as in a video; else the corner in which the least is to be seen.
    """
    canvas = image.copy()
    if not lines:
        return canvas
    height, width = canvas.shape[:2]
    size = text_size((height, width))
    wide, high = _extent(lines, size)
    while size > SMALLEST and (wide > MOST_WIDTH * width or high > height):
        size -= 1
        wide, high = _extent(lines, size)
    step = _step(size)
    lines = lines[: max(1, (height - step // 2) // step)]
    wide, high = (min(a, b) for a, b in zip(_extent(lines, size), (width, height), strict=True))
    x, y = (0, 0) if steady else _corner(image, wide, high)
    field = canvas[y : y + high, x : x + wide]
    field[:] = field // 4
    left = step // 3
    for i, line in enumerate(lines):
        _draw_line(field[:, left:], line, step // 4 + i * step, size)
    return canvas


def _draw_line(field: Array, line: Line, top: int, size: int) -> None:
    """Draw one line at the left of a field, ``top`` pixels below its top."""
    if line.bar is not None:
        length = round((field.shape[1] - _step(size) // 3) * min(max(line.bar, 0.0), 1.0))
        part = field[top + 1 : top + _step(size) - 1, :length]
        part[:] = (part.astype(np.uint16) + np.array(BAR, np.uint16) * 2) // 3
    start = 0
    if line.field is not None:
        side = round(0.9 * size)
        corner = (side, top + round(0.15 * size))
        cv2.rectangle(field, (0, corner[1]), (corner[0], corner[1] + round(0.85 * size)), line.field, cv2.FILLED)
        cv2.rectangle(field, (0, corner[1]), (corner[0], corner[1] + round(0.85 * size)), (200, 200, 200), 1)
        start = side + size // 3
    mask = line_mask(line.typeface, line.text, size)
    offset = 0 if not line.text.isascii() else round(0.18 * size)
    place = field[top + offset : top + offset + mask.shape[0], start : start + mask.shape[1]]
    blend(place, mask[: place.shape[0], : place.shape[1]], INK)


def _extent(lines: Sequence[Line], size: int) -> tuple[int, int]:
    """Return the panel's width and height in pixels."""
    step = _step(size)
    widest = max(
        rendered(line.typeface, line.text, size).shape[1] + (round(0.9 * size) + size // 3 if line.field else 0)
        for line in lines
    )
    return widest + 2 * (step // 3), step * len(lines) + step // 2


def _step(size: int) -> int:
    return round(1.4 * size)


def _corner(image: Array, wide: int, high: int) -> tuple[int, int]:
    """Return the top left corner of the panel in the corner of the image that has the fewest edges."""
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).astype(np.int16)
    height, width = grey.shape
    places = [(0, 0), (width - wide, 0), (0, height - high), (width - wide, height - high)]
    busy = []
    for x, y in places:
        part = grey[y : y + high, x : x + wide]
        edges = float(np.abs(np.diff(part, axis=0)).sum() + np.abs(np.diff(part, axis=1)).sum())
        busy.append(edges / part.size + 1)
    best = int(np.argmin(busy))
    return places[best] if busy[best] < WORTH_MOVING * busy[0] else places[0]
