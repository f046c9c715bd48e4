"""EfficientNet's blocks (arXiv 1905.11946) with learned resizings in place of strides; keys and code are ours."""

from __future__ import annotations

from torch import Tensor, nn

from deploykit.models.families.dynopool.hrnet import conv_bn
from deploykit.models.families.dynopool.resize import DynOPool
from deploykit.models.layers.pool import GlobalMean

__all__ = ["MBConv", "SqueezeExcite"]


class SqueezeExcite(nn.Module):
    """One factor per channel from the mean of the map: ``(B, C, H, W)`` to the same."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.mean = GlobalMean()
        self.reduce, self.expand = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        factor: Tensor = self.expand(nn.functional.silu(self.reduce(self.mean(x)))).sigmoid()
        return x * factor


class MBConv(nn.Module):
    """Widened by ``expand``, a depthwise convolution, squeeze-excite, and narrowed: ``(B, c1, H, W)`` to
    ``(B, c2, H, W)``, or what its resizing makes of the map, which comes first where there is one."""

    def __init__(self, c1: int, c2: int, k: int, expand: int, *, resize: bool = False) -> None:
        super().__init__()
        hidden = c1 * expand
        self.pool: nn.Module = DynOPool() if resize else nn.Identity()
        self.expand = conv_bn(c1, hidden, act=nn.SiLU()) if expand > 1 else nn.Identity()
        self.depthwise = conv_bn(hidden, hidden, k, act=nn.SiLU(), g=hidden)
        self.attention = SqueezeExcite(hidden, max(c1 // 4, 1))
        self.project = conv_bn(hidden, c2)
        self.add = c1 == c2 and not resize

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(x)
        out: Tensor = self.project(self.attention(self.depthwise(self.expand(x))))
        return x + out if self.add else out
