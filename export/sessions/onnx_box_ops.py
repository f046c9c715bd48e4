"""ONNX operators of detectors in two stages in torch: what chooses boxes, and what looks them up.

onnx's reference implementation walks over cells and boxes one by one, which takes hours at full size.

Definitions: https://onnx.ai/onnx/operators/ (Apache-2.0).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from deploykit.export.sessions.onnx_image_ops import Attributes, Operator, UnsupportedFormError, Values, required
from deploykit.models.layers.operators import roi_align
from deploykit.runtime.postprocess.nms import suppress

__all__ = ["BOX_OPERATORS"]


def _roi_align(values: Values, attributes: Attributes) -> Tensor:
    """Compute RoiAlign with as many samples as each box needs; each cell is their mean. No derivative passes."""
    planes, boxes, images = (required(value).detach() for value in values)
    scale = float(attributes.get("spatial_scale", 1.0))
    side = attributes.get("output_height", 1)
    form = (
        attributes.get("mode", "avg"),
        attributes.get("coordinate_transformation_mode", "half_pixel"),
        attributes.get("sampling_ratio", 0),
    )
    if form != ("avg", "half_pixel", 0) or side != attributes.get("output_width", 1) or (1 / scale) % 1:
        raise UnsupportedFormError(f"RoiAlign {form}")
    level = torch.zeros(len(boxes), dtype=torch.int64)
    found: Tensor = roi_align([planes.float()], boxes.float(), images.long(), level, [round(1 / scale)], side)
    return found.to(planes.dtype)


def _non_max_suppression(values: Values, attributes: Attributes) -> Tensor:
    """Compute NonMaxSuppression: rows of image, class and box, of each class the best first."""
    boxes, scores = (required(value).detach().float().numpy() for value in values[:2])
    most, iou, least = (*values[2:], None, None, None)[:3]
    limit = 0 if most is None else int(most)
    overlap = 0.0 if iou is None else float(iou)
    if attributes.get("center_point_box", 0):
        raise UnsupportedFormError("boxes of a centre and sides")
    rows = []
    for image, (corners, classes) in enumerate(zip(boxes, scores, strict=True)):
        shaped = np.concatenate(
            (np.minimum(corners[:, :2], corners[:, 2:]), np.maximum(corners[:, :2], corners[:, 2:])), 1
        )
        for label, score in enumerate(classes):
            order = np.argsort(-score, kind="stable")
            if least is not None:
                order = order[score[order] > float(least)]
            with np.errstate(invalid="ignore"):  # boxes without area overlap nothing
                kept = order[suppress(shaped[order], np.zeros(len(order), np.int64), overlap, limit)]
            rows.append(np.stack((np.full_like(kept, image), np.full_like(kept, label), kept), 1))
    found = np.concatenate(rows) if rows else np.zeros((0, 3), np.int64)
    return torch.from_numpy(found.astype(np.int64))


def _scatter_nd(values: Values, attributes: Attributes) -> Tensor:
    """Compute ScatterND that replaces values."""
    data, index, updates = (required(value) for value in values)
    if attributes.get("reduction", "none") != "none":
        raise UnsupportedFormError("ScatterND with a reduction")
    return data.index_put(tuple(index.long().unbind(-1)), updates)


BOX_OPERATORS: dict[str, Operator] = {
    "NonMaxSuppression": _non_max_suppression,
    "RoiAlign": _roi_align,
    "ScatterND": _scatter_nd,
    "Where": lambda values, _: torch.where(*(required(value) for value in values)),
}
"""Operator -> its function, which raises :class:`UnsupportedFormError` for forms that it leaves to the reference."""
