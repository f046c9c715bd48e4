"""The published layer graphs of the YOLOv7 variants, written down once more in a notation of their own.

Every word appends layers; ``@j`` is the layer that feeds it (default: the one before), counted from 0.

* ``c/k/s`` a convolution; ``R(c)`` a RepConv 3x3; ``DownC(c)``, ``SPPCSPC(c)``, ``ReOrg()``, ``MP()``, ``SP(k)``.
* ``E(a,b,n,o,T)`` 1x1 a; 1x1 a of the same input; n times 3x3 b; concatenation at the offsets of taps T; 1x1 o.
* ``EE(...)`` two of those on the same input, and their sum.
* ``D(c[,r])`` max pool; 1x1 c; 1x1 c of what was before the max pool; 3x3 c of stride 2; concatenation of the last,
  the second and layer r.
* ``U(c,r)`` 1x1 c; upsampling; 1x1 c of layer r; concatenation of the last and the one before.
* ``Cat(i,j,...)`` concatenation of offsets (negative) and layers; ``Head(i,...)`` the head.
"""

from __future__ import annotations

import re
from typing import Any

TAPS = {
    "T2": (-1, -2, -3, -4),
    "T4": (-1, -3, -5, -6),
    "T6": (-1, -3, -5, -7, -8),
    "T8": (-1, -3, -5, -7, -9, -10),
    "A4": (-1, -2, -3, -4, -5, -6),
    "A6": (-1, -2, -3, -4, -5, -6, -7, -8),
    "A8": (-1, -2, -3, -4, -5, -6, -7, -8, -9, -10),
}

GRAPHS = {
    "yolov7_tiny": """
        32/3/2 64/3/2 E(32,32,2,64,T2) MP() E(64,64,2,128,T2) MP() E(128,128,2,256,T2) MP() E(256,256,2,512,T2)
        256/1/1 256/1/1@28 SP(5)@30 SP(9)@30 SP(13)@30 Cat(-1,-2,-3,-4) 256/1/1 Cat(35,29) 256/1/1
        U(128,21) E(64,64,2,128,T2) U(64,14) E(32,32,2,64,T2)
        128/3/2 Cat(-1,47) E(64,64,2,128,T2) 256/3/2 Cat(-1,37) E(128,128,2,256,T2)
        128/3/1@57 256/3/1@65 512/3/1@73 Head(74,75,76)""",
    "yolov7": """
        32/3/1 64/3/2 64/3/1 128/3/2 E(64,64,4,256,T4) D(128) E(128,128,4,512,T4) D(256) E(256,256,4,1024,T4)
        D(512) E(256,256,4,1024,T4) SPPCSPC(512)
        U(256,37) E(256,128,4,256,A4) U(128,24) E(128,64,4,128,A4)
        D(128,63) E(256,128,4,256,A4) D(256,51) E(512,256,4,512,A4)
        R(256)@75 R(512)@88 R(1024)@101 Head(102,103,104)""",
    "yolov7x": """
        40/3/1 80/3/2 80/3/1 160/3/2 E(64,64,6,320,T6) D(160) E(128,128,6,640,T6) D(320) E(256,256,6,1280,T6)
        D(640) E(256,256,6,1280,T6) SPPCSPC(640)
        U(320,43) E(256,256,6,320,T6) U(160,28) E(128,128,6,160,T6)
        D(160,73) E(256,256,6,320,T6) D(320,59) E(512,512,6,640,T6)
        320/3/1@87 640/3/1@102 1280/3/1@117 Head(118,119,120)""",
    "yolov7_w6": """
        ReOrg() 64/3/1 128/3/2 E(64,64,4,128,T4) 256/3/2 E(128,128,4,256,T4) 512/3/2 E(256,256,4,512,T4)
        768/3/2 E(384,384,4,768,T4) 1024/3/2 E(512,512,4,1024,T4) SPPCSPC(512)
        U(384,37) E(384,192,4,384,A4) U(256,28) E(256,128,4,256,A4) U(128,19) E(128,64,4,128,A4)
        256/3/2 Cat(-1,71) E(256,128,4,256,A4) 384/3/2 Cat(-1,59) E(384,192,4,384,A4)
        512/3/2 Cat(-1,47) E(512,256,4,512,A4)
        256/3/1@83 512/3/1@93 768/3/1@103 1024/3/1@113 Head(114,115,116,117)""",
    "yolov7_e6": """
        ReOrg() 80/3/1 DownC(160) E(64,64,6,160,T6) DownC(320) E(128,128,6,320,T6) DownC(640) E(256,256,6,640,T6)
        DownC(960) E(384,384,6,960,T6) DownC(1280) E(512,512,6,1280,T6) SPPCSPC(640)
        U(480,45) E(384,192,6,480,A6) U(320,34) E(256,128,6,320,A6) U(160,23) E(128,64,6,160,A6)
        DownC(320) Cat(-1,85) E(256,128,6,320,A6) DownC(480) Cat(-1,71) E(384,192,6,480,A6)
        DownC(640) Cat(-1,57) E(512,256,6,640,A6)
        320/3/1@99 640/3/1@111 960/3/1@123 1280/3/1@135 Head(136,137,138,139)""",
    "yolov7_d6": """
        ReOrg() 96/3/1 DownC(192) E(64,64,8,192,T8) DownC(384) E(128,128,8,384,T8) DownC(768) E(256,256,8,768,T8)
        DownC(1152) E(384,384,8,1152,T8) DownC(1536) E(512,512,8,1536,T8) SPPCSPC(768)
        U(576,53) E(384,192,8,576,A8) U(384,40) E(256,128,8,384,A8) U(192,27) E(128,64,8,192,A8)
        DownC(384) Cat(-1,99) E(256,128,8,384,A8) DownC(576) Cat(-1,83) E(384,192,8,576,A8)
        DownC(768) Cat(-1,67) E(512,256,8,768,A8)
        384/3/1@115 768/3/1@129 1152/3/1@143 1536/3/1@157 Head(158,159,160,161)""",
    "yolov7_e6e": """
        ReOrg() 80/3/1 DownC(160) EE(64,64,6,160,T6) DownC(320) EE(128,128,6,320,T6) DownC(640) EE(256,256,6,640,T6)
        DownC(960) EE(384,384,6,960,T6) DownC(1280) EE(512,512,6,1280,T6) SPPCSPC(640)
        U(480,89) EE(384,192,6,480,A6) U(320,67) EE(256,128,6,320,A6) U(160,45) EE(128,64,6,160,A6)
        DownC(320) Cat(-1,162) EE(256,128,6,320,A6) DownC(480) Cat(-1,137) EE(384,192,6,480,A6)
        DownC(640) Cat(-1,112) EE(512,256,6,640,A6)
        320/3/1@187 640/3/1@210 960/3/1@233 1280/3/1@256 Head(257,258,259,260)""",
}
GRAPHS["yolov7_w6_pose"] = GRAPHS["yolov7_w6"]

