"""Blocks of the yolov7-lite models of the yolov7-face family (facts from its public description; the code is ours).

Which activation a lite model was trained with is in no state dict; ``LayerGraph`` takes it from the pickled modules.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deploykit.models.fuse import fold_conv_bn, shared_copy
from deploykit.models.layers.conv import Conv, FoldingSequential, batch_norm, plain_conv


class ConvBnReluMaxpool(nn.Module):
    """3x3 stride 2 -> batch norm -> ReLU -> max pool 3/2: a quarter of the size."""

    def __init__(self, c1: int, c2: int) -> None:
        super().__init__()
        self.conv = FoldingSequential(plain_conv(c1, c2, 3, 2), batch_norm(c2), nn.ReLU())
        self.maxpool = nn.MaxPool2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.maxpool(self.conv(x))
        return out


class StemBlock(nn.Module):
    """A quarter of the size: a strided convolution, then a 1x1-3x3 branch beside a max pool, joined by a 1x1."""

    def __init__(self, c1: int, c2: int, k: int = 3, s: int = 2, p: int | None = None, g: int = 1) -> None:
        super().__init__()
        self.stem_1 = Conv(c1, c2, k, s, p, g)
        self.stem_2a = Conv(c2, c2 // 2, 1, 1)
        self.stem_2b = Conv(c2 // 2, c2, 3, 2)
        self.stem_2p = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.stem_3 = Conv(c2 * 2, c2, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem_1(x)
        out: Tensor = self.stem_3(torch.cat((self.stem_2b(self.stem_2a(x)), self.stem_2p(x)), 1))
        return out


class ShuffleBlock(nn.Module):
    """ShuffleNetV2 unit (arXiv 1807.11164): stride 1 keeps half of the channels as they are, 2 halves the size."""

    def __init__(self, c1: int, c2: int, stride: int) -> None:
        super().__init__()
        half = c2 // 2
        if stride == 1 and c1 != half * 2:
            raise ValueError(f"a stride 1 shuffle block keeps its channels, got {c1} in and {c2} out")
        self.stride = stride
        self.branch1 = FoldingSequential()
        if stride > 1:
            self.branch1 = FoldingSequential(
                plain_conv(c1, c1, 3, stride, c1), batch_norm(c1), plain_conv(c1, half), batch_norm(half), nn.SiLU()
            )
        self.branch2 = FoldingSequential(
            plain_conv(c1 if stride > 1 else half, half), batch_norm(half), nn.SiLU(),
            plain_conv(half, half, 3, stride, half), batch_norm(half),
            plain_conv(half, half), batch_norm(half), nn.SiLU(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        kept, worked = (self.branch1(x), x) if self.stride > 1 else x.chunk(2, 1)
        y = torch.stack((kept, self.branch2(worked)), 2)  # (B, C/2, 2, H, W): channel i of both side by side
        return y.flatten(1, 2)


class DWConvblock(nn.Module):
    """Depthwise k x k, then 1x1, each with batch norm and activation (ReLU, or whatever the checkpoint carries)."""

    def __init__(self, c1: int, c2: int, k: int, s: int) -> None:
        super().__init__()
        self.conv1 = plain_conv(c1, c1, k, s, c1)
        self.bn1: nn.Module = batch_norm(c1)
        self.act1: nn.Module = nn.ReLU()
        self.conv2 = plain_conv(c1, c2)
        self.bn2: nn.Module = batch_norm(c2)
        self.act2: nn.Module = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.bn1(self.conv1(x)))
        out: Tensor = self.act2(self.bn2(self.conv2(x)))
        return out

    def fuse(self, path: str) -> DWConvblock:
        """Fold both batch norms."""
        new = shared_copy(self)
        for conv, bn in (("conv1", "bn1"), ("conv2", "bn2")):
            if isinstance(norm := getattr(self, bn), nn.BatchNorm2d):
                setattr(new, conv, fold_conv_bn(getattr(self, conv), norm, f"{path}.{conv}"))
                setattr(new, bn, nn.Identity())
        return new
