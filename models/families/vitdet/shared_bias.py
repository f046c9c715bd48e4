"""Attention on a grid with one learned bias for each distance, which blocks share.

Of BEiT (arXiv 2106.08254), as ViT-based Mask R-CNN uses it (arXiv 2111.11429): one table for all blocks whose windows
attend, one for all that attend over the whole map.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from deploykit.models.families.vitdet.relative_attention import LOGITS, merge_windows, partition_windows
from deploykit.models.layers.attention import EPS, Attention, Mlp, attend

__all__ = ["SharedBiasAttention", "SharedBiasBlock", "bias_of"]


def bias_of(table: Tensor, first: int, last: int, height: int, width: int) -> Tensor:
    """What is added for the queries of some rows of a map, ``(heads, (last - first) * width, height * width)``.

    ``table`` ``(heads, 2 * n - 1, 2 * n - 1)`` is of the distances of ``n`` cells, query minus key; for a map of
    another size it is interpolated bicubically. Two small gathers: one would need an index of queries times keys.
    """
    sides = (2 * height - 1, 2 * width - 1)
    if tuple(table.shape[1:]) != sides:
        table = functional.interpolate(table[None], size=sides, mode="bicubic", align_corners=True)[0]
    down = torch.arange(first, last)[:, None] - torch.arange(height)[None] + height - 1
    along = torch.arange(width)[:, None] - torch.arange(width)[None] + width - 1
    rows = table[:, down.to(table.device)]  # (heads, query rows, key rows, distances)
    cells = rows[..., along.to(table.device)].transpose(2, 3)  # (heads, query rows, query columns, key rows, columns)
    return cells.flatten(3).flatten(1, 2)


class SharedBiasAttention(Attention):
    """Attention of all cells of a map to all: ``(B, H, W, dim)`` to the same, with a table of biases."""

    def forward(self, x: Tensor, table: Tensor) -> Tensor:  # type: ignore[override]  # maps, where its base has tokens
        batch, height, width, dim = x.shape
        qkv = self.qkv(x).reshape(batch, height * width, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        if self.scale != 1.0:
            q = q * self.scale
        parts = min(math.ceil(self.heads * (height * width) ** 2 / LOGITS), height)
        each = math.ceil(height / parts)
        found = []
        for first in range(0, height, each):
            last = min(first + each, height)
            own = q[:, :, first * width : last * width]
            found.append(attend(own, k, v, bias_of(table, first, last, height, width)))
        out: Tensor = self.proj(torch.cat(found, 2).transpose(1, 2).reshape(x.shape))
        return out


class SharedBiasBlock(nn.Module):
    """A transformer's block on a map: ``(B, H, W, dim)`` to the same. ``window``: the side of what attends; 0: all."""

    def __init__(self, dim: int, heads: int, hidden: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.attn = SharedBiasAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.mlp = Mlp(dim, hidden)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        normed = self.norm1(x)
        if self.window:
            batch, height, width, _ = x.shape
            normed = merge_windows(self.attn(partition_windows(normed, self.window), table), batch, height, width)
        else:
            normed = self.attn(normed, table)
        x = x + normed
        out: Tensor = x + self.mlp(self.norm2(x))
        return out
