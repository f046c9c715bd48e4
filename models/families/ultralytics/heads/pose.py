"""Boxes with keypoints, in the two equations that there are.

Facts from the published model descriptions (the original is AGPL-3.0); the code is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack, cast

import torch
from torch import Tensor, nn

from deploykit.models.families.ultralytics.heads.detect import FreeDetect, HeadForm, box_branch
from deploykit.models.layers.conv import Conv

__all__ = ["FreePose", "Pose26"]


class FreePose(FreeDetect):
    """Boxes and K keypoints of ``x, y`` or ``x, y, v`` (D is 2 or 3): K D extra columns.

    ``xy = (2 raw + cell) stride`` with the cell's column and row, ``v = sigmoid(raw)``.
    """

    parts: tuple[str, ...] = ("cv2", "cv3", "cv4")

    def __init__(
        self,
        num_classes: int,
        channels: Sequence[int],
        kpt_shape: tuple[int, int] = (17, 3),
        **form: Unpack[HeadForm],
    ) -> None:
        super().__init__(num_classes, channels, **form)
        self.kpt_shape = kpt_shape
        self.extras = kpt_shape[0] * kpt_shape[1]
        self.add_keypoints()

    def add_keypoints(self) -> None:
        """Add the modules that compute the keypoints."""
        width = max(self.channels[0] // 4, self.extras)
        self.add_part("cv4", lambda c: box_branch(c, width, self.extras))

    def extra(self, x: Tensor, level: int) -> Tensor:
        return cast(Tensor, self.part("cv4", level)(x))

    def extras_of(self, extra: Tensor | None, points: Tensor, strides: Tensor) -> tuple[Tensor, ...]:
        assert extra is not None
        values = extra.reshape(*extra.shape[:-1], *self.kpt_shape)
        # Axis by axis, because ONNX Runtime repeats a cell's x for 17 keypoints faster than its pair of x and y.
        columns = [self.places_of(values[..., i], points[..., i : i + 1]) * strides for i in (0, 1)]
        if self.kpt_shape[1] == 3:
            columns.append(values[..., 2].sigmoid())
        return (torch.stack(columns, -1).flatten(-2),)

    def places_of(self, raw: Tensor, points: Tensor) -> Tensor:
        """Raw ``x`` or ``y`` of keypoints to places in cells, ``points`` being the cells' own."""
        return 2 * raw + (points - 0.5)


class Pose26(FreePose):
    """The keypoints of YOLO26: ``xy = (raw + cell + 0.5) stride``, from a convolution of their own."""

    parts: tuple[str, ...] = ("cv2", "cv3", "cv4", "cv4_kpts")

    def add_keypoints(self) -> None:
        width = max(self.channels[0] // 4, self.kpt_shape[0] * (self.kpt_shape[1] + 2))
        self.add_part("cv4", lambda c: nn.Sequential(Conv(c, width, 3), Conv(width, width, 3)))
        self.add_part("cv4_kpts", lambda _: nn.Conv2d(width, self.extras, 1))

    def extra(self, x: Tensor, level: int) -> Tensor:
        return cast(Tensor, self.part("cv4_kpts", level)(super().extra(x, level)))

    def places_of(self, raw: Tensor, points: Tensor) -> Tensor:
        return raw + points
