"""From a network's output tensors to a Result in source pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from deploykit.errors import BackendError, SpecError
from deploykit.runtime.arrays import Array
from deploykit.runtime.images.letterbox import Letterbox
from deploykit.runtime.postprocess.decode import decoded
from deploykit.runtime.postprocess.nms import nms
from deploykit.runtime.postprocess.pose_fusion import KeypointObjects, fuse, kept_objects
from deploykit.spec import DenseOutput, ModelSpec, NmsOutputs, PoseObjectRows, RawDetections, Thresholds

__all__ = ["Found", "found_in", "names_of", "to_source"]


@dataclass(frozen=True)
class Found:
    """The objects of one image, the best first, in network pixels.

    ``boxes (N,4)`` xyxy, ``scores (N,)``, ``labels (N,)``, ``keypoints (N,K,3)`` or None; ``candidates`` counts the
    rows that were over the confidence threshold before NMS. With ``objects`` the keypoints are not what they will be:
    :func:`to_source` fuses the two. ``masks (N,S,S)`` in 0..1, each over its box, or None.
    """

    boxes: Array
    scores: Array
    labels: Array
    keypoints: Array | None
    candidates: int
    objects: KeypointObjects | None = None
    masks: Array | None = None


def found_in(
    outputs: Mapping[str, Array],
    slot: int,
    spec: ModelSpec,
    thresholds: Thresholds,
    size: tuple[int, int] | None = None,
    *,
    multi_label: bool = False,
) -> Found:
    """Decode image ``slot`` of a batch, whichever kind of output the spec describes.

    ``size`` is the (height, width) that went into the network; None: the spec's. ``multi_label``: a raw row may become
    an object of each of its classes (:mod:`deploykit.runtime.postprocess.nms`).

    Raises:
        BackendError: an output has another shape than the spec says.
        SpecError: an output of the spec's task holds no boxes, or other rows than are to be decoded.
    """
    points = len(spec.keypoints.names) if spec.keypoints else 0
    if isinstance(spec.output, RawDetections):
        rows = _taken(outputs, spec.output.name, slot, (None, None))
        rows = decoded(rows, spec.output, size or spec.input.size)
        return _found_in_rows(rows, spec.output, points, thresholds, multi_label)
    if isinstance(spec.output, NmsOutputs):
        return _found_in_nms(outputs, slot, spec.output, points, thresholds)
    if isinstance(spec.output, PoseObjectRows):
        return _found_poses(outputs, slot, spec.output, thresholds)
    raise SpecError(f"boxes come from rows or NMS outputs, but the spec's output is of kind {spec.output.kind!r}")


def names_of(output: RawDetections | PoseObjectRows | NmsOutputs | DenseOutput) -> tuple[str, ...]:
    """The names of a network's outputs, in their order."""
    if not isinstance(output, NmsOutputs):
        return (output.name,)
    extra = [name for name in (output.keypoints, output.masks) if name is not None]
    return (output.num_dets, output.boxes, output.scores, output.labels, *extra, output.num_candidates)


def to_source(found: Found, letterbox: Letterbox) -> tuple[Array, Array | None]:
    """Boxes clipped to the image, and keypoints as they are or fused with keypoint objects, in source pixels."""
    boxes = _clipped(found.boxes, letterbox)
    if found.keypoints is None:
        return boxes, None
    points = found.keypoints.copy()
    points[..., :2] = letterbox.to_source(points[..., :2])
    if found.objects is not None:
        objects = _clipped(found.objects.boxes, letterbox)
        points = fuse(points, found.scores, objects, found.objects, letterbox.source)
    return boxes, points


