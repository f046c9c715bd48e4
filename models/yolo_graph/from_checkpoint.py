"""A checkpoint's weights, and what no state dict holds, into a layer graph.

Activations, batch-norm eps, anchors in pixels and the order of a Focus are facts of a trained model that its layer
description leaves out or contradicts; a pickled module tree has them, so they are taken from there. So is what was done
to it after it was described (``as_saved.py``).
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deploykit.errors import CheckpointError, UnknownLayerError
from deploykit.models.checkpoint.reader import Checkpoint, Module
from deploykit.models.layers.csp import Bottleneck
from deploykit.models.layers.focus import Focus
from deploykit.models.layers.pool import ZeroPad2d
from deploykit.models.loading.weights import load_weights
from deploykit.models.yolo_graph.as_saved import (
    blocks_as_saved,
    channels_as_saved,
    drop_folded_implicits,
    fold_as_saved,
    folded_note,
    ignore_added_buffers,
)
from deploykit.models.yolo_graph.description import GraphConfig
from deploykit.models.yolo_graph.layer_graph import LayerGraph, build_graph
from deploykit.models.yolo_graph.layer_table import ACTIVATIONS

LANDMARKS = 10  # values beside a box that a face detector of the yolov5-face project predicts

_ARGUMENTS = {"LeakyReLU": "negative_slope", "ELU": "alpha"}
"""The one number that an activation's behaviour depends on, where there is one."""

_GEOMETRY: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Conv2d: ("stride", "padding", "dilation", "groups"),
    nn.MaxPool2d: ("kernel_size", "stride", "padding", "dilation", "ceil_mode"),
    nn.AvgPool2d: ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad"),
    ZeroPad2d: ("padding",),
    nn.Upsample: ("scale_factor", "mode"),
}
"""What else no state dict holds: the description and the pickled modules must say the same."""


@dataclass(frozen=True)
class Loaded:
    """A network with its weights, in float32 and eval mode.

    Attributes:
        graph: the network.
        notes: what the file says otherwise than its description, a sentence each.
        assumptions: what no tensor tells and was taken as the original has it, a sentence each.
    """

    graph: LayerGraph
    notes: tuple[str, ...]
    assumptions: tuple[str, ...]


def graph_from_checkpoint(checkpoint: Checkpoint, config: GraphConfig, name: str) -> Loaded:
    """Build ``config`` and fill it with the checkpoint's weights; ``name`` is the model's, for messages.

    Raises:
        WeightsMismatchError: a tensor is missing, is left over or has another shape or type.
        CheckpointError: a pickled module is not what the description says.
    """
    # On the meta device nothing is allocated, so a description that lies about its sizes costs nothing.
    with torch.device("meta"):
        graph = build_graph(config)
    found = checkpoint.float32()
    records = {module.path: module for module in checkpoint.modules}
    _check_columns(graph, records)
    changes = blocks_as_saved(graph, records)
    folded = fold_as_saved(graph, found)
    changes = (*changes, *channels_as_saved(graph, found, records))
    implicits = drop_folded_implicits(graph, found, checkpoint, folded)
    changes = (*changes, *apply_recorded(graph, checkpoint.modules))
    notes = tuple(f"{change}; its layer description does not say so" for change in changes)
    notes = (*notes, *folded_note(folded), *ignore_added_buffers(graph, found, records))
    _add_pixel_anchors(graph, found)
    load_weights(graph, checkpoint, found, name)
    whose = "its description" if checkpoint.yaml else name
    assumptions = () if records else (untold(graph, whose),)
    if implicits:
        head = "its head's implicits are in its convolutions, as its batch norms are: YOLOv7 folds both at once"
        assumptions = (*assumptions, head)
    return Loaded(graph.eval().requires_grad_(False), notes, assumptions)


def _check_columns(graph: LayerGraph, records: Mapping[str, Module]) -> None:
    """A head that is called as one of ours may give more values than its description says."""
    head, record = graph.head, records.get(f"model.{len(graph.model) - 1}")
    found = None if record is None else record.attributes.get("no")
    if type(found) is not int or found == head.columns:
        return
    what = "it is of another project, or was changed"
    if found - head.columns == LANDMARKS:
        what = "it is a yolov5-face model, whose head gives five landmarks beside each box"
    raise CheckpointError(
        f"the head of the pickled model gives {found} values per anchor, and a {type(head).__name__} of "
        f"{head.num_classes} classes gives {head.columns}: {what}; deploykit does not have it"
    )


def untold(network: nn.Module, whose: str) -> str:
    """The activations and the eps of a network, as ``whose``: a file without pickled modules leaves them open."""
    kinds = {type(m).__name__: None for m in network.modules() if type(m) in ACTIVATIONS.values()}
    named = " and ".join(kind for kind in kinds if kind != "Identity")
    used = sorted({m.eps for m in network.modules() if isinstance(m, nn.BatchNorm2d)})
    eps = f" and a batch-norm eps of {' and '.join(map(str, used))}" if used else ""
    return f"{named} activations{eps}, as {whose} has them: no tensor tells"


