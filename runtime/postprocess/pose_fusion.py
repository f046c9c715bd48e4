"""Poses from detected persons and keypoints detected as objects: KaPao's postprocessing.

Source of the facts: arXiv 2111.08557, wmcnally/kapao ``val.py`` and ``utils/general.py`` (GPL-3.0); the code is ours.

The definition:

1. A row belongs to its best class (``obj * cls``, the lowest class at a tie). Two runs of NMS, as defined in
   :mod:`deploykit.runtime.postprocess.nms`, follow: one for the persons (class 0) with the spec's thresholds, one for
   the keypoint objects (the other classes) with ``conf`` and ``iou`` of the fusion. ``pre_nms_topk`` and ``max_det``
   apply to each.
2. In source pixels, the position of a keypoint object is the centre of its box, clipped to the image. A
   pose's keypoints are the person's coordinates with confidence 0; the first two of them (nose and left eye) are
   clipped to the image too, as in the original, which clips the first box of a row.
3. Each keypoint object, the best first, is matched to the nearest pose among the persons with a score over ``person``:
   nearest by the same keypoint in its current position, the first at a tie. If that keypoint is nearer than
   ``tolerance`` and has a lower confidence than the object's score, it takes the position and score of the object.

The confidence of a keypoint is therefore the score of the object that it was fused with, or 0 without one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from deploykit.runtime.arrays import Array
from deploykit.runtime.postprocess.nms import Choice, Kept, nms, rows_at
from deploykit.spec import PoseFusion, PoseObjectRows, Thresholds

__all__ = ["KeypointObjects", "fuse", "kept_objects", "object_thresholds"]


@dataclass(frozen=True)
class KeypointObjects:
    """The keypoint objects of one image, the best first.

    ``boxes (M,4)`` xyxy, ``scores (M,)``, ``labels (M,)`` index of the keypoint, 0 to K - 1, and how to fuse them.
    """

    boxes: Array
    scores: Array
    labels: Array
    fusion: PoseFusion


def object_thresholds(layout: PoseObjectRows, thresholds: Thresholds) -> Thresholds:
    """Return the thresholds of NMS for keypoint objects, given those for persons."""
    return replace(thresholds, conf=layout.fusion.conf, iou=layout.fusion.iou)


def kept_objects(rows: Array, layout: PoseObjectRows, thresholds: Thresholds) -> tuple[Kept, Kept]:
    """Apply step 1 to the rows of one image: return persons (labels all 0) and keypoint objects (labels 0 to K - 1).

    Args:
        rows: ``(N, columns)`` float, in network pixels.
        layout: the layout of the columns.
        thresholds: the thresholds for persons.
    """
    limits = (thresholds, object_thresholds(layout, thresholds))
    obj = rows[:, layout.obj[0]].astype(np.float32, copy=False)
    # Class values are probabilities, so a score never exceeds its objectness.
    index = np.flatnonzero(obj > np.float32(min(each.conf for each in limits)))
    part, plain = rows_at(rows, index), layout.as_rows()
    labels = tuple(range(layout.num_keypoints + 1))
    persons, objects = (
        nms(part, plain, each, Choice(classes=wanted))
        for each, wanted in zip(limits, (labels[:1], labels[1:]), strict=True)
    )
    return (
        persons._replace(rows=index[persons.rows]),
        objects._replace(rows=index[objects.rows], labels=objects.labels - 1),
    )


def fuse(keypoints: Array, scores: Array, boxes: Array, objects: KeypointObjects, size: tuple[int, int]) -> Array:
    """Apply steps 2 and 3.

    Args:
        keypoints: ``(N, K, 3)`` of the persons, in source pixels.
        scores: ``(N,)`` of the persons.
        boxes: ``(M, 4)`` of the keypoint objects, xyxy in source pixels, clipped to the image.
        objects: the same objects with their scores and labels.
        size: the image's (height, width).

    Returns:
        ``(N, K, 3)`` float32: x, y, and the confidence.
    """
    poses = keypoints.astype(np.float32)  # a copy
    poses[..., 2] = 0
    poses[:, :2, :2] = poses[:, :2, :2].clip(0, np.array((size[1], size[0]), np.float32))
    taking_part = np.flatnonzero(scores > np.float32(objects.fusion.person))
    if not len(taking_part) or not len(objects.labels):
        return poses
    # A row a keypoint, a column a person.
    x, y, confidence = (np.ascontiguousarray(poses[taking_part, :, axis].T) for axis in range(3))
    x, y = x.astype(np.float64), y.astype(np.float64)
    centres = ((boxes[:, :2] + boxes[:, 2:]) / 2).astype(np.float64)
    for turn in _turns(objects.labels):
        label, place, score = objects.labels[turn], centres[turn], objects.scores[turn]
        distance, down = x.take(label, 0), y.take(label, 0)  # (objects, persons)
        distance -= place[:, :1]
        down -= place[:, 1:]
        distance *= distance
        down *= down
        distance += down
        np.sqrt(distance, distance)
        nearest = distance.argmin(1)
        near = distance.min(1) < objects.fusion.tolerance
        pose = label * len(taking_part) + nearest
        better = (near & (score > confidence.take(pose))).nonzero()[0]
        pose = pose.take(better)
        x.put(pose, place[better, 0])
        y.put(pose, place[better, 1])
        confidence.put(pose, score.take(better))
    poses[taking_part] = np.stack((x.T, y.T, confidence.T), axis=-1)
    return poses


def _turns(labels: Array) -> list[Array]:
    """Group independent objects: first the best of every keypoint, then the second best, ..."""
    order = np.argsort(labels, kind="stable")
    ordered = labels[order]
    rank = np.arange(len(labels)) - np.searchsorted(ordered, ordered)
    return np.split(order[np.argsort(rank, kind="stable")], np.cumsum(np.bincount(rank))[:-1])
