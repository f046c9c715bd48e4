"""The simple feature pyramid of ViTDet (arXiv 2203.16527): every level from one map.

Keys are detectron2's (Apache-2.0): ``simfp_2`` to ``simfp_5``, with the indices of its layers.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from deploykit.models.layers.naf import LayerNorm2d

__all__ = ["Norm", "NormedConv", "SimplePyramid", "norm_of"]

Norm = Literal["LN", "GN"]
"""``LN``: each pixel's channels by their own statistics (detectron2). ``GN``: channels and pixels together, a group
norm of one group (EasyCV). Their parameters have the same shapes, and they do not compute the same."""

EPS = 1e-6


def norm_of(kind: Norm, channels: int) -> nn.Module:
    """A norm of maps ``(B, channels, H, W)``."""
    return LayerNorm2d(channels) if kind == "LN" else nn.GroupNorm(1, channels, eps=EPS)


class NormedConv(nn.Conv2d):
    """A convolution without bias that keeps the size, and a norm; with ``relu`` that too. Keys as detectron2's."""

    def __init__(self, channels: int, out: int, kernel: int, norm: Norm, *, relu: bool = False) -> None:
        super().__init__(channels, out, kernel, padding=kernel // 2, bias=False)
        self.norm = norm_of(norm, out)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(super().forward(x))
        return functional.relu(out) if self.relu else out


class SimplePyramid(nn.Module):
    """``(B, dim, H, W)`` to levels of ``out`` channels: 4, 2, 1, 1/2 and 1/4 times the size, P2 to P6."""

    def __init__(self, dim: int, out: int, norm: Norm) -> None:
        super().__init__()
        half, quarter = dim // 2, dim // 4
        enlarge = (nn.ConvTranspose2d(dim, half, 2, 2), norm_of(norm, half), nn.GELU())
        self.simfp_2 = nn.Sequential(*enlarge, nn.ConvTranspose2d(half, quarter, 2, 2), *_ends(quarter, out, norm))
        self.simfp_3 = nn.Sequential(nn.ConvTranspose2d(dim, half, 2, 2), *_ends(half, out, norm))
        self.simfp_4 = nn.Sequential(*_ends(dim, out, norm))
        self.simfp_5 = nn.Sequential(nn.MaxPool2d(2, 2), *_ends(dim, out, norm))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        levels = [stage(x) for stage in (self.simfp_2, self.simfp_3, self.simfp_4, self.simfp_5)]
        return (*levels, functional.max_pool2d(levels[-1], 1, 2))


def _ends(channels: int, out: int, norm: Norm) -> tuple[nn.Module, nn.Module]:
    return NormedConv(channels, out, 1, norm), NormedConv(out, out, 3, norm)
