"""Decoding in numpy, for networks whose output is not decoded.

Many published exports end before the decoding: their box columns are the raw values of the head. The spec names the
head (``RawDetections.decode``), and this module turns its values into rows in network pixels.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from deploykit.errors import SpecError
from deploykit.runtime.arrays import Array
from deploykit.spec import RawDetections

__all__ = ["decoded"]


def decoded(rows: Array, layout: RawDetections, size: tuple[int, int]) -> Array:
    """Return rows ``(..., N, columns)`` in network pixels; the same values in place if ``layout`` says that they are
    decoded, with columns first as a view: NMS reads them by columns faster than a copy is made.

    ``yolox``: ``cxcy = (raw + grid) stride``, ``wh = exp(raw) stride``, in float32 and in that order. N runs over the
    strides, then grid rows, then grid columns.

    Args:
        rows: the output of the network, ``(..., columns, N)`` if ``layout`` has the columns first.
        layout: the layout of the rows.
        size: (height, width) of the network's input.

    Raises:
        SpecError: the number of rows differs from the number of grid cells.
    """
    if layout.columns_first:
        rows = np.swapaxes(rows, -1, -2)
    if layout.decode == "none":
        return rows
    cells, strides = _places(size, layout.strides)
    if rows.shape[-2] != len(cells):
        grids = " + ".join(f"{size[0] // s}x{size[1] // s}" for s in layout.strides)
        raise SpecError(
            f"output {layout.name!r} has {rows.shape[-2]} rows, but the spec's strides {list(layout.strides)} at "
            f"{size[0]}x{size[1]} (height x width) make {grids} = {len(cells)}: check decode and strides"
        )
    pixels = rows.astype(np.float32)  # a copy: the output may be the network's own buffer
    start, stop = layout.box
    pixels[..., start : start + 2] = (pixels[..., start : start + 2] + cells) * strides
    with np.errstate(over="ignore"):  # NMS drops infinity, as after decoding in the network
        pixels[..., start + 2 : stop] = np.exp(pixels[..., start + 2 : stop]) * strides
    return pixels


@lru_cache(maxsize=16)
def _places(size: tuple[int, int], strides: tuple[int, ...]) -> tuple[Array, Array]:
    """Return the cell of each row as (x, y), ``(N, 2)``, and its width in pixels, ``(N, 1)``."""
    cells, widths = [], []
    for stride in strides:
        height, width = size[0] // stride, size[1] // stride
        y, x = np.mgrid[:height, :width]
        cells.append(np.stack((x, y), -1).reshape(-1, 2).astype(np.float32))
        widths.append(np.full((height * width, 1), stride, np.float32))
    return np.concatenate(cells), np.concatenate(widths)
