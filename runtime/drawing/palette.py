"""Colours of classes, which can be told apart by people with any kind of colour vision.

The table was optimised for the smallest CIEDE2000 difference between its colours, with normal vision and as simulated
for protanopia, deuteranopia and tritanopia. The first ten are furthest apart, then the first twenty, then all; beyond
twenty, their order keeps those of neighbouring numbers apart, because related classes of COCO have such numbers and are
seen together. tests/runtime/drawing/test_palette.py has the numbers.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from deploykit.runtime.arrays import Array

__all__ = ["Colour", "class_colour", "halo", "ink", "palette", "shade"]

Colour = tuple[int, int, int]
"""BGR, 0 to 255."""

BLACK, WHITE = (0, 0, 0), (255, 255, 255)
HALO = 0.75  # of black or white in the line around a line

TABLE = bytes.fromhex("""
    1edc6e 1848ff a80000 903078 ff9000 ffa8ff 907800 0090f0 d8f000 ff3078 7860a8 c0f0a8
    30fff0 c01848 006018 ff18f0 18c0d8 789048 ff3030 18a890 d86078 7890c0 7848c0 a8f0d8
    a81860 90c048 d8c090 c090ff 78ff78 909000 787830 a86060 3078ff ff00c0 9078c0 306090
    189078 ff7860 ff90c0 60c078 90f0ff d8a830 a8a8f0 a8f060 a800d8 ffc0a8 a878a8 784818
    a84878 a87830 ff7890 78d8d8 d89030 c078d8 a8a860 9060d8 a8d8a8 d818a8 f0d848 904848
    9000a8 307860 a8c0f0 f0a8c0 c090c0 c06090 609060 18c090 d818d8 ff6000 906018 c0c060
    606030 6000f0 484890 f0c0f0 ff78d8 906090 78c0a8 1878c0 18ffc0 d83048 78a848 187818
    d8d890 1848c0 903048 f0c000 a878ff d878a8 6078a8 00d8c0 d80078 78a8d8 c07848 90a878
""")
"""Red, green and blue of the classes 0 to 95."""
COUNT = len(TABLE) // 3

VARIANTS = (0.0, -0.4, 0.45)  # the table again for classes from 96 on: mixed with black, and with white
SHADES = (0.0, 0.5, -0.3, 0.8, -0.55, -0.75)  # of the instances of one class


@lru_cache(maxsize=512)
def class_colour(label: int) -> Colour:
    """Return the BGR colour of a class. Colours differ for the first 288 classes, and are clearly distinct for 96."""
    red, green, blue = TABLE[3 * (label % COUNT) :][:3]
    return mixed((blue, green, red), VARIANTS[label // COUNT % len(VARIANTS)])


def palette(count: int) -> Array:
    """Return the colours of the classes 0, 1, ... as BGR ``uint8 (count, 3)``."""
    return np.array([class_colour(label) for label in range(count)], np.uint8).reshape(count, 3)


def shade(colour: Colour, number: int) -> Colour:
    """Return the shade of a colour for instance ``number`` of its class; the first has the colour itself."""
    return mixed(colour, SHADES[number % len(SHADES)])


def mixed(colour: Colour, share: float) -> Colour:
    """Return a colour mixed with white, or with black if ``share`` is negative."""
    target = WHITE if share > 0 else BLACK
    blue, green, red = (round(c + (t - c) * abs(share)) for c, t in zip(colour, target, strict=True))
    return blue, green, red


def luminance(colour: Colour) -> float:
    """Return the relative luminance of a BGR colour by WCAG, 0 to 1."""
    blue, green, red = (c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def ink(colour: Colour) -> Colour:
    """Return black or white, whichever has the higher contrast on a colour; it is never below 4.58 to 1."""
    return BLACK if luminance(colour) > 0.179 else WHITE


@lru_cache(maxsize=512)
def halo(colour: Colour) -> Colour:
    """Return the colour of the line around a line: a dark shade around bright colours, a light one around dark ones."""
    return mixed(colour, -HALO if luminance(colour) > 0.179 else HALO)
