"""Candidate rows before NMS: detections, and persons with keypoint objects."""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from deploykit.errors import SpecError
from deploykit.spec.checks import MOST_STRIDE, check_name, check_range, check_spans
from deploykit.spec.json_values import LATER
from deploykit.spec.output import Output, OutputTensor, Span, SpecLike
from deploykit.spec.row_parts import check_angle, check_keypoints, check_masks, prototype_tensors

__all__ = ["PoseFusion", "PoseObjectRows", "RawDetections", "RowOutput"]


@dataclass(frozen=True)
class RowOutput(Output):
    """One output ``(B, rows, columns)`` of candidate rows before NMS."""

    tasks: ClassVar[tuple[str, ...]] = ("detect", "keypoints")
    finds_objects: ClassVar[bool] = True

    name: str = "output"

    @property
    @abstractmethod
    def columns(self) -> int:
        """How many columns a row has."""

    @abstractmethod
    def as_rows(self) -> RawDetections:
        """The same columns as detections of classes, for whoever compares values."""

    def tensors(self, spec: SpecLike) -> tuple[OutputTensor, ...]:
        """See :meth:`Output.tensors`."""
        return (OutputTensor(self.name, ("batch", "rows", "columns"), columns=self.columns, free=("rows",)),)


@dataclass(frozen=True)
class RawDetections(RowOutput):
    """One output ``(B, rows, columns)`` of candidate rows before NMS, in network pixels.

    Each span is ``(start, stop)`` in the columns: ``box`` holds ``cx, cy, w, h``; ``obj`` one objectness (None: the
    score is the class score alone); ``cls`` one probability a class; ``keypoints`` K times ``kpt_dims`` values
    (``x, y`` or ``x, y, v``; None: there are no keypoints).

    ``decode``: what the runtime does to the rows first. ``none``: they are pixels already. ``yolox``: the box columns
    are a YOLOX head's own values (as its export writes them by default), one row a cell of the grids of ``strides``.

    ``cls_counts``: False says that the one class column is not part of the score, which then is the objectness
    (YOLOv7's main branch never trains the class score of a network of one class). See :attr:`score`.

    ``columns_first``: the output is ``(B, columns, rows)``, as YOLOv8 and its successors are exported.

    ``coefficients``: of an object's mask, one for each map of the output ``prototypes`` ``(B, maps, height, width)``,
    which lies over the input. The sum of the maps, each times its coefficient, is the logit of the mask.

    ``angle``: the column of a box's angle in radians, of the task ``oriented``; the box is turned by it about its
    centre, from x towards y (clockwise on the screen).
    """

    tasks: ClassVar[tuple[str, ...]] = ("detect", "keypoints", "instances", "oriented")

    kind: Literal["rows"] = "rows"
    name: str = "output"
    box: Span = (0, 4)
    obj: Span | None = (4, 5)
    cls: Span = (5, 6)
    keypoints: Span | None = None
    kpt_dims: int = 3
    decode: Literal["none", "yolox"] = field(default="none", metadata=LATER)
    strides: tuple[int, ...] = field(default=(), metadata=LATER)
    cls_counts: bool = field(default=True, metadata=LATER)
    columns_first: bool = field(default=False, metadata=LATER)
    coefficients: Span | None = field(default=None, metadata=LATER)
    prototypes: str | None = field(default=None, metadata=LATER)
    angle: Span | None = field(default=None, metadata=LATER)

    def __post_init__(self) -> None:
        check_name("the name of the output", self.name)
        spans = {"box": self.box, "obj": self.obj, "cls": self.cls, "keypoints": self.keypoints}
        spans |= {"coefficients": self.coefficients, "angle": self.angle}
        check_spans(spans, widths={"box": [4], "obj": [1], "angle": [1]})
        check_range("kpt_dims", self.kpt_dims, 2, 3)
        if (self.decode == "none") != (not self.strides):
            raise SpecError(f"rows are decoded by strides, or not at all; got decode {self.decode!r}, {self.strides}")
        if any(stride < 1 for stride in self.strides):
            raise SpecError(f"the strides of a grid are at least 1 pixel, got {self.strides}")
        for stride in self.strides:
            check_range("strides", stride, 1, MOST_STRIDE)
        for values, span in (("keypoints", self.keypoints), ("angles", self.angle)):
            if self.decode != "none" and span is not None:
                raise SpecError(
                    f"decode {self.decode!r} is of boxes; rows with {values} must be decoded by the network"
                )
        if not self.cls_counts and (self.obj is None or self.cls[1] - self.cls[0] != 1):
            found = f"{self.cls[1] - self.cls[0]} class columns and {'no' if self.obj is None else 'an'} objectness"
            raise SpecError(
                f"a score without the class (cls_counts: false) needs one class column and an objectness; got {found}"
            )

    def check(self, spec: SpecLike) -> None:
        """See :meth:`Output.check`: names and columns of classes and keypoints are as many; instances have masks, and
        oriented boxes angles."""
        check_masks(self.coefficients, self.prototypes, spec)
        check_angle(self.angle, spec)
        classes = self.num_classes(spec)
        if spec.classes and len(spec.classes) != classes:
            raise SpecError(f"{len(spec.classes)} class names for {classes} class columns")
        check_keypoints(self.keypoints, self.kpt_dims, spec)

    def tensors(self, spec: SpecLike) -> tuple[OutputTensor, ...]:
        """See :meth:`Output.tensors`."""
        rows = super().tensors(spec)
        if self.columns_first:
            axes = ("batch", "columns", "rows")
            rows = (OutputTensor(self.name, axes, columns=self.columns, free=("rows",), columns_axis=1),)
        return (*rows, *prototype_tensors(self.prototypes))

    @property
    def oriented(self) -> bool:
        """See :attr:`Output.oriented`."""
        return self.angle is not None

    def pixel_layout(self) -> RawDetections:
        """The layout of the same rows after their decode, in pixels, a row each; without their masks."""
        plain: dict[str, Any] = {"decode": "none", "strides": (), "columns_first": False}
        return dataclasses.replace(self, **plain, coefficients=None, prototypes=None)

    @property
    def task_of_rows(self) -> str:
        """The task of these rows alone, without masks."""
        return "oriented" if self.angle else "keypoints" if self.keypoints else "detect"

    @property
    def score(self) -> Literal["obj*cls", "obj", "cls"]:
        """What the score of a row and a class is: ``obj * cls`` (at most ``obj``), ``obj`` alone or ``cls`` alone."""
        if self.obj is None:
            return "cls"
        return "obj*cls" if self.cls_counts else "obj"

    @property
    def score_spans(self) -> tuple[Span | None, Span]:
        """The columns of the score: its factor for all classes (None: there is none), and one column a class."""
        if self.obj is not None and not self.cls_counts:
            return None, self.obj
        return self.obj, self.cls

    def num_classes(self, spec: SpecLike) -> int:
        """See :meth:`Output.num_classes`: a column each."""
        return self.cls[1] - self.cls[0]

    @property
    def columns(self) -> int:
        """How many columns a row has."""
        given = (self.obj, self.keypoints, self.coefficients, self.angle)
        return max(stop for _, stop in (self.box, self.cls, *(span for span in given if span)))

    def as_rows(self) -> RawDetections:
        """See :meth:`RowOutput.as_rows`: itself."""
        return self

    def describe(self, spec: SpecLike) -> str:
        """See :meth:`Output.describe`."""
        parts = [f"{_named(self.box)} cx cy w h"]
        if self.obj:
            parts.append(f"{_named(self.obj)} objectness{'' if self.cls_counts else ', which is the score'}")
        classes = f"{len(spec.classes)} class{'es' if len(spec.classes) > 1 else ''}"
        parts.append(f"{_named(self.cls)} {classes}{'' if self.cls_counts else ', which does not count'}")
        if self.keypoints and spec.keypoints:
            values = "x y v" if self.kpt_dims == 3 else "x y"
            parts.append(f"{_named(self.keypoints)} {len(spec.keypoints.names)} keypoints of {values}")
        if self.angle:
            parts.append(f"{_named(self.angle)} angle in radians")
        order = " (columns first)" if self.columns_first else ""
        if self.coefficients:
            parts.append(f"{_named(self.coefficients)} coefficients of the masks in {self.prototypes}")
        return "; ".join(parts) + f"; in network pixels, before NMS{order}"

    def facts(self, spec: SpecLike) -> dict[str, Any]:
        """See :meth:`Output.facts`."""
        meaning = {"obj*cls": {}, "obj": {"score": "the objectness alone"}, "cls": {"score": "the class alone"}}
        return {"columns": self.columns, **meaning[self.score]}


