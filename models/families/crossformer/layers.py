"""Blocks of CrossFormer (arXiv 2108.00154; cheerss/CrossFormer, MIT): keys and numbers are the original's, the code is
ours.

Attention within groups: of neighbours (short distance), or of every I-th token (long distance). Tensors have at most
six dimensions on the way, where the original has eight: that many are all that TensorRT allows.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from deploykit.models.layers.attention import Attention, Mlp

__all__ = ["CrossAttention", "CrossBlock", "CrossEmbed", "DynamicBias", "Merging", "grouped", "ungrouped"]

MASKED = -1e6  # added to the logits of keys that are padding


def grouped(x: Tensor, group: int, interval: int) -> Tensor:
    """``(B, H, W, C)`` as groups of ``group`` x ``group`` tokens that lie ``interval`` apart, ``(N, group^2, C)``.

    H and W are multiples of ``group * interval``.
    """
    batch, rows, columns, channels = x.shape
    side = group * interval
    if interval > 1:  # large windows first, then the tokens of each that belong together
        down, right = rows // side, columns // side
        if down * right > 1:
            x = x.reshape(batch, down, side, right, side, channels).transpose(2, 3)
        x = x.reshape(batch * down * right, group, interval, group, interval, channels).permute(0, 2, 4, 1, 3, 5)
    else:
        x = x.reshape(batch, rows // group, group, columns // group, group, channels).transpose(2, 3)
    return x.reshape(-1, group * group, channels)


def ungrouped(x: Tensor, group: int, interval: int, rows: int, columns: int) -> Tensor:
    """What :func:`grouped` was given, ``(B, rows, columns, C)``."""
    channels = x.shape[2]
    side = group * interval
    down, right = rows // side, columns // side
    if interval > 1:
        x = x.reshape(-1, interval, interval, group, group, channels).permute(0, 3, 1, 4, 2, 5)
    if down * right > 1:
        x = x.reshape(-1, down, right, side, side, channels).transpose(2, 3)
    return x.reshape(-1, rows, columns, channels)


class DynamicBias(nn.Module):
    """The bias of two places of a group, by a small network of their distance."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.pos_proj = nn.Linear(2, dim)
        for i, out in ((1, dim), (2, dim), (3, heads)):
            self.add_module(f"pos{i}", nn.Sequential(nn.LayerNorm(dim), nn.ReLU(), nn.Linear(dim, out)))

    def forward(self, group: int) -> Tensor:
        """``(heads, group^2, group^2)``; where the size is fixed, the exporter computes that and drops the network."""
        device = self.pos_proj.weight.device
        steps = torch.arange(1 - group, group, device=device).to(self.pos_proj.weight.dtype)
        side = 2 * group - 1
        down, right = steps[:, None].expand(side, side), steps.expand(side, side)
        x = self.pos_proj(torch.stack((down, right), -1).reshape(side * side, 2))
        for i in (1, 2, 3):
            norm, act, linear = self.get_submodule(f"pos{i}").children()
            # By hand, because the exporter computes these operators in advance and a layer norm not.
            x = x - x.mean(1, keepdim=True)
            x = x / (x.square().mean(1, keepdim=True) + norm.eps).sqrt()
            x = linear(act(x * norm.weight + norm.bias))
        cells = torch.arange(group, device=device)
        apart = cells[:, None] - cells[None] + group - 1
        index = apart[:, None, :, None] * side + apart[None, :, None, :]
        bias: Tensor = x[index.reshape(-1)].reshape(group**2, group**2, -1).permute(2, 0, 1)
        return bias


class CrossAttention(Attention):
    """Attention within groups: ``(N, group^2, dim)`` to the same."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads)
        self.pos = DynamicBias(dim // 16, heads)  # the original divides by four twice; its paper says D/4

    def within(self, x: Tensor, group: int, mask: Tensor | None) -> Tensor:
        """``mask``: of the keys of each of an image's groups, ``(groups, 1, 1, group^2)``."""
        bias = self.pos(group)
        if mask is not None:
            bias = (bias[None] + mask).repeat(x.shape[0] // len(mask), 1, 1, 1)
        return self.forward(x, bias)


class CrossBlock(nn.Module):
    """Attention of short (``far`` False) or long distance, and two layers: ``(B, H, W, C)`` to the same.

    Maps whose shorter side is no longer than the group are one group, whatever the distance. Others are padded on the
    right and below with zeros that no token attends to.
    """

    def __init__(self, dim: int, heads: int, hidden: int, *, group: int, interval: int, far: bool) -> None:
        super().__init__()
        self.group, self.interval, self.far = group, interval, far
        self.norm1 = nn.LayerNorm(dim)
        self.attn = CrossAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = x.shape[1:3]
        group, interval = self.layout(rows, columns)
        side = group * interval
        below, right = -rows % side, -columns % side
        normed, mask = self.norm1(x), None
        if below or right:
            normed = functional.pad(normed, (0, 0, 0, right, 0, below))
            mask = self._mask(rows, columns, group, interval, x)
        out = self.attn.within(grouped(normed, group, interval), group, mask)
        x = x + ungrouped(out, group, interval, rows + below, columns + right)[:, :rows, :columns]
        y: Tensor = x + self.mlp(self.norm2(x))
        return y

    def layout(self, rows: int, columns: int) -> tuple[int, int]:
        """Tokens a side of a group, and how far apart they lie."""
        if min(rows, columns) <= self.group:
            return max(rows, columns), 1
        return self.group, self.interval if self.far else 1

    @staticmethod
    def _mask(rows: int, columns: int, group: int, interval: int, like: Tensor) -> Tensor:
        side = group * interval
        filled = torch.zeros(1, rows, columns, 1, dtype=like.dtype, device=like.device)
        filled = functional.pad(filled, (0, 0, 0, -columns % side, 0, -rows % side), value=MASKED)
        return grouped(filled, group, interval).reshape(-1, 1, 1, group * group)


class CrossEmbed(nn.Module):
    """Tokens from patches of several sizes around the same places: ``(B, C, H, W)`` to ``(B, H/4, W/4, dim)``."""

    def __init__(self, channels: int, dims: tuple[int, ...], kernels: tuple[int, ...]) -> None:
        super().__init__()
        stride = kernels[0]
        parts = zip(dims, kernels, strict=True)
        self.projs = nn.ModuleList(nn.Conv2d(channels, d, k, stride, (k - stride) // 2) for d, k in parts)
        self.norm = nn.LayerNorm(sum(dims))

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.norm(torch.cat([proj(images) for proj in self.projs], 1).permute(0, 2, 3, 1))
        return out


class Merging(nn.Module):
    """Half the size and twice the width: ``(B, H, W, dim)`` to ``(B, H/2, W/2, 2 dim)``."""

    def __init__(self, dim: int, kernels: tuple[int, ...] = (2, 4)) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.reductions = nn.ModuleList(nn.Conv2d(dim, dim, k, 2, (k - 2) // 2) for k in kernels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x).permute(0, 3, 1, 2)
        return torch.cat([reduction(x) for reduction in self.reductions], 1).permute(0, 2, 3, 1)
