"""Results as objects of other packages: supervision and FiftyOne."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from deploykit.runtime.arrays import Array
from deploykit.runtime.results.objects import Detection
from deploykit.runtime.results.tables import import_package

__all__ = ["fiftyone_keypoints", "fiftyone_objects", "supervision_keypoints"]


def supervision_keypoints(keypoints: Array, labels: Array, names: Sequence[str]) -> Any:
    """Return ``supervision.KeyPoints``: the places ``(N, K, 2)`` with their visibility as confidence, and class names.

    Raises:
        MissingDependencyError: supervision is not installed.
    """
    supervision = import_package("supervision")
    data = {"class_name": np.array(names, dtype=str)}
    return supervision.KeyPoints(  # by place, because versions have two names for the confidence
        np.ascontiguousarray(keypoints[..., :2]), labels.astype(int), np.ascontiguousarray(keypoints[..., 2]), data=data
    )


def fiftyone_objects(found: Sequence[Detection], size: tuple[int, int], *, rotated: bool) -> Any:
    """Return ``fiftyone.Detections`` with boxes as shares of the image; of oriented boxes ``fiftyone.Polylines``.

    A mask is cut to its box, whose sides are rounded to whole pixels for that.

    Raises:
        MissingDependencyError: FiftyOne is not installed.
    """
    fiftyone = import_package("fiftyone")
    scale = np.array((size[1], size[0]), np.float64)
    if rotated:
        return fiftyone.Polylines(
            polylines=[
                fiftyone.Polyline(
                    label=each.name, confidence=each.score, points=[_pairs(each.corners, scale)], closed=True,
                    filled=False,
                )
                for each in found
            ]
        )  # fmt: skip
    entries = []
    for each in found:
        start, stop = each.box.astype(np.float64).reshape(2, 2)
        more = {} if each.mask is None else {"mask": _cut(each.mask, start, stop)}
        box = [float(v) for v in (*(start / scale), *((stop - start) / scale))]
        entries.append(fiftyone.Detection(label=each.name, confidence=each.score, bounding_box=box, **more))
    return fiftyone.Detections(detections=entries)


def fiftyone_keypoints(keypoints: Array, names: Sequence[str], size: tuple[int, int], threshold: float) -> Any:
    """Return ``fiftyone.Keypoints``: an entry per object, with places as shares of the image and NaN for a keypoint
    that is below the threshold.

    Raises:
        MissingDependencyError: FiftyOne is not installed.
    """
    fiftyone = import_package("fiftyone")
    places = np.where(keypoints[..., 2:] >= threshold, keypoints[..., :2], np.nan)
    scale = np.array((size[1], size[0]), np.float64)
    return fiftyone.Keypoints(
        keypoints=[
            fiftyone.Keypoint(label=name, points=_pairs(own, scale), confidence=seen.tolist())
            for name, own, seen in zip(names, places, keypoints[..., 2], strict=True)
        ]
    )


def _pairs(places: Array | None, scale: Array) -> list[tuple[float, float]]:
    assert places is not None
    return [(float(x), float(y)) for x, y in places / scale]


def _cut(mask: Array, start: Array, stop: Array) -> Array:
    """Return the part of a mask in a box, of at least one pixel."""
    (left, top), (right, bottom) = np.rint(start).astype(int), np.rint(stop).astype(int)
    height, width = mask.shape
    left, top = min(left, width - 1), min(top, height - 1)
    return mask[top : max(bottom, top + 1), left : max(right, left + 1)]
