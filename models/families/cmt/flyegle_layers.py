"""Blocks of FlyEgle/CMT-pytorch, a network of its own beside the authors' CMT; its keys and numbers (of a project
without a licence) are facts taken over, the code is ours.

What is other than in :mod:`deploykit.models.families.cmt.layers`: keys and values come from a dense convolution and a
norm, of one layer whose outputs are interleaved; one table of relative positions serves all heads; the residual of the
inverted residual block is added behind the batch norm.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from deploykit.models.families.cmt.layers import as_map, as_tokens
from deploykit.models.fuse import affine_of, fuse_model, shared_copy
from deploykit.models.layers.attention import attend, scaled_rows
from deploykit.models.layers.conv import FoldingSequential

__all__ = ["ConvGeluBN", "FlyegleBlock"]


class ConvGeluBN(nn.Module):
    """A convolution, a GELU and a batch norm."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2)
        self.conv3x3_gelu_bn = nn.Sequential(conv, nn.GELU(), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv3x3_gelu_bn(x)
        return out

    def fuse(self, path: str) -> nn.Module:
        """The same with the batch norm as a product and a sum: what follows it pads or adds."""
        new, norm = shared_copy(self), self.conv3x3_gelu_bn[2]
        assert isinstance(norm, nn.BatchNorm2d)
        new.conv3x3_gelu_bn = nn.Sequential(*list(new.conv3x3_gelu_bn)[:2], affine_of(norm, path))
        return new


class Depthwise(nn.Module):
    """A depthwise 3 x 3 convolution."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out


class LocalPerception(nn.Module):
    """What is added to a map before its attention."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv_3x3_dw = Depthwise(dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv_3x3_dw(x)
        return out


class LightAttention(nn.Module):
    """Attention of a map's cells to those of a smaller one: ``(B, C, H, W)`` to the same.

    The bias of query i and key j is that of cell j and not of the cells that key j covers: the original takes the first
    columns of a square table. Tables are for one size; for another they are interpolated bicubically.
    """

    def __init__(self, dim: int, heads: int, reduction: int, side: int, *, biased: bool = True) -> None:
        super().__init__()
        self.heads, self.reduction, self.side, self.scale = heads, reduction, side, (dim // heads) ** -0.5
        self.q = nn.Linear(dim, dim, bias=biased)
        self.kv = nn.Linear(dim, 2 * dim, bias=biased)
        self.proj = nn.Linear(dim, dim)
        if reduction > 1:
            self.sr = nn.Conv2d(dim, dim, reduction, reduction)
            self.norm = nn.LayerNorm(dim)
        self.position_embeeding = nn.Parameter(torch.zeros(2 * side - 1, 2 * side - 1))
        self.split = False

    def forward(self, x: Tensor) -> Tensor:
        batch, dim, rows, columns = x.shape
        each = dim // self.heads
        tokens = as_tokens(x)
        fewer = self.norm(as_tokens(self.sr(x))) if self.reduction > 1 else tokens
        q = self.q(tokens).reshape(batch, rows * columns, self.heads, each).transpose(1, 2)
        if self.split:
            k, v = (part.unflatten(2, (self.heads, each)).transpose(1, 2) for part in self.kv(fewer).chunk(2, 2))
        else:
            q = q * self.scale
            kv = self.kv(fewer).reshape(batch, -1, each, self.heads, 2).permute(4, 0, 3, 1, 2)
            k, v = kv[0], kv[1]
        out = attend(q, k, v, self.bias(rows, columns)).transpose(1, 2).reshape(batch, rows * columns, dim)
        return as_map(self.proj(out), rows, columns)

    def bias(self, rows: int, columns: int) -> Tensor:
        """``(rows * columns, keys)``, the same for all heads."""
        size = (2 * rows - 1, 2 * columns - 1)
        table = functional.interpolate(
            self.position_embeeding[None, None], size=size, mode="bicubic", align_corners=False
        ).flatten()
        down = torch.arange(rows, device=table.device)[:, None].expand(rows, columns).flatten()
        right = torch.arange(columns, device=table.device).expand(rows, columns).flatten()
        keys = (rows // self.reduction) * (columns // self.reduction)
        down = down[None, :keys] - down[:, None] + rows - 1
        right = right[None, :keys] - right[:, None] + columns - 1
        return table[down * size[1] + right]

    def fuse(self, path: str) -> nn.Module:
        """The same with keys before values, each head's together, and the scale in the weights of the queries."""
        new = shared_copy(self)
        new.q = scaled_rows(self.q, self.scale, self.q.out_features, f"{path}.q")
        dim = self.q.out_features
        order = torch.arange(2 * dim).reshape(dim // self.heads, self.heads, 2).permute(2, 1, 0).flatten()
        new.kv.weight = nn.Parameter(self.kv.weight.detach()[order], requires_grad=False)
        if self.kv.bias is not None:
            new.kv.bias = nn.Parameter(self.kv.bias.detach()[order], requires_grad=False)
        new.split = True
        return new


class InvertedResidual(nn.Module):
    """Wider, a depthwise convolution whose result is added, and back: ``(B, C, H, W)`` to the same."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.conv1x1_gelu_bn: nn.Module = ConvGeluBN(dim, hidden, 1)
        self.conv3x3_dw = Depthwise(hidden)
        self.act = nn.Sequential(nn.GELU(), nn.BatchNorm2d(hidden))
        self.conv1x1_pw: nn.Module = FoldingSequential(nn.Conv2d(hidden, dim, 1), nn.BatchNorm2d(dim))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1x1_gelu_bn(x)
        out: Tensor = self.conv1x1_pw(x + self.act(self.conv3x3_dw(x)))
        return out

    def fuse(self, path: str) -> nn.Module:
        """The same with the last batch norm in its convolution and the others as a product and a sum."""
        new = shared_copy(self)
        new.conv1x1_gelu_bn = fuse_model(self.conv1x1_gelu_bn, f"{path}.conv1x1_gelu_bn")
        norm = self.act[1]
        assert isinstance(norm, nn.BatchNorm2d)
        new.act = nn.Sequential(nn.GELU(), affine_of(norm, f"{path}.act"))
        new.conv1x1_pw = fuse_model(self.conv1x1_pw, f"{path}.conv1x1_pw")
        return new


class FlyegleBlock(nn.Module):
    """Local perception, attention, inverted residual, each added to the map: ``(B, C, H, W)`` to the same."""

    def __init__(self, dim: int, heads: int, hidden: int, reduction: int, side: int, *, biased: bool = True) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.LPU = LocalPerception(dim)
        self.LMHSA = LightAttention(dim, heads, reduction, side, biased=biased)
        self.IRFFN = InvertedResidual(dim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = x.shape[2:]
        x = x + self.LPU(x)
        x = x + self.LMHSA(as_map(self.norm1(as_tokens(x)), rows, columns))
        out: Tensor = x + self.IRFFN(as_map(self.norm2(as_tokens(x)), rows, columns))
        return out