def _add_pixel_anchors(graph: LayerGraph, found: dict[str, Tensor]) -> None:
    """YOLOv5 6.0 and later keep the anchors in cells of each level only."""
    path, head = f"model.{len(graph.model) - 1}", graph.head
    cells = found.get(f"{path}.anchors")
    if f"{path}.anchor_grid" not in found and cells is not None and cells.shape == head.anchors.shape:
        pixels = cells * torch.tensor(head.stride, dtype=cells.dtype, device=cells.device)[:, None, None]
        found[f"{path}.anchor_grid"] = pixels.view(head.anchor_grid.shape)


def apply_recorded(graph: nn.Module, recorded: tuple[Module, ...]) -> tuple[str, ...]:
    """Make activations, batch-norm eps and the like those of the pickled modules; say what was otherwise before.

    Raises:
        CheckpointError: a pickled module is not what ``graph`` has in its place.
    """
    records = {module.path: module for module in recorded}
    changed: dict[str, int] = {}
    for path, module in list(graph.named_modules()):
        record = records.get(path)
        if record is None:
            continue
        if isinstance(module, nn.BatchNorm2d):
            module.eps = _number(record, "eps", module.eps)
        elif isinstance(module, Bottleneck):
            shortcut = record.attributes.get("add")
            module.add = shortcut if type(shortcut) is bool else module.add
        elif isinstance(module, Focus):
            module.rows_first = f"{path}.contract" not in records
        elif isinstance(module, nn.MaxPool2d) and f"{path}.0" in records:
            _check_nested(module, path, records)
        elif type(module) in _GEOMETRY:
            _check_geometry(module, record)
        elif type(module) in ACTIVATIONS.values():
            trained = _activation(record)
            if not _same(module, trained):
                graph.set_submodule(path, trained)
                name = type(trained).__name__
                changed[name] = changed.get(name, 0) + 1
    notes = [f"{count} activation{'s are' if count > 1 else ' is'} {name}" for name, count in changed.items()]
    return tuple(f"{note}, as in the pickled model" for note in notes)


def _check_nested(pool: nn.MaxPool2d, path: str, records: Mapping[str, Module]) -> None:
    """edgeai-yolov5 pools 5x5 by two 3x3 in a row, and so on, which is the same."""
    count = 0
    while (record := records.get(f"{path}.{count}")) is not None:
        _check_geometry(nn.MaxPool2d(3, 1, 1), record)
        count += 1
    if pool.kernel_size != 2 * count + 1:
        raise CheckpointError(
            f"{path} is {count} 3x3 max pools in the pickled model, and one of {pool.kernel_size} by its layer "
            "description: it was changed after it was described, and cannot be rebuilt"
        )


def _number(record: Module, name: str, default: float) -> float:
    value = record.attributes.get(name, default)
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise CheckpointError(
            f"{name} of {record.path} in the pickled model is {reprlib.repr(value)}, expected a number: "
            "it was changed after it was made, and cannot be rebuilt"
        )
    return float(value)


def _check_geometry(module: nn.Module, record: Module) -> None:
    for name in _GEOMETRY[type(module)]:
        if name not in record.attributes:
            continue  # older than the attribute
        said, found = (_pair(value) for value in (getattr(module, name), record.attributes[name]))
        if said != found:
            raise CheckpointError(
                f"{name} of {record.path} is {reprlib.repr(found)} in the pickled model, and {said} by its layer "
                "description: it was changed after it was described, and cannot be rebuilt"
            )


def _pair(value: Any) -> Any:
    """``2`` and ``[2, 2]`` as ``(2, 2)``: the same thing to torch."""
    if isinstance(value, (list, tuple)):
        return tuple(value)
    return value if isinstance(value, (bool, str)) else (value, value)


def _activation(record: Module) -> nn.Module:
    name = record.kind.rsplit(".", 1)[-1]
    if name not in ACTIVATIONS or not record.kind.startswith("torch.nn."):
        raise UnknownLayerError(
            f"{record.path} of the pickled model is {record.kind}, an activation that deploykit does not have; "
            f"it has {', '.join(ACTIVATIONS)}"
        )
    argument = _ARGUMENTS.get(name)
    if argument is None or argument not in record.attributes:
        return ACTIVATIONS[name]()
    return ACTIVATIONS[name](_number(record, argument, 0.0))


def _same(a: nn.Module, b: nn.Module) -> bool:
    attribute = _ARGUMENTS.get(type(a).__name__, "training")
    return type(a) is type(b) and (attribute == "training" or getattr(a, attribute) == getattr(b, attribute))
