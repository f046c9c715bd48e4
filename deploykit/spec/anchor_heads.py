"""The undecoded maps of an anchor head, one output per level."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from deploykit.errors import SpecError
from deploykit.spec.checks import MOST_COLUMNS, MOST_STRIDE, check_name, check_range
from deploykit.spec.output import OutputTensor, SpecLike
from deploykit.spec.rows import RawDetections, RowOutput

__all__ = ["AnchorHeads"]

MIN_ANCHOR, MAX_ANCHOR = 0.01, 1e6  # pixels


@dataclass(frozen=True)
class AnchorHeads(RowOutput):
    """One output per level, ``(B, A, height, width, 5 + classes)`` or ``(B, A * (5 + classes), height, width)``.

    The runtime decodes them as YOLOv5 and YOLOv7 do: with s the sigmoid of a value, ``cxcy = (2 s - 0.5 + cell)
    stride``, ``wh = (2 s)^2 anchor``, and objectness and classes are s.

    ``outputs``: their names, level by level. ``strides``: pixels per cell. ``anchors``: width and height of the A
    anchors of each level in pixels, one after the other. ``sigmoid``: whether the network has applied it already.
    ``cls_counts``: see :class:`RawDetections`.
    """

    tasks: ClassVar[tuple[str, ...]] = ("detect",)

    kind: Literal["anchor-heads"] = "anchor-heads"
    name: str = "heads"
    outputs: tuple[str, ...] = ()
    strides: tuple[int, ...] = ()
    anchors: tuple[tuple[float, ...], ...] = ()
    sigmoid: bool = False
    cls_counts: bool = True
    num_columns: int = 6

    def __post_init__(self) -> None:
        levels = len(self.outputs)
        if not levels or not levels == len(self.strides) == len(self.anchors):
            found = f"{levels} outputs, {len(self.strides)} strides, anchors of {len(self.anchors)} levels"
            raise SpecError(f"every level of a head has an output, a stride and its anchors, got {found}")
        for name in (self.name, *self.outputs):
            check_name("the name of an output", name)
        for stride in self.strides:
            check_range("a stride", stride, 1, MOST_STRIDE)
        if any(not level or len(level) % 2 for level in self.anchors):
            raise SpecError(f"anchors are pairs of width and height, got {self.anchors}")
        for side in (side for level in self.anchors for side in level):
            check_range("a side of an anchor", side, MIN_ANCHOR, MAX_ANCHOR)
        check_range("the number of columns", self.num_columns, 6, MOST_COLUMNS)

    def check(self, spec: SpecLike) -> None:
        """See :meth:`Output.check`: as many class names as columns of classes."""
        self.as_rows().check(spec)

    @property
    def columns(self) -> int:
        """How many columns a decoded row has: 5 and one per class."""
        return self.num_columns

    def as_rows(self) -> RawDetections:
        """See :meth:`RowOutput.as_rows`: the decoded rows."""
        return RawDetections(name=self.name, cls=(5, self.num_columns), cls_counts=self.cls_counts)

    def num_classes(self, spec: SpecLike) -> int:
        """See :meth:`Output.num_classes`."""
        return self.num_columns - 5

    def tensors(self, spec: SpecLike) -> tuple[OutputTensor, ...]:
        """See :meth:`Output.tensors`; the two forms have different axes, so only the first is named."""
        return tuple(OutputTensor(name, ("batch",)) for name in self.outputs)

    def describe(self, spec: SpecLike) -> str:
        """See :meth:`Output.describe`."""
        return f"{len(self.outputs)} undecoded maps of anchors, strides {', '.join(map(str, self.strides))}"

    def facts(self, spec: SpecLike) -> dict[str, Any]:
        """See :meth:`Output.facts`."""
        return {"columns": self.columns, "output": self.describe(spec)}
