"""KaPao S, M and L: persons, and their keypoints as objects, in the layers of YOLOv5 with four levels.

Paper: arXiv 2111.08557. Original: wmcnally/kapao (GPL-3.0), a fork of ultralytics/yolov5 before 6.0. Layer graph,
keys, anchors and numbers are facts taken over; the code is ours. State dicts of the original load unchanged.

Its tensors are those of a detector of 52 classes, and its rows are as wide as those of a pose model of 17 keypoints,
but they mean something else: 18 classes (a person, and each keypoint as an object) and 34 coordinates. What a file is
follows from its pickled modules, or from its 18 class names; never from a width.
"""

from __future__ import annotations

import reprlib
from dataclasses import dataclass, replace

from deploykit.errors import CheckpointError, UsageError
from deploykit.models.checkpoint.reader import Checkpoint
from deploykit.models.families.yolov5 import ANCHORS_P6, MULTIPLES, layer_rows
from deploykit.models.registry import ReferenceModel, register_variants
from deploykit.models.yolo_graph.description import GraphConfig
from deploykit.models.yolo_graph.family import (
    HeadShape,
    custom_name,
    has_layers,
    nearest_variant,
    normal_rows,
    reference_of,
)
from deploykit.models.yolo_graph.from_checkpoint import graph_from_checkpoint
from deploykit.models.yolo_graph.layer_graph import build_graph
from deploykit.spec import COCO_KEYPOINTS, KeypointSpec

FAMILY = "KaPao"
WEIGHTS_LICENCE = "GPL-3.0, that of the repository"
SIZE = 1280  # pixels per side that all were published for
GENERATION = 5  # of the YOLOv5 layers
COCO_CLASSES = 1 + len(COCO_KEYPOINTS.names)

CROWDPOSE_KEYPOINTS = KeypointSpec(
    names=(
        "left shoulder", "right shoulder", "left elbow", "right elbow", "left wrist", "right wrist", "left hip",
        "right hip", "left knee", "right knee", "left ankle", "right ankle", "head", "neck",
    ),
    skeleton=(
        (0, 13), (1, 13), (0, 2), (2, 4), (1, 3), (3, 5), (0, 6), (6, 7), (7, 1), (6, 8), (8, 10), (7, 9), (9, 11),
        (12, 13),
    ),
    flip_pairs=((0, 1), (2, 3), (4, 5), (6, 7), (8, 9), (10, 11)),
)  # fmt: skip
"""The 14 keypoints of CrowdPose, on which the original has a second set of weights."""


@dataclass(frozen=True)
class Variant:
    """What a variant changes about the layer graph: repeats and widths are multiplied."""

    depth: float
    width: float

    @property
    def name(self) -> str:
        """Its published name; one that says the multiples where no such variant was published."""
        letter = next((letter for letter in "sml" if MULTIPLES[letter] == (self.depth, self.width)), "")
        return f"kapao_{letter}" if letter else f"kapao-depth-{self.depth:g}-width-{self.width:g}"


VARIANTS: dict[str, Variant] = {v.name: v for v in (Variant(*MULTIPLES[letter]) for letter in "sml")}


def config_of(name: str, num_classes: int = COCO_CLASSES, *, width: float | None = None) -> GraphConfig:
    """A variant's whole description: ``num_classes`` are a person and its keypoints; ``width`` replaces its multiple.

    Raises:
        UsageError: there is no keypoint among the classes.
    """
    if num_classes < 2:
        raise UsageError(f"{name.replace('_', '-')} has a person and at least 1 keypoint as classes, got {num_classes}")
    v = VARIANTS[name]
    return GraphConfig(
        rows=tuple(layer_rows(4, generation=GENERATION)),
        num_classes=num_classes,
        num_coords=2 * (num_classes - 1),
        anchors=ANCHORS_P6,
        depth_multiple=v.depth,
        width_multiple=v.width if width is None else width,
        strides=(8, 16, 32, 64),
    )


def _build(name: str, num_classes: int | None) -> ReferenceModel:
    graph = build_graph(config_of(name, COCO_CLASSES if num_classes is None else num_classes))
    return reference_of(graph, name, FAMILY, None, SIZE)


def _about(name: str) -> str:
    return f"KaPao-{name[-1].upper()}, {SIZE} px: persons with 17 keypoints, and these as objects."


