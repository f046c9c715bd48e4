"""Layer graphs of U-Nets: the usual one, one that is joined behind the halving, and the one of 2015.

``images (B, C, H, W)`` become logits ``(B, classes, H, W)``. Originals: see
:mod:`deploykit.models.families.unet.model`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from deploykit.models.families.unet.blocks import (
    DoubleConv,
    Down,
    Grow,
    OutConv,
    Shrink,
    Up,
    ValidConvs,
    ValidDown,
    ValidUp,
)
from deploykit.models.families.unet.key_layouts import Kind

__all__ = ["Level", "PooledUNet", "UNet", "UNet2015", "UNetConfig", "build_unet", "least_side"]

WIDTH, DEPTH, CLASSES = 64, 4, 2  # as published


class Level(NamedTuple):
    """One size of the image on one side: the channels between the two convolutions and behind them.

    ``rise``: channels of what a transposed convolution makes of it, or before it; 0: there is none.
    """

    mid: int
    out: int
    rise: int = 0
    kernel: int = 3


@dataclass(frozen=True)
class UNetConfig:
    """A layer graph of the family. ``contracting``: levels from the largest size on; ``expanding``: back to it.

    ``kind`` and ``skip_first``: see :class:`deploykit.models.families.unet.key_layouts.KeyLayout`.
    """

    channels: int
    num_classes: int
    contracting: tuple[Level, ...]
    expanding: tuple[Level, ...]
    kind: Kind = "joined"
    skip_first: bool = True

    @property
    def depth(self) -> int:
        """How often the image is halved."""
        return len(self.expanding)

    @property
    def bilinear(self) -> bool:
        """Whether images are enlarged without weights."""
        return not self.expanding[0].rise

    @staticmethod
    def published(
        *, channels: int = 3, num_classes: int = CLASSES, bilinear: bool = False, width: int = WIDTH, depth: int = DEPTH
    ) -> UNetConfig:
        """The original's graph: each level has twice the channels; bilinear, as many only as the next one takes."""
        widths = [width << i for i in range(depth + 1)]
        contracting = [Level(c, c) for c in widths]
        if not bilinear:
            expanding = [Level(c, c, rise=c) for c in reversed(widths[:-1])]
            return UNetConfig(channels, num_classes, tuple(contracting), tuple(expanding))
        contracting[-1] = Level(widths[-1] // 2, widths[-1] // 2)
        expanding = [Level(c, max(c // 2, width)) for c in reversed(widths[:-1])]
        return UNetConfig(channels, num_classes, tuple(contracting), tuple(expanding))


class UNet(nn.Module):
    """The usual U-Net: images ``(B, C, H, W)`` of any size from ``2 ** depth`` on to logits ``(B, classes, H, W)``.

    What is enlarged is padded with zeros where a side was odd before it was halved.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.depth = config.depth
        valid, first = config.kind == "valid", config.contracting[0]
        self.inc = (ValidConvs if valid else DoubleConv)(config.channels, first.mid, first.out)
        before = first.out
        for i, level in enumerate(config.contracting[1:], 1):
            self.add_module(f"down{i}", (ValidDown if valid else Down)(before, level.mid, level.out))
            before = level.out
        sides = reversed(config.contracting[:-1])
        for i, (level, side) in enumerate(zip(config.expanding, sides, strict=True), 1):
            if valid:
                up: nn.Module = ValidUp(before, level.rise, side.out, level.mid, level.out)
            else:
                up = Up(before, level.rise or None, side.out, level.mid, level.out, skip_first=config.skip_first)
            self.add_module(f"up{i}", up)
            before = level.out
        self.outc = OutConv(before, config.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        sides = [self.inc(images)]
        for i in range(1, self.depth + 1):
            sides.append(self.get_submodule(f"down{i}")(sides[-1]))
        x = sides.pop()
        for i in range(1, self.depth + 1):
            x = self.get_submodule(f"up{i}")(x, sides.pop())
        logits: Tensor = self.outc(x)
        return logits


class UNet2015(UNet):
    """The U-Net of the paper: convolutions see only what is there, so the image is mirrored around it first.

    Images ``(B, C, H, W)`` of any size over :attr:`margin` and ``2 ** depth`` to logits ``(B, classes, H, W)``. The
    paper cuts large images into tiles that overlap by twice the margin; the whole at once gives the same logits.
    """

    @property
    def margin(self) -> int:
        """How many pixels the valid convolutions take from each side: 92 of 572 as published, which leaves 388."""
        return 6 * (1 << self.depth) - 4

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[2], images.shape[3]
        step = 1 << self.depth  # what comes out is 4 more than a multiple of it
        below, right = (4 - height) % step, (4 - width) % step
        sides = (self.margin, self.margin + right, self.margin, self.margin + below)
        return super().forward(functional.pad(images, sides, mode="reflect"))[:, :, :height, :width]


class PooledUNet(nn.Module):
    """A U-Net whose sides are joined behind the halving: images ``(B, C, H, W)`` to logits ``(B, classes, H, W)``.

    H and W are multiples of ``2 ** depth``.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.depth = config.depth
        before = config.channels
        for i, level in enumerate(config.contracting, 1):
            self.add_module(f"down{i}", Shrink(before, level.mid, level.out, level.kernel))
            before = level.out
        sides = (0, *(level.out for level in reversed(config.contracting[:-1])))
        for i, (level, side) in enumerate(zip(config.expanding, sides, strict=True), 1):
            self.add_module(f"up{i}", Grow(before + side, level.mid, level.out, level.rise, level.kernel))
            before = level.rise

    def forward(self, images: Tensor) -> Tensor:
        sides = [images]
        for i in range(1, self.depth + 1):
            sides.append(self.get_submodule(f"down{i}")(sides[-1]))
        x = self.get_submodule("up1")(sides.pop())
        for i in range(2, self.depth + 1):
            x = self.get_submodule(f"up{i}")(torch.cat((x, sides.pop()), 1))
        logits: Tensor = x
        return logits


def least_side(config: UNetConfig) -> int:
    """From how many pixels on a network takes every side.

    Its halvings must leave a pixel; that of the paper mirrors its margin, and up to a step more, inside of the image.
    """
    step = 1 << config.depth
    return 7 * step - 4 if config.kind == "valid" else step


def build_unet(config: UNetConfig) -> UNet | PooledUNet:
    """The network of a description, in eval mode, with torch's default weights."""
    kinds: dict[Kind, type[UNet | PooledUNet]] = {"joined": UNet, "pooled": PooledUNet, "valid": UNet2015}
    return kinds[config.kind](config).eval()
