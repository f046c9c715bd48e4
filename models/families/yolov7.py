"""YOLOv7: tiny, base, X, W6, E6, D6, E6E and W6-pose, and custom models of the same layers.

Paper: arXiv 2207.02696. Original: WongKinYiu/yolov7, main and branch ``pose`` (GPL-3.0; the pose branch is derived
from TexasInstruments/edgeai-yolov5, GPL-3.0). Layer graphs, keys, anchors and numbers are facts taken over; the code
is ours. State dicts of the original load unchanged.

The graphs are written with five macros, each of which appends rows:
``elan`` (two 1x1, a chain of 3x3, a concatenation of some of them, a 1x1), ``double_elan`` (two of them, added),
``down`` (max pool beside a strided convolution), ``up`` (upsampling beside a lateral 1x1) and single layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from deploykit.models.checkpoint.reader import Checkpoint
from deploykit.models.class_names import COCO_CLASSES
from deploykit.models.layers.anchor_head import IAuxDetect, Keypoint
from deploykit.models.registry import ReferenceModel, register_variants
from deploykit.models.yolo_graph.description import GraphConfig, Row
from deploykit.models.yolo_graph.family import (
    HeadShape,
    classes_of,
    custom_name,
    has_layers,
    keypoints_of,
    nearest_variant,
    normal_rows,
    reference_of,
)
from deploykit.models.yolo_graph.from_checkpoint import graph_from_checkpoint
from deploykit.models.yolo_graph.layer_graph import build_graph
from deploykit.models.yolo_graph.one_class import with_score_of_one_class

FAMILY = "YOLOv7"
WEIGHTS_LICENCE = "GPL-3.0"

ANCHORS_P5 = ((12, 16, 19, 36, 40, 28), (36, 75, 76, 55, 72, 146), (142, 110, 192, 243, 459, 401))
ANCHORS_TINY = ((10, 13, 16, 30, 33, 23), (30, 61, 62, 45, 59, 119), (116, 90, 156, 198, 373, 326))
ANCHORS_P6 = (
    (19, 27, 44, 40, 38, 94),
    (96, 68, 86, 152, 180, 137),
    (140, 301, 303, 264, 238, 542),
    (436, 615, 739, 380, 925, 792),
)

SPARSE4, SPARSE6, SPARSE8 = (-1, -3, -5, -6), (-1, -3, -5, -7, -8), (-1, -3, -5, -7, -9, -10)


def dense(n: int) -> tuple[int, ...]:
    """Taps of an ``elan`` that concatenates all of its n + 2 convolutions."""
    return tuple(-i for i in range(1, n + 3))


class _Rows(list[Row]):
    """Rows of a graph, with the family's macros."""

    def __init__(self, act: str | None = None) -> None:
        super().__init__()
        self._act = ["None", 1, act] if act else []

    def layer(self, kind: str, *args: Any, source: int | list[int] = -1) -> None:
        self.append([source, 1, kind, list(args)])

    def conv(self, c: int, k: int = 1, s: int = 1, source: int = -1) -> None:
        self.layer("Conv", c, k, s, *self._act, source=source)

    def elan(self, a: int, b: int, n: int, out: int, taps: Sequence[int], source: int = -1) -> None:
        self.conv(a, source=source)
        self.conv(a, source=source - 1)
        for _ in range(n):
            self.conv(b, 3)
        self.layer("Concat", 1, source=list(taps))
        self.conv(out)

    def double_elan(self, a: int, b: int, n: int, out: int, taps: Sequence[int]) -> None:
        self.elan(a, b, n, out, taps)
        self.elan(a, b, n, out, taps, source=-(n + 5))
        self.layer("Shortcut", 1, source=[-1, -(n + 5)])

    def down(self, c: int, route: int | None = None) -> None:
        self.layer("MP")
        self.conv(c)
        self.conv(c, source=-3)
        self.conv(c, 3, 2)
        self.layer("Concat", 1, source=[-1, -3] if route is None else [-1, -3, route])

    def up(self, c: int, route: int) -> None:
        self.conv(c)
        self.layer("nn.Upsample", "None", 2, "nearest")
        self.conv(c, source=route)
        self.layer("Concat", 1, source=[-1, -2])

    def head(self, kind: str, sources: list[int]) -> None:
        keypoints = ["nkpt"] if kind == "IKeypoint" else []
        self.layer(kind, "nc", "anchors", *keypoints, source=sources)


