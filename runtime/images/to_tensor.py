"""Convert canvases to a network's input tensor."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np

from deploykit.runtime.arrays import Array
from deploykit.spec import InputSpec

__all__ = ["blob", "blob_tables"]


def blob(canvases: Sequence[Array], spec: InputSpec, out: Array | None = None) -> Array:
    """Convert canvases (BGR ``uint8 (H, W, 3)``, all of one size) to the network's input ``float32 (B, 3, H, W)``.

    Each value is ``(p * scale - mean) / std``. It is computed in float64 for the 256 values of a pixel and rounded
    once:
    ``scale = 1/255`` gives exactly the float32 quotient ``p / 255``.

    Args:
        canvases: B canvases, or fewer than ``out`` has slots; the unused slots become zeros.
        spec: colour order, scale, mean and std.
        out: a float32 array ``(B, 3, H, W)`` to write into; allocating a new one takes longer than the conversion.
    """
    height, width = canvases[0].shape[:2]
    if out is None:
        out = np.empty((len(canvases), 3, height, width), np.float32)
    order = (2, 1, 0) if spec.colour == "rgb" else (0, 1, 2)
    tables = blob_tables(spec)
    split = _planes(height, width)
    for canvas, planes in zip(canvases, out, strict=False):
        cv2.split(canvas, split)
        for channel, plane, table in zip(order, planes, tables, strict=True):
            cv2.LUT(split[channel], table, dst=plane)
    out[len(canvases) :] = 0.0
    return out


_scratch = threading.local()


def _planes(height: int, width: int) -> list[Array]:
    """Return three uint8 planes of this thread, reused as long as the size stays the same.

    The page faults of fresh memory take longer than splitting an image.
    """
    planes: list[Array] | None = getattr(_scratch, "planes", None)
    if planes is None or planes[0].shape != (height, width):
        planes = _scratch.planes = [np.empty((height, width), np.uint8) for _ in range(3)]
    return planes


def blob_tables(spec: InputSpec) -> tuple[Array, ...]:
    """Return the network value of each of the 256 pixel values: ``float32 (256,)`` per channel, in network order."""
    return _tables(spec.scale, spec.mean, spec.std)


@lru_cache(maxsize=16)
def _tables(scale: float, mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[Array, ...]:
    pixels = np.arange(256, dtype=np.float64)
    return tuple(((pixels * scale - m) / s).astype(np.float32) for m, s in zip(mean, std, strict=True))
