"""The label files of YOLO data sets: one object per line, in shares of the image's width and height.

``class cx cy w h`` is a box, ``class cx cy w h (x y [v]) * K`` a box with keypoints, ``class x1 y1 x2 y2 x3 y3 ...`` an
outline: of a mask, or the four corners of an oriented box.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deploykit.errors import DataError
from deploykit.runtime.arrays import Array

__all__ = ["Label", "read_labels"]

SLACK = 0.01  # how far a number may lie outside of 0 to 1: tools round and clip differently
CORNERS = 3  # at least, of an outline


@dataclass(frozen=True, eq=False)
class Label:
    """One object: its class, its box ``(cx, cy, w, h)``, its outline ``(N, 2)`` and its keypoints ``(K, 3)``.

    All in shares of the image's width and height. The box of an outline is its extent.
    """

    label: int
    box: Array
    outline: Array | None = None
    keypoints: Array | None = None


def read_labels(file: Path, classes: int, kpt_shape: tuple[int, int] | None = None) -> list[Label]:
    """Read a label file; the same line twice counts once.

    Args:
        file: the label file.
        classes: the number of classes.
        kpt_shape: number of keypoints and values per keypoint; None: there are no keypoints.

    Raises:
        DataError: a line is not a label; the message names it.
    """
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"cannot read the labels {file}: {e}") from e
    first = {line: number for number, line in reversed(list(enumerate(lines, start=1))) if line}
    ordered = sorted(first.items(), key=lambda item: item[1])
    return [_label(f"{file}, line {number}", line.split(), classes, kpt_shape) for line, number in ordered]


def _label(where: str, words: list[str], classes: int, kpt_shape: tuple[int, int] | None) -> Label:
    try:
        values = np.array(words, np.float64)
    except ValueError:
        raise DataError(f"{where}: expected numbers, got {' '.join(words)[:60]!r}") from None
    label, rest = values[0], values[1:]
    if not (label == int(label if np.isfinite(label) else -1) and 0 <= label < classes):
        raise DataError(f"{where}: the class must be a number from 0 to {classes - 1}, got {words[0]}")
    if kpt_shape is not None:
        return _with_keypoints(where, int(label), rest, kpt_shape)
    if len(rest) == 4:
        return Label(int(label), _shares(where, rest))
    if keypoints := _unnamed_keypoints(rest):
        raise DataError(
            f"{where} has the {len(values)} numbers of a class, a box and {keypoints} keypoints of x, y, visibility: "
            f"add kpt_shape: [{keypoints}, 3] to data.yaml"
        )
    if len(rest) % 2 or len(rest) < 2 * CORNERS:
        raise DataError(
            f"{where}: expected class, cx, cy, w, h or class and the x, y of at least {CORNERS} points; "
            f"got {len(values)} numbers"
        )
    outline = _shares(where, rest).reshape(-1, 2)
    low, high = outline.min(axis=0), outline.max(axis=0)
    return Label(int(label), np.concatenate([(low + high) / 2, high - low]), outline=outline)


def _unnamed_keypoints(values: Array) -> int:
    """Return how many keypoints follow the box in a line that is no outline, by their visibilities; 0: none do."""
    seen = values[6::3]
    if len(values) % 3 != 1 or not len(seen) or not np.isin(seen, (0, 1, 2)).all():
        return 0
    return len(seen) if len(values) % 2 or 2 in seen else 0  # an outline has pairs of shares


def _with_keypoints(where: str, label: int, values: Array, shape: tuple[int, int]) -> Label:
    if len(values) != 4 + shape[0] * shape[1]:
        raise DataError(
            f"{where}: expected class, box and {shape[0]} keypoints of {shape[1]} values (kpt_shape), that is "
            f"{5 + shape[0] * shape[1]} numbers; got {len(values) + 1}"
        )
    points = values[4:].reshape(shape)
    places = _shares(where, points[:, :2])
    # without a visibility, the origin stands for a keypoint that is not labelled
    seen = points[:, 2] if shape[1] == 3 else np.where((places > 0).any(axis=1), 2.0, 0.0)
    return Label(label, _shares(where, values[:4]), keypoints=np.column_stack([places, seen]))


def _shares(where: str, values: Array) -> Array:
    if not np.isfinite(values).all() or values.min() < -SLACK or values.max() > 1 + SLACK:
        worst = values.flat[int(np.argmax(np.abs(np.where(np.isfinite(values), values, np.inf) - 0.5)))]
        raise DataError(f"{where}: expected shares of the image from 0 to 1, got {worst:g}: are these pixels?")
    return values
