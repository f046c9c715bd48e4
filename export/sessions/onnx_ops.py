"""ONNX operators in torch, one function each: the arithmetic of a graph as its own types say it.

Convolutions and matrix products of half and bfloat16 tensors multiply the rounded values and add in float32, and round
the sum once, which is what tensor cores do. Everything else is computed by torch in the tensor's type. Operators that
are not here run in onnx's own reference implementation (:mod:`deploykit.export.sessions.onnx_in_torch`).

Definitions: https://onnx.ai/onnx/operators/ (Apache-2.0).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["OPERATORS", "TORCH_TYPES", "ElsewhereError"]

Values = Sequence[Tensor | None]
Attributes = Mapping[str, Any]
Operator = Callable[[Values, Attributes], Tensor | tuple[Tensor, ...]]

TORCH_TYPES: dict[int, torch.dtype] = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool,
    10: torch.float16, 11: torch.float64, 16: torch.bfloat16, 17: torch.float8_e4m3fn,
}  # fmt: skip
"""ONNX's numbers of element types -> torch's types."""


class ElsewhereError(Exception):
    """A form of an operator that is not written here; the reference implementation has it."""


def _present(value: Tensor | None) -> Tensor:
    assert value is not None, "an input that the operator needs"
    return value


def _wide(function: Callable[..., Tensor], *values: Tensor | None) -> Tensor:
    """A sum of products: in float32 of rounded values, rounded once."""
    kind = _present(values[0]).dtype
    if kind not in (torch.float16, torch.bfloat16):
        return function(*values)
    return function(*(None if v is None else v.float() for v in values)).to(kind)


def _padded(x: Tensor, attributes: Attributes, spatial: int, value: float) -> tuple[Tensor, list[int]]:
    """The input with what of the padding torch's operators cannot do themselves, and the padding that is left."""
    pads = list(attributes.get("pads", [0] * 2 * spatial))
    before, after = pads[:spatial], pads[spatial:]
    if before == after:
        return x, before
    both = [side for pair in zip(reversed(before), reversed(after), strict=True) for side in pair]
    return functional.pad(x, both, value=value), [0] * spatial


def _explicit(attributes: Attributes) -> None:
    if attributes.get("auto_pad", "NOTSET") != "NOTSET":
        raise ElsewhereError(f"auto_pad {attributes['auto_pad']}")


def _conv(values: Values, attributes: Attributes) -> Tensor:
    _explicit(attributes)
    x, weight, *bias = values
    spatial = _present(x).dim() - 2
    x, padding = _padded(_present(x), attributes, spatial, 0.0)
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

    return _wide(run, x, weight, *bias)


def _conv_transpose(values: Values, attributes: Attributes) -> Tensor:
    _explicit(attributes)
    x, weight, *bias = values
    spatial = _present(x).dim() - 2
    pads = list(attributes.get("pads", [0] * 2 * spatial))
    extra = list(attributes.get("output_padding", [0] * spatial))
    if pads[:spatial] != pads[spatial:] or "output_shape" in attributes:
        raise ElsewhereError("ConvTranspose with uneven pads or an output_shape")
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

    return _wide(run, x, weight, *bias)


def _gemm(values: Values, attributes: Attributes) -> Tensor:
    def run(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        a = a.T if attributes.get("transA") else a
        b = b.T if attributes.get("transB") else b
        product: Tensor = a @ b * attributes.get("alpha", 1.0)
        return product if c is None else product + c * attributes.get("beta", 1.0)

    return _wide(run, *values)


def _max_pool(values: Values, attributes: Attributes) -> Tensor:
    _explicit(attributes)
    x = _present(values[0])
    spatial = x.dim() - 2
    x, padding = _padded(x, attributes, spatial, -math.inf)
    function = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}[spatial]
    kernel = list(attributes["kernel_shape"])
    if any(2 * pad > side for pad, side in zip(padding, kernel, strict=True)):
        raise ElsewhereError("MaxPool with pads over half its kernel")
    pooled: Tensor = function(
        x,
        kernel,
        stride=list(attributes.get("strides", [1] * spatial)),
        padding=padding,
        dilation=list(attributes.get("dilations", [1] * spatial)),
        ceil_mode=bool(attributes.get("ceil_mode", 0)),
    )
    return pooled


