"""Blocks of CMT (arXiv 2107.06263; huawei-noah/Efficient-AI-Backbones, cmt_pytorch, Apache-2.0): keys and numbers are
the original's, the code is ours.

Batch norms stand behind activations here. Where the next layer is a convolution that does not pad, they fold into
that; where it pads, zeros of the border are not normalised, so there they become a product and a sum a channel.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from deploykit.models.fuse import affine_of, fold_bn_into_next, fuse_model, shared_copy
from deploykit.models.layers.attention import EPS, attend, scaled_rows
from deploykit.models.layers.conv import FoldingSequential

__all__ = ["CmtBlock", "PatchEmbed", "as_map", "as_tokens", "resized_bias"]


def as_tokens(x: Tensor) -> Tensor:
    """``(B, C, H, W)`` as ``(B, H W, C)``."""
    return x.flatten(2).transpose(1, 2)


def as_map(x: Tensor, rows: int, columns: int) -> Tensor:
    """``(B, rows * columns, C)`` as ``(B, C, rows, columns)``."""
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], rows, columns)


def resized_bias(bias: Tensor, side: int, rows: int, columns: int, reduction: int) -> Tensor:
    """A stage's learned bias for maps of another size.

    Args:
        bias: ``(heads, side^2, (side / reduction)^2)``, of each query's place to each key's.
        side: cells per side of the map that it was trained for.
        rows: of the map now.
        columns: of the map now.
        reduction: cells of the map per side that one key covers.

    Returns:
        ``(heads, rows * columns, (rows // reduction) * (columns // reduction))``; both grids interpolated bicubically,
        the queries' and then the keys'. The paper interpolates the matrix as an image, which takes the end of one row
        for the neighbour of the next one's beginning. Where nothing changes, the values stay as they are.
    """
    heads, below = len(bias), side // reduction
    planes = bias.transpose(1, 2).reshape(1, heads * below * below, side, side)
    planes = functional.interpolate(planes, size=(rows, columns), mode="bicubic", align_corners=False)
    planes = planes.reshape(heads, below * below, rows * columns).transpose(1, 2)
    planes = planes.reshape(1, heads * rows * columns, below, below)
    size = (rows // reduction, columns // reduction)
    planes = functional.interpolate(planes, size=size, mode="bicubic", align_corners=False)
    return planes.reshape(heads, rows * columns, size[0] * size[1])


class PatchEmbed(nn.Module):
    """Half the size and another width: a 2 x 2 convolution and a layer norm of each pixel; gives ``(B, dim, h, w)``."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, 2, 2)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x)
        return as_map(self.norm(as_tokens(x)), x.shape[2], x.shape[3])


class Attention(nn.Module):
    """Attention whose keys and values are of a map made smaller by ``reduction``, and a bias that a stage shares."""

    def __init__(self, dim: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.q, self.k, self.v = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)
        self.sr: nn.Module = nn.Identity()
        if reduction > 1:
            self.sr = FoldingSequential(nn.Conv2d(dim, dim, reduction, reduction, groups=dim), nn.BatchNorm2d(dim))

    def forward(self, tokens: Tensor, rows: int, columns: int, bias: Tensor) -> Tensor:
        batch, count, dim = tokens.shape
        fewer = tokens
        if not isinstance(self.sr, nn.Identity):
            fewer = as_tokens(self.sr(as_map(tokens, rows, columns)))
        q = self.q(tokens)
        if self.scale != 1.0:
            q = q * self.scale
        out = attend(self._split(q), self._split(self.k(fewer)), self._split(self.v(fewer)), bias)
        joined: Tensor = self.proj(out.transpose(1, 2).reshape(batch, count, dim))
        return joined

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], -1, self.heads, x.shape[2] // self.heads).transpose(1, 2)

    def fuse(self, path: str) -> nn.Module:
        """The same with the batch norm in its convolution, and the scale in the weights of the queries."""
        new = shared_copy(self)
        new.q, new.scale = scaled_rows(self.q, self.scale, self.q.out_features, f"{path}.q"), 1.0
        new.sr = fuse_model(self.sr, f"{path}.sr")
        return new


class InvertedResidual(nn.Module):
    """Wider by a 1 x 1 convolution, a depthwise 3 x 3 one with its input added, and back; the map keeps its shape."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(dim, hidden, 1), nn.GELU(), nn.BatchNorm2d(hidden))
        self.proj = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.proj_act = nn.GELU()
        self.proj_bn: nn.Module = nn.BatchNorm2d(hidden)
        self.conv2: nn.Module = FoldingSequential(nn.Conv2d(hidden, dim, 1), nn.BatchNorm2d(dim))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        out: Tensor = self.conv2(self.proj_bn(self.proj_act(self.proj(x) + x)))
        return out

    def fuse(self, path: str) -> nn.Module:
        """The same with two of its three batch norms in the last convolution."""
        new = shared_copy(self)
        norm = self.conv1[2]
        assert isinstance(norm, nn.BatchNorm2d)
        new.conv1 = nn.Sequential(*list(new.conv1)[:2], affine_of(norm, f"{path}.conv1.2"))
        assert isinstance(self.conv2, FoldingSequential)
        assert isinstance(self.proj_bn, nn.BatchNorm2d)
        folded = self.conv2.fuse(f"{path}.conv2")[0]
        assert isinstance(folded, nn.Conv2d)
        new.conv2, new.proj_bn = fold_bn_into_next(self.proj_bn, folded, f"{path}.conv2"), nn.Identity()
        return new


class CmtBlock(nn.Module):
    """Local perception, attention and the inverted residual, each added to the map: ``(B, C, H, W)`` to the same."""

    def __init__(self, dim: int, heads: int, hidden: int, reduction: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.attn = Attention(dim, heads, reduction)
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.mlp = InvertedResidual(dim, hidden)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        rows, columns = x.shape[2:]
        tokens = as_tokens(self.proj(x) + x)
        tokens = tokens + self.attn(self.norm1(tokens), rows, columns, bias)
        normed = as_map(self.norm2(tokens), rows, columns)
        out: Tensor = as_map(tokens, rows, columns) + self.mlp(normed)
        return out
