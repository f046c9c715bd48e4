"""The classification head.

Facts from the published model descriptions (the original is AGPL-3.0); the code is ours.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from deploykit.models.layers.conv import Conv

__all__ = ["Classify"]

FEATURES = 1280


class Classify(nn.Module):
    """``(B, C, H, W)`` to logits ``(B, classes)``: 1x1 to 1280 channels, their mean over the image, a linear layer."""

    num_levels = 1

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.conv = Conv(channels, FEATURES)
        self.linear = nn.Linear(FEATURES, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.linear(self.conv(x).mean((2, 3))))

    def random_weights(self, gain: float) -> None:
        """Classes that differ: torch's own initial weights would leave them almost equal."""
        nn.init.normal_(self.linear.weight, std=FEATURES**-0.5 * 4)
        nn.init.zeros_(self.linear.bias)
