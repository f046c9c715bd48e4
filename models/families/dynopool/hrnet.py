"""HRNet (arXiv 1908.07919; HRNet/HRNet-Semantic-Segmentation, MIT) with learned resizings in place of strides.

Layout and numbers are facts taken over; the code and the keys are ours. Branches of four resolutions run side by side
and are added up after each module; a convolution that halved a map is one of stride 1 after a resizing, and what goes
down from one branch to another gets that branch's size, whatever it has become.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from deploykit.models.families.dynopool.resize import DynOPool, resize_and_pool
from deploykit.models.layers.conv import FoldingSequential
from deploykit.models.layers.norm import scale_batch_norms

__all__ = ["HrModule", "HrNet", "ResidualBlock", "conv_bn"]


def conv_bn(c1: int, c2: int, k: int = 1, s: int = 1, act: nn.Module | None = None, g: int = 1) -> FoldingSequential:
    """Convolution, batch norm, activation (None: none)."""
    parts: list[nn.Module] = [nn.Conv2d(c1, c2, k, s, k // 2, groups=g, bias=False), nn.BatchNorm2d(c2)]
    return FoldingSequential(*parts, *([] if act is None else [act]))


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions; ``narrow``: 1 x 1, 3 x 3 and 1 x 1 to four times the channels."""

    def __init__(self, c1: int, c2: int, *, narrow: bool = False) -> None:
        super().__init__()
        out = 4 * c2 if narrow else c2
        kernels = (1, 3, 1) if narrow else (3, 3)
        widths = (c1, c2, c2, out) if narrow else (c1, c2, c2)
        last = len(kernels) - 1
        self.body = nn.Sequential(
            *(conv_bn(widths[i], widths[i + 1], k, act=nn.ReLU() if i < last else None) for i, k in enumerate(kernels))
        )
        self.shortcut = conv_bn(c1, out) if c1 != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.body(x) + self.shortcut(x))

    def random_weights(self, gain: float) -> None:
        """A branch that adds half of what is there already."""
        scale_batch_norms(self.body[-1], 0.5)


class HrModule(nn.Module):
    """Four residual blocks per branch, then every branch from all: maps of ``widths`` channels to the same."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(*(ResidualBlock(w, w) for _ in range(4))) for w in widths)
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(_path(widths, source, target) for source in range(len(widths)))
            for target in range(len(widths))
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        maps = [branch(x) for branch, x in zip(self.branches, maps, strict=True)]
        sizes = [(x.shape[2], x.shape[3]) for x in maps]
        fused = []
        for target, paths in enumerate(self.fuse_layers):
            total: Tensor | None = None
            assert isinstance(paths, nn.ModuleList)
            for source, path in enumerate(paths):
                x = maps[source]
                if source > target:
                    x = functional.interpolate(path(x), size=sizes[target], mode="bilinear", align_corners=False)
                else:
                    assert isinstance(path, nn.Sequential)
                    for step, layer in enumerate(path, start=source + 1):
                        x = layer(resize_and_pool(x, sizes[step]))
                total = x if total is None else total + x
            assert total is not None
            fused.append(functional.relu(total))
        return fused


def _path(widths: Sequence[int], source: int, target: int) -> nn.Module:
    """From one branch to another: up by one convolution, down by one a step, of which only the last widens."""
    if source > target:
        return conv_bn(widths[source], widths[target])
    steps = range(source + 1, target + 1)
    return nn.Sequential(
        *(
            conv_bn(
                widths[source], widths[source if step < target else target], 3, act=nn.ReLU() if step < target else None
            )
            for step in steps
        )
    )


class HrNet(nn.Module):
    """``(B, 3, H, W)`` to logits ``(B, classes, H / 4, W / 4)`` or what the resizings make of a quarter.

    The first convolution halves the image by its stride; the second resizing, and those that begin a branch, are
    learned. A module list of ``modules`` (published: 1, 4, 3) follows each.
    """

    def __init__(self, width: int, num_classes: int, modules: Sequence[int] = (1, 4, 3), stem: int = 64) -> None:
        super().__init__()
        widths = [width << i for i in range(4)]
        self.conv1 = conv_bn(3, stem, 3, 2, nn.ReLU())
        self.pool1 = DynOPool()
        self.conv2 = conv_bn(stem, stem, 3, act=nn.ReLU())
        self.layer1 = nn.Sequential(
            ResidualBlock(stem, stem, narrow=True), *(ResidualBlock(4 * stem, stem, narrow=True) for _ in range(3))
        )
        first = [conv_bn(4 * stem, widths[0], 3, act=nn.ReLU()), conv_bn(4 * stem, widths[1], 3, act=nn.ReLU())]
        self.transition1 = nn.ModuleList(first)
        self.transition2 = conv_bn(widths[1], widths[2], 3, act=nn.ReLU())
        self.transition3 = conv_bn(widths[2], widths[3], 3, act=nn.ReLU())
        self.pools = nn.ModuleList(DynOPool() for _ in range(3))
        for stage, count in enumerate(modules, start=2):
            self.add_module(f"stage{stage}", nn.ModuleList(HrModule(widths[:stage]) for _ in range(count)))
        total = sum(widths)
        joined = FoldingSequential(nn.Conv2d(total, total, 1), nn.BatchNorm2d(total), nn.ReLU())
        self.head = nn.Sequential(joined, nn.Conv2d(total, num_classes, 1))
        self.stages = len(modules)

    def forward(self, images: Tensor) -> Tensor:
        x = self.layer1(self.conv2(self.pool1(self.conv1(images))))
        maps = [self.transition1[0](x), self.transition1[1](self.pools[0](x))]
        for stage in range(2, 2 + self.stages):
            modules = self.get_submodule(f"stage{stage}")
            assert isinstance(modules, nn.ModuleList)
            for module in modules:
                maps = module(maps)
            if stage == 2:
                maps.append(self.transition2(self.pools[1](maps[-1])))
            elif stage == 3:
                maps.append(self.transition3(self.pools[2](maps[-1])))
        size = maps[0].shape[2:]
        up = [maps[0], *(functional.interpolate(m, size=size, mode="bilinear", align_corners=False) for m in maps[1:])]
        logits: Tensor = self.head(torch.cat(up, 1))
        return logits

    def pools_before(self, name: str) -> tuple[DynOPool, ...]:
        """The resizings between the image and a layer; what is fused into a branch counts as that branch's."""
        parts = name.split(".")
        if parts[0] == "conv1":
            return ()
        branch = {"transition2": 2, "transition3": 3}.get(parts[0], 0)
        if parts[0] == "transition1":
            branch = int(parts[1])
        if parts[0].startswith("stage") and parts[2] in ("branches", "fuse_layers"):
            branch = int(parts[3])
        chain = [self.pool1, *self.pools][: branch + 1]
        return tuple(pool for pool in chain if isinstance(pool, DynOPool))
