"""Blocks of U-Nets: pairs of convolutions, halving, and enlarging with skip connections.

Originals: arXiv 1505.04597, of which the valid ones are; milesial/Pytorch-UNet (GPL-3.0: facts only, the code is ours).
Attributes are called as in the latter, so that its weights load. ``B, C, H, W`` are batch, channels, height and width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from deploykit.models.layers.conv import FoldingSequential

__all__ = ["DoubleConv", "Down", "Grow", "OutConv", "Shrink", "Up", "ValidConvs", "ValidDown", "ValidUp", "padded_to"]


class DoubleConv(nn.Module):
    """Twice a convolution, batch norm (eps 1e-5) and ReLU: ``(B, c1, H, W)`` to ``(B, c2, H, W)``.

    ``mid``: channels between the two. ``kernel``: odd. ``bias``: of the convolutions, which needs none before a batch
    norm but has one in some projects.
    """

    def __init__(self, c1: int, mid: int, c2: int, *, kernel: int = 3, bias: bool = False) -> None:
        super().__init__()
        self.double_conv = FoldingSequential(
            nn.Conv2d(c1, mid, kernel, padding=kernel // 2, bias=bias),
            nn.BatchNorm2d(mid),
            nn.ReLU(),
            nn.Conv2d(mid, c2, kernel, padding=kernel // 2, bias=bias),
            nn.BatchNorm2d(c2),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.double_conv(x)
        return out


class Down(nn.Module):
    """The largest of every 2x2, then a :class:`DoubleConv`: ``(B, c1, H, W)`` to ``(B, c2, H // 2, W // 2)``."""

    def __init__(self, c1: int, mid: int, c2: int) -> None:
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), DoubleConv(c1, mid, c2))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.maxpool_conv(x)
        return out


class Up(nn.Module):
    """Enlarge by two, join with what has that size, and a :class:`DoubleConv`.

    ``(B, c1, h, w)`` and ``skip (B, c_skip, H, W)`` to ``(B, c2, H, W)``, where h is H // 2 and w is W // 2.

    Args:
        c1: channels of what is enlarged.
        rise: channels of it when it is enlarged, by a transposed convolution; None: bilinearly, which keeps them.
        c_skip: channels of what it is joined with.
        mid, c2: channels of the convolutions.
        skip_first: which of the two comes first in the joined channels; no tensor says it.
    """

    def __init__(self, c1: int, rise: int | None, c_skip: int, mid: int, c2: int, *, skip_first: bool = True) -> None:
        super().__init__()
        self.up: nn.Module
        if rise is None:
            self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        else:
            self.up = nn.ConvTranspose2d(c1, rise, 2, stride=2)
        self.conv = DoubleConv((c1 if rise is None else rise) + c_skip, mid, c2)
        self.skip_first = skip_first

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = padded_to(self.up(x), skip)
        out: Tensor = self.conv(torch.cat((skip, x) if self.skip_first else (x, skip), 1))
        return out


def padded_to(x: Tensor, like: Tensor) -> Tensor:
    """``x`` with zeros around it up to the height and width of ``like``; the odd row or column is below or right."""
    rows, columns = like.shape[2] - x.shape[2], like.shape[3] - x.shape[3]
    if (type(rows), type(columns)) == (int, int) and rows == columns == 0:
        return x  # where a size is free it is no int, and whether there is anything to pad is not known
    return functional.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))


class OutConv(nn.Module):
    """One logit a class from each pixel's channels: ``(B, c1, H, W)`` to ``(B, num_classes, H, W)``."""

    def __init__(self, c1: int, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c1, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out


class Shrink(nn.Module):
    """A :class:`DoubleConv` and the largest of 3x3 at every second pixel: ``(B, c1, H, W)`` to ``(B, c2, H/2, W/2)``.

    Odd sides are rounded up.
    """

    def __init__(self, c1: int, mid: int, c2: int, kernel: int) -> None:
        super().__init__()
        self.conv = DoubleConv(c1, mid, c2, kernel=kernel, bias=True)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.pool(self.conv(x))
        return out


class Grow(nn.Module):
    """A :class:`DoubleConv` and a transposed convolution of 3x3: ``(B, c1, H, W)`` to ``(B, rise, 2H, 2W)``."""

    def __init__(self, c1: int, mid: int, c2: int, rise: int, kernel: int) -> None:
        super().__init__()
        self.conv = DoubleConv(c1, mid, c2, kernel=kernel, bias=True)
        self.up = nn.ConvTranspose2d(c2, rise, 3, stride=2, padding=1, output_padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.up(self.conv(x))
        return out


class ValidConvs(nn.Module):
    """Twice a convolution without padding and ReLU: ``(B, c1, H, W)`` to ``(B, c2, H - 4, W - 4)``."""

    def __init__(self, c1: int, mid: int, c2: int) -> None:
        super().__init__()
        self.double_conv = nn.Sequential(nn.Conv2d(c1, mid, 3), nn.ReLU(), nn.Conv2d(mid, c2, 3), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.double_conv(x)
        return out

    def random_weights(self, gain: float) -> None:
        """As the paper sets them out: without batch norms the image would fade on its way."""
        for m in self.double_conv:
            if isinstance(m, nn.Conv2d):
                nn.init.normal_(m.weight, std=(2.0 / m.weight[0].numel()) ** 0.5)


class ValidDown(nn.Module):
    """The largest of every 2x2, then :class:`ValidConvs`: ``(B, c1, H, W)`` to ``(B, c2, H / 2 - 4, W / 2 - 4)``."""

    def __init__(self, c1: int, mid: int, c2: int) -> None:
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), ValidConvs(c1, mid, c2))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.maxpool_conv(x)
        return out


class ValidUp(nn.Module):
    """Enlarge by two, put the middle of ``skip`` before it, and :class:`ValidConvs`.

    ``(B, c1, h, w)`` and ``skip (B, c_skip, H, W)``, H >= 2h, to ``(B, c2, 2h - 4, 2w - 4)``.
    """

    def __init__(self, c1: int, rise: int, c_skip: int, mid: int, c2: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(c1, rise, 2, stride=2)
        self.conv = ValidConvs(rise + c_skip, mid, c2)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.up(x)
        top, left = (skip.shape[2] - x.shape[2]) // 2, (skip.shape[3] - x.shape[3]) // 2
        middle = skip[:, :, top : top + x.shape[2], left : left + x.shape[3]]
        out: Tensor = self.conv(torch.cat((middle, x), 1))
        return out
