"""FlyEgle's CMT by its definition, a second time, in float64: attention by loops over heads, queries and keys.

Weights come in by their keys. ``(B, 3, S, S)``, where S is the size that the tables of positions are of.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

State = dict[str, Tensor]
HEADS, REDUCTIONS = (1, 2, 4, 8), (8, 4, 2, 1)


def under(state: State, prefix: str) -> State:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def batch_norm(x: Tensor, state: State, path: str) -> Tensor:
    mean, var = state[f"{path}.running_mean"], state[f"{path}.running_var"]
    scale = state[f"{path}.weight"] / (var + 1e-5).sqrt()
    return (x - mean[:, None, None]) * scale[:, None, None] + state[f"{path}.bias"][:, None, None]


def layer_norm(x: Tensor, state: State, path: str) -> Tensor:
    """Of each pixel's channels."""
    mean = x.mean(1, keepdim=True)
    variance = ((x - mean) ** 2).mean(1, keepdim=True)
    scaled = (x - mean) / (variance + 1e-5).sqrt()
    return scaled * state[f"{path}.weight"][:, None, None] + state[f"{path}.bias"][:, None, None]


def conv(x: Tensor, state: State, path: str, stride: int = 1, padding: int = 0, groups: int = 1) -> Tensor:
    return functional.conv2d(x, state[f"{path}.weight"], state[f"{path}.bias"], stride, padding, groups=groups)


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def conv_gelu_bn(x: Tensor, state: State, stride: int, padding: int) -> Tensor:
    return batch_norm(gelu(conv(x, state, "conv3x3_gelu_bn.0", stride, padding)), state, "conv3x3_gelu_bn.2")


def attention(x: Tensor, state: State, heads: int, reduction: int) -> Tensor:
    dim, rows, columns = x.shape
    each = dim // heads
    small = x
    if reduction > 1:
        small = layer_norm(conv(x[None], state, "sr", reduction), state, "norm")[0]
    queries, cells = x.reshape(dim, -1).T, small.reshape(dim, -1).T
    q = queries @ state["q.weight"].T + state["q.bias"]
    kv = cells @ state["kv.weight"].T + state["kv.bias"]
    table, side = state["position_embeeding"], rows
    out = torch.zeros(rows * columns, dim, dtype=x.dtype)
    for h in range(heads):
        # A head's channels lie apart in keys and values: number d is at (d heads + h) 2, its value behind it.
        key = torch.stack([kv[:, (d * heads + h) * 2] for d in range(each)], 1)
        value = torch.stack([kv[:, (d * heads + h) * 2 + 1] for d in range(each)], 1)
        for i in range(rows * columns):
            logits = []
            for j in range(len(cells)):
                down, right = j // columns - i // columns, j % columns - i % columns
                bias = table[down + side - 1, right + side - 1]
                logits.append(q[i, h * each : (h + 1) * each] @ key[j] / math.sqrt(each) + bias)
            powers = torch.stack(logits).exp()
            out[i, h * each : (h + 1) * each] = (powers / powers.sum()) @ value
    return (out @ state["proj.weight"].T + state["proj.bias"]).T.reshape(dim, rows, columns)


def block(x: Tensor, state: State, heads: int, reduction: int) -> Tensor:
    dim = x.shape[1]
    x = x + conv(x, state, "LPU.conv_3x3_dw.conv", 1, 1, dim)
    normed = layer_norm(x, state, "norm1")
    x = x + torch.stack([attention(one, under(state, "LMHSA."), heads, reduction) for one in normed])
    ffn = under(state, "IRFFN.")
    y = conv_gelu_bn(layer_norm(x, state, "norm2"), under(ffn, "conv1x1_gelu_bn."), 1, 0)
    y = y + batch_norm(gelu(conv(y, ffn, "conv3x3_dw.conv", 1, 1, y.shape[1])), ffn, "act.1")
    return x + batch_norm(conv(y, ffn, "conv1x1_pw.0"), ffn, "conv1x1_pw.1")


def flyegle(images: Tensor, state: State, depths: tuple[int, ...]) -> Tensor:
    """Logits ``(B, classes)``."""
    state = {key: value.double() for key, value in state.items()}
    x = conv_gelu_bn(images.double(), under(state, "stem.conv3x3_gelu_bn_downsample."), 2, 1)
    for i in range(2):
        x = conv_gelu_bn(x, under(state, f"stem.conv3x3_gelu_bn_list.{i}."), 1, 1)
    for i, depth in enumerate(depths):
        x = conv(x, state, f"pool{i + 1}.patch_aggregation", 2)
        for j in range(depth):
            x = block(x, under(state, f"stage{i + 1}.block_list.{j}."), HEADS[i], REDUCTIONS[i])
    x = x.mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]
    return x @ state["classifier.weight"].T + state["classifier.bias"]
