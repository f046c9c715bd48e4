"""The layers of the published networks of the ultralytics package, as rows.

Facts from the published model descriptions (AGPL-3.0); the functions that write the rows are ours.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from deploykit.models.yolo_graph.description import Row

__all__ = ["SIZES_OF_V9", "v3", "v3_tiny", "v5", "v8", "v9", "v9e", "v10", "v11", "v12", "v26"]

Rows = tuple[Row, ...]


class RowList(list[Row]):
    """Rows in the making; each method gives the number of the row that it adds."""

    def add(self, kind: str, *arguments: Any, source: int | Sequence[int] = -1, repeats: int = 1) -> int:
        self.append([source if isinstance(source, int) else list(source), repeats, kind, list(arguments)])
        return len(self) - 1

    def conv(self, width: int, kernel: int = 3, stride: int = 2, **more: Any) -> int:
        return self.add("Conv", width, kernel, stride, **more)

    def up(self, other: int) -> int:
        """Twice as large, beside an earlier map."""
        self.add("nn.Upsample", "None", 2, "nearest")
        return self.add("Concat", 1, source=[-1, other])

    def beside(self, other: int) -> int:
        return self.add("Concat", 1, source=[-1, other])


def _head(rows: RowList, head: str, levels: Sequence[int]) -> Rows:
    arguments: dict[str, tuple[Any, ...]] = {
        "Segment": ("nc", 32, 256), "Segment26": ("nc", 32, 256), "Pose": ("nc", "kpt_shape"),
        "Pose26": ("nc", "kpt_shape"), "OBB": ("nc", 1), "OBB26": ("nc", 1),
    }  # fmt: skip
    rows.add(head, *arguments.get(head, ("nc",)), source=levels)
    return tuple(rows)


def v8(head: str, form: str = "") -> Rows:
    """YOLOv8; ``form`` is ``p2`` or ``p6`` of the networks with a finer or a coarser fourth level."""
    rows = RowList()
    widths = (128, 256, 512, 768, 1024) if form == "p6" else (128, 256, 512, 1024)
    rows.conv(64)
    stages = []
    for width, repeats in zip(widths, (3, 6, 6, 3, 3), strict=False):
        rows.conv(width)
        stages.append(rows.add("C2f", width, True, repeats=repeats))
    if head == "Classify":
        rows.add("Classify", "nc")
        return tuple(rows)
    top = rows.add("SPPF", widths[-1], 5)
    block = "C2" if form == "p6" else "C2f"
    more: tuple[Any, ...] = (False,) if form == "p6" else ()
    lowest = 0 if form == "p2" else 1
    ways_up = [top]
    for width, stage in reversed(list(zip(widths[lowest:-1], stages[lowest:-1], strict=True))):
        rows.up(stage)
        ways_up.append(rows.add(block, width, *more, repeats=3))
    levels = [ways_up.pop()]
    for width, wider in itertools.pairwise(widths[lowest:]):
        rows.conv(width)
        rows.beside(ways_up.pop())
        levels.append(rows.add(block, wider, *more, repeats=3))
    return _head(rows, head, levels)


def v11(head: str) -> Rows:
    """YOLO11."""
    rows = RowList()
    rows.conv(64)
    rows.conv(128)
    rows.add("C3k2", 256, False, 0.25, repeats=2)
    rows.conv(256)
    rows.add("C3k2", 512, False, 0.25, repeats=2)
    rows.conv(512)
    rows.add("C3k2", 512, True, repeats=2)
    rows.conv(1024)
    rows.add("C3k2", 1024, True, repeats=2)
    if head == "Classify":
        rows.add("C2PSA", 1024, repeats=2)
        rows.add("Classify", "nc")
        return tuple(rows)
    rows.add("SPPF", 1024, 5)
    rows.add("C2PSA", 1024, repeats=2)
    rows.up(6)
    rows.add("C3k2", 512, False, repeats=2)
    rows.up(4)
    rows.add("C3k2", 256, False, repeats=2)
    rows.conv(256)
    rows.beside(13)
    rows.add("C3k2", 512, False, repeats=2)
    rows.conv(512)
    rows.beside(10)
    rows.add("C3k2", 1024, True, repeats=2)
    return _head(rows, head, (16, 19, 22))


def v26(head: str, form: str = "") -> Rows:
    """YOLO26; ``form`` as of :func:`v8`."""
    if head == "Classify":
        return v11(head)
    rows = RowList()
    widths = (128, 256, 512, 768, 1024) if form == "p6" else (128, 256, 512, 1024)
    rows.conv(64)
    rows.conv(128)
    stages = [rows.add("C3k2", 256, False, 0.25, repeats=2)]
    rows.conv(256)
    stages.append(rows.add("C3k2", 512, False, 0.25, repeats=2))
    for width in widths[2:]:
        rows.conv(width)
        stages.append(rows.add("C3k2", width, True, repeats=2))
    rows.add("SPPF", 1024, 5, 3, form != "p6")
    ways_up = [rows.add("C2PSA", 1024, repeats=2)]
    lowest = 0 if form == "p2" else 1
    for width, stage in reversed(list(zip(widths[lowest:-1], stages[lowest:-1], strict=True))):
        rows.up(stage)
        ways_up.append(rows.add("C3k2", width, True, repeats=2))
    levels = [ways_up.pop()]
    for width, wider in itertools.pairwise(widths[lowest:]):
        rows.conv(width)
        rows.beside(ways_up.pop())
        last = wider == widths[-1]
        more: tuple[Any, ...] = (0.5, True) if last else ()
        levels.append(rows.add("C3k2", wider, True, *more, repeats=1 if last else 2))
    return _head(rows, head if head == "Detect" else f"{head}26", levels)


def v12(head: str) -> Rows:
    """YOLO12."""
    rows = RowList()
    rows.conv(64)
    rows.conv(128)
    rows.add("C3k2", 256, False, 0.25, repeats=2)
    rows.conv(256)
    rows.add("C3k2", 512, False, 0.25, repeats=2)
    rows.conv(512)
    rows.add("A2C2f", 512, True, 4, repeats=4)
    rows.conv(1024)
    rows.add("A2C2f", 1024, True, 1, repeats=4)
    if head == "Classify":
        rows.add("Classify", "nc")
        return tuple(rows)
    rows.up(6)
    rows.add("A2C2f", 512, False, -1, repeats=2)
    rows.up(4)
    rows.add("A2C2f", 256, False, -1, repeats=2)
    rows.conv(256)
    rows.beside(11)
    rows.add("A2C2f", 512, False, -1, repeats=2)
    rows.conv(512)
    rows.beside(8)
    rows.add("C3k2", 1024, True, repeats=2)
    return _head(rows, head, (14, 17, 20))


CIB_LAYERS = {"n": "22", "s": "8 22", "m": "8 19 22", "b": "8 13 19 22", "l": "8 13 19 22", "x": "6 8 13 19 22"}
"""Size of YOLOv10 -> which layers hold CIB blocks; with large kernels in n and s."""


def v10(size: str) -> Rows:
    """YOLOv10 of a size."""
    rows = RowList()
    inverted = {int(i) for i in CIB_LAYERS[size].split()}

    def block(width: int, repeats: int = 3, *, shortcut: bool = False) -> int:
        if len(rows) in inverted:
            large = (True,) if size in "ns" else ()
            return rows.add("C2fCIB", width, True, *large, repeats=repeats)
        return rows.add("C2f", width, *((True,) if shortcut else ()), repeats=repeats)

    rows.conv(64)
    rows.conv(128)
    block(128, shortcut=True)
    rows.conv(256)
    block(256, 6, shortcut=True)
    rows.add("SCDown", 512, 3, 2)
    block(512, 6, shortcut=True)
    rows.add("SCDown", 1024, 3, 2)
    block(1024, shortcut=True)
    rows.add("SPPF", 1024, 5)
    rows.add("PSA", 1024)
    rows.up(6)
    block(512)
    rows.up(4)
    block(256)
    rows.conv(256)
    rows.beside(13)
    block(512)
    rows.add("SCDown", 512, 3, 2)
    rows.beside(10)
    block(1024)
    return _head(rows, "v10Detect", (16, 19, 22))


SIZES_OF_V9: Mapping[str, tuple[Any, ...]] = {
    "t": (16, "ELAN1 32 32 16", "AConv", (64, 96, 128), 3, (48, 64)),
    "s": (32, "ELAN1 64 64 32", "AConv", (128, 192, 256), 3, (96, 128)),
    "m": (32, "RepNCSPELAN4 128 128 64 1", "AConv", (240, 360, 480), 1, (180, 240)),
    "c": (64, "RepNCSPELAN4 256 128 64 1", "ADown", (256, 512, 512), 1, (256, 512)),
}
"""Size -> the first width, layer 2, how maps are halved, widths of the stages, their repeats, and of the ways down."""


def v9(size: str, head: str) -> Rows:
    """YOLOv9 of a size of :data:`SIZES_OF_V9`."""
    first, second, down, widths, repeats, ways_down = SIZES_OF_V9[size]
    rows = RowList()

    def block(width: int, inner: int) -> int:
        return rows.add("RepNCSPELAN4", width, inner, inner // 2, repeats)

    rows.conv(first)
    rows.conv(2 * first)
    kind, *numbers = second.split()
    rows.add(kind, *map(int, numbers))
    stages = []
    for i, width in enumerate(widths):
        rows.add(down, width)
        # The second stage of c is twice as wide as what it is fed with.
        stages.append(block(512 if size == "c" else width, 256 if size == "c" and i == 0 else width))
    spatial = widths[-1]
    rows.add("SPPELAN", spatial, spatial // 2)
    rows.up(stages[1])
    middle = block(widths[1], widths[1])
    rows.up(stages[0])
    levels = [block(widths[0], widths[0])]
    for way, width, other in zip(ways_down, widths[1:], (middle, 9), strict=True):
        rows.add(down, way)
        rows.beside(other)
        levels.append(block(width, width))
    return _head(rows, head, levels)


def v9e(head: str) -> Rows:
    """YOLOv9-E, of two backbones."""
    rows = RowList()

    def block(width: int, inner: int, last: int) -> int:
        return rows.add("RepNCSPELAN4", width, inner, last, 2)

    rows.add("nn.Identity")
    rows.conv(64)
    rows.conv(128)
    sources = [1, block(256, 128, 64)]
    for half, width, inner in ((256, 512, 256), (512, 1024, 512), (1024, 1024, 512)):
        rows.add("ADown", half)
        sources.append(block(width, inner, inner // 2))
    linear = [
        rows.add("CBLinear", [64 * 2**k for k in range(i + 1)], source=source) for i, source in enumerate(sources)
    ]

    def fuse(first: int, last: int) -> int:
        return rows.add("CBFuse", [first] * len(linear[first:]), source=[*linear[first:], last])

    fuse(0, rows.conv(64, source=0))
    fuse(1, rows.conv(128))
    block(256, 128, 64)
    stages = []
    for i, (half, width, inner) in enumerate(((256, 512, 256), (512, 1024, 512), (1024, 1024, 512))):
        fuse(2 + i, rows.add("ADown", half))
        stages.append(block(width, inner, inner // 2))
    top = rows.add("SPPELAN", 512, 256)
    rows.up(stages[1])
    middle = block(512, 512, 256)
    rows.up(stages[0])
    levels = [block(256, 256, 128)]
    rows.add("ADown", 256)
    rows.beside(middle)
    levels.append(block(512, 512, 256))
    rows.add("ADown", 512)
    rows.beside(top)
    levels.append(block(512, 1024, 512))
    return _head(rows, head, levels)


def v5(form: str = "") -> Rows:
    """YOLOv5 with the head of YOLOv8; ``form`` may be ``p6``."""
    rows = RowList()
    widths = (128, 256, 512, 768, 1024) if form == "p6" else (128, 256, 512, 1024)
    rows.add("Conv", 64, 6, 2, 2)
    stages = []
    for width, repeats in zip(widths, (3, 6, 9, 3, 3), strict=False):
        rows.conv(width)
        stages.append(rows.add("C3", width, repeats=repeats))
    rows.add("SPPF", 1024, 5)
    ways_up = []
    for width, stage in reversed(list(zip(widths[1:-1], stages[1:-1], strict=True))):
        ways_up.append(rows.conv(width, 1, 1))
        rows.up(stage)
        top = rows.add("C3", width, False, repeats=3)
    levels = [top]
    for width, wider in itertools.pairwise(widths[1:]):
        rows.conv(width)
        rows.beside(ways_up.pop())
        levels.append(rows.add("C3", wider, False, repeats=3))
    return _head(rows, "Detect", levels)


def v3(form: str = "") -> Rows:
    """YOLOv3 with the head of YOLOv8; ``form`` may be ``spp``."""
    rows = RowList()

    def bottleneck(width: int, repeats: int = 1, *, shortcut: bool = True) -> int:
        return rows.add("Bottleneck", width, *(() if shortcut else (False,)), repeats=repeats)

    rows.conv(32, 3, 1)
    for width, repeats in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)):
        rows.conv(width)
        bottleneck(width, repeats)
    bottleneck(1024, shortcut=False)
    if form == "spp":
        rows.add("SPP", 512, [5, 9, 13])
    else:
        rows.conv(512, 1, 1)
    rows.conv(1024, 3, 1)
    rows.conv(512, 1, 1)
    rows.conv(1024, 3, 1)
    rows.conv(256, 1, 1, source=-2)
    rows.up(8)
    bottleneck(512, shortcut=False)
    bottleneck(512, shortcut=False)
    rows.conv(256, 1, 1)
    rows.conv(512, 3, 1)
    rows.conv(128, 1, 1, source=-2)
    rows.up(6)
    bottleneck(256, shortcut=False)
    bottleneck(256, 2, shortcut=False)
    return _head(rows, "Detect", (27, 22, 15))


def v3_tiny() -> Rows:
    """YOLOv3-tiny with the head of YOLOv8."""
    rows = RowList()
    for width in (16, 32, 64, 128, 256):
        rows.conv(width, 3, 1)
        rows.add("nn.MaxPool2d", 2, 2, 0)
    rows.conv(512, 3, 1)
    rows.add("nn.ZeroPad2d", [0, 1, 0, 1])
    rows.add("nn.MaxPool2d", 2, 1, 0)
    rows.conv(1024, 3, 1)
    rows.conv(256, 1, 1)
    rows.conv(512, 3, 1)
    rows.conv(128, 1, 1, source=-2)
    rows.up(8)
    rows.conv(256, 3, 1)
    return _head(rows, "Detect", (19, 15))
