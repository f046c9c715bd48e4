"""Norms over the channels of each pixel."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["LayerNorm2d"]

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

    def random_weights(self) -> None:
        """Such that a wrong order or a lost bias shows."""
        nn.init.uniform_(self.weight, 0.8, 1.2)
        nn.init.normal_(self.bias, std=0.1)
