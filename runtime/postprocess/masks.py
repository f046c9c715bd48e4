"""Masks of objects at the resolution of the image, from small ones over their boxes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from deploykit.runtime.arrays import Array

__all__ = ["pasted", "run_lengths"]


def pasted(masks: Array, boxes: Array, size: tuple[int, int], threshold: float = 0.5) -> Array:
    """Each object's pixels, ``(N, height, width)`` bool.

    A mask is laid over its box, its cells' values at their centres and bilinear between them (zero beyond the outer
    ones); a pixel belongs to the object if its own centre is inside of the box and its value is at least ``threshold``.
    This is what detectron2 does (``paste_masks_in_image``), whose float32 rounds pixels at the very threshold.

    Args:
        masks: ``(N, S, S)`` in 0..1.
        boxes: ``(N, 4)`` xyxy in pixels of the image; they may reach beyond it.
        size: (height, width) of the image.
        threshold: over 0.
    """
    out = np.zeros((len(masks), *size), np.bool_)
    for mask, box, pixels in zip(masks, boxes.astype(np.float64), out, strict=True):
        rows, down = _weights(box[1], box[3], size[0], mask.shape[0])
        columns, across = _weights(box[0], box[2], size[1], mask.shape[1])
        if rows.stop > rows.start and columns.stop > columns.start:
            pixels[rows, columns] = down @ mask.astype(np.float64) @ across.T >= threshold
    return out


def run_lengths(mask: Array) -> dict[str, Any]:
    """A mask ``(height, width)`` as COCO has it uncompressed: ``size``, and ``counts`` of pixels that are not of the
    object, that are, that are not, ... down one column after the other."""
    flat = mask.T.reshape(-1)
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    borders = np.concatenate(([0], changes, [flat.size]))
    counts = np.diff(borders).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat.size and flat[0] else counts}


def _weights(start: float, stop: float, pixels: int, cells: int) -> tuple[slice, Array]:
    """The pixels of an axis whose centres lie in a box, and how much each cell of a mask counts for each of them."""
    first = min(max(math.ceil(start - 0.5), 0), pixels)
    last = max(min(math.floor(stop - 0.5) + 1, pixels), first)
    if stop <= start:
        last = first
    weights = np.zeros((last - first, cells))
    if last > first:
        places = (np.arange(first, last) + 0.5 - start) * (cells / (stop - start)) - 0.5
        low = np.floor(places).astype(np.int64)
        part = places - low
        lines = np.arange(len(places))
        for cell, share in ((low, 1 - part), (low + 1, part)):
            inside = (cell >= 0) & (cell < cells)
            weights[lines[inside], cell[inside]] += share[inside]
    return slice(first, last), weights
