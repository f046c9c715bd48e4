"""Exports that must not get through: the artefact is damaged between the exporter and the check, in every way known.

The old artefact has to survive each of them, and nothing may be left lying about.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import ModelProto, helper, numpy_helper
from torch import Tensor, nn

from deploykit.errors import ParityError
from deploykit.export import to_onnx
from deploykit.export.options import OnnxOptions
from deploykit.export.to_onnx import onnx_from_model
from deploykit.models.layers.conv import Conv
from deploykit.spec import ModelSpec, RawDetections
from tests.narrow import model_of

Damage = Callable[[ModelProto], None]

OBJECTNESS, FIRST_POINT, VISIBILITY = 4, 7, 9  # columns of two classes and three keypoints
COLUMNS = 16


def after(graph: ModelProto, nodes: Callable[[str, str], Sequence[Any]], **constants: np.ndarray[Any, Any]) -> None:
    """Append nodes, made from the name of their input and of their output, to the graph's output."""
    old, new = "before the damage", "output"
    for node in graph.graph.node:
        for names in (node.input, node.output):
            names[:] = [old if name == new else name for name in names]
    graph.graph.node.extend(nodes(old, new))
    graph.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())


def add(column: int, amount: float, row: int | None = None) -> Damage:
    """Add an amount to a column, of one row or of all."""

    def damage(graph: ModelProto) -> None:
        rows = graph.graph.output[0].type.tensor_type.shape.dim[1].dim_value
        offset = np.zeros((1, rows, COLUMNS), np.float32)
        offset[0, slice(None) if row is None else row, column] = amount
        after(graph, lambda old, new: [helper.make_node("Add", [old, "offset"], [new])], offset=offset)

    return damage


def reorder(axis: int, order: Callable[[int], list[int]]) -> Damage:
    """Permute rows, columns or slots."""

    def damage(graph: ModelProto) -> None:
        size = graph.graph.output[0].type.tensor_type.shape.dim[axis].dim_value
        index = np.array(order(size), np.int64)
        after(graph, lambda old, new: [helper.make_node("Gather", [old, "index"], [new], axis=axis)], index=index)

    return damage


def swap(a: int, b: int) -> Callable[[int], list[int]]:
    def order(size: int) -> list[int]:
        found = list(range(size))
        found[a], found[b] = found[b], found[a]
        return found

    return order


def leak(graph: ModelProto) -> None:
    """Each slot moves by a hundredth towards the mean of all: nothing changes where all hold the same image."""

    def nodes(old: str, new: str) -> list[Any]:
        return [
            helper.make_node("ReduceMean", [old, "batch"], ["mean"], keepdims=1),
            helper.make_node("Sub", ["mean", old], ["other"]),
            helper.make_node("Mul", ["other", "share"], ["leaked"]),
            helper.make_node("Add", [old, "leaked"], [new]),
        ]

    after(graph, nodes, batch=np.array([0], np.int64), share=np.array(1e-2, np.float32))


def rotate(graph: ModelProto) -> None:
    """The last slot gets the first one's rows, the others their neighbour's; a batch of one stays as it is."""

    def nodes(old: str, new: str) -> list[Any]:
        return [
            helper.make_node("Slice", [old, "one", "end", "batch"], ["rest"]),
            helper.make_node("Slice", [old, "none", "one", "batch"], ["first"]),
            helper.make_node("Concat", ["rest", "first"], [new], axis=0),
        ]

    numbers = {"none": 0, "one": 1, "end": 2**31, "batch": 0}
    after(graph, nodes, **{name: np.array([value], np.int64) for name, value in numbers.items()})


def change_weight(graph: ModelProto) -> None:
    """One value of the largest convolution, by a tenth."""
    stored = max(graph.graph.initializer, key=lambda t: len(t.raw_data))
    values = numpy_helper.to_array(stored).copy()
    values.flat[int(np.abs(values).argmax())] *= 1.1
    stored.CopyFrom(numpy_helper.from_array(values, stored.name))


def forget_the_input(graph: ModelProto) -> None:
    """The same answer for every image: the image's values are multiplied by zero."""
    for node in graph.graph.node:
        node.input[:] = ["nothing" if name == "images" else name for name in node.input]
    graph.graph.node.insert(0, helper.make_node("Mul", ["images", "zero"], ["nothing"]))
    graph.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), "zero"))


GRAPHS: dict[tuple[str, str, str], bytes] = {}
"""What an exporter gave: it takes seconds, and the network is always the same. (input, exporter) -> the graph."""


def do(monkeypatch: pytest.MonkeyPatch, damage: Damage) -> None:
    """Let ``damage`` change what the exporter gives."""
    traced = to_onnx.export_to_ir

    def damaged(module: nn.Module, example: Tensor, spec: ModelSpec, exporter: str, *rest: Any) -> ir.Model:
        weights = sha256(b"".join(p.detach().numpy().tobytes() for p in module.parameters())).hexdigest()
        key = str(spec.input), exporter, weights
        if key not in GRAPHS:
            GRAPHS[key] = ir.to_proto(traced(module, example, spec, exporter, *rest)).SerializeToString()
        graph = ModelProto.FromString(GRAPHS[key])
        damage(graph)
        return ir.from_proto(graph)

    monkeypatch.setattr(to_onnx, "export_to_ir", damaged)


def export(out: Path, **options: Any) -> Any:
    model = model_of("few", num_keypoints=3)
    return onnx_from_model(model, out=out, img=64, options=OnnxOptions(**options))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in folder.rglob("*")}