AUXILIARY = {
    "yolov7_w6": "320/3/1@83 640/3/1@71 960/3/1@59 1280/3/1@47 Head(114,115,116,117,118,119,120,121)",
    "yolov7_e6": "320/3/1@99 640/3/1@85 960/3/1@71 1280/3/1@57 Head(136,137,138,139,140,141,142,143)",
    "yolov7_d6": "384/3/1@115 768/3/1@99 1152/3/1@83 1536/3/1@67 Head(158,159,160,161,162,163,164,165)",
    "yolov7_e6e": "320/3/1@186 640/3/1@161 960/3/1@136 1280/3/1@112 Head(257,258,259,260,261,262,263,264)",
}
"""What the training graphs have instead of the last word."""

_P5 = "12,16 19,36 40,28  36,75 76,55 72,146  142,110 192,243 459,401"
_P6 = "19,27 44,40 38,94  96,68 86,152 180,137  140,301 303,264 238,542  436,615 739,380 925,792"
ANCHORS = {
    **dict.fromkeys(GRAPHS, _P6),
    "yolov7_tiny": "10,13 16,30 33,23  30,61 62,45 59,119  116,90 156,198 373,326",
    "yolov7": _P5,
    "yolov7x": _P5,
}
"""Width and height in pixels, three a level."""

Layer = tuple[str, tuple[int, ...], tuple[int, ...]]
"""Kind, the layers that feed it, its numbers (of a convolution: channels, kernel, stride)."""


def layers_of(name: str, *, training: bool = False) -> list[Layer]:
    """A variant's graph, layer by layer."""
    text = GRAPHS[name]
    if training and name in AUXILIARY:
        text = re.sub(r"Head\(.*\)", AUXILIARY[name], text)
    graph = _Graph()
    for word in text.split():
        match = re.fullmatch(r"(\w*)\(?([\w,/-]*)\)?(?:@(\d+))?", word)
        assert match is not None, word
        source = int(match[3]) if match[3] else graph.last
        if "/" in word:
            c, k, s = (int(n) for n in word.partition("@")[0].split("/"))
            graph.add("Conv", source, c, k, s)
        else:
            values = [TAPS[v] if v in TAPS else int(v) for v in match[2].split(",") if v]
            graph.word(match[1], source, values)
    return graph.layers


class _Graph:
    def __init__(self) -> None:
        self.layers: list[Layer] = []

    @property
    def last(self) -> int:
        return len(self.layers) - 1

    def add(self, kind: str, sources: int | tuple[int, ...], *numbers: int) -> None:
        self.layers.append((kind, (sources,) if isinstance(sources, int) else sources, numbers))

    def absolute(self, offsets: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(o if o >= 0 else len(self.layers) + o for o in offsets)

    def word(self, kind: str, source: int, v: list[Any]) -> None:
        if kind == "E":
            self.elan(source, *v)
        elif kind == "EE":
            self.elan(source, *v)
            once = self.last
            self.elan(source, *v)
            self.add("Shortcut", (self.last, once))
        elif kind == "D":
            self.add("MP", source)
            self.add("Conv", self.last, v[0], 1, 1)
            pooled = self.last
            self.add("Conv", source, v[0], 1, 1)
            self.add("Conv", self.last, v[0], 3, 2)
            self.add("Concat", (self.last, pooled, *v[1:]))
        elif kind == "U":
            self.add("Conv", source, v[0], 1, 1)
            self.add("nn.Upsample", self.last, 2)
            self.add("Conv", v[1], v[0], 1, 1)
            self.add("Concat", (self.last, self.last - 1))
        elif kind in ("Cat", "Head"):
            self.add({"Cat": "Concat", "Head": "Head"}[kind], self.absolute(tuple(v)))
        elif kind == "R":
            self.add("RepConv", source, *v, 3, 1)
        else:
            self.add(kind, source, *v)

    def elan(self, source: int, a: int, b: int, n: int, out: int, taps: tuple[int, ...]) -> None:
        self.add("Conv", source, a, 1, 1)
        self.add("Conv", source, a, 1, 1)
        for _ in range(n):
            self.add("Conv", self.last, b, 3, 1)
        self.add("Concat", self.absolute(taps))
        self.add("Conv", self.last, out, 1, 1)
