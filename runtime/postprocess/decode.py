"""Rows of networks that leave their decode to whoever runs them, in numpy.

Many published exports end before the decode: what they give for a box is the head's own values. The spec says which
head that is (``RawDetections.decode``), and this makes rows in network pixels of them.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from deploykit.errors import SpecError
from deploykit.runtime.arrays import Array
from deploykit.spec import RawDetections

__all__ = ["decoded"]


def decoded(rows: Array, layout: RawDetections, size: tuple[int, int]) -> Array:
    """Rows ``(..., N, columns)`` in network pixels; the same array where ``layout`` says that they are.

    ``yolox``: ``cxcy = (raw + grid) stride``, ``wh = exp(raw) stride``, in float32 and in that order. N runs over the
    strides, then grid rows, then grid columns.

    Args:
        rows: as the network gives them.
        layout: of the rows.
        size: (height, width) of the image that went in.

    Raises:
        SpecError: there are not as many rows as the grids have cells.
    """
    if layout.decode == "none":
        return rows
    cells, strides = _places(size, layout.strides)
    if rows.shape[-2] != len(cells):
        grids = " + ".join(f"{size[0] // s}x{size[1] // s}" for s in layout.strides)
        raise SpecError(
            f"output {layout.name!r} has {rows.shape[-2]} rows, but the spec's strides {list(layout.strides)} at "
            f"{size[0]}x{size[1]} (height x width) make {grids} = {len(cells)}: is decode or strides another one?"
        )
    pixels = rows.astype(np.float32)  # a copy: the network's output may be a buffer of its own
    start, stop = layout.box
    pixels[..., start : start + 2] = (pixels[..., start : start + 2] + cells) * strides
    with np.errstate(over="ignore"):  # infinity is dropped by NMS, as it is where the network decodes
        pixels[..., start + 2 : stop] = np.exp(pixels[..., start + 2 : stop]) * strides
    return pixels


@lru_cache(maxsize=16)
def _places(size: tuple[int, int], strides: tuple[int, ...]) -> tuple[Array, Array]:
    """Every row's cell ``(N, 2)`` as (x, y), and how many pixels wide that is, ``(N, 1)``."""
    cells, widths = [], []
    for stride in strides:
        height, width = size[0] // stride, size[1] // stride
        y, x = np.mgrid[:height, :width]
        cells.append(np.stack((x, y), -1).reshape(-1, 2).astype(np.float32))
        widths.append(np.full((height * width, 1), stride, np.float32))
    return np.concatenate(cells), np.concatenate(widths)
