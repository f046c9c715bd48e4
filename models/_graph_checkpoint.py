"""Put a checkpoint's weights, and what no state dict holds, into a layer graph.

Activations, batch-norm eps and anchors in pixels are facts of a trained model that its layer description leaves out or
contradicts; a pickled module tree has them, so they are taken from there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from deploykit.errors import UnknownLayerError, WeightsMismatchError
from deploykit.models._checkpoint import Checkpoint, Module
from deploykit.models._graph import ACTIVATIONS, GraphConfig, LayerGraph, build_graph

_ARGUMENTS = {"LeakyReLU": "negative_slope", "ELU": "alpha"}
"""The one number that an activation's behaviour depends on, where there is one."""


def graph_from_checkpoint(checkpoint: Checkpoint, config: GraphConfig) -> tuple[LayerGraph, tuple[str, ...]]:
    """Build ``config`` and fill it with the checkpoint's weights, in float32 and eval mode.

    Returns the graph and sentences about what the pickled modules say otherwise than the description.

    Raises:
        WeightsMismatchError: a tensor is missing, is left over or has another shape.
    """
    # On the meta device nothing is allocated, so a description that lies about its sizes costs nothing.
    with torch.device("meta"):
        graph = build_graph(config)
    notes = _apply_recorded(graph, checkpoint.modules)
    _load(graph, checkpoint)
    return graph.eval().requires_grad_(False), notes


def _load(graph: LayerGraph, checkpoint: Checkpoint) -> None:
    expected = graph.state_dict()
    found = checkpoint.float32()
    for key, tensor in expected.items():
        if key not in found:
            raise WeightsMismatchError(
                f"{checkpoint.path} lacks the tensor {key} {list(tensor.shape)} of its own model"
            )
        if found[key].shape != tensor.shape:
            raise WeightsMismatchError(
                f"{checkpoint.path}: {key} is {list(found[key].shape)}, the model needs {list(tensor.shape)}"
            )
    extra = next((key for key in found if key not in expected), None)
    if extra is not None:
        raise WeightsMismatchError(f"{checkpoint.path} holds the tensor {extra}, which its model does not have")
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
            module.eps = float(record.attributes.get("eps", module.eps))
        elif isinstance(module, nn.Module) and type(module) in ACTIVATIONS.values():
            trained = _activation(record)
            if not _same(module, trained):
                graph.set_submodule(path, trained)
                name = type(trained).__name__
                changed[name] = changed.get(name, 0) + 1
    return tuple(
        f"{count} activations are {name}, as in the pickled model; its layer description does not say so"
        for name, count in changed.items()
    )


def _activation(record: Module) -> nn.Module:
    name = record.kind.rsplit(".", 1)[-1]
    if name not in ACTIVATIONS or not record.kind.startswith("torch.nn."):
        raise UnknownLayerError(
            f"{record.path} of the pickled model is {record.kind}, an activation that deploykit does not have; "
            f"it has {', '.join(ACTIVATIONS)}"
        )
    argument: Any = record.attributes.get(_ARGUMENTS.get(name, ""))
    return ACTIVATIONS[name]() if argument is None else ACTIVATIONS[name](float(argument))


def _same(a: nn.Module, b: nn.Module) -> bool:
    attribute = _ARGUMENTS.get(type(a).__name__, "training")
    return type(a) is type(b) and (attribute == "training" or getattr(a, attribute) == getattr(b, attribute))
