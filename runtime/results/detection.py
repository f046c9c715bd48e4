"""The objects in one image, as parallel arrays in source pixels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from deploykit.errors import MissingDependencyError, UsageError
from deploykit.runtime.arrays import Array
from deploykit.runtime.postprocess.masks import run_lengths
from deploykit.runtime.postprocess.rotated import corners_of
from deploykit.runtime.results.base import ImageResult
from deploykit.runtime.results.coco import coco_category_ids
from deploykit.runtime.results.draw import draw
from deploykit.spec import KeypointSpec

__all__ = ["Detection", "Result", "listed"]


@dataclass(frozen=True, eq=False)
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

    @property
    def corners(self) -> Array | None:
        """See :attr:`Result.corners`."""
        return None if self.rotated is None else corners_of(self.rotated[None])[0]


@dataclass(frozen=True, eq=False)
class Result(ImageResult):
    """N objects in one image, the highest score first; every array has N entries.

    The fields of every :class:`ImageResult` (size, name, frame, timings, image) are passed by name.
    ``result[i]`` is one :class:`Detection`; a slice, a mask or a list of indices gives a smaller Result.

    Attributes:
        boxes: ``(N, 4)`` float32, x1, y1, x2, y2 in source pixels, clipped to the image.
        scores: ``(N,)`` float32.
        labels: ``(N,)`` int64, positions in ``classes``.
        keypoints: ``(N, K, 3)`` float32, x, y in source pixels (not clipped: a foot may lie outside) and visibility
            0..1 (1 if the network gives none; for pose objects the score of the fused keypoint, or 0); or None.
        masks: ``(N, height, width)`` bool, or None.
        rotated: ``(N, 5)`` float32, of oriented boxes: cx, cy, w, h in source pixels, not clipped, and the angle of the
            side w in radians, from x towards y (clockwise on the screen); or None. A network's are given with w >= h
            and the angle in 0 up to below pi, and ``boxes`` are then the upright ones around them.
        classes: the class names; may be empty.
        keypoint_spec: names and limbs of the keypoints.
        keypoint_threshold: the visibility from which a keypoint is drawn.
        truncated: whether there were more candidates than NMS considers (``pre_nms_topk``); the weakest were left out.
    """

    boxes: Array
    scores: Array
    labels: Array
    keypoints: Array | None = None
    masks: Array | None = None
    classes: tuple[str, ...] = ()
    keypoint_spec: KeypointSpec | None = None
    keypoint_threshold: float = 0.5
    truncated: bool = False
    rotated: Array | None = None

    def __post_init__(self) -> None:
        count = len(self.boxes)
        self._set("boxes", np.float32, (count, 4))
        self._set("scores", np.float32, (count,))
        self._set("labels", np.int64, (count,))
        if self.keypoints is not None:
            points = (len(self.keypoint_spec.names),) if self.keypoint_spec else np.shape(self.keypoints)[1:2]
            self._set("keypoints", np.float32, (count, *points, 3))
        if self.masks is not None:
            self._set("masks", np.bool_, (count, *self.size))
        if self.rotated is not None:
            self._set("rotated", np.float32, (count, 5))
        if self.image is not None and self.image.shape != (*self.size, 3):
            raise UsageError(f"image must have shape {(*self.size, 3)}, got {self.image.shape}")
        if self.classes and count and not 0 <= self.labels.min() <= self.labels.max() < len(self.classes):
            raise UsageError(
                f"labels must lie in 0..{len(self.classes) - 1}, got {self.labels.min()} to {self.labels.max()}"
            )

    def _set(self, name: str, kind: npt.DTypeLike, shape: tuple[int, ...]) -> None:
        value = np.asarray(getattr(self, name), kind)
        if value.shape != shape:
            raise UsageError(f"{name} must have shape {shape}, got {value.shape}")
        if not np.isfinite(value).all():
            raise UsageError(f"{name} must be finite numbers, got NaN or infinity")
        object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.boxes)

    def __iter__(self) -> Iterator[Detection]:
        return (self[i] for i in range(len(self)))

    @overload
    def __getitem__(self, key: int | np.integer[Any]) -> Detection: ...
    @overload
    def __getitem__(self, key: slice | Sequence[int] | Array) -> Result: ...
    def __getitem__(self, key: int | np.integer[Any] | slice | Sequence[int] | Array) -> Detection | Result:
        points = None if self.keypoints is None else self.keypoints[key]
        masks = None if self.masks is None else self.masks[key]
        rotated = None if self.rotated is None else self.rotated[key]
        boxes, scores, labels = self.boxes[key], self.scores[key], self.labels[key]
        if isinstance(key, (int, np.integer)):
            name = self.class_name(int(labels))
            return Detection(boxes, float(scores), int(labels), name, points, masks, rotated)
        return replace(self, boxes=boxes, scores=scores, labels=labels, keypoints=points, masks=masks, rotated=rotated)

    @property
    def corners(self) -> Array | None:
        """The corners of oriented boxes in source pixels, ``(N, 4, 2)``, one after the other along the border."""
        return None if self.rotated is None else corners_of(self.rotated)

    def class_name(self, label: int) -> str:
        """Return the name of a label, or its number if the classes have no names."""
        return self.classes[label] if self.classes else str(label)

    def counts(self) -> dict[str, int]:
        """Return the number of objects per class, by name, in label order: ``{"person": 3, "dog": 1}``."""
        labels, numbers = np.unique(self.labels, return_counts=True)
        return {self.class_name(int(label)): int(n) for label, n in zip(labels, numbers, strict=True)}

    def draw(self, image: Array | None = None) -> Array:
        """Draw all objects on a copy of the image; see :meth:`ImageResult.draw`."""
        return draw(
            self._source(image),
            self.boxes,
            self.scores,
            self.labels,
            [self.class_name(int(label)) for label in self.labels],
            keypoints=self.keypoints,
            keypoint_spec=self.keypoint_spec,
            keypoint_threshold=self.keypoint_threshold,
            masks=self.masks,
            corners=self.corners,
        )

    def summary(self) -> str:
        """See :meth:`ImageResult.summary`: the number of objects per class, the most frequent first."""
        return listed(self.counts())

    @property
    def left_out(self) -> bool:
        """See :attr:`ImageResult.left_out`."""
        return self.truncated

    def _about(self) -> dict[str, Any]:
        """Boxes as [x1, y1, x2, y2], keypoints as [x, y, v], masks as run lengths, oriented boxes as [cx, cy, w, h,
        angle]."""
        objects = []
        for found in self:
            entry: dict[str, Any] = {
                "label": found.label, "name": found.name, "score": _short(found.score), "box": _rounded(found.box)
            }  # fmt: skip
            if found.keypoints is not None:
                entry["keypoints"] = _rounded(found.keypoints)
            if found.mask is not None:
                entry["mask"] = run_lengths(found.mask)
            if found.rotated is not None:
                entry["rotated"] = _rounded(found.rotated)
            objects.append(entry)
        return {"detections": objects, "truncated": self.truncated}

    def to_coco(self, image_id: int | str, category_ids: Sequence[int | None] | None = None) -> list[dict[str, Any]]:
        """Return COCO result entries: ``bbox`` [x, y, w, h], for keypoints x1, y1, v1, x2, ... in one list, for masks
        ``segmentation`` as uncompressed run lengths, for oriented boxes ``segmentation`` as a polygon.

        Args:
            image_id: the id of this image in the annotations.
            category_ids: the category id of each class in the annotations (None for a class: leave its objects out);
                None: COCO's own numbers, 1 to 90, if the classes are COCO's 80, else the label counted from 1.
        """
        ids = coco_category_ids(self.classes) if category_ids is None else category_ids
        entries = []
        for found in self:
            category = found.label + 1 if ids is None else ids[found.label]
            if category is None:
                continue
            x1, y1, x2, y2 = (float(v) for v in found.box)
            entry: dict[str, Any] = {
                "image_id": image_id,
                "category_id": int(category),
                "bbox": [_short(v) for v in (x1, y1, x2 - x1, y2 - y1)],
                "score": _short(found.score),
            }
            if found.keypoints is not None:
                entry["keypoints"] = _rounded(found.keypoints.reshape(-1))
            if found.mask is not None:
                entry["segmentation"] = run_lengths(found.mask)
            elif found.corners is not None:
                entry["segmentation"] = [_rounded(found.corners.reshape(-1))]
            entries.append(entry)
        return entries

    def to_supervision(self) -> Any:
        """Return a ``supervision.Detections``; its ``data`` has class names, keypoints, and corners of oriented boxes.

        Raises:
            MissingDependencyError: the package supervision is not installed.
        """
        try:
            supervision = import_module("supervision")
        except ImportError as e:
            raise MissingDependencyError(
                f"supervision is required but does not import ({e}): pip install supervision"
            ) from e
        names = [self.class_name(int(label)) for label in self.labels]
        data: dict[str, Any] = {"class_name": np.array(names, dtype=str)}
        if self.keypoints is not None:
            data["keypoints"] = self.keypoints
        if self.corners is not None:
            data["xyxyxyxy"] = self.corners
        return supervision.Detections(
            xyxy=self.boxes, mask=self.masks, confidence=self.scores, class_id=self.labels.astype(int), data=data
        )


def listed(counts: Mapping[str, int]) -> str:
    """Return names with their counts as text, the most frequent first."""
    ordered = sorted(counts.items(), key=lambda entry: -entry[1])
    return ", ".join(f"{name} {number}" for name, number in ordered) or "nothing found"


def _short(value: float) -> float:
    """Round to the precision of float32: about a thousandth of a pixel, a millionth of a score."""
    return float(f"{value:.7g}")


def _rounded(values: Array) -> Any:
    return [_rounded(v) for v in values] if values.ndim > 1 else [_short(float(v)) for v in values]
