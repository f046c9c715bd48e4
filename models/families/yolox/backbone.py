"""Backbones of YOLOX with their necks (upstream ``yolox/models/{darknet,yolo_pafpn,yolo_fpn}.py``, Apache-2.0: facts
only, the code is ours).

Papers: YOLOX (arXiv 2107.08430), path aggregation (arXiv 1803.01534), YOLOv3 (arXiv 1804.02767).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deploykit.models.families.yolox.blocks import Activation, CSPLayer, Residual, SPPBottleneck, conv_of
from deploykit.models.layers.conv import Conv
from deploykit.models.layers.focus import Focus

__all__ = ["FeaturePyramid", "PathAggregation"]

Features = tuple[Tensor, Tensor, Tensor]
"""Strides 8, 16 and 32."""


class CspDarknet(nn.Module):
    """``(B, 3, H, W)`` to features of ``4, 8, 16 * base`` channels at strides 8, 16 and 32.

    ``blocks`` is how many bottlenecks the first stage has; the next two have three times as many, the last as many.
    ``focus``: begin with space to depth, or else (``ti_lite``) with a strided convolution in its place.
    """

    def __init__(self, base: int, blocks: int, *, focus: bool, depthwise: bool, act: Activation) -> None:
        super().__init__()
        if focus:
            self.stem: nn.Module = Focus(3, base, 3, act=act())
        else:
            self.stem = nn.Sequential(Conv(3, 12, 3, 2, act=act()), Conv(12, base, 3, act=act()))

        def stage(c: int, n: int, *between: nn.Module, shortcut: bool = True) -> nn.Sequential:
            halved = conv_of(c, 2 * c, 3, 2, depthwise=depthwise, act=act)
            block = CSPLayer(2 * c, 2 * c, n, shortcut=shortcut, depthwise=depthwise, act=act)
            return nn.Sequential(halved, *between, block)

        self.dark2 = stage(base, blocks)
        self.dark3 = stage(2 * base, 3 * blocks)
        self.dark4 = stage(4 * base, 3 * blocks)
        self.dark5 = stage(8 * base, blocks, SPPBottleneck(16 * base, 16 * base, act=act), shortcut=False)

    def forward(self, x: Tensor) -> Features:
        c3 = self.dark3(self.dark2(self.stem(x)))
        c4 = self.dark4(c3)
        return c3, c4, self.dark5(c4)


class PathAggregation(nn.Module):
    """CspDarknet, a way down to stride 8 and a way up again; ``blocks`` bottlenecks in each of the neck's four layers.

    Gives ``4, 8, 16 * base`` channels at strides 8, 16 and 32.
    """

    def __init__(self, backbone: CspDarknet, base: int, blocks: int, *, depthwise: bool, act: Activation) -> None:
        super().__init__()
        self.backbone = backbone
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        low, middle, high = 4 * base, 8 * base, 16 * base

        def csp(c1: int, c2: int) -> CSPLayer:
            return CSPLayer(c1, c2, blocks, shortcut=False, depthwise=depthwise, act=act)

        self.lateral_conv0 = Conv(high, middle, 1, act=act())
        self.C3_p4 = csp(2 * middle, middle)
        self.reduce_conv1 = Conv(middle, low, 1, act=act())
        self.C3_p3 = csp(2 * low, low)
        self.bu_conv2 = conv_of(low, low, 3, 2, depthwise=depthwise, act=act)
        self.C3_n3 = csp(2 * low, middle)
        self.bu_conv1 = conv_of(middle, middle, 3, 2, depthwise=depthwise, act=act)
        self.C3_n4 = csp(2 * middle, high)

    def forward(self, x: Tensor) -> Features:
        c3, c4, c5 = self.backbone(x)
        lateral = self.lateral_conv0(c5)
        reduced = self.reduce_conv1(self.C3_p4(torch.cat((self.upsample(lateral), c4), 1)))
        p3 = self.C3_p3(torch.cat((self.upsample(reduced), c3), 1))
        p4 = self.C3_n3(torch.cat((self.bu_conv2(p3), reduced), 1))
        return p3, p4, self.C3_n4(torch.cat((self.bu_conv1(p4), lateral), 1))


class Darknet53(nn.Module):
    """``(B, 3, H, W)`` to features of ``8, 16, 16 * base`` channels at strides 8, 16 and 32.

    ``blocks``: residuals in each of the last four stages, 2, 8, 8 and 4 as published.
    """

    def __init__(self, base: int, blocks: tuple[int, int, int, int], *, act: Activation) -> None:
        super().__init__()

        def stage(c: int, n: int) -> list[nn.Module]:
            return [Conv(c, 2 * c, 3, 2, act=act()), *(Residual(2 * c, act=act) for _ in range(n))]

        self.stem = nn.Sequential(Conv(3, base, 3, act=act()), *stage(base, 1))
        self.dark2 = nn.Sequential(*stage(2 * base, blocks[0]))
        self.dark3 = nn.Sequential(*stage(4 * base, blocks[1]))
        self.dark4 = nn.Sequential(*stage(8 * base, blocks[2]))
        half, high = 16 * base, 32 * base
        self.dark5 = nn.Sequential(
            *stage(16 * base, blocks[3]),
            Conv(high, half, 1, act=act()),
            Conv(half, high, 3, act=act()),
            SPPBottleneck(high, half, act=act),
            Conv(half, high, 3, act=act()),
            Conv(high, half, 1, act=act()),
        )

    def forward(self, x: Tensor) -> Features:
        c3 = self.dark3(self.dark2(self.stem(x)))
        c4 = self.dark4(c3)
        return c3, c4, self.dark5(c4)


class FeaturePyramid(nn.Module):
    """Darknet53 and YOLOv3's way down to stride 8; gives ``4, 8, 16 * base`` channels at strides 8, 16 and 32."""

    def __init__(self, backbone: Darknet53, base: int, *, act: Activation) -> None:
        super().__init__()
        self.backbone = backbone
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")

        def joined(c1: int, c: int) -> nn.Sequential:
            sizes = ((c1, c, 1), (c, 2 * c, 3), (2 * c, c, 1), (c, 2 * c, 3), (2 * c, c, 1))
            return nn.Sequential(*(Conv(i, o, k, act=act()) for i, o, k in sizes))

        self.out1_cbl = Conv(16 * base, 8 * base, 1, act=act())
        self.out1 = joined(24 * base, 8 * base)
        self.out2_cbl = Conv(8 * base, 4 * base, 1, act=act())
        self.out2 = joined(12 * base, 4 * base)

    def forward(self, x: Tensor) -> Features:
        c3, c4, c5 = self.backbone(x)
        p4 = self.out1(torch.cat((self.upsample(self.out1_cbl(c5)), c4), 1))
        p3 = self.out2(torch.cat((self.upsample(self.out2_cbl(p4)), c3), 1))
        return p3, p4, c5
