"""Small heads of every kind, with seeded weights that hide nothing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from deploykit.models.create.random_weights import randomise
from deploykit.models.families.ultralytics.heads.detect import FreeDetect
from deploykit.models.families.ultralytics.heads.oriented import Oriented, Oriented26
from deploykit.models.families.ultralytics.heads.points import RawLevel
from deploykit.models.families.ultralytics.heads.pose import FreePose, Pose26
from deploykit.models.families.ultralytics.heads.segment import Segment, Segment26

__all__ = ["CHANNELS", "HEADS", "STRIDES", "features", "levels_of", "rows_of", "seeded"]

CHANNELS, STRIDES = (8, 16, 24), (8, 16, 32)

HEADS: dict[str, Callable[[], FreeDetect]] = {
    "detect": lambda: FreeDetect(3, CHANNELS),
    "depthwise": lambda: FreeDetect(3, CHANNELS, depthwise=True),
    "v10": lambda: FreeDetect(3, CHANNELS, depthwise=True, dual=True),
    "26": lambda: FreeDetect(3, CHANNELS, reg_max=1, depthwise=True, dual=True),
    "pose": lambda: FreePose(1, CHANNELS, (5, 3)),
    "face": lambda: FreePose(2, CHANNELS, (5, 2)),
    "pose26": lambda: Pose26(2, CHANNELS, (5, 3), reg_max=1, depthwise=True, dual=True),
    "face26": lambda: Pose26(1, CHANNELS, (4, 2), reg_max=1, depthwise=True, dual=True),
    "segment": lambda: Segment(3, CHANNELS, 6, 8),
    "segment26": lambda: Segment26(3, CHANNELS, 6, 8, reg_max=1, depthwise=True, dual=True),
    "oriented": lambda: Oriented(3, CHANNELS),
    "oriented26": lambda: Oriented26(3, CHANNELS, reg_max=1, depthwise=True, dual=True),
}


def seeded(make: Callable[[], FreeDetect], seed: int = 0) -> FreeDetect:
    """A head with random weights, and scores that are neither all high nor all low."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = make().eval()
        randomise(head)
    head.set_stride(STRIDES)
    return head.requires_grad_(False)


def features(
    batch: int, height: int, width: int, seed: int = 0, channels: tuple[int, ...] = CHANNELS
) -> tuple[Tensor, ...]:
    """Maps as of an image of that size."""
    chance = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(batch, c, height // s, width // s, generator=chance) for c, s in zip(channels, STRIDES, strict=True)
    )


def rows_of(head: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    """The head's rows, without prototypes."""
    out = head(*inputs)
    rows = out[0] if isinstance(out, tuple) else out
    assert isinstance(rows, Tensor)
    return rows


def levels_of(
    box: Tensor, cls: Tensor, extra: Tensor | None, height: int, width: int, strides: tuple[int, ...] = STRIDES
) -> list[RawLevel]:
    """Raw values of all cells in a row, ``(B, values, N)``, to maps."""
    sizes = [(height // s, width // s) for s in strides]
    areas = [h * w for h, w in sizes]

    def maps(values: Tensor) -> list[Tensor]:
        return [part.unflatten(2, size) for part, size in zip(values.split(areas, 2), sizes, strict=True)]

    extras = [None] * len(sizes) if extra is None else maps(extra)
    return [RawLevel(*level) for level in zip(maps(box), maps(cls), extras, strict=True)]
