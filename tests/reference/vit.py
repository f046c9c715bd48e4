"""Vision transformers by their definition, a second time: one head and one query after the other, in float64.

What is held against it: the order of the heads, the pooling, the positions. Weights come in by their keys.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

State = dict[str, Tensor]


def normalised(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / (variance + 1e-6).sqrt() * weight + bias


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def vit(images: Tensor, state: State, patch: int, heads: int, depth: int, head: str) -> Tensor:
    """``(B, C, H, W)`` of the grid that the positions are of."""
    state = {key: value.double() for key, value in state.items()}
    outputs = []
    for image in images.double():
        tokens = [state["cls_token"][0, 0] + state["pos_embed"][0, 0]]
        weight, bias = state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]
        for top in range(0, image.shape[1], patch):
            for left in range(0, image.shape[2], patch):
                cut = image[:, top : top + patch, left : left + patch]
                tokens.append((weight * cut).sum((1, 2, 3)) + bias + state["pos_embed"][0, len(tokens)])
        x = torch.stack(tokens)
        for i in range(depth):
            block = {key.removeprefix(f"blocks.{i}."): v for key, v in state.items() if key.startswith(f"blocks.{i}.")}
            x = x + attention(normalised(x, block["norm1.weight"], block["norm1.bias"]), block, heads)
            hidden = normalised(x, block["norm2.weight"], block["norm2.bias"])
            hidden = gelu(hidden @ block["mlp.fc1.weight"].T + block["mlp.fc1.bias"])
            x = x + hidden @ block["mlp.fc2.weight"].T + block["mlp.fc2.bias"]
        outputs.append(headed(x, state, head))
    return torch.stack(outputs)


def attention(x: Tensor, block: State, heads: int) -> Tensor:
    dim = x.shape[1]
    each = dim // heads
    qkv = x @ block["attn.qkv.weight"].T + block["attn.qkv.bias"]
    parts = []
    for h in range(heads):
        q, k, v = (qkv[:, part * dim + h * each : part * dim + (h + 1) * each] for part in range(3))
        rows = []
        for query in q:
            powers = torch.exp(k @ query / math.sqrt(each))
            rows.append((powers[:, None] * v).sum(0) / powers.sum())
        parts.append(torch.stack(rows))
    return torch.cat(parts, 1) @ block["attn.proj.weight"].T + block["attn.proj.bias"]


def headed(x: Tensor, state: State, head: str) -> Tensor:
    if head == "mean":
        x = normalised(x[1:].mean(0), state["fc_norm.weight"], state["fc_norm.bias"])
    else:
        x = normalised(x, state["norm.weight"], state["norm.bias"])
        x = x[1:].mean(0) if head in ("features", "avg") else x[0]
        if head in ("features", "token-features"):
            return x
    if head == "probe":
        x = (x - state["head.0.running_mean"]) / (state["head.0.running_var"] + 1e-6).sqrt()
        return x @ state["head.1.weight"].T + state["head.1.bias"]
    return x @ state["head.weight"].T + state["head.bias"]
