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
from deploykit.runtime.drawing.fonts import class_text
from deploykit.runtime.drawing.palette import palette
from deploykit.runtime.drawing.panel import Line, draw_panel

__all__ = ["draw_label_map", "save_label_map", "shares"]

BACKGROUND = {"background", "_background_", "none"}
MOST_LEGEND = 24  # lines; nobody reads a legend of 150 classes


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
    font: str | None = None,
    steady: bool = False,
) -> Array:
    """Draw a label map over a copy of an image.

    Args:
        image: BGR ``uint8 (H, W, 3)``.
        labels: ``(H, W)`` integers. Class 0 is not painted if its name is background.
        classes: the class names; a class without a name is shown by its number.
        alpha: the opacity of the class colours, 0 to 1.
        legend: whether to draw a legend of the classes over a corner of the image, which keeps its size.
        colours: ``uint8 (N, 3)`` BGR, one per class; None: those of objects
            (:func:`deploykit.runtime.drawing.palette.class_colour`).
        font: as in :class:`deploykit.runtime.options.DrawOptions`.
        steady: draw the legend at the top left, as in a video; else in the corner in which the least is to be seen.

    Raises:
        UsageError: the two have different sizes, or a class has no colour.
    """
    if image.shape[:2] != labels.shape:
        raise UsageError(f"the label map has size {labels.shape} (height, width), but the image has {image.shape[:2]}")
    if not 0.0 <= alpha <= 1.0:
        raise UsageError(f"alpha must lie in 0..1, got {alpha}")
    there = shares(labels)
    table = _colours(max(256, max(there) + 1), classes) if colours is None else np.asarray(colours, np.uint8)
    if min(there) < 0 or max(there) >= len(table):
        raise UsageError(f"labels must lie in 0..{len(table) - 1}, got {min(there)} to {max(there)}")
    unpainted = 0 if _has_background(classes) else -1
    painted = table[labels]
    mixed = cv2.addWeighted(image, 1.0 - alpha, painted, alpha, 0.0)
    border = _borders(labels)
    mixed[border] = painted[border] // 2 + 127
    bare = (labels == unpainted) & ~border
    mixed[bare] = image[bare]
    shown = [label for label in there if label != unpainted]
    if legend and shown:
        return draw_panel(mixed, _legend(shown, there, classes, table, font), steady=steady)
    return mixed


def _borders(labels: Array) -> Array:
    """Return the pixels whose right or lower neighbour has another class."""
    found = np.zeros(labels.shape, bool)
    found[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    found[:-1] |= labels[:-1] != labels[1:]
    return found


def _legend(
    labels: list[int], there: dict[int, float], classes: Sequence[str], table: Array, font: str | None
) -> list[Line]:
    """Return the lines of the legend: the colour, name and share of each class."""
    lines = []
    for label in labels[:MOST_LEGEND]:
        name = classes[label] if label < len(classes) else str(label)
        text, typeface = class_text(name, label, font)
        blue, green, red = (int(v) for v in table[label])
        lines.append(Line(f"{text} {_percent(there[label])}", typeface, field=(blue, green, red)))
    if len(labels) > MOST_LEGEND:
        text, typeface = class_text(f"and {len(labels) - MOST_LEGEND} more", 0)
        lines.append(Line(text, typeface))
    return lines


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 else "< 1 %"


def _has_background(classes: Sequence[str]) -> bool:
    return bool(classes) and classes[0].casefold() in BACKGROUND


def _colours(count: int, classes: Sequence[str]) -> Array:
    """Return the colours of classes; the background is black."""
    table = palette(count)
    if _has_background(classes):
        table[0] = 0
    return table


def save_label_map(path: Path, labels: Array, classes: Sequence[str] = ()) -> None:
    """Write a label map as an 8-bit PNG whose pixels are class numbers and whose palette has the class colours.

    ``deploykit eval`` reads such files as ground truth. ``classes`` as for :func:`draw_label_map`.

    Raises:
        UsageError: a class number is over 255. MissingDependencyError: pillow is not installed.
        OutputError: the place is not writable or full.
    """
    images: Any = import_extra("PIL.Image", "eval")
    if labels.min() < 0 or labels.max() > 255:
        raise UsageError(f"an 8-bit label map holds classes 0 to 255, got {labels.min()} to {labels.max()}")
    image = images.fromarray(labels.astype(np.uint8))
    image.putpalette(_colours(256, classes)[:, ::-1].tobytes())
    data = BytesIO()
    image.save(data, "PNG")
    write_atomic(path, data.getvalue(), durable=False)
