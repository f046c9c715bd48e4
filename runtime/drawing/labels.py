"""Labels: text on a field of the object's colour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from deploykit.runtime.arrays import Array
from deploykit.runtime.drawing.fonts import Typeface, rendered
from deploykit.runtime.drawing.palette import Colour, ink
from deploykit.runtime.drawing.placement import place_labels

__all__ = ["Label", "blend", "draw_labels", "line_mask", "text_size"]

SHRINK = 0.8
SMALLEST = 9
MANY = 40  # labels, whose text is smaller
CUT = ".."


@dataclass(frozen=True)
class Label:
    """One line of text, a font that has it, and the colour of its field."""

    text: str
    typeface: Typeface
    colour: Colour


def text_size(image_size: tuple[int, int]) -> int:
    """Return the size of text in pixels of the em square for an image of (height, width).

    It grows with the image, so that text is as large on a screen that shows the whole image; small images have text of
    at least 10 pixels, which is the least that can be read.
    """
    mean = sum(image_size) / 2
    return round(max(0.0165 * mean, min(12.0, 9 + mean / 150)))


def draw_labels(
    canvas: Array, boxes: Array, labels: Sequence[Label], classes: Array, anchors: Array | None = None
) -> None:
    """Draw the labels of N objects, the best first, where they fit: see
    :mod:`deploykit.runtime.drawing.placement`."""
    full = text_size(canvas.shape[:2])
    small = max(SMALLEST, round(SHRINK * full))
    sizes = [small] if len(labels) > MANY or small >= full else [full, small]
    most = canvas.shape[1]
    fields = [[_field(label, size, most) for size in sizes] for label in labels]
    extents = np.array([[field.shape[1::-1] for field in each] for each in fields]).reshape(len(labels), len(sizes), 2)
    places = place_labels(boxes, extents, canvas.shape[:2], anchors, classes)
    for each, place in zip(fields, places, strict=True):
        if place is not None:
            field = each[place.size]
            canvas[place.y : place.y + field.shape[0], place.x : place.x + field.shape[1]] = field


@lru_cache(maxsize=1024)
def _field(label: Label, size: int, most: int) -> Array:
    """Return the pixels of a label, ``uint8 (h, w, 3)``, at most ``most`` wide if any of its text is."""
    text = label.text
    if not text:
        return np.empty((0, 0, 3), np.uint8)
    mask = line_mask(label.typeface, text, size)
    gap = max(2, round(size / 5))
    while mask.shape[1] + 2 * gap > most and len(text) > 1:
        text = text[:-1]
        mask = line_mask(label.typeface, text + CUT, size)
    field = np.empty((mask.shape[0], mask.shape[1] + 2 * gap, 3), np.uint8)
    field[:] = label.colour
    blend(field[:, gap:-gap], mask, ink(label.colour))
    field.flags.writeable = False
    return field


def line_mask(typeface: Typeface, text: str, size: int) -> Array:
    """Return the coverage of one line of text, ``uint8 (h, w)``, with a little room above and below its letters."""
    mask = rendered(typeface, text, size)
    above = 0 if not text.isascii() else round(0.18 * size)  # accents and ideographs are taller than capitals
    return mask[above:]


def blend(field: Array, mask: Array, colour: Colour) -> None:
    """Lay a colour over a field ``uint8 (h, w, 3)`` as far as a mask of the same size covers it."""
    share = mask[..., None].astype(np.uint16)
    field[:] = (field * (255 - share) + share * np.array(colour, np.uint16) + 127) // 255