DAMAGES = {
    "a weight is changed": (change_weight, r"(boxes|scores|keypoints|visibility)"),
    "rows are permuted": (reorder(1, lambda n: list(reversed(range(n)))), "boxes"),
    "two rows are swapped": (reorder(1, swap(0, 1)), "(boxes|keypoints)"),
    "keypoints are swapped": (reorder(2, swap(FIRST_POINT, FIRST_POINT + 3)), "keypoints"),
    "x and y are swapped": (reorder(2, swap(FIRST_POINT, FIRST_POINT + 1)), "keypoints"),
    "two classes are swapped": (reorder(2, swap(5, 6)), "scores"),
    "objectness is shifted": (add(OBJECTNESS, 2e-5), "scores"),
    "one score is shifted": (add(5, 2e-5, row=17), "scores .* row 17, column 5"),
    "visibility is shifted": (add(VISIBILITY, 2e-5), "visibility .* column 9"),
    "one box is shifted": (add(0, 0.01, row=3), "boxes .* row 3, column 0"),
    "a NaN": (add(2, np.nan, row=5), "boxes .* row 5, column 2 is nan"),
    "an infinity": (add(FIRST_POINT, np.inf, row=5), "keypoints .* row 5, column 7 is inf"),
    "the image is ignored": (forget_the_input, "boxes"),
}


def test_a_damage_to_what_the_older_exporter_gives_is_refused_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    do(monkeypatch, change_weight)
    with pytest.raises(ParityError, match=r"^m.onnx does not agree with its source and was not kept"):
        export(tmp_path / "m.onnx", exporter="legacy")
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_export_is_refused_and_the_old_one_stays(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage, worst = DAMAGES[name]
    for old in ("m.onnx", "m.onnx.data", "m.onnx.parity.json"):
        (tmp_path / old).write_text(f"an older {old}")
    before = contents(tmp_path)
    do(monkeypatch, damage)
    with pytest.raises(ParityError, match=f"^m.onnx does not agree with its source and was not kept: {worst}") as e:
        export(tmp_path / "m.onnx")
    assert str(e.value).endswith("; the fused model agrees with the checkpoint, so it changed in the export")
    assert contents(tmp_path) == before


def test_nothing_appears_where_nothing_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    do(monkeypatch, add(OBJECTNESS, 2e-5))
    with pytest.raises(ParityError):
        export(tmp_path / "m.onnx")
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    ("damage", "options"),
    [
        pytest.param(reorder(0, swap(0, 1)), {"batch": 3}, id="swapped, static"),
        pytest.param(rotate, {"dynamic": "batch"}, id="rotated, dynamic"),
        pytest.param(leak, {"batch": 3}, id="leaking, static"),
        pytest.param(leak, {"dynamic": "batch"}, id="leaking, dynamic"),
    ],
)
def test_slots_that_are_mixed_up_are_noticed(
    damage: Damage, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    do(monkeypatch, damage)
    with pytest.raises(ParityError, match="on 3 slots shuffled"):
        export(tmp_path / "m.onnx", **options)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    "damage", [add(OBJECTNESS, 5e-6), add(0, 5e-4), add(FIRST_POINT, 5e-4)], ids=["score", "box", "keypoint"]
)
def test_half_of_a_limit_passes(damage: Damage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    do(monkeypatch, damage)
    report = export(tmp_path / "m.onnx")
    assert max(d.limit_ratio for d in report.parity.differences) > 0.25


def test_detections_fail_where_every_value_is_within_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The matched detections are a check of their own: here it is the only one that is left."""
    from deploykit.export.parity import compare, onnx_file

    wide = compare.Tolerance(pixels=1e3, relative=1e3, probability=1e-5)
    checked = compare.check_expected
    monkeypatch.setattr(onnx_file, "check_expected", lambda *a: checked(*a[:4], wide, *a[5:]))
    do(monkeypatch, add(0, 4.0))
    with pytest.raises(ParityError, match=r"best rows of m\.onnx .*: \d\d? of 100 expected and 100 found match"):
        export(tmp_path / "m.onnx")


def test_a_wrong_fold_that_its_own_check_does_not_see_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fuse = Conv.fuse

    def forgetful(self: Conv, path: str) -> Conv:
        """Fold, and check the fold against, a batch norm whose shift has been forgotten."""
        assert isinstance(self.bn, nn.BatchNorm2d)
        shift = self.bn.bias.data.clone()
        try:
            self.bn.bias.data.zero_()
            return fuse(self, path)
        finally:
            self.bn.bias.data.copy_(shift)

    monkeypatch.setattr(Conv, "fuse", forgetful)
    with pytest.raises(
        ParityError, match=r"differ from the checkpoint .*; the fused model does not .*: fusing changed it$"
    ):
        export(tmp_path / "m.onnx")
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("exporter", ["dynamo", "legacy"])
def test_the_untouched_graph_is_what_the_damages_start_from(
    exporter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The refusals above would mean nothing if going through ONNX and back were refused already."""
    do(monkeypatch, lambda _: None)
    report = export(tmp_path / "m.onnx", exporter=exporter)
    layout = report.spec.output
    assert isinstance(layout, RawDetections)
    assert (layout.obj, layout.keypoints, layout.columns) == ((4, 5), (7, 16), COLUMNS)
    onnx.checker.check_model(str(report.path))
