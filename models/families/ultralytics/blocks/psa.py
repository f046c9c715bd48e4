"""Attention over the pixels of a map, and the block around it (YOLOv10, YOLO11, YOLO26).

Facts from the published model descriptions (ultralytics, AGPL-3.0); the code is ours.
Paper: YOLOv10 (arXiv 2405.14458).
"""

from __future__ import annotations

from torch import Tensor, nn

from deploykit.models.layers.attention import attend
from deploykit.models.layers.conv import Conv
from deploykit.models.layers.norm import scale_batch_norms

__all__ = ["Attention", "PSABlock", "feed_forward", "heads_of", "weaken_added"]


def heads_of(channels: int) -> int:
    """The heads of a block that is not told how many: one for every 64 channels."""
    return max(channels // 64, 1)


def feed_forward(channels: int, hidden: int) -> nn.Sequential:
    """Two 1x1 convolutions, the second without an activation."""
    return nn.Sequential(Conv(channels, hidden, 1), Conv(hidden, channels, 1, act=nn.Identity()))


def weaken_added(attn: nn.Module, mlp: nn.Sequential, gain: float) -> None:
    """Random weights of attention and of :func:`feed_forward` that are added to their input.

    ``gain`` makes up for what an activation takes away, so convolutions without one lose it. A third is added, and not
    the usual half: the products of queries and keys grow with the square of the sum, and with a half the blocks of
    YOLO12-X, eight in a row, end forty times as far from float64 (at 256 px).
    """
    for part in (attn, mlp[-1]):
        scale_batch_norms(part, 1 / gain)
    for last in (attn.get_submodule("proj"), mlp[-1]):
        scale_batch_norms(last, 0.35)


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
        """See :func:`weaken_added`."""
        if self.add:
            weaken_added(self.attn, self.ffn, gain)
