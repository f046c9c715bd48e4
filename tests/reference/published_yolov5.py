"""The published layer graphs of YOLOv5, written down once more in a notation of their own.

Every word appends layers, fed by the one before.

* ``c/k/s`` a convolution; ``Focus(c)``; ``SPP(c,k,...)``, ``SPPF(c,k)``.
* ``B(c,n)`` n bottlenecks with shortcut in a cross-stage block, ``b(c,n)`` without: BottleneckCSP in generation 3, C3.
* ``U(c,r)`` 1x1 c; upsampling; concatenation of the last and layer r. ``Cat(r)`` concatenation of the last and layer r.
* ``Head(i,...)`` the head.
"""

from __future__ import annotations

import re
from typing import Any

_HEAD_P5 = """
    U(512,6) b(512,3) U(256,4) b(256,3)
    256/3/2 Cat(14) b(512,3) 512/3/2 Cat(10) b(1024,3) Head(17,20,23)"""
_HEAD_P6 = """
    U(768,8) b(768,3) U(512,6) b(512,3) U(256,4) b(256,3)
    256/3/2 Cat(20) b(512,3) 512/3/2 Cat(16) b(768,3) 768/3/2 Cat(12) b(1024,3) Head(23,26,29,32)"""
_EARLY_P5 = """
    Focus(64) 128/3/2 B(128,3) 256/3/2 B(256,9) 512/3/2 B(512,9) 1024/3/2 SPP(1024,5,9,13) b(1024,3)"""
_EARLY_P6 = """
    Focus(64) 128/3/2 B(128,3) 256/3/2 B(256,9) 512/3/2 B(512,9) 768/3/2 B(768,3) 1024/3/2 SPP(1024,3,5,7) b(1024,3)"""
_LATE_P5 = """
    64/6/2 128/3/2 B(128,3) 256/3/2 B(256,6) 512/3/2 B(512,9) 1024/3/2 B(1024,3) SPPF(1024,5)"""
_LATE_P6 = """
    64/6/2 128/3/2 B(128,3) 256/3/2 B(256,6) 512/3/2 B(512,9) 768/3/2 B(768,3) 1024/3/2 B(1024,3) SPPF(1024,5)"""

GRAPHS = {
    (3, 3): _EARLY_P5 + _HEAD_P5,
    (3, 5): _EARLY_P5 + _HEAD_P5,
    (3, 7): _LATE_P5 + _HEAD_P5,
    (4, 5): _EARLY_P6 + _HEAD_P6,
    (4, 7): _LATE_P6 + _HEAD_P6,
}
"""By number of levels and generation; there are no four levels of generation 3."""

Layer = tuple[str, tuple[int, ...], int, tuple[Any, ...]]
"""Kind, the layers that feed it, repeats, its arguments."""


def layers_of(levels: int, generation: int) -> list[Layer]:
    """A graph, layer by layer."""
    layers: list[Layer] = []
    block = "BottleneckCSP" if generation == 3 else "C3"

    def add(kind: str, *arguments: Any, sources: tuple[int, ...] = (), repeats: int = 1) -> None:
        layers.append((kind, sources or (len(layers) - 1,), repeats, arguments))

    for word in GRAPHS[levels, generation].split():
        name, _, inside = word.rstrip(")").partition("(")
        v = [int(n) for n in re.split(r"[,/]", inside or name)]
        last = len(layers) - 1
        if "/" in word:
            add("Conv", *v, *([2] if v[1] == 6 else []))
        elif name in ("B", "b"):
            add(block, v[0], *([] if name == "B" else [False]), repeats=v[1])
        elif name == "SPP":
            add("SPP", v[0], v[1:])
        elif name == "Focus":
            add("Focus", v[0], 3)
        elif name == "U":
            add("Conv", v[0], 1, 1)
            add("nn.Upsample", "None", 2, "nearest")
            add("Concat", 1, sources=(last + 2, v[1]))
        elif name == "Cat":
            add("Concat", 1, sources=(last, v[0]))
        elif name == "Head":
            add("Detect", "nc", "anchors", sources=tuple(v))
        else:
            add(name, *v)
    return layers
