"""One row of a description to the module that it names, and to how many channels that gives."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from deploykit.models.layers.anchor_head import Detect, IKeypoint, Keypoint, Segment
from deploykit.models.layers.conv import Add, Concat, ReOrg, Shortcut
from deploykit.models.layers.pose_object import PoseObject
from deploykit.models.yolo_graph.description import MAX_CHANNELS, GraphConfig, literal
from deploykit.models.yolo_graph.layer_table import CONVOLUTIONS, HEADS, SAME_CHANNELS, STACKS, unknown_layer

ACTIVATED = frozenset({"Conv", "DWConv", "GhostConv", "RepConv", "Focus", "ConvFocus"})
"""Layers of which an argument can be an activation: True is the usual one, False is none."""

BEFORE_DILATION = {"Conv": 4, "DWConv": 2}
"""How many arguments come before the dilation that YOLOv5 has had there since 6.2, where others have the activation."""


def repeats_of_row(repeats: int, config: GraphConfig) -> int:
    """How often a row's layer is repeated.

    Raises:
        ValueError: less than once.
    """
    if repeats < 1:
        raise ValueError(f"it is repeated {repeats} times, expected at least 1")
    return max(round(repeats * config.depth_multiple), 1) if repeats > 1 else 1


def layer_of_row(
    kind: str, arguments: list[Any], inputs: list[int], count: int, config: GraphConfig, i: int
) -> tuple[nn.Module, int]:
    """One row's module and how many channels it gives."""
    names = {"nc": config.num_classes, "nkpt": config.num_keypoints}
    args = [literal(a, names) for a in arguments]
    if kind in CONVOLUTIONS or kind in STACKS:
        out = _divisible(args[0] * config.width_multiple) if args[0] != _outputs(config) else args[0]
        if not 1 <= out <= MAX_CHANNELS:
            raise ValueError(f"it gives {out} channels, expected 1 to {MAX_CHANNELS}")
        text = next((a for a in args if isinstance(a, str)), None)
        if text is not None:
            raise ValueError(f"its argument {text!r} is neither a number nor an activation")
        if kind in STACKS:
            return STACKS[kind](inputs[0], out, count, *args[1:]), out
        return _repeated(CONVOLUTIONS[kind], [inputs[0], out, *_ordered(kind, args[1:])], count), out
    if kind in SAME_CHANNELS:
        return _repeated(SAME_CHANNELS[kind], args, count), inputs[0]
    if kind in HEADS:
        return _head(kind, inputs, config, args, keypoints="nkpt" in arguments), 0
    if kind == "Concat":
        return Concat(*args), sum(inputs)
    if kind == "Shortcut":
        return Shortcut(), inputs[0]
    if kind == "ADD":
        return Add(*args), inputs[0]
    if kind == "ReOrg":
        return ReOrg(), inputs[0] * 4
    if kind == "nn.Upsample":
        return nn.Upsample(*args), inputs[0]
    raise unknown_layer(i, kind)


def _ordered(kind: str, args: list[Any]) -> list[Any]:
    """A convolution's arguments after its channels, with an activation and a dilation where our class has them."""
    at = BEFORE_DILATION.get(kind, len(args))
    if at < len(args) and type(args[at]) is int:
        args = [*args[:at], *(args[at + 1 :] or [None]), args[at]]
    if kind not in ACTIVATED:
        return args
    return [None if a is True else nn.Identity() if a is False else a for a in args]


def _head(kind: str, inputs: list[int], config: GraphConfig, args: list[Any], *, keypoints: bool) -> Detect:
    expected = len(config.anchors) * (2 if kind == "IAuxDetect" else 1)
    if len(inputs) != expected:
        raise ValueError(
            f"it is fed by {len(inputs)} layers, its {len(config.anchors)} levels of anchors need {expected}"
        )
    if kind == "Detect" and config.num_coords:
        return PoseObject(config.num_classes, config.anchors, inputs, config.num_coords)
    if kind == "Segment":
        masks, width = args[2] if len(args) > 2 else 32, args[3] if len(args) > 3 else 256
        width = _divisible(width * config.width_multiple)
        if not (1 <= masks <= MAX_CHANNELS and 1 <= width <= MAX_CHANNELS):
            raise ValueError(f"it has {masks} masks of {width} channels, expected 1 to {MAX_CHANNELS}")
        return Segment(config.num_classes, config.anchors, inputs, masks, width)
    # edgeai-yolov5 calls its keypoint head Detect, and yolov7-face has one with implicits that it calls IDetect.
    if kind != "IKeypoint" and not (kind in ("Detect", "IDetect") and keypoints):
        return HEADS[kind](config.num_classes, config.anchors, inputs)
    if not config.num_keypoints:
        raise ValueError("a keypoint head needs nkpt, the number of keypoints")
    head = Keypoint if kind == "Detect" else IKeypoint
    return head(config.num_classes, config.anchors, inputs, config.num_keypoints, config.depthwise_keypoints)


def _repeated(kind: type[nn.Module], args: list[Any], count: int) -> nn.Module:
    return nn.Sequential(*(kind(*args) for _ in range(count))) if count > 1 else kind(*args)


def _outputs(config: GraphConfig) -> int:
    """Upstream leaves a convolution of exactly the head's width unscaled; its anchors count is that of level 0."""
    return len(config.anchors[0]) // 2 * (config.num_classes + config.num_coords + 5)


def _divisible(x: float, by: int = 8) -> int:
    return math.ceil(x / by) * by
