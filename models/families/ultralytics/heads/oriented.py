"""Boxes with an angle, as it is computed before YOLO26 and in it.

Facts from the published model descriptions (the original is AGPL-3.0); the code is ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Unpack, cast

from torch import Tensor

from deploykit.models.families.ultralytics.heads.detect import FreeDetect, HeadForm, box_branch
from deploykit.models.families.ultralytics.heads.points import turned_box

__all__ = ["Oriented", "Oriented26"]


class Oriented(FreeDetect):
    """Boxes turned about their centres, with the angle as the last column: radians, from x towards y.

    ``angle = (sigmoid(raw) - 0.25) pi``. Boxes are ``cx, cy, w, h`` in both branches.
    """

    parts = ("cv2", "cv3", "cv4")
    extras = 1

    def __init__(self, num_classes: int, channels: Sequence[int], **form: Unpack[HeadForm]) -> None:
        super().__init__(num_classes, channels, **form)
        width = max(channels[0] // 4, 1)
        self.add_part("cv4", lambda c: box_branch(c, width, 1))

    def extra(self, x: Tensor, level: int) -> Tensor:
        return cast(Tensor, self.part("cv4", level)(x))

    def boxes_of(self, box: Tensor, extra: Tensor | None, points: Tensor, strides: Tensor) -> Tensor:
        assert extra is not None
        return turned_box(self.distances_of(box), self.angles_of(extra), points, strides)

    def extras_of(self, extra: Tensor | None, points: Tensor, strides: Tensor) -> tuple[Tensor, ...]:
        assert extra is not None
        return (self.angles_of(extra),)

    def final_boxes(self, boxes: Tensor) -> Tensor:
        return boxes

    def angles_of(self, raw: Tensor) -> Tensor:
        """Raw angles ``(..., 1)`` to radians."""
        return (raw.sigmoid() - 0.25) * math.pi


class Oriented26(Oriented):
    """The oriented boxes of YOLO26: the raw value is the angle, of any size."""

    def angles_of(self, raw: Tensor) -> Tensor:
        return raw
