"""Objects on an image: masks, boxes, keypoints and labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deploykit.runtime.arrays import Array
from deploykit.runtime.drawing.fonts import class_text
from deploykit.runtime.drawing.keypoints import draw_keypoints
from deploykit.runtime.drawing.labels import Label, draw_labels
from deploykit.runtime.drawing.marks import draw_box, draw_mask, draw_polygon, line_width
from deploykit.runtime.drawing.palette import class_colour, shade
from deploykit.runtime.options import DrawOptions
from deploykit.spec import KeypointSpec

__all__ = ["Objects", "draw_objects"]


@dataclass(frozen=True, eq=False)
class Objects:
    """N objects, the best first.

    Attributes:
        boxes: ``(N, 4)`` xyxy in pixels.
        scores: ``(N,)``.
        labels: ``(N,)``, the class numbers; they choose the colours.
        names: N class names.
        keypoints: ``(N, K, 3)``, x, y and visibility.
        keypoint_spec: limbs and sides of the K keypoints; None: unknown.
        keypoint_threshold: the visibility from which a keypoint is drawn.
        masks: ``(N, H, W)`` bool.
        corners: ``(N, 4, 2)``, of oriented boxes, which are drawn in place of ``boxes``.
    """

    boxes: Array
    scores: Array
    labels: Array
    names: Sequence[str]
    keypoints: Array | None = None
    keypoint_spec: KeypointSpec | None = None
    keypoint_threshold: float = 0.5
    masks: Array | None = None
    corners: Array | None = None


def draw_objects(image: Array, objects: Objects, options: DrawOptions | None = None) -> Array:
    """Draw objects on a copy of ``image`` (BGR ``uint8 (H, W, 3)``); the best are over the others.

    Each class has one colour; the masks of one class are shades of it. Lines are thinner and keypoints smaller on small
    objects, which must not vanish under them. Labels are over everything, where they fit
    (:mod:`deploykit.runtime.drawing.placement`).

    Raises:
        NotFoundError, UsageError, MissingDependencyError: the font of the options cannot be used.
    """
    options = options or DrawOptions()
    canvas = image.copy()
    widest = options.line_width or line_width(image.shape[:2])
    weakest_first = range(len(objects.boxes))[::-1]
    colours = [class_colour(int(label)) for label in objects.labels]
    sides = (objects.boxes[:, 2:] - objects.boxes[:, :2]).min(axis=1, initial=np.inf)
    if objects.masks is not None:
        numbers = _numbers_in_class(objects.labels)
        for i in weakest_first:
            draw_mask(canvas, objects.masks[i], shade(colours[i], numbers[i]), widest)
    for i in weakest_first:
        width = widest if options.line_width else _thinner(widest, sides[i], 16)
        if objects.corners is None:
            draw_box(canvas, objects.boxes[i], colours[i], width)
        else:
            draw_polygon(canvas, objects.corners[i], colours[i], width)
    if objects.keypoints is not None:
        spec = objects.keypoint_spec or KeypointSpec.unnamed(objects.keypoints.shape[1])
        for i in weakest_first:
            width = _thinner(widest, sides[i], 40)
            draw_keypoints(canvas, objects.keypoints[i], spec, objects.keypoint_threshold, width, float(sides[i]))
    if options.labels and len(objects.boxes):
        anchors = None if objects.corners is None else _highest(objects.corners) - widest
        before = widest // 2  # the part of a line before its place; the rest is behind
        edges = np.rint(objects.boxes) + np.array([-before, -before, widest - before, widest - before])
        draw_labels(canvas, edges, _labels(objects, options), objects.labels, anchors)
    return canvas


def _labels(objects: Objects, options: DrawOptions) -> list[Label]:
    found = []
    for name, number, score in zip(objects.names, objects.labels, objects.scores, strict=True):
        text, typeface = class_text(name, int(number), options.font)
        text = f"{text} {score:.2f}".lstrip() if options.conf else text
        found.append(Label(text, typeface, class_colour(int(number))))
    return found


def _thinner(width: int, side: float, share: int) -> int:
    return min(width, max(1, round(side / share)))


def _numbers_in_class(labels: Array) -> list[int]:
    """Return how many objects of its own class are before each object."""
    counts: dict[int, int] = {}
    numbers = []
    for label in labels:
        numbers.append(counts.get(int(label), 0))
        counts[int(label)] = numbers[-1] + 1
    return numbers


def _highest(corners: Array) -> Array:
    """Return the x of the highest corner of each oriented box, ``(N, 1)``."""
    highest = corners[..., 1].argmin(axis=1)
    return np.asarray(corners[np.arange(len(corners)), highest, :1])
