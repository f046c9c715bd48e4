"""Folding: a trained module in, an equal and cheaper one out, checked as it happens.

A fold is computed in float64 and compared with the module it replaces on random input, twice: with the statistics it
has, and with perturbed ones, because freshly initialised batch norms are the identity and would hide a wrong fold.
A fold that is off by more than 1e-5 of max |y| stops the export: users have lost all their accuracy to wrong folds.
"""

from __future__ import annotations

import contextlib
import copy
import math
import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from deploykit.errors import FoldError

TOLERANCE = 1e-5
PROBE = 4  # side in output pixels of what a fold is compared on
PART = 2**18  # weights that are folded at a time

M = TypeVar("M", bound=nn.Module)

_one_at_a_time = threading.RLock()  # a fold folds its parts
_in_fork = False


class Fusable(Protocol):
    """A module that knows its cheaper equal."""

    def fuse(self, path: str) -> nn.Module:
        """Return the fused module; ``path`` is where it sits, for messages. The module itself stays as it is."""
        ...


def fuse_model(model: nn.Module, path: str = "") -> nn.Module:
    """Return an eval copy in which every module that has ``fuse`` is replaced by its result.

    The copy shares the memory of what no fold touches, so the original must not be trained on afterwards; to convert
    or move one of the two leaves the other as it is.

    Raises:
        FoldError: a fold changed the numbers.
    """
    with torch_threads(1):  # the checks run hundreds of tiny convolutions, whose threads would wait for one another
        return _fused(model, path)


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch compute with ``count`` threads within one operator while the context lasts.

    The number belongs to the whole process and each context restores what it found, so a second thread waits here
    until the first has restored it. In a forked process it is always 1: torch's other threads are not there, and it
    would wait for them for ever.
    """
    with _one_at_a_time:
        before = torch.get_num_threads()
        torch.set_num_threads(1 if _in_fork else count)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def _forked() -> None:
    """In a forked process: compute with one thread, and do not wait for one that is not here."""
    global _in_fork, _one_at_a_time
    _in_fork, _one_at_a_time = True, threading.RLock()
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def _fused(model: nn.Module, path: str) -> nn.Module:
    if hasattr(type(model), "fuse"):
        return cast(Fusable, model).fuse(path).eval()
    new = shared_copy(model)
    new._modules = {
        name: None if child is None else _fused(child, f"{path}.{name}" if path else name)
        for name, child in model._modules.items()
    }
    return new.eval()


def shared_copy(module: M) -> M:
    """A copy that shares nothing with the original but the tensors' memory."""
    new = copy.copy(module)
    new._parameters = {
        name: None if p is None else nn.Parameter(p.detach(), requires_grad=False)
        for name, p in module._parameters.items()
    }
    new._buffers = dict(module._buffers)
    new._modules = {name: None if m is None else shared_copy(m) for name, m in module._modules.items()}
    return new


def fold_conv_bn(conv: nn.Conv2d, bn: nn.BatchNorm2d, path: str) -> nn.Conv2d:
    """Fold a batch norm into the convolution before it.

    W' = s W and b' = beta + s (b - mean), with s = gamma / sqrt(var + eps).

    Raises:
        FoldError: the folded convolution does not compute the same.
    """
    probe, norms = probe_of(conv), (copy.deepcopy(bn).double().eval(), _perturbed(bn))
    affines, convolve = [_Affine.of(norm) for norm in norms], _convolving(conv, probe)
    convolved: list[Tensor] = []
    parts: list[nn.Conv2d] = []
    found: list[list[Tensor]] = [[] for _ in norms]
    with torch.no_grad():
        for some in _output_channels(conv):
            wide = _conv64(conv, some)
            convolved.append(convolve(wide))  # once: both comparisons start from it
            folded = [_narrow(*affine.channels(some).fold(wide.weight, wide.bias), like=conv) for affine in affines]
            parts.append(folded[0])
            for outputs, fold in zip(found, folded, strict=True):
                outputs.append(convolve(_conv64(fold)))
        whole = torch.cat(convolved, 1)
        for norm, outputs in zip(norms, found, strict=True):
            # Against the module itself and not against what _Affine made of it: that may be what is wrong.
            check_fold(path, "batch norm", _then(lambda _: whole, norm), partial(_joined, outputs), probe)
        return _narrow(
            torch.cat([part.weight for part in parts]),
            torch.cat([cast(Tensor, part.bias) for part in parts]),
            like=conv,
        )


