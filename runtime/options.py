"""Options of predictions and evaluations: the only place that states them and their defaults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, TypedDict

from deploykit.errors import NotFoundError, UsageError

__all__ = [
    "MAX_PIXELS",
    "RECONNECT",
    "ComputeKeywords",
    "DrawKeywords",
    "DrawOptions",
    "EvalKeywords",
    "EvalOptions",
    "MetricsLibrary",
    "PredictKeywords",
    "PredictOptions",
    "given_options",
]

MetricsLibrary = Literal["hotcoco", "pycocotools"]

MAX_PIXELS = 2**28
"""The most pixels that an image may declare: 268 megapixels, 805 MB when decoded. A few bytes can declare more."""

RECONNECT = 5
"""How many times in a row a live stream that broke off is opened again, after 1, 2, 4, 8 and 16 seconds."""


@dataclass(frozen=True)
class PredictOptions:
    """Options of a prediction; None means the value of the model's spec.

    The kind of output decides which options a model has; every model has ``batch``.

    Attributes:
        conf: confidence threshold; higher scores are kept.
        iou: suppress overlaps above this.
        max_det: keep at most this many objects per image.
        classes: keep objects of these classes alone, by name or number; what other classes have is not looked at, so it
            neither suppresses nor takes a place in ``max_det``.
        agnostic: let objects of different classes suppress each other; a network with NMS inside has already chosen.
        multi_label: give an object for every class whose score is over ``conf``, not only for the best class, as
            detectors are evaluated; a network with NMS inside has already chosen.
        top: number of classes per image (``classify``); None: 5.
        tile: side of a tile in pixels, or (height, width); for a mosaic in cells of 2 x 2 (``restore``).
        overlap: distance in pixels from the edge of a tile within which its pixels are dropped (``restore``).
        every: of a video or a camera, predict only the frames whose numbers are multiples of this.
        batch: images, or tiles, per call of a network with a dynamic batch. Of a stream one thread of a CPU takes fewer
            images where so many have more pixels than one of 640 x 640.
        max_pixels: the most pixels that the header of an image, or a video, may declare.
        time_limit: seconds that one call of the network may take in ONNX Runtime before it is ended.
        reconnect: how many times in a row a live stream that broke off is opened again; 0: its first break is its end.
        workers: how many images, or batches, of a stream are on their way at the same time. ``auto``: as many as this
            machine has cores for this process, and ``load`` opens the network with one thread for each, which is best
            for streams and slowest for a single image. None: the network takes all cores, and a second image is read
            and prepared while it runs. Results do not depend on it.
    """

    conf: float | None = None
    iou: float | None = None
    max_det: int | None = None
    classes: Sequence[int | str] | None = None
    agnostic: bool = False
    multi_label: bool = False
    top: int | None = None
    tile: int | tuple[int, int] | None = None
    overlap: int | None = None
    every: int = 1
    batch: int | None = None
    max_pixels: int = MAX_PIXELS
    time_limit: float | None = None
    reconnect: int = RECONNECT
    workers: int | Literal["auto"] | None = None


@dataclass(frozen=True)
class DrawOptions:
    """Options of drawn results; a kind of result passes over those that it has no use for.

    Attributes:
        line_width: of boxes, limbs and outlines, in pixels; None: a four hundredth of the image's mean side.
        labels: write names beside objects, the classes of an image on it, and legends.
        conf: write scores.
        font: a font file (.ttf, .otf, .ttc); None: that of the environment variable ``DEPLOYKIT_FONT``, or one that has
            the characters of the class names.

    Raises:
        UsageError: ``line_width`` is below 1. NotFoundError: the font file does not exist.
    """

    line_width: int | None = None
    labels: bool = True
    conf: bool = True
    font: str | None = None

    def __post_init__(self) -> None:
        if self.line_width is not None and self.line_width < 1:
            raise UsageError(f"line_width must be at least 1 pixel, got {self.line_width}")
        if self.font is not None and not Path(self.font).expanduser().is_file():
            raise NotFoundError(f"a font file was expected at {self.font}, which does not exist")


@dataclass(frozen=True)
class EvalOptions:
    """Options of an evaluation; None means what follows from the model.

    The task decides which options apply; ``task``, ``limit``, ``batch`` and ``max_pixels`` always do.

    Attributes:
        task: what to score, where a model has more than one output (``keypoints`` finds boxes too); None: the spec's.
        split: ``train``, ``val`` or ``test`` of a YOLO data set or of a folder of splits; None: the first that there is
            of val, test, train.
        limit: evaluate only this many of the images that exist, the first ones.
        batch: images per call of a network with a dynamic batch; None: the spec's preference.
        conf: confidence threshold; None: 0.001, and for a model with NMS inside its own.
        iou: suppress overlaps above this; None: 0.65, or the model's own.
        max_det: at most this many objects per image; None: 300, or the model's own.
        img: the canvas in pixels, one side or (height, width), of a network with a dynamic shape; None: the spec's.
        rectangles: give such a network each image's own rectangle, as ``load`` does, instead of the whole canvas.
        allow_missing: skip listed images that are not in the folder, instead of refusing.
        upstream: prepare images as the original project's own evaluation does, which is not how they are prepared in
            use (docs/evaluation.md).
        sigmas: the OKS constants of the keypoints, one for all or one each; None: the spec's.
        metrics: the library that computes the metrics.
        time_limit: seconds that one call of the network may take in ONNX Runtime before it is ended.
        keep_detections: keep the detections, to write or draw them or to compute intervals; detectors only.
        mask_values: the value of each class in label maps, in the order of the classes (``segment``); None: those in
            the classes' names (``mask 255``), else 0, 1, 2, ...
        ignore_label: the value of pixels in label maps that do not count, or ``none`` (``segment``); None: 255, unless
            it is a class.
        max_pixels: the most pixels that the header of an image may declare.
        workers: how many images, or batches, are on their way at the same time; None or ``auto``: as many as this
            machine has cores for this process, with one thread for each. The numbers do not depend on it.
    """

    task: str | None = None
    split: str | None = None
    limit: int | None = None
    batch: int | None = None
    conf: float | None = None
    iou: float | None = None
    max_det: int | None = None
    img: int | Sequence[int] | None = None
    rectangles: bool = False
    allow_missing: bool = False
    upstream: bool = False
    sigmas: tuple[float, ...] | None = None
    metrics: MetricsLibrary = "hotcoco"
    time_limit: float | None = None
    keep_detections: bool = False
    mask_values: tuple[int, ...] | None = None
    ignore_label: int | Literal["none"] | None = None
    max_pixels: int = MAX_PIXELS
    workers: int | Literal["auto"] | None = None


class ComputeKeywords(TypedDict, total=False):
    """The fields of :class:`deploykit.runtime.compute.ComputeOptions` as keyword arguments."""

    device: str | int | None
    threads: int | None


class PredictKeywords(ComputeKeywords, total=False):
    """The fields of :class:`PredictOptions` and of what computes as keyword arguments."""

    conf: float | None
    iou: float | None
    max_det: int | None
    classes: Sequence[int | str] | None
    agnostic: bool
    multi_label: bool
    top: int | None
    tile: int | tuple[int, int] | None
    overlap: int | None
    every: int
    batch: int | None
    max_pixels: int
    time_limit: float | None
    reconnect: int
    workers: int | Literal["auto"] | None


class DrawKeywords(TypedDict, total=False):
    """The fields of :class:`DrawOptions` as keyword arguments; their meaning and defaults are stated there."""

    line_width: int | None
    labels: bool
    conf: bool
    font: str | None


class EvalKeywords(ComputeKeywords, total=False):
    """The fields of :class:`EvalOptions` and of what computes as keyword arguments, but for those that other arguments
    stand for."""

    split: str | None
    limit: int | None
    batch: int | None
    conf: float | None
    iou: float | None
    max_det: int | None
    img: int | Sequence[int] | None
    rectangles: bool
    allow_missing: bool
    sigmas: tuple[float, ...] | None
    metrics: MetricsLibrary
    time_limit: float | None
    keep_detections: bool
    mask_values: tuple[int, ...] | None
    ignore_label: int | Literal["none"] | None
    max_pixels: int
    workers: int | Literal["auto"] | None


def given_options(options: object) -> tuple[str, ...]:
    """Return the names of the fields whose values differ from their defaults."""
    return tuple(f.name for f in fields(options) if getattr(options, f.name) != f.default)  # type: ignore[arg-type]  # any dataclass
