"""How far the outputs and the objects of two exports of one checkpoint lie apart."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from deploykit.runtime.arrays import Array
from deploykit.runtime.postprocess.rotated import corners_of

__all__ = ["object_differences", "output_differences", "pairs"]

SAME_PLACE = 2.0  # pixels: two objects of one class this close to each other are one
WEAK = 0.05  # rows of one-to-one branches below this may be cut off in one file and not in the other


def output_differences(theirs: list[Array], ours: list[Array], extra: int, one_to_one: bool) -> dict[str, float]:
    """The largest differences of two ONNX files' outputs for one input.

    ``theirs`` has rows of shape ``(1, columns, N)``, or ``(1, N, columns)`` of a one-to-one branch; ``ours`` has
    ``(1, N, columns)`` of both. ``extra`` columns follow the scores: keypoints, coefficients of masks or an angle.

    Returns:
        ``box`` in pixels of the network, ``score``, ``extra`` in its own unit if there is any, ``prototypes`` likewise,
        and of a one-to-one branch ``missing``: the rows over 0.05 that the other file has not. No rows to compare have
        no differences: then they are absent.

    Raises:
        ValueError: the rows have different columns.
    """
    a, b = theirs[0][0], ours[0][0]
    found: dict[str, float] = {}
    if one_to_one:
        left, right = (_objects(rows) for rows in (a, b))
        at = pairs(left, right)
        found["missing"] = float((left["scores"] > WEAK).sum() - (left["scores"][at[0]] > WEAK).sum())
        strong = left["scores"][at[0]] > WEAK
        a, b = a[at[0][strong]], b[at[1][strong]]
    else:
        a = a.T
    if a.shape != b.shape:
        raise ValueError(f"the two files give rows of shape {a.shape} and {b.shape}")
    apart = np.abs(a - b)
    end = apart.shape[1] - extra
    if len(apart):
        found |= {"box": float(apart[:, :4].max()), "score": float(apart[:, 4:end].max())}
        if extra:
            found["extra"] = float(apart[:, end:].max())
    if len(theirs) > 1:
        found["prototypes"] = float(np.abs(theirs[1] - ours[1]).max())
    return found


def _objects(rows: Array) -> dict[str, Array]:
    """The rows of a one-to-one branch as objects."""
    return {"boxes": rows[:, :4], "scores": rows[:, 4], "classes": rows[:, 5]}


def pairs(theirs: Mapping[str, Array], ours: Mapping[str, Array]) -> tuple[Array, Array]:
    """Indices of the objects that both found: each of theirs with the nearest of ours of its class, each used once."""
    shapes = _shapes(theirs["boxes"]), _shapes(ours["boxes"])
    free = np.ones(len(shapes[1]), bool)
    found = []
    for i in range(len(shapes[0])):
        allowed = np.flatnonzero(free & (ours["classes"] == theirs["classes"][i]))
        if not len(allowed):
            continue
        apart = _distance(shapes[0][i], shapes[1][allowed])
        nearest = int(apart.argmin())
        if apart[nearest] < SAME_PLACE:
            found.append((i, allowed[nearest]))
            free[allowed[nearest]] = False
    at = np.array(found, np.int64).reshape(-1, 2)
    return at[:, 0], at[:, 1]


def _shapes(boxes: Array) -> Array:
    """Points ``(N, P, 2)`` that tell where a box lies: two corners, or four of an oriented one."""
    return boxes.reshape(-1, 2, 2) if boxes.shape[1] == 4 else corners_of(boxes)


def _distance(one: Array, others: Array) -> Array:
    """How far a shape ``(P, 2)`` lies from each of the others: its point that is farthest from any point of theirs.

    An oriented box has several descriptions (sides swapped, angle turned), which differ in the order of its corners.
    """
    apart = np.linalg.norm(one[None, :, None] - others[:, None], axis=-1)
    found: Array = apart.min(2).max(1)
    return found


def object_differences(theirs: Mapping[str, Array], ours: Mapping[str, Array]) -> dict[str, float]:
    """What two predictions of one image have in common.

    Each has ``boxes`` ``(N, 4)`` corners or ``(N, 5)`` oriented, ``scores``, ``classes``, and where there are any
    ``keypoints`` ``(N, K, 3)`` and ``masks`` ``(N, height, width)``; or ``probabilities`` ``(C,)``.

    Returns:
        ``theirs``, ``ours`` and ``both``: how many objects; then of those that both found the largest difference:
        ``box`` and ``keypoints`` in source pixels, ``score``, and the smallest ``overlap`` of masks. Of a
        classifier ``score`` and ``both``: 1 if the best class is the same.
    """
    if "probabilities" in theirs:
        a, b = theirs["probabilities"], ours["probabilities"]
        return {"score": float(np.abs(a - b).max()), "both": float(a.argmax() == b.argmax())}
    left, right = pairs(theirs, ours)
    found = {"theirs": float(len(theirs["boxes"])), "ours": float(len(ours["boxes"])), "both": float(len(left))}
    if not len(left):
        return found
    shapes = _shapes(theirs["boxes"])[left], _shapes(ours["boxes"])[right]
    found["box"] = max(float(_distance(a, b[None])[0]) for a, b in zip(*shapes, strict=True))
    found["score"] = float(np.abs(theirs["scores"][left] - ours["scores"][right]).max())
    if "keypoints" in theirs:
        apart = theirs["keypoints"][left, :, :2] - ours["keypoints"][right, :, :2]
        found["keypoints"] = float(np.linalg.norm(apart, axis=-1).max())
    if "masks" in theirs:
        a, b = theirs["masks"][left], ours["masks"][right]
        union = (a | b).sum((1, 2))
        found["overlap"] = float(((a & b).sum((1, 2)) / np.maximum(union, 1))[union > 0].min(initial=1.0))
    return found
