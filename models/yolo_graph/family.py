"""What the families that are described by layer rows share: specs, names, and how a bare state dict is known."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import torch

from deploykit.errors import SpecError
from deploykit.models.checkpoint.reader import Checkpoint
from deploykit.models.layers.anchor_head import Detect, Keypoint, Segment
from deploykit.models.layers.pose_object import PoseObject
from deploykit.models.registry import ReferenceModel
from deploykit.models.yolo_graph.as_saved import fold_as_saved
from deploykit.models.yolo_graph.description import MAX_CHANNELS, GraphConfig, Row, read_row
from deploykit.models.yolo_graph.layer_graph import LayerGraph, build_graph
from deploykit.spec import (
    COCO_KEYPOINTS,
    Fit,
    InputSpec,
    KeypointSpec,
    ModelSpec,
    PoseObjectRows,
    RawDetections,
    Thresholds,
)
from deploykit.spec.json_values import read_value

MAX_NAME = 64  # characters of a name or an argument that a checkpoint brings
ANCHORS = 3  # a level, in every published variant

POSE_OBJECTS = Thresholds(conf=0.25, iou=0.65, pre_nms_topk=30_000, keypoint=0.0)
"""Of KaPao: every keypoint of a pose is drawn, because only those that were fused have a confidence; and a crowd gives
thousands of rows of keypoint objects, of which none may be left out before NMS."""


def reference_of(
    graph: LayerGraph,
    name: str,
    family: str,
    classes: Sequence[str] | None,
    size: int,
    notes: tuple[str, ...] = (),
    channels: int = 3,
    keypoints: KeypointSpec | None = None,
) -> ReferenceModel:
    """A graph with its spec; ``name`` is the registered one or what a custom model calls itself.

    ``keypoints``: instead of the COCO ones, or of numbered ones where they are not 17.
    """
    head = graph.head
    output = output_of(head)
    keypoints = keypoints or _keypoints_of(output)
    stride = max(head.stride)
    if isinstance(head, PoseObject):
        classes, limits = (classes or ("person",))[:1], POSE_OBJECTS
    else:
        # The published thresholds: 0.65 for poses, 0.45 in detection.
        limits = Thresholds(conf=0.25, iou=0.65 if keypoints else 0.45)
    spec = ModelSpec(
        task="keypoints" if keypoints else "instances" if isinstance(head, Segment) else "detect",
        input=InputSpec(
            size=(size, size), channels=channels, mean=(0.0,) * channels, std=(1.0,) * channels, fit=Fit(stride=stride)
        ),
        output=output,
        classes=tuple(classes) if classes else tuple(f"class {i}" for i in range(head.num_classes)),
        keypoints=keypoints,
        thresholds=limits,
    )
    return ReferenceModel(name.replace("_", "-"), family, graph, spec, notes, images_known=True)


def output_of(head: Detect) -> RawDetections | PoseObjectRows:
    """What the columns of a head's rows are."""
    stop = 5 + head.num_classes
    if isinstance(head, PoseObject):
        return PoseObjectRows(cls=(5, stop), coords=(stop, head.columns))
    if isinstance(head, Segment):
        return RawDetections(cls=(5, stop), coefficients=(stop, head.columns), prototypes="prototypes")
    return RawDetections(cls=(5, stop), keypoints=(stop, head.columns) if isinstance(head, Keypoint) else None)


def _keypoints_of(output: RawDetections | PoseObjectRows) -> KeypointSpec | None:
    span = output.as_rows().keypoints
    if span is None:
        return None
    k = (span[1] - span[0]) // output.as_rows().kpt_dims
    return COCO_KEYPOINTS if k == len(COCO_KEYPOINTS.names) else KeypointSpec.unnamed(k)


def classes_of(checkpoint: Checkpoint, graph: LayerGraph) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """The class names that a checkpoint brings, if they are as many as its classes; and what to say if not."""
    names, expected = checkpoint.names, graph.head.num_classes
    if names is None or len(names) == expected:
        return names, ()
    return None, (f"it names {len(names)} classes and has {expected}: they are numbered instead",)


def keypoints_of(checkpoint: Checkpoint, graph: LayerGraph) -> tuple[KeypointSpec | None, tuple[str, ...]]:
    """The keypoints that the entry ``keypoints`` of a file describes, if they are as many as its head's; what to say.

    The entry has the fields of a spec's keypoints: ``names``, and ``skeleton``, ``flip_pairs``, ``sigmas`` where known.
    """
    said, head = checkpoint.metadata.get("keypoints"), graph.head
    if not isinstance(said, dict) or not isinstance(head, Keypoint):
        return None, ()
    try:
        found: KeypointSpec = read_value(KeypointSpec, said, "keypoints")
    except SpecError as e:
        return None, (f"its entry 'keypoints' cannot be used, and they are numbered instead: {e}",)
    if len(found.names) != head.num_keypoints:
        return None, (f"it names {len(found.names)} keypoints and has {head.num_keypoints}: they are numbered instead",)
    return found, ()


