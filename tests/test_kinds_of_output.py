"""The rest of the code asks the adapters of the kinds of output, and never the type."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from deploykit.errors import SpecError, UsageError
from deploykit.export import outputs as export_floor
from deploykit.runtime import outputs as runtime_floor
from deploykit.spec import OUTPUTS, DenseOutput, InputSpec, ModelSpec, Output, RowOutput, register_output
from tests.test_layering import ROOT, files

MOST = 10
TABLES = {"deploykit.spec.output", "deploykit.runtime.outputs", "deploykit.export.outputs"}
SHARED = {"deploykit.spec.row_parts"}
"""What several kinds have in common."""
ROOMS = ("deploykit.runtime.kinds.", "deploykit.export.kinds.")
KINDS = {Output.__name__, RowOutput.__name__, *(kind.__name__ for kind in OUTPUTS.values())}


def type_tests(source: str) -> list[str]:
    """Where a module asks for the type, or compares the name, of a kind of output, or compares a task."""
    found = []
    known = {*OUTPUTS, *(task for kind in OUTPUTS.values() for task in kind.tasks)}
    for node in ast.walk(ast.parse(source)):
        called = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
        if called in ("isinstance", "issubclass"):
            names = {n.id for n in ast.walk(node.args[1]) if isinstance(n, ast.Name)}
            names |= {n.attr for n in ast.walk(node.args[1]) if isinstance(n, ast.Attribute)}
            if names & KINDS:
                found.append(ast.unparse(node))
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            words = {n.value for side in sides for n in ast.walk(side) if isinstance(n, ast.Constant)}
            if words & known and any(ast.unparse(side).endswith(("task", "output.kind")) for side in sides):
                found.append(ast.unparse(node))
        if isinstance(node, ast.MatchClass) and ast.unparse(node.cls).split(".")[-1] in KINDS:
            found.append(ast.unparse(node))
    return found


def modules() -> dict[str, Path]:
    """Those that are no table of kinds and no kind's own."""
    own = {kind.__module__ for kind in OUTPUTS.values()} | TABLES | SHARED
    return {name: file for name, file in files().items() if name not in own and not name.startswith(ROOMS)}


def test_few_places_ask_for_the_type_of_an_output() -> None:
    found = [f"{name}: {test}" for name, file in modules().items() for test in type_tests(file.read_text())]
    assert len(found) <= MOST, "ask the adapter instead:\n" + "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        "if isinstance(spec.output, RawDetections): pass",
        "if isinstance(a, (int, spec.NmsOutputs)): pass",
        "x = spec.task == 'segment'",
        "x = task in ('classify', 'features')",
        "x = spec.output.kind != 'nms'",
    ],
)
def test_what_is_counted(source: str) -> None:
    assert len(type_tests(source)) == 1


def test_every_kind_has_an_adapter_on_every_floor() -> None:
    assert set(OUTPUTS) == set(runtime_floor.ADAPTERS) == set(export_floor.ADAPTERS)
    assert (ROOT / "runtime" / "kinds").is_dir()
    for table in (runtime_floor.ADAPTERS, export_floor.ADAPTERS):
        assert all(callable(runtime_floor.loaded(entry)) for entry in table.values())


def test_a_name_is_of_one_kind() -> None:
    with pytest.raises(SpecError, match="'tensor' is DenseOutput already"):
        register_output(type("Other", (DenseOutput,), {}))
    with pytest.raises(UsageError, match="'nms' has an adapter already"):
        runtime_floor.register_runtime_adapter("nms", runtime_floor.OutputAdapter)
    with pytest.raises(UsageError, match="'nms' has an adapter already"):
        export_floor.register_export_adapter("nms", export_floor.ExportAdapter)


def test_a_kind_without_adapters_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ModelSpec("classify", InputSpec(), DenseOutput())
    monkeypatch.delitem(runtime_floor.ADAPTERS, "tensor")
    with pytest.raises(SpecError, match="there is no runtime adapter for outputs of kind 'tensor'"):
        runtime_floor.adapter_of(spec)
    monkeypatch.delitem(export_floor.ADAPTERS, "tensor")
    with pytest.raises(SpecError, match="there is no export adapter for outputs of kind 'tensor'"):
        export_floor.export_adapter_of(spec)