def _tiny_rows(training: bool) -> _Rows:
    rows, taps = _Rows("nn.LeakyReLU(0.1)"), (-1, -2, -3, -4)
    rows.conv(32, 3, 2)
    rows.conv(64, 3, 2)
    for c in (32, 64, 128, 256):
        if c > 32:
            rows.layer("MP")
        rows.elan(c, c, 2, 2 * c, taps)
    rows.conv(256)
    rows.conv(256, source=-2)
    for k, source in ((5, -1), (9, -2), (13, -3)):
        rows.layer("SP", k, source=source)
    rows.layer("Concat", 1, source=list(taps))
    rows.conv(256)
    rows.layer("Concat", 1, source=[-1, -7])
    rows.conv(256)
    for c, route in ((128, 21), (64, 14)):
        rows.up(c, route)
        rows.elan(c // 2, c // 2, 2, c, taps)
    for c, route in ((128, 47), (256, 37)):
        rows.conv(c, 3, 2)
        rows.layer("Concat", 1, source=[-1, route])
        rows.elan(c // 2, c // 2, 2, c, taps)
    for c, source in ((128, 57), (256, 65), (512, 73)):
        rows.conv(c, 3, source=source)
    rows.head("IDetect" if training else "Detect", [74, 75, 76])
    return rows


def _p5_rows(training: bool, wide: bool) -> _Rows:
    """Base (``wide`` False) and X: X is 1.25 times as wide, has longer chains and plain output convolutions."""
    rows = _Rows()
    n, sparse = (6, SPARSE6) if wide else (4, SPARSE4)
    u = 80 if wide else 64  # the unit of width; the chains of the base are narrower where X widens the ends
    for c, s in ((u // 2, 1), (u, 2), (u, 1), (2 * u, 2)):
        rows.conv(c, 3, s)
    for i, c in enumerate((64, 128, 256, 256)):
        if i:
            rows.down((2 * u, 4 * u, 8 * u)[i - 1])
        rows.elan(c, c, n, (4 * u, 8 * u, 16 * u, 16 * u)[i], sparse)
    pyramid = len(rows)
    rows.layer("SPPCSPC", 8 * u)
    chain, taps = (256, sparse) if wide else (128, dense(4))
    routes = (43, 28) if wide else (37, 24)
    for i, route in enumerate(routes):
        rows.up((4 * u, 2 * u)[i], route)
        rows.elan(256 >> i, chain >> i, n, (4 * u, 2 * u)[i], taps)
    tops = [len(rows) - 1, pyramid + n + 8, pyramid]  # what the way up concatenates with the way down
    outputs = [tops[0]]
    for i in range(2):
        rows.down((2 * u, 4 * u)[i], tops[i + 1])
        rows.elan(256 << i, (256 if wide else 128) << i, n, (4 * u, 8 * u)[i], taps)
        outputs.append(len(rows) - 1)
    first = len(rows)
    for c, source in zip((4 * u, 8 * u, 16 * u), outputs, strict=True):
        rows.layer("Conv" if wide else "RepConv", c, 3, 1, source=source)
    rows.head("IDetect" if training else "Detect", list(range(first, first + 3)))
    return rows


def _p6_rows(unit: int, n: int, head: str, *, down: str = "DownC", doubled: bool = False) -> _Rows:
    """W6, E6, D6 and E6E: ``unit`` is the stem's width, ``n`` the length of the chains."""
    rows = _Rows()
    elan = rows.double_elan if doubled else rows.elan
    sparse = {4: SPARSE4, 6: SPARSE6, 8: SPARSE8}[n]

    def halve(c: int) -> None:
        if down == "DownC":
            rows.layer("DownC", c)
        else:
            rows.conv(c, 3, 2)

    rows.layer("ReOrg")
    rows.conv(unit, 3)
    stages = []
    for a, out in zip((64, 128, 256, 384, 512), (2, 4, 8, 12, 16), strict=True):
        halve(out * unit)
        elan(a, a, n, out * unit, sparse)
        stages.append(len(rows) - 1)
    rows.layer("SPPCSPC", 8 * unit)
    ways_up = [len(rows) - 1]
    for c, a, route in zip((6, 4, 2), (384, 256, 128), reversed(stages[1:4]), strict=True):
        rows.up(c * unit, route)
        elan(a, a // 2, n, c * unit, dense(n))
        ways_up.append(len(rows) - 1)
    outputs = [ways_up[-1]]
    for c, a, route in zip((4, 6, 8), (256, 384, 512), reversed(ways_up[:3]), strict=True):
        halve(c * unit)
        rows.layer("Concat", 1, source=[-1, route])
        elan(a, a // 2, n, c * unit, dense(n))
        outputs.append(len(rows) - 1)
    first = len(rows)
    for c, source in zip((4, 8, 12, 16), outputs, strict=True):
        rows.conv(c * unit, 3, source=source)
    if head != "IAuxDetect":
        rows.head(head, list(range(first, first + 4)))
        return rows
    # E6E's auxiliary convolutions look at the second block, before the sum.
    before_sum = 1 if doubled else 0
    auxiliary = [way - before_sum for way in reversed(ways_up[1:])] + [ways_up[0]]
    base = {64: 320, 80: 320, 96: 384}[unit]
    for i, source in enumerate(auxiliary):
        rows.conv(base * (i + 1), 3, source=source)
    rows.head(head, list(range(first, first + 8)))
    return rows


_P6: dict[str, Callable[[str], _Rows]] = {
    "yolov7_w6": lambda head: _p6_rows(64, 4, head, down="Conv"),
    "yolov7_e6": lambda head: _p6_rows(80, 6, head),
    "yolov7_d6": lambda head: _p6_rows(96, 8, head),
    "yolov7_e6e": lambda head: _p6_rows(80, 6, head, doubled=True),
}


def layer_rows(name: str, *, training: bool = False) -> _Rows:
    """The layer graph of a variant, ``yolov7_tiny`` and so on; ``training``: with the heads that only training uses."""
    if name == "yolov7_tiny":
        return _tiny_rows(training)
    if name in ("yolov7", "yolov7x"):
        return _p5_rows(training, wide=name == "yolov7x")
    if name == "yolov7_w6_pose":
        return _p6_rows(64, 4, "IKeypoint", down="Conv")
    return _P6[name]("IAuxDetect" if training else "Detect")


VARIANTS = ("yolov7_tiny", "yolov7", "yolov7x", *_P6, "yolov7_w6_pose")
SIZES = {"yolov7_tiny": 640, "yolov7": 640, "yolov7x": 640, "yolov7_w6_pose": 960}


def config_of(
    name: str, num_classes: int, *, num_keypoints: int = 17, training: bool = False, width: float = 1.0
) -> GraphConfig:
    """A variant's whole description, for any number of classes and keypoints."""
    pose = name == "yolov7_w6_pose"
    anchors = ANCHORS_TINY if name == "yolov7_tiny" else ANCHORS_P5 if name in ("yolov7", "yolov7x") else ANCHORS_P6
    return GraphConfig(
        rows=tuple(layer_rows(name, training=training)),
        num_classes=num_classes,
        anchors=anchors,
        num_keypoints=num_keypoints if pose else 0,
        depthwise_keypoints=pose,
        width_multiple=width,
        strides=(8, 16, 32, 64)[: len(anchors)],
    )


def _build(name: str, num_classes: int | None) -> ReferenceModel:
    num_classes = num_classes or (1 if name.endswith("_pose") else len(COCO_CLASSES))
    graph = build_graph(config_of(name, num_classes))
    pose = isinstance(graph.head, Keypoint)
    classes = COCO_CLASSES if num_classes == 80 else ("person",) if pose and num_classes == 1 else None
    model = reference_of(graph, name, FAMILY, classes, SIZES.get(name, 1280))
    return with_score_of_one_class(model, graph.head, None, yolov7=True, published=True)


def _about(name: str) -> str:
    size, people = SIZES.get(name, 1280), ": persons with 17 keypoints" if name.endswith("_pose") else ""
    return f"{name.replace('yolov7', 'YOLOv7').replace('_', '-')}, {size} px{people}."


register_variants(__name__, VARIANTS, _build, _about)


def from_checkpoint(checkpoint: Checkpoint) -> ReferenceModel | None:
    """Build the model a checkpoint is of: from its own description, or from the keys and shapes of its tensors.

    Returns None when it is not of this family.
    """
    if not has_layers(checkpoint):
        return None
    name, config = _described(checkpoint) if checkpoint.yaml else _recognised(checkpoint)
    if config is None:
        return None
    loaded = graph_from_checkpoint(checkpoint, config, name.replace("_", "-"))
    graph, notes = loaded.graph, loaded.notes
    if isinstance(graph.head, IAuxDetect):
        notes = (*notes, "a training checkpoint: the auxiliary heads are dropped on export")
    classes, unnamed = classes_of(checkpoint, graph)
    keypoints, numbered = keypoints_of(checkpoint, graph)
    variant = name.partition("-width-")[0]
    size = SIZES.get(variant, 640 if max(graph.head.stride) <= 32 else 1280)
    notes = (*notes, *unnamed, *numbered)
    model = reference_of(graph, name, FAMILY, classes, size, notes, channels=config.channels, keypoints=keypoints)
    model = model.assuming(*loaded.assumptions)
    return with_score_of_one_class(model, graph.head, checkpoint, yolov7=True, published=variant in VARIANTS)


def _described(checkpoint: Checkpoint) -> tuple[str, GraphConfig]:
    """The checkpoint's own description, and the variant that it is, or what its file calls itself."""
    assert checkpoint.yaml is not None
    config = GraphConfig.from_yaml(checkpoint.yaml)
    rows = normal_rows(config.rows)
    for name in VARIANTS:
        for training in (False, True):
            if rows == normal_rows(layer_rows(name, training=training)):
                return (name if config.width_multiple == 1.0 else f"{name}-width-{config.width_multiple:g}"), config
    return custom_name(checkpoint, VARIANTS, "yolov7-custom"), config


def _recognised(checkpoint: Checkpoint) -> tuple[str, GraphConfig | None]:
    """The variant that a state dict without a description is of."""
    head = HeadShape.of(checkpoint)
    if head is None:
        return "", None
    candidates = (
        (name, config_of(name, head.num_classes, num_keypoints=head.num_keypoints, training=training))
        for name in VARIANTS
        for training in (False, True)
        if (head.num_keypoints > 0) == (name == "yolov7_w6_pose")
    )
    return nearest_variant(checkpoint, head, candidates)
