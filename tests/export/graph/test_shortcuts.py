"""With its shortcuts torch's exporter gives the same graph as without, and is as it was afterwards."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnxscript import rewriter
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn import functional

from deploykit.export.graph import decompositions, shortcuts
from deploykit.export.graph.shortcuts import exporter_shortcuts, optimize
from deploykit.runtime.session import open_session


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


class Simple(nn.Module):
    """All operators that are replaced: of values in order and out of order, that change a type and that do not."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(4, 6, 2, 2)
        self.grouped = nn.ConvTranspose2d(6, 4, 3, 2, 1, 1, groups=2, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        batch, channels, height, width = x.shape
        y = self.grouped(self.up(x))
        tokens = x.flatten(2).transpose(1, 2).reshape(batch, height, width, channels)
        best = (x.sigmoid() > 0.5).to(torch.float32).to(torch.float32).flatten(1, -2)
        first, second = torch.split(y, 2, 1)
        one, two, three = torch.cat([y, x.sum(1, keepdim=True).repeat(1, 1, 4, 4)], 1).chunk(3, 1)
        gated = functional.adaptive_avg_pool2d(one * two, 1).square() * three.square()
        moved = x - torch.tensor([0.5] * 8, dtype=x.dtype)
        return tokens * 2.0, best + 1.0, first.flatten(2) + 0.5, second.reshape(batch, -1, 2) - 0.5, gated + moved.sum()


class Composite(nn.Module):
    """An operator that has to be decomposed in this use, and one that changes its input."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = functional.adaptive_avg_pool2d(x, 2).flatten(1)
        z = x * 2.0
        z.add_(1.0)
        return y, z.reshape(x.shape[0], -1)


def traced(module: nn.Module, batch: bool) -> torch.onnx.ONNXProgram:
    axes = ({0: torch.export.Dim("batch", min=1, max=64)},) if batch else None
    program = torch.onnx.export(
        module.eval(), (torch.zeros(2, 4, 6, 8),), dynamo=True, dynamic_shapes=axes, optimize=False, verbose=False
    )
    assert program is not None
    return program


def structure(model: ir.Model) -> list[Any]:
    """Nodes with their attributes and constants; values are numbered in the order of their appearance."""
    number: dict[int, int] = {}
    stored = model.graph.initializers

    def told(value: ir.Value | None) -> object:
        if value is None:
            return None
        if value.const_value is not None and value.name in stored:
            return value.const_value.shape.numpy(), value.const_value.tobytes()
        return number.setdefault(id(value), len(number))

    return [
        (
            node.op_type,
            [told(value) for value in node.inputs],
            [told(value) for value in node.outputs],
            sorted((name, repr(attribute.value)) for name, attribute in node.attributes.items()),
            [str(value.shape and value.shape.rank()) for value in node.outputs],
        )
        for node in model.graph
    ]


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each program was decomposed in place."""
    found: list[bool] = []

    def seen(program: ExportedProgram, table: Any) -> bool:
        found.append(decompositions.decompose_in_place(program, table))
        return found[-1]

    monkeypatch.setattr(shortcuts, "decompose_in_place", seen)
    return found


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("module", [Simple, Composite])
def test_the_graph_is_that_of_a_second_trace(module: type[nn.Module], batch: bool, done: list[bool]) -> None:
    torch.manual_seed(0)
    network = module()
    plain = traced(network, batch)
    with exporter_shortcuts():
        quick = traced(network, batch)
    assert done == [module is Simple]
    plain.optimize()
    optimize(quick)
    assert structure(quick.model) == structure(plain.model)


@pytest.mark.slow
def test_a_free_shape_takes_no_second_trace_and_gives_the_same_values(tmp_path: Path, done: list[bool]) -> None:
    torch.manual_seed(0)
    network = Simple().eval()
    dim = torch.export.Dim
    axes = ({0: dim("batch", min=1, max=64), 2: 2 * dim("h", min=1, max=64)},)

    def exported() -> torch.onnx.ONNXProgram:
        program = torch.onnx.export(
            network, (torch.zeros(2, 4, 6, 8),), dynamo=True, dynamic_shapes=axes, optimize=False, verbose=False
        )
        assert program is not None
        optimize(program)
        return program

    plain = exported()
    with exporter_shortcuts():
        quick = exported()
    assert done == [True]
    assert len(list(quick.model.graph)) <= len(list(plain.model.graph))
    sessions = []
    for name, program in (("plain", plain), ("quick", quick)):
        ir.save(program.model, tmp_path / f"{name}.onnx")
        sessions.append(open_session(tmp_path / f"{name}.onnx"))
    (info,) = sessions[0].inputs
    for shape in ((1, 4, 2, 8), (2, 4, 6, 8), (3, 4, 10, 8)):
        image = np.random.default_rng(0).random(shape, np.float32)
        expected, found = (list(session.run({info.name: image}).values()) for session in sessions)
        with torch.inference_mode():
            given = network(torch.from_numpy(image))
        for a, b, c in zip(expected, found, given, strict=True):
            assert a.shape == b.shape == tuple(c.shape)
            assert a.tobytes() == b.tobytes()


def test_what_was_replaced_is_put_back() -> None:
    before = ExportedProgram.run_decompositions, shortcuts.TRANSLATED.function_ir
    inside = []

    def fail() -> None:
        with exporter_shortcuts():
            inside.append(ExportedProgram.run_decompositions)
            raise RuntimeError("on the way")

    with pytest.raises(RuntimeError, match="on the way"):
        fail()
    assert inside != [before[0]]
    assert (ExportedProgram.run_decompositions, shortcuts.TRANSLATED.function_ir) == before


def test_a_function_still_describes_itself() -> None:
    from onnxscript.function_libs.torch_lib import ops, registration

    assert ops
    function = registration.default_registry["aten::add.Tensor"].overloads[0]
    plain = function.function_ir
    with exporter_shortcuts():
        described = function.function_ir
        assert described.domain == plain.domain
        assert described.name == plain.name


def test_what_torch_translates_is_looked_up_once_and_a_caller_changes_its_own() -> None:
    owner, tables = shortcuts._of_exporter("_registration", "ONNXRegistry"), shortcuts._of_exporter("_decomp")
    before = vars(owner)["from_torchlib"], getattr(tables, shortcuts.TABLE)
    plain = owner.from_torchlib()
    table = before[1](set())
    target = torch.ops.aten.relu.default
    with exporter_shortcuts():
        first, second = owner().from_torchlib(), owner.from_torchlib()
        first.register_op(target, torch.relu)
        first.functions.pop("aten::add.Tensor")
        third = owner.from_torchlib()
        assert getattr(tables, shortcuts.TABLE)({target}).keys() == before[1]({target}).keys()
        getattr(tables, shortcuts.TABLE)(set()).clear()
        assert getattr(tables, shortcuts.TABLE)(set()).keys() == table.keys()
    assert first.get_decomps(target)[0].is_custom
    assert second.get_decomps(target)[0] is third.get_decomps(target)[0]
    for found in (second, third):
        assert found.functions.keys() == plain.functions.keys()
        assert [len(known) for known in found.functions.values()] == [len(k) for k in plain.functions.values()]
        assert not found.get_decomps(target)[0].is_custom
    assert (vars(owner)["from_torchlib"], getattr(tables, shortcuts.TABLE)) == before


TEXT = """
<ir_version: 10, opset_import: ["" : 18]>
g (float[4, 6] x) => (float[4, 6] y) {
    low = Constant<value = float {-1.0}>()
    high = Constant<value = float {1.0}>()
    top = Constant<value = float {0.5}>()
    a = Transpose<perm = [1, 0]>(x)
    b = Transpose<perm = [1, 0]>(a)
    c = Max(b, low)
    d = Min(c, high)
    e = Max(d, low)
    y = Min(e, top)
}
"""


def test_the_optimizer_does_what_it_does_with_all_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, quick = (ir.from_proto(onnx.parser.parse_model(TEXT)) for _ in range(2))
    torch.onnx.ONNXProgram(plain, None).optimize()
    tried: list[int] = []
    passes = rewriter.RewritePass

    def counted(rules: Any) -> Any:
        tried.append(len(rules))
        return passes(rules)

    monkeypatch.setattr(rewriter, "RewritePass", counted)
    optimize(torch.onnx.ONNXProgram(quick, None))
    assert [node.op_type for node in plain.graph] == ["Clip"]
    assert structure(quick) == structure(plain)
    assert tried[0] < 10 < len(getattr(rewriter, shortcuts.RULES)) == tried[-1]  # Clip is new: once more, with all
