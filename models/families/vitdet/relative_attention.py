"""Attention on a grid with relative positions that depend on the query, in windows or over the whole map.

Of ViTDet (arXiv 2203.16527; detectron2, Apache-2.0) and MViTv2 (arXiv 2112.01526): the definition and the keys
(``attn.qkv``, ``attn.rel_pos_h``, ``attn.rel_pos_w``, ``attn.proj``) are facts taken over, the code is ours.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from deploykit.models.fuse import check_fold, shared_copy
from deploykit.models.layers.attention import EPS, Mlp, attend, scaled_rows
from deploykit.models.layers.norm import LayerNorm2d, randomise_affine

__all__ = [
    "FoldedRelativeAttention",
    "GridBlock",
    "RelativeAttention",
    "merge_windows",
    "partition_windows",
    "relative",
]

LOGITS = 64 * 2**20
"""Logits that are computed at once at most: 12 heads need 201 million for one image on 64 x 64 cells."""


def relative(table: Tensor, size: int) -> Tensor:
    """The positions of ``size`` keys as each of ``size`` queries sees them, ``(size, size, d)``.

    ``table`` ``(2 * n - 1, d)`` is of the distances of ``n`` cells; for another number it is interpolated linearly.
    """
    length = 2 * size - 1
    if table.shape[0] != length:
        table = functional.interpolate(table.T[None], size=length, mode="linear")[0].T
    distance = torch.arange(size)[:, None] - torch.arange(size)[None] + size - 1
    return table[distance.to(table.device)]


def partition_windows(x: Tensor, window: int) -> Tensor:
    """A map ``(B, H, W, C)`` as windows ``(B * n, window, window, C)``, padded with zeros at its right and bottom."""
    batch, height, width, channels = x.shape
    rows, columns = math.ceil(height / window), math.ceil(width / window)
    x = functional.pad(x, (0, 0, 0, columns * window - width, 0, rows * window - height))
    x = x.reshape(batch, rows, window, columns, window, channels).transpose(2, 3)
    return x.reshape(batch * rows * columns, window, window, channels)


def merge_windows(x: Tensor, batch: int, height: int, width: int) -> Tensor:
    """The map ``(batch, height, width, C)`` whose windows :func:`partition_windows` made."""
    window, channels = x.shape[1], x.shape[3]
    rows, columns = math.ceil(height / window), math.ceil(width / window)
    x = x.reshape(batch, rows, columns, window, window, channels).transpose(2, 3)
    return x.reshape(batch, rows * window, columns * window, channels)[:, :height, :width]


class RelativeAttention(nn.Module):
    """Attention of all cells of a map to all: ``(B, H, W, dim)`` to the same, as it is defined.

    The logit of a query and a key is ``scale * q.k + q.Rh[rows between them] + q.Rw[columns between them]``.
    ``cells`` is the side of the square that the tables of positions are of; those of other sides are interpolated.
    """

    def __init__(self, dim: int, heads: int, cells: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * cells - 1, dim // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * cells - 1, dim // heads))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        each = zip(*self.in_parts(q, *self.positions(q, *x.shape[1:3])), strict=True)
        values = [
            attend(some * self.scale, k, v, (down[..., :, None] + along[..., None, :]).flatten(-2))
            for some, down, along in each
        ]
        return self.joined(torch.cat(values, 2), x)

    def in_parts(self, *of_queries: Tensor) -> list[tuple[Tensor, ...]]:
        """Tensors ``(B, heads, N, ...)`` in parts of queries, all of one size: :data:`LOGITS`."""
        count = of_queries[0].shape[2]
        parts = math.ceil(self.heads * count**2 / LOGITS)
        parts = next(n for n in range(parts, count + 1) if count % n == 0)
        return [values.chunk(parts, 2) for values in of_queries]

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, ``(B, heads, H * W, d)``."""
        batch, height, width, dim = x.shape
        qkv = self.qkv(x).reshape(batch, height * width, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        return qkv[0], qkv[1], qkv[2]

    def positions(self, q: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """What is added for each row and for each column of keys: ``(B, heads, H * W, H)`` and ``(.., W)``."""
        grid = q.reshape(*q.shape[:2], height, width, q.shape[3])
        down = grid @ relative(self.rel_pos_h, height).transpose(1, 2)
        along = (grid.transpose(2, 3) @ relative(self.rel_pos_w, width).transpose(1, 2)).transpose(2, 3)
        return down.flatten(2, 3), along.flatten(2, 3)

    def joined(self, values: Tensor, x: Tensor) -> Tensor:
        """The heads side by side, and mixed: ``(B, heads, H * W, d)`` to the shape of ``x``."""
        out: Tensor = self.proj(values.transpose(1, 2).reshape(x.shape))
        return out

    def random_weights(self, gain: float) -> None:
        """Such that a wrong position shows."""
        nn.init.normal_(self.rel_pos_h, std=self.scale)
        nn.init.normal_(self.rel_pos_w, std=self.scale)

    def fuse(self, path: str) -> nn.Module:
        """As attention without a bias that depends on the query.

        Raises:
            FoldError: it does not compute the same.
        """
        new = FoldedRelativeAttention(self, path)
        cells = (self.rel_pos_h.shape[0] + 1) // 2
        side = min(cells, 6)
        generator = torch.Generator().manual_seed(cells)
        probe = torch.randn(1, side, side, self.qkv.in_features, generator=generator, dtype=torch.float64)
        before, after = shared_copy(self).double(), shared_copy(new).double()
        check_fold(path, "relative positions", before.forward, after, probe)
        return new


class FoldedRelativeAttention(RelativeAttention):
    """The same as one softmax between two products, which is what fused kernels compute.

    ``q.Rh[i - r] = sum over rows j of (q.Rh[i - j]) * (1 where j == r)``: what a query adds for each row and column is
    appended to it, and to each key where it lies, as ones and zeros. So the bias is part of the product, and no tensor
    of queries times keys has to be kept for it. Queries, keys and values get as many channels, a multiple of 8: that is
    what TensorRT fuses. Without a fused kernel the logits are what takes memory, so queries go in parts
    (:data:`LOGITS`).
    """

    def __init__(self, attention: RelativeAttention, path: str) -> None:
        nn.Module.__init__(self)
        self.heads, self.scale = attention.heads, 1.0  # it is in the weights, so that folding again changes nothing
        self.qkv = scaled_rows(attention.qkv, attention.scale, attention.qkv.in_features, f"{path}.qkv")
        self.proj = attention.proj
        for name in ("rel_pos_h", "rel_pos_w"):  # of queries that are scaled already
            table = getattr(attention, name).detach() / attention.scale
            setattr(self, name, nn.Parameter(table, requires_grad=False))

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        q, k, v = self.split(x)
        down, along = self.positions(q, height, width)
        more = -(-(q.shape[3] + height + width) // 8) * 8 - q.shape[3]
        q = functional.pad(torch.cat((q, down, along), 3), (0, more - height - width))
        k = functional.pad(k, (0, more)) + self.places(k, height, width, more)
        v = functional.pad(v, (0, more))
        values = torch.cat([attend(part, k, v) for part in self.in_parts(q)[0]], 2)
        return self.joined(values[..., : v.shape[3] - more], x)

    @staticmethod
    def places(k: Tensor, height: int, width: int, more: int) -> Tensor:
        """Ones where each key lies, behind zeros for its own channels: ``(H * W, d + more)``."""
        rows = functional.pad(torch.eye(height).repeat_interleave(width, 0), (k.shape[3], more - height))
        columns = functional.pad(torch.eye(width).repeat(height, 1), (k.shape[3] + height, more - height - width))
        return (rows + columns).to(k)


class Residual(nn.Module):
    """Three convolutions whose result is added: ``(B, H, W, dim)`` to the same."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        half = dim // 2
        self.conv1 = nn.Conv2d(dim, half, 1, bias=False)
        self.norm1 = LayerNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, bias=False)
        self.norm2 = LayerNorm2d(half)
        self.conv3 = nn.Conv2d(half, dim, 1, bias=False)
        self.norm3 = LayerNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        planes = x.permute(0, 3, 1, 2)
        planes = functional.gelu(self.norm1(self.conv1(planes)))
        planes = functional.gelu(self.norm2(self.conv2(planes)))
        out: Tensor = x + self.norm3(self.conv3(planes)).permute(0, 2, 3, 1)
        return out


class GridBlock(nn.Module):
    """A transformer's block on a map: ``(B, H, W, dim)`` to the same. ``window``: the side of what attends; 0: all.

    Windows are padded behind the norm and not masked: padded cells are keys whose values are the biases alone.
    """

    def __init__(self, dim: int, heads: int, hidden: int, window: int, map_size: int, residual: bool) -> None:
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.attn = RelativeAttention(dim, heads, window or map_size)
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.mlp = Mlp(dim, hidden)
        self.residual = Residual(dim) if residual else None

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm1(x)
        if self.window:
            batch, height, width, _ = x.shape
            normed = merge_windows(self.attn(partition_windows(normed, self.window)), batch, height, width)
        else:
            normed = self.attn(normed)
        x = x + normed
        x = x + self.mlp(self.norm2(x))
        if self.residual is not None:
            x = self.residual(x)
        return x

    def random_weights(self, gain: float) -> None:
        """Norms that matter, so that a lost one shows."""
        for norm in (self.norm1, self.norm2):
            randomise_affine(norm)
