"""Decoding of the maps of an anchor head in numpy, for networks that are exported without their decode."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from deploykit.errors import SpecError
from deploykit.runtime.arrays import Array
from deploykit.spec import AnchorHeads

__all__ = ["rows_of_heads"]


def rows_of_heads(outputs: Mapping[str, Array], head: AnchorHeads, slots: slice) -> Array:
    """Return rows ``(B, N, 5 + classes)`` in network pixels: cx, cy, w, h, objectness, classes.

    N runs over the levels, then anchors, then cells row by row, as in YOLOv5's and YOLOv7's own output.

    Args:
        outputs: the outputs of one run.
        head: their description.
        slots: the images of the batch.

    Raises:
        SpecError: an output is missing or has another shape.
    """
    parts = []
    for name, stride, pairs in zip(head.outputs, head.strides, head.anchors, strict=True):
        if name not in outputs:
            raise SpecError(f"the spec names the output {name!r}, but the network has only {', '.join(outputs)}")
        maps = _split(outputs[name][slots], name, len(pairs) // 2, head.num_columns)
        rows: Array = maps.astype(np.float32)
        if not head.sigmoid:
            with np.errstate(over="ignore"):
                rows = 1 / (1 + np.exp(-rows))
        y, x = np.mgrid[: rows.shape[2], : rows.shape[3]].astype(np.float32)
        cells, sizes = np.stack((x, y), -1), np.array(pairs, np.float32).reshape(-1, 1, 1, 2)
        rows[..., :2] = (2 * rows[..., :2] - np.float32(0.5) + cells) * np.float32(stride)
        rows[..., 2:4] = np.square(2 * rows[..., 2:4]) * sizes
        parts.append(rows.reshape(len(rows), -1, head.num_columns))
    return np.concatenate(parts, 1)


def _split(maps: Array, name: str, anchors: int, columns: int) -> Array:
    """Return the maps of a level as ``(B, A, height, width, columns)``."""
    if maps.ndim == 4 and maps.shape[1] == anchors * columns:
        batch, _, height, width = maps.shape
        return maps.reshape(batch, anchors, columns, height, width).transpose(0, 1, 3, 4, 2)
    if maps.ndim == 5 and (maps.shape[1], maps.shape[4]) == (anchors, columns):
        return maps
    raise SpecError(
        f"output {name!r} must be (batch, {anchors}, height, width, {columns}) or (batch, {anchors * columns}, height, "
        f"width) as the spec's anchors and columns say, got {maps.shape}"
    )
