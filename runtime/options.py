"""Options of predictions and evaluations: the only place that states them and their defaults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal, TypedDict

__all__ = [
    "MAX_PIXELS",
    "EvalKeywords",
    "EvalOptions",
    "MetricsEngine",
    "PredictKeywords",
    "PredictOptions",
    "given_options",
]

MetricsEngine = Literal["hotcoco", "pycocotools"]

MAX_PIXELS = 2**28
"""The most pixels that an image may declare: 268 megapixels, 805 MB when decoded. A few bytes can declare more."""


@dataclass(frozen=True)
class PredictOptions:
    """Options of a prediction; None means the value of the model's spec.

    The kind of output decides which options a model has; every model has ``batch``.

    Attributes:
        conf: keep scores above this.
        iou: suppress overlaps above this.
        max_det: keep at most this many objects per image.
        multi_label: give an object for every class whose score is over ``conf``, not only for the best class, as
            detectors are evaluated; a network with NMS inside has already chosen.
        top: number of classes per image (``classify``); None: 5.
        tile: side of a tile in pixels, or (height, width); for a mosaic in cells of 2 x 2 (``restore``).
        overlap: distance in pixels from the edge of a tile within which its pixels are dropped (``restore``).
        batch: images, or tiles, per call of a network with a dynamic batch.
        max_pixels: the most pixels that the header of an image, or a video, may declare.
        time_limit: seconds that one call of the network may take in ONNX Runtime before it is ended.
    """

    conf: float | None = None
    iou: float | None = None
    max_det: int | None = None
    multi_label: bool = False
    top: int | None = None
    tile: int | tuple[int, int] | None = None
    overlap: int | None = None
    batch: int | None = None
    max_pixels: int = MAX_PIXELS
    time_limit: float | None = None


@dataclass(frozen=True)
class EvalOptions:
    """Options of an evaluation; None means what follows from the model.

    The task decides which options apply; ``task``, ``limit``, ``batch`` and ``max_pixels`` always do.

    Attributes:
        task: what to score, where a model has more than one output (``keypoints`` finds boxes too); None: the spec's.
        limit: evaluate only this many of the images that exist, the first ones.
        batch: images per call of a network with a dynamic batch; None: the spec's preference.
        conf: keep scores above this; None: 0.001, and for a model with NMS inside its own.
        iou: suppress overlaps above this; None: 0.65, or the model's own.
        max_det: at most this many objects per image; None: 300, or the model's own.
        img: the canvas in pixels, one side or (height, width), of a network with a dynamic shape; None: the spec's.
        rectangles: give such a network each image's own rectangle, as ``load`` does, instead of the whole canvas.
        allow_missing: leave out listed images that are not in the folder, instead of refusing.
        upstream: prepare images as the original project's own evaluation does, which is not how they are prepared in
            use (docs/evaluation.md).
        engine: the library of the metrics.
        time_limit: seconds that one call of the network may take in ONNX Runtime before it is ended.
        keep_detections: keep the detections, to write or draw them or to compute intervals; detectors only.
        mask_values: the value of each class in label maps, in the order of the classes (``segment``); None: those in
            the classes' names (``mask 255``), else 0, 1, 2, ...
        ignore_label: the value of pixels in label maps that do not count, or ``none`` (``segment``); None: 255, unless
            it is a class.
        max_pixels: the most pixels that the header of an image may declare.
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
    engine: MetricsEngine = "hotcoco"
    time_limit: float | None = None
    keep_detections: bool = False
    mask_values: tuple[int, ...] | None = None
    ignore_label: int | Literal["none"] | None = None
    max_pixels: int = MAX_PIXELS


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
    max_pixels: int
    time_limit: float | None


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
    engine: MetricsEngine
    time_limit: float | None
    keep_detections: bool
    mask_values: tuple[int, ...] | None
    ignore_label: int | Literal["none"] | None
    max_pixels: int


def given_options(options: object) -> tuple[str, ...]:
    """Return the names of the fields whose values differ from their defaults."""
    return tuple(f.name for f in fields(options) if getattr(options, f.name) != f.default)  # type: ignore[arg-type]  # any dataclass
