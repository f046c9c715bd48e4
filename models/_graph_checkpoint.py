"""Put a checkpoint's weights, and what no state dict holds, into a layer graph.

Activations, batch-norm eps and anchors in pixels are facts of a trained model that its layer description leaves out or
contradicts; a pickled module tree has them, so they are taken from there.
"""

from __future__ import annotations

import math
import reprlib
from typing import Any

import torch
from torch import nn

from deploykit.errors import CheckpointError, UnknownLayerError, WeightsMismatchError
from deploykit.models._checkpoint import Checkpoint, Module
from deploykit.models._graph import ACTIVATIONS, GraphConfig, LayerGraph, build_graph

_ARGUMENTS = {"LeakyReLU": "negative_slope", "ELU": "alpha"}
"""The one number that an activation's behaviour depends on, where there is one."""

_GEOMETRY: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Conv2d: ("stride", "padding", "dilation", "groups"),
    nn.MaxPool2d: ("kernel_size", "stride", "padding", "dilation", "ceil_mode"),
    nn.Upsample: ("scale_factor", "mode"),
}
"""What else no state dict holds: the description and the pickled modules must say the same."""


def graph_from_checkpoint(checkpoint: Checkpoint, config: GraphConfig, name: str) -> tuple[LayerGraph, tuple[str, ...]]:
    """Build ``config`` and fill it with the checkpoint's weights, in float32 and eval mode.

    Returns the graph and sentences about what the pickled modules say otherwise than the description. ``name`` is the
    model's, for messages.

    Raises:
        WeightsMismatchError: a tensor is missing, is left over or has another shape or type.
        CheckpointError: a pickled module is not what the description says.
    """
    # On the meta device nothing is allocated, so a description that lies about its sizes costs nothing.
    with torch.device("meta"):
        graph = build_graph(config)
    notes = _apply_recorded(graph, checkpoint.modules)
    _load(graph, checkpoint, name)
    return graph.eval().requires_grad_(False), notes


def _load(graph: LayerGraph, checkpoint: Checkpoint, name: str) -> None:
    expected = graph.state_dict()
    found = checkpoint.float32()
    advice = f"the file is damaged or of a changed {name} (deploykit inspect shows it)"
    counters = {key for key in expected if key.endswith(".num_batches_tracked")}
    for key in counters:  # only training counts; some projects leave it out, or average it to a float
        found[key] = found.get(key, torch.zeros(())).long()
    for key, tensor in expected.items():
        if key not in found:
            raise WeightsMismatchError(f"{checkpoint.path} lacks the tensor {key} {list(tensor.shape)}: {advice}")
        if found[key].shape != tensor.shape:
            raise WeightsMismatchError(
                f"{checkpoint.path}: {key} is {list(found[key].shape)}, expected {list(tensor.shape)}: {advice}"
            )
        if found[key].dtype != tensor.dtype:
            raise WeightsMismatchError(
                f"{checkpoint.path}: {key} is of {found[key].dtype}, expected {tensor.dtype}: {advice}"
            )
    extra = next((key for key in found if key not in expected), None)
    if extra is not None:
        raise WeightsMismatchError(f"{checkpoint.path} holds the tensor {extra}, which {name} does not have: {advice}")
    graph.load_state_dict(found, assign=True)


def _apply_recorded(graph: LayerGraph, recorded: tuple[Module, ...]) -> tuple[str, ...]:
    """Make activations and batch-norm eps those of the pickled modules; say how many activations were different."""
    records = {module.path: module for module in recorded}
    changed: dict[str, int] = {}
    for path, module in list(graph.named_modules()):
        record = records.get(path)
        if record is None:
            continue
        if isinstance(module, nn.BatchNorm2d):
            module.eps = _number(record, "eps", module.eps)
        elif type(module) in _GEOMETRY:
            _check_geometry(module, record)
        elif type(module) in ACTIVATIONS.values():
            trained = _activation(record)
            if not _same(module, trained):
                graph.set_submodule(path, trained)
                name = type(trained).__name__
                changed[name] = changed.get(name, 0) + 1
    return tuple(
        f"{count} activation{'s are' if count > 1 else ' is'} {name}, as in the pickled model; "
        "its layer description does not say so"
        for name, count in changed.items()
    )


def _number(record: Module, name: str, default: float) -> float:
    value = record.attributes.get(name, default)
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise CheckpointError(
            f"{name} of {record.path} in the pickled model is {reprlib.repr(value)}, expected a number: "
            "the file is damaged, get it again"
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
