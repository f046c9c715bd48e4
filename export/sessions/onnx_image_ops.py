"""ONNX operators of images in torch: convolutions, pools, and what moves pixels.

Definitions: https://onnx.ai/onnx/operators/ (Apache-2.0).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["IMAGE_OPERATORS", "Attributes", "Operator", "UnsupportedFormError", "Values", "accumulate_fp32", "required"]

Values = Sequence[Tensor | None]
Attributes = Mapping[str, Any]
Operator = Callable[[Values, Attributes], Tensor | tuple[Tensor, ...]]


class UnsupportedFormError(Exception):
    """A form of an operator that only the reference implementation covers."""


def required(value: Tensor | None) -> Tensor:
    """Return an input that an operator cannot do without."""
    assert value is not None, "the operator needs this input"
    return value


def accumulate_fp32(function: Callable[..., Tensor], *values: Tensor | None) -> Tensor:
    """Compute a sum of products of rounded values in float32 and round it once."""
    kind = required(values[0]).dtype
    if kind not in (torch.float16, torch.bfloat16):
        return function(*values)
    return function(*(None if v is None else v.float() for v in values)).to(kind)


def _padded(x: Tensor, attributes: Attributes, spatial: int, value: float) -> tuple[Tensor, list[int]]:
    """Apply padding that torch's operators lack; return the padded input and the padding left for the operator."""
    pads = list(attributes.get("pads", [0] * 2 * spatial))
    before, after = pads[:spatial], pads[spatial:]
    if before == after:
        return x, before
    both = [side for pair in zip(reversed(before), reversed(after), strict=True) for side in pair]
    return functional.pad(x, both, value=value), [0] * spatial


def _explicit(attributes: Attributes) -> None:
    if attributes.get("auto_pad", "NOTSET") != "NOTSET":
        raise UnsupportedFormError(f"auto_pad {attributes['auto_pad']}")


def _conv(values: Values, attributes: Attributes) -> Tensor:
    _explicit(attributes)
    x, weight, *bias = values
    spatial = required(x).dim() - 2
    x, padding = _padded(required(x), attributes, spatial, 0.0)
    function = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}[spatial]

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return function(
            x,
            weight,
            bias,
            stride=list(attributes.get("strides", [1] * spatial)),
            padding=padding,
            dilation=list(attributes.get("dilations", [1] * spatial)),
            groups=attributes.get("group", 1),
        )

    return accumulate_fp32(run, x, weight, *bias)


def _conv_transpose(values: Values, attributes: Attributes) -> Tensor:
    _explicit(attributes)
    x, weight, *bias = values
    spatial = required(x).dim() - 2
    pads = list(attributes.get("pads", [0] * 2 * spatial))
    extra = list(attributes.get("output_padding", [0] * spatial))
    if pads[:spatial] != pads[spatial:] or "output_shape" in attributes:
        raise UnsupportedFormError("ConvTranspose with uneven pads or an output_shape")
    function = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}[spatial]

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return function(
            x,
            weight,
            bias,
            stride=list(attributes.get("strides", [1] * spatial)),
            padding=pads[:spatial],
            output_padding=extra,
            groups=attributes.get("group", 1),
            dilation=list(attributes.get("dilations", [1] * spatial)),
        )

    return accumulate_fp32(run, x, weight, *bias)


def _max_pool(values: Values, attributes: Attributes) -> Tensor:
    _explicit(attributes)
    x = required(values[0])
    spatial = x.dim() - 2
    x, padding = _padded(x, attributes, spatial, -math.inf)
    function = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}[spatial]
    kernel = list(attributes["kernel_shape"])
    if any(2 * pad > side for pad, side in zip(padding, kernel, strict=True)):
        raise UnsupportedFormError("MaxPool with pads over half its kernel")
    pooled: Tensor = function(
        x,
        kernel,
        stride=list(attributes.get("strides", [1] * spatial)),
        padding=padding,
        dilation=list(attributes.get("dilations", [1] * spatial)),
        ceil_mode=bool(attributes.get("ceil_mode", 0)),
    )
    return pooled


