"""YOLOv5: n, s, m, l, x and their P6 forms, releases 3.0 to 7.0, -seg and -cls of 7.0; YOLO-Pose; and custom models of
the same layers.

Original: ultralytics/yolov5, tags v3.1, v4.0, v5.0, v6.0 and v7.0 (AGPL-3.0, formerly GPL-3.0; there is no paper).
YOLO-Pose: arXiv 2204.06806, TexasInstruments/edgeai-yolov5, branch ``yolo-pose`` (GPL-3.0). Layer graphs, keys, anchors
and numbers are facts taken over; the code is ours. State dicts of the originals load unchanged.

Three layer graphs were published, here numbered by the last release that has them:

* 3: Focus, BottleneckCSP, SPP, Hardswish (releases 3.0 and 3.1; LeakyReLU in 2.0);
* 5: the same with C3 and SiLU (4.0 and 5.0), which YOLO-Pose and KaPao have too;
* 7: a 6x6 convolution for Focus, SPPF for SPP and after the last C3, shorter second stage (6.0 to 7.0).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from deploykit.errors import CheckpointError
from deploykit.models.checkpoint.reader import Checkpoint
from deploykit.models.class_names import COCO_CLASSES
from deploykit.models.imagenet_classes import IMAGENET_CLASSES
from deploykit.models.layers.anchor_head import Keypoint
from deploykit.models.layers.focus import ConvFocus, Focus
from deploykit.models.registry import ReferenceModel, register_variants
from deploykit.models.signatures import layers_of
from deploykit.models.yolo_graph.classifier import (
    Backbone,
    build_classifier,
    classifier_from_checkpoint,
    classifier_of,
)
from deploykit.models.yolo_graph.description import NOT_GIVEN_ACT, GraphConfig, Row
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
from deploykit.models.yolo_graph.layer_graph import LayerGraph, build_graph
from deploykit.models.yolo_graph.one_class import with_score_of_one_class

FAMILY = "YOLOv5"
WEIGHTS_LICENCE = "AGPL-3.0; GPL-3.0 before 7.0 and of YOLO-Pose"
GENERATIONS = {3: "3.0 and 3.1", 5: "4.0 and 5.0", 7: "6.0 to 7.0"}
"""The published layer graphs, and the releases that have them."""

HARDSWISH = "nn.Hardswish()"  # of generation 3: no description says so
RELU = "nn.ReLU()"  # of the ti_lite models, as the one for S is described and the accuracy of M is stated

ANCHORS_P5 = ((10, 13, 16, 30, 33, 23), (30, 61, 62, 45, 59, 119), (116, 90, 156, 198, 373, 326))
ANCHORS_P6 = (
    (19, 27, 44, 40, 38, 94),
    (96, 68, 86, 152, 180, 137),
    (140, 301, 303, 264, 238, 542),
    (436, 615, 739, 380, 925, 792),
)

MASKS, PROTO_WIDTH = 32, 256  # prototypes of masks, and the channels that they are computed in before their multiple

KAPAO_CLASSES = 18 + 34  # that a KaPao model seems to have: its classes, and the coordinates beside them

_RELATIVES = {"Darknet": "a model of a Darknet description (YOLOv3, YOLOv4, YOLOR)"}

LAYERS = frozenset({"C3", "BottleneckCSP", "C3Ghost", "Bottleneck", "GhostConv", "Focus", "ConvFocus"})
"""A description of this family has at least one of these layers, and one of YOLOv7 none."""


@dataclass(frozen=True)
class Variant:
    """What a variant changes about the layer graph: repeats and widths are multiplied, a fourth level is added.

    ``lite`` is edgeai-yolov5's ``ti_lite``: two convolutions for Focus, ReLU, and one convolution for the keypoints.
    ``masks`` are those of an instance, of 7.0.
    """

    depth: float
    width: float
    levels: int = 3
    pose: bool = False
    lite: bool = False
    masks: bool = False

    @property
    def size(self) -> int:
        """Pixels a side that it was published for."""
        return 640 if self.levels == 3 else 960 if self.pose else 1280

    @property
    def name(self) -> str:
        """Its published name; one that says the multiples where no such variant was published."""
        form = f"{'' if self.levels == 3 else '6'}{'_pose' if self.pose else ''}{'_ti_lite' if self.lite else ''}"
        form += "_seg" if self.masks else ""
        for letter, multiples in MULTIPLES.items():
            if multiples == (self.depth, self.width):
                return f"yolov5{letter}{form}"
        return f"yolov5{form.replace('6', '_p6')}-depth-{self.depth:g}-width-{self.width:g}"


MULTIPLES = {"n": (0.33, 0.25), "s": (0.33, 0.50), "m": (0.67, 0.75), "l": (1.0, 1.0), "x": (1.33, 1.25)}
VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        *(Variant(*multiples, levels=levels) for levels in (3, 4) for multiples in MULTIPLES.values()),
        *(Variant(*MULTIPLES[letter], levels=4, pose=True, lite=lite) for lite in (False, True) for letter in "sml"),
        *(Variant(*multiples, masks=True) for multiples in MULTIPLES.values()),
    )
}


CLASSIFIERS: dict[str, Backbone] = {
    f"yolov5{letter}_cls": Backbone(
        tuple(math.ceil(c * width / 8) * 8 for c in (64, 128, 256, 512, 1024)),
        tuple(max(round(n * depth), 1) for n in (3, 6, 9, 3)),
    )
    for letter, (depth, width) in MULTIPLES.items()
}


def layer_rows(
    levels: int = 3, *, generation: int = 7, pose: bool = False, lite: bool = False, masks: int = 0
) -> list[Row]:
    """The layer graph of three or four levels; a pose model's is that of generation 5 with a keypoint head.

    ``masks``: the prototypes of the masks of instances; 0: there are none.
    """
    early = generation < 7
    block = "BottleneckCSP" if generation == 3 else "C3"
    widths = (128, 256, 512, 1024) if levels == 3 else (128, 256, 512, 768, 1024)
    rows: list[Row] = []

    def add(kind: str, *arguments: Any, source: int | list[int] = -1, repeats: int = 1) -> int:
        rows.append([source, repeats, kind, list(arguments)])
        return len(rows) - 1

    def stack(c: int, *arguments: Any, repeats: int = 3) -> int:
        return add(block, c, *arguments, repeats=repeats)

    add("ConvFocus" if lite else "Focus", 64, 3) if early else add("Conv", 64, 6, 2, 2)
    stages = []
    for c, repeats in zip(widths[:-1], (3, 9 if early else 6, 9, 3), strict=False):
        add("Conv", c, 3, 2)
        stages.append(stack(c, repeats=repeats))
    add("Conv", widths[-1], 3, 2)
    if early:
        add("SPP", widths[-1], [5, 9, 13] if levels == 3 else [3, 5, 7])
        stack(widths[-1], False)
    else:
        stack(widths[-1])
        add("SPPF", widths[-1], 5)
    ways_up = []
    for c, stage in zip(widths[-2:0:-1], stages[:0:-1], strict=True):
        ways_up.append(add("Conv", c, 1, 1))
        add("nn.Upsample", "None", 2, "nearest")
        add("Concat", 1, source=[-1, stage])
        top = stack(c, False)
    outputs = [top]
    for c, wider, way_up in zip(widths[1:-1], widths[2:], reversed(ways_up), strict=True):
        add("Conv", c, 3, 2)
        add("Concat", 1, source=[-1, way_up])
        outputs.append(stack(wider, False))
    if masks:
        add("Segment", "nc", "anchors", masks, PROTO_WIDTH, source=outputs)
    else:
        add("Detect", "nc", "anchors", *(["nkpt"] if pose else []), source=outputs)
    return rows


def config_of(
    name: str,
    num_classes: int,
    *,
    num_keypoints: int = 17,
    num_masks: int = MASKS,
    generation: int = 7,
    width: float | None = None,
) -> GraphConfig:
    """A variant's whole description, for any number of classes, keypoints, masks; ``width`` replaces its multiple."""
    v = VARIANTS[name]
    if v.pose:
        generation = 5
    masks = num_masks if v.masks else 0
    return GraphConfig(
        rows=tuple(layer_rows(v.levels, generation=generation, pose=v.pose, lite=v.lite, masks=masks)),
        num_classes=num_classes,
        anchors=ANCHORS_P5 if v.levels == 3 else ANCHORS_P6,
        num_keypoints=num_keypoints if v.pose else 0,
        depthwise_keypoints=v.pose and not v.lite,
        depth_multiple=v.depth,
        width_multiple=v.width if width is None else width,
        activation=HARDSWISH if generation == 3 else RELU if v.lite else "",
        silu_layers=NOT_GIVEN_ACT if v.lite else (),
        strides=(8, 16, 32, 64)[: v.levels],
    )


