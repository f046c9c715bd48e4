"""The layers that a row ``[from, repeats, layer, arguments]`` can name, and the activations; nothing is evaluated."""

from __future__ import annotations

import re
import reprlib

from torch import nn

from deploykit.errors import UnknownLayerError
from deploykit.models.layers import lite
from deploykit.models.layers.anchor_head import Detect, IAuxDetect, IDetect, IKeypoint, Segment
from deploykit.models.layers.conv import Conv, DownC, DWConv
from deploykit.models.layers.csp import C3, Bottleneck, BottleneckCSP
from deploykit.models.layers.focus import ConvFocus, Focus
from deploykit.models.layers.ghost import C3Ghost, GhostBottleneck, GhostConv
from deploykit.models.layers.pool import MP, SP, SPF, SPP, SPPCSPC, SPPF, SPPFCSPC, ZeroPad2d
from deploykit.models.layers.rep import RepConv

CONVOLUTIONS: dict[str, type[nn.Module]] = {
    "Conv": Conv,
    "DWConv": DWConv,
    "GhostConv": GhostConv,
    "RepConv": RepConv,
    "Focus": Focus,
    "ConvFocus": ConvFocus,
    "Bottleneck": Bottleneck,
    "GhostBottleneck": GhostBottleneck,
    "SPP": SPP,
    "SPPF": SPPF,
    "SPPFCSPC": SPPFCSPC,
    "StemBlock": lite.StemBlock,
    "Shuffle_Block": lite.ShuffleBlock,
    "DWConvblock": lite.DWConvblock,
    "conv_bn_relu_maxpool": lite.ConvBnReluMaxpool,
}
"""Layers whose first argument is the number of output channels, scaled by ``width_multiple``."""

STACKS: dict[str, type[nn.Module]] = {
    "C3": C3,
    "BottleneckCSP": BottleneckCSP,
    "C3Ghost": C3Ghost,
    "DownC": DownC,
    "SPPCSPC": SPPCSPC,
}
"""The same, and a row's repeats are the layer's third argument (how many bottlenecks it has): it is not repeated."""

SAME_CHANNELS: dict[str, type[nn.Module]] = {
    "MP": MP,
    "SP": SP,
    "SPF": SPF,
    "nn.MaxPool2d": nn.MaxPool2d,
    "nn.AvgPool2d": nn.AvgPool2d,
    "nn.ZeroPad2d": ZeroPad2d,
    "nn.Identity": nn.Identity,
}
HEADS: dict[str, type[Detect]] = {
    "Detect": Detect,
    "IDetect": IDetect,
    "IAuxDetect": IAuxDetect,
    "IKeypoint": IKeypoint,
    "Segment": Segment,
}
OTHERS = ("Concat", "Shortcut", "ADD", "ReOrg", "nn.Upsample")
KNOWN = tuple(sorted((*CONVOLUTIONS, *STACKS, *SAME_CHANNELS, *HEADS, *OTHERS)))

ACTIVATIONS: dict[str, type[nn.Module]] = {
    name: getattr(nn, name)
    for name in ("SiLU", "ReLU", "ReLU6", "LeakyReLU", "Hardswish", "Mish", "GELU", "ELU", "Sigmoid", "Identity")
}

MAX_TEXT = 64  # characters of an argument


def activation(text: str) -> nn.Module:
    """``"nn.LeakyReLU(0.1)"`` to the module, without evaluating it.

    Raises:
        UnknownLayerError: not an activation that deploykit has.
    """
    # The length is looked at first: a pattern takes quadratic time on a megabyte of blanks.
    number = r"(?:(?:negative_slope|alpha)=)?(-?\d*\.?\d+(?:e-?\d+)?)"
    pattern = rf"nn\.(\w+)\(\s*(?:{number})?\s*(?:,?\s*inplace=(?:True|False))?\)"
    match = re.fullmatch(pattern, text) if len(text) <= MAX_TEXT else None
    if match is None or match[1] not in ACTIVATIONS:
        known = ", ".join(f"nn.{name}()" for name in ACTIVATIONS)
        raise UnknownLayerError(f"unknown activation {reprlib.repr(text)}; known: {known}")
    return ACTIVATIONS[match[1]](*([float(match[2])] if match[2] else []))


def unknown_layer(i: int, kind: str) -> UnknownLayerError:
    """The error for a row that names a layer which is not in the tables."""
    return UnknownLayerError(
        f"layer {i} of the model's description is {reprlib.repr(kind)}, which deploykit does not have; "
        f"it has {', '.join(KNOWN)}"
    )
