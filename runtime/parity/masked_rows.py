"""Rows with the prototypes of their masks as one array, and how far two networks' masks are apart.

Masks of all rows would take gigabytes, and no row alone tells a mask. So what is compared of an image is its rows, with
the coefficients as last columns; after them come the prototypes, and one row that holds their shape and the canvas'.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deploykit.errors import ParityError
from deploykit.runtime.arrays import Array
from deploykit.runtime.parity.differences import Difference, class_scores
from deploykit.runtime.parity.spread import errors_of, spread_of
from deploykit.runtime.parity.tolerance import Tolerance, dense_limit
from deploykit.spec import EndToEndRows, RawDetections

__all__ = ["MASKS", "MaskedRows", "best_masks", "mask_difference"]

MASKS = 100  # rows of each image whose masks are compared, those of the best scores


@dataclass(frozen=True)
class MaskedRows:
    """The rows of one image ``(N, columns)``, their coefficients ``(N, P)`` and the prototypes ``(P, h, w)``.

    The prototypes lie over a canvas of (height, width) pixels.
    """

    rows: Array
    coefficients: Array
    prototypes: Array
    canvas: tuple[int, int]

    def packed(self) -> Array:
        """Return all as one array, ``(N + ..., columns + P)``."""
        rows = np.concatenate((self.rows, self.coefficients), 1)
        rows = rows.astype(np.result_type(rows, np.float32), copy=False)  # half precision does not count far
        flat = self.prototypes.reshape(-1)
        about = np.array([*self.prototypes.shape, *self.canvas])
        tail = np.zeros((math.ceil(flat.size / rows.shape[1]) + 1, rows.shape[1]), rows.dtype)
        tail[:-1].reshape(-1)[: flat.size] = flat
        tail[-1, : len(about)] = about
        return np.concatenate((rows, tail))

    @staticmethod
    def unpacked(values: Array, layout: RawDetections | EndToEndRows) -> MaskedRows:
        """Return what :meth:`packed` made of rows of a layout.

        Raises:
            ParityError: it is something else.
        """
        about = values[-1, :5] if values.ndim == 2 and len(values) and values.shape[1] > layout.columns else ()
        if len(about) < 5 or not all(0 < x < 1 << 24 and x == np.rint(x) for x in about):
            raise ParityError(f"expected rows with masks of prototypes, got values of {values.shape}: export again")
        count, height, width, *canvas = (int(x) for x in about)
        size = count * height * width
        stop = len(values) - 1 - math.ceil(size / values.shape[1])
        if stop < 0 or count != values.shape[1] - layout.columns:
            raise ParityError(f"{count} prototypes of {height} x {width} are not in values of {values.shape}")
        maps = values[stop:-1].reshape(-1)[:size].reshape(count, height, width)
        rows = values[:stop]
        return MaskedRows(rows[:, : layout.columns], rows[:, layout.columns :], maps, (canvas[0], canvas[1]))


def best_masks(rows: Array, layout: RawDetections) -> Array:
    """Return the indices of the rows whose masks are compared: those of the best scores, the best first."""
    scores = class_scores(rows, layout).max(1, initial=0.0)
    return np.argsort(-scores, kind="stable")[:MASKS]


Masks = tuple[Array, Array]
"""The coefficients of some objects of an image ``(n, P)``, and its prototypes ``(P, h, w)``."""


def mask_difference(
    names: tuple[str, str, str], expected: Sequence[Masks], found: Sequence[Masks], limits: Tolerance
) -> Difference:
    """Return how far the logits of masks are apart; of each image the same objects are given, in the same order.

    A logit may differ by what a value of a dense output may, the output being all logits of the image. The place of the
    worst is the object and the cell of its mask.
    """
    count, most, share, worst = 0, 0.0, 0.0, (0, 0, 0.0, 0.0)
    spreads = []
    for a, b in zip(expected, found, strict=True):
        if a[1].shape != b[1].shape:
            raise ParityError(f"{names[1]} gives prototypes of {b[1].shape} on {names[2]}, {names[0]} of {a[1].shape}")
        wide, got = (_logits(*side) for side in (a, b))
        if not wide.size:
            continue
        error, used = errors_of(wide, got, dense_limit(wide, limits))
        row, cell = np.unravel_index(int(used.argmax()), used.shape)
        if used[row, cell] > share or not count:
            worst = (int(row), int(cell), float(wide[row, cell]), float(got[row, cell]))
        count, most, share = count + error.size, max(most, float(error.max())), max(share, float(used.max()))
        spreads.append(spread_of([used]))
    spread = tuple(map(max, zip(*spreads, strict=True))) if spreads else spread_of([])
    return Difference(*names, "masks", count, most, share, worst, dense=True, spread=spread)


def _logits(coefficients: Array, prototypes: Array) -> Array:
    """Return the logits of masks, ``(n, cells)`` float64."""
    with np.errstate(invalid="ignore", over="ignore"):  # NaN and infinity are found by their errors
        logits: Array = coefficients.astype(np.float64) @ prototypes.reshape(len(prototypes), -1).astype(np.float64)
    return logits
