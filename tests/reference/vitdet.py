"""A block of ViTDet by its definition, a second time, in float64: every cell asks every cell of its own window.

Cells beyond the map's right and bottom are there, as zeros behind the norm, wherever a window reaches that far.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

State = dict[str, Tensor]


def norm(x: Tensor, state: State, path: str) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / (variance + 1e-6).sqrt() * state[f"{path}.weight"] + state[f"{path}.bias"]


def linear(x: Tensor, state: State, path: str) -> Tensor:
    return x @ state[f"{path}.weight"].T + state[f"{path}.bias"]


def at(table: Tensor, distance: int, cells: int) -> Tensor:
    """The position of a distance in a table of those of ``cells`` cells, which it may have to be stretched to."""
    place = distance + cells - 1
    length = 2 * cells - 1
    if len(table) == length:
        return table[place]
    exact = min(max((place + 0.5) * len(table) / length - 0.5, 0.0), len(table) - 1.0)
    low = math.floor(exact)
    high = min(low + 1, len(table) - 1)
    return table[low] + (exact - low) * (table[high] - table[low])


def block(x: Tensor, state: State, heads: int, window: int) -> Tensor:
    """``(H, W, C)`` to the same; ``window`` 0: all of the map."""
    state = {key: value.double() for key, value in state.items()}
    x = x.double()
    rows, columns, dim = x.shape
    each = dim // heads
    high, wide = window or rows, window or columns
    normed = torch.zeros(math.ceil(rows / high) * high, math.ceil(columns / wide) * wide, dim, dtype=torch.float64)
    normed[:rows, :columns] = norm(x, state, "norm1")
    qkv = linear(normed, state, "attn.qkv")
    mixed = torch.zeros_like(x)
    for r in range(rows):
        for c in range(columns):
            top, left = r // high * high, c // wide * wide
            for h in range(heads):
                part = slice(h * each, (h + 1) * each)
                q = qkv[r, c, :dim][part]
                logits, values = [], []
                for i in range(top, top + high):
                    for j in range(left, left + wide):
                        down = q @ at(state["attn.rel_pos_h"], r - i, high)
                        right = q @ at(state["attn.rel_pos_w"], c - j, wide)
                        logits.append(q @ qkv[i, j, dim : 2 * dim][part] / math.sqrt(each) + down + right)
                        values.append(qkv[i, j, 2 * dim :][part])
                shares = torch.softmax(torch.stack(logits), 0)
                mixed[r, c, part] = (shares[:, None] * torch.stack(values)).sum(0)
    x = x + linear(mixed, state, "attn.proj")
    hidden = linear(norm(x, state, "norm2"), state, "mlp.fc1")
    hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
    return x + linear(hidden, state, "mlp.fc2")
