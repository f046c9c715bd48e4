"""Detections that the network has chosen itself, one row each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from deploykit.spec.checks import check_name, check_range, check_spans
from deploykit.spec.output import Output, OutputTensor, Span, SpecLike
from deploykit.spec.row_parts import check_angle, check_keypoints, check_masks, prototype_tensors

__all__ = ["EndToEndRows"]


@dataclass(frozen=True)
class EndToEndRows(Output):
    """One output of detections in network pixels: of a network that needs no NMS, or has it inside.

    ``(B, detections, columns)`` with a fixed number of rows per image, of which those without a score are empty; or,
    where ``image`` names a column, ``(detections, columns)`` of the whole batch, in which that column is the number of
    the image. ``box`` holds x1, y1, x2, y2, or cx, cy, w, h if there is a column ``angle``, in radians as in
    :class:`deploykit.spec.RawDetections`; ``score`` and ``label`` are columns; ``keypoints`` K times ``kpt_dims``
    values; ``coefficients`` and ``prototypes`` are those of :class:`deploykit.spec.RawDetections`. YOLOv10 and YOLO26
    give ``box, score, label``, and YOLOv7's end-to-end export ``image, box, label, score``.
    """

    tasks: ClassVar[tuple[str, ...]] = ("detect", "keypoints", "instances", "oriented")
    finds_objects: ClassVar[bool] = True
    nms_inside: ClassVar[bool] = True

    kind: Literal["end-to-end"] = "end-to-end"
    name: str = "output"
    box: Span = (0, 4)
    score: int = 4
    label: int = 5
    keypoints: Span | None = None
    kpt_dims: int = 3
    image: int | None = None
    coefficients: Span | None = None
    prototypes: str | None = None
    angle: int | None = None

    def __post_init__(self) -> None:
        check_name("the name of the output", self.name)
        check_range("kpt_dims", self.kpt_dims, 2, 3)
        columns = {"score": self.score, "label": self.label, "image": self.image, "angle": self.angle}
        alone = {name: None if column is None else (column, column + 1) for name, column in columns.items()}
        spans = {"box": self.box, **alone, "keypoints": self.keypoints, "coefficients": self.coefficients}
        check_spans(spans, {"box": (4,)})

    def check(self, spec: SpecLike) -> None:
        """See :meth:`Output.check`: names and columns of keypoints are as many; instances have masks, oriented boxes
        angles."""
        check_masks(self.coefficients, self.prototypes, spec)
        check_angle(self.angle, spec)
        check_keypoints(self.keypoints, self.kpt_dims, spec)

    @property
    def thresholds_inside(self) -> bool:
        """See :attr:`Output.thresholds_inside`: no file tells whether the network has thresholds."""
        return False

    @property
    def oriented(self) -> bool:
        """See :attr:`Output.oriented`."""
        return self.angle is not None

    @property
    def columns(self) -> int:
        """How many columns a row has at least."""
        spans = (span for span in (self.box, self.keypoints, self.coefficients) if span)
        alone = (self.score, self.label, self.image or 0, self.angle or 0)
        return max(*(column + 1 for column in alone), *(stop for _, stop in spans))

    def tensors(self, spec: SpecLike) -> tuple[OutputTensor, ...]:
        """See :meth:`Output.tensors`."""
        axes = ("batch", "detections", "columns") if self.image is None else ("detections", "columns")
        return (OutputTensor(self.name, axes, columns=self.columns), *prototype_tensors(self.prototypes))

    def describe(self, spec: SpecLike) -> str:
        """See :meth:`Output.describe`."""
        corners = "x1 y1 x2 y2" if self.angle is None else "cx cy w h"
        parts = {self.box[0]: corners, self.score: "score", self.label: "class"}
        if self.image is not None:
            parts[self.image] = "image"
        if self.angle is not None:
            parts[self.angle] = "angle in radians"
        if self.keypoints and spec.keypoints:
            values = "x y v" if self.kpt_dims == 3 else "x y"
            parts[self.keypoints[0]] = f"{len(spec.keypoints.names)} keypoints of {values}"
        if self.coefficients:
            parts[self.coefficients[0]] = f"coefficients of the masks in {self.prototypes}"
        return "; ".join(f"{start}: {parts[start]}" for start in sorted(parts)) + "; in network pixels, detections"

    def facts(self, spec: SpecLike) -> dict[str, Any]:
        """See :meth:`Output.facts`."""
        return {"columns": self.columns, "output": self.describe(spec)}
