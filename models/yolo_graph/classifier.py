"""Classifiers of YOLOv5 7.0: the backbone of a detector up to its last C3, and a head of one linear layer.

Original: ultralytics/yolov5, tag v7.0 (AGPL-3.0, formerly GPL-3.0). Layers, keys and numbers are facts taken over; the
code is ours. Such a file has no description: widths and repeats are read off its tensors, and its pickled modules are
held against what is built.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deploykit.errors import CheckpointError
from deploykit.models.checkpoint.reader import Checkpoint, Module
from deploykit.models.class_names import IMAGENET_MEAN, IMAGENET_STD, class_names
from deploykit.models.families.ultralytics.heads.classify import Classify
from deploykit.models.layers.conv import Conv
from deploykit.models.layers.csp import C3
from deploykit.models.loading.weights import load_weights
from deploykit.models.registry import ReferenceModel
from deploykit.models.yolo_graph.as_saved import check_sources, fold_as_saved, folded_note, ignore_added_buffers
from deploykit.models.yolo_graph.description import MAX_CHANNELS, MAX_LAYERS
from deploykit.models.yolo_graph.from_checkpoint import apply_recorded
from deploykit.models.yolo_graph.layer_graph import LayerGraph
from deploykit.spec import DenseOutput, Fit, InputSpec, ModelSpec

__all__ = ["Backbone", "backbone_of", "build_classifier", "classifier_from_checkpoint", "classifier_of"]

STAGES = 4  # of a convolution and a C3 each
HEAD = 1 + 2 * STAGES
"""The layer that is the head: that of the pooling of a detector."""

HEAD_EPS = 1e-5
"""Of the head's batch norm, which is made after the others are given theirs."""

SIDE = 224
CLASSIFIER = "models.yolo.ClassificationModel"
KINDS = ("models.common.Conv", *("models.common.Conv", "models.common.C3") * STAGES, "models.common.Classify")
"""The classes of the pickled layers."""

ASSUMED = "SiLU activations and a batch-norm eps of 0.001, {} in the head, as {} has them: no tensor tells"


@dataclass(frozen=True)
class Backbone:
    """``widths`` of the first convolution and of the stages, and how many bottlenecks each stage has."""

    widths: tuple[int, ...]
    repeats: tuple[int, ...]
    channels: int = 3


def build_classifier(backbone: Backbone, num_classes: int) -> LayerGraph:
    """``(B, channels, H, W)`` to logits ``(B, classes)``; weights are torch's defaults."""
    layers: list[nn.Module] = [Conv(backbone.channels, backbone.widths[0], 6, 2, 2)]
    for before, width, repeats in zip(backbone.widths, backbone.widths[1:], backbone.repeats, strict=False):
        layers += [Conv(before, width, 3, 2), C3(width, width, repeats)]
    head = Classify(num_classes, backbone.widths[-1])
    for module in head.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = HEAD_EPS
    return LayerGraph([*layers, head], [(i - 1,) for i in range(len(layers) + 1)]).eval()


def classifier_of(
    graph: LayerGraph,
    name: str,
    family: str,
    names: tuple[str, ...] | None = None,
    notes: tuple[str, ...] = (),
) -> ReferenceModel:
    """A classifier with its spec: images as all of its kind are given them."""
    channels = graph.get_parameter("model.0.conv.weight").shape[1]
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.0,) * channels, (1.0,) * channels)
    fit = Fit(kind="crop", stride=1, crop_share=1.0, crop_first=True)
    canvas = InputSpec(size=(SIDE, SIDE), channels=channels, mean=mean, std=std, fit=fit)
    classes = class_names(graph.get_parameter(f"model.{HEAD}.linear.weight").shape[0], names)
    spec = ModelSpec("classify", canvas, DenseOutput(name="logits"), classes)
    return ReferenceModel(name.replace("_", "-"), family, graph, spec, notes, images_known=channels == 3)


