"""Large images in tiles: a network sees a part at a time, and only the inner part of what it gives is kept.

A tile that touches the image's border ends there, so that the network meets the border itself and not a made-up one.
Everywhere else a tile overlaps its neighbours, and of the overlap each keeps the half that is nearer to its middle. So
no pixel is kept that lies nearer than ``overlap`` to an edge that is none of the image; where the overlap is at
least the network's receptive field, the result is that of the whole image at once.
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
    """How an image is cut: sides in pixels of the network's input (of a packed RAW mosaic: of its four channels).

    Args:
        tile: (height, width) of what the network sees at once.
        overlap: of a kept pixel's distance to any edge of its tile that is not the image's.
        batch: tiles in one run.
        step: tiles begin at multiples of it, because a network that halves its input has a grid; ``tile`` is one too.

    Raises:
        UsageError: nothing of a tile would be left, or a number is too small.
    """

    tile: tuple[int, int]
    overlap: int = 32
    batch: int = 1
    step: int = 1

    def __post_init__(self) -> None:
        if self.overlap < 0 or min(self.batch, self.step, *self.tile) < 1:
            raise UsageError(
                f"tiles have at least 1 pixel a side, an overlap of at least 0, and come at least 1 at a time: {self}"
            )
        if any(side % self.step for side in self.tile):
            raise UsageError(f"the sides of this network's tiles are multiples of {self.step} pixels, got {self.tile}")
        if min(self.tile) < 2 * self.overlap + self.step:
            raise UsageError(
                f"tiles of {self.tile[0]}x{self.tile[1]} (height x width) with an overlap of {self.overlap} on each "
                "side keep nothing: choose larger tiles or a smaller overlap"
            )

    def places(self, size: tuple[int, int]) -> list[tuple[Span, Span]]:
        """The tiles of an image of ``size`` (height, width): rows and columns of each, from the top left on."""
        rows, columns = (plan_tiles(s, t, self.overlap, self.step) for s, t in zip(size, self.tile, strict=True))
        return list(product(rows, columns))


@dataclass(frozen=True)
class Span:
    """One axis of a tile: ``start`` in the image, and what is kept of it, ``first`` to ``last`` (exclusive), in the
    image too."""

    start: int
    first: int
    last: int


def plan_tiles(side: int, tile: int, overlap: int, step: int = 1) -> tuple[Span, ...]:
    """The tiles along an axis of ``side`` pixels, from one end to the other; together they keep each pixel once.

    They are spread evenly, so that the last ones do not overlap more than all others. Of a side that is no longer than
    a tile there is one. With a ``step`` the last one may reach beyond the end, up to the next multiple of it.
    """
    if side <= tile:
        return (Span(0, 0, side),)
    furthest = side + -side % step - tile
    apart = (tile - 2 * overlap) // step * step
    count = 1 + -(-furthest // apart)
    starts = [i * furthest // (count - 1) // step * step for i in range(count)]
    cuts = [0, *((left + tile + right) // 2 for left, right in pairwise(starts)), side]
    return tuple(Span(start, cuts[i], cuts[i + 1]) for i, start in enumerate(starts))


def run_tiled(
    run: Callable[[Array], Array],
    image: Array,
    tiling: Tiling,
    *,
    whole_batches: bool = False,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> Array:
    """Run a network over an image in tiles.

    Args:
        run: the network, ``(n, C, h, w)`` to ``(n, C', s h, s w)`` for a whole number s, all of one batch at a time.
        image: ``(C, H, W)``, which is not changed. A side that is shorter than a tile is mirrored up to its length; a
            longer one gets zeros up to a multiple of the step, as networks that take any size do it themselves.
        tiling: sizes; ``tile`` is h and w of every call.
        whole_batches: the network takes ``tiling.batch`` tiles and no fewer: the last ones are repeated then.
        on_progress: told how many tiles are done, and of how many.

    Returns:
        ``(C', s H, s W)`` of the type that ``run`` gives. Beside it and the image no more memory is taken than for
        the tiles of one batch, but for an image that is shorter than a tile, which is copied to be mirrored.

    Raises:
        BackendError: the network gives another size.
    """
    height, width = image.shape[1:]
    padded = _at_least(image, tiling.tile)
    places = tiling.places((height, width))
    out: Array | None = None
    for start in range(0, len(places), tiling.batch):
        chosen = places[start : start + tiling.batch]
        fed = np.stack([_cut(padded, row, column, tiling.tile) for row, column in chosen])
        if whole_batches and len(chosen) < tiling.batch:
            fed = np.concatenate((fed, np.repeat(fed[-1:], tiling.batch - len(chosen), 0)))
        found = run(fed)
        scale = _scale(found, fed)
        if out is None:
            out = np.empty((found.shape[1], scale * height, scale * width), found.dtype)
        for part, (row, column) in zip(found, chosen, strict=False):
            _keep(out, part, row, column, scale)
        on_progress(min(start + tiling.batch, len(places)), len(places))
    assert out is not None
    return out


def _cut(image: Array, row: Span, column: Span, tile: tuple[int, int]) -> Array:
    """A tile, with zeros where it reaches beyond the image."""
    part = image[:, row.start : row.start + tile[0], column.start : column.start + tile[1]]
    beyond = [(0, side - there) for side, there in zip(tile, part.shape[1:], strict=True)]
    return np.pad(part, [(0, 0), *beyond]) if any(more for _, more in beyond) else part


def _keep(out: Array, part: Array, row: Span, column: Span, scale: int) -> None:
    inner = [slice(scale * (span.first - span.start), scale * (span.last - span.start)) for span in (row, column)]
    place = [slice(scale * span.first, scale * span.last) for span in (row, column)]
    out[:, place[0], place[1]] = part[:, inner[0], inner[1]]


def _scale(found: Array, fed: Array) -> int:
    """How many times larger the network makes an image."""
    scale = found.shape[2] // fed.shape[2] if found.ndim == 4 else 0
    if not scale or found.shape[0] != fed.shape[0] or found.shape[2:] != tuple(scale * s for s in fed.shape[2:]):
        raise BackendError(
            f"a network for tiles gives images of its input's size, or a whole number of times as large; of "
            f"{fed.shape} this one gives {found.shape}"
        )
    return scale


def _at_least(image: Array, tile: tuple[int, int]) -> Array:
    """The image with its right and lower borders mirrored up to a tile's sides, again and again where it is very
    small."""
    for axis, side in enumerate(tile, start=1):
        while image.shape[axis] < side:
            more = min(side - image.shape[axis], max(image.shape[axis] - 1, 1))
            widths = [(0, more if a == axis else 0) for a in range(3)]
            image = np.pad(image, widths, mode="reflect" if image.shape[axis] > 1 else "edge")
    return image
