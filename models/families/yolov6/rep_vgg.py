"""RepVGG as YOLOv6 writes it, and QARepVGG (upstream ``yolov6/layers/common.py``, GPL-3.0: facts only, our code).

Papers: RepVGG (arXiv 2101.03697), QARepVGG (arXiv 2212.01593), YOLOv6 (arXiv 2209.02976).
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deploykit.models.fuse import check_fold, fold_conv_bn, fold_into, probe_of, shared_copy
from deploykit.models.layers.conv import Conv, batch_norm, plain_conv
from deploykit.models.layers.norm import scale_batch_norms
from deploykit.models.layers.rep import DeployedRepConv, RepConv, bias64, double_copy, unit_conv


class RepVGG(RepConv):
    """The same block as :class:`RepConv` under the names of YOLOv6, 3x3; the activation is ReLU."""

    def __init__(self, c1: int, c2: int, s: int = 1, act: nn.Module | None = None) -> None:
        nn.Module.__init__(self)
        self.act = nn.ReLU() if act is None else act
        self.rbr_identity = batch_norm(c1) if c1 == c2 and s == 1 else None
        # The base has Sequentials in their places; only _folded below looks into them.
        self.rbr_dense = Conv(c1, c2, 3, s, act=nn.Identity())  # type: ignore[assignment]
        self.rbr_1x1 = Conv(c1, c2, 1, s, act=nn.Identity())  # type: ignore[assignment]

    @property
    def dense(self) -> nn.Conv2d:
        """The 3x3 convolution."""
        return cast(Conv, self.rbr_dense).conv

    def random_weights(self, gain: float) -> None:
        """Branches that are smaller by as much as their sum is larger than one of them."""
        scale_batch_norms(self, 0.7 if self.rbr_identity is None else 0.45)

    def _folded(self, path: str) -> tuple[nn.Conv2d, nn.Conv2d]:
        dense, point = (cast(Conv, getattr(self, name)).fuse(f"{path}.{name}") for name in ("rbr_dense", "rbr_1x1"))
        return dense.conv, point.conv


class DeployedQARepVGG(DeployedRepConv):
    """A QARepVGG that its project switched to deploy before it was saved: one convolution, and the last batch norm."""

    def __init__(self, block: QARepVGG) -> None:
        super().__init__(block.rbr_dense.conv, block.act)
        self.bn = block.bn

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.bn(self.rbr_reparam(x)))
        return out

    def fuse(self, path: str) -> nn.Sequential:
        """Fold the batch norm."""
        return nn.Sequential(fold_conv_bn(self.rbr_reparam, self.bn, f"{path}.bn"), shared_copy(self.act))


class QARepVGG(nn.Module):
    """act(BN(BN(conv 3x3) + conv 1x1 [+ x] [+ mean 3x3 of x])), the last two where the shape allows.

    ``mean``: the second version, which has that branch. ``fuse`` gives one 3x3 convolution.
    """

    def __init__(self, c1: int, c2: int, s: int = 1, act: nn.Module | None = None, *, mean: bool = False) -> None:
        super().__init__()
        self.act = nn.ReLU() if act is None else act
        self.identity = c1 == c2 and s == 1
        self.version = 2 if mean else 1
        self.mean = mean and self.identity
        self.rbr_dense = Conv(c1, c2, 3, s, act=nn.Identity())
        self.rbr_1x1 = plain_conv(c1, c2, 1, s)
        self.bn = batch_norm(c2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self._before(x))
        return out

    def _before(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.bn(self._branches(x)))

    def _branches(self, x: Tensor) -> Tensor:
        y: Tensor = self.rbr_dense(x) + self.rbr_1x1(x)
        if self.identity:
            y = y + x
        return y + F.avg_pool2d(x, 3, 1, 1) if self.mean else y

    def random_weights(self, gain: float) -> None:
        """The sum of the branches made as small as one of them, by the batch norm behind it."""
        scale_batch_norms(self.bn, 0.25 if self.identity else 0.6)

    def fuse(self, path: str) -> nn.Sequential:
        """Fold the batch norm of the 3x3, add the branches, and fold the batch norm behind them: each is checked."""
        dense = self.rbr_dense.fuse(f"{path}.rbr_dense").conv
        weight = dense.weight.detach().double() + F.pad(self.rbr_1x1.weight.detach().double(), (1, 1, 1, 1))
        unit = unit_conv(dense).weight.double() if self.identity else torch.zeros(())
        weight = weight + unit
        if self.mean:  # every place of the kernel is a ninth of what the unit has at its centre
            weight = weight + unit.sum((2, 3), keepdim=True) / 9
        merged = fold_into(dense, weight, bias64(dense))
        wide = double_copy(self)
        assert isinstance(wide, QARepVGG)
        check_fold(path, "branches", wide._branches, double_copy(merged), probe_of(dense))
        fused = fold_conv_bn(merged, self.bn, f"{path}.bn")
        check_fold(path, "whole block", wide._before, double_copy(fused), probe_of(dense))
        return nn.Sequential(fused, shared_copy(self.act))
