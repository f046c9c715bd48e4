"""Attention over the pixels of a map, and the block around it (YOLOv10, YOLO11, YOLO26).

Facts from the published model descriptions (ultralytics, AGPL-3.0); the code is ours.
Paper: YOLOv10 (arXiv 2405.14458).
"""

from __future__ import annotations

from torch import Tensor, nn

from deploykit.models.layers.attention import attend
from deploykit.models.layers.conv import Conv
from deploykit.models.layers.norm import scale_batch_norms

__all__ = ["Attention", "PSABlock", "feed_forward", "halve_added", "heads_of"]


def heads_of(channels: int) -> int:
    """The heads of a block that is not told how many: one for every 64 channels."""
    return max(channels // 64, 1)


def feed_forward(channels: int, hidden: int) -> nn.Sequential:
    """Two 1x1 convolutions, the second without an activation."""
    return nn.Sequential(Conv(channels, hidden, 1), Conv(hidden, channels, 1, act=nn.Identity()))


def halve_added(*layers: nn.Module) -> None:
    """Random weights of layers whose results are added to a shortcut: half as much, so that the sum does not grow."""
    for layer in layers:
        scale_batch_norms(layer, 0.5)


class Attention(nn.Module):
    """Attention of all pixels to all, whose values pass a 3x3 depthwise convolution too: ``(B, c, H, W)`` to the same.

    The channels of ``qkv`` are those of one head after the other: its queries, its keys, its values. Queries and keys
    have ``ratio`` times the channels of the values.
    """

    def __init__(self, c: int, heads: int = 8, ratio: float = 0.5) -> None:
        super().__init__()
        self.num_heads = heads
        self.head_dim = c // heads
        self.key_dim = int(self.head_dim * ratio)
        self.scale = self.key_dim**-0.5
        self.qkv = Conv(c, c + 2 * self.key_dim * heads, 1, act=nn.Identity())
        self.proj = Conv(c, c, 1, act=nn.Identity())
        self.pe = Conv(c, c, 3, g=c, act=nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        qkv = self.qkv(x).reshape(batch, self.num_heads, 2 * self.key_dim + self.head_dim, height * width)
        q, k, v = qkv.split((self.key_dim, self.key_dim, self.head_dim), 2)
        tokens = attend((q * self.scale).transpose(-2, -1), k.transpose(-2, -1), v.transpose(-2, -1))
        seen = tokens.transpose(-2, -1).reshape(batch, channels, height, width)
        out: Tensor = self.proj(seen + self.pe(v.reshape(batch, channels, height, width)))
        return out


class PSABlock(nn.Module):
    """Attention, then two 1x1 convolutions, each added to its input where ``shortcut`` asks for it."""

    def __init__(self, c: int, ratio: float = 0.5, heads: int = 4, shortcut: bool = True) -> None:
        super().__init__()
        self.attn = Attention(c, heads, ratio)
        self.ffn = feed_forward(c, 2 * c)
        self.add = bool(shortcut)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x) if self.add else self.attn(x)
        y: Tensor = self.ffn(x)
        return x + y if self.add else y

    def random_weights(self, gain: float) -> None:
        """See :func:`halve_added`."""
        if self.add:
            halve_added(self.attn.proj, self.ffn[-1])
