"""COCO's average precision and recall of detections whose overlaps with the objects are given.

The libraries of :mod:`deploykit.runtime.evaluate.coco_metrics` compute overlaps themselves, of boxes, masks and
keypoints. This module takes any overlap, and follows the same protocol (https://cocodataset.org/#detection-eval): the
same numbers to the last bit where the overlaps are the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from deploykit.runtime.arrays import Array

__all__ = ["LIMITS", "OVERLAPS", "RECALLS", "SIZES", "ImageOverlaps", "Scored", "score"]

OVERLAPS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
LIMITS = (1, 10, 100)
"""How many detections of a category count in an image."""
SIZES: Mapping[str, tuple[float, float]] = {
    "all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)
}  # fmt: skip
"""The areas of an object in square pixels, both ends included."""

TINY = np.spacing(1)  # keeps a precision of no detections from being a division by zero


@dataclass(frozen=True, eq=False)
class ImageOverlaps:
    """The D detections and G objects of one category in one image.

    ``scores (D,)``, the best first; ``areas (D,)`` and ``object_areas (G,)`` in square pixels; ``crowd (G,)`` bool,
    regions of many objects, in which detections count neither way; ``overlaps (D, G)`` of 0 to 1.
    """

    scores: Array
    areas: Array
    object_areas: Array
    crowd: Array
    overlaps: Array


@dataclass(frozen=True, eq=False)
class Scored:
    """``precision`` and ``scores`` ``(10, 101, categories, sizes, limits)`` over overlap and recall, ``recall`` ``(10,
    categories, sizes, limits)``; -1 where there is no object. The scores are those at which the recall is reached."""

    precision: Array
    scores: Array
    recall: Array

    def stats(self) -> list[float]:
        """Return COCO's twelve numbers: AP, AP50, AP75, AP of three sizes, AR at three limits, AR of three sizes."""
        most, sizes = len(LIMITS) - 1, range(1, len(SIZES))
        at_50, at_75 = (self.precision[i, :, :, 0, most] for i in (0, 5))
        ap = [_mean(part) for part in (self.precision[..., 0, most], at_50, at_75)]
        ap += [_mean(self.precision[..., size, most]) for size in sizes]
        ar = [_mean(self.recall[..., 0, limit]) for limit in range(len(LIMITS))]
        return ap + ar + [_mean(self.recall[..., size, most]) for size in sizes]


@dataclass(frozen=True, eq=False)
class _Matches:
    """Of one image, category and size: ``scores (D,)``, ``found`` and ``ignored (10, D)``, the objects that count."""

    scores: Array
    found: Array
    ignored: Array
    objects: int


def score(categories: Sequence[Sequence[ImageOverlaps]]) -> Scored:
    """Match detections with objects and return precision and recall.

    A detection takes, the best score first, the object that it overlaps most of those that are left, if it overlaps it
    by at least the threshold; objects that count go before those that do not.

    Args:
        categories: of each category its images, in the order in which tied scores of different images are ranked.
    """
    shape = (len(categories), len(SIZES), len(LIMITS))
    precision, scores = (-np.ones((len(OVERLAPS), len(RECALLS), *shape)) for _ in range(2))
    recall = -np.ones((len(OVERLAPS), *shape))
    for k, images in enumerate(categories):
        for a, size in enumerate(SIZES.values()):
            matches = [_matched(image, size) for image in images]
            for m, limit in enumerate(LIMITS):
                if (found := _accumulated(matches, limit)) is not None:
                    precision[:, :, k, a, m], scores[:, :, k, a, m], recall[:, k, a, m] = found
    return Scored(precision, scores, recall)


def _matched(image: ImageOverlaps, size: tuple[float, float]) -> _Matches:
    """Match the detections of one image with its objects, at all thresholds at once."""
    most = LIMITS[-1]
    scores, areas, overlaps = image.scores[:most], image.areas[:most], image.overlaps[:most]
    ignored = image.crowd | _outside(image.object_areas, size)
    free = np.ones((len(OVERLAPS), len(ignored)), bool)
    found, passed = (np.zeros((len(OVERLAPS), len(scores)), bool) for _ in range(2))
    least = np.minimum(OVERLAPS, 1 - 1e-10)[:, None]
    rows = np.arange(len(OVERLAPS))
    for i, overlap in enumerate(overlaps if len(ignored) else ()):
        possible = (free | image.crowd) & (overlap >= least)
        counted = possible & ~ignored
        use = np.where(counted.any(1, keepdims=True), counted, possible)
        best = len(ignored) - 1 - np.where(use, overlap, -1.0)[:, ::-1].argmax(1)  # the last one of a tie
        found[:, i] = use.any(1)
        passed[:, i] = found[:, i] & ignored[best]
        free[rows[found[:, i]], best[found[:, i]]] = False
    passed |= ~found & _outside(areas, size)
    return _Matches(scores, found, passed, int((~ignored).sum()))


def _accumulated(images: Sequence[_Matches], limit: int) -> tuple[Array, Array, Array] | None:
    """Return precision and score over recall ``(10, 101)`` and the recall ``(10,)``; None: no object counts."""
    objects = sum(image.objects for image in images)
    if not objects:
        return None
    scores = np.concatenate([image.scores[:limit] for image in images])
    order = np.argsort(-scores, kind="stable")
    scores = scores[order]
    found = np.concatenate([image.found[:, :limit] for image in images], 1)[:, order]
    counts = ~np.concatenate([image.ignored[:, :limit] for image in images], 1)[:, order]
    right, wrong = (np.cumsum(part & counts, 1, dtype=np.float64) for part in (found, ~found))
    precision, at = (np.zeros((len(OVERLAPS), len(RECALLS))) for _ in range(2))
    if not len(scores):
        return precision, at, np.zeros(len(OVERLAPS))
    reached = right / objects
    share = right / (wrong + right + TINY)
    share = np.maximum.accumulate(share[:, ::-1], 1)[:, ::-1]  # the best precision at this recall or a higher one
    for t in range(len(OVERLAPS)):
        places = np.searchsorted(reached[t], RECALLS)
        places = places[places < len(scores)]
        precision[t, : len(places)], at[t, : len(places)] = share[t, places], scores[places]
    return precision, at, reached[:, -1]


def _outside(areas: Array, size: tuple[float, float]) -> Array:
    outside: Array = (areas < size[0]) | (areas > size[1])
    return outside


def _mean(values: Array) -> float:
    known = values[values > -1]
    return float(known.mean()) if known.size else -1.0
