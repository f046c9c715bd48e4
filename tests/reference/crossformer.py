"""A block of CrossFormer by its definition, a second time, in float64: every token asks for its own group.

No padding and no mask: the keys of a token are those tokens of the image that lie in its group.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

State = dict[str, Tensor]


def norm(x: Tensor, state: State, path: str) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt() * state[f"{path}.weight"] + state[f"{path}.bias"]


def linear(x: Tensor, state: State, path: str) -> Tensor:
    return x @ state[f"{path}.weight"].T + state[f"{path}.bias"]


def bias(down: int, right: int, state: State) -> Tensor:
    """Of each head, for a query so far below and to the right of a key, counted in the group's own steps."""
    x = linear(torch.tensor([down, right], dtype=torch.float64), state, "attn.pos.pos_proj")
    for i in (1, 2, 3):
        x = linear(norm(x, state, f"attn.pos.pos{i}.0").clamp(min=0), state, f"attn.pos.pos{i}.2")
    return x


def block(x: Tensor, state: State, heads: int, group: int, interval: int) -> Tensor:
    """``(H, W, C)`` to the same; ``interval`` is 1 for neighbours."""
    state = {key: value.double() for key, value in state.items()}
    x = x.double()
    rows, columns, dim = x.shape
    each, side = dim // heads, group * interval
    qkv = linear(norm(x, state, "norm1"), state, "attn.qkv")
    out = torch.zeros_like(x)
    for r in range(rows):
        for c in range(columns):
            keys = [
                (i, j)
                for i in range(r % interval, rows, interval)
                for j in range(c % interval, columns, interval)
                if (i // side, j // side) == (r // side, c // side)
            ]
            biases = [bias((r - i) // interval, (c - j) // interval, state) for i, j in keys]
            for h in range(heads):
                q = qkv[r, c, h * each : (h + 1) * each]
                k = torch.stack([qkv[i, j, dim + h * each : dim + (h + 1) * each] for i, j in keys])
                v = torch.stack([qkv[i, j, 2 * dim + h * each : 2 * dim + (h + 1) * each] for i, j in keys])
                powers = (k @ q / math.sqrt(each) + torch.stack([b[h] for b in biases])).exp()
                out[r, c, h * each : (h + 1) * each] = (powers / powers.sum()) @ v
    x = x + linear(out, state, "attn.proj")
    hidden = linear(norm(x, state, "norm2"), state, "mlp.fc1")
    hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
    return x + linear(hidden, state, "mlp.fc2")
