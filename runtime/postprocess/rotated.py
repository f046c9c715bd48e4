"""Oriented boxes ``(N, 5)``: cx, cy, w, h, and the angle in radians from x towards y (clockwise on the screen).

The sides w lie along the angle. A box is the same after half a turn, and after a quarter with w and h exchanged.
"""

from __future__ import annotations

import cv2
import numpy as np

from deploykit.runtime.arrays import Array
from deploykit.runtime.images.letterbox import Letterbox

__all__ = ["corners_of", "hulls_of", "longer_first", "rectangle_around", "rotated_to_source"]


def corners_of(rotated: Array) -> Array:
    """Return the four corners of each box, ``(N, 4, 2)``, one after the other along its border."""
    centre, along, across = rotated[:, :2], *_halves(rotated)
    return np.stack(
        (centre + along + across, centre + along - across, centre - along - across, centre - along + across), 1
    )


def hulls_of(rotated: Array) -> Array:
    """Return the upright boxes around the boxes, ``(N, 4)`` x1, y1, x2, y2."""
    along, across = _halves(rotated)
    reach = np.abs(along) + np.abs(across)
    return np.concatenate((rotated[:, :2] - reach, rotated[:, :2] + reach), 1)


def longer_first(rotated: Array) -> Array:
    """Return the same boxes with ``w >= h`` and the angle, the direction of the longer side, in 0 up to below pi."""
    turned = rotated[:, 3] > rotated[:, 2]
    found = np.where(turned[:, None], rotated[:, [0, 1, 3, 2, 4]], rotated)
    angle = np.mod(rotated[:, 4] + np.where(turned, np.pi / 2, 0.0), np.pi).astype(found.dtype)
    found[:, 4] = np.where(angle < np.pi, angle, 0.0)  # a remainder just below pi may be rounded up to it
    return found


def rectangle_around(points: Array) -> Array:
    """Return the smallest rectangle around points ``(N, 2)``, ``(5,)`` float64 as :func:`longer_first` has it."""
    middle = points.mean(0)  # OpenCV computes in float32, which has no digits to give away to a place far from 0
    (x, y), (width, height), degrees = cv2.minAreaRect((points - middle).astype(np.float32))
    box = np.array([[middle[0] + x, middle[1] + y, width, height, np.deg2rad(degrees)]])
    found: Array = longer_first(box)[0]
    return found


def rotated_to_source(rotated: Array, letterbox: Letterbox) -> Array:
    """Map boxes in network pixels to source pixels, ``(N, 5)`` float32, as :func:`longer_first` has them; not clipped.

    Where the scales of x and y differ (by the rounding of a letterbox, or much after ``resize``), a rectangle becomes a
    parallelogram. The box then keeps its longer side, in direction and length, and its area.
    """
    boxes = longer_first(rotated.astype(np.float64))
    (x_scale, y_scale), angle = letterbox.scale, boxes[:, 4]
    x, y = np.cos(angle) / x_scale, np.sin(angle) / y_scale
    stretch = np.hypot(x, y)
    width, height = boxes[:, 2] * stretch, boxes[:, 3] / (x_scale * y_scale * stretch)
    mapped = np.column_stack((letterbox.to_source(boxes[:, :2]), width, height, np.arctan2(y, x)))
    return longer_first(mapped.astype(np.float32))


def _halves(rotated: Array) -> tuple[Array, Array]:
    """The vectors from the centre to the middles of two neighbouring sides, ``(N, 2)`` each."""
    cos, sin = np.cos(rotated[:, 4]), np.sin(rotated[:, 4])
    half = rotated[:, 2:4] / 2
    return half[:, :1] * np.column_stack((cos, sin)), half[:, 1:] * np.column_stack((-sin, cos))
