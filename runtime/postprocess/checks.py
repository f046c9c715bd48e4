"""Checks of the values that a network gives: finite numbers, probabilities in 0..1, labels that there are."""

from __future__ import annotations

import numpy as np

from deploykit.errors import NotFiniteError, SpecError
from deploykit.runtime.arrays import Array

__all__ = ["check_finite", "check_labels", "check_probabilities", "check_rows"]

TOLERANCE = 0.01
"""How far a probability may lie outside of 0..1: one step of bfloat16 at 1 is 0.0078, and a column that holds something
else than a probability is off by far more."""

HALF_INFINITY = 0x7C00  # the bits of float16's infinity; NaN has larger ones


def check_finite(values: Array, name: str) -> None:
    """Check that every value of an output is a finite number; ``name`` is the output's.

    Raises:
        NotFiniteError: a value is NaN or infinite.
    """
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise _not_finite(values, name)


def check_probabilities(values: Array, what: str, name: str) -> None:
    """Check that values lie in 0..1; ``what`` they are (``scores``), and the ``name`` of their output.

    Raises:
        NotFiniteError: a value is NaN.
        SpecError: a value lies outside, beyond :data:`TOLERANCE`.
    """
    if not values.size:
        return
    low, high = _ends(values)
    if np.isnan(low):
        raise _not_finite(values, name)
    if low < -TOLERANCE or high > 1.0 + TOLERANCE:
        worst = high if high - 1.0 > -low else low
        raise SpecError(
            f"{what} must be probabilities (0 to 1), but output {name!r} gives {what} of {worst:.4g}: the spec does "
            "not fit this output; check which values its columns hold, and whether columns or rows come first"
        )


def check_labels(labels: Array, classes: int, name: str) -> None:
    """Check that labels are whole numbers from 0 up to the number of ``classes`` (0: unknown).

    Raises:
        SpecError: a label is none of them.
    """
    if not labels.size:
        return
    whole = labels.dtype.kind in "iu" or bool((labels == np.rint(labels)).all())
    low, high = float(labels.min()), float(labels.max())
    if not whole or low < 0 or (classes and high >= classes):
        known = f"0 to {classes - 1}" if classes else "at least 0"
        wrong = high if whole and low >= 0 else low
        raise SpecError(
            f"labels must be whole numbers, {known}, but output {name!r} gives {wrong:g}: check the classes"
        )


def check_rows(rows: Array, name: str) -> bool:
    """Check candidate rows ``(B, N, columns)`` for NaN, and return whether a value may be infinite.

    One pass over the values, because there may be millions of them.

    Raises:
        NotFiniteError: a value is NaN, or every row has an infinite one.
    """
    if rows.dtype == np.float16:  # numpy compares float16 one by one, which takes 50 times as long as their bits do
        positive, any_sign = int(rows.view(np.int16).max(initial=0)), int(rows.view(np.uint16).max(initial=0))
        largest = max(positive, any_sign & 0x7FFF)  # of a negative value the sign is the highest bit
        broken, infinite = largest > HALF_INFINITY, largest == HALF_INFINITY
    else:
        top = float(rows.max(initial=-np.inf))  # NaN if one value is
        broken, infinite = np.isnan(top), top == np.inf
    if broken or (infinite and not np.isfinite(rows).all(-1).any()):
        raise _not_finite(rows, name)
    return bool(infinite)


def _ends(values: Array) -> tuple[float, float]:
    """Return the lowest and the highest of some values; both are NaN if one value is."""
    if values.dtype != np.float16 or not values.dtype.isnative:
        return float(values.min()), float(values.max())
    # As in check_rows, by their bits; among negative values the highest one has the lowest bits.
    signed, unsigned = values.view(np.int16), values.view(np.uint16)
    most, largest = int(signed.max()), int(unsigned.max())
    low = largest if largest >= 0x8000 else int(signed.min())
    high = most if most >= 0 else int(unsigned.min())
    if most > HALF_INFINITY or low & 0x7FFF > HALF_INFINITY:
        return np.nan, np.nan
    ends = np.array((low, high), np.uint16).view(np.float16)
    return float(ends[0]), float(ends[1])


def _not_finite(values: Array, name: str) -> NotFiniteError:
    nan = int(np.isnan(values).sum())
    count, kind = (nan, "NaN") if nan else (int(np.isinf(values).sum()), "infinity")
    return NotFiniteError(
        f"the network must give finite numbers, but {count:,} of {values.size:,} values of its output {name!r} are "
        f"{kind}: its weights are damaged, or numbers overflow in its precision; export it again from a sound "
        "checkpoint, or in fp32"
    )
