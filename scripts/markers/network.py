"""The network: YOLOv7-tiny's blocks, narrow, three levels, and the head of yolov7-w6-pose with four keypoints."""

from __future__ import annotations

from typing import Any

from deploykit.models.yolo_graph.description import GraphConfig, Row

ANCHORS = ((24, 24), (70, 70), (200, 200))
"""One square per level, in pixels: codes are square, and perspective seldom halves a side. With one anchor the channels
of boxes and of corners are not mixed as they are in the originals (see ``layers.anchor_head.Keypoint``)."""

ACT = ("None", 1, "nn.LeakyReLU(0.1)")


def rows() -> tuple[Row, ...]:
    """The layer graph, about 220,000 parameters."""
    out: list[Row] = []

    def add(kind: str, *arguments: Any, source: int | list[int] = -1) -> int:
        out.append([source, 1, kind, list(arguments)])
        return len(out) - 1

    def conv(c: int, k: int = 1, s: int = 1, source: int = -1) -> int:
        return add("Conv", c, k, s, *ACT, source=source)

    def elan(a: int, c: int) -> int:
        conv(a)
        conv(a, source=-2)
        conv(a, 3)
        conv(a, 3)
        add("Concat", 1, source=[-1, -2, -3, -4])
        return conv(c)

    def up(c: int, lateral: int, source: int) -> None:
        conv(c)
        add("nn.Upsample", "None", 2, "nearest")
        conv(lateral, source=source)
        add("Concat", 1, source=[-1, -2])

    conv(16, 3, 2)
    conv(24, 3, 2)
    conv(24, 3)
    add("MP")
    eighth = elan(24, 40)
    add("MP")
    sixteenth = elan(24, 48)
    add("MP")
    elan(28, 56)
    start = conv(32)
    for k, back in ((5, -1), (9, -2), (13, -3)):
        add("SP", k, source=back)
    add("Concat", 1, source=[-1, -2, -3, start])
    deep = conv(32)
    up(24, 24, sixteenth)
    middle = elan(20, 40)
    up(20, 20, eighth)
    outputs = [elan(24, 40)]
    for a, c, joined in ((20, 40, middle), (20, 40, deep)):
        conv(32, 3, 2)
        add("Concat", 1, source=[-1, joined])
        outputs.append(elan(a, c))
    heads = [conv(c, 3, source=source) for c, source in zip((40, 40, 40), outputs, strict=True)]
    add("IKeypoint", "nc", "anchors", "nkpt", source=heads)
    return tuple(out)


def config() -> GraphConfig:
    """The whole description: two classes, four keypoints from a branch of their own."""
    return GraphConfig(
        rows=rows(), num_classes=2, anchors=ANCHORS, num_keypoints=4, depthwise_keypoints=True, strides=(8, 16, 32)
    )
