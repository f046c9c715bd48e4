"""Keypoints and the limbs between them."""

from __future__ import annotations

import cv2
import numpy as np

from deploykit.runtime.arrays import Array
from deploykit.runtime.drawing.marks import whole
from deploykit.runtime.drawing.palette import Colour
from deploykit.spec import KeypointSpec

__all__ = ["draw_keypoints"]

LEFT, RIGHT, MIDDLE = (40, 140, 255), (255, 170, 50), (110, 225, 110)  # BGR: orange, blue, green
OUTLINE = (30, 30, 30)
OUTLINED = 60  # pixels of an object's shorter side, from which its limbs have outlines


def draw_keypoints(canvas: Array, points: Array, spec: KeypointSpec, threshold: float, width: int, side: float) -> None:
    """Draw the keypoints of one object whose visibility is at least ``threshold``, and the limbs between them.

    The more certain half of the range above the threshold is drawn as discs, the less certain half as rings: what a
    network is not sure of looks so. Those of the left side of a body are orange, of the right side blue, others green,
    if the spec names sides. Small objects get small dots: a face of 12 pixels must not vanish under its keypoints.

    Args:
        canvas: BGR ``uint8 (H, W, 3)``, drawn on.
        points: ``(K, 3)`` x, y, visibility.
        spec: limbs and sides.
        threshold: of the visibility.
        width: of limbs, in pixels.
        side: the shorter side of the object, in pixels.
    """
    sides = dict.fromkeys((left for left, _ in spec.flip_pairs), LEFT)
    sides |= dict.fromkeys((right for _, right in spec.flip_pairs), RIGHT)
    places = [tuple(whole(point[:2])) for point in points]
    shown = points[:, 2] >= threshold
    limbs = [(a, b) for a, b in spec.skeleton if shown[a] and shown[b]]
    if side >= OUTLINED:
        for a, b in limbs:
            cv2.line(canvas, places[a], places[b], OUTLINE, width + 2, cv2.LINE_AA)
    for a, b in limbs:
        colour = sides[a] if a in sides and sides[a] == sides.get(b) else MIDDLE
        cv2.line(canvas, places[a], places[b], colour, width, cv2.LINE_AA)
    radius = min(width + 1, round(side / 24))
    certain = points[:, 2] >= (1 + threshold) / 2
    for i in np.flatnonzero(shown):
        _draw_point(canvas, places[i], sides.get(int(i), MIDDLE), radius, hollow=not certain[i])


def _draw_point(canvas: Array, place: tuple[int, ...], colour: Colour, radius: int, *, hollow: bool) -> None:
    if radius >= 2:
        cv2.circle(canvas, place, radius + 1, OUTLINE, cv2.FILLED, cv2.LINE_AA)
        if hollow:
            cv2.circle(canvas, place, radius, colour, max(1, radius // 3), cv2.LINE_AA)
            return
    cv2.circle(canvas, place, radius, colour, cv2.FILLED, cv2.LINE_AA if radius > 1 else cv2.LINE_8)
