"""Decompositions without a second trace of the network, where few operators have to be decomposed.

torch's exporter gets a program of the operators that the network calls. It decomposes those that have no translation to
ONNX by tracing the whole program again, which takes a third of an export. Most networks of this project call only a few
of them. Here they are replaced in the program as it is; a program with any other is left to the exporter.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

__all__ = ["decompose_in_place"]

ATEN = torch.ops.aten

Sizes = dict[str, fx.Node]
"""The expression of a size that a free axis decides -> the node that gives it."""


def decompose_in_place(program: ExportedProgram, table: Mapping[Any, Callable[..., Any]]) -> bool:
    """Decompose a program as a second trace does, if that is possible; otherwise leave it, and return False.

    Of free sizes, each is computed once; a second trace writes some of their products twice, or in another order.

    Args:
        program: with sizes that are known, or free ones.
        table: the operators that have to be decomposed, and how.
    """
    if not _is_simple(program, table):
        return False
    _decompose(program.graph)
    program.graph_module.recompile()
    return True


def _is_simple(program: ExportedProgram, table: Mapping[Any, Callable[..., Any]]) -> bool:
    """Whether every operator of a program either stays or is one that is replaced here, and none changes its inputs."""
    outputs = {spec.arg.name for spec in program.graph_signature.output_specs}
    for node in program.graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        if node.op != "call_function":
            return False
        name = getattr(node.target, "__name__", "")
        if node.target in (getattr(operator, name, None), getattr(torch, name, None)):  # of sizes, or one of several
            continue
        if not isinstance(node.target, torch._ops.OpOverload):
            return False
        if node.target._schema.is_mutable and node.target not in REPLACEMENTS:
            return False
        if node.target in REPLACEMENTS:
            if node.name in outputs or node.kwargs or not _is_replaceable(node):
                return False
        elif node.target in table or _is_composite_view(node.target):
            return False
    return True


def _is_replaceable(node: fx.Node) -> bool:
    """Whether a call of an operator that is replaced is one of those that the replacement knows."""
    if node.target is ATEN.to.dtype:
        return len(node.args) <= 2
    if node.target is ATEN.adaptive_avg_pool2d.default:
        return tuple(node.args[1]) == (1, 1)  # type: ignore[arg-type]  # a list of sides
    return node.target is not ATEN.chunk.default or isinstance(_side(node), int)


def _is_composite_view(target: torch._ops.OpOverload) -> bool:
    """Whether a trace sees through an operator to the ones that it consists of, because it may return its input."""
    returns = target._schema.returns
    name = target._schema.name + (f".{target._overloadname}" if target._overloadname != "default" else "")
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(name, "CompositeImplicitAutograd")
    return bool(composite) and any(each.alias_info is not None for each in returns)


def _decompose(graph: fx.Graph) -> None:
    for node in reversed(list(graph.nodes)):
        if node.target in CHECKS and not node.users:  # they hold sizes that nothing else asks for
            graph.erase_node(node)
    graph.eliminate_dead_code()
    sizes: dict[str, fx.Node] = {}
    for node in list(graph.nodes):
        if isinstance(size := node.meta.get("val"), torch.SymInt):
            first = sizes.setdefault(str(size), node)
            if first is not node:
                node.replace_all_uses_with(first)
        if node.op == "call_function" and node.target in REPLACEMENTS:
            with graph.inserting_before(node):
                node.replace_all_uses_with(REPLACEMENTS[node.target](node, sizes))
            graph.erase_node(node)
    graph.eliminate_dead_code()


def _add(target: Any, args: tuple[Any, ...], like: fx.Node, value: Any, **kwargs: Any) -> fx.Node:
    """Add an operator at the place where its graph inserts, ``like`` another one but for what it gives, ``value``."""
    name = getattr(target, "overloadpacket", target).__name__
    new = like.graph.create_node("call_function", target, args, kwargs, name)
    new.meta = {**like.meta, "val": value}
    return new


def _reshape(node: fx.Node, sizes: Sizes) -> fx.Node:
    return _view(node, node.args[1], sizes)


def _flatten(node: fx.Node, sizes: Sizes) -> fx.Node:
    """A view of the sides, of which some that follow one another become one."""
    given: list[Any] = list(node.args)
    source, first, last = given + [0, -1][len(given) - 1 :]
    count = len(source.meta["val"].shape)
    sides: list[Any] = [_size(source, axis, node, sizes) for axis in range(count)]
    before, after = first % max(1, count), last % max(1, count) + 1
    merged: int | fx.Node = 1
    for side in sides[before:after]:
        merged = _product(merged, side, node, sizes)
    return _view(node, [*sides[:before], merged, *sides[after:]], sizes)


def _size(source: fx.Node, axis: int, like: fx.Node, sizes: Sizes) -> int | fx.Node:
    """A side of a node's value: a number, or the node that gives it."""
    side = source.meta["val"].shape[axis]
    if isinstance(side, int):
        return side
    if str(side) not in sizes:
        factor, symbol = side.node.expr.as_coeff_Mul()
        if factor.is_Integer and factor > 1 and str(symbol) in sizes:
            return _product(int(factor), sizes[str(symbol)], like, sizes)
        sizes[str(side)] = _add(ATEN.sym_size.int, (source, axis), like, side)
    return sizes[str(side)]


