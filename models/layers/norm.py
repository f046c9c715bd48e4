"""LayerNorm2d over the channels of each pixel, and random weights of norms."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["LayerNorm2d", "randomise_affine", "scale_batch_norms"]

EPS = 1e-6


class LayerNorm2d(nn.Module):
    """Each pixel's channels, normalised by their mean and (biased) variance: ``(B, C, H, W)`` to the same.

    Written as a layer norm of the last axis between two transpositions, which exports as ONNX's LayerNormalization:
    ONNX Runtime runs that in half the time of means, squares and a root as operators of their own, TensorRT has a layer
    for it, and the rules of half precision keep its sums in fp32, whose values have been seen to go over 65504.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        last = x.permute(0, 2, 3, 1)
        return functional.layer_norm(last, self.weight.shape, self.weight, self.bias, EPS).permute(0, 3, 1, 2)

    def random_weights(self, gain: float) -> None:
        """See :func:`randomise_affine`."""
        randomise_affine(self)


def randomise_affine(norm: nn.LayerNorm | LayerNorm2d) -> None:
    """Weights around 1 and biases around 0, so that a wrong order and a lost bias show."""
    nn.init.uniform_(norm.weight, 0.8, 1.2)
    nn.init.normal_(norm.bias, std=0.1)


def scale_batch_norms(block: nn.Module, factor: float) -> None:
    """Multiply what every batch norm of a block gives by ``factor``."""
    for norm in (m for m in block.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.weight.data *= factor
        norm.bias.data *= factor
