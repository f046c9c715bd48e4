"""Outlines of objects, with a halo that keeps them visible on any ground, and masks."""

from __future__ import annotations

import cv2
import numpy as np

from deploykit.runtime.arrays import Array
from deploykit.runtime.drawing.palette import Colour, halo

__all__ = ["draw_box", "draw_mask", "draw_polygon", "line_width", "whole"]

FAR = 30_000  # OpenCV draws lines only with coordinates of up to 16 bits
MASK_SHARE = 0.45
SMALL = 14  # pixels of the shorter side, below which a halo would hide the object


def line_width(image_size: tuple[int, int]) -> int:
    """Return the width of lines in pixels for an image of (height, width)."""
    mean = sum(image_size) / 2
    return max(1 if mean < 300 else 2, round(mean / 400))


def draw_box(canvas: Array, box: Array, colour: Colour, width: int) -> None:
    """Draw an upright box ``(4,)`` xyxy, with a halo unless it is small."""
    x1, y1, x2, y2 = whole(box)
    if min(x2 - x1, y2 - y1) >= SMALL:
        _draw_frame(canvas, (x1, y1, x2, y2), halo(colour), width + 2 * _margin(width))
    _draw_frame(canvas, (x1, y1, x2, y2), colour, width)


def _draw_frame(canvas: Array, box: tuple[int, int, int, int], colour: Colour, width: int) -> None:
    """Draw four lines of exactly this width along the edges of a box; OpenCV's are wider than they are asked to be."""
    before = width // 2
    x1, y1, x2, y2 = (max(value - before, -width) for value in box)  # where the lines begin; -width: outside
    left, right = max(x1, 0), max(x2 + width, 0)
    top, bottom = max(y1, 0), max(y2 + width, 0)
    for y in (y1, y2):
        canvas[max(y, 0) : y + width, left:right] = colour
    for x in (x1, x2):
        canvas[top:bottom, max(x, 0) : x + width] = colour


def draw_polygon(canvas: Array, corners: Array, colour: Colour, width: int) -> None:
    """Draw an oriented box ``(4, 2)``: its outline, and a tick at either end of its axis.

    The axis is that of the side w, whose angle the box has; an angle below a half turn has no front and no back. The
    corners are in the order of :func:`deploykit.runtime.postprocess.rotated.corners_of`.
    """
    points = np.array([whole(corner) for corner in corners], np.int32)
    first, last = (corners[0] + corners[1]) / 2, (corners[2] + corners[3]) / 2  # of the ends of the side w
    length = float(np.hypot(*(first - last)))
    reach = (first - last) / max(length, 1e-6) * (3 * width + 2)
    ticks = [(whole(first), whole(first + reach)), (whole(last), whole(last - reach))]
    for tint, thick in ((halo(colour), width + 2 * _margin(width)), (colour, width)):
        cv2.polylines(canvas, [points], True, tint, thick, cv2.LINE_AA)
        for start, end in ticks:
            cv2.line(canvas, start, end, tint, thick, cv2.LINE_AA)


def draw_mask(canvas: Array, mask: Array, colour: Colour, width: int) -> None:
    """Tint the pixels of a bool mask ``(H, W)`` and draw its outline in the same colour."""
    pixels = mask.view(np.uint8)
    x, y, wide, high = cv2.boundingRect(pixels)
    if not wide:
        return
    part = (slice(y, y + high), slice(x, x + wide))
    inside, field = mask[part], canvas[part]
    field[inside] = np.rint(field[inside] * (1 - MASK_SHARE) + np.multiply(colour, MASK_SHARE)).astype(np.uint8)
    outlines, _ = cv2.findContours(
        np.ascontiguousarray(pixels[part]), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE, offset=(x, y)
    )
    cv2.drawContours(canvas, outlines, -1, colour, max(1, width // 2), cv2.LINE_AA)


def whole(values: Array) -> list[int]:
    """Return coordinates as whole numbers that OpenCV can draw."""
    return [int(v) for v in np.clip(np.rint(values), -FAR, FAR)]


def _margin(width: int) -> int:
    return max(1, round(width / 3))
