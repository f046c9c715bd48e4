"""Attention in fp16 between quantized layers.

Nothing in an attention has constant weights: it multiplies queries by keys, and probabilities by values. So in int8 and
fp8 it would be fp32, which TensorRT does not compute as one kernel, as it does in fp16. Both products and the softmax
between them are therefore fp16, with a Cast of queries, keys and values, and one of what comes out. An attention whose
logits fp16 resolves too coarsely, or whose values it has not the range for, stays fp32.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx_ir as ir

from deploykit.export.precision.half import to_half
from deploykit.export.precision.half_rules import DATA_MOVEMENT_OPS, LARGEST, LARGEST_LOGIT

__all__ = ["attention_cores", "attention_in_half", "measured_of"]

Core = tuple[ir.Node, ...]
"""The nodes of an attention, from the product of queries and keys to that of probabilities and values."""

BETWEEN = {"Add", "Div", "Mul", "Sub", "Where"} | DATA_MOVEMENT_OPS


def attention_cores(nodes: Iterable[ir.Node]) -> list[Core]:
    """Return the attentions of a graph that is not quantized yet: a product, a Softmax, perhaps a bias, a product."""
    found = []
    for softmax in nodes:
        if softmax.op_type != "Softmax" or softmax.domain:
            continue
        users = [(user, index) for user, index in softmax.outputs[0].uses()]
        before = _from_product(softmax)
        if len(users) == 1 and users[0][1] == 0 and _is_product(users[0][0]) and before:
            found.append((*before, softmax, users[0][0]))
    return found


def measured_of(cores: Iterable[Core]) -> list[str]:
    """Return the names of the tensors whose largest value decides whether an attention can be fp16."""
    values = (value for core in cores for node in core for value in (*node.inputs, *node.outputs))
    return list(dict.fromkeys(str(v.name) for v in values if v is not None and not v.is_initializer()))


def attention_in_half(model: ir.Model, largest: Mapping[str, float]) -> tuple[int, int]:
    """Let attentions compute in fp16, in place; ``largest``: the largest value of each tensor.

    Returns:
        How many are fp16 afterwards, of how many.
    """
    cores = attention_cores(model.graph)
    fitting = [core for core in cores if _fits(core, largest)]
    if fitting:
        inside = {str(node.name) for core in fitting for node in core}
        others = [str(node.name) for node in model.graph if str(node.name) not in inside]
        to_half(model, "fp16", largest=largest, nodes_to_exclude=others)
    return len(fitting), len(cores)


def _fits(core: Core, largest: Mapping[str, float]) -> bool:
    if largest.get(str(core[0].outputs[0].name), 0.0) > LARGEST_LOGIT:
        return False
    return all(largest.get(name, 0.0) <= LARGEST for name in measured_of([core]))


def _from_product(node: ir.Node) -> tuple[ir.Node, ...]:
    """The nodes from a product of two activations up to the one before this node; none: there is no such product."""
    for value in node.inputs:
        maker = None if value is None else value.producer()
        if maker is None or value is None or len(value.uses()) != 1:
            continue
        if _is_product(maker):
            return (maker,)
        before = _from_product(maker) if maker.op_type in BETWEEN and not maker.domain else ()
        if before:
            return (*before, maker)
    return ()


def _is_product(node: ir.Node) -> bool:
    """Whether a node multiplies two activations."""
    return node.op_type == "MatMul" and not node.domain and all(v is not None and _varies(v) for v in node.inputs)


def _varies(value: ir.Value) -> bool:
    return not value.is_initializer() and value.const_value is None
