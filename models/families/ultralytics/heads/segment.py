"""Boxes with mask coefficients, and the prototypes that they weigh.

Facts from the published model descriptions (the original is AGPL-3.0); the code is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack, cast

from torch import Tensor, nn
from torch.nn import functional as F

from deploykit.models.families.ultralytics.heads.detect import FreeDetect, HeadForm, box_branch
from deploykit.models.layers import anchor_head
from deploykit.models.layers.conv import Conv

__all__ = ["Proto", "Proto26", "Segment", "Segment26"]


class Proto(anchor_head.Proto):
    """The finest feature map ``(B, C, H, W)`` to prototypes ``(B, masks, 2 H, 2 W)``, in ``width`` channels."""

    def __init__(self, channels: int, width: int, masks: int) -> None:
        super().__init__(channels, width, masks, nn.ConvTranspose2d(width, width, 2, 2))


class Proto26(Proto):
    """The prototypes of YOLO26: from the finest map and the coarser ones, each twice as coarse as the one before."""

    def __init__(self, channels: Sequence[int], width: int, masks: int) -> None:
        super().__init__(width, width, masks)
        self.feat_refine = nn.ModuleList(Conv(c, channels[0]) for c in channels[1:])
        self.feat_fuse = Conv(channels[0], width, 3)

    def forward(self, *features: Tensor) -> Tensor:
        mixed = features[0]
        for level, (refine, x) in enumerate(zip(self.feat_refine, features[1:], strict=True), 1):
            mixed = mixed + F.interpolate(refine(x), scale_factor=2.0**level, mode="nearest")
        return super().forward(self.feat_fuse(mixed))


class Segment(FreeDetect):
    """Boxes and mask coefficients, one extra column per prototype: ``(rows, prototypes)``.

    ``num_masks`` is how many prototypes there are, ``proto_width`` the channels that they are computed in.
    """

    parts = ("cv2", "cv3", "cv4")

    def __init__(
        self,
        num_classes: int,
        channels: Sequence[int],
        num_masks: int = 32,
        proto_width: int = 256,
        **form: Unpack[HeadForm],
    ) -> None:
        super().__init__(num_classes, channels, **form)
        self.extras = self.num_masks = num_masks
        width = max(channels[0] // 4, num_masks)
        self.add_part("cv4", lambda c: box_branch(c, width, num_masks))
        self.proto = self.prototypes(proto_width)

    def prototypes(self, width: int) -> Proto:
        """The module that computes the prototypes."""
        return Proto(self.channels[0], width, self.num_masks)

    def others(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return (self.proto(*features),)

    def extra(self, x: Tensor, level: int) -> Tensor:
        return cast(Tensor, self.part("cv4", level)(x))


class Segment26(Segment):
    """The masks of YOLO26: the same rows, other prototypes."""

    def prototypes(self, width: int) -> Proto:
        return Proto26(self.channels, width, self.num_masks)
