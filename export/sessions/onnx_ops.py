"""ONNX operators in torch, one function each, with the arithmetic that the graph's types prescribe.

Convolutions and matrix products of float16 and bfloat16 tensors multiply the rounded values, accumulate in float32 and
round the sum once, as tensor cores do. Torch computes everything else in the tensor's type. Operators that are missing
here run in onnx's reference implementation (:mod:`deploykit.export.sessions.onnx_in_torch`).

Definitions: https://onnx.ai/onnx/operators/ (Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from deploykit.export.sessions.onnx_box_ops import BOX_OPERATORS
from deploykit.export.sessions.onnx_image_ops import (
    IMAGE_OPERATORS,
    Attributes,
    Operator,
    UnsupportedFormError,
    Values,
    accumulate_fp32,
    required,
)

__all__ = ["OPERATORS", "TORCH_TYPES", "UnsupportedFormError"]

TORCH_TYPES: dict[int, torch.dtype] = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool,
    10: torch.float16, 11: torch.float64, 16: torch.bfloat16, 17: torch.float8_e4m3fn,
}  # fmt: skip
"""ONNX's element type number -> torch's type."""


def _gemm(values: Values, attributes: Attributes) -> Tensor:
    def run(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        a = a.T if attributes.get("transA") else a
        b = b.T if attributes.get("transB") else b
        product: Tensor = a @ b * attributes.get("alpha", 1.0)
        return product if c is None else product + c * attributes.get("beta", 1.0)

    return accumulate_fp32(run, *values)


def _layer_norm(values: Values, attributes: Attributes) -> tuple[Tensor, ...]:
    """Compute LayerNormalization in float32 and round it once; its other outputs are the mean and 1 / deviation."""
    x, *rest = [None if v is None else v.float() for v in values]
    axis = attributes.get("axis", -1) % required(x).dim()
    scale, shift = (*rest, None, None)[:2]
    found = torch.native_layer_norm(
        required(x), required(x).shape[axis:], scale, shift, attributes.get("epsilon", 1e-5)
    )
    return found[0].to(required(values[0]).dtype), *found[1:]


def _group_norm(values: Values, attributes: Attributes) -> Tensor:
    """Compute GroupNormalization of opset 21 in float32 and round it once."""
    x, scale, shift = (required(v) for v in values)
    if len(scale) != x.shape[1]:
        raise UnsupportedFormError("GroupNormalization of opset 18")
    wide = functional.group_norm(
        x.float(), attributes["num_groups"], scale.float(), shift.float(), attributes.get("epsilon", 1e-5)
    )
    return wide.to(x.dtype)


def _split(values: Values, attributes: Attributes) -> tuple[Tensor, ...]:
    x, axis = required(values[0]), attributes.get("axis", 0)
    if len(values) > 1 and values[1] is not None:
        return torch.split(x, values[1].tolist(), axis)
    size = -(-x.shape[axis] // attributes["num_outputs"])
    return torch.split(x, size, axis)


def _reshape(values: Values, attributes: Attributes) -> Tensor:
    x, wanted = required(values[0]), required(values[1]).tolist()
    if not attributes.get("allowzero", 0):
        wanted = [x.shape[i] if side == 0 else side for i, side in enumerate(wanted)]
    return x.reshape(wanted)


def _slice(values: Values, attributes: Attributes) -> Tensor:
    x, rest = required(values[0]), values[3:]
    starts, ends = required(values[1]).tolist(), required(values[2]).tolist()
    axes = rest[0].tolist() if rest and rest[0] is not None else list(range(len(starts)))
    steps = rest[1].tolist() if len(rest) > 1 and rest[1] is not None else [1] * len(starts)
    if min(steps, default=1) < 1:
        raise UnsupportedFormError("Slice backwards")
    index = [slice(None)] * x.dim()
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        index[axis] = slice(start, end, step)
    return x[tuple(index)]


def _transpose(values: Values, attributes: Attributes) -> Tensor:
    x = required(values[0])
    return x.permute(attributes.get("perm") or tuple(reversed(range(x.dim()))))


def _concat(values: Values, attributes: Attributes) -> Tensor:
    return torch.cat([required(v) for v in values], attributes["axis"])


def _cast(values: Values, attributes: Attributes) -> Tensor:
    x, kind = required(values[0]), TORCH_TYPES[attributes["to"]]
    return x.to(kind)


def _softmax(values: Values, attributes: Attributes) -> Tensor:
    x = required(values[0])
    return torch.softmax(x.float(), attributes.get("axis", -1)).to(x.dtype)  # as kernels do, for half values too


def _along(x: Tensor, values: Tensor, axis: int) -> Tensor:
    """Reshape a scale or zero point, of one value or one per index of ``axis``, so that it broadcasts with ``x``."""
    if values.numel() == 1:
        return values.reshape(())
    shape = [1] * x.dim()
    shape[axis] = -1
    return values.reshape(shape)


def _dequantize(values: Values, attributes: Attributes) -> Tensor:
    x, scale, *zero = values
    x, scale = required(x), required(scale)
    axis = attributes.get("axis", 1)
    wide = x.float()
    if zero and zero[0] is not None and x.dtype not in (torch.float8_e4m3fn,) and zero[0].any():
        wide = wide.sub_(_along(x, zero[0].float(), axis))
    return wide.mul_(_along(x, scale.float(), axis)).to(scale.dtype)


def _quantize(values: Values, attributes: Attributes) -> Tensor:
    x, scale, *zero = values
    x, scale = required(x), required(scale)
    kind = zero[0].dtype if zero and zero[0] is not None else torch.uint8
    axis = attributes.get("axis", 1)
    ratio = x.float() / _along(x, scale.float(), axis)
    if kind == torch.float8_e4m3fn:
        return ratio.clamp_(-448.0, 448.0).to(kind)
    ratio.round_()  # in place from here on: these are the largest tensors of a quantized graph
    if zero and zero[0] is not None and zero[0].any():
        ratio.add_(_along(x, zero[0].float(), axis))
    limits = torch.iinfo(kind)
    return ratio.clamp_(limits.min, limits.max).to(kind)


def _top_k(values: Values, attributes: Attributes) -> tuple[Tensor, ...]:
    """Compute TopK with the lower index first among equal values, which torch's own does not promise."""
    x, count, axis = required(values[0]), int(required(values[1])), attributes.get("axis", -1)
    ordered, index = torch.sort(x, dim=axis, descending=bool(attributes.get("largest", 1)), stable=True)
    return ordered.narrow(axis, 0, count), index.narrow(axis, 0, count)


