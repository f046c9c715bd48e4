"""ONNX definitions of the operators of two-stage detectors (:mod:`deploykit.models.layers.operators`).

They are written with onnxscript; torch's exporter calls them with the inputs of each operator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
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


def keep_best_onnx(boxes: Any, groups: Any, exists: Any, iou: Any, count: int) -> Any:
    """NMS of sorted boxes by NonMaxSuppression, on scores that fall with the rank, with one class per group.

    The classes are constants: a number of them that follows from the boxes would be a shape that TensorRT cannot
    compute. A box without area becomes a point, because NonMaxSuppression would swap the corners of negative sides.
    """
    op = _op()
    none, size = op.Constant(value_float=-1.0), op.Shape(groups, start=1, end=2)
    falling = op.Range(
        op.Squeeze(size, op.Constant(value_ints=[0])), op.Constant(value_int=0), op.Constant(value_int=-1)
    )
    score = op.Unsqueeze(op.Where(exists, op.Cast(falling, to=1), none), op.Constant(value_ints=[1]))
    classes = op.Constant(value=onnx.numpy_helper.from_array(np.arange(count)[:, None]))
    of_class = op.Equal(op.Unsqueeze(groups, op.Constant(value_ints=[1])), classes)
    near, far = op.Split(boxes, axis=2, num_outputs=2)
    least = op.ReduceMin(op.Sub(far, near), op.Constant(value_ints=[2]), keepdims=1)
    shaped = op.Where(op.Greater(least, op.Constant(value_float=0.0)), boxes, op.Constant(value_float=0.0))
    zero = op.Constant(value_floats=[0.0])
    chosen = op.NonMaxSuppression(shaped, op.Where(of_class, score, none), size, iou, zero)
    place = op.Gather(chosen, op.Constant(value_ints=[0, 2]), axis=1)
    marks = op.Expand(op.Constant(value_float=1.0), op.Shape(place, start=0, end=1))
    marked = op.ScatterND(op.ConstantOfShape(op.Shape(groups)), place, marks)
    return op.Greater(marked, op.Constant(value_float=0.5))


def roi_align(levels: Sequence[Any], boxes: Any, images: Any, level: Any, strides: Sequence[int], size: int) -> Any:
    """RoiAlign of all boxes on each feature map; those of other levels are empty there, which costs nothing.

    So every shape is known, and TensorRT can compute it; a list of the boxes of a level would have any length.
    """
    op = _op()
    out = None
    for i, (planes, stride) in enumerate(zip(levels, strides, strict=True)):
        own = op.Equal(level, op.Constant(value_int=i))
        found = op.RoiAlign(
            planes,
            op.Where(op.Unsqueeze(own, op.Constant(value_ints=[1])), boxes, op.Constant(value_float=0.0)),
            images,
            coordinate_transformation_mode="half_pixel",
            mode="avg",
            output_height=size,
            output_width=size,
            sampling_ratio=0,
            spatial_scale=1.0 / stride,
        )
        out = found if out is None else op.Where(op.Unsqueeze(own, op.Constant(value_ints=[1, 2, 3])), found, out)
    return out


TRANSLATIONS = {
    torch.ops.deploykit.best_scores.default: best_scores_onnx,
    torch.ops.deploykit.keep_best.default: keep_best_onnx,
    torch.ops.deploykit.roi_align.default: roi_align,
}
"""Our torch operators -> ONNX, for torch's exporter."""
assert operators.best_scores is not None  # the import registers the operators