def _resize(values: Values, attributes: Attributes) -> Tensor:
    """Whole-number enlargement by the nearest pixel; every other kind is left to the reference."""
    x = _present(values[0])
    scales = values[2] if len(values) > 2 and values[2] is not None and values[2].numel() else None
    if scales is None:
        raise ElsewhereError("Resize by sizes")
    factors = [float(s) for s in scales]
    nearest = attributes.get("mode", "nearest") == "nearest"
    rule = (attributes.get("coordinate_transformation_mode", "half_pixel"), attributes.get("nearest_mode"))
    whole = all(f == int(f) for f in factors) and factors[:2] == [1.0, 1.0]
    if not nearest or not whole or rule not in {("asymmetric", "floor"), ("half_pixel", "round_prefer_floor")}:
        raise ElsewhereError("Resize but by whole factors to the nearest")
    for axis, factor in enumerate(factors[2:], start=2):
        x = x.repeat_interleave(int(factor), axis)
    return x


def _split(values: Values, attributes: Attributes) -> tuple[Tensor, ...]:
    x, axis = _present(values[0]), attributes.get("axis", 0)
    if len(values) > 1 and values[1] is not None:
        return torch.split(x, values[1].tolist(), axis)
    size = -(-x.shape[axis] // attributes["num_outputs"])
    return torch.split(x, size, axis)


def _reshape(values: Values, attributes: Attributes) -> Tensor:
    x, wanted = _present(values[0]), _present(values[1]).tolist()
    if not attributes.get("allowzero", 0):
        wanted = [x.shape[i] if side == 0 else side for i, side in enumerate(wanted)]
    return x.reshape(wanted)


def _slice(values: Values, attributes: Attributes) -> Tensor:
    x, rest = _present(values[0]), values[3:]
    starts, ends = _present(values[1]).tolist(), _present(values[2]).tolist()
    axes = rest[0].tolist() if rest and rest[0] is not None else list(range(len(starts)))
    steps = rest[1].tolist() if len(rest) > 1 and rest[1] is not None else [1] * len(starts)
    if min(steps, default=1) < 1:
        raise ElsewhereError("Slice backwards")
    index = [slice(None)] * x.dim()
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        index[axis] = slice(start, end, step)
    return x[tuple(index)]


def _transpose(values: Values, attributes: Attributes) -> Tensor:
    x = _present(values[0])
    return x.permute(attributes.get("perm") or tuple(reversed(range(x.dim()))))


def _concat(values: Values, attributes: Attributes) -> Tensor:
    return torch.cat([_present(v) for v in values], attributes["axis"])


def _cast(values: Values, attributes: Attributes) -> Tensor:
    x, kind = _present(values[0]), TORCH_TYPES[attributes["to"]]
    return x.to(kind)


def _softmax(values: Values, attributes: Attributes) -> Tensor:
    x = _present(values[0])
    return torch.softmax(x.float(), attributes.get("axis", -1)).to(x.dtype)  # as kernels do, of half values too


def _along(x: Tensor, values: Tensor, axis: int) -> Tensor:
    """A scale or zero point of one value, or of one for each index of an axis, in the shape that multiplies ``x``."""
    if values.numel() == 1:
        return values.reshape(())
    shape = [1] * x.dim()
    shape[axis] = -1
    return values.reshape(shape)


def _dequantize(values: Values, attributes: Attributes) -> Tensor:
    x, scale, *zero = values
    x, scale = _present(x), _present(scale)
    axis = attributes.get("axis", 1)
    wide = x.float()
    if zero and zero[0] is not None and x.dtype not in (torch.float8_e4m3fn,):
        wide = wide - _along(x, zero[0].float(), axis)
    return (wide * _along(x, scale.float(), axis)).to(scale.dtype)


def _quantize(values: Values, attributes: Attributes) -> Tensor:
    x, scale, *zero = values
    x, scale = _present(x), _present(scale)
    kind = zero[0].dtype if zero and zero[0] is not None else torch.uint8
    axis = attributes.get("axis", 1)
    ratio = x.float() / _along(x, scale.float(), axis)
    if kind == torch.float8_e4m3fn:
        return ratio.clamp(-448.0, 448.0).to(kind)
    shift = _along(x, zero[0].float(), axis) if zero and zero[0] is not None else 0.0
    limits = torch.iinfo(kind)
    return (torch.round(ratio) + shift).clamp(limits.min, limits.max).to(kind)


def _top(values: Values, attributes: Attributes) -> tuple[Tensor, ...]:
    """TopK; of equal values the lower index comes first, which torch's own does not promise."""
    x, count, axis = _present(values[0]), int(_present(values[1])), attributes.get("axis", -1)
    ordered, index = torch.sort(x, dim=axis, descending=bool(attributes.get("largest", 1)), stable=True)
    return ordered.narrow(axis, 0, count), index.narrow(axis, 0, count)


def _gather(values: Values, attributes: Attributes) -> Tensor:
    x, index, axis = _present(values[0]), _present(values[1]).long(), attributes.get("axis", 0)
    index = torch.where(index < 0, index + x.shape[axis], index)
    if x.dim() and index.dim() == 0:
        return x.select(axis, int(index))
    flat = x.index_select(axis, index.reshape(-1))
    axis %= x.dim()
    return flat.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


def _gather_elements(values: Values, attributes: Attributes) -> Tensor:
    x, index, axis = _present(values[0]), _present(values[1]), attributes.get("axis", 0)
    return torch.gather(x, axis, torch.where(index < 0, index + x.shape[axis], index))


def _shape(values: Values, attributes: Attributes) -> Tensor:
    sides = list(_present(values[0]).shape)
    return torch.tensor(sides[attributes.get("start", 0) : attributes.get("end", len(sides))])


def _unsqueeze(values: Values, _: Attributes) -> Tensor:
    x, axes = _present(values[0]), _present(values[1]).tolist()
    dims = x.dim() + len(axes)
    for axis in sorted(a % dims for a in axes):
        x = x.unsqueeze(axis)
    return x


def _squeeze(values: Values, _: Attributes) -> Tensor:
    x = _present(values[0])
    axes = values[1].tolist() if len(values) > 1 and values[1] is not None else None
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


def _reduce(function: Callable[..., Tensor]) -> Operator:
    """A reduction whose axes are an input (opset 18) or an attribute."""

    def run(values: Values, attributes: Attributes) -> Tensor:
        x = _present(values[0])
        axes = values[1].tolist() if len(values) > 1 and values[1] is not None else attributes.get("axes")
        if not axes and attributes.get("noop_with_empty_axes", 0):
            return x
        return function(x, tuple(axes or range(x.dim())), keepdim=bool(attributes.get("keepdims", 1)))

    return run


def _div(values: Values, _: Attributes) -> Tensor:
    a, b = _present(values[0]), _present(values[1])
    return torch.div(a, b) if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _expand(values: Values, _: Attributes) -> Tensor:
    x, shape = _present(values[0]), _present(values[1]).tolist()
    dims = max(x.dim(), len(shape))
    have = [1] * (dims - x.dim()) + list(x.shape)
    wanted = [1] * (dims - len(shape)) + shape
    return x.expand([side if side != 1 else own for side, own in zip(wanted, have, strict=True)])


def _of(function: Callable[..., Tensor]) -> Operator:
    """An operator whose ONNX inputs are the function's arguments."""
    return lambda values, _: function(*values)


def _clip(values: Values, _: Attributes) -> Tensor:
    x, *limits = values
    low, high = (*limits, None, None)[:2]
    return torch.clamp(_present(x), low, high) if low is not None or high is not None else _present(x)


OPERATORS: dict[str, Operator] = {
    "Add": _of(torch.add),
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "DequantizeLinear": _dequantize,
    "Div": _div,
    "Erf": _of(torch.erf),
    "Exp": _of(torch.exp),
    "Expand": _expand,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "Gemm": _gemm,
    "HardSigmoid": lambda values, a: torch.clamp(
        _present(values[0]) * a.get("alpha", 0.2) + a.get("beta", 0.5), 0.0, 1.0
    ),
    "HardSwish": _of(functional.hardswish),
    "Identity": _of(lambda x: x),
    "LeakyRelu": lambda values, a: functional.leaky_relu(_present(values[0]), a.get("alpha", 0.01)),
    "MatMul": lambda values, _: _wide(torch.matmul, *values),
    "MaxPool": _max_pool,
    "Mul": _of(torch.mul),
    "Neg": _of(torch.neg),
    "Pow": lambda values, _: torch.pow(_present(values[0]), _present(values[1])).to(_present(values[0]).dtype),
    "QuantizeLinear": _quantize,
    "ReduceMax": _reduce(torch.amax),
    "ReduceMean": _reduce(torch.mean),
    "ReduceMin": _reduce(torch.amin),
    "ReduceSum": _reduce(torch.sum),
    "Relu": _of(torch.relu),
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Sigmoid": _of(torch.sigmoid),
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": _split,
    "Sqrt": _of(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _of(torch.sub),
    "Tanh": _of(torch.tanh),
    "TopK": _top,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
"""Operator -> its function; one raises :class:`ElsewhereError` for what it leaves to the reference."""