def _found_in_rows(
    rows: Array, layout: RawDetections, points: int, thresholds: Thresholds, multi_label: bool = False
) -> Found:
    if rows.shape[1] < layout.columns:
        raise BackendError(
            f"output {layout.name!r} must have {layout.columns} columns a row as the spec says, got {rows.shape[1]}"
        )
    kept = nms(rows, layout, thresholds, multi_label=multi_label)
    keypoints = None
    if layout.keypoints is not None:
        values = rows[kept.rows, slice(*layout.keypoints)].astype(np.float32, copy=False)
        keypoints = np.ones((len(kept.rows), points, 3), np.float32)  # visible, where the network does not say
        keypoints[..., : layout.kpt_dims] = values.reshape(len(kept.rows), points, layout.kpt_dims)
    return Found(kept.boxes, kept.scores, kept.labels, keypoints, kept.candidates)


def _found_in_nms(
    outputs: Mapping[str, Array], slot: int, names: NmsOutputs, points: int, thresholds: Thresholds
) -> Found:
    """Read the used slots; a higher ``conf`` or a lower ``max_det`` than the graph's still holds here."""
    boxes = _taken(outputs, names.boxes, slot, (None, 4)).astype(np.float32, copy=False)
    scores = _taken(outputs, names.scores, slot, (len(boxes),)).astype(np.float32, copy=False)
    labels = _taken(outputs, names.labels, slot, (len(boxes),))
    count = int(_taken(outputs, names.num_dets, slot, (1,))[0])
    if not 0 <= count <= len(boxes):
        raise BackendError(f"output {names.num_dets!r} must lie in 0..{len(boxes)}, got {count}")
    use = np.flatnonzero(scores[:count] > np.float32(thresholds.conf))[: thresholds.max_det]
    keypoints = None
    if names.keypoints is not None:
        keypoints = _taken(outputs, names.keypoints, slot, (len(boxes), points, 3))[use].astype(np.float32, copy=False)
    masks = None
    if names.masks is not None:
        masks = _taken(outputs, names.masks, slot, (len(boxes), None, None))[use].astype(np.float32, copy=False)
    candidates = int(_taken(outputs, names.num_candidates, slot, (1,))[0])
    return Found(boxes[use], scores[use], labels[use].astype(np.int64), keypoints, candidates, masks=masks)


def _clipped(boxes: Array, letterbox: Letterbox) -> Array:
    """Boxes in source pixels, clipped to the image."""
    height, width = letterbox.source
    clipped: Array = np.clip(
        letterbox.to_source(boxes), np.float32(0), np.array((width, height, width, height), np.float32)
    )
    return clipped


def _found_poses(outputs: Mapping[str, Array], slot: int, layout: PoseObjectRows, thresholds: Thresholds) -> Found:
    rows = _taken(outputs, layout.name, slot, (None, layout.columns))
    persons, kept = kept_objects(rows, layout, thresholds)
    keypoints = np.zeros((len(persons.rows), layout.num_keypoints, 3), np.float32)
    coords = rows[persons.rows, slice(*layout.coords)]
    keypoints[..., :2] = coords.reshape(len(persons.rows), layout.num_keypoints, 2)
    objects = KeypointObjects(kept.boxes, kept.scores, kept.labels, layout.fusion)
    candidates = max(persons.candidates, kept.candidates)
    return Found(persons.boxes, persons.scores, persons.labels, keypoints, candidates, objects)


def _taken(outputs: Mapping[str, Array], name: str, slot: int, shape: tuple[int | None, ...]) -> Array:
    """One image's part of an output, if it has the shape (None: any side) that the spec promises."""
    value = outputs.get(name)
    if value is None:
        raise BackendError(f"the network has no output {name!r}, which its spec names; it has {', '.join(outputs)}")
    fits = (
        value.ndim == len(shape) + 1
        and slot < len(value)
        and all(side is None or side == got for side, got in zip(shape, value.shape[1:], strict=True))
    )
    if not fits:
        sides = ", ".join("?" if side is None else str(side) for side in shape)
        raise BackendError(f"output {name!r} must be (batch, {sides}), got {value.shape}")
    return np.asarray(value[slot])
