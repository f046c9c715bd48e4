"""KaPao's head: persons with the coordinates of their keypoints, and single keypoints as objects, in the same rows.

Source of the facts: arXiv 2111.08557, wmcnally/kapao ``models/yolo.py`` (GPL-3.0); the code is ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deploykit.models.layers.anchor_head import Anchors, Detect


class PoseObject(Detect):
    """Rows ``(B, N, 5 + classes + coordinates)`` of one convolution per level: ``cx, cy, w, h, obj, cls..., xy * K``.

    Class 0 is a person, the others are the keypoints. Boxes as in :class:`Detect`;
    ``xy = (4 sigmoid - 2) anchor + grid * stride``, from the cell's corner and not from its middle.
    """

    def __init__(self, num_classes: int, anchors: Anchors, channels: Sequence[int], num_coords: int = 34) -> None:
        super().__init__(num_classes + num_coords, anchors, channels)
        self.num_classes, self.num_coords = num_classes, num_coords

    @property
    def columns(self) -> int:
        return 5 + self.num_classes + self.num_coords

    def decode(self, raw: Tensor, level: int) -> Tensor:
        cells = self._cells(raw)
        det, coords = torch.split(cells, [5 + self.num_classes, self.num_coords], -1)
        corner = self._offset(cells, level) + 0.5 * self.stride[level]
        pairs = coords.sigmoid().reshape(*coords.shape[:4], self.num_coords // 2, 2) * 4 - 2
        pairs = pairs * self.anchor_grid[level][..., None, :] + corner[:, :, None]
        return torch.cat((*self._decode_box(det, level), pairs.flatten(-2)), -1).flatten(1, 3)
