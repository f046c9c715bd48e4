"""One object of an image, and its forms in JSON, COCO's results, YOLO's labels, LabelMe's shapes and tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from deploykit.runtime.arrays import Array
from deploykit.runtime.postprocess.masks import outline, outlines, run_lengths
from deploykit.runtime.postprocess.rotated import corners_of

__all__ = ["Detection", "columns_of", "entries_of", "label_line", "rounded", "shapes_of", "short"]


@dataclass(frozen=True, eq=False, repr=False)
class Detection:
    """One object in source pixels: ``box (4,)`` xyxy, ``keypoints (K, 3)`` x, y, visibility, a bool ``mask``, and of an
    oriented box ``rotated (5,)`` cx, cy, w, h, angle and ``corners (4, 2)``."""

    box: Array
    score: float
    label: int
    name: str
    keypoints: Array | None = None
    mask: Array | None = None
    rotated: Array | None = None

    def __repr__(self) -> str:
        x1, y1, x2, y2 = (f"{v:.0f}" for v in self.box)
        return f"<Detection {self.name} {self.score:.3f}: {x1},{y1} to {x2},{y2}>"

    @property
    def corners(self) -> Array | None:
        """The corners of an oriented box in source pixels, ``(4, 2)``, one after the other along the border."""
        return None if self.rotated is None else corners_of(self.rotated[None])[0]

    def to_dict(self) -> dict[str, Any]:
        """Return the entry of this object in :meth:`deploykit.Result.to_dict`."""
        points, masks, rotated = (None if x is None else x[None] for x in (self.keypoints, self.mask, self.rotated))
        labels, scores = np.array([self.label]), np.array([self.score])
        return entries_of(self.box[None], scores, labels, [self.name], points, masks, rotated)[0]

    def to_coco(self, image_id: int | str, category_id: int) -> dict[str, Any]:
        """Return the entry of this object in a COCO results file; see :meth:`deploykit.Result.to_coco`."""
        x1, y1, x2, y2 = (float(v) for v in self.box)
        entry: dict[str, Any] = {
            "image_id": image_id,
            "category_id": category_id,
            "bbox": [short(v) for v in (x1, y1, x2 - x1, y2 - y1)],
            "score": short(self.score),
        }
        if self.keypoints is not None:
            entry["keypoints"] = rounded(self.keypoints.reshape(-1))
        if self.mask is not None:
            entry["segmentation"] = run_lengths(self.mask)
        elif self.corners is not None:
            entry["segmentation"] = [rounded(self.corners.reshape(-1))]
        return entry

    def crop(self, image: Array) -> Array:
        """Return the part of an image ``(H, W, 3)`` in the box: all pixels that it touches, at least one.

        An oriented box is turned by at most a quarter, so that its longer side lies along x, and resampled; what lies
        outside of the image is black.
        """
        if self.rotated is None:
            height, width = image.shape[:2]
            left, top = min(int(self.box[0]), width - 1), min(int(self.box[1]), height - 1)
            right, bottom = (max(math.ceil(self.box[i]), low + 1) for i, low in ((2, left), (3, top)))
            return image[top:bottom, left:right].copy()
        size = [max(round(float(side)), 1) for side in self.rotated[2:4]]
        box = self.rotated.astype(np.float64)
        box[4] -= np.pi * (box[4] > np.pi / 2)
        _, right_top, left_top, left_bottom = corners_of(box[None])[0] - 0.5  # OpenCV counts from the centre of a pixel
        ends = np.array([[0, 0], [size[0], 0], [0, size[1]]]) - 0.5
        starts = np.stack((left_top, right_top, left_bottom))
        matrix = cv2.getAffineTransform(starts.astype(np.float32), ends.astype(np.float32))
        return cv2.warpAffine(image, matrix, size, flags=cv2.INTER_LINEAR)

    def cells(self) -> list[Any]:
        """Return the values of :func:`columns_of`."""
        cells: list[Any] = [self.label, self.name, short(self.score), *rounded(self.box)]
        if self.rotated is not None:
            cells += rounded(self.rotated)
        if self.mask is not None:
            cells.append(int(self.mask.sum()))
        if self.keypoints is not None:
            cells += rounded(self.keypoints.reshape(-1))
        return cells


def columns_of(points: Sequence[str] | None, *, masks: bool, rotated: bool) -> dict[str, type]:
    """Return the columns of a table of objects, and their types.

    Args:
        points: the names of the keypoints; None: objects have none.
        masks: objects have masks, whose areas are listed.
        rotated: they have oriented boxes.
    """
    floats = ["score", "x1", "y1", "x2", "y2", *(("cx", "cy", "w", "h", "angle") if rotated else ())]
    columns: dict[str, type] = {"label": int, "name": str, **dict.fromkeys(floats, float)}
    if masks:
        columns["mask_area"] = int
    return {**columns, **{f"{point}_{axis}": float for point in points or () for axis in "xyv"}}


def label_line(found: Detection, size: tuple[int, int], *, threshold: float, score: bool = False) -> str:
    """Return an object as a line of YOLO's label files, every coordinate as a share of the image's width or height.

    ``class cx cy w h`` of boxes; with ``px py v`` for each keypoint of poses, where v is 2, or 0 with 0 0 for one that
    is below the threshold or outside of the image; ``class x1 y1 x2 y2 x3 y3 x4 y4`` of oriented boxes; ``class x1 y1
    ...`` of masks, along their outline.

    Args:
        found: the object.
        size: the image's (height, width).
        threshold: the visibility from which a keypoint counts.
        score: add the score to the end of the line.
    """
    scale = np.array((size[1], size[0]), np.float64)
    if found.mask is not None:
        values = (outline(found.mask) / scale).reshape(-1)
    elif found.corners is not None:
        values = np.clip(found.corners / scale, 0, 1).reshape(-1)
    else:
        start, stop = (found.box.astype(np.float64).reshape(2, 2)) / scale
        values = np.concatenate(((start + stop) / 2, stop - start))
        if found.keypoints is not None:
            places = found.keypoints[:, :2] / scale
            seen = (found.keypoints[:, 2] >= threshold) & ((places >= 0) & (places <= 1)).all(1)
            points = np.column_stack((places, np.full(len(places), 2.0))) * seen[:, None]
            values = np.concatenate((values, points.reshape(-1)))
    tail = f" {short(found.score):g}" if score else ""
    return f"{found.label} {' '.join(f'{v:.6g}' for v in values)}{tail}"


def shapes_of(found: Detection, group: int, points: Sequence[str] | None, *, threshold: float) -> list[dict[str, Any]]:
    """Return the shapes of one object in LabelMe's format, which share a group if there are several.

    A box is a ``rectangle``, an oriented one and each piece of a mask a ``polygon``; a keypoint over the threshold is a
    ``point`` that is labelled with its name.
    """
    forms: list[tuple[str, str, Any]] = []
    if found.mask is not None:
        forms += [(found.name, "polygon", rounded(piece)) for piece in outlines(found.mask)]
    elif found.corners is not None:
        forms.append((found.name, "polygon", rounded(found.corners)))
    if not forms:
        forms.append((found.name, "rectangle", rounded(found.box.reshape(2, 2))))
    if found.keypoints is not None:
        names = points or [f"keypoint {i}" for i in range(len(found.keypoints))]
        forms += [
            (name, "point", [rounded(point[:2])])
            for name, point in zip(names, found.keypoints, strict=True)
            if point[2] >= threshold
        ]
    return [
        {
            "label": label, "points": places, "group_id": group if len(forms) > 1 else None,
            "description": f"score {found.score:.3f}", "shape_type": kind, "flags": {}, "mask": None,
        }
        for label, kind, places in forms
    ]  # fmt: skip


def short(value: float) -> float:
    """Round to the precision of float32: about a thousandth of a pixel, a millionth of a score."""
    return float(f"{value:.7g}")


def rounded(values: Array) -> Any:
    """Return an array as lists of :func:`short` numbers."""
    texts = ("%.7g " * values.size % tuple(values.ravel().tolist())).split()  # together, in a third of the time
    return np.array([float(each) for each in texts]).reshape(values.shape).tolist()


def entries_of(
    boxes: Array,
    scores: Array,
    labels: Array,
    names: Sequence[str],
    keypoints: Array | None = None,
    masks: Array | None = None,
    rotated: Array | None = None,
) -> list[dict[str, Any]]:
    """Return the entries of objects in :meth:`deploykit.Result.to_dict`; the arguments are fields of a result."""
    found: list[dict[str, Any]] = [
        {"label": label, "name": name, "score": score, "box": box}
        for label, name, score, box in zip(labels.tolist(), names, rounded(scores), rounded(boxes), strict=True)
    ]
    added = {
        "keypoints": None if keypoints is None else rounded(keypoints),
        "mask": None if masks is None else [run_lengths(mask) for mask in masks],
        "rotated": None if rotated is None else rounded(rotated),
    }
    for key, values in added.items():
        if values is not None:
            for entry, value in zip(found, values, strict=True):
                entry[key] = value
    return found
