"""Resize as Pillow does, byte for byte: published classifiers were evaluated with Pillow's filters.

Unlike OpenCV's, these filters widen with the factor by which an image shrinks, so that every source pixel counts.
Pillow (HPND licence) sums in integers: weights with 22 fractional bits, rows first, bytes between the two passes.
All products and sums here are integers below 2^53, which float64 holds exactly. A matrix product therefore gives the
same integers, and no image library is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from deploykit.runtime.arrays import Array

__all__ = ["FILTERS", "resample"]

BLOCK = 16  # outputs per matrix product
ALONE = 1 << 18  # products that OpenBLAS sums in the calling thread: waking others takes it far longer than the sums
BITS = 22  # fractional bits of a weight: 32, less 8 for the pixel and 2 in reserve


def _triangle(x: Array) -> Array:
    return np.maximum(1.0 - np.abs(x), 0.0)


def _cubic(x: Array) -> Array:
    """Keys' kernel with a = -0.5."""
    x, a = np.abs(x), -0.5
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _lanczos(x: Array) -> Array:
    # math.sin instead of numpy's: its last bit may differ, and with it a weight.
    values = [_sinc(v) * _sinc(v / 3.0) if -3.0 <= v < 3.0 else 0.0 for v in x.ravel().tolist()]
    return np.array(values).reshape(x.shape)


def _sinc(x: float) -> float:
    x *= math.pi
    return math.sin(x) / x if x else 1.0


FILTERS: dict[str, tuple[Callable[[Array], Array], float]] = {
    "bilinear": (_triangle, 1.0),
    "bicubic": (_cubic, 2.0),
    "lanczos": (_lanczos, 3.0),
}
"""Name -> the kernel and its half width in pixels of the larger image."""


def resample(image: Array, size: tuple[int, int], kind: str) -> Array:
    """Resize ``uint8 (h, w, C)`` to ``size`` (height, width) with one of :data:`FILTERS`; the bytes are Pillow's."""
    planes = np.ascontiguousarray(image.reshape(*image.shape[:2], -1).transpose(2, 0, 1))
    for axis in (2, 1):
        if planes.shape[axis] != size[axis - 1]:
            planes = _along(planes, axis, size[axis - 1], kind)
    return np.ascontiguousarray(planes.transpose(1, 2, 0).reshape(*size, *image.shape[2:]))


def _along(planes: Array, axis: int, target: int, kind: str) -> Array:
    """Resize one axis of ``uint8 (C, h, w)``."""
    shape = list(planes.shape)
    shape[axis] = target
    out = np.empty(shape, np.uint8)
    for start, stop, first, last, table in _weights(planes.shape[axis], target, kind):
        most = max(ALONE // table.size, 1)
        if axis == 2:
            lines, made = planes.reshape(-1, planes.shape[2])[:, first:last], out.reshape(-1, target)[:, start:stop]
            for at in range(0, len(lines), most):
                made[at : at + most] = _rounded(lines[at : at + most].astype(np.float64) @ table.T)
            continue
        for plane, made in zip(planes[:, first:last], out[:, start:stop], strict=True):
            for at in range(0, plane.shape[1], most):
                made[:, at : at + most] = _rounded(table @ plane[:, at : at + most].astype(np.float64))
    return out


def _rounded(sums: Array) -> Array:
    return np.clip(np.floor((sums + (1 << (BITS - 1))) / (1 << BITS)), 0, 255).astype(np.uint8)


@lru_cache(maxsize=64)
def _weights(source: int, target: int, kind: str) -> list[tuple[int, int, int, int, Array]]:
    """Return the integer weights of an axis in blocks ``(start, stop, first, last, table)``.

    Outputs ``start`` to ``stop`` are ``table (stop - start, last - first)`` times the inputs ``first`` to ``last``.
    Most weights are 0, and the blocks leave most of these out.
    """
    kernel, half = FILTERS[kind]
    scale = source / target
    stretch = max(scale, 1.0)
    support = half * stretch
    rows: list[tuple[int, Array]] = []
    for i in range(target):
        centre = (i + 0.5) * scale
        first = max(int(centre - support + 0.5), 0)
        last = min(int(centre + support + 0.5), source)
        row = kernel((np.arange(first, last) - centre + 0.5) * (1.0 / stretch))
        total = 0.0
        for value in row.tolist():  # one by one, in the order of the original
            total += value
        row = row * (1.0 / total) if total else row
        rows.append((first, np.trunc(row * (1 << BITS) + np.where(row < 0, -0.5, 0.5))))
    blocks = []
    for start in range(0, target, BLOCK):
        block = rows[start : start + BLOCK]
        first, last = min(at for at, _ in block), max(at + len(row) for at, row in block)
        table = np.zeros((len(block), last - first))
        for weights, (at, row) in zip(table, block, strict=True):
            weights[at - first : at - first + len(row)] = row
        blocks.append((start, start + len(block), first, last, table))
    return blocks