def _named(span: Span) -> str:
    return f"{span[0]}:" if span[1] - span[0] == 1 else f"{span[0]}-{span[1] - 1}:"


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
        if not 0.0 <= self.tolerance < math.inf:
            raise SpecError(f"the fusion's tolerance must be at least 0 pixels, got {self.tolerance}")


@dataclass(frozen=True)
class PoseObjectRows(RowOutput):
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
        check_name("the name of the output", self.name)
        objects, values = self.cls[1] - self.cls[0] - 1, self.coords[1] - self.coords[0]
        if objects < 1 or values != 2 * objects:
            raise SpecError(
                f"{values} coordinate columns are not x, y of {objects} keypoint classes beside the person's"
            )
        spans = {"box": self.box, "obj": self.obj, "cls": self.cls, "coords": self.coords}
        check_spans(spans, widths={"box": [4], "obj": [1]})

    def check(self, spec: SpecLike) -> None:
        """See :meth:`Output.check`: the person is the one class, and every keypoint has a name."""
        if len(spec.classes) > 1:
            raise SpecError(
                f"pose objects are of one class, the person; its keypoints are no classes: got {len(spec.classes)}"
            )
        if spec.keypoints is None or len(spec.keypoints.names) != self.num_keypoints:
            raise SpecError(f"pose objects of {self.num_keypoints} keypoints need as many keypoint names")

    @property
    def columns(self) -> int:
        """How many columns a row has."""
        return max(stop for _, stop in (self.box, self.obj, self.cls, self.coords))

    @property
    def num_keypoints(self) -> int:
        """K, the keypoints of a person."""
        return (self.coords[1] - self.coords[0]) // 2

    def as_rows(self) -> RawDetections:
        """See :meth:`RowOutput.as_rows`: rows of 1 + K classes with keypoints."""
        return RawDetections(
            name=self.name, box=self.box, obj=self.obj, cls=self.cls, keypoints=self.coords, kpt_dims=2
        )

    def trained_classes(self, spec: SpecLike) -> tuple[str, ...]:
        """See :meth:`Output.trained_classes`: the keypoints are classes too."""
        points = spec.keypoints.names if spec.keypoints else ()
        return (*spec.classes, *(name.replace(" ", "_") for name in points))

    def describe(self, spec: SpecLike) -> str:
        """See :meth:`Output.describe`: the columns, and what follows them."""
        points, fusion = self.num_keypoints, self.fusion
        box, cls, coords = (f"{start}-{stop - 1}:" for start, stop in (self.box, self.cls, self.coords))
        return (
            f"{box} cx cy w h; {self.obj[0]}: objectness; {cls} a person and {points} keypoints as classes; {coords} "
            "x y of a person's keypoints; in network pixels, before two runs of NMS (keypoints: over "
            f"{fusion.conf:g}, overlap {fusion.iou:g}) and their fusion (persons over {fusion.person:g}, within "
            f"{fusion.tolerance:g} source pixels)"
        )

    def facts(self, spec: SpecLike) -> dict[str, Any]:
        """See :meth:`Output.facts`."""
        return {"columns": self.columns, "output": self.describe(spec)}
