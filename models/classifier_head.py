"""The head of a classifier as people rebuild it: one linear layer, or several by their numbers in an nn.Sequential."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from deploykit.errors import CheckpointError, UsageError
from deploykit.models.fuse import check_fold, shared_copy
from deploykit.models.loading.shapes import CheckpointShapes

__all__ = [
    "HEAD_ACTIVATIONS",
    "HeadLayer",
    "LayeredHead",
    "ProbeHead",
    "activation_of",
    "head_assumption",
    "head_layers",
]

HEAD_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "tanh": lambda x: x.tanh(),
    "none": lambda x: x,
}


@dataclass(frozen=True)
class HeadLayer:
    """A layer with tensors: its number, its kind, its outputs, and whether it has a bias (of a norm: factors)."""

    index: int
    kind: Literal["linear", "batch-norm", "layer-norm"]
    width: int
    affine: bool = True


class LayeredHead(nn.Module):
    """``(B, channels)`` to ``(B, width of the last layer)``; the layers have their numbers as names.

    ``activation`` runs between a linear layer (with its norm) and the next layer where numbers are left out: what stood
    there has no tensors.
    """

    def __init__(self, channels: int, layers: tuple[HeadLayer, ...], activation: str = "relu") -> None:
        super().__init__()
        self.layers, self.activation = layers, HEAD_ACTIVATIONS[activation]
        for layer in layers:
            made: nn.Module
            if layer.kind == "linear":
                made = nn.Linear(channels, layer.width, bias=layer.affine)
                channels = layer.width
            elif layer.kind == "batch-norm":
                made = nn.BatchNorm1d(layer.width, affine=layer.affine)
            else:
                made = nn.LayerNorm(layer.width)
            self.add_module(str(layer.index), made)

    def forward(self, x: Tensor) -> Tensor:
        active = _after_gaps(self.layers)
        for layer in self.layers:
            if layer.index in active:
                x = self.activation(x)
            x = self.get_submodule(str(layer.index))(x)
        return x


def _after_gaps(layers: tuple[HeadLayer, ...]) -> set[int]:
    """The numbers of the layers before which an activation runs."""
    linear, found = False, set()
    for before, layer in pairwise(layers):
        linear = linear or before.kind == "linear"
        if linear and layer.index > before.index + 1:
            found.add(layer.index)
    return found


class ProbeHead(nn.Sequential):
    """MAE's linear probe: a batch norm without parameters and a linear layer, which fold into one layer."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__(nn.BatchNorm1d(dim, affine=False, eps=1e-6), nn.Linear(dim, num_classes))

    def fuse(self, path: str) -> nn.Module:
        """The linear layer that computes the same.

        Raises:
            FoldError: it does not.
        """
        norm, linear = self[0], self[1]
        assert isinstance(norm, nn.BatchNorm1d)
        assert isinstance(linear, nn.Linear)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        weight = linear.weight.detach().double() * scale
        bias = linear.bias.detach().double() - weight @ norm.running_mean.double()
        new = shared_copy(linear)
        new.weight = nn.Parameter(weight.to(linear.weight), requires_grad=False)
        new.bias = nn.Parameter(bias.to(linear.bias), requires_grad=False)
        generator = torch.Generator().manual_seed(linear.in_features)
        probe = torch.randn(4, linear.in_features, generator=generator, dtype=torch.float64)
        wide, narrow = shared_copy(self).double().eval(), shared_copy(new).double()
        check_fold(path, "batch norm", wide.forward, narrow, probe)
        return new


def head_layers(shapes: CheckpointShapes, name: str) -> tuple[HeadLayer, ...]:
    """The layers with tensors of the nn.Sequential of that name; none: there is no such head.

    Raises:
        CheckpointError: it has tensors and no linear layer, or one of a shape that no layer has.
    """
    pattern = re.compile(rf"{re.escape(name)}\.([0-9]{{1,2}})\.(?:weight|running_mean)")
    numbers = sorted({int(match[1]) for match in map(pattern.fullmatch, shapes.shapes) if match})
    layers = tuple(_layer(shapes, f"{name}.{number}", number) for number in numbers)
    if layers and all(layer.kind != "linear" for layer in layers):
        raise CheckpointError(f"{shapes.checkpoint.path}: its head {name} has no linear layer")
    return layers


def _layer(shapes: CheckpointShapes, at: str, index: int) -> HeadLayer:
    known = shapes.shapes
    if f"{at}.running_mean" in known:
        return HeadLayer(index, "batch-norm", shapes.shape(f"{at}.running_mean", 1)[0], f"{at}.weight" in known)
    if len(known[f"{at}.weight"]) == 1:
        return HeadLayer(index, "layer-norm", shapes.shape(f"{at}.weight", 1)[0])
    return HeadLayer(index, "linear", shapes.weight_shape(at, 2)[0], f"{at}.bias" in known)


def activation_of(shapes: CheckpointShapes, layers: tuple[HeadLayer, ...]) -> str:
    """The activation between the layers: the one that is asked for, else ReLU.

    Raises:
        UsageError: the head has none, or there is no activation of that name.
    """
    asked = shapes.checkpoint.loading.head_activation
    if asked is not None and not _after_gaps(layers):
        raise UsageError(f"--head-activation {asked}: the head of {shapes.checkpoint.path} has no place for one")
    if asked is not None and asked not in HEAD_ACTIVATIONS:
        raise UsageError(f"--head-activation must be one of {', '.join(HEAD_ACTIVATIONS)}, got {asked!r}")
    return asked or "relu"


def head_assumption(shapes: CheckpointShapes, name: str, layers: tuple[HeadLayer, ...]) -> tuple[str, ...]:
    """What is assumed of the layers without tensors: a sentence, or nothing."""
    if shapes.checkpoint.loading.head_activation is not None or not _after_gaps(layers):
        return ()
    numbers = ", ".join(f"{name}.{layer.index}" for layer in layers)
    return (f"ReLU where numbers are left out in its head ({numbers}): no tensor tells; choose with --head-activation",)