def _build(name: str, num_classes: int | None) -> ReferenceModel:
    variant = VARIANTS[name]
    graph = build_graph(config_of(name, num_classes or (1 if variant.pose else len(COCO_CLASSES))))
    if variant.pose:
        _contract(graph)
    classes = {len(COCO_CLASSES): COCO_CLASSES, 1: ("person",) if variant.pose else None}
    return reference_of(graph, name, FAMILY, classes.get(graph.head.num_classes), variant.size)


def _about(name: str) -> str:
    variant = VARIANTS[name]
    levels = ", four levels" if variant.levels == 4 else ""
    people = f": persons with 17 keypoints{', for small processors' if variant.lite else ''}" if variant.pose else ""
    masks = ": boxes and masks" if variant.masks else ""
    return f"{name.replace('yolov5', 'YOLOv5').replace('_', '-')}, {variant.size} px{levels}{people}{masks}."


register_variants(__name__, VARIANTS, _build, _about)


def _build_classifier(name: str, num_classes: int | None) -> ReferenceModel:
    return classifier_of(build_classifier(CLASSIFIERS[name], num_classes or len(IMAGENET_CLASSES)), name, FAMILY)


def _about_classifier(name: str) -> str:
    return f"{name.replace('yolov5', 'YOLOv5').replace('_', '-')}, 224 px: classes of an image."


