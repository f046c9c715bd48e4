"""Random transformers with the outliers of trained ones, which are what hurts in fp16 and int8.

Published of trained vision transformers, and built here:

* A few fixed channels of the residual stream are much larger than the others, at all tokens: ranges of channels of a
  LayerNormalization's input go over 40 times their median (Y. Lin et al., "FQ-ViT", arXiv 2111.13824).
* Massive activations: in a few fixed channels of a few fixed tokens, values over 100 and a thousand times the median,
  which appear in one early block and stay up to the last ones, whatever the image (M. Sun et al., "Massive Activations
  in Large Language Models", arXiv 2402.17762, which found them in CLIP's and DINOv2's ViT-L too).
* Gains of LayerNormalizations make outliers of some channels of what they give (X. Wei et al., "Outlier Suppression",
  arXiv 2209.13325); the weights behind them stay ordinary.
* Logits of attention that grow with training (M. Dehghani et al., "Scaling Vision Transformers to 22 Billion
  Parameters", arXiv 2302.05442).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from deploykit.models.families.vit import VisionTransformer
from deploykit.models.families.vitdet.model import PlainBackbone
from deploykit.models.layers.attention import Mlp

READERS = ("attn.qkv", "attn.q", "attn.k", "attn.v", "mlp.fc1", "mlp.conv1.0")
"""Layers that take normalised tokens, by their names in a block."""

WRITERS = ("mlp.fc2", "mlp.conv2.1")
"""What writes to the residual stream last: a linear layer, or the batch norm behind one."""


@dataclass(frozen=True)
class Outliers:
    """How large they are: ``stream`` and ``massive`` as values, ``gain`` and ``logits`` as factors; 0 or 1: none."""

    stream: float = 20.0
    massive: float = 400.0
    gain: float = 16.0
    logits: float = 48.0
    channels: int = 2


def add_outliers(network: nn.Module, outliers: Outliers | None = None, seed: int = 0) -> nn.Module:
    """Give a network with random weights outliers, in place, and return it."""
    outliers = outliers or Outliers()
    generator = torch.Generator().manual_seed(seed)
    groups: dict[tuple[int, str], list[nn.Module]] = {}
    for name, module in network.named_modules():
        if isinstance(getattr(module, "norm1", None), nn.LayerNorm) and hasattr(module, "attn"):
            width = module.norm1.weight.numel()
            groups.setdefault((width, name.rpartition(".")[0]), []).append(module)
    with torch.no_grad():
        for (width, _), blocks in groups.items():
            chosen = torch.randperm(width, generator=generator)[: 2 * outliers.channels]
            for block in blocks:
                _amplify(block, chosen[: outliers.channels], outliers)
            if len(blocks) > 1:  # they appear in the first block and are gone after the last
                rest = chosen[outliers.channels :]
                for block, sign in ((blocks[0], 1.0), (blocks[-1], -1.0)):
                    writer = next(filter(partial(_has, block), WRITERS))
                    _parameter(block, f"{writer}.bias")[rest] += sign * outliers.stream
        for part in network.modules():
            if isinstance(part, (VisionTransformer, PlainBackbone)) and outliers.massive:
                _add_massive(part, chosen, outliers)
    return network


def _amplify(block: nn.Module, channels: Tensor, outliers: Outliers) -> None:
    """Large gains, with weights behind them of which each channel still matters twice as much, and large logits."""
    norms = [one for one in (block.norm1, block.norm2) if isinstance(one, nn.LayerNorm)]
    for norm in norms:
        norm.weight[channels] *= outliers.gain
    for name in filter(partial(_has, block), READERS):
        _parameter(block, f"{name}.weight")[:, channels] *= 2 / outliers.gain
    heads = block.get_submodule("attn").heads
    assert isinstance(heads, int)
    rows = norms[0].weight.numel() // heads  # of the queries of the first head
    queries = "attn.qkv" if _has(block, "attn.qkv") else "attn.q"
    _parameter(block, f"{queries}.weight")[:rows] *= outliers.logits


def _parameter(module: nn.Module, name: str) -> Tensor:
    return module.get_parameter(name).data


def _has(block: nn.Module, name: str) -> bool:
    try:
        block.get_submodule(name)
    except AttributeError:
        return False
    return True


def _add_massive(network: VisionTransformer | PlainBackbone, chosen: Tensor, outliers: Outliers) -> None:
    """One neuron of the second block fires at one token alone, and one of the last block undoes it.

    That is the class token; a ViTDet has none, so there it is the first cell of the map, with its neighbours.
    """
    if isinstance(network, VisionTransformer):
        direction = network.cls_token[0, 0] + network.pos_embed[0, 0]
    else:
        direction = network.pos_embed[0, 1].clone()
    direction[chosen] = 0.0  # so that the outliers themselves do not make it fire
    direction = (direction - direction.mean()) / direction.norm()
    massive = chosen[outliers.channels :]
    row = 20 * len(direction) ** -0.5 * direction  # about 10 at that token, and 0 +- 0.7 at others of 768 channels
    for number, sign in ((min(1, len(network.blocks) - 1), 1.0), (len(network.blocks) - 1, -1.0)):
        mlp = network.blocks[number].get_submodule("mlp")
        assert isinstance(mlp, Mlp)
        mlp.fc1.weight[0], mlp.fc1.bias[0] = row, -3.0
        mlp.fc2.weight[:, 0] = 0.0
        mlp.fc2.weight[massive, 0] = sign * outliers.massive / 10