def _average_pool(values: Values, attributes: Attributes) -> Tensor:
    _explicit(attributes)
    x = required(values[0])
    spatial = x.dim() - 2
    pads = list(attributes.get("pads", [0] * 2 * spatial))
    dilated = any(step != 1 for step in attributes.get("dilations", ()))
    if dilated or attributes.get("ceil_mode", 0) or pads[:spatial] != pads[spatial:]:
        raise UnsupportedFormError("AveragePool with uneven pads, dilations or a size that is rounded up")
    function = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}[spatial]
    size, steps = list(attributes["kernel_shape"]), list(attributes.get("strides", [1] * spatial))
    if any(2 * pad > side for pad, side in zip(pads, size, strict=False)):
        raise UnsupportedFormError("AveragePool with pads over half its kernel")
    return function(x, size, steps, pads[:spatial], count_include_pad=bool(attributes.get("count_include_pad", 0)))


def _pad(values: Values, attributes: Attributes) -> Tensor:
    x, rest = required(values[0]), values[2:]
    pads = required(values[1]).tolist()
    if attributes.get("mode", "constant") != "constant" or (len(rest) > 1 and rest[1] is not None):
        raise UnsupportedFormError("Pad other than with a constant on all axes")
    ends = [side for axis in reversed(range(x.dim())) for side in (pads[axis], pads[axis + x.dim()])]
    return functional.pad(x, ends, value=float(rest[0]) if rest and rest[0] is not None else 0.0)


def _resize(values: Values, attributes: Attributes) -> Tensor:
    """Enlarge by whole factors to the nearest pixel; the reference does every other form."""
    x = required(values[0])
    scales = values[2] if len(values) > 2 and values[2] is not None and values[2].numel() else None
    if scales is None:
        raise UnsupportedFormError("Resize by sizes")
    factors = [float(s) for s in scales]
    nearest = attributes.get("mode", "nearest") == "nearest"
    rule = (attributes.get("coordinate_transformation_mode", "half_pixel"), attributes.get("nearest_mode"))
    whole = all(f == int(f) for f in factors) and factors[:2] == [1.0, 1.0]
    if not nearest or not whole or rule not in {("asymmetric", "floor"), ("half_pixel", "round_prefer_floor")}:
        raise UnsupportedFormError("Resize other than by whole factors to the nearest pixel")
    for axis, factor in enumerate(factors[2:], start=2):
        x = x.repeat_interleave(int(factor), axis)
    return x


def _depth_to_space(values: Values, attributes: Attributes) -> Tensor:
    x, block = required(values[0]), attributes["blocksize"]
    if attributes.get("mode", "DCR") == "CRD":
        return functional.pixel_shuffle(x, block)
    batch, channels, height, width = x.shape
    parts = x.reshape(batch, block, block, channels // block**2, height, width)
    return parts.permute(0, 3, 4, 1, 5, 2).reshape(batch, -1, height * block, width * block)


def _space_to_depth(values: Values, attributes: Attributes) -> Tensor:
    x, block = required(values[0]), attributes["blocksize"]
    batch, channels, height, width = x.shape
    parts = x.reshape(batch, channels, height // block, block, width // block, block)
    return parts.permute(0, 3, 5, 1, 2, 4).reshape(batch, -1, height // block, width // block)


IMAGE_OPERATORS: dict[str, Operator] = {
    "AveragePool": _average_pool,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "DepthToSpace": _depth_to_space,
    "GlobalAveragePool": lambda values, _: required(values[0]).mean(
        tuple(range(2, required(values[0]).dim())), keepdim=True
    ),
    "MaxPool": _max_pool,
    "Pad": _pad,
    "Resize": _resize,
    "SpaceToDepth": _space_to_depth,
}
"""Operator -> its function, which raises :class:`UnsupportedFormError` for forms that it leaves to the reference."""