def _gather(values: Values, attributes: Attributes) -> Tensor:
    x, index, axis = required(values[0]), required(values[1]).long(), attributes.get("axis", 0)
    index = torch.where(index < 0, index + x.shape[axis], index)
    if x.dim() and index.dim() == 0:
        return x.select(axis, int(index))
    flat = x.index_select(axis, index.reshape(-1))
    axis %= x.dim()
    return flat.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


def _gather_elements(values: Values, attributes: Attributes) -> Tensor:
    x, index, axis = required(values[0]), required(values[1]), attributes.get("axis", 0)
    return torch.gather(x, axis, torch.where(index < 0, index + x.shape[axis], index))


def _shape(values: Values, attributes: Attributes) -> Tensor:
    sides = list(required(values[0]).shape)
    return torch.tensor(sides[attributes.get("start", 0) : attributes.get("end", len(sides))])


def _unsqueeze(values: Values, _: Attributes) -> Tensor:
    x, axes = required(values[0]), required(values[1]).tolist()
    dims = x.dim() + len(axes)
    for axis in sorted(a % dims for a in axes):
        x = x.unsqueeze(axis)
    return x


def _squeeze(values: Values, _: Attributes) -> Tensor:
    x = required(values[0])
    axes = values[1].tolist() if len(values) > 1 and values[1] is not None else None
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


def _reduce(function: Callable[..., Tensor]) -> Operator:
    """Make a reduction whose axes are an input (opset 18) or an attribute."""

    def run(values: Values, attributes: Attributes) -> Tensor:
        x = required(values[0])
        axes = values[1].tolist() if len(values) > 1 and values[1] is not None else attributes.get("axes")
        if not axes and attributes.get("noop_with_empty_axes", 0):
            return x
        return function(x, tuple(axes or range(x.dim())), keepdim=bool(attributes.get("keepdims", 1)))

    return run


def _div(values: Values, _: Attributes) -> Tensor:
    a, b = required(values[0]), required(values[1])
    return torch.div(a, b) if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _expand(values: Values, _: Attributes) -> Tensor:
    x, shape = required(values[0]), required(values[1]).tolist()
    dims = max(x.dim(), len(shape))
    have = [1] * (dims - x.dim()) + list(x.shape)
    wanted = [1] * (dims - len(shape)) + shape
    return x.expand([side if side != 1 else own for side, own in zip(wanted, have, strict=True)])


def _positional(function: Callable[..., Tensor]) -> Operator:
    """Make an operator of a function whose arguments are the ONNX inputs in their order."""
    return lambda values, _: function(*values)


def _clip(values: Values, _: Attributes) -> Tensor:
    x, *limits = values
    low, high = (*limits, None, None)[:2]
    return torch.clamp(required(x), low, high) if low is not None or high is not None else required(x)


OPERATORS: dict[str, Operator] = {
    **BOX_OPERATORS,
    **IMAGE_OPERATORS,
    "Add": _positional(torch.add),
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "DequantizeLinear": _dequantize,
    "Div": _div,
    "Erf": _positional(torch.erf),
    "Exp": _positional(torch.exp),
    "Expand": _expand,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "Gemm": _gemm,
    "GroupNormalization": _group_norm,
    "HardSigmoid": lambda values, a: torch.clamp(
        required(values[0]) * a.get("alpha", 0.2) + a.get("beta", 0.5), 0.0, 1.0
    ),
    "HardSwish": _positional(functional.hardswish),
    "Identity": _positional(lambda x: x),
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda values, a: functional.leaky_relu(required(values[0]), a.get("alpha", 0.01)),
    "MatMul": lambda values, _: accumulate_fp32(torch.matmul, *values),
    "Mul": _positional(torch.mul),
    "Neg": _positional(torch.neg),
    "Pow": lambda values, _: torch.pow(required(values[0]), required(values[1])).to(required(values[0]).dtype),
    "QuantizeLinear": _quantize,
    "ReduceMax": _reduce(torch.amax),
    "ReduceMean": _reduce(torch.mean),
    "ReduceMin": _reduce(torch.amin),
    "ReduceSum": _reduce(torch.sum),
    "Relu": _positional(torch.relu),
    "Reshape": _reshape,
    "Shape": _shape,
    "Sigmoid": _positional(torch.sigmoid),
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": _split,
    "Sqrt": _positional(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _positional(torch.sub),
    "Tanh": _positional(torch.tanh),
    "TopK": _top_k,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
"""Operator -> its function, which raises :class:`UnsupportedFormError` for forms that it leaves to the reference."""
