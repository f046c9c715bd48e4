"""The spec of a network of the ultralytics package: its input, its output, its names and thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch

from deploykit.errors import CheckpointError, UsageError
from deploykit.models.checkpoint.reader import Checkpoint
from deploykit.models.class_names import COCO_CLASSES, class_names
from deploykit.models.families.ultralytics.blocks.attention import AAttn
from deploykit.models.families.ultralytics.classifier_images import classifier_images
from deploykit.models.families.ultralytics.description import HEADS, Description
from deploykit.models.families.ultralytics.heads.classify import Classify
from deploykit.models.families.ultralytics.heads.detect import FreeDetect
from deploykit.models.families.ultralytics.heads.oriented import Oriented
from deploykit.models.families.ultralytics.heads.pose import FreePose
from deploykit.models.families.ultralytics.heads.segment import Segment
from deploykit.models.registry import ReferenceModel
from deploykit.models.yolo_graph.layer_graph import LayerGraph
from deploykit.spec import (
    COCO_KEYPOINTS,
    DenseOutput,
    EndToEndRows,
    Fit,
    InputSpec,
    KeypointSpec,
    ModelSpec,
    Output,
    RawDetections,
    Thresholds,
)

__all__ = ["reference_of"]

DETECTION = Thresholds(conf=0.25, iou=0.7)
"""As the package predicts."""

DOTA_CLASSES = (
    "plane", "ship", "storage tank", "baseball diamond", "tennis court", "basketball court", "ground track field",
    "harbor", "bridge", "large vehicle", "small vehicle", "helicopter", "roundabout", "soccer ball field",
    "swimming pool",
)  # fmt: skip
"""The 15 classes of DOTA 1.0, in the order of the published weights."""

PROTOTYPES = "prototypes"

ONE_TO_ONE = (
    "its one-to-one branch is taken, which needs no NMS; --head one2many takes the other one, as release 8.4.145 of "
    "the package and later ones do by default"
)
ONE_TO_MANY = "its one-to-many branch is taken, which needs NMS (--head one2many)"
ONE_BRANCH = "its file holds the one-to-one branch of its head alone"


def reference_of(
    graph: LayerGraph,
    description: Description,
    name: str,
    family: str,
    size: int,
    checkpoint: Checkpoint | None = None,
    notes: tuple[str, ...] = (),
) -> ReferenceModel:
    """A network with its spec.

    Args:
        graph: the network.
        description: what it was built from.
        name: the published one, with underscores, or what a custom network calls itself.
        family: its family.
        size: pixels a side that it was trained with; 0: nothing tells, and it is the usual one.
        checkpoint: where it is from; None: it was built by its name.
        notes: what is to be said of it.

    Raises:
        UsageError: the user asks for a branch that its head does not have.
        CheckpointError: no size of images fits its layers.
    """
    head = cast(FreeDetect | Classify, graph.model[-1])
    names = checkpoint.names if checkpoint else None
    shown = name.replace("_", "-")
    if isinstance(head, Classify):
        _no_branch(checkpoint, shown)
        classes = head.linear.out_features
        images = classifier_images(size, description.channels, checkpoint)
        spec = ModelSpec("classify", images.canvas, DenseOutput(name="logits"), class_names(classes, names))
        return ReferenceModel(
            shown,
            family,
            graph,
            spec,
            (*notes, *images.notes),
            preprocessings=images.others,
            images_known=images.known,
        )
    graph, branch = _with_branch(graph, head, checkpoint, shown)
    head = cast(FreeDetect, graph.model[-1])
    stride = _stride(graph, max(32, *head.stride), description.channels)
    side = -(-(size or 640) // stride) * stride
    channels = description.channels
    spec = ModelSpec(
        task=HEADS[description.head],
        input=InputSpec(
            size=(side, side), channels=channels, mean=(0.0,) * channels, std=(1.0,) * channels, fit=Fit(stride=stride)
        ),
        output=_output(head),
        classes=_classes(head, names),
        keypoints=_keypoints(head, checkpoint),
        thresholds=DETECTION,
    )
    return ReferenceModel(
        shown,
        family,
        graph,
        spec,
        (*notes, *branch),
        choices=("head",) if head.dual or description.dual else (),
        images_known=True,
    )


def _stride(graph: LayerGraph, stride: int, channels: int) -> int:
    """What both sides of an image are multiples of: the stride, or as many of it as attention within areas needs.

    The pixels of its maps must be a multiple of the areas; those of the published ones always are.
    """
    if not any(isinstance(module, AAttn) and module.area > 1 for module in graph.modules()):
        return stride
    device, reason = next(graph.parameters()).device, ""
    for side in (stride, 2 * stride, 4 * stride, 8 * stride):
        try:
            with torch.inference_mode():
                graph(torch.zeros(1, channels, side, side, device=device))
        except RuntimeError as e:
            reason = str(e).splitlines()[0]
        else:
            return side
    raise CheckpointError(f"the maps of this network cannot be cut into the areas of its attention: {reason}")


def _no_branch(checkpoint: Checkpoint | None, name: str) -> None:
    if checkpoint and checkpoint.loading.head is not None:
        raise UsageError(f"--head has no meaning for {name}: its head has one branch")


def _with_branch(
    graph: LayerGraph, head: FreeDetect, checkpoint: Checkpoint | None, name: str
) -> tuple[LayerGraph, tuple[str, ...]]:
    """The network with the branch that is asked for, and what is to be said about it."""
    asked = checkpoint.loading.head if checkpoint else None
    if not head.dual:
        if asked is not None and asked != head.branch:
            raise UsageError(f"--head {asked} is not in {name}: its head has the branch {head.branch} only")
        return graph, (ONE_BRANCH,) if head.branch == "one2one" else ()
    if asked == "one2many":
        graph.model[-1] = head.with_branch("one2many")
        return graph, (ONE_TO_MANY,)
    return graph, (ONE_TO_ONE,) if checkpoint else ()


def _output(head: FreeDetect) -> Output:
    """What the columns of a head's rows are."""
    one2one = head.branch == "one2one"
    start = 6 if one2one else 4 + head.num_classes
    more: dict[str, Any] = {}
    if isinstance(head, FreePose):
        more = {"keypoints": (start, start + head.extras), "kpt_dims": head.kpt_shape[1]}
    elif isinstance(head, Segment):
        more = {"coefficients": (start, start + head.extras), "prototypes": PROTOTYPES}
    elif isinstance(head, Oriented):
        more = {"angle": start if one2one else (start, start + 1)}
    if one2one:
        return EndToEndRows(**more)
    return RawDetections(obj=None, cls=(4, start), **more)


