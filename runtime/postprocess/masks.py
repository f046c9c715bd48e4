"""Masks of objects at image resolution, from small masks over their boxes."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np

from deploykit.runtime.arrays import Array
from deploykit.runtime.images.letterbox import Letterbox

__all__ = ["assembled", "outline", "outlines", "pasted", "run_lengths"]

NEAR = 1.0  # pixels that an outline may be off the border of its mask


def pasted(masks: Array, boxes: Array, size: tuple[int, int], threshold: float = 0.5) -> Array:
    """Return the pixels of each object, ``(N, height, width)`` bool.

    A mask covers its box: values are at the centres of its cells, bilinear between them and zero beyond the outer ones.
    A pixel belongs to the object if its centre is inside the box and its value is at least ``threshold``. detectron2
    does the same (``paste_masks_in_image``); its float32 may round pixels exactly at the threshold.

    Args:
        masks: ``(N, S, S)`` in 0..1.
        boxes: ``(N, 4)`` xyxy in image pixels; they may extend beyond the image.
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


def assembled(logits: Array, boxes: Array, letterbox: Letterbox) -> Array:
    """Return the pixels of each object, ``(N, height, width)`` bool, from maps of logits over the network's canvas.

    A pixel of the image belongs to the object if its centre is inside the box and the logit there is over 0. Logits are
    at the centres of their cells, bilinear between them and constant beyond the outer ones. The image's own pixels are
    looked at, and not those of the canvas, so that borders are as smooth as the image allows.

    Args:
        logits: ``(N, h, w)``; the map lies over the whole canvas.
        boxes: ``(N, 4)`` xyxy in image pixels; they may extend beyond the image.
        letterbox: where the image lies on the canvas.
    """
    height, width = letterbox.source
    out = np.zeros((len(logits), height, width), np.bool_)
    for values, box, pixels in zip(logits, boxes.astype(np.float64), out, strict=True):
        sides = []
        for axis, cells in ((1, values.shape[0]), (0, values.shape[1])):
            size, canvas = letterbox.source[1 - axis], letterbox.canvas[1 - axis]
            span = _inside(box[axis], box[axis + 2], size)
            centres = (np.arange(span.start, span.stop) + 0.5) * letterbox.scale[axis] + letterbox.pad[axis]
            sides.append((span, _two_weights(centres * (cells / canvas) - 0.5, cells)))
        (rows, down), (columns, across) = sides
        pixels[rows, columns] = down @ values.astype(np.float64) @ across.T > 0
    return out


def _two_weights(places: Array, cells: int) -> Array:
    """Return the weight of each cell at each place, ``(places, cells)``: those of its two neighbours add up to 1."""
    places = np.clip(places, 0, cells - 1)
    low = np.minimum(np.floor(places).astype(np.int64), max(cells - 2, 0))
    weights, lines = np.zeros((len(places), cells)), np.arange(len(places))
    weights[lines, low] = 1 - (places - low)
    weights[lines, np.minimum(low + 1, cells - 1)] += places - low
    return weights


def run_lengths(mask: Array) -> dict[str, Any]:
    """Encode a mask ``(height, width)`` as COCO's uncompressed run lengths: ``size``, and ``counts`` of background and
    object pixels in turn, column by column."""
    flat = mask.T.reshape(-1)
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    borders = np.concatenate(([0], changes, [flat.size]))
    counts = np.diff(borders).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat.size and flat[0] else counts}


def outlines(mask: Array) -> list[Array]:
    """Return the border of each connected piece of a mask ``(height, width)``, the largest piece first.

    Each is ``(n, 2)`` float64, x and y of the corners in image pixels, at most a pixel off the border of the piece's
    pixels. Holes are filled, because neither YOLO's labels nor LabelMe's polygons have them.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return []
    part = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.uint8)
    # Contours go through the centres of pixels. Of an image of four pixels for each, they tell the sides of the one.
    found, _ = cv2.findContours(part.repeat(2, 0).repeat(2, 1), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    pieces = []
    for contour in found:
        exact = (contour[:, 0] + 1) // 2 + (columns[0], rows[0])
        near = cv2.approxPolyDP(exact.astype(np.int32)[:, None], NEAR, closed=True)[:, 0]
        pieces.append((near if len(near) > 3 else exact).astype(np.float64))
    return sorted(pieces, key=lambda piece: -cv2.contourArea(piece.astype(np.float32)))


def outline(mask: Array) -> Array:
    """Return the :func:`outlines` of a mask as one polygon ``(n, 2)``: its pieces, joined by lines without an area.

    An empty mask has the single corner (0, 0).
    """
    pieces = outlines(mask)
    if not pieces:
        return np.zeros((1, 2))
    first, *rest = pieces
    joined = [first, *(np.concatenate((first[:1], piece, piece[:1])) for piece in rest)]
    return np.concatenate(joined)


def _weights(start: float, stop: float, pixels: int, cells: int) -> tuple[slice, Array]:
    """Return the pixels of an axis whose centres lie in a box, and the weight of each mask cell for each pixel."""
    span = _inside(start, stop, pixels)
    first, last = span.start, span.stop
    weights = np.zeros((last - first, cells))
    if last > first:
        places = (np.arange(first, last) + 0.5 - start) * (cells / (stop - start)) - 0.5
        low = np.floor(places).astype(np.int64)
        part = places - low
        lines = np.arange(len(places))
        for cell, share in ((low, 1 - part), (low + 1, part)):
            inside = (cell >= 0) & (cell < cells)
            weights[lines[inside], cell[inside]] += share[inside]
    return span, weights


def _inside(start: float, stop: float, pixels: int) -> slice:
    """Return the pixels of an axis whose centres lie in a box."""
    first = min(max(math.ceil(start - 0.5), 0), pixels)
    last = max(min(math.floor(stop - 0.5) + 1, pixels), first)
    return slice(first, first if stop <= start else last)
