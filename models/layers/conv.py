"""Convolution blocks of YOLOv5 and YOLOv7 (upstream ``models/common.py``, GPL-3.0: facts only, the code is ours).

Every block's attribute names are the original's, so that its weights load; ``fuse`` returns the folded form.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from deploykit.models.fuse import fold_conv_bn, fuse_model, shared_copy

BN_EPS = 1e-3  # of every YOLO here; upstream sets it after construction and no state dict holds it


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Batch norm with the eps and momentum that all YOLO families set."""
    return nn.BatchNorm2d(channels, eps=BN_EPS, momentum=0.03)


Size = int | Sequence[int]
"""One number for both axes, or two: (height, width)."""


def plain_conv(c1: int, c2: int, k: Size = 1, s: Size = 1, g: int = 1, p: Size | None = None, d: int = 1) -> nn.Conv2d:
    """A convolution without bias, padded by half its (dilated) kernel unless ``p`` says otherwise."""
    kernel = pair(k)
    half = (d * (kernel[0] - 1) + 1) // 2, (d * (kernel[1] - 1) + 1) // 2
    return nn.Conv2d(c1, c2, kernel, pair(s), half if p is None else pair(p), dilation=d, groups=g, bias=False)


def pair(size: Size) -> tuple[int, int]:
    """A size of both axes, from one number or from two.

    Raises:
        ValueError: it is neither.
    """
    if not isinstance(size, Sequence):
        return size, size
    if len(size) != 2:
        raise ValueError(f"a size is one number or two, got {len(size)}")
    return size[0], size[1]


def fill_biases(convs: Iterable[nn.Module], value: float) -> None:
    """Set every bias of some convolutions to ``value``."""
    for conv in convs:
        assert isinstance(conv, nn.Conv2d)
        assert conv.bias is not None
        nn.init.constant_(conv.bias, value)


class Conv(nn.Module):
    """conv k x k -> batch norm -> activation; ``(B, c1, H, W)`` to ``(B, c2, ceil(H/s), ceil(W/s))``.

    ``act``: None is SiLU. ``d``: the dilation.
    """

    def __init__(
        self,
        c1: int,
        c2: int,
        k: Size = 1,
        s: Size = 1,
        p: Size | None = None,
        g: int = 1,
        act: nn.Module | None = None,
        d: int = 1,
    ) -> None:
        super().__init__()
        self.conv = plain_conv(c1, c2, k, s, g, p, d)
        self.bn: nn.Module = batch_norm(c2)
        self.act = nn.SiLU() if act is None else act

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.bn(self.conv(x)))
        return out

    def fuse(self, path: str) -> Conv:
        """Fold the batch norm into the convolution."""
        new = shared_copy(self)
        if isinstance(self.bn, nn.BatchNorm2d):
            new.conv, new.bn = fold_conv_bn(self.conv, self.bn, path), nn.Identity()
        return new

    @staticmethod
    def folded(conv: nn.Conv2d, act: nn.Module) -> Conv:
        """A block whose batch norm is in ``conv`` already."""
        new = Conv.__new__(Conv)
        nn.Module.__init__(new)
        new.conv, new.bn, new.act = conv, nn.Identity(), shared_copy(act)
        return new


class DWConv(Conv):
    """Conv in as many groups as its inputs and outputs share: depthwise where they are equally many."""

    def __init__(self, c1: int, c2: int, k: Size = 1, s: Size = 1, act: nn.Module | None = None, d: int = 1) -> None:
        super().__init__(c1, c2, k, s, g=math.gcd(c1, c2), act=act, d=d)


class FoldingSequential(nn.Sequential):
    """A Sequential that folds each batch norm into the convolution right before it; the other places keep theirs."""

    def fuse(self, path: str) -> nn.Sequential:
        """Fold the pairs; a folded batch norm leaves an Identity, so that the indices stay."""
        layers: list[nn.Module] = []
        for i, layer in enumerate(self):
            if isinstance(layer, nn.BatchNorm2d) and layers and isinstance(layers[-1], nn.Conv2d):
                layers[-1] = fold_conv_bn(layers[-1], layer, f"{path}.{i - 1}")
                layers.append(nn.Identity())
            else:
                layers.append(fuse_model(layer, f"{path}.{i}"))
        return FoldingSequential(*layers)


class Concat(nn.Module):
    """Concatenate along ``dimension``."""

    def __init__(self, dimension: int = 1) -> None:
        super().__init__()
        self.dimension = dimension

    def forward(self, *x: Tensor) -> Tensor:
        return torch.cat(x, self.dimension)


class Shortcut(nn.Module):
    """Add two inputs of one shape."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


class Add(nn.Module):
    """``x + alpha * y`` (``ADD`` of the lite models)."""

    def __init__(self, alpha: float = 0.5) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y if self.alpha == 1 else x + self.alpha * y


def space_to_depth(x: Tensor, *, rows_first: bool = True) -> Tensor:
    """``(B, C, H, W)`` to ``(B, 4C, H/2, W/2)``: a block of C channels for each (row, column) parity.

    The blocks' order is (0,0), (1,0), (0,1), (1,1); with ``rows_first`` False (0,0), (0,1), (1,0), (1,1).
    """
    b, c, h, w = x.shape
    cells = x.view(b, c, h // 2, 2, w // 2, 2)
    blocks = cells.permute(0, 5, 3, 1, 2, 4) if rows_first else cells.permute(0, 3, 5, 1, 2, 4)
    return blocks.reshape(b, 4 * c, h // 2, w // 2)


class ReOrg(nn.Module):
    """Space to depth by 2: :func:`space_to_depth`."""

    def forward(self, x: Tensor) -> Tensor:
        return space_to_depth(x)


class DownC(nn.Module):
    """Halve the size two ways, half of the channels each: 1x1 and 3x3 stride 2; max pool and 1x1. ``n`` has no use."""

    def __init__(self, c1: int, c2: int, n: int = 1, k: int = 2) -> None:
        super().__init__()
        self.cv1 = Conv(c1, c1, 1, 1)
        self.cv2 = Conv(c1, c2 // 2, 3, k)
        self.cv3 = Conv(c1, c2 // 2, 1, 1)
        self.mp = nn.MaxPool2d(k, k)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.cv2(self.cv1(x)), self.cv3(self.mp(x))), 1)