register_variants(__name__, CLASSIFIERS, _build_classifier, _about_classifier)


def _contract(graph: LayerGraph) -> None:
    """Order the first layer's blocks as edgeai-yolov5 does."""
    for module in graph.modules():
        if isinstance(module, Focus):
            module.rows_first = False


def from_checkpoint(checkpoint: Checkpoint) -> ReferenceModel | None:
    """Build the model a checkpoint is of: from its own description, or from the keys and shapes of its tensors.

    Returns None when it is not of this family.

    Raises:
        CheckpointError: it is of a project that shares names and shapes with this family, and means something else.
    """
    _refuse_relatives(checkpoint)
    if not has_layers(checkpoint):
        return None
    classifier = classifier_from_checkpoint(checkpoint, CLASSIFIERS, FAMILY)
    if classifier is not None:
        return classifier
    if checkpoint.yaml:
        if not layers_of(checkpoint.yaml) & LAYERS:
            return None
        name, variant, generation, config = _described(checkpoint)
    else:
        found = _recognised(checkpoint)
        if found is None:
            return None
        name, generation, config = found
        variant = VARIANTS[name]
    loaded = graph_from_checkpoint(checkpoint, config, name.replace("_", "-"))
    graph, notes = loaded.graph, loaded.notes
    doubtful, assumed = ((), ()) if checkpoint.modules else _left_open(graph, generation)
    if generation < 7 and not isinstance(graph.head, Keypoint):
        notes = (f"its layers are those of YOLOv5 {GENERATIONS[generation]}", *notes)
    classes, unnamed = classes_of(checkpoint, graph)
    keypoints, numbered = keypoints_of(checkpoint, graph)
    size = variant.size if variant else 640 if max(graph.head.stride) <= 32 else 1280
    notes = (*notes, *doubtful, *unnamed, *numbered)
    model = reference_of(graph, name, FAMILY, classes, size, notes, channels=config.channels, keypoints=keypoints)
    model = model.assuming(*loaded.assumptions, *assumed)
    return with_score_of_one_class(model, graph.head, checkpoint, yolov7=False, published=variant is not None)