def has_layers(checkpoint: Checkpoint) -> bool:
    """Whether its tensors are those of numbered layers; below a prefix they are not, though a description may be there.

    AutoShape and DetectMultiBackend of torch.hub have the description of the model that they hold.
    """
    return any(re.match(r"model\.[0-9]", key) for key in checkpoint.state_dict)


def custom_name(checkpoint: Checkpoint, variants: Collection[str], fallback: str) -> str:
    """What the description's file is called; a changed model under the file name of an original is not the original."""
    own = str(checkpoint.modules[0].attributes.get("yaml_file") or "") if checkpoint.modules else ""
    own = re.sub(r"[^\w.-]+", "-", PurePosixPath(own.replace("\\", "/")).stem[:MAX_NAME], flags=re.ASCII)
    return f"{own}-custom" if own.replace("-", "_") in variants else own or fallback


def normal_row(i: int, row: Row) -> tuple[Any, ...]:
    """A row with absolute sources, and with the head's kind left open: two rows that mean the same are equal."""
    sources, repeats, kind, arguments = read_row(i, row)
    if kind in ("Detect", "IDetect") and "nkpt" not in arguments:
        return sources, "Detect"
    if kind in ("Shortcut", "MP"):  # their arguments are defaults that some descriptions spell out
        return sources, repeats, kind
    if kind == "Conv":  # kernel and stride may be left out, and be one number or two
        arguments = [*arguments[:1], *(_one(a) for a in [*arguments[1:3], 1, 1][:2]), *arguments[3:]]
    return sources, repeats, kind, [reprlib.repr(a) if isinstance(a, list) else str(a)[:MAX_NAME] for a in arguments]


def _one(size: Any) -> Any:
    """``[3, 3]`` as ``3``: the same thing to torch."""
    return size[0] if isinstance(size, (list, tuple)) and len(size) == 2 and size[0] == size[1] else size


def normal_rows(rows: Sequence[Row]) -> list[tuple[Any, ...]]:
    """Every row as :func:`normal_row` gives it."""
    return [normal_row(i, row) for i, row in enumerate(rows)]


@dataclass(frozen=True)
class HeadShape:
    """What the tensors of a detection head say: its layer, and its numbers of classes, keypoints and masks."""

    index: int
    num_classes: int
    num_keypoints: int
    num_masks: int = 0

    @staticmethod
    def of(checkpoint: Checkpoint) -> HeadShape | None:
        """None: there is no such head."""
        found = {key: tuple(t.shape) for key, t in checkpoint.state_dict.items()}
        heads = (re.fullmatch(r"model\.([0-9]{1,4})\.m\.[0-9]\.(weight|bias)", key) for key in found)
        head = next((match for match in heads if match), None)
        if head is None or not found[head[0]]:
            return None
        path = f"model.{head[1]}.m_kpt.0"
        keypoints = found.get(f"{path}.11.weight") or found.get(f"{path}.weight") or (0,)
        masks = (found.get(f"model.{head[1]}.proto.cv3.conv.weight") or (0,))[0]
        classes = found[head[0]][0] // ANCHORS - 5 - masks
        shape = HeadShape(int(head[1]), classes, keypoints[0] // ANCHORS // 3, masks)
        return shape if 1 <= shape.num_classes <= MAX_CHANNELS and shape.num_keypoints <= MAX_CHANNELS else None


def nearest_variant(
    checkpoint: Checkpoint, head: HeadShape, candidates: Iterable[tuple[str, GraphConfig]]
) -> tuple[str, GraphConfig | None]:
    """The variant whose state dict has these keys and shapes, for files without a description.

    Where none has just these, it is the one that most of them are of: loading then says which tensor is wrong.
    """
    found = _shapes(checkpoint.state_dict)
    best, nearest, described = 0.5, "", None
    for name, config in candidates:
        if len(config.rows) - 1 != head.index:
            continue
        with torch.device("meta"):
            graph = build_graph(config)
            fold_as_saved(graph, found)
            shapes = _shapes(graph.state_dict())
        agreement = len(shapes.items() & found.items()) / len(shapes.keys() | found.keys())
        if agreement > best:
            best, nearest, described = agreement, name, config
        if agreement == 1.0:
            break
    return nearest, described


def _shapes(state: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    # The anchors in pixels are in some files only, and follow from those in cells.
    return {key: tuple(t.shape) for key, t in state.items() if not key.endswith(".anchor_grid")}
