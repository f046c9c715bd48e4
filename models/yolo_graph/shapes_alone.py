"""Shapes of a network's outputs on the meta device, without torch's own kernels for it.

These are written in Python, and the first call imports torch's symbolic shapes and its compiler: more than a second of
processor time, of which loading a small network would have most.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["ShapesAlone", "outline"]

ELEMENTWISE: set[Callable[..., Any]] = {
    F.silu,
    F.relu,
    F.relu6,
    F.leaky_relu,
    F.elu,
    F.gelu,
    F.hardswish,
    F.mish,
    torch.sigmoid,
    torch.tanh,
    Tensor.softmax,
}
"""Functions of one tensor that give its shape."""


class ShapesAlone(TorchFunctionMode):
    """Within it, convolutions, activations, sums and concatenations of meta tensors give their shapes only.

    Whatever a rule does not know is torch's own, and so are the errors for shapes that do not fit.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """One call of a function of torch."""
        if func in ELEMENTWISE and isinstance(args[0], Tensor) and args[0].is_meta:
            return args[0]
        rule = RULES.get(func)
        shape = None if rule is None else rule(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {})) if shape is None else torch.empty(shape, device="meta")


def _convolved(x: Tensor, weight: Tensor, *rest: Any, **named: Any) -> list[int] | None:
    """Of ``conv2d(x, weight, bias, stride, padding, dilation, groups)``."""
    bias, *sizes, groups = rest if len(rest) == 5 and not named else (None, 1)
    known = len(sizes) == 3 and x.is_meta and weight.is_meta and x.dim() == weight.dim() == 4
    if not known or x.shape[1] != weight.shape[1] * groups or (bias is not None and bias.shape != weight.shape[:1]):
        return None
    sides = _slid(x, weight.shape[2:], *sizes)
    return sides and [x.shape[0], weight.shape[0], *sides]


def _pooled(
    x: Tensor,
    kernel: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    **named: Any,
) -> list[int] | None:
    """Of ``max_pool2d``."""
    sizes = [_both(size) for size in (kernel, kernel if stride is None else stride, padding, dilation)]
    known = x.is_meta and x.dim() == 4 and not ceil_mode and not named.get("return_indices")
    if not known or any(2 * pad > k for pad, k in zip(sizes[2], sizes[0], strict=False)):
        return None
    sides = _slid(x, *sizes)
    return sides and [*x.shape[:2], *sides]


def _averaged(
    x: Tensor, kernel: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False, *_: Any
) -> list[int] | None:
    """Of ``avg_pool2d``."""
    return _pooled(x, kernel, stride, padding, 1, ceil_mode)


def _both(size: Any) -> Any:
    return (size, size) if type(size) is int else size


def _slid(x: Tensor, *sizes: Any) -> list[int] | None:
    """Height and width of what kernels, strides, paddings and dilations, two of each, leave; None: torch is to say."""
    if not all(isinstance(size, tuple) and len(size) == 2 and all(type(n) is int for n in size) for size in sizes):
        return None
    sides = []
    for side, kernel, stride, padding, dilation in zip(x.shape[2:], *sizes, strict=True):
        room = side + 2 * padding - dilation * (kernel - 1) - 1
        if room < 0 or padding < 0 or min(kernel, stride, dilation) < 1:
            return None
        sides.append(room // stride + 1)
    return sides


def _scaled(x: Tensor, size: Any = None, scale_factor: Any = None, mode: str = "", **named: Any) -> list[int] | None:
    """Of ``interpolate``: a nearest pixel, by one number."""
    plain = x.is_meta and x.dim() == 4 and size is None and mode == "nearest" and type(scale_factor) is float
    if not plain or not 1.0 <= scale_factor <= 64.0:
        return None
    return [*x.shape[:2], *(int(side * scale_factor) for side in x.shape[2:])]


def _multiplied(x: Any, y: Any) -> list[int] | None:
    """Of a product of matrices in batches of the same shape."""
    if not (isinstance(x, Tensor) and isinstance(y, Tensor) and x.is_meta and y.is_meta and x.dim() == y.dim() >= 2):
        return None
    fit = x.shape[:-2] == y.shape[:-2] and x.shape[-1] == y.shape[-2]
    return [*x.shape[:-1], y.shape[-1]] if fit else None


def _combined(x: Any, y: Any) -> torch.Size | None:
    """Of a sum or a product of two tensors of one shape, or of a tensor and a number."""
    if not isinstance(x, Tensor) or not x.is_meta or not x.is_floating_point():
        return None
    same = y.is_meta and y.shape == x.shape and y.dtype == x.dtype if isinstance(y, Tensor) else type(y) in (int, float)
    return x.shape if same else None


def _joined(tensors: Any, dim: Any = 0) -> list[int] | None:
    """Of ``cat(tensors, dim)``."""
    whole = isinstance(tensors, (list, tuple)) and all(isinstance(x, Tensor) and x.is_meta for x in tensors)
    if not whole or not tensors or type(dim) is not int or not 0 <= dim < tensors[0].dim():
        return None
    shapes = [list(x.shape) for x in tensors]
    joined = sum(shape[dim] if dim < len(shape) else 0 for shape in shapes)
    others = [shape[:dim] + shape[dim + 1 :] for shape in shapes]
    return [*shapes[0][:dim], joined, *shapes[0][dim + 1 :]] if all(o == others[0] for o in others) else None


RULES: dict[Callable[..., Any], Callable[..., Sequence[int] | None]] = {
    torch.conv2d: _convolved,
    F.max_pool2d: _pooled,
    F.avg_pool2d: _averaged,
    F.interpolate: _scaled,
    Tensor.matmul: _multiplied,
    torch.cat: _joined,
    Tensor.add: _combined,
    Tensor.mul: _combined,
}


def outline(module: nn.Module) -> nn.Module:
    """A copy on the meta device without batch norms, which gives the same shapes; it shares what it does not change."""
    if isinstance(module, nn.BatchNorm2d):
        return nn.Identity()
    new = copy.copy(module)
    new._parameters = {name: _meta(p) for name, p in module._parameters.items()}
    new._buffers = {name: _meta(b) for name, b in module._buffers.items()}
    new._modules = {name: None if m is None else outline(m) for name, m in module._modules.items()}
    return new


def _meta(tensor: Any) -> Any:
    return tensor if tensor is None or tensor.is_meta else tensor.detach().to("meta")
