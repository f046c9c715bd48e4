"""Stages with attention of YOLOv10, YOLO11 and YOLO12.

Facts from the published model descriptions (ultralytics, AGPL-3.0); the code is ours.
Papers: YOLOv10 (arXiv 2405.14458), YOLOv12 (arXiv 2502.12524).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deploykit.models.families.ultralytics.blocks.c2f import C2f, C3k
from deploykit.models.families.ultralytics.blocks.psa import (
    Attention,
    PSABlock,
    feed_forward,
    heads_of,
    weaken_added,
)
from deploykit.models.layers.attention import attend
from deploykit.models.layers.conv import Conv

__all__ = ["C2PSA", "PSA", "A2C2f", "AAttn", "ABlock", "Attention", "C2fPSA", "PSABlock"]

HEAD = 32
"""Channels of a head of :class:`A2C2f`."""


class PSA(nn.Module):
    """Attention and two 1x1 convolutions, each added, on the second half of the channels; nothing on the first.

    Raises:
        ValueError: the outputs are not as many as the inputs.
    """

    def __init__(self, c1: int, c2: int, e: float = 0.5) -> None:
        super().__init__()
        _same_width("PSA", c1, c2)
        self.c = int(c1 * e)
        self.cv1 = Conv(c1, 2 * self.c, 1)
        self.cv2 = Conv(2 * self.c, c1, 1)
        self.attn = Attention(self.c, heads_of(self.c))
        self.ffn = feed_forward(self.c, 2 * self.c)

    def forward(self, x: Tensor) -> Tensor:
        bypass, worked = self.cv1(x).split((self.c, self.c), 1)
        worked = worked + self.attn(worked)
        worked = worked + self.ffn(worked)
        out: Tensor = self.cv2(torch.cat((bypass, worked), 1))
        return out

    def random_weights(self, gain: float) -> None:
        """See :func:`weaken_added`."""
        weaken_added(self.attn, self.ffn, gain)


class C2PSA(nn.Module):
    """``n`` :class:`PSABlock` on the second half of the channels, nothing on the first.

    Raises:
        ValueError: the outputs are not as many as the inputs.
    """

    def __init__(self, c1: int, c2: int, n: int = 1, e: float = 0.5) -> None:
        super().__init__()
        _same_width("C2PSA", c1, c2)
        self.c = int(c1 * e)
        self.cv1 = Conv(c1, 2 * self.c, 1)
        self.cv2 = Conv(2 * self.c, c1, 1)
        self.m = nn.Sequential(*(PSABlock(self.c, heads=heads_of(self.c)) for _ in range(n)))

    def forward(self, x: Tensor) -> Tensor:
        bypass, worked = self.cv1(x).split((self.c, self.c), 1)
        out: Tensor = self.cv2(torch.cat((bypass, self.m(worked)), 1))
        return out


class C2fPSA(C2f):
    """C2f with ``n`` :class:`PSABlock`.

    Raises:
        ValueError: the outputs are not as many as the inputs.
    """

    def __init__(self, c1: int, c2: int, n: int = 1, e: float = 0.5) -> None:
        _same_width("C2fPSA", c1, c2)
        super().__init__(c1, c2, n, e=e, block=lambda c: PSABlock(c, heads=heads_of(c)))


class AAttn(nn.Module):
    """Attention of the pixels of an area to each other: ``(B, c, H, W)`` to the same.

    The pixels, row after row, are cut into ``area`` runs of one length, so H W must be a multiple of ``area``. The
    channels of ``qkv`` are those of one head after the other: queries, keys, values, as many of each. The values of
    the whole map pass a 7x7 depthwise convolution too.
    """

    def __init__(self, c: int, heads: int, area: int = 1) -> None:
        super().__init__()
        self.area = area
        self.num_heads = heads
        self.head_dim = c // heads
        self.qkv = Conv(c, 3 * c, 1, act=nn.Identity())
        self.proj = Conv(c, c, 1, act=nn.Identity())
        self.pe = Conv(c, c, 7, g=c, act=nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        run = height * width // self.area
        qkv = self.qkv(x).reshape(batch, self.num_heads, 3 * self.head_dim, self.area, run)
        values = qkv[:, :, 2 * self.head_dim :].reshape(batch, channels, height, width)
        # To attention an area is one more head.
        tokens = qkv.permute(0, 1, 3, 4, 2).reshape(batch, self.num_heads * self.area, run, 3 * self.head_dim)
        q, k, v = tokens.split(self.head_dim, -1)
        seen = attend(q * self.head_dim**-0.5, k, v).reshape(batch, self.num_heads, self.area, run, self.head_dim)
        joined = seen.permute(0, 1, 4, 2, 3).reshape(batch, channels, height, width)
        out: Tensor = self.proj(joined + self.pe(values))
        return out


class ABlock(nn.Module):
    """Attention within areas, then two 1x1 convolutions, each added to its input: ``(B, c, H, W)`` to the same."""

    def __init__(self, c: int, heads: int, mlp_ratio: float = 1.2, area: int = 1) -> None:
        super().__init__()
        self.attn = AAttn(c, heads, area)
        self.mlp = feed_forward(c, int(c * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        out: Tensor = x + self.mlp(x)
        return out

    def random_weights(self, gain: float) -> None:
        """See :func:`weaken_added`."""
        weaken_added(self.attn, self.mlp, gain)


class A2C2f(nn.Module):
    """``n`` blocks in a row on all hidden channels, every result kept: pairs of :class:`ABlock`, or C3k.

    ``a2``: the former. ``residual``: with them, the input is added to the result times a learned factor a channel.

    Raises:
        ValueError: the hidden channels are no multiple of 32, or the input cannot be added.
    """

    def __init__(
        self,
        c1: int,
        c2: int,
        n: int = 1,
        a2: bool = True,
        area: int = 1,
        residual: bool = False,
        mlp_ratio: float = 2.0,
        e: float = 0.5,
    ) -> None:
        super().__init__()
        hidden = int(c2 * e)
        if a2 and hidden % HEAD:
            raise ValueError(f"the hidden channels of A2C2f are a multiple of {HEAD}, got {hidden}")
        self.cv1 = Conv(c1, hidden, 1)
        self.cv2 = Conv((1 + n) * hidden, c2, 1)
        self.gamma = None
        if a2 and residual:
            _same_width("A2C2f with a residual", c1, c2)
            self.gamma = nn.Parameter(torch.full((c2,), 0.01))

        def block() -> nn.Module:
            if not a2:
                return C3k(hidden, hidden, 2)
            return nn.Sequential(*(ABlock(hidden, hidden // HEAD, mlp_ratio, area) for _ in range(2)))

        self.m = nn.ModuleList(block() for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        kept = [self.cv1(x)]
        for block in self.m:
            kept.append(block(kept[-1]))
        y: Tensor = self.cv2(torch.cat(kept, 1))
        return y if self.gamma is None else x + self.gamma[:, None, None] * y

    def random_weights(self, gain: float) -> None:
        """Factors around a half, so that the sum does not grow and an order that is wrong shows."""
        if self.gamma is not None:
            nn.init.uniform_(self.gamma, 0.3, 0.7)


def _same_width(what: str, c1: int, c2: int) -> None:
    if c1 != c2:
        raise ValueError(f"{what} gives as many channels as it gets, got {c1} and {c2}")
