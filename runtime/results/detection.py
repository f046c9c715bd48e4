"""The objects in one image, as parallel arrays in source pixels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Unpack, overload

import numpy as np
import numpy.typing as npt

from deploykit.errors import UsageError
from deploykit.runtime.arrays import Array
from deploykit.runtime.drawing.objects import Objects, draw_objects
from deploykit.runtime.options import DrawKeywords, DrawOptions
from deploykit.runtime.postprocess.rotated import corners_of
from deploykit.runtime.results.base import ImageResult
from deploykit.runtime.results.coco import coco_category_ids
from deploykit.runtime.results.objects import Detection, columns_of, entries_of, label_line, shapes_of
from deploykit.runtime.results.other_names import RESULT_NAMES, missing_attribute
from deploykit.runtime.results.packages import fiftyone_keypoints, fiftyone_objects, supervision_keypoints
from deploykit.runtime.results.tables import Rows, import_package
from deploykit.spec import KeypointSpec

__all__ = ["Detection", "Result", "listed"]

LABELME = "5.5.0"  # the version of LabelMe's format


@dataclass(frozen=True, eq=False, repr=False)
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

    has_table: ClassVar[bool] = True

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

    if not TYPE_CHECKING:  # a type checker goes on to refuse what is not there

        def __getattr__(self, name: str) -> Any:
            return missing_attribute(self, name, RESULT_NAMES)

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

    def draw(self, image: Array | None = None, **options: Unpack[DrawKeywords]) -> Array:
        """Draw all objects on a copy of the image; see :meth:`ImageResult.draw`."""
        objects = Objects(
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
        return draw_objects(self._source(image), objects, DrawOptions(**options))

    def crops(self, image: Array | None = None) -> list[Array]:
        """Return the part of the image that each object's box covers, BGR ``uint8``; see :meth:`Detection.crop`.

        Args:
            image: the source image; None: the kept one, or the file ``name`` read again.

        Raises:
            UsageError: the image is required but not available, or has another size.
            ImageError, NotFoundError: the file cannot be read again.
        """
        source = self._source(image)
        return [found.crop(source) for found in self]

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
        names = [self.class_name(label) for label in self.labels.tolist()]
        found = entries_of(self.boxes, self.scores, self.labels, names, self.keypoints, self.masks, self.rotated)
        return {"detections": found, "truncated": self.truncated}

    def _table(self) -> Rows:
        points = None if self.keypoints is None else self._point_names
        columns = columns_of(points, masks=self.masks is not None, rotated=self.rotated is not None)
        return Rows(columns, [found.cells() for found in self])

    @property
    def _point_names(self) -> tuple[str, ...]:
        count = 0 if self.keypoints is None else self.keypoints.shape[1]
        return (self.keypoint_spec or KeypointSpec.unnamed(count)).names

    def to_coco(self, image_id: int | str, category_ids: Sequence[int | None] | None = None) -> list[dict[str, Any]]:
        """Return COCO result entries: ``bbox`` [x, y, w, h], for keypoints x1, y1, v1, x2, ... in one list, for masks
        ``segmentation`` as uncompressed run lengths, for oriented boxes ``segmentation`` as a polygon.

        Args:
            image_id: the id of this image in the annotations.
            category_ids: the category id of each class in the annotations (None for a class: leave its objects out);
                None: COCO's own numbers, 1 to 90, if the classes are COCO's 80, else the label counted from 1.
        """
        ids = coco_category_ids(self.classes) if category_ids is None else category_ids
        categories = [found.label + 1 if ids is None else ids[found.label] for found in self]
        return [
            found.to_coco(image_id, int(category))
            for found, category in zip(self, categories, strict=True)
            if category is not None
        ]

    def to_yolo(self, *, score: bool = False) -> str:
        """Return the objects as a label file of YOLO: a line per object, coordinates as shares of the image's sides.

        ``class cx cy w h`` of boxes; of poses with ``px py v`` for each keypoint, where v is 2, or 0 with 0 0 for one
        that is below the threshold or outside of the image; ``class x1 y1 x2 y2 x3 y3 x4 y4`` of oriented boxes; of
        masks ``class x1 y1 ...`` along the outline, whose pieces are joined by lines without an area.

        Args:
            score: add the score to the end of each line, as for predictions, which training does not read.
        """
        threshold = self.keypoint_threshold
        return "".join(f"{label_line(found, self.size, threshold=threshold, score=score)}\n" for found in self)

    def to_labelme(self, image_path: str | None = None) -> dict[str, Any]:
        """Return the objects as a document of LabelMe, ready for ``json.dumps``; the image is not in it.

        A box is a rectangle, an oriented box and each piece of a mask a polygon, and a visible keypoint a point. Shapes
        of one object share a group. The score is in the description.

        Args:
            image_path: the image's path, from the folder of the document; None: the file's name, beside the document.
        """
        points = None if self.keypoints is None else self._point_names
        shapes = [
            shape
            for i, found in enumerate(self)
            for shape in shapes_of(found, i, points, threshold=self.keypoint_threshold)
        ]
        return {
            "version": LABELME,
            "flags": {},
            "shapes": shapes,
            "imagePath": Path(self.name).name if image_path is None else image_path,
            "imageData": None,
            "imageHeight": self.size[0],
            "imageWidth": self.size[1],
        }

    def to_supervision(self, *, keypoints: bool = False) -> Any:
        """Return a ``supervision.Detections`` with masks; its ``data`` has class names, keypoints, and corners of
        oriented boxes (under supervision's own key, ``xyxyxyxy``).

        Args:
            keypoints: return the keypoints as a ``supervision.KeyPoints`` instead.

        Raises:
            UsageError: keypoints are asked for, and there are none.
            MissingDependencyError: the package supervision is not installed.
        """
        names = [self.class_name(int(label)) for label in self.labels]
        if keypoints:
            return supervision_keypoints(self._own_keypoints, self.labels, names)
        supervision = import_package("supervision")
        data: dict[str, Any] = {"class_name": np.array(names, dtype=str)}
        if self.keypoints is not None:
            data["keypoints"] = self.keypoints
        if self.corners is not None:
            data["xyxyxyxy"] = self.corners
        return supervision.Detections(
            xyxy=self.boxes, mask=self.masks, confidence=self.scores, class_id=self.labels.astype(int), data=data
        )

    def to_fiftyone(self, *, keypoints: bool = False) -> Any:
        """Return ``fiftyone.Detections`` with boxes as shares of the image and masks within them; of oriented boxes
        closed ``fiftyone.Polylines``.

        Args:
            keypoints: return the keypoints as ``fiftyone.Keypoints`` instead; one below the threshold is NaN.

        Raises:
            UsageError: keypoints are asked for, and there are none.
            MissingDependencyError: the package fiftyone is not installed.
        """
        if keypoints:
            names = [self.class_name(int(label)) for label in self.labels]
            return fiftyone_keypoints(self._own_keypoints, names, self.size, self.keypoint_threshold)
        return fiftyone_objects(list(self), self.size, rotated=self.rotated is not None)

    @property
    def _own_keypoints(self) -> Array:
        if self.keypoints is None:
            raise UsageError("this result has no keypoints: the model gives none")
        return self.keypoints


def listed(counts: Mapping[str, int]) -> str:
    """Return names with their counts as text, the most frequent first."""
    ordered = sorted(counts.items(), key=lambda entry: -entry[1])
    return ", ".join(f"{name} {number}" for name, number in ordered) or "nothing found"