def classifier_from_checkpoint(
    checkpoint: Checkpoint, backbones: Mapping[str, Backbone], family: str
) -> ReferenceModel | None:
    """Build the classifier that a checkpoint is of; None: it is none of YOLOv5's.

    Args:
        checkpoint: the file.
        backbones: the published ones, by the names of their classifiers.
        family: its name.

    Raises:
        CheckpointError: it is such a classifier, of other layers than the published ones.
    """
    found, records = checkpoint.float32(), {module.path: module for module in checkpoint.modules}
    pickled = bool(checkpoint.modules) and checkpoint.modules[0].kind == CLASSIFIER
    if not pickled and (checkpoint.modules or checkpoint.yaml):
        return None
    backbone, classes = backbone_of(found), tuple(found.get(f"model.{HEAD}.linear.weight", torch.empty(0)).shape)
    if pickled:
        _check_layers(checkpoint, records)
    if backbone is None or len(classes) != 2 or not 1 <= classes[0] <= MAX_CHANNELS:
        if not pickled:
            return None
        raise CheckpointError(
            f"{checkpoint.path} is a YOLOv5 model that classifies, of other layers than those of release 7.0: "
            "deploykit does not have it"
        )
    name = next((name for name, known in backbones.items() if known == backbone), "")
    name = name.replace("_", "-") or f"yolov5-cls-width-{backbone.widths[0] / 64:g}"
    # On the meta device nothing is allocated, so tensors that lie about their sizes cost nothing.
    with torch.device("meta"):
        graph = build_classifier(backbone, classes[0])
    check_sources(graph, records)
    folded = fold_as_saved(graph, found)
    changes = apply_recorded(graph, checkpoint.modules)
    notes = (*changes, *folded_note(folded), *ignore_added_buffers(graph, found, records))
    load_weights(graph, checkpoint, found, name)
    graph = graph.eval().requires_grad_(False)
    model = classifier_of(graph, name, family, checkpoint.names, notes)
    return model if records else model.assuming(ASSUMED.format(f"{HEAD_EPS:g}", name))


def backbone_of(found: Mapping[str, Tensor]) -> Backbone | None:
    """The backbone that has these tensors; None: they are of another network."""
    widths, repeats = [], []
    for i in range(0, HEAD, 2):
        last = f"model.{i}.cv3.conv.weight" if i else "model.0.conv.weight"
        weight = found.get(last)
        if weight is None or weight.ndim != 4 or not 1 <= weight.shape[0] <= MAX_CHANNELS:
            return None
        widths.append(weight.shape[0])
        if i:
            count = 0
            while f"model.{i}.m.{count}.cv1.conv.weight" in found and count < MAX_LAYERS:
                count += 1
            repeats.append(count)
    channels = found["model.0.conv.weight"].shape[1]
    fits = all(repeats) and sum(repeats) <= MAX_LAYERS and 1 <= channels <= MAX_CHANNELS
    return Backbone(tuple(widths), tuple(repeats), channels) if fits else None


def _check_layers(checkpoint: Checkpoint, records: Mapping[str, Module]) -> None:
    """The layers of a pickled classifier must be the published ones.

    Raises:
        CheckpointError: they are others.
    """
    kinds: list[Any] = []
    while (record := records.get(f"model.{len(kinds)}")) is not None:
        kinds.append(record.kind)
    other = next((i for i, (kind, known) in enumerate(zip(kinds, KINDS, strict=False)) if kind != known), None)
    if other is None and len(kinds) == len(KINDS):
        return
    what = f"{len(kinds)} layers" if other is None else f"{kinds[other][:80]} as its layer {other}"
    raise CheckpointError(
        f"{checkpoint.path} is a YOLOv5 model that classifies ({CLASSIFIER}) with {what}: deploykit has those of "
        f"release 7.0, {len(KINDS)} layers of {', '.join(sorted({kind.rpartition('.')[2] for kind in KINDS}))}"
    )
