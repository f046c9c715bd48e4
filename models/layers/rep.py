"""Re-parameterised convolution and implicit knowledge (upstream ``models/common.py``, GPL-3.0: facts only).

Papers: RepVGG (arXiv 2101.03697), YOLOR (arXiv 2105.04206), YOLOv7 (arXiv 2207.02696).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deploykit.models.fuse import check_fold, fold_conv_bn, fold_into, probe_of, shared_copy
from deploykit.models.layers.conv import Conv, FoldingSequential, batch_norm, plain_conv


class RepConv(nn.Module):
    """act(BN(conv 3x3) + BN(conv 1x1) [+ BN(x)]), the last where shape allows; ``fuse`` gives one 3x3 convolution."""

    def __init__(
        self, c1: int, c2: int, k: int = 3, s: int = 1, p: int | None = None, g: int = 1, act: nn.Module | None = None
    ) -> None:
        super().__init__()
        if k != 3 or p not in (None, 1):
            raise ValueError(f"RepConv is a 3x3 convolution with padding 1, got kernel {k} and padding {p}")
        self.act = nn.SiLU() if act is None else act
        self.rbr_identity = batch_norm(c1) if c1 == c2 and s == 1 else None
        self.rbr_dense = FoldingSequential(plain_conv(c1, c2, k, s, g), batch_norm(c2))
        self.rbr_1x1 = FoldingSequential(plain_conv(c1, c2, 1, s, g), batch_norm(c2))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self._branches(x))
        return out

    def _branches(self, x: Tensor) -> Tensor:
        y: Tensor = self.rbr_dense(x) + self.rbr_1x1(x)
        return y if self.rbr_identity is None else y + self.rbr_identity(x)

    @property
    def dense(self) -> nn.Conv2d:
        """The 3x3 convolution."""
        return cast(nn.Conv2d, self.rbr_dense[0])

    def _folded(self, path: str) -> tuple[nn.Conv2d, nn.Conv2d]:
        """The 3x3 and the 1x1 convolution with their batch norms in them."""
        dense, point = self.rbr_dense.fuse(f"{path}.rbr_dense")[0], self.rbr_1x1.fuse(f"{path}.rbr_1x1")[0]
        assert isinstance(dense, nn.Conv2d)
        assert isinstance(point, nn.Conv2d)
        return dense, point

    def fuse(self, path: str) -> nn.Sequential:
        """Add the three branches' kernels and biases; each branch's own fold is checked, and so is the sum."""
        dense, point = self._folded(path)
        weight = dense.weight.detach().double() + F.pad(point.weight.detach().double(), (1, 1, 1, 1))
        bias = bias64(dense) + bias64(point)
        if self.rbr_identity is not None:
            unit = fold_conv_bn(unit_conv(dense), self.rbr_identity, f"{path}.rbr_identity")
            weight, bias = weight + unit.weight.detach().double(), bias + bias64(unit)
        fused = fold_into(dense, weight, bias)
        before, after = double_copy(self), double_copy(fused)
        assert isinstance(before, RepConv)
        check_fold(path, "three branches", before._branches, after, probe_of(dense))
        return nn.Sequential(fused, shared_copy(self.act))


class DeployedRepConv(nn.Module):
    """A RepConv that its project folded before it was saved: one convolution, under the project's name for it.

    ``dense``: the 3x3 convolution of the block.
    """

    def __init__(self, dense: nn.Conv2d, act: nn.Module) -> None:
        super().__init__()
        kernel, padding = (3, 3), (1, 1)
        stride = int(dense.stride[0]), int(dense.stride[1])
        self.rbr_reparam = nn.Conv2d(
            dense.in_channels,
            dense.out_channels,
            kernel,
            stride,
            padding,
            groups=dense.groups,
            device=dense.weight.device,
        )
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.rbr_reparam(x))
        return out


class ImplicitA(nn.Module):
    """x + a, with one learned ``a`` a channel, ``(1, C, 1, 1)``."""

    def __init__(self, channel: int) -> None:
        super().__init__()
        self.implicit = nn.Parameter(torch.zeros(1, channel, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.implicit

    def random_weights(self, gain: float) -> None:
        """As far from 0 as in trained models."""
        nn.init.normal_(self.implicit, std=0.02)


class ImplicitM(nn.Module):
    """x * m, with one learned ``m`` a channel, ``(1, C, 1, 1)``."""

    def __init__(self, channel: int) -> None:
        super().__init__()
        self.implicit = nn.Parameter(torch.ones(1, channel, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.implicit

    def random_weights(self, gain: float) -> None:
        """As far from 1 as in trained models."""
        nn.init.normal_(self.implicit, mean=1.0, std=0.02)


def fold_implicit(conv: nn.Conv2d, a: ImplicitA, m: ImplicitM, path: str) -> nn.Conv2d:
    """Fold both implicits into the 1x1 convolution between them: W' = m W, b' = m (b + W a).

    Raises:
        FoldError: the folded convolution does not compute the same.
    """
    weight, bias = conv.weight.detach().double(), bias64(conv)
    add, mul = a.implicit.detach().double().flatten(), m.implicit.detach().double().flatten()
    folded = fold_into(conv, mul[:, None, None, None] * weight, mul * (bias + weight[:, :, 0, 0] @ add))
    wide, a64, m64 = double_copy(conv), double_copy(a), double_copy(m)
    check_fold(path, "implicits", lambda x: m64(wide(a64(x))), double_copy(folded), probe_of(conv))
    return folded


def folded_sum(branches: Mapping[str, Conv], path: str) -> nn.Conv2d:
    """One convolution for the sum of several of one input, each with its batch norm and without an activation.

    ``branches``: name within ``path`` -> convolution. The first has the largest kernel; the others' kernels are odd
    like it, centred on it, and have its stride and groups.

    Raises:
        FoldError: it does not compute the same.
    """
    first, *others = (conv.fuse(f"{path}.{name}").conv for name, conv in branches.items())
    weight, bias = first.weight.detach().double(), bias64(first)
    for other in others:
        rows, columns = ((a - b) // 2 for a, b in zip(first.kernel_size, other.kernel_size, strict=True))
        weight = weight + F.pad(other.weight.detach().double(), (columns, columns, rows, rows))
        bias = bias + bias64(other)
    folded = fold_into(first, weight, bias)
    wide = [double_copy(conv) for conv in branches.values()]
    check_fold(
        path, "branches", lambda x: torch.stack([w(x) for w in wide]).sum(0), double_copy(folded), probe_of(first)
    )
    return folded


def bias64(conv: nn.Conv2d) -> Tensor:
    """The bias of a folded convolution in float64."""
    assert conv.bias is not None
    return conv.bias.detach().double()


def unit_conv(like: nn.Conv2d) -> nn.Conv2d:
    """The convolution that changes nothing: a one at the centre of each channel's own kernel."""
    kernel = torch.zeros_like(like.weight)
    channels = torch.arange(like.in_channels)
    kernel[channels, channels % (like.in_channels // like.groups), 1, 1] = 1
    unit = fold_into(like, kernel, torch.zeros(like.out_channels))
    unit.bias = None
    return unit


def double_copy(module: nn.Module) -> nn.Module:
    """An eval copy in float64, to check a fold with."""
    return copy.deepcopy(module).double().eval()
