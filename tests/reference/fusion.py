"""KaPao's postprocess as plain loops: one row, one object, one pose at a time. Nothing here knows an implementation."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from deploykit.spec import PoseFusion, PoseObjectRows, Thresholds
from tests.nms_corpus import Kept, Rows, reference

Array = npt.NDArray[np.float32]
Point = tuple[float, float, float]


def split_and_suppress(rows: Rows, layout: PoseObjectRows, thresholds: Thresholds) -> tuple[list[Kept], list[Kept]]:
    """The persons and the keypoint objects (labels from 0) that NMS keeps, each among their own kind only."""
    (start, stop), found = layout.cls, []
    for persons in (True, False):
        numbers = []
        for number, row in enumerate(rows):
            scores = [np.float32(row[layout.obj[0]]) * np.float32(value) for value in row[start:stop]]
            best = max(range(len(scores)), key=lambda c: (scores[c], -c))
            if (best == 0) == persons:
                numbers.append(number)
        span = (start, start + 1) if persons else (start + 1, stop)
        limits = thresholds if persons else replace(thresholds, conf=layout.fusion.conf, iou=layout.fusion.iou)
        kept = reference(rows[numbers], replace(layout.as_rows(), cls=span), limits)
        found.append([Kept(numbers[k.row], k.label, k.score) for k in kept])
    return found[0], found[1]


def fused(
    poses: list[list[Point]],
    scores: list[float],
    objects: list[tuple[float, float, int, float]],
    fusion: PoseFusion,
    size: tuple[int, int],
) -> list[list[Point]]:
    """Poses with the keypoint objects (x, y, which keypoint, score; the best first) put into them."""
    result = [[(x, y, 0.0) for x, y, _ in pose] for pose in poses]
    for pose in result:
        for k, (x, y, _) in enumerate(pose[:2]):
            pose[k] = (min(max(x, 0.0), float(size[1])), min(max(y, 0.0), float(size[0])), 0.0)
    for x, y, k, score in objects:
        nearest, least = None, math.inf
        for pose, person in zip(result, scores, strict=True):
            distance = math.sqrt((pose[k][0] - x) ** 2 + (pose[k][1] - y) ** 2)
            if person > np.float32(fusion.person) and distance < least:
                nearest, least = pose, distance
        if nearest is not None and least < fusion.tolerance and score > nearest[k][2]:
            nearest[k] = (x, y, score)
    return result
