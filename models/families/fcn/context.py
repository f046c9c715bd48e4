"""ParseNet's context module (arXiv 1506.04579; weiliu89/caffe, BSD-2-Clause): the image's mean beside each pixel.

Features of different layers have lengths of different orders; so both are brought to length 1 and scaled by learned
factors before they meet.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deploykit.models.layers.pool import GlobalMean

__all__ = ["GlobalContext", "L2Norm", "LateContext"]

EPS = 1e-10
SCALE = 10.0  # at the beginning of training


class L2Norm(nn.Module):
    """Each pixel's channels as a vector of length 1, times a learned factor per channel: ``(B, C, H, W)`` to the same.

    The eps stands inside the root, as in Caffe's layer; lengths are computed in units of its root, because torch's
    exporter drops a sum with 1e-10, and a pixel without any length would become NaN. The length is one ONNX operator
    (ReduceL2), which half precision leaves in fp32 with what follows up to the division: the squares of thousands of
    channels go over what fp16 holds.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels,), SCALE))

    def forward(self, x: Tensor) -> Tensor:
        root = EPS**0.5
        length = torch.linalg.vector_norm(x, dim=1, keepdim=True) / root
        unit: Tensor = x / (torch.sqrt(length * length + 1.0) * root)
        return unit * self.scale.view(1, -1, 1, 1)

    def random_weights(self, gain: float) -> None:
        """Factors that are not all the same."""
        nn.init.uniform_(self.scale, 0.8 * SCALE, 1.2 * SCALE)


class GlobalContext(nn.Module):
    """Early fusion: ``(B, C, H, W)`` beside its global mean, which is repeated at each pixel, scored together."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.mean = GlobalMean()
        self.norm_local, self.norm_global = L2Norm(channels), L2Norm(channels)
        self.score = nn.Conv2d(2 * channels, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        whole = self.norm_global(self.mean(x))
        scores: Tensor = self.score(torch.cat((self.norm_local(x), whole.expand(x.shape)), 1))
        return scores


class LateContext(nn.Module):
    """Late fusion: both are scored by themselves, and the scores added with learned weights."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.mean = GlobalMean()
        self.norm_local, self.norm_global = L2Norm(channels), L2Norm(channels)
        self.score = nn.Conv2d(channels, num_classes, 1)
        self.score_global = nn.Conv2d(channels, num_classes, 1)
        self.weights = nn.Parameter(torch.full((2,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        whole = self.score_global(self.norm_global(self.mean(x)))
        scores: Tensor = self.weights[0] * self.score(self.norm_local(x)) + self.weights[1] * whole
        return scores

    def random_weights(self, gain: float) -> None:
        """Weights that are not the same."""
        nn.init.uniform_(self.weights, 0.3, 0.7)
