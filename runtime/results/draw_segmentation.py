"""Drawing of label maps: one colour per class, borders and a legend; and label maps as files."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from deploykit.atomic import write_atomic
from deploykit.errors import UsageError, import_extra
from deploykit.runtime.arrays import Array

__all__ = ["draw_label_map", "palette", "save_label_map", "shares"]

FONT = cv2.FONT_HERSHEY_SIMPLEX
BACKGROUND = {"background", "_background_", "none"}
MOST_LEGEND = 24  # lines; nobody reads a legend of 150 classes


def palette(count: int) -> Array:
    """Return the BGR colours ``uint8 (count, 3)`` of the classes 0, 1, ...; class 0 is black.

    The bits of the class number fill each channel from its highest bit down, as in PASCAL VOC: the first classes have
    distinct colours, and the colour of a class does not depend on the other classes.
    """
    numbers = np.arange(count)
    colours = np.zeros((count, 3), np.int64)
    for bit in range(8):
        for channel in range(3):  # red takes bits 0, 3, 6, ...; green 1, 4, ...; blue 2, 5, ...
            colours[:, 2 - channel] |= ((numbers >> (3 * bit + channel)) & 1) << (7 - bit)
    return colours.astype(np.uint8)


def shares(labels: Array) -> dict[int, float]:
    """Return class -> share of the image, the largest first."""
    found, counts = np.unique(labels, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return {int(found[i]): float(counts[i] / labels.size) for i in order}


def draw_label_map(
    image: Array,
    labels: Array,
    classes: Sequence[str] = (),
    *,
    alpha: float = 0.5,
    legend: bool = True,
    colours: Array | None = None,
) -> Array:
    """Draw a label map over a copy of an image.

    Args:
        image: BGR ``uint8 (H, W, 3)``.
        labels: ``(H, W)`` integers. Class 0 is not painted if its name is background.
        classes: the class names; a class without a name is shown by its number.
        alpha: the opacity of the class colours, 0 to 1.
        legend: whether to draw a legend of the classes in the image.
        colours: ``uint8 (N, 3)`` BGR, one per class; None: :func:`palette`.

    Raises:
        UsageError: the two have different sizes, or a class has no colour.
    """
    if image.shape[:2] != labels.shape:
        raise UsageError(f"the label map has size {labels.shape} (height, width), but the image has {image.shape[:2]}")
    if not 0.0 <= alpha <= 1.0:
        raise UsageError(f"alpha must lie in 0..1, got {alpha}")
    there = shares(labels)
    table = palette(max(256, max(there) + 1)) if colours is None else np.asarray(colours, np.uint8)
    if min(there) < 0 or max(there) >= len(table):
        raise UsageError(f"labels must lie in 0..{len(table) - 1}, got {min(there)} to {max(there)}")
    unpainted = 0 if classes and classes[0].casefold() in BACKGROUND else -1
    painted = table[labels]
    mixed = cv2.addWeighted(image, 1.0 - alpha, painted, alpha, 0.0)
    border = _borders(labels)
    mixed[border] = painted[border] // 2 + 127
    bare = (labels == unpainted) & ~border
    mixed[bare] = image[bare]
    shown = [label for label in there if label != unpainted]
    if legend and shown:
        _draw_legend(mixed, shown, there, classes, table)
    return mixed


def _borders(labels: Array) -> Array:
    """Return the pixels whose right or lower neighbour has another class."""
    found = np.zeros(labels.shape, bool)
    found[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    found[:-1] |= labels[:-1] != labels[1:]
    return found


def _draw_legend(
    canvas: Array, labels: list[int], there: dict[int, float], classes: Sequence[str], table: Array
) -> None:
    """Draw a list at the top left, as large as fits: the colour, name and share of each class."""
    lines = [f"{_name(label, classes)} {_percent(there[label])}" for label in labels[:MOST_LEGEND]]
    if len(labels) > MOST_LEGEND:
        lines.append(f"and {len(labels) - MOST_LEGEND} more")
    height, width = canvas.shape[:2]
    scale = np.clip(min(height, width) / 900, 0.35, 1.6)
    widest = max(cv2.getTextSize(line, FONT, 1.0, 2)[0][0] for line in lines)
    room = (height / (34.0 * (len(lines) + 1)), 0.9 * width / (widest + 60))
    scale = float(min(scale, max(min(room), 0.25)))
    step, thick = round(34 * scale), max(1, round(1.6 * scale))
    right, bottom = min(width, round((widest + 62) * scale)), min(height, step * len(lines) + step // 2)
    canvas[:bottom, :right] = canvas[:bottom, :right] // 4
    for i, line in enumerate(lines):
        y = step * (i + 1)
        if i < MOST_LEGEND:
            field = (round(10 * scale), y - round(20 * scale)), (round(36 * scale), y + round(4 * scale))
            cv2.rectangle(canvas, *field, table[labels[i]].tolist(), cv2.FILLED)
            cv2.rectangle(canvas, *field, (200, 200, 200), 1)
        cv2.putText(canvas, line, (round(46 * scale), y), FONT, scale, (255, 255, 255), thick, cv2.LINE_AA)


def _name(label: int, classes: Sequence[str]) -> str:
    return classes[label] if label < len(classes) else str(label)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 else "< 1 %"


def save_label_map(path: Path, labels: Array, colours: Array | None = None) -> None:
    """Write a label map as an 8-bit PNG whose pixels are class numbers and whose palette has the class colours.

    ``deploykit eval`` reads such files as ground truth. ``colours`` as for :func:`draw_label_map`.

    Raises:
        UsageError: a class number is over 255. MissingDependencyError: pillow is not installed.
        OutputError: the place is not writable or full.
    """
    images: Any = import_extra("PIL.Image", "eval")
    if labels.min() < 0 or labels.max() > 255:
        raise UsageError(f"an 8-bit label map holds classes 0 to 255, got {labels.min()} to {labels.max()}")
    image = images.fromarray(labels.astype(np.uint8))
    table = palette(256) if colours is None else np.asarray(colours, np.uint8)
    image.putpalette(table[:, ::-1].tobytes())
    data = BytesIO()
    image.save(data, "PNG")
    write_atomic(path, data.getvalue(), durable=False)