register_variants(__name__, VARIANTS, _build, _about)


def from_checkpoint(checkpoint: Checkpoint) -> ReferenceModel | None:
    """Build the model a checkpoint is of: from its own description, or from its tensors and class names.

    Returns None when it is not of this family. A state dict without names is taken for YOLOv5's, which says so.

    Raises:
        CheckpointError: its pickled modules contradict each other, or have no keypoint class for a coordinate pair.
    """
    if not has_layers(checkpoint):
        return None
    coords = next((c for m in checkpoint.modules if (c := m.attributes.get("num_coords"))), None)
    if coords is not None and checkpoint.yaml:
        name, config = _described(checkpoint, coords)
    else:
        found = _recognised(checkpoint, coords)
        if found is None:
            return None
        name, config = found
    loaded = graph_from_checkpoint(checkpoint, config, name.replace("_", "-"))
    classes, keypoints, unnamed = _names(checkpoint, config.num_classes)
    notes = (*loaded.notes, *unnamed)
    model = reference_of(
        loaded.graph, name, FAMILY, classes, SIZE, notes, channels=config.channels, keypoints=keypoints
    )
    return model.assuming(*loaded.assumptions)


def _described(checkpoint: Checkpoint, coords: object) -> tuple[str, GraphConfig]:
    """The checkpoint's own description; its ``nc`` counts classes and coordinates, the head's the classes."""
    assert checkpoint.yaml is not None
    config = GraphConfig.from_yaml(checkpoint.yaml)
    total = config.num_classes
    if type(coords) is not int or coords % 2 or total - coords != 1 + coords // 2:
        raise CheckpointError(
            f"{checkpoint.path} is a KaPao model with {reprlib.repr(coords)} coordinates in {total} columns after the "
            "objectness; expected a class for the person, one for each keypoint, and x, y of each keypoint"
        )
    for module in checkpoint.modules:
        facts = module.attributes
        classes = facts.get("nc", total - coords) if facts.get("type") == "models.yolo.Detect" else total - coords
        if facts.get("num_coords", coords) != coords or classes != total - coords:
            raise CheckpointError(
                f"the pickled modules of {checkpoint.path} contradict each other: {module.path or 'the model'} has "
                f"num_coords {reprlib.repr(facts.get('num_coords'))} and nc {reprlib.repr(facts.get('nc'))}, "
                f"expected {coords} and {total - coords}"
            )
    config = replace(config, num_classes=total - coords, num_coords=coords)
    if normal_rows(config.rows) == normal_rows(layer_rows(4, generation=GENERATION)):
        return Variant(config.depth_multiple, config.width_multiple).name, config
    return custom_name(checkpoint, VARIANTS, "kapao-custom"), config


def _recognised(checkpoint: Checkpoint, coords: object) -> tuple[str, GraphConfig] | None:
    """The variant of a file without a description, if its modules or its class names say that it is of this family."""
    head, names = HeadShape.of(checkpoint), checkpoint.names or ()
    if checkpoint.yaml or head is None or head.num_keypoints:
        return None
    num_classes = (head.num_classes + 2) // 3  # with two coordinates for each but the first
    ours = coords is not None or (names[:1] == ("person",) and len(names) == num_classes)
    if not ours or num_classes < 2 or head.num_classes != 3 * num_classes - 2:
        return None
    candidates = ((name, config_of(name, num_classes)) for name in VARIANTS)
    name, config = nearest_variant(checkpoint, head, candidates)
    return None if config is None else (name, config)


def _names(
    checkpoint: Checkpoint, num_classes: int
) -> tuple[tuple[str, ...] | None, KeypointSpec | None, tuple[str, ...]]:
    """The person's name, the keypoints where they are not COCO's, and what to say of names that do not fit."""
    names = checkpoint.names
    if names is None or num_classes == COCO_CLASSES:
        return None if names is None else names[:1], None, ()
    if len(names) != num_classes:
        return None, None, (f"it names {len(names)} classes and has {num_classes}: its keypoints are numbered instead",)
    keypoints = KeypointSpec(tuple(name.replace("_", " ") for name in names[1:]))
    return names[:1], CROWDPOSE_KEYPOINTS if keypoints.names == CROWDPOSE_KEYPOINTS.names else keypoints, ()
