"""Folding: a trained module in, an equal and cheaper one out, checked as it happens.

A fold is computed in float64 and compared with the module it replaces on random input, twice: with the statistics it
has, and with perturbed ones, because freshly initialised batch norms are the identity and would hide a wrong fold.
A fold that is off by more than 1e-5 of max |y| stops the export: users have lost all their accuracy to wrong folds.
"""

from __future__ import annotations

import contextlib
import copy
import math
import threading
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from deploykit.errors import FoldError

TOLERANCE = 1e-5
PROBE = 4  # side in output pixels of what a fold is compared on

M = TypeVar("M", bound=nn.Module)

_ONE_AT_A_TIME = threading.RLock()  # a fold folds its parts


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
    until the first has restored it.
    """
    with _ONE_AT_A_TIME:
        before = torch.get_num_threads()
        torch.set_num_threads(count)
        try:
            yield
        finally:
            torch.set_num_threads(before)


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
    wide, probe = _conv64(conv), probe_of(conv)
    with torch.no_grad():
        convolved = wide(probe)  # once: both comparisons start from it
    folds = []
    for norm in (copy.deepcopy(bn).double().eval(), _perturbed(bn)):
        folded = _narrow(*_Affine.of(norm).fold(wide.weight, wide.bias), like=conv)
        # Against the module itself and not against what _Affine made of it: that may be what is wrong.
        check_fold(path, "batch norm", _then(lambda _: convolved, norm), _conv64(folded), probe)
        folds.append(folded)
    return folds[0]


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


def _conv64(conv: nn.Conv2d) -> nn.Conv2d:
    wide = copy.copy(conv)
    wide._parameters = {
        name: None if p is None else nn.Parameter(p.detach().double(), requires_grad=False)
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
