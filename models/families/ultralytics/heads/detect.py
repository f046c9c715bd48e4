"""The detection head: a box and class scores per cell, of one branch, or of two of which one needs no NMS.

Facts from the published model descriptions (the original is AGPL-3.0); the code is ours. Papers: arXiv 2405.14458 (two
branches), arXiv 2006.04388 (distances as distributions).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Literal, Self, TypedDict, cast

import torch
from torch import Tensor, nn

from deploykit.models.families.ultralytics.heads.points import (
    Cells,
    Distribution,
    RawLevel,
    cells_of,
    corners,
    upright_box,
)
from deploykit.models.fuse import fuse_model
from deploykit.models.layers.conv import Conv, DWConv, fill_biases
from deploykit.models.layers.operators import best_scores

__all__ = ["MOST_DETECTIONS", "Branch", "FreeDetect", "HeadForm", "box_branch"]

MOST_DETECTIONS = 300  # rows of the branch that needs no NMS
MOST_CLASS_WIDTH = 100  # more classes than this do not make the class branch wider

Branch = Literal["one2many", "one2one"]
PREFIXES: dict[Branch, str] = {"one2many": "", "one2one": "one2one_"}


class HeadForm(TypedDict, total=False):
    """What :class:`FreeDetect` and all heads made from it can be told by keyword."""

    reg_max: int
    depthwise: bool
    dual: bool
    class_width: int | None


class FreeDetect(nn.Module):
    """Feature maps of L levels, the finest first, each ``(B, C_i, H_i, W_i)``, to rows in network pixels.

    The branch ``one2many`` gives every cell, ``(B, N, columns)``: ``cx, cy, w, h``, one probability per class, extras.
    N runs over levels, then grid rows, then grid columns. The branch ``one2one`` gives the best
    ``k = min(300, N)`` without NMS, ``(B, k, columns)``: ``x1, y1, x2, y2, score, class``, extras. They are chosen in
    two steps: the k cells whose best class is highest, and among their classes the k highest, so that a cell can come
    with several classes. Of equal ones the earlier cell comes first, then the lower class.

    Args:
        num_classes: how many.
        channels: of the feature maps.
        reg_max: bins of the distribution over each distance; 1: the value is the distance itself.
        depthwise: whether the class branch is made of depthwise and 1x1 convolutions (YOLOv10 and later).
        dual: whether there are two branches; ``one2one`` is chosen then.
        class_width: channels of the class branch; None: what current models have.
    """

    parts: tuple[str, ...] = ("cv2", "cv3")
    """Modules that each branch has."""
    extras = 0
    """Columns after the scores, or after the class."""

    def __init__(
        self,
        num_classes: int,
        channels: Sequence[int],
        *,
        reg_max: int = 16,
        depthwise: bool = False,
        dual: bool = False,
        class_width: int | None = None,
    ) -> None:
        super().__init__()
        self.num_classes, self.channels, self.reg_max = num_classes, tuple(channels), reg_max
        self.stride: tuple[int, ...] = ()  # set by the graph, which knows how far each level is scaled down
        self.depthwise, self.dual = depthwise, dual
        self.branch: Branch = "one2one" if dual else "one2many"
        self.every_row = False
        box = max(16, channels[0] // 4, 4 * reg_max)
        width = class_width or max(channels[0], min(num_classes, MOST_CLASS_WIDTH))
        classes = _depthwise_branch if depthwise else box_branch
        self.add_part("cv2", lambda c: box_branch(c, box, 4 * reg_max))
        self.add_part("cv3", lambda c: classes(c, width, num_classes))
        if reg_max > 1:
            self.dfl = Distribution(reg_max)

    @property
    def num_levels(self) -> int:
        """How many feature maps it takes."""
        return len(self.channels)

    @property
    def columns(self) -> int:
        """Values per row of the chosen branch."""
        return (6 if self.chooses else 4 + self.num_classes) + self.extras

    @property
    def chooses(self) -> bool:
        """Whether it gives detections instead of the row of every cell."""
        return self.branch == "one2one" and not self.every_row

    def set_stride(self, stride: Sequence[int]) -> None:
        """Tell the head the width of a cell of each level in network pixels."""
        self.stride = tuple(stride)

    def add_part(self, name: str, make: Callable[[int], nn.Module]) -> None:
        """Give each branch a module per level, made from the level's channels."""
        for prefix in PREFIXES.values() if self.dual else [PREFIXES[self.branch]]:
            setattr(self, prefix + name, nn.ModuleList(make(c) for c in self.channels))

    def with_branch(self, branch: Branch) -> Self:
        """The same head with another branch chosen; the two share their modules.

        Raises:
            ValueError: it has no such branch.
        """
        if not self.dual and branch != self.branch:
            raise ValueError(f"the head has the branch {self.branch} only, not {branch}")
        new = copy.copy(self)
        new._modules, new.branch = dict(self._modules), branch
        return new

    def with_every_row(self) -> Self:
        """The same head that does not choose: the row of every cell, as the branch ``one2many`` gives it."""
        new = copy.copy(self)
        new.every_row = True
        return new

    def forward(self, *features: Tensor) -> Tensor | tuple[Tensor, ...]:
        rows, others = self.decode(self.raw(features)), self.others(features)
        return (rows, *others) if others else rows

    def others(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The outputs after the rows."""
        return ()

    def raw(self, features: Sequence[Tensor]) -> list[RawLevel]:
        """What the chosen branch computes from each level, before any decode."""
        return [
            RawLevel(self.part("cv2", level)(x), self.part("cv3", level)(x), self.extra(x, level))
            for level, x in enumerate(features)
        ]

    def extra(self, x: Tensor, level: int) -> Tensor | None:
        """The raw values of one level beside boxes and scores: ``(B, values, H, W)``."""
        return None

    def decode(self, raw: Sequence[RawLevel]) -> Tensor:
        """Rows of the chosen branch from raw values."""
        cells = cells_of(raw, self.stride)
        return self.best_of(cells) if self.chooses else self.rows_of(*cells)

    def rows_of(self, box: Tensor, cls: Tensor, extra: Tensor | None, points: Tensor, strides: Tensor) -> Tensor:
        """Decode any cells, ``(..., values)`` as of :class:`Cells`, to rows ``cx, cy, w, h``, probabilities, extras."""
        parts = (self.boxes_of(box, extra, points, strides), cls.sigmoid(), *self.extras_of(extra, points, strides))
        return torch.cat(parts, -1)

    def boxes_of(self, box: Tensor, extra: Tensor | None, points: Tensor, strides: Tensor) -> Tensor:
        """The boxes of any cells, ``cx, cy, w, h`` in pixels."""
        return upright_box(self.distances_of(box), points, strides)

    def distances_of(self, box: Tensor) -> Tensor:
        """Raw box values ``(..., 4 reg_max)`` to distances to the left, top, right and bottom side, in cells."""
        return box if self.reg_max == 1 else cast(Tensor, self.dfl(box))

    def extras_of(self, extra: Tensor | None, points: Tensor, strides: Tensor) -> tuple[Tensor, ...]:
        """The extra columns of any cells."""
        return () if extra is None else (extra,)

    def final_boxes(self, boxes: Tensor) -> Tensor:
        """The boxes of rows that need no NMS, from ``cx, cy, w, h``."""
        return corners(boxes)

    @torch.no_grad()
    def random_weights(self, gain: float) -> None:
        """Rare detections, in boxes of a few cells."""
        for prefix in PREFIXES.values():
            if not hasattr(self, f"{prefix}cv3"):
                continue
            boxes, classes = (_last_convs(getattr(self, prefix + part)) for part in ("cv2", "cv3"))
            fill_biases(classes, -4.0)
            if self.depthwise:  # its scores vary less, and none would be high
                for conv in classes:
                    conv.weight.mul_(1.5)
            if self.reg_max == 1:
                fill_biases(boxes, 4.0)

    def alone(self) -> Self:
        """The head with the modules of the chosen branch only, as files have it that were folded before saving."""
        others = {prefix + part for branch, prefix in PREFIXES.items() if branch != self.branch for part in self.parts}
        new = copy.copy(self)
        new._modules = {name: module for name, module in self._modules.items() if name not in others}
        new.dual = False
        return new

    def fuse(self, path: str) -> Self:
        """Fold the batch norms of the chosen branch and leave the other one out."""
        new = self.alone()
        new._modules = {name: fuse_model(module, f"{path}.{name}") for name, module in new.named_children()}
        return new

    def part(self, name: str, level: int) -> nn.Module:
        """The chosen branch's module of that name and level."""
        return cast(nn.Module, getattr(self, PREFIXES[self.branch] + name)[level])

    def best_of(self, cells: Cells) -> Tensor:
        """The detections that need no NMS. A logit orders as its probability does, and does not saturate."""
        count: int = torch.sym_min(MOST_DETECTIONS, cells.cls.shape[1])  # type: ignore[no-untyped-call]
        _, index = best_scores(cells.cls.amax(2), count)
        chosen = cells.take(index)
        logits, place = best_scores(chosen.cls.flatten(1), count)
        rank = place // self.num_classes  # in whole numbers: places are too large for half precision
        label = place - rank * self.num_classes
        # The same cell may be wanted several times: from here on it is one row each time.
        box, _, extra, points, strides = cells.take(torch.gather(index, 1, rank))
        boxes = self.final_boxes(self.boxes_of(box, extra, points, strides))
        found = torch.stack((logits.sigmoid(), label.to(logits.dtype)), -1)
        return torch.cat((boxes, found, *self.extras_of(extra, points, strides)), -1)


def _last_convs(levels: nn.ModuleList) -> list[nn.Conv2d]:
    return [cast(nn.Conv2d, cast(nn.Sequential, level)[-1]) for level in levels]


def box_branch(channels: int, width: int, outputs: int) -> nn.Sequential:
    """Two 3x3 convolutions, and the 1x1 that gives the values."""
    return nn.Sequential(Conv(channels, width, 3), Conv(width, width, 3), nn.Conv2d(width, outputs, 1))


def _depthwise_branch(channels: int, width: int, outputs: int) -> nn.Sequential:
    """Twice a 3x3 depthwise and a 1x1 convolution, and the 1x1 that gives the values."""
    first = nn.Sequential(DWConv(channels, channels, 3), Conv(channels, width))
    second = nn.Sequential(DWConv(width, width, 3), Conv(width, width))
    return nn.Sequential(first, second, nn.Conv2d(width, outputs, 1))
