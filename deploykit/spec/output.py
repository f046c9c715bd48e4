"""What a network gives: rows before NMS, detections after it, or one dense output."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from deploykit.errors import SpecError
from deploykit.spec.json_values import LATER

__all__ = ["DenseOutput", "NmsOutputs", "PoseFusion", "PoseObjectRows", "RawDetections", "Span"]

Span = tuple[int, int]


@dataclass(frozen=True)
class RawDetections:
    """One output ``(B, rows, columns)`` of candidate rows before NMS, in network pixels.

    Each span is ``(start, stop)`` in the columns: ``box`` holds ``cx, cy, w, h``; ``obj`` one objectness (None: the
    score is the class score alone); ``cls`` one probability a class; ``keypoints`` K times ``kpt_dims`` values
    (``x, y`` or ``x, y, v``; None: there are no keypoints).

    ``decode``: what the runtime does to the rows first. ``none``: they are pixels already. ``yolox``: the box columns
    are a YOLOX head's own values (as its export writes them by default), one row a cell of the grids of ``strides``.
    """

    kind: Literal["rows"] = "rows"
    name: str = "output"
    box: Span = (0, 4)
    obj: Span | None = (4, 5)
    cls: Span = (5, 6)
    keypoints: Span | None = None
    kpt_dims: int = 3
    decode: Literal["none", "yolox"] = field(default="none", metadata=LATER)
    strides: tuple[int, ...] = field(default=(), metadata=LATER)

    def __post_init__(self) -> None:
        if (self.decode == "none") != (not self.strides):
            raise SpecError(f"rows are decoded by strides, or not at all; got decode {self.decode!r}, {self.strides}")
        if any(stride < 1 for stride in self.strides):
            raise SpecError(f"the strides of a grid are at least 1 pixel, got {self.strides}")
        if self.decode != "none" and self.keypoints is not None:
            raise SpecError(f"decode {self.decode!r} is of boxes; rows with keypoints must be decoded by the network")

    @property
    def decoded(self) -> RawDetections:
        """The layout of the same rows in pixels."""
        return dataclasses.replace(self, decode="none", strides=())

    @property
    def columns(self) -> int:
        """How many columns a row has."""
        return max(stop for _, stop in (self.box, self.obj or self.box, self.cls, self.keypoints or self.box))

    @property
    def plain(self) -> RawDetections:
        """Itself; see :attr:`PoseObjectRows.plain`."""
        return self


@dataclass(frozen=True)
class PoseFusion:
    """How keypoint objects replace keypoints of poses, after NMS and in source pixels.

    ``conf`` and ``iou`` are the thresholds of the keypoint objects' NMS (the persons' are the spec's). A pose takes
    part if its person's score is over ``person``; a keypoint object replaces the same keypoint of the pose where that
    is nearest, if it is nearer than ``tolerance`` source pixels. The defaults are those of KaPao's published accuracy.
    """

    conf: float = 0.2
    iou: float = 0.25
    person: float = 0.3
    tolerance: float = 50.0

    def __post_init__(self) -> None:
        for name in ("conf", "iou", "person"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise SpecError(f"the fusion's {name} must lie in 0..1, got {value}")
        if not self.tolerance >= 0.0:
            raise SpecError(f"the fusion's tolerance must be at least 0 pixels, got {self.tolerance}")


@dataclass(frozen=True)
class PoseObjectRows:
    """One output ``(B, rows, columns)`` of persons and of single keypoints as objects, in network pixels, before NMS.

    Spans as in :class:`RawDetections`. The first of the ``1 + K`` class columns is a person, the others are the K
    keypoints. ``coords`` holds ``x, y`` of the K keypoints of a person; in the row of a keypoint object they mean
    nothing. ``fusion`` tells how the two become poses.
    """

    kind: Literal["pose-objects"] = "pose-objects"
    name: str = "output"
    box: Span = (0, 4)
    obj: Span = (4, 5)
    cls: Span = (5, 23)
    coords: Span = (23, 57)
    fusion: PoseFusion = field(default_factory=PoseFusion)

    def __post_init__(self) -> None:
        objects, values = self.cls[1] - self.cls[0] - 1, self.coords[1] - self.coords[0]
        if objects < 1 or values != 2 * objects:
            raise SpecError(
                f"{values} coordinate columns are not x, y of {objects} keypoint classes beside the person's"
            )

    @property
    def columns(self) -> int:
        """How many columns a row has."""
        return max(stop for _, stop in (self.box, self.obj, self.cls, self.coords))

    @property
    def num_keypoints(self) -> int:
        """K, the keypoints of a person."""
        return (self.coords[1] - self.coords[0]) // 2

    @property
    def plain(self) -> RawDetections:
        """The same columns as rows of 1 + K classes with keypoints, for whoever compares values."""
        return RawDetections(
            name=self.name, box=self.box, obj=self.obj, cls=self.cls, keypoints=self.coords, kpt_dims=2
        )


@dataclass(frozen=True)
class NmsOutputs:
    """Fixed-shape outputs after NMS, in network pixels (M = the thresholds' ``max_det``).

    ``num_dets (B,1) int32, boxes (B,M,4) xyxy, scores (B,M), labels (B,M) int32, keypoints (B,M,K,3),
    masks (B,M,S,S)`` (0..1, each over its box), ``num_candidates (B,1) int32``; empty slots are zero.
    """

    kind: Literal["nms"] = "nms"
    num_dets: str = "num_dets"
    boxes: str = "boxes"
    scores: str = "scores"
    labels: str = "labels"
    keypoints: str | None = None
    num_candidates: str = "num_candidates"
    masks: str | None = field(default=None, metadata=LATER)


@dataclass(frozen=True)
class DenseOutput:
    """One dense output: ``logits (B,C)`` classify or ``(B,C,H,W)`` segment, ``image (B,C,H,W)``, ``features (B,D)``."""

    kind: Literal["tensor"] = "tensor"
    name: str = "logits"

    @property
    def plain(self) -> DenseOutput:
        """Itself; see :attr:`PoseObjectRows.plain`."""
        return self

    @property
    def decoded(self) -> DenseOutput:
        """Itself; see :attr:`RawDetections.decoded`."""
        return self
