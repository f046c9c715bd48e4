"""Ghost blocks of YOLOv5 (upstream ``models/common.py``, AGPL-3.0, formerly GPL-3.0: facts only, our code).

Paper: GhostNet (arXiv 1911.11907).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deploykit.models.layers.conv import Conv, DWConv
from deploykit.models.layers.csp import C3
from deploykit.models.layers.norm import scale_batch_norms


class GhostConv(nn.Module):
    """Half of the channels by a convolution, the other half from those by a cheap 5x5 depthwise one."""

    def __init__(self, c1: int, c2: int, k: int = 1, s: int = 1, g: int = 1, act: nn.Module | None = None) -> None:
        super().__init__()
        half = c2 // 2
        self.cv1 = Conv(c1, half, k, s, g=g, act=act)
        self.cv2 = Conv(half, half, 5, 1, g=half, act=act)

    def forward(self, x: Tensor) -> Tensor:
        y = self.cv1(x)
        return torch.cat((y, self.cv2(y)), 1)


class GhostBottleneck(nn.Module):
    """Two ghost convolutions, the second without activation, added to the input; stride 2 halves the size."""

    def __init__(self, c1: int, c2: int, k: int = 3, s: int = 1) -> None:
        super().__init__()
        half = c2 // 2
        down = s == 2
        self.conv = nn.Sequential(
            GhostConv(c1, half, 1, 1),
            DWConv(half, half, k, s, act=nn.Identity()) if down else nn.Identity(),
            GhostConv(half, c2, 1, 1, act=nn.Identity()),
        )
        self.shortcut = (
            nn.Sequential(DWConv(c1, c1, k, s, act=nn.Identity()), Conv(c1, c2, 1, 1, act=nn.Identity()))
            if down
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x) + self.shortcut(x)
        return out

    def random_weights(self, gain: float) -> None:
        """Half as much added to the shortcut, so that the sum does not grow."""
        scale_batch_norms(self.conv[-1], 0.5)


class C3Ghost(C3):
    """C3 with ghost bottlenecks; ``shortcut`` and ``g`` have no meaning for those."""

    def __init__(self, c1: int, c2: int, n: int = 1, shortcut: bool = True, g: int = 1, e: float = 0.5) -> None:
        super().__init__(c1, c2, 0, shortcut, g, e)
        hidden = self.cv1.conv.out_channels
        self.m = nn.Sequential(*(GhostBottleneck(hidden, hidden) for _ in range(n)))