_FORMS = tuple({(v.levels, v.pose, v.lite, v.masks): None for v in VARIANTS.values()})
"""What variants of one form have in common."""


def _described(checkpoint: Checkpoint) -> tuple[str, Variant | None, int, GraphConfig]:
    """The checkpoint's own description, the variant and the generation that it is, or what its file calls itself."""
    assert checkpoint.yaml is not None
    config = GraphConfig.from_yaml(checkpoint.yaml)
    rows = normal_rows(config.rows)
    for levels, pose, lite, masks in _FORMS:
        for generation in (5,) if pose else (7,) if masks else GENERATIONS:
            layers = layer_rows(levels, generation=generation, pose=pose, lite=lite, masks=MASKS if masks else 0)
            if rows == normal_rows(layers):
                variant = Variant(config.depth_multiple, config.width_multiple, levels, pose, lite, masks)
                if generation == 3 and not config.activation:
                    config = replace(config, activation=HARDSWISH)
                return variant.name, variant, generation, config
    return custom_name(checkpoint, VARIANTS, "yolov5-custom"), None, 7, config


def _recognised(checkpoint: Checkpoint) -> tuple[str, int, GraphConfig] | None:
    """The variant and the generation that a state dict without a description is of."""
    head = HeadShape.of(checkpoint)
    if head is None:
        return None
    keypoints = head.num_keypoints
    stems = [checkpoint.state_dict.get(f"model.0.conv.{key}") for key in ("weight", "conv.weight")]
    widths = {len(stem) / 64 for stem in stems if stem is not None and stem.ndim}
    likely_first = sorted(VARIANTS.items(), key=lambda item: item[1].width not in widths)  # the others take longer
    numbers = {"num_keypoints": keypoints, "num_masks": head.num_masks}
    candidates = (
        (f"{name} {generation}", config_of(name, head.num_classes, **numbers, generation=generation))
        for name, variant in likely_first
        for generation in ((5,) if variant.pose else (7,) if variant.masks else GENERATIONS)
        if (keypoints > 0) == variant.pose and (head.num_masks > 0) == variant.masks
    )
    nearest, config = nearest_variant(checkpoint, head, candidates)
    if config is None:
        return None
    name, generation = nearest.split()
    return name, int(generation), config


def _left_open(graph: LayerGraph, generation: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Take what a file without pickled modules leaves open as it was published: what to say, and what is assumed."""
    head = graph.head
    if isinstance(head, Keypoint):
        if isinstance(graph.model[0], ConvFocus):
            return (), ()
        _contract(graph)
        return (), ("the first layer's blocks in the order of edgeai-yolov5: no tensor tells",)
    if generation == 5 and head.num_levels == 4 and head.num_classes == KAPAO_CLASSES:
        said = (
            f"a KaPao model has the same tensors: if it is one, these {KAPAO_CLASSES} classes mean nothing, and its "
            "original file or its 18 class names would tell"
        )
        return (said,), ()
    return (), ()


def _refuse_relatives(checkpoint: Checkpoint) -> None:
    """Say what a file is that looks like one of ours, before its layers are looked at."""
    kind = checkpoint.modules[0].kind if checkpoint.modules else ""
    what = _RELATIVES.get(kind.rsplit(".", 1)[-1], "") if kind.startswith("models.") else ""
    if what:
        raise CheckpointError(
            f"{checkpoint.path} is {what} ({kind}); deploykit does not have it; "
            "deploykit models lists what can be loaded"
        )
