"""Convolutions in float64 for reference values, faster than torch's own.

torch has no fast kernels for float64: it copies every window of a map and multiplies matrices. Here a large map is
convolved some rows at a time, whose windows stay in a cache. And where a 3 x 3 convolution has stride 1, Winograd's
algorithm F(4 x 4, 3 x 3) needs a quarter of the products. Tiles of 6 x 6 values are transformed, multiplied with
transformed weights, and transformed to 4 x 4 results: the same sums in another order. Its points are 0, 1, -1, 2, -2.

Rounding. The transforms multiply by at most 100 and 361 in sum, and a result of C channels is C + 72 roundings of
1.1e-16 each. So its error is at most 4e-12 (C + 80) times C times the largest product of a value and a weight, which is
under 4e-6 of the same bound for a convolution in float32. Measured are 1e-14 to 4e-14 of the largest result.

Weights may be float32, those of linear layers too. They are widened, which is exact, when they are needed: a network's
weights in float64 would take twice their memory for the whole run.

A batch norm and an activation after a convolution are computed in place of its results, part by part, while these are
in a cache: the same numbers, without two more maps in memory.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode, handle_torch_function

from deploykit.models.layers.conv import Conv
from deploykit.models.yolo_graph.layer_table import ACTIVATIONS

__all__ = ["ExactConvolutions", "NarrowedError", "convolve_3x3", "widened"]

LEAST_CHANNELS, LEAST_PLACES = 32, 1024
"""Smaller convolutions and maps gain nothing: transforming weights and values takes longest."""

BAND, LEAST_TILES = 2**19, 256
"""Values of transformed input at a time, 4 MB; but so many tiles that reading the weights does not take longest."""

WINDOWS = 2**18  # values of copied windows at a time, 2 MB
PART = 2**17  # results that are finished at a time, 1 MB

Finish = Callable[[Tensor], object]
"""Computes what follows a convolution in place of its results ``(N, C, H, W)``, value by value."""


def _matrix(*rows: tuple[float, ...]) -> Tensor:
    """A transform of columns and rows at once, as one matrix."""
    one = torch.tensor(rows, dtype=torch.float64)
    return torch.kron(one, one)


OF_INPUT = _matrix(
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
OF_WEIGHT = _matrix(
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
OF_OUTPUT = _matrix((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))


class NarrowedError(TypeError):
    """A network took the type of its values from a weight that was not widened; the caller widens all weights."""


def _nothing(part: Tensor) -> None:
    """Leave results as they are."""


class ExactConvolutions(TorchFunctionMode):
    """While it is entered, this thread computes convolutions of float64 maps as the module's docstring says.

    Raises:
        NarrowedError: a map is float32, so an exact computation was lost before it.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Collection[type], args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.conv2d:
            return _convolve(*args, **(kwargs or {}))
        if func is functional.linear:
            return _linear(*args, **(kwargs or {}))
        if func is _finished_block:
            return _finished_block(*args)
        return func(*args, **(kwargs or {}))


class _FinishedConv(nn.Module):
    """A :class:`Conv` whose batch norm and activation follow part by part, under :class:`ExactConvolutions`."""

    def __init__(self, block: Conv) -> None:
        super().__init__()
        self.conv, self.bn, self.act = block.conv, block.bn, block.act

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = handle_torch_function(_finished_block, (images,), self, images)
        return out


def _finished_block(block: _FinishedConv, images: Tensor) -> Tensor:
    conv = block.conv
    args = (conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)
    return _convolve(images, *args, finish=_finish_of(block))


def _finish_of(block: _FinishedConv) -> Finish:
    """A block's batch norm, as a product and a sum, and its activation."""
    bn, act = block.bn, copy.copy(block.act)
    if "inplace" in vars(act):
        vars(act)["inplace"] = True
    scale = shift = None
    if isinstance(bn, nn.BatchNorm2d):
        assert bn.running_mean is not None
        assert bn.running_var is not None
        scale = torch.rsqrt(bn.running_var + bn.eps) * (bn.weight if bn.affine else 1.0)
        shift = (bn.bias if bn.affine else 0.0) - bn.running_mean * scale
        scale, shift = scale[:, None, None], shift[:, None, None]

    def finish(part: Tensor) -> None:
        if scale is not None and shift is not None:
            torch.addcmul(shift, part, scale, out=part)
        found = act(part)
        if found is not part:
            part.copy_(found)

    return finish


