"""Convert canvases to a network's input tensor."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np

from deploykit.runtime.arrays import Array
from deploykit.spec import InputSpec

__all__ = ["pixel_lookup_tables", "to_nchw"]


def to_nchw(canvases: Sequence[Array], spec: InputSpec, out: Array | None = None) -> Array:
    """Convert canvases of one size, ``uint8 (H, W, C)``, to the network's input ``float32 (B, C, H, W)``.

    Each value is ``(p * scale - mean) / std``. It is computed in float64 for the 256 values of a pixel and rounded
    once: ``scale = 1/255`` gives exactly the float32 quotient ``p / 255``. A network with one channel gets a BGR image
    as grey. With three channels or more, the first three are blue, green and red, as OpenCV reads them, and are put
    into the spec's order; further channels are kept as they are.

    Args:
        canvases: B canvases, or fewer than ``out`` has slots; the unused slots become zeros.
        spec: channels, colour order, scale, mean and std.
        out: a float32 array ``(B, C, H, W)`` to write into; allocating a new one takes longer than the conversion.
    """
    height, width = canvases[0].shape[:2]
    if out is None:
        out = np.empty((len(canvases), spec.channels, height, width), np.float32)
    tables = pixel_lookup_tables(spec)
    for canvas, planes in zip(canvases, out, strict=False):
        for channel, plane, table in zip(_channels(canvas, spec), planes, tables, strict=True):
            cv2.LUT(channel, table, dst=plane)
    out[len(canvases) :] = 0.0
    return out


def _channels(canvas: Array, spec: InputSpec) -> list[Array]:
    """The planes of a canvas in the network's order."""
    if spec.channels == 1:
        return [canvas if canvas.ndim == 2 else cv2.cvtColor(canvas, cv2.COLOR_BGR2GRAY)]
    order = [*range(spec.channels)]
    if spec.colour == "rgb" and spec.channels > 2:
        order[:3] = order[2::-1]
    if spec.channels != 3:
        return [np.ascontiguousarray(canvas[..., i]) for i in order]
    split = _planes(*canvas.shape[:2])
    cv2.split(canvas, split)
    return [split[i] for i in order]


_scratch = threading.local()


def _planes(height: int, width: int) -> list[Array]:
    """Return three uint8 planes of this thread, reused as long as the size stays the same.

    The page faults of fresh memory take longer than splitting an image.
    """
    planes: list[Array] | None = getattr(_scratch, "planes", None)
    if planes is None or planes[0].shape != (height, width):
        planes = _scratch.planes = [np.empty((height, width), np.uint8) for _ in range(3)]
    return planes


def pixel_lookup_tables(spec: InputSpec) -> tuple[Array, ...]:
    """Return the network value of each of the 256 pixel values: ``float32 (256,)`` per channel, in network order."""
    return _tables(spec.scale, spec.mean, spec.std)


@lru_cache(maxsize=16)
def _tables(scale: float, mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[Array, ...]:
    pixels = np.arange(256, dtype=np.float64)
    return tuple(((pixels * scale - m) / s).astype(np.float32) for m, s in zip(mean, std, strict=True))
