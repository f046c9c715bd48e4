"""Postprocessing of output tensors into detections, and of network pixels into source pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from deploykit.errors import BackendError
from deploykit.runtime.arrays import Array
from deploykit.runtime.images.letterbox import Letterbox
from deploykit.runtime.postprocess.decode import decoded
from deploykit.runtime.postprocess.nms import USUAL, Choice, nms, rows_at
from deploykit.runtime.postprocess.pose_fusion import KeypointObjects, fuse, kept_objects
from deploykit.runtime.postprocess.rotated import hulls_of, rotated_to_source
from deploykit.runtime.postprocess.rotated_nms import rotated_nms, rotated_rows
from deploykit.spec import NmsOutputs, PoseObjectRows, RawDetections, Thresholds

__all__ = ["NetworkDetections", "decode_nms", "decode_poses", "decode_rows", "to_source", "with_prototypes"]

ZERO = np.array(0, np.float32)


@dataclass(frozen=True)
class NetworkDetections:
    """The objects of one image, the best first, in network pixels.

    ``boxes (N,4)`` xyxy, ``scores (N,)``, ``labels (N,)``, ``keypoints (N,K,3)`` or None; ``candidates`` is the
    number of rows over the confidence threshold before NMS. With ``objects``, the keypoints are not final:
    :func:`to_source` fuses the two. ``masks (N,S,S)`` in 0..1, each over its box, or None. ``coefficients (N,P)`` and
    ``prototypes (P,h,w)``, from which :func:`deploykit.runtime.postprocess.masks.assembled` makes masks, or None.
    ``rotated (N,5)`` cx, cy, w, h, angle, of which ``boxes`` are the upright ones around them, or None.
    """

    boxes: Array
    scores: Array
    labels: Array
    keypoints: Array | None
    candidates: int
    objects: KeypointObjects | None = None
    masks: Array | None = None
    coefficients: Array | None = None
    prototypes: Array | None = None
    rotated: Array | None = None


def to_source(found: NetworkDetections, letterbox: Letterbox) -> tuple[Array, Array | None, Array | None]:
    """Return boxes clipped to the image, keypoints, fused with keypoint objects if any, and oriented boxes.

    All are in source pixels. Of oriented boxes, the first are the upright ones around them.
    """
    rotated = None if found.rotated is None else rotated_to_source(found.rotated, letterbox)
    boxes = _clipped(letterbox.to_source(found.boxes) if rotated is None else hulls_of(rotated), letterbox)
    if found.keypoints is None:
        return boxes, None, rotated
    points = found.keypoints.copy()
    points[..., :2] = letterbox.to_source(points[..., :2])
    if found.objects is not None:
        objects = _clipped(letterbox.to_source(found.objects.boxes), letterbox)
        points = fuse(points, found.scores, objects, found.objects, letterbox.source)
    return boxes, points, rotated


def decode_rows(
    outputs: Mapping[str, Array],
    slot: int,
    layout: RawDetections,
    points: int,
    thresholds: Thresholds,
    size: tuple[int, int],
    choice: Choice = USUAL,
) -> NetworkDetections:
    """Apply NMS to the candidate rows of image ``slot``.

    Args:
        outputs: the outputs of one run.
        slot: the index of the image in the batch.
        layout: the layout of the rows.
        points: the number of keypoints per object.
        thresholds: the thresholds of NMS.
        size: (height, width) of the network's input.
        choice: what NMS chooses among; with several labels a row may become one object per class.

    Raises:
        BackendError: the shape of the output differs from the layout. SpecError: the rows do not fit their decoding.
    """
    rows = decoded(_image_slice(outputs, layout.name, slot, (None, None)), layout, size)
    if rows.shape[1] < layout.columns:
        raise BackendError(
            f"output {layout.name!r} must have {layout.columns} columns per row as in the spec, got {rows.shape[1]}"
        )
    suppressed = nms if layout.angle is None else rotated_nms
    kept = suppressed(rows, layout, thresholds, choice)
    rotated = None if layout.angle is None else rotated_rows(rows[kept.rows], layout)
    keypoints = None
    if layout.keypoints is not None:
        values = rows_at(rows, kept.rows)[:, slice(*layout.keypoints)].astype(np.float32, copy=False)
        keypoints = np.ones((len(kept.rows), points, 3), np.float32)  # visible, if the network gives no visibility
        keypoints[..., : layout.kpt_dims] = values.reshape(len(kept.rows), points, layout.kpt_dims)
    found = NetworkDetections(kept.boxes, kept.scores, kept.labels, keypoints, kept.candidates, rotated=rotated)
    if layout.coefficients is None:
        return found
    return with_prototypes(
        found, outputs, slot, rows_at(rows, kept.rows)[:, slice(*layout.coefficients)], layout.prototypes
    )


def with_prototypes(
    found: NetworkDetections, outputs: Mapping[str, Array], slot: int, coefficients: Array, prototypes: str | None
) -> NetworkDetections:
    """Return objects with what their masks are made of: their ``coefficients (N, P)`` and the image's prototypes.

    Raises:
        BackendError: there are not as many prototypes as coefficients.
    """
    assert prototypes is not None  # by the check of the spec
    maps = _image_slice(outputs, prototypes, slot, (coefficients.shape[1], None, None))
    coefficients, maps = coefficients.astype(np.float32, copy=False), maps.astype(np.float32, copy=False)
    return replace(found, coefficients=coefficients, prototypes=maps)


def decode_nms(
    outputs: Mapping[str, Array],
    slot: int,
    names: NmsOutputs,
    points: int,
    thresholds: Thresholds | None,
    classes: Sequence[int] | None = None,
) -> NetworkDetections:
    """Return the used slots of NMS outputs, after a higher ``conf`` or lower ``max_det`` than the graph's.

    ``thresholds`` of None returns all used slots; ``classes`` are the labels of the others, None: all.

    Raises:
        BackendError: an output has another shape, or counts more detections than it has slots.
    """
    boxes = _image_slice(outputs, names.boxes, slot, (None, 4)).astype(np.float32, copy=False)
    scores = _image_slice(outputs, names.scores, slot, (len(boxes),)).astype(np.float32, copy=False)
    labels = _image_slice(outputs, names.labels, slot, (len(boxes),))
    count = _count(outputs, names.num_dets, slot)
    if count > len(boxes):
        raise BackendError(f"output {names.num_dets!r} must lie in 0..{len(boxes)}, got {count}")
    use = np.arange(count)
    if thresholds is not None:
        wanted = scores[:count] > np.float32(thresholds.conf)
        if classes is not None:
            wanted &= np.isin(labels[:count], classes)
        use = np.flatnonzero(wanted)[: thresholds.max_det]
    keypoints = None
    if names.keypoints is not None:
        keypoints = _image_slice(outputs, names.keypoints, slot, (len(boxes), points, 3))[use].astype(
            np.float32, copy=False
        )
    masks = None
    if names.masks is not None:
        masks = _image_slice(outputs, names.masks, slot, (len(boxes), None, None))[use].astype(np.float32, copy=False)
    chosen, rotated = boxes[use], None
    if names.angles is not None:
        angles = _image_slice(outputs, names.angles, slot, (len(boxes),))[use].astype(np.float32, copy=False)
        rotated = np.column_stack((chosen, angles))
        chosen = hulls_of(rotated)
    candidates = count if names.num_candidates is None else _count(outputs, names.num_candidates, slot)
    labels = labels[use].astype(np.int64)
    found = NetworkDetections(chosen, scores[use], labels, keypoints, candidates, masks=masks, rotated=rotated)
    if names.coefficients is None:
        return found
    coefficients = _image_slice(outputs, names.coefficients, slot, (len(boxes), None))[use]
    return with_prototypes(found, outputs, slot, coefficients, names.prototypes)


def _clipped(boxes: Array, letterbox: Letterbox) -> Array:
    """Return boxes, which are in source pixels, clipped to the image."""
    height, width = letterbox.source
    clipped: Array = boxes.clip(ZERO, np.array((width, height, width, height), np.float32))
    return clipped


def decode_poses(
    outputs: Mapping[str, Array], slot: int, layout: PoseObjectRows, thresholds: Thresholds
) -> NetworkDetections:
    """Return persons and keypoint objects of image ``slot`` after separate NMS; :func:`to_source` fuses the two.

    Raises:
        BackendError: the shape of the output differs from the layout.
    """
    rows = _image_slice(outputs, layout.name, slot, (None, layout.columns))
    persons, kept = kept_objects(rows, layout, thresholds)
    keypoints = np.zeros((len(persons.rows), layout.num_keypoints, 3), np.float32)
    coords = rows[persons.rows, slice(*layout.coords)]
    keypoints[..., :2] = coords.reshape(len(persons.rows), layout.num_keypoints, 2)
    objects = KeypointObjects(kept.boxes, kept.scores, kept.labels, layout.fusion)
    candidates = max(persons.candidates, kept.candidates)
    return NetworkDetections(persons.boxes, persons.scores, persons.labels, keypoints, candidates, objects)


def _count(outputs: Mapping[str, Array], name: str, slot: int) -> int:
    """Return one image's entry of an output that counts something."""
    value = _image_slice(outputs, name, slot, (1,))[0]
    if not (np.isfinite(value) and value >= 0 and value == np.rint(value)):
        raise BackendError(f"output {name!r} must be a whole number from 0 on, got {value}")
    return int(value)


def _image_slice(outputs: Mapping[str, Array], name: str, slot: int, shape: tuple[int | None, ...]) -> Array:
    """Return one image's part of an output after checking it against the spec's shape (None: any length)."""
    value = outputs.get(name)
    if value is None:
        raise BackendError(f"the spec names the output {name!r}, but the network has only {', '.join(outputs)}")
    fits = (
        value.ndim == len(shape) + 1
        and slot < len(value)
        and all(side is None or side == got for side, got in zip(shape, value.shape[1:], strict=True))
    )
    if not fits:
        sides = ", ".join("?" if side is None else str(side) for side in shape)
        raise BackendError(f"output {name!r} must be (batch, {sides}), got {value.shape}")
    if value.dtype.kind not in "fiub":
        raise BackendError(f"output {name!r} must be numbers, got {value.dtype}")
    return np.asarray(value[slot])
