"""Cross-stage blocks of YOLOv5 (upstream ``models/common.py``, AGPL-3.0, formerly GPL-3.0: facts only, our code).

Paper: CSPNet (arXiv 1911.11929).
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from deploykit.models.fuse import check_fold, fold_conv_bn, fuse_model, shared_copy
from deploykit.models.layers.conv import Conv, Size, batch_norm
from deploykit.models.layers.norm import scale_batch_norms


class Bottleneck(nn.Module):
    """1x1 then 3x3; the input is added where ``shortcut`` asks for it and the channels stay the same.

    ``k``: other kernels, of the first and of the second convolution.
    """

    def __init__(
        self, c1: int, c2: int, shortcut: bool = True, g: int = 1, e: float = 0.5, k: tuple[Size, Size] = (1, 3)
    ) -> None:
        super().__init__()
        hidden = int(c2 * e)
        self.cv1: nn.Module = Conv(c1, hidden, k[0], 1)
        self.cv2 = Conv(hidden, c2, k[1], 1, g=g)
        self.add = bool(shortcut) and c1 == c2

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.cv2(self.cv1(x))
        return x + y if self.add else y

    def random_weights(self, gain: float) -> None:
        """Half as much added to the input, so that the sum does not grow."""
        if self.add:
            scale_batch_norms(self.cv2, 0.5)


class C3(nn.Module):
    """``n`` bottlenecks on one half of the channels, nothing on the other (YOLOv5 4.0 and later).

    The concatenation's order is (worked, bypass). ``k``: kernels of the bottlenecks.
    """

    def __init__(
        self,
        c1: int,
        c2: int,
        n: int = 1,
        shortcut: bool = True,
        g: int = 1,
        e: float = 0.5,
        k: tuple[Size, Size] = (1, 3),
    ) -> None:
        super().__init__()
        hidden = int(c2 * e)
        self.cv1 = Conv(c1, hidden, 1, 1)
        self.cv2 = Conv(c1, hidden, 1, 1)
        self.cv3 = Conv(2 * hidden, c2, 1)
        self.m = nn.Sequential(*(Bottleneck(hidden, hidden, shortcut, g, 1.0, k) for _ in range(n)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))
        return out


class BottleneckCSP(nn.Module):
    """C3's forerunner (YOLOv5 before 4.0): both halves end in a bare 1x1, and share a batch norm and an activation."""

    def __init__(self, c1: int, c2: int, n: int = 1, shortcut: bool = True, g: int = 1, e: float = 0.5) -> None:
        super().__init__()
        hidden = int(c2 * e)
        self.cv1 = Conv(c1, hidden, 1, 1)
        self.cv2 = nn.Conv2d(c1, hidden, 1, bias=False)
        self.cv3 = nn.Conv2d(hidden, hidden, 1, bias=False)
        self.cv4 = Conv(2 * hidden, c2, 1, 1)
        self.bn: nn.Module = batch_norm(2 * hidden)
        self.act: nn.Module = nn.LeakyReLU(0.1)  # whatever the other activations are, until 6.1
        self.m = nn.Sequential(*(Bottleneck(hidden, hidden, shortcut, g, 1.0) for _ in range(n)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.cv4(self.act(self.bn(torch.cat((self.cv3(self.m(self.cv1(x))), self.cv2(x)), 1))))
        return out

    def fuse(self, path: str) -> BottleneckCSP:
        """Fold the shared batch norm: its first half into ``cv3``, its second into ``cv2``."""
        new = shared_copy(self)
        for name in ("cv1", "cv4", "m"):
            setattr(new, name, fuse_model(getattr(self, name), f"{path}.{name}"))
        if isinstance(self.bn, nn.BatchNorm2d):
            half = self.cv3.out_channels
            new.cv3 = fold_conv_bn(self.cv3, _channels(self.bn, 0, half), f"{path}.cv3")
            new.cv2 = fold_conv_bn(self.cv2, _channels(self.bn, half, 2 * half), f"{path}.cv2")
            new.bn = nn.Identity()
            self._check(new, path)
        return new

    def _check(self, folded: BottleneckCSP, path: str) -> None:
        inputs = [self.cv3.in_channels, self.cv2.in_channels]
        generator = torch.Generator().manual_seed(inputs[0])
        probe = torch.randn(1, sum(inputs), 4, 4, generator=generator, dtype=torch.float64)

        def joined(block: BottleneckCSP, x: Tensor) -> Tensor:
            worked, bypass = torch.split(x, inputs, 1)
            out: Tensor = _double(block.bn)(torch.cat((_double(block.cv3)(worked), _double(block.cv2)(bypass)), 1))
            return out

        check_fold(path, "shared batch norm", lambda x: joined(self, x), lambda x: joined(folded, x), probe)


def _channels(bn: nn.BatchNorm2d, first: int, last: int) -> nn.BatchNorm2d:
    """The batch norm of some of the channels only."""
    part = copy.copy(bn)
    part.num_features = last - first
    part._parameters = {
        name: None if p is None else nn.Parameter(p.detach()[first:last], requires_grad=False)
        for name, p in bn._parameters.items()
    }
    part._buffers = {name: t[first:last] if t is not None and t.ndim else t for name, t in bn._buffers.items()}
    return part


def _double(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).double().eval()
