"""Large images in tiles: the network sees one tile at a time, and only the inner part of each output is kept.

A tile at the border of the image ends there, so that the network sees the real border. Everywhere else neighbouring
tiles overlap, and each keeps the half of the overlap that is nearer to its own centre. No kept pixel is therefore
nearer than ``overlap`` to an edge that is not an edge of the image. Where the overlap is at least the network's
receptive field, the result is that of the whole image at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np

from deploykit.errors import BackendError, UsageError
from deploykit.runtime.arrays import Array

__all__ = ["Span", "Tiling", "plan_tiles", "run_tiled"]


@dataclass(frozen=True)
class Tiling:
    """How an image is cut into tiles.

    Sides are in pixels of the network's input; for a packed RAW mosaic, in pixels of its four channels.

    Args:
        tile: (height, width) of the network's input.
        overlap: the least distance of a kept pixel to any edge of its tile that is not an edge of the image.
        batch: tiles per run.
        step: tiles begin at multiples of it, because a network that downsamples its input has a grid; ``tile`` must be
            a multiple of it too.

    Raises:
        UsageError: a tile would keep nothing, or a number is too small.
    """

    tile: tuple[int, int]
    overlap: int = 32
    batch: int = 1
    step: int = 1

    def __post_init__(self) -> None:
        if self.overlap < 0 or min(self.batch, self.step, *self.tile) < 1:
            raise UsageError(f"tile sides, batch and step must be at least 1 and the overlap at least 0, got {self}")
        if any(side % self.step for side in self.tile):
            raise UsageError(
                f"the sides of this network's tiles must be multiples of {self.step} pixels, got {self.tile}"
            )
        if min(self.tile) < 2 * self.overlap + self.step:
            raise UsageError(
                f"tiles of {self.tile[0]}x{self.tile[1]} (height x width) with an overlap of {self.overlap} on each "
                "side keep nothing: choose larger tiles or a smaller overlap"
            )

    def places(self, size: tuple[int, int]) -> list[tuple[Span, Span]]:
        """Return the (rows, columns) of each tile of an image of ``size`` (height, width), from the top left."""
        rows, columns = (plan_tiles(s, t, self.overlap, self.step) for s, t in zip(size, self.tile, strict=True))
        return list(product(rows, columns))


@dataclass(frozen=True)
class Span:
    """One axis of a tile.

    ``start`` is the tile's position in the image. ``first`` to ``last`` (exclusive) is the part that is kept, also as
    positions in the image.
    """

    start: int
    first: int
    last: int


def plan_tiles(side: int, tile: int, overlap: int, step: int = 1) -> tuple[Span, ...]:
    """Plan the tiles along an axis of ``side`` pixels; together they keep each pixel exactly once.

    The tiles are spread evenly, so that the last ones do not overlap more than the others. A side no longer than a
    tile gets one tile. With a ``step``, the last tile may reach beyond the end, up to the next multiple of the step.
    """
    if side <= tile:
        return (Span(0, 0, side),)
    last_start = side + -side % step - tile
    distance = (tile - 2 * overlap) // step * step
    count = 1 + -(-last_start // distance)
    starts = [i * last_start // (count - 1) // step * step for i in range(count)]
    cuts = [0, *((left + tile + right) // 2 for left, right in pairwise(starts)), side]
    return tuple(Span(start, cuts[i], cuts[i + 1]) for i, start in enumerate(starts))


def run_tiled(
    run: Callable[[Array], Array],
    image: Array,
    tiling: Tiling,
    *,
    full_batches_only: bool = False,
) -> Array:
    """Run a network over an image in tiles.

    Args:
        run: the network. It maps ``(n, C, h, w)`` to ``(n, C', s h, s w)`` for an integer s, one batch per call.
        image: ``(C, H, W)``; it is not changed. A side shorter than a tile is mirrored up to the tile's length. A
            longer one is padded with zeros to a multiple of the step, as networks that accept any size do it
            themselves.
        tiling: the sizes; ``tile`` is h and w of every call.
        full_batches_only: the network accepts exactly ``tiling.batch`` tiles; the last batch is filled by repeating a
            tile.

    Returns:
        ``(C', s H, s W)`` of the output type of ``run``. Besides the result and the image, only the tiles of one batch
        take memory, and a copy of the image where it is smaller than a tile and has to be mirrored.

    Raises:
        BackendError: the output of the network has another size.
    """
    height, width = image.shape[1:]
    padded = _at_least(image, tiling.tile)
    tiles = tiling.places((height, width))
    out: Array | None = None
    for start in range(0, len(tiles), tiling.batch):
        batch = tiles[start : start + tiling.batch]
        inputs = np.stack([_cut(padded, row, column, tiling.tile) for row, column in batch])
        if full_batches_only and len(batch) < tiling.batch:
            inputs = np.concatenate((inputs, np.repeat(inputs[-1:], tiling.batch - len(batch), 0)))
        outputs = run(inputs)
        scale = _scale(outputs, inputs)
        if out is None:
            out = np.empty((outputs.shape[1], scale * height, scale * width), outputs.dtype)
        for part, (row, column) in zip(outputs, batch, strict=False):
            _keep(out, part, row, column, scale)
    assert out is not None
    return out


def _cut(image: Array, row: Span, column: Span, tile: tuple[int, int]) -> Array:
    """Cut a tile out of the image; zeros fill it beyond the image."""
    part = image[:, row.start : row.start + tile[0], column.start : column.start + tile[1]]
    missing = [(0, side - present) for side, present in zip(tile, part.shape[1:], strict=True)]
    return np.pad(part, [(0, 0), *missing]) if any(more for _, more in missing) else part


def _keep(out: Array, part: Array, row: Span, column: Span, scale: int) -> None:
    inner = [slice(scale * (span.first - span.start), scale * (span.last - span.start)) for span in (row, column)]
    target = [slice(scale * span.first, scale * span.last) for span in (row, column)]
    out[:, target[0], target[1]] = part[:, inner[0], inner[1]]


def _scale(outputs: Array, inputs: Array) -> int:
    """Return the factor by which the network enlarges an image."""
    scale = outputs.shape[2] // inputs.shape[2] if outputs.ndim == 4 else 0
    sizes = tuple(scale * side for side in inputs.shape[2:])
    if not scale or outputs.shape[0] != inputs.shape[0] or outputs.shape[2:] != sizes:
        raise BackendError(
            "the output of a network that runs in tiles must have its input's size or an integer multiple of it; "
            f"for an input of {inputs.shape} this network returned {outputs.shape}"
        )
    return scale


def _at_least(image: Array, tile: tuple[int, int]) -> Array:
    """Mirror the right and lower borders until the image is as large as a tile, repeatedly if it is very small."""
    for axis, side in enumerate(tile, start=1):
        while image.shape[axis] < side:
            more = min(side - image.shape[axis], max(image.shape[axis] - 1, 1))
            widths = [(0, more if a == axis else 0) for a in range(3)]
            image = np.pad(image, widths, mode="reflect" if image.shape[axis] > 1 else "edge")
    return image
