"""What can be asked of predictions and evaluations: the one place that states the options and their defaults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal, TypedDict

__all__ = ["EvalKeywords", "EvalOptions", "PredictKeywords", "PredictOptions", "given_options"]


@dataclass(frozen=True)
class PredictOptions:
    """How images are predicted on; None is what the model's spec says.

    Which of them a model takes follows from its kind of output; ``batch`` goes with all.

    Attributes:
        conf: keep scores above this.
        iou: suppress overlaps above this.
        max_det: keep at most so many objects an image.
        multi_label: an object of each class whose score is over ``conf``, not of the best class alone, as detectors
            are evaluated; a network with NMS inside has chosen already.
        top: so many classes of an image (``classify``); None: 5.
        tile: pixels a side of a tile, or (height, width); of a mosaic in cells of 2 x 2 (``restore``).
        overlap: of tiles, in their pixels: how deep in its tile a pixel lies that is kept (``restore``).
        batch: images, or tiles, in one call of a network with a dynamic batch.
    """

    conf: float | None = None
    iou: float | None = None
    max_det: int | None = None
    multi_label: bool = False
    top: int | None = None
    tile: int | tuple[int, int] | None = None
    overlap: int | None = None
    batch: int | None = None


@dataclass(frozen=True)
class EvalOptions:
    """How a model is evaluated; None is what follows from the model.

    Which of them mean something follows from the task; ``task``, ``limit`` and ``batch`` go with all.

    Attributes:
        task: what is scored, where a model does more than one thing (``keypoints`` finds boxes too); None: the spec's.
        limit: evaluate only the first so many images that are there.
        batch: images in one call of a network with a dynamic batch; None: the spec's preference.
        conf: keep scores above this; None: 0.001, and for a model with NMS inside its own.
        iou: suppress overlaps above this; None: 0.65, or the model's own.
        max_det: at most so many objects an image; None: 300, or the model's own.
        img: the canvas in pixels, one side or (height, width), of a network with a dynamic shape; None: the spec's.
        rectangles: give such a network each image's own rectangle, as ``load`` does, instead of the whole canvas.
        allow_missing: leave out listed images that are not in the folder, instead of refusing.
        upstream: prepare images as the original project's own evaluation does, which is not how they are prepared in
            use (docs/evaluation.md).
        engine: the library of the metrics.
        keep_detections: what was found is wanted too, to write it, to draw it or for intervals; so only detectors can
            be evaluated.
    """

    task: str | None = None
    limit: int | None = None
    batch: int | None = None
    conf: float | None = None
    iou: float | None = None
    max_det: int | None = None
    img: int | Sequence[int] | None = None
    rectangles: bool = False
    allow_missing: bool = False
    upstream: bool = False
    engine: Literal["hotcoco", "pycocotools"] = "hotcoco"
    keep_detections: bool = False


class PredictKeywords(TypedDict, total=False):
    """The fields of :class:`PredictOptions` as keyword arguments; their meaning and defaults are stated there."""

    conf: float | None
    iou: float | None
    max_det: int | None
    multi_label: bool
    top: int | None
    tile: int | tuple[int, int] | None
    overlap: int | None
    batch: int | None


class EvalKeywords(TypedDict, total=False):
    """The fields of :class:`EvalOptions` as keyword arguments, but for those that other arguments stand for."""

    limit: int | None
    batch: int | None
    conf: float | None
    iou: float | None
    max_det: int | None
    img: int | Sequence[int] | None
    rectangles: bool
    allow_missing: bool
    engine: Literal["hotcoco", "pycocotools"]
    keep_detections: bool


def given_options(options: object) -> tuple[str, ...]:
    """The names of the fields of a dataclass of options that are not at their defaults."""
    return tuple(f.name for f in fields(options) if getattr(options, f.name) != f.default)  # type: ignore[arg-type]  # any dataclass
