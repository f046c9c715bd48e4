"""Self-attention and its block (arXiv 2010.11929), as an exporter likes them: a product, a softmax, a product.

Keys are those of timm's and MAE's vision transformers (``attn.qkv``, ``attn.proj``, ``mlp.fc1``, ``mlp.fc2``).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from deploykit.models.fuse import check_fold, shared_copy

__all__ = ["EPS", "MLP_ACTIVATIONS", "Attention", "Mlp", "TransformerBlock", "attend", "scaled_rows"]

EPS = 1e-6  # of layer norms; PyTorch's own default is 1e-5, and no tensor says so


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """``softmax(q k^T + bias) v`` for ``(B, heads, N, d)``, ``(B, heads, M, d)``; ``q`` is scaled already.

    Written out, and not as PyTorch's one operator: that is exported as these nodes with two further multiplications,
    and these are what TensorRT looks for to put its fused kernel in their place.
    """
    logits = q @ k.transpose(-2, -1)
    if bias is not None:
        logits = logits + bias
    return logits.softmax(-1) @ v


def scaled_rows(layer: nn.Linear, factor: float, rows: int, path: str) -> nn.Linear:
    """A linear layer whose first ``rows`` outputs are multiplied by ``factor``.

    Raises:
        FoldError: it does not compute that.
    """
    new = shared_copy(layer)
    factors = torch.ones(layer.out_features)
    factors[:rows] = factor
    new.weight = nn.Parameter(layer.weight.detach() * factors[:, None].to(layer.weight), requires_grad=False)
    if layer.bias is not None:
        new.bias = nn.Parameter(layer.bias.detach() * factors.to(layer.bias), requires_grad=False)
    generator = torch.Generator().manual_seed(layer.in_features)
    probe = torch.randn(2, layer.in_features, generator=generator, dtype=torch.float64)
    wide, narrow = _double(layer), _double(new)
    check_fold(path, "scale of the queries", lambda x: wide(x) * factors, narrow, probe)
    return new


def _double(layer: nn.Linear) -> nn.Linear:
    return shared_copy(layer).double()


class Attention(nn.Module):
    """Attention of all tokens to all: ``(B, N, dim)`` to the same; ``bias`` as :func:`attend` has it.

    ``fuse()`` puts the scale of the queries into their weights.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        if self.scale != 1.0:
            q = q * self.scale
        joined = attend(q, k, v, bias).transpose(1, 2).reshape(batch, tokens, dim)
        out: Tensor = self.proj(joined)
        return out

    def fuse(self, path: str) -> nn.Module:
        """The same with the scale in the weights of the queries."""
        new = shared_copy(self)
        new.qkv = scaled_rows(self.qkv, self.scale, self.qkv.in_features, f"{path}.qkv")
        new.scale = 1.0
        return new


class QuickGelu(nn.Module):
    """``x sigmoid(1.702 x)``, which CLIP's transformers have for a GELU (openai/CLIP, MIT)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (1.702 * x).sigmoid()


MLP_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu-tanh": lambda: nn.GELU("tanh"),
    "quick-gelu": QuickGelu,
}


class Mlp(nn.Module):
    """Two linear layers and a GELU, or another one of :data:`MLP_ACTIVATIONS`, between them."""

    def __init__(self, dim: int, hidden: int, activation: str = "gelu") -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = MLP_ACTIVATIONS[activation]()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class TransformerBlock(nn.Module):
    """Attention and the two layers, each of the normalised tokens and added to them: ``(B, N, dim)`` to the same."""

    def __init__(self, dim: int, heads: int, hidden: int, *, eps: float = EPS, activation: str = "gelu") -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, hidden, activation)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out
