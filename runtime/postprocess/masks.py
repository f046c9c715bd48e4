"""Masks of objects at image resolution: from small masks over their boxes, and from prototypes.

Masks of prototypes (:func:`assembled`) have one meaning, which every form of a network shares, with NMS inside or not:

* They are made of the objects that are left after NMS. The logits of an object are the sum of the prototypes, each
  times a coefficient, and lie over the network's canvas.
* They are brought to the image's pixels by bilinear interpolation, constant beyond the outer centres, in two steps. The
  first refines the map by 1, 2 or 4, the least at which the image's edges on the canvas fall between cells (up to the
  canvas' own pixels, where prototypes are finer or coarser than a quarter). The image's part is cut out, and the second
  step brings it to the image's size. So nothing of the border shines in, and an image that is the canvas is
  interpolated once.
* A pixel belongs to the object if its logit there is over 0, which is a probability over 0.5, and if its column and row
  lie in the box: ``x1 <= column < x2``, ``y1 <= row < y2``. The box is that of the object, not clipped to the image.
* An object without such a pixel is left out.

The ultralytics package does the same from 8.4.180 on where its masks are asked for at the image's size (its option
``retina_masks``), and on images of the canvas' size from 8.4.130 on. It and YOLOv5 used to crop the map before they
enlarged it, at whole cells of it, so their masks differ along the sides of boxes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np

from deploykit.runtime.arrays import Array
from deploykit.runtime.images.letterbox import Letterbox

__all__ = ["assembled", "outline", "outlines", "pasted", "run_lengths"]

ONE, NONE, ZERO = np.array(1.0), np.array(0.0), np.array(0, np.float32)  # numpy converts numbers at each call
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
    least = np.array(threshold, np.float64)
    high, broad = (np.arange(cells, dtype=np.float64) for cells in masks.shape[1:])
    for mask, (x1, y1, x2, y2), pixels in zip(masks.astype(np.float64), boxes.tolist(), out, strict=True):
        rows, columns = _inside(y1, y2, size[0]), _inside(x1, x2, size[1])
        if rows.stop > rows.start and columns.stop > columns.start:
            places = _places(rows, y1, y2, len(high))
            down = _shares(places[:, None], high)
            wide = mask @ _shares(broad[:, None], _places(columns, x1, x2, len(broad)))
            found = pixels[rows, columns]
            for start in range(0, len(places), STRIP):  # a strip needs few of the cells
                part = slice(start, min(start + STRIP, len(places)))
                cells = slice(max(math.floor(places[start]), 0), math.floor(places[part.stop - 1]) + 2)
                np.greater_equal(down[part, cells] @ wide[cells], least, out=found[part])
    return out


def _places(pixels: slice, start: float, stop: float, cells: int) -> Array:
    """Return where the centres of pixels lie among the centres of the cells of a box, from 0 on."""
    centres = np.arange(pixels.start + 0.5, pixels.stop)
    centres -= start
    centres *= cells / (stop - start)
    centres -= 0.5
    return centres


def _shares(places: Array, others: Array) -> Array:
    """Return 1 where places are equal, falling evenly to 0 where they are 1 apart."""
    distance: Array = places - others
    np.abs(distance, out=distance)
    np.subtract(ONE, distance, out=distance)
    np.maximum(distance, NONE, out=distance)
    return distance


def assembled(coefficients: Array, prototypes: Array, boxes: Array, letterbox: Letterbox) -> tuple[Array, Array]:
    """Return the pixels of each object that has any, ``(n, height, width)`` bool, and which of the N have, ``(N,)``.

    Only pixels inside of boxes are computed, a strip at a time, so the memory is that of the result.

    Args:
        coefficients: ``(N, P)``.
        prototypes: ``(P, h, w)``; they lie over the whole canvas.
        boxes: ``(N, 4)`` xyxy in image pixels; they may extend beyond the image.
        letterbox: where the image lies on the canvas.
    """
    height, width = letterbox.source
    down, across = _sampling(prototypes.shape[1:], letterbox)
    coefficients, prototypes = (each.astype(np.float32, copy=False) for each in (coefficients, prototypes))
    out = np.zeros((len(boxes), height, width), np.bool_)
    has_pixels = np.zeros(len(boxes), np.bool_)
    count = 0
    for i, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        rows, columns = _columns_from(y1, y2, height), _columns_from(x1, x2, width)
        if rows.stop == rows.start or columns.stop == columns.start:
            continue
        # An object without a pixel leaves its slot to the next one: it wrote nothing but False.
        pixels = out[count, rows, columns]
        has_pixels[i] = _drawn(pixels, coefficients[i], prototypes, (down, rows), (across, columns))
        count += bool(has_pixels[i])
    return out[:count], has_pixels


STRIP = 128  # rows or columns of an image that are computed at a time


@dataclass(frozen=True)
class _Sampling:
    """How the pixels of one axis follow from the cells of a map: ``weights (pixels, cells)``, of which those from
    ``first`` to before ``stop`` are not 0, both rising; ``turned (cells, pixels)`` are the same."""

    weights: Array
    turned: Array
    first: list[int]
    stop: list[int]

    def cells(self, pixels: slice) -> slice:
        """Return the cells that some pixels need, at least one."""
        return slice(self.first[pixels.start], self.stop[pixels.stop - 1])


def _drawn(
    pixels: Array,
    coefficients: Array,
    prototypes: Array,
    down: tuple[_Sampling, slice],
    across: tuple[_Sampling, slice],
) -> bool:
    """Set the ``pixels`` of a box where the logits are over 0, and return whether there is one.

    ``down`` and ``across`` say how the image's pixels of each axis follow from the map, and which of them the box has.
    """
    (sampling, rows), (beside, columns) = down, across
    high, broad = sampling.cells(rows), beside.cells(columns)
    cells = prototypes[:, high, broad]
    logits = (coefficients @ cells.reshape(len(cells), -1)).reshape(cells.shape[1:])
    wide = np.empty((len(logits), columns.stop - columns.start), np.float32)
    for start in range(columns.start, columns.stop, STRIP):
        part = slice(start, min(start + STRIP, columns.stop))
        needed = beside.cells(part)
        np.matmul(
            logits[:, needed.start - broad.start : needed.stop - broad.start],
            beside.turned[needed, part],
            out=wide[:, start - columns.start : part.stop - columns.start],
        )
    some = False
    for start in range(rows.start, rows.stop, STRIP):
        part = slice(start, min(start + STRIP, rows.stop))
        needed = sampling.cells(part)
        strip = sampling.weights[part, needed] @ wide[needed.start - high.start : needed.stop - high.start]
        found = np.greater(strip, ZERO, out=pixels[start - rows.start : part.stop - rows.start])
        some = some or bool(found.any())
    return some


@lru_cache(maxsize=2)  # the frames of a video are alike; a pair for 1080p and prototypes of 160 x 160 takes 2 MB
def _sampling(shape: tuple[int, ...], letterbox: Letterbox) -> tuple[_Sampling, _Sampling]:
    """Return how an image's rows and columns follow from a map over the canvas: refined, cut and interpolated."""
    sides = [
        (cells, letterbox.canvas[axis], letterbox.pad[1 - axis], letterbox.resized[axis], letterbox.source[axis])
        for axis, cells in enumerate(shape)
    ]
    whole = all(canvas % cells == 0 for cells, canvas, *_ in sides)
    refined = [canvas for _, canvas, *_ in sides]
    if whole:
        most = max(canvas // cells for cells, canvas, *_ in sides)
        for factor in range(1, most):
            fine = [cells * factor for cells, *_ in sides]
            if all(
                canvas % size == 0 and edge * size % canvas == 0
                for size, (_, canvas, start, length, _) in zip(fine, sides, strict=True)
                for edge in (start, start + length)
            ):
                refined = fine
                break
    found = []
    for fine_cells, (cells, canvas, start, length, pixels) in zip(refined, sides, strict=True):
        first, stop = start * fine_cells // canvas, (start + length) * fine_cells // canvas
        low, high, part = _neighbours(stop - first, pixels)
        refinement = _two_weights(cells, fine_cells)[first:stop]
        weights = refinement[low] * (1 - part)[:, None]
        weights += refinement[high] * part[:, None]
        used = weights > 0
        last = weights.shape[1] - used[:, ::-1].argmax(1)
        single = weights.astype(np.float32)
        found.append(_Sampling(single, np.ascontiguousarray(single.T), used.argmax(1).tolist(), last.tolist()))
    return found[0], found[1]


def _two_weights(cells: int, places: int) -> Array:
    """Return the weight of each cell at each of so many places over them, ``(places, cells)``, float64.

    Those of the two cells whose centres are next to the centre of a place add up to 1.
    """
    low, high, part = _neighbours(cells, places)
    weights, lines = np.zeros((places, cells)), np.arange(places)
    weights[lines, low] = 1 - part
    weights[lines, high] += part
    return weights


def _neighbours(cells: int, places: int) -> tuple[Array, Array, Array]:
    """Return the two cells whose centres are next to the centre of each place, and the share of the second."""
    centres = np.clip((np.arange(places) + 0.5) * (cells / places) - 0.5, 0, cells - 1)
    low = np.minimum(np.floor(centres).astype(np.int64), max(cells - 2, 0))
    return low, np.minimum(low + 1, cells - 1), centres - low


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


def _columns_from(start: float, stop: float, pixels: int) -> slice:
    """Return the pixels of an axis whose number lies in a box: its start counts, its stop does not."""
    first, last = (min(max(math.ceil(edge), 0), pixels) for edge in (start, stop))
    return slice(first, max(first, last))


def _inside(start: float, stop: float, pixels: int) -> slice:
    """Return the pixels of an axis whose centres lie in a box."""
    first = min(max(math.ceil(start - 0.5), 0), pixels)
    last = max(min(math.floor(stop - 0.5) + 1, pixels), first)
    return slice(first, first if stop <= start else last)
