"""Errors of the values of an output, and their distribution."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deploykit.runtime.arrays import Array

__all__ = ["NO_SPREAD", "QUANTILES", "errors_of", "spread_of"]

QUANTILES = (0.5, 0.9, 0.99)
NO_SPREAD = (0.0,) * len(QUANTILES)


def errors_of(expected: Array, got: Array, limit: Array | float) -> tuple[Array, Array]:
    """Return the errors and their ratio to the limit; NaN or infinity on either side is never equal to anything."""
    with np.errstate(invalid="ignore"):
        error = np.abs(expected - got)
        used = error / limit
    never = ~(np.isfinite(expected) & np.isfinite(got))
    error[never] = used[never] = np.inf
    return error, used


def spread_of(shares: Sequence[Array]) -> tuple[float, ...]:
    """Return the ratios of error to tolerance at :data:`QUANTILES` over all arrays."""
    every = np.concatenate([part.ravel() for part in shares]) if shares else np.zeros(0)
    if not every.size:
        return NO_SPREAD
    ranks = [int(q * (every.size - 1)) for q in QUANTILES]
    every.partition(ranks)
    return tuple(float(every[rank]) for rank in ranks)
