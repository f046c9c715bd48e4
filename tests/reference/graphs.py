"""A whole network in numpy: an interpreter of layer rows ``[from, repeats, layer, arguments]`` over a state dict.

It shares the rows with ``deploykit.models`` as data, and nothing else: no builder, no module, no torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tests.reference import layers
from tests.reference.heads import Anchors, head
from tests.reference.layers import Activation, Array, Weights

BLOCKS: dict[str, Callable[..., Array]] = {
    "Conv": layers.conv,
    "RepConv": layers.rep_conv,
    "DownC": layers.down_c,
    "SPPF": layers.sppf,
    "StemBlock": layers.stem_block,
    "Shuffle_Block": layers.shuffle_block,
    "DWConvblock": layers.dw_conv_block,
    "DWConv": layers.dw_conv,
    "GhostConv": layers.ghost_conv,
    "SPP": layers.spp,
    "Focus": layers.focus,
    "ConvFocus": layers.conv_focus,
    "C3": layers.c3,
    "C3Ghost": layers.c3_ghost,
    "BottleneckCSP": layers.bottleneck_csp,
}
"""Layers that are called with what comes after the number of output channels, which their weights say already."""

STACKS = ("C3", "C3Ghost", "BottleneckCSP")  # their weights say how many bottlenecks they have


def run(
    rows: Sequence[Any], w: Weights, images: Array, anchors: Anchors, num_classes: int, act: Activation | None = None
) -> Array:
    """Images ``(B, 3, H, W)`` to the head's rows ``(B, N, columns)``; ``act``: where a row does not name one."""
    outputs: list[Array] = []
    for i, (origin, repeats, kind, arguments) in enumerate(rows):
        sources = [origin] if isinstance(origin, int) else origin
        inputs = [_output(outputs, images, s if s >= 0 else i + s) for s in sources]
        if kind.endswith(("Detect", "Keypoint")):
            strides = [images.shape[-1] / x.shape[-1] for x in inputs]
            keypoints = kind.endswith("Keypoint") or "nkpt" in arguments
            return head(inputs, w, f"model.{i}", anchors, strides, num_classes, keypoints=keypoints)
        whole = repeats == 1 or kind in STACKS
        for at in [f"model.{i}"] if whole else [f"model.{i}.{n}" for n in range(repeats)]:
            inputs = [_layer(kind, inputs, w, at, arguments, act)]
        outputs.append(inputs[0])
    raise AssertionError("the rows end without a head")


def _output(outputs: list[Array], images: Array, index: int) -> Array:
    return images if index == -1 else outputs[index]


def _layer(
    kind: str, inputs: list[Array], w: Weights, at: str, arguments: Sequence[Any], act: Activation | None
) -> Array:
    x = inputs[0]
    if kind in BLOCKS:
        named = {} if act is None else {"act": act}
        return BLOCKS[kind](x, w, at, *(_argument(a) for a in arguments[1:]), **named)
    if kind == "SPPCSPC":
        return layers.sppcspc(x, w, at)
    if kind == "conv_bn_relu_maxpool":
        return layers.conv_bn_relu_maxpool(x, w, at)
    if kind == "Concat":
        return np.concatenate(inputs, arguments[0])
    if kind == "Shortcut":
        return x + inputs[1]
    if kind == "ADD":
        return np.asarray(x + arguments[0] * inputs[1])
    if kind == "ReOrg":
        return layers.reorg(x)
    if kind == "MP":
        k = arguments[0] if arguments else 2
        return layers.max_pool(x, k, k)
    if kind == "SP":
        return layers.max_pool(x, arguments[0], 1, arguments[0] // 2)
    assert kind == "nn.Upsample", kind
    return layers.upsample(x, arguments[1])


def _argument(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return None if value == "None" else _activation(value)


def _activation(text: str) -> Activation:
    slope = re.fullmatch(r"nn\.LeakyReLU\((.*)\)", text)
    if slope:
        return lambda x: layers.leaky_relu(x, float(slope[1]))
    return {"nn.SiLU()": layers.silu, "nn.ReLU()": layers.relu}[text]