def _product(first: int | fx.Node, second: int | fx.Node, like: fx.Node, sizes: Sizes) -> int | fx.Node:
    if isinstance(first, int) and (isinstance(second, int) or first == 1):
        return first * second if isinstance(second, int) else second
    if second == 1:
        return first
    values = [each.meta["val"] if isinstance(each, fx.Node) else each for each in (first, second)]
    value = values[0] * values[1]
    if str(value) not in sizes:
        sizes[str(value)] = _add(operator.mul, (first, second), like, value)
    return sizes[str(value)]


def _view(node: fx.Node, shape: Any, sizes: Sizes) -> fx.Node:
    """The input of a node in another shape; its values are copied where they do not lie one after the other."""
    source, value = node.args[0], node.meta["val"]
    assert isinstance(source, fx.Node)
    given = source.meta["val"]
    if not given.is_contiguous():
        sides = [side if isinstance(side, int) else sizes.get(str(side)) for side in value.shape]
        shape = shape if None in sides else sides  # without a -1
    try:
        given.view(value.shape)
    except (RuntimeError, ValueError):
        copied = _add(ATEN.clone.default, (source,), source, given, memory_format=torch.contiguous_format)
        return _add(ATEN._unsafe_view.default, (copied, shape), node, value)
    return _add(ATEN.view.default, (source, shape), node, value)


def _cast(node: fx.Node, _: Sizes) -> fx.Node:
    source, dtype = node.args
    assert isinstance(source, fx.Node)
    if source.meta["val"].dtype == dtype:
        return source
    return _add(ATEN._to_copy.default, (source,), node, node.meta["val"], dtype=dtype)


def _convolution(node: fx.Node, _: Sizes) -> fx.Node:
    given = (*node.args, *(None, (1, 1), (0, 0), (0, 0), 1, (1, 1))[len(node.args) - 2 :])
    source, weight, bias, stride, padding, more, groups, dilation = given
    args = (source, weight, bias, stride, padding, dilation, True, more, groups)
    return _add(ATEN.convolution.default, args, node, node.meta["val"])


def _square(node: fx.Node, _: Sizes) -> fx.Node:
    return _add(ATEN.pow.Tensor_Scalar, (node.args[0], 2), node, node.meta["val"])


def _mean(node: fx.Node, _: Sizes) -> fx.Node:
    """The mean of each channel, which is what pooling to one pixel gives."""
    return _add(ATEN.mean.dim, (node.args[0], [-1, -2], True), node, node.meta["val"])


def _split(node: fx.Node, _: Sizes) -> fx.Node:
    """Chunks, by how long each is."""
    source, count, *axis = node.args
    return _add(ATEN.split.Tensor, (source, -(-_side(node) // count), *axis), node, node.meta["val"])


def _side(node: fx.Node) -> Any:
    """The side of its input that a chunk cuts."""
    source, _, *axis = node.args
    assert isinstance(source, fx.Node)
    return source.meta["val"].shape[axis[0] if axis else 0]


def _detached(node: fx.Node, _: Sizes) -> fx.Node:
    """The input: there is no gradient to detach a constant of."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source


CHECKS = (ATEN._assert_scalar.default, ATEN.sym_constrain_range_for_size.default)
"""Operators that check sizes; the exporter drops them."""

REPLACEMENTS: dict[Any, Callable[[fx.Node, Sizes], fx.Node]] = {
    ATEN.flatten.using_ints: _flatten,
    ATEN.reshape.default: _reshape,
    ATEN.to.dtype: _cast,
    ATEN.conv_transpose2d.input: _convolution,
    ATEN.square.default: _square,
    ATEN.adaptive_avg_pool2d.default: _mean,
    ATEN.chunk.default: _split,
    ATEN.detach_.default: _detached,
}
"""Operator -> what adds to the graph what a second trace makes of it, and returns the last node."""