def _joined(outputs: list[Tensor], _: Tensor) -> Tensor:
    return torch.cat(outputs, 1)


def _convolving(conv: nn.Conv2d, probe: Tensor) -> Callable[[nn.Conv2d], Tensor]:
    """How convolutions like ``conv`` with other weights are applied to the probe: a plain one as a matrix product."""
    plain = type(conv).forward is nn.Conv2d.forward and conv.groups == 1 and conv.padding_mode == "zeros"
    if not plain or isinstance(conv.padding, str):
        return lambda wide: cast(Tensor, wide(probe))
    windows = functional.unfold(probe, conv.kernel_size, conv.dilation, conv.padding, conv.stride)[0]
    nothing = probe.new_zeros(1)

    def product(wide: nn.Conv2d) -> Tensor:  # (1, C, places, 1)
        bias = nothing if wide.bias is None else wide.bias
        return torch.addmm(bias[:, None], wide.weight.flatten(1), windows)[None, :, :, None]

    return product


def _output_channels(conv: nn.Conv2d) -> Iterator[slice]:
    """A few output channels at a time, whose weights in float64 stay in a cache; all, if the convolution has groups."""
    some = conv.out_channels if conv.groups > 1 else max(1, PART // conv.weight[0].numel())
    for first in range(0, conv.out_channels, some):
        yield slice(first, first + some)


def check_fold(
    path: str, what: str, before: Callable[[Tensor], Tensor], after: Callable[[Tensor], Tensor], probe: Tensor
) -> None:
    """Compare two float64 functions on ``probe``.

    Raises:
        FoldError: they differ by more than 1e-5 of max |y|, or give something that is not finite.
    """
    with torch.no_grad():
        expected, found = before(probe), after(probe)
    largest, error = float(expected.abs().max()), float((expected - found).abs().max())
    where = f"folding the {what} of {path or 'the model'}"
    if not (math.isfinite(largest) and math.isfinite(error)):
        raise FoldError(f"{where} gives values that are not finite: its weights hold NaN or infinity, or overflow")
    if error > max(TOLERANCE * largest, torch.finfo(torch.float32).tiny):
        raise FoldError(
            f"{where} changed its output by {error:.3g}, more than {TOLERANCE:g} of its largest value ({largest:.3g}): "
            "the weights are of another model, or a variance of a batch norm is almost 0"
        )


def probe_of(conv: nn.Conv2d) -> Tensor:
    """Seeded float64 input on which ``conv`` gives a few output pixels, ``(1, C, h, w)``."""
    sides = [
        (PROBE - 1) * s + d * (k - 1) + 1 for s, d, k in zip(conv.stride, conv.dilation, conv.kernel_size, strict=True)
    ]
    generator = torch.Generator().manual_seed(conv.in_channels)
    return torch.randn(1, conv.in_channels, *sides, generator=generator, dtype=torch.float64)


def _then(first: Callable[[Tensor], Tensor], second: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: second(first(x))


class _Affine:
    """What a batch norm computes in eval mode, per channel and in float64: y = scale * x + shift."""

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        self.scale, self.shift = scale, shift

    @staticmethod
    def of(bn: nn.BatchNorm2d) -> _Affine:
        assert bn.running_mean is not None
        assert bn.running_var is not None
        scale = torch.rsqrt(bn.running_var.double() + bn.eps)
        shift = -bn.running_mean.double() * scale
        if bn.affine:
            scale, shift = scale * bn.weight.detach().double(), shift * bn.weight.detach().double()
            shift = shift + bn.bias.detach().double()
        return _Affine(scale, shift)

    def channels(self, some: slice) -> _Affine:
        return _Affine(self.scale[some], self.shift[some])

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        shift = self.shift if bias is None else self.shift + self.scale * bias
        return weight * self.scale[:, None, None, None], shift


def _perturbed(bn: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """The same in float64 with every statistic and parameter moved by a seeded random amount."""
    new = copy.deepcopy(bn).double().eval()
    generator = torch.Generator().manual_seed(bn.num_features)
    for tensor in (*new.parameters(), *new.buffers()):
        if tensor.is_floating_point():  # num_batches_tracked is a count
            noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
            tensor.data = tensor.data * (0.5 + noise) + 0.1 * noise
    return new


def fold_into(conv: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """A convolution like ``conv`` with other (float64) weights and a bias, in ``conv``'s precision."""
    return _narrow(weight, bias, like=conv)


def _conv64(conv: nn.Conv2d, channels: slice = slice(None)) -> nn.Conv2d:
    """The same in float64, with some of its output channels."""
    wide = copy.copy(conv)
    wide._parameters = {
        name: None if p is None else nn.Parameter(p.detach()[channels].double(), requires_grad=False)
        for name, p in conv._parameters.items()
    }
    return wide


def _narrow(weight: Tensor, bias: Tensor, like: nn.Conv2d) -> nn.Conv2d:
    dtype = like.weight.dtype
    new = copy.copy(like)
    new._parameters = {
        "weight": nn.Parameter(weight.to(dtype), requires_grad=False),
        "bias": nn.Parameter(bias.to(dtype), requires_grad=False),
    }
    return new


def fold_bn_into_next(bn: nn.BatchNorm2d, conv: nn.Conv2d, path: str) -> nn.Conv2d:
    """Fold a batch norm into the convolution after it, which must not pad: the border's zeros are not normalised.

    W' = W s and b' = b + sum over the window of W t, where the norm is y = s x + t.

    Raises:
        FoldError: the convolution pads, or the folded one does not compute the same.
    """
    if any(pad != 0 for pad in conv.padding) or conv.groups != 1:
        raise FoldError(f"the batch norm before {path} cannot be folded: the convolution pads or has groups")
    wide, probe = _conv64(conv), probe_of(conv)
    folds = []
    for norm in (copy.deepcopy(bn).double().eval(), _perturbed(bn)):
        affine = _Affine.of(norm)
        shift = (wide.weight * affine.shift[:, None, None]).sum((1, 2, 3))
        shift = shift if wide.bias is None else shift + wide.bias
        folded = _narrow(wide.weight * affine.scale[:, None, None], shift, like=conv)
        check_fold(path, "batch norm", _then(norm, wide), _conv64(folded), probe)
        folds.append(folded)
    return folds[0]


class ChannelAffine(nn.Module):
    """A batch norm in eval mode that no convolution can take: ``y = weight x + bias`` per channel."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight[:, None, None], requires_grad=False)
        self.bias = nn.Parameter(bias[:, None, None], requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x * self.weight + self.bias
        return out


def affine_of(bn: nn.BatchNorm2d, path: str) -> ChannelAffine:
    """A batch norm as a product and a sum, which half precision and TensorRT treat as what they are.

    Raises:
        FoldError: it does not compute the same.
    """
    exact = _Affine.of(copy.deepcopy(bn).double().eval())
    new = ChannelAffine(exact.scale.to(bn.weight.dtype), exact.shift.to(bn.weight.dtype))
    generator = torch.Generator().manual_seed(bn.num_features)
    probe = torch.randn(1, bn.num_features, PROBE, PROBE, generator=generator, dtype=torch.float64)
    wide = copy.deepcopy(new).double()
    check_fold(path, "batch norm", copy.deepcopy(bn).double().eval(), wide, probe)
    return new
