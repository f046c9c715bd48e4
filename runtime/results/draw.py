"""Boxes, labels, masks, limbs and keypoints on an image."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np

from deploykit.runtime.arrays import Array
from deploykit.spec import KeypointSpec

__all__ = ["draw", "draw_lines"]

Colour = tuple[int, int, int]

FONT = cv2.FONT_HERSHEY_SIMPLEX
LEFT, RIGHT, MIDDLE = (60, 160, 255), (255, 170, 50), (110, 225, 110)  # BGR: orange, blue, green
OUTLINE = (30, 30, 30)
FAR = 30_000  # OpenCV draws lines only with coordinates of up to 16 bits
MASK_SHARE = 0.45


def draw(
    image: Array,
    boxes: Array,
    scores: Array,
    labels: Array,
    names: Sequence[str],
    *,
    keypoints: Array | None = None,
    keypoint_spec: KeypointSpec | None = None,
    keypoint_threshold: float = 0.5,
    masks: Array | None = None,
    corners: Array | None = None,
) -> Array:
    """Draw N objects on a copy of ``image`` (BGR ``uint8 (H, W, 3)``); the arrays have the best object first.

    Each class has one colour. Keypoints and limbs are orange on the left side of the body, blue on the right and green
    between, if the spec names sides. Keypoints below their threshold are left out, with their limbs.

    Args:
        image: the image in which the objects were found.
        boxes: ``(N, 4)`` xyxy in its pixels.
        scores: ``(N,)``.
        labels: ``(N,)``; they choose the colours.
        names: N texts, written at the boxes.
        keypoints: ``(N, K, 3)``, x, y and visibility.
        keypoint_spec: limbs and sides of the K keypoints; None: unknown.
        keypoint_threshold: the visibility from which a keypoint is drawn.
        masks: ``(N, H, W)`` bool.
        corners: ``(N, 4, 2)``, of oriented boxes, which are drawn in place of ``boxes``.
    """
    canvas = image.copy()
    width = max(1, round(sum(image.shape[:2]) / 2 * 0.0025))
    if masks is not None:
        for mask, label in zip(masks, labels, strict=True):
            canvas[mask] = canvas[mask] * (1 - MASK_SHARE) + np.multiply(class_colour(int(label)), MASK_SHARE)
    weakest_first = range(len(boxes))[::-1]
    places = [_whole(box)[:2] for box in boxes]  # of the labels
    for i in weakest_first:
        colour = class_colour(int(labels[i]))
        if corners is None:
            x1, y1, x2, y2 = _whole(boxes[i])
            cv2.rectangle(canvas, (x1, y1), (x2, y2), colour, width, cv2.LINE_AA)
        else:
            points = [_whole(corner) for corner in corners[i]]
            x, y = min(points, key=lambda point: point[1])
            places[i] = [x, max(y, 0)]  # these boxes are not clipped to the image
            cv2.polylines(canvas, [np.array(points, np.int32)], True, colour, width, cv2.LINE_AA)
    if keypoints is not None:
        spec = keypoint_spec or KeypointSpec.unnamed(keypoints.shape[1])
        for i in weakest_first:
            # Small objects get small points: a face of 20 pixels must not vanish under its keypoints.
            side = float(min(boxes[i, 2:] - boxes[i, :2]))
            _draw_keypoints(canvas, keypoints[i], spec, keypoint_threshold, min(width, max(1, round(side / 40))))
    for i in weakest_first:
        text = f"{names[i]} {scores[i]:.2f}"
        _draw_label(canvas, text, places[i], class_colour(int(labels[i])), width)
    return canvas


def class_colour(label: int) -> Colour:
    """Return the BGR colour of a class; neighbours are a golden section of the colour circle apart."""
    hue = (0.36 + label * 0.61803398875) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.75, (0.95, 0.8)[label % 2])
    return round(blue * 255), round(green * 255), round(red * 255)


def _draw_keypoints(canvas: Array, points: Array, spec: KeypointSpec, threshold: float, width: int) -> None:
    sides = dict.fromkeys((left for left, _ in spec.flip_pairs), LEFT)
    sides |= dict.fromkeys((right for _, right in spec.flip_pairs), RIGHT)
    places = [tuple(_whole(point[:2])) for point in points]
    seen = points[:, 2] >= threshold
    for a, b in spec.skeleton:
        if seen[a] and seen[b]:
            colour = sides[a] if a in sides and sides[a] == sides.get(b) else MIDDLE
            cv2.line(canvas, places[a], places[b], colour, width, cv2.LINE_AA)
    for i, place in enumerate(places):
        if seen[i]:
            cv2.circle(canvas, place, width + 2, OUTLINE, cv2.FILLED, cv2.LINE_AA)
            cv2.circle(canvas, place, width + 1, sides.get(i, MIDDLE), cv2.FILLED, cv2.LINE_AA)


def _draw_label(canvas: Array, text: str, corner: list[int], colour: Colour, width: int) -> None:
    """Draw the text on a filled background above the box, or inside it at the edge of the image."""
    scale, stroke, gap = 0.25 + 0.15 * width, max(1, width // 2), 1 + width
    (text_width, text_height), below = cv2.getTextSize(text, FONT, scale, stroke)
    wide, high = text_width + 2 * gap, text_height + below + gap
    left = max(0, min(corner[0] - width // 2, canvas.shape[1] - wide))
    top = corner[1] - high if corner[1] >= high else corner[1]
    cv2.rectangle(canvas, (left, top), (left + wide, top + high), colour, cv2.FILLED)
    bright = 0.114 * colour[0] + 0.587 * colour[1] + 0.299 * colour[2] > 140
    ink = (0, 0, 0) if bright else (255, 255, 255)
    cv2.putText(canvas, text, (left + gap, top + text_height + gap // 2), FONT, scale, ink, stroke, cv2.LINE_AA)


def _whole(values: Array) -> list[int]:
    return [int(v) for v in np.clip(np.rint(values), -FAR, FAR)]


def draw_lines(image: Array, lines: Sequence[str]) -> Array:
    """Write lines of text at the top left of a copy of an image (BGR ``uint8 (H, W, 3)``)."""
    canvas = image.copy()
    height, width = canvas.shape[:2]
    widest = max((cv2.getTextSize(line, FONT, 1.0, 2)[0][0] for line in lines), default=1)
    scale = float(max(0.25, min(np.clip(min(height, width) / 700, 0.4, 2.0), 0.9 * width / widest)))
    step, stroke = round(34 * scale), max(1, round(1.6 * scale))
    right, bottom = min(width, round((widest + 24) * scale)), min(height, step * len(lines) + step // 2)
    canvas[:bottom, :right] = canvas[:bottom, :right] // 4
    for i, line in enumerate(lines, start=1):
        place = (round(12 * scale), step * i)
        cv2.putText(canvas, line, place, FONT, scale, (255, 255, 255), stroke, cv2.LINE_AA)
    return canvas