def _convolve(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    finish: Finish = _nothing,
) -> Tensor:
    """``torch.conv2d``, by its arguments, and what follows it."""
    if input.dtype != torch.float64:
        raise NarrowedError(f"a convolution of an exact computation got {input.dtype}")
    weight = weight.double()
    bias = None if bias is None else bias.double()
    (down, across), kernel = _pair(stride), tuple(weight.shape[2:])
    plain = groups == 1 and _pair(dilation) == (1, 1) and input.ndim == 4 and not isinstance(padding, str)
    if plain and input.device.type == "cpu":
        rows, columns = _pair(padding)
        height, width = input.shape[2] + 2 * rows - kernel[0], input.shape[3] + 2 * columns - kernel[1]
        if min(height, width) >= 0 and (height // down + 1) * (width // across + 1) >= LEAST_PLACES:
            if kernel == (3, 3) and (down, across) == (1, 1) and min(weight.shape[:2]) >= LEAST_CHANNELS:
                return convolve_3x3(input, weight, bias, (rows, columns), finish)
            if kernel != (1, 1):
                return convolve_in_bands(input, weight, bias, (down, across), (rows, columns), finish)
    results = functional.conv2d(input, weight, bias, stride, padding, dilation, groups)
    rows_at_once = max(1, PART // max(1, results[..., :1, :].numel()))
    for part in torch.split(results, rows_at_once, -2):
        finish(part)
    return results


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``torch.nn.functional.linear``, by its arguments."""
    if input.dtype != torch.float64:
        raise NarrowedError(f"a linear layer of an exact computation got {input.dtype}")
    return functional.linear(input, weight.double(), None if bias is None else bias.double())


def _pair(value: Any) -> tuple[int, ...]:
    return tuple(value) * (3 - len(value)) if isinstance(value, (tuple, list)) else (value, value)


def convolve_3x3(
    images: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int], finish: Finish = _nothing
) -> Tensor:
    """Convolve ``(B, C, H, W)`` float64 with ``(O, C, 3, 3)``, stride 1; ``padding`` is that of rows and of columns."""
    (out, channels), (down, right) = weight.shape[:2], padding
    height, width = images.shape[2] + 2 * down - 2, images.shape[3] + 2 * right - 2
    rows, columns = -(-height // 4), -(-width // 4)
    results = images.new_empty(len(images), out, height, width)
    at_once = min(rows, max(BAND // (36 * channels * columns), -(-LEAST_TILES // columns)))
    most = at_once * columns
    sizes = ((36, channels), (36, channels), (36, out), (16, out))
    # A map of one band reads each weight once. So weights are transformed some channels at a time, in a cache.
    some = out if at_once < rows else max(LEAST_CHANNELS, BAND // (36 * channels))
    kept = _transformed(weight) if some >= out else None
    scratch = [images.new_empty(lines * wide * most) for lines, wide in sizes]
    border = (right, right + 4 * columns - width)
    for image, result in zip(images, results, strict=True):
        for first in range(0, rows, at_once):
            count = min(at_once, rows - first)
            tiles = count * columns
            taken, turned, summed, ready = (
                buffer[: lines * wide * tiles].view(lines, wide * tiles)
                for buffer, (lines, wide) in zip(scratch, sizes, strict=True)
            )
            padded = _padded(image, (4 * first - down, 4 * (first + count) + 2 - down), border).contiguous()
            plane, line, step = padded.stride()
            windows = padded.as_strided((6, 6, channels, count, columns), (line, step, plane, 4 * line, 4 * step))
            taken.view(6, 6, channels, count, columns).copy_(windows)
            torch.mm(OF_INPUT, taken, out=turned)
            values, sums = turned.view(36, channels, tiles), summed.view(36, out, tiles)
            for start in range(0, out, some):
                part = slice(start, start + some)
                torch.bmm(_transformed(weight[part]) if kept is None else kept, values, out=sums[:, part])
            torch.mm(OF_OUTPUT, summed, out=ready)
            finish(_biased(ready.view(16, out, count, columns), bias))
            placed = ready.view(4, 4, out, count, columns).permute(2, 3, 0, 4, 1)
            whole = result[:, 4 * first : 4 * (first + count)]
            if whole.shape[1:] == (4 * count, 4 * columns):
                whole.view(out, count, 4, columns, 4).copy_(placed)
            else:
                whole.copy_(placed.reshape(out, 4 * count, 4 * columns)[:, : whole.shape[1], :width])
    return results


def _transformed(weight: Tensor) -> Tensor:
    """Weights ``(O, C, 3, 3)`` as ``(36, O, C)``."""
    return torch.mm(OF_WEIGHT, weight.reshape(-1, 9).t()).view(36, *weight.shape[:2])


def _biased(part: Tensor, bias: Tensor | None) -> Tensor:
    """Add a bias to each channel of ``(N, C, H, W)``, in place."""
    return part if bias is None else part.add_(bias[:, None, None])


def _padded(maps: Tensor, rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
    """Some rows of maps, from one to before another, which may lie outside; ``columns`` are added left and right."""
    (first, last), height = rows, maps.shape[-2]
    inside = maps[..., min(max(0, first), height) : min(max(0, last), height), :]
    below = max(0, last - max(height, first))
    return functional.pad(inside, (*columns, last - first - inside.shape[-2] - below, below))


def convolve_in_bands(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    finish: Finish = _nothing,
) -> Tensor:
    """Convolve float64 maps as torch does, some rows of the result at a time: the windows of all do not fit a cache."""
    (down, across), (tall, wide) = stride, weight.shape[2:]
    height = (images.shape[2] + 2 * padding[0] - tall) // down + 1
    width = (images.shape[3] + 2 * padding[1] - wide) // across + 1
    at_once = max(WINDOWS // (weight[0].numel() * width), -(-LEAST_TILES // width))
    results = images.new_empty(len(images), len(weight), height, width)
    for first in range(0, height, at_once):
        last = min(height, first + at_once)
        rows = first * down - padding[0], (last - 1) * down + tall - padding[0]
        band = functional.conv2d(_padded(images, rows, (padding[1], padding[1])), weight, bias, stride)
        finish(band)
        results[:, :, first:last] = band
    return results


def widened(module: nn.Module, *, whole: bool = False) -> nn.Module:
    """Return a copy of a float32 module that computes in float64 under :class:`ExactConvolutions`.

    The weights of plain convolutions and linear layers stay as they are, and are shared with the original. ``whole``
    widens them too, and the copy needs no :class:`ExactConvolutions` then.
    """
    layers = [m for m in module.modules() if type(m) in (nn.Conv2d, nn.Linear)]
    weights = [m.weight for m in layers if isinstance(m.weight, Tensor) and m.weight.dtype == torch.float32]
    kept = {} if whole else {id(weight): weight for weight in weights}
    new = copy.deepcopy(module, dict(kept))
    for tensor in (*new.parameters(), *new.buffers()):
        if tensor.is_floating_point() and id(tensor) not in kept:
            tensor.data = tensor.data.double()
    if not whole:
        for parent in list(new.modules()):
            for name, child in parent._modules.items():
                if isinstance(child, Conv) and _finishes_by_parts(child):
                    parent._modules[name] = _FinishedConv(child)
    return new


def _finishes_by_parts(block: Conv) -> bool:
    """Whether a block is a plain convolution, and all that follows it is done value by value."""
    bn, parts = block.bn, list(block.modules())
    as_defined = type(block).forward is Conv.forward and type(block.conv) is nn.Conv2d
    known = type(bn) is nn.Identity or (type(bn) is nn.BatchNorm2d and bn.running_mean is not None)
    changed = any(m.training or m._forward_hooks or m._forward_pre_hooks for m in parts)
    return as_defined and known and type(block.act) in ACTIVATIONS.values() and not changed
