"""Ways up: what undoes a pooling, in forms that ONNX Runtime and TensorRT both run (docs/unpooling.md).

torch's ``max_unpool2d`` becomes ONNX's MaxUnpool or a scatter, which TensorRT for RTX does not build; the indices that
ONNX's MaxPool gives count over the whole tensor, and torch's within a plane. So nothing here has indices: where a
maximum was is kept as a mask.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["BilinearDeconvolution", "MaskedMaxPool", "MaskedUnpool", "Unpool", "UnpoolMode", "bilinear_kernel"]

UnpoolMode = Literal["fixed", "div", "rep"]


class MaskedMaxPool(nn.Module):
    """Max pooling of ``side`` x ``side`` pixels without overlap, and where the maxima were.

    ``(B, C, H, W)``, whose sides are multiples of ``side``, to ``(B, C, H / side, W / side)`` and a mask
    ``(B, C, H, W)`` with a 1 in each window, at the first of its largest values row by row, as torch's indices are.
    """

    def __init__(self, side: int = 2) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        side = self.side
        parts = [x[:, :, i::side, j::side] for i in range(side) for j in range(side)]
        best = parts[0]
        for part in parts[1:]:
            best = torch.maximum(best, part)
        free = torch.ones_like(best)
        masks = []
        for part in parts:  # the first one takes the place, and leaves none to the others
            here = free * (part == best).to(x.dtype)
            free = free - here
            masks.append(here)
        return best, _interleaved(masks, side)


class MaskedUnpool(nn.Module):
    """What :class:`MaskedMaxPool` pooled, back at its places, and zeros elsewhere.

    ``(B, C, h, w)`` and the mask ``(B, C, h side, w side)`` to ``(B, C, h side, w side)``: the values of torch's
    ``max_unpool2d``.
    """

    def __init__(self, side: int = 2) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return _repeated(x, self.side) * mask


class Unpool(nn.Module):
    """A value to a window of ``side`` x ``side`` pixels: ``(B, C, H, W)`` to ``(B, C, H side, W side)``.

    ``fixed``: in its middle (of an even side the pixel left of and above it), zeros around; ``div``: a share of
    ``1 / side^2`` to each pixel, so that the sum stays; ``rep``: repeated. The three modes of Caffe's unpooling layers,
    as ParseNet (arXiv 1506.04579) uses them.
    """

    def __init__(self, side: int, mode: UnpoolMode = "fixed") -> None:
        super().__init__()
        self.side, self.mode = side, mode

    def forward(self, x: Tensor) -> Tensor:
        side = self.side
        if self.mode == "fixed":
            middle = (side - 1) // 2
            zeros = torch.zeros_like(x)
            places = [(i, j) for i in range(side) for j in range(side)]
            return _interleaved([x if place == (middle, middle) else zeros for place in places], side)
        repeated = _repeated(x, side)
        return repeated / (side * side) if self.mode == "div" else repeated


def _interleaved(parts: list[Tensor], side: int) -> Tensor:
    """Pixel (i, j) of each window from part ``i * side + j``."""
    batch, channels, height, width = parts[0].shape
    stacked = torch.stack(parts, 2).reshape(batch, channels * side * side, height, width)
    return functional.pixel_shuffle(stacked, side)


def _repeated(x: Tensor, side: int) -> Tensor:
    return functional.interpolate(x, scale_factor=float(side), mode="nearest")


def bilinear_kernel(side: int) -> Tensor:
    """``(side, side)``, the weights by which a transposed convolution of stride ``side // 2`` interpolates."""
    factor = (side + 1) // 2
    middle = factor - 1 if side % 2 else factor - 0.5
    line = 1 - (torch.arange(side, dtype=torch.float64) - middle).abs() / factor
    return (line[:, None] * line).float()


class BilinearDeconvolution(nn.ConvTranspose2d):
    """A transposed convolution that enlarges each channel by itself, bilinearly: ``(B, C, H, W)`` to
    ``(B, C, (H - 1) stride + side, (W - 1) stride + side)``.

    Its weights are ``(C, C, side, side)`` and zero between channels, as FCN's files hold them. :meth:`fuse` makes a
    convolution of one group per channel of it, where they are.
    """

    def __init__(self, channels: int, side: int, stride: int) -> None:
        super().__init__(channels, channels, side, stride, bias=False)

    def random_weights(self, gain: float) -> None:
        """See :meth:`fill`: the weights are not learned."""
        self.fill()

    def fill(self) -> None:
        """Give the weights the values that interpolate."""
        with torch.no_grad():
            self.weight.zero_()
            self.weight[range(self.in_channels), range(self.in_channels)] = bilinear_kernel(self.kernel_size[0])

    def fuse(self, path: str) -> nn.ConvTranspose2d:
        """One group per channel where nothing goes from one channel to another; else the layer itself."""
        weight = self.weight.detach()
        channels = range(self.in_channels)
        between = weight.clone()
        between[channels, channels] = 0
        if self.in_channels == 1 or bool(between.any()):
            return self
        size, stride = self.kernel_size[0], self.stride[0]
        new = nn.ConvTranspose2d(self.in_channels, self.in_channels, size, stride, groups=self.in_channels, bias=False)
        new.weight = nn.Parameter(weight[channels, channels][:, None].clone(), requires_grad=False)
        return new
