"""Where labels go: beside what they name, inside the image, not over one another, and not over small objects.

Labels are placed one after the other, the best object's first. Each has twelve places: above, below and inside its
box at the left and the right end, and beside it. A place costs what it hides, as shares of the areas of objects, and a
little for its rank. The cheapest free one is taken, of the text's smaller size if that hides much less. A label is left
out if every place of it is taken or hides too much of an object. So are labels that are much wider than their boxes in
a crowd of such objects of one class: there they would hide what was not found, and say what their neighbours say. The
work is one matrix product and one look at each place, so that a crowd of 300 takes milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deploykit.runtime.arrays import Array

__all__ = ["CROWD", "Place", "place_labels"]

MOST_LABELS = 400  # nobody reads more of them in one image
MOST_HIDDEN = 0.25  # of other objects: the sum of the shares of their boxes
MOST_OWN = 0.4  # of the object itself
SMALLER = 0.06  # the cost of a smaller text
CROWD = 10  # objects of one class whose labels are over WIDEST times as wide as their boxes: more have no labels
WIDEST = 2.0

# A place is a horizontal position (left, right, after, before) and a vertical one (above, top, bottom, below).
LEFT, RIGHT, AFTER, BEFORE = range(4)
ABOVE, TOP, BOTTOM, BELOW = range(4)
RANKS = np.full((4, 4), np.inf)
for _rank, _place in enumerate(
    [
        (LEFT, ABOVE), (LEFT, TOP), (RIGHT, ABOVE), (LEFT, BELOW), (LEFT, BOTTOM), (RIGHT, TOP), (RIGHT, BELOW),
        (AFTER, TOP), (BEFORE, TOP), (AFTER, BOTTOM), (BEFORE, BOTTOM), (RIGHT, BOTTOM),
    ]
):  # fmt: skip
    RANKS[_place] = 0.01 * _rank


@dataclass(frozen=True)
class Place:
    """The top left corner of a label in pixels, and which of its sizes is used."""

    x: int
    y: int
    size: int


def place_labels(
    boxes: Array,
    sizes: Array,
    image_size: tuple[int, int],
    anchors: Array | None = None,
    classes: Array | None = None,
) -> list[Place | None]:
    """Return the place of each label; None: it is left out.

    Args:
        boxes: ``(N, 4)`` xyxy in pixels, the best object first, as they are drawn (with their lines).
        sizes: ``(N, S, 2)`` width and height of each label in whole pixels at S sizes of text, the largest first.
        image_size: (height, width). No part of a label lies outside.
        anchors: ``(N, 2)``: the x at which a label above or below its box begins; None: the left edge of the box.
        classes: ``(N,)`` integers, the classes of the objects; None: they have one class.
    """
    count, height, width = min(len(boxes), MOST_LABELS), *image_size
    places: list[Place | None] = [None] * len(boxes)
    if not count or not sizes.shape[1]:
        return places
    boxes = np.clip(np.asarray(boxes, np.float64), -1, [width + 1, height + 1, width + 1, height + 1])
    x, y, cost = _candidates(boxes, sizes[:count], image_size, anchors)
    kinds = np.zeros(count, int) if classes is None else np.asarray(classes)[:count]
    lost = _in_crowds(boxes[:count, 2] - boxes[:count, 0], sizes[:count, -1, 0], kinds)
    cost[lost] = np.inf
    order = np.argsort(cost, axis=1, kind="stable")
    free = np.ones((height, width), bool)
    columns = RANKS.size
    for i in range(count):
        for k in order[i]:
            if not np.isfinite(cost[i, k]):
                break
            size = int(k) // columns
            left, top, (wide, high) = int(x[i, k]), int(y[i, k]), sizes[i, size]
            field = free[top : top + high, left : left + wide]
            if field.size and field.all():
                field[:] = False
                places[i] = Place(left, top, size)
                break
    return places


def _in_crowds(sides: Array, wide: Array, classes: Array) -> Array:
    """Return which labels ``(n,)`` are much wider than their boxes, as those of many objects of their class are."""
    small: Array = wide > WIDEST * sides
    for each in np.unique(classes):
        small[classes == each] &= small[classes == each].sum() > CROWD
    return small


def _candidates(
    boxes: Array, sizes: Array, image_size: tuple[int, int], anchors: Array | None
) -> tuple[Array, Array, Array]:
    """Return x, y and cost of every place of the labels, ``(n, S * 16)``; the cost of an impossible one is infinite."""
    (height, width), count, steps = image_size, len(sizes), sizes.shape[1]
    x1, y1, x2, y2 = (boxes[:count, None, i] for i in range(4))
    wide, high = sizes[..., 0].astype(np.float64), sizes[..., 1].astype(np.float64)  # (n, S)
    start = x1 if anchors is None else np.asarray(anchors, np.float64)[:count, :1]
    wanted_x = np.stack([start + 0 * wide, x2 - wide, x2 + 0 * wide, x1 - wide], axis=-1)  # (n, S, 4)
    wanted_y = np.stack([y1 - high, y1 + 0 * high, y2 - high, y2 + 0 * high], axis=-1)
    x = np.clip(np.rint(wanted_x), 0, np.maximum(width - wide, 0)[..., None])
    y = np.clip(np.rint(wanted_y), 0, np.maximum(height - high, 0)[..., None])
    possible = (wide <= width) & (high <= height)
    # A label beside its box that would be moved into it is no longer beside it; any other may be moved along the edge.
    moved_x, moved_y = np.abs(x - wanted_x), np.abs(y - wanted_y)
    fits_x = np.stack([moved_x[..., i] < (1 if i in (AFTER, BEFORE) else np.inf) for i in range(4)], axis=-1)
    fits_y = np.stack([moved_y[..., i] < (1 if i in (ABOVE, BELOW) else np.inf) for i in range(4)], axis=-1)
    possible = possible[..., None, None] & fits_x[..., :, None] & fits_y[..., None, :]
    hidden, own = _hidden(boxes, x, y, wide, high)
    cost = RANKS + hidden + own / 2 + 0.2 * (moved_x / np.maximum(wide, 1)[..., None])[..., :, None]
    cost = cost + SMALLER * np.arange(steps)[None, :, None, None]
    cost = np.where(possible & (hidden <= MOST_HIDDEN) & (own <= MOST_OWN), cost, np.inf)
    both_x = np.broadcast_to(x[..., :, None], cost.shape)
    both_y = np.broadcast_to(y[..., None, :], cost.shape)
    return both_x.reshape(count, -1), both_y.reshape(count, -1), cost.reshape(count, -1)


def _hidden(boxes: Array, x: Array, y: Array, wide: Array, high: Array) -> tuple[Array, Array]:
    """Return how much labels at ``x`` and ``y`` ``(n, S, 4)`` hide of other objects and of their own, ``(n, S, 4, 4)``,
    as sums of shares of boxes."""
    count = len(wide)
    boxes = boxes.astype(np.float32)
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 1)
    along_x = _common(x, wide, boxes[:, 0], boxes[:, 2]) / sides[:, 0]  # (n, S, 4, N)
    along_y = _common(y, high, boxes[:, 1], boxes[:, 3]) / sides[:, 1]
    total = along_x @ along_y.swapaxes(-1, -2)
    here = np.arange(count)
    own = along_x[here, :, :, here][..., :, None] * along_y[here, :, :, here][..., None, :]
    return total - own, own


def _common(start: Array, length: Array, low: Array, high: Array) -> Array:
    """Return the length that the intervals ``(n, S, 4)`` have in common with each of N others, ``(n, S, 4, N)``."""
    begin = start.astype(np.float32)[..., None]
    end = (start + length[..., None]).astype(np.float32)[..., None]
    common = np.minimum(end, high)
    common -= np.maximum(begin, low)
    return np.maximum(common, 0, out=common)
