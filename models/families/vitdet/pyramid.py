"""Levels of several sizes from plain backbones: ViTDet's from one map, and those of four maps of one size.

The simple feature pyramid (arXiv 2203.16527) has detectron2's keys (Apache-2.0): ``simfp_2`` to ``simfp_5``, with the
indices of its layers. The other (arXiv 2111.11429) has no published code; its FPN (arXiv 1612.03144) has the keys that
detectron2 gives to an FPN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from deploykit.models.fuse import fold_conv_bn
from deploykit.models.layers.norm import LayerNorm2d

__all__ = ["Norm", "NormedConv", "SimplePyramid", "TapPyramid", "norm_of"]

Norm = Literal["LN", "GN", "BN"]
"""``LN``: each pixel's channels by their own statistics (detectron2). ``GN``: channels and pixels together, a group
norm of one group (EasyCV). Their parameters have the same shapes, and they do not compute the same. ``BN``: a batch
norm, which folds into the convolution before it."""

EPS = 1e-6


def norm_of(kind: Norm, channels: int) -> nn.Module:
    """A norm of maps ``(B, channels, H, W)``."""
    if kind == "BN":
        return nn.BatchNorm2d(channels)
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

    def random_weights(self, gain: float) -> None:
        """Batch norms without the gain that activations need: most of these convolutions have none behind them."""
        if isinstance(self.norm, nn.BatchNorm2d):
            nn.init.uniform_(self.norm.weight, 0.8, 1.2)

    def fuse(self, path: str) -> nn.Module:
        """With a batch norm folded; other norms stay.

        Raises:
            FoldError: it does not compute the same.
        """
        if not isinstance(self.norm, nn.BatchNorm2d):
            return self
        side = self.kernel_size[0]
        conv = nn.Conv2d(self.in_channels, self.out_channels, side, padding=side // 2, bias=False)
        conv.weight = self.weight
        folded = fold_conv_bn(conv.requires_grad_(False).eval(), self.norm, path)
        return nn.Sequential(folded, nn.ReLU()) if self.relu else folded


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


class TapPyramid(nn.Module):
    """Four maps ``(B, dim, H, W)`` to levels of ``out`` channels, 4, 2, 1, 1/2 and 1/4 times the size: P2 to P6.

    The maps are brought to their sizes by two transposed convolutions with a group norm and a GELU between them, one,
    none, and a pooling; an FPN with batch norms joins them.
    """

    def __init__(self, dim: int, out: int, groups: int = 32) -> None:
        super().__init__()
        self.scale_2 = nn.Sequential(
            nn.ConvTranspose2d(dim, dim, 2, 2), nn.GroupNorm(groups, dim), nn.GELU(), nn.ConvTranspose2d(dim, dim, 2, 2)
        )
        self.scale_3 = nn.ConvTranspose2d(dim, dim, 2, 2)
        self.scale_4 = nn.Identity()
        self.scale_5 = nn.MaxPool2d(2, 2)
        for level in range(2, 6):
            self.add_module(f"fpn_lateral{level}", NormedConv(dim, out, 1, "BN"))
            self.add_module(f"fpn_output{level}", NormedConv(out, out, 3, "BN"))

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        scaled = [self.get_submodule(f"scale_{i}")(x) for i, x in enumerate(maps, start=2)]
        above: Tensor | None = None
        levels: list[Tensor] = []
        for level in range(5, 1, -1):
            x = self.get_submodule(f"fpn_lateral{level}")(scaled[level - 2])
            above = x if above is None else x + functional.interpolate(above, scale_factor=2.0, mode="nearest")
            levels.insert(0, self.get_submodule(f"fpn_output{level}")(above))
        return (*levels, functional.max_pool2d(levels[-1], 1, 2))
