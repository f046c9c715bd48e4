"""What torch's exporter and onnxscript do in vain in an export of our networks is left out while one runs.

Each shortcut takes the place of a function of theirs as long as the context lasts, and gives the same graph. Where a
version of theirs has no such function, or another one, nothing takes its place.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import onnx_ir as ir
import onnxscript
from onnxscript import rewriter
from torch.export import ExportedProgram
from torch.onnx import ONNXProgram

from deploykit.export.graph.decompositions import decompose_in_place

__all__ = ["exporter_shortcuts", "optimize"]

_ONE_AT_A_TIME = threading.RLock()  # the functions belong to the whole process

TRANSLATED: Any = getattr(onnxscript.values, "TracedOnnxFunction", None)
DESCRIPTION: Any = getattr(TRANSLATED, "function_ir", None)
RULES = "_DEFAULT_REWRITE_RULES"
FOLDED = {"Constant", "Identity"}  # operators that folding constants leaves, which no rule is about


@contextlib.contextmanager
def exporter_shortcuts() -> Iterator[None]:
    """Trace faster: programs are decomposed in place where they can be, and functions' sources stay unread."""
    second_trace: Callable[..., ExportedProgram] = ExportedProgram.run_decompositions

    def decomposed(program: ExportedProgram, decomp_table: Any = None, *more: Any, **options: Any) -> ExportedProgram:
        if decomp_table is not None and not more and not options and decompose_in_place(program, decomp_table):
            return program
        return second_trace(program, decomp_table, *more, **options)

    with _ONE_AT_A_TIME, contextlib.ExitStack() as stack:
        stack.enter_context(_in_place(ExportedProgram, "run_decompositions", decomposed))
        if isinstance(DESCRIPTION, property):
            stack.enter_context(_in_place(TRANSLATED, "function_ir", property(_Described)))
        yield


class _Described:
    """The description of a function of onnxscript, which reads the function's source only when more is asked for.

    The exporter asks hundreds of functions for their domain in each export.
    """

    def __init__(self, function: Any) -> None:
        self._function = function

    @property
    def domain(self) -> str:
        return str(self._function.opset.domain)

    def __getattr__(self, name: str) -> Any:
        return getattr(DESCRIPTION.fget(self._function), name)


def optimize(program: ONNXProgram) -> None:
    """Run the exporter's own optimizer on a program, with the rules that its operators can match.

    The optimizer tries each rule of some fifty on each node.
    """
    before = _operators(program.model)
    known = getattr(rewriter, RULES, ())
    try:
        rules = tuple(rule for rule in known if {str(node.op) for node in rule._target_pattern} <= before)
    except (AttributeError, TypeError):
        rules = ()
    if rules:
        with _ONE_AT_A_TIME, _in_place(rewriter, RULES, rules):
            program.optimize()
        if _operators(program.model) <= before | FOLDED:
            return
    program.optimize()  # a rule made operators that others may match


def _operators(model: ir.Model) -> set[str]:
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    return {node.op_type for graph in graphs for node in ir.traversal.RecursiveGraphIterator(graph)}


@contextlib.contextmanager
def _in_place(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