def _classes(head: FreeDetect, names: Sequence[str] | None) -> tuple[str, ...]:
    count = head.num_classes
    if names and len(names) == count:
        return tuple(names)
    if isinstance(head, FreePose) and count == 1:
        return ("person",)
    known: tuple[str, ...] = DOTA_CLASSES if isinstance(head, Oriented) else COCO_CLASSES
    return known if len(known) == count else tuple(f"class {i}" for i in range(count))


def _keypoints(head: FreeDetect, checkpoint: Checkpoint | None) -> KeypointSpec | None:
    """The keypoints of a pose head, with the names and sigmas that a file has."""
    if not isinstance(head, FreePose):
        return None
    count = head.kpt_shape[0]
    found = COCO_KEYPOINTS if count == len(COCO_KEYPOINTS.names) else KeypointSpec.unnamed(count)
    root = checkpoint.modules[0].attributes if checkpoint and checkpoint.modules else {}
    named = root.get("kpt_names")  # of each class; numbers, where the data set gave no names
    names = _listed(next(iter(named.values()), None) if isinstance(named, Mapping) else None, count, str)
    if not all(name.isdecimal() for name in names):
        found = replace(found, names=names)
    sigmas = _listed(root.get("kpt_oks_sigmas"), count, float)
    if sigmas and all(sigma > 0 for sigma in sigmas):
        found = replace(found, sigmas=sigmas)
    return found


def _listed(values: Any, count: int, kind: type) -> tuple[Any, ...]:
    """A list of so many values of one type; ``()``: it is none."""
    fits = isinstance(values, (list, tuple)) and len(values) == count and all(type(v) is kind for v in values)
    return tuple(values) if fits else ()
