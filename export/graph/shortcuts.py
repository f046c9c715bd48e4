"""What torch's exporter and onnxscript do in vain in an export of our networks is left out while one runs.

Each shortcut takes the place of a function of theirs as long as the context lasts, and gives the same graph. Where a
version of theirs has no such function, or another one, nothing takes its place.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
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

EXPORTER = "torch.onnx._internal.exporter"
TABLE = "create_onnx_friendly_decomposition_table"
_REGISTRIES: dict[Any, Any] = {}
_TABLES: dict[frozenset[Any], dict[Any, Any]] = {}

TRANSLATED: Any = getattr(onnxscript.values, "TracedOnnxFunction", None)
DESCRIPTION: Any = getattr(TRANSLATED, "function_ir", None)
RULES = "_DEFAULT_REWRITE_RULES"
FOLDED = {"Constant", "Identity"}  # operators that folding constants leaves, which no rule is about


@contextlib.contextmanager
def exporter_shortcuts() -> Iterator[None]:
    """Trace faster.

    Programs are decomposed in place where they can be, functions' sources stay unread, and what torch translates and
    decomposes is looked up once in a process.
    """
    second_trace: Callable[..., ExportedProgram] = ExportedProgram.run_decompositions

    def decomposed(program: ExportedProgram, decomp_table: Any = None, *more: Any, **options: Any) -> ExportedProgram:
        if decomp_table is not None and not more and not options and decompose_in_place(program, decomp_table):
            return program
        return second_trace(program, decomp_table, *more, **options)

    with _ONE_AT_A_TIME, contextlib.ExitStack() as stack:
        stack.enter_context(_in_place(ExportedProgram, "run_decompositions", decomposed))
        if isinstance(DESCRIPTION, property):
            stack.enter_context(_in_place(TRANSLATED, "function_ir", property(_Described)))
        if isinstance(build := vars(_of_exporter("_registration", "ONNXRegistry")).get("from_torchlib"), classmethod):
            registry = classmethod(_remembered_registry(build))
            stack.enter_context(_in_place(_of_exporter("_registration", "ONNXRegistry"), "from_torchlib", registry))
        if TABLE in vars(decompositions := _of_exporter("_decomp")):
            table = _remembered_table(getattr(decompositions, TABLE))
            stack.enter_context(_in_place(decompositions, TABLE, table))
        yield


def _of_exporter(module: str, name: str = "") -> Any:
    """A private module of torch's exporter, or a class of it; where there is none, a class with nothing in it."""
    try:
        found = importlib.import_module(f"{EXPORTER}.{module}")
    except ImportError:
        return object
    return getattr(found, name, object) if name else found


def _remembered_registry(build: Any) -> Callable[..., Any]:
    """The translations of torch's operators; a caller adds its own to what it gets."""

    def remembered(owner: Any, *given: Any, **options: Any) -> Any:
        key = given, tuple(options.items())
        if key not in _REGISTRIES:
            _REGISTRIES[key] = build.__get__(None, owner)(*given, **options)
        own = copy.copy(_REGISTRIES[key])
        own.functions = {target: list(known) for target, known in own.functions.items()}
        return own

    return remembered


def _remembered_table(build: Callable[[Any], dict[Any, Any]]) -> Callable[[Any], dict[Any, Any]]:
    """The decompositions of what has no translation."""

    def remembered(translated: Any) -> dict[Any, Any]:
        key = frozenset(translated)
        if key not in _TABLES:
            _TABLES[key] = build(translated)
        return dict(_TABLES[key])

    return remembered


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
    before = vars(owner)[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
