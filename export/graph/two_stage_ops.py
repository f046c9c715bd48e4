"""ONNX definitions of the operators of two-stage detectors (:mod:`deploykit.models.layers.operators`).

They are written with onnxscript; torch's exporter calls them with the inputs of each operator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnxscript
import torch

from deploykit.models.layers import operators

__all__ = ["OPSET", "TRANSLATIONS"]

OPSET = 18
"""The opset that the definitions use; their operators are unchanged up to 23."""


def _op() -> Any:
    return getattr(onnxscript, f"opset{OPSET}")


def best_scores_onnx(scores: Any, count: Any) -> Any:
    """The best scores by TopK, which puts the lower index first among equal values."""
    op = _op()
    if isinstance(count, int):
        count = op.Constant(value_ints=[count])
    else:  # it follows from the size of the image
        count = op.Reshape(count, op.Constant(value_ints=[1]))
    return op.TopK(scores, count, axis=1, largest=1, sorted=1)


def keep_best_onnx(boxes: Any, groups: Any, exists: Any, iou: Any) -> Any:
    """NMS of sorted boxes by NonMaxSuppression, on scores that fall with the rank, with one class per group.

    A box without area becomes a point, because NonMaxSuppression would swap the corners of negative sides.
    """
    op = _op()
    one, none = op.Constant(value_int=1), op.Constant(value_float=-1.0)
    count = op.Shape(groups, start=1, end=2)
    falling = op.Range(op.Squeeze(count, op.Constant(value_ints=[0])), op.Constant(value_int=0), op.Neg(one))
    score = op.Unsqueeze(op.Where(exists, op.Cast(falling, to=1), none), op.Constant(value_ints=[1]))
    classes = op.Range(op.Constant(value_int=0), op.Add(op.ReduceMax(groups, keepdims=0), one), one)
    axis = op.Constant(value_ints=[1])
    of_class = op.Equal(op.Unsqueeze(groups, axis), op.Unsqueeze(classes, axis))
    near, far = op.Split(boxes, axis=2, num_outputs=2)
    least = op.ReduceMin(op.Sub(far, near), op.Constant(value_ints=[2]), keepdims=1)
    shaped = op.Where(op.Greater(least, op.Constant(value_float=0.0)), boxes, op.Constant(value_float=0.0))
    zero = op.Constant(value_floats=[0.0])
    chosen = op.NonMaxSuppression(shaped, op.Where(of_class, score, none), count, iou, zero)
    place = op.Gather(chosen, op.Constant(value_ints=[0, 2]), axis=1)
    marks = op.Expand(op.Constant(value_float=1.0), op.Shape(place, start=0, end=1))
    marked = op.ScatterND(op.ConstantOfShape(op.Shape(groups)), place, marks)
    return op.Greater(marked, op.Constant(value_float=0.5))


def roi_align(levels: Sequence[Any], boxes: Any, images: Any, level: Any, strides: Sequence[int], size: int) -> Any:
    """RoiAlign on each feature map, for only those boxes that belong to its level."""
    op = _op()
    cells = op.Constant(value_ints=[size, size])
    shape = op.Concat(op.Shape(boxes, start=0, end=1), op.Shape(levels[0], start=1, end=2), cells, axis=0)
    out = op.ConstantOfShape(shape)
    for i, (planes, stride) in enumerate(zip(levels, strides, strict=True)):
        index = op.Transpose(op.NonZero(op.Equal(level, op.Constant(value_int=i))), perm=[1, 0])
        found = op.RoiAlign(
            planes,
            op.GatherND(boxes, index),
            op.GatherND(images, index),
            coordinate_transformation_mode="half_pixel",
            mode="avg",
            output_height=size,
            output_width=size,
            sampling_ratio=0,
            spatial_scale=1.0 / stride,
        )
        out = op.ScatterND(out, index, found)
    return out


TRANSLATIONS = {
    torch.ops.deploykit.best_scores.default: best_scores_onnx,
    torch.ops.deploykit.keep_best.default: keep_best_onnx,
    torch.ops.deploykit.roi_align.default: roi_align,
}
"""Our torch operators -> ONNX, for torch's exporter."""
assert operators.best_scores is not None  # the import registers the operators
