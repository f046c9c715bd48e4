"""The same graph in an older operator set, and the versions that a file is stamped with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from deploykit.errors import ExportError
from deploykit.export.graph.lower_opset import lower_opset
from deploykit.export.graph.versions import lowest_ir_version, oldest_runtime
from deploykit.export.options import OnnxOptions, PrecisionOptions
from deploykit.export.report import ExportReport
from deploykit.export.to_onnx import onnx_from_model
from deploykit.models.registry import ReferenceModel
from deploykit.runtime.arrays import Array
from tests.narrow import model_of
from tests.narrow_dense import narrow_dense


def export(model: ReferenceModel, file: Path, opset: int, **asked: Any) -> tuple[ExportReport, onnx.ModelProto]:
    """A verified export in the opset, and the file."""
    report = onnx_from_model(model, out=file, options=OnnxOptions(opset=opset, **asked))
    assert report.parity is not None
    assert report.parity.ok
    return report, onnx.load(file)


def graph(body: str, opset: int = 18, shape: str = "2,3,4,6", stored: str = "") -> ir.Model:
    """A graph from x of that shape to y."""
    return ir.from_onnx_text(
        f'<ir_version: 8, opset_import: ["" : {opset}]>\ng (float[{shape}] x) => (float y)\n<{stored}>\n{{{body}}}'
    )


def run(model: ir.Model, x: Array) -> Array:
    """The graph's output; ranks are not written in these tests, so the type's shape goes first."""
    proto = ir.to_proto(model)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


@pytest.mark.parametrize("nms", ["none", "graph", "basic"])
def test_a_detector_is_exported_to_opset_13_and_verified(nms: str, tmp_path: Path) -> None:
    report, model = export(model_of("few"), tmp_path / "m.onnx", 13, nms=nms, img=64)
    assert (report.opset, model.opset_import[0].version, report.spec.opset) == (13, 13, 13)
    assert (report.ir_version, model.ir_version) == (7, 7)


NETWORKS = ("crossformer-t", "dynopool-efficientnet-b0", "mae-vit-b16", "nafnet-w32-gopro", "parsenet", "unet-2015")
QUICK = "nafnet-w32-gopro"


@pytest.mark.parametrize("name", [n if n == QUICK else pytest.param(n, marks=pytest.mark.slow) for n in NETWORKS])
def test_networks_with_newer_operators_are_exported_to_opset_13(name: str, tmp_path: Path) -> None:
    _, model = export(narrow_dense(name), tmp_path / "m.onnx", 13)
    assert model.opset_import[0].version == 13


def test_a_file_of_free_shape_gives_the_same_values_in_opset_13(exported: Path) -> None:
    file = exported / "shape.onnx"
    model = ir.load(file)
    lower_opset(model, 13)
    assert model.opset_imports[""] == 13
    older = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    newer = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    for shape in ((1, 3, 64, 64), (2, 3, 32, 80)):
        feed = {"images": np.random.default_rng(0).random(shape, np.float32)}
        np.testing.assert_allclose(older.run(None, feed)[0], newer.run(None, feed)[0], rtol=1e-6, atol=1e-5)


@pytest.mark.slow
def test_a_free_shape_is_exported_to_opset_13(tmp_path: Path) -> None:
    report, _ = export(model_of("few"), tmp_path / "m.onnx", 13, dynamic="shape", img=64)
    assert report.opset == 13


def test_half_precision_is_exported_to_opset_13(tmp_path: Path) -> None:
    report, model = export(
        narrow_dense("mae-vit-b16"), tmp_path / "m.onnx", 13, precision=PrecisionOptions(precision="fp16")
    )
    assert report.opset == 13
    assert "LayerNormalization" not in {node.op_type for node in model.graph.node}


@pytest.mark.parametrize(
    ("opset", "ir_version", "runtime"),
    [
        (13, 7, "1.15"), (17, 8, "1.15"), (18, 8, "1.15"), (19, 9, "1.15"), (20, 9, "1.17"), (21, 10, "1.18"),
        (22, 10, "1.21"), (23, 11, "1.23"),
    ],
)  # fmt: skip
def test_the_ir_version_is_the_lowest_that_the_opset_allows(opset: int, ir_version: int, runtime: str) -> None:
    model = graph("y = Relu(x)", opset)
    assert lowest_ir_version(model) == ir_version
    assert ".".join(map(str, oldest_runtime(opset, ir_version))) == runtime


def test_a_file_that_needs_a_newer_runtime_says_so(tmp_path: Path) -> None:
    report, _ = export(narrow_dense("unet"), tmp_path / "m.onnx", 23)
    assert report.runtime == "ONNX Runtime 1.23 and newer"
    assert any("opset 23 needs ONNX Runtime 1.23 and newer" in note for note in report.notes)
    older, _ = export(narrow_dense("unet"), tmp_path / "m.onnx", 18)
    assert not any("ONNX Runtime" in note for note in older.notes)


SAME = {
    "axes of a mean": ("y = ReduceMean<keepdims=0>(x, a)", "int64[2] a = {2, 3}"),
    "all axes": ("y = ReduceMax<keepdims=1>(x)", ""),
    "a side": ("s = Shape<start=2, end=4>(x)\ny = Cast<to=1>(s)", ""),
    "the last side": ("s = Shape<start=-1>(x)\ny = Cast<to=1>(s)", ""),
    "equal parts": ("y, z = Split<axis=1, num_outputs=3>(x)", ""),
    "gate": ("y = HardSwish(x)", ""),
    "mish": ("y = Mish(x)", ""),
    "layer norm": (
        "y = LayerNormalization<epsilon=0.001>(x, a, b)",
        "float[6] a = {1, 2, 3, 4, 5, 6}, float[6] b = {0, 0, 1, 1, 2, 2}",
    ),
    "pads": ("y = Pad<mode='reflect'>(x, a)", "int64[8] a = {0, 0, 1, 1, 0, 0, 1, 1}"),
    "a shape": ("y = Reshape<allowzero=1>(x, a)", "int64[2] a = {6, 24}"),
    "resize": ("y = Resize<mode='nearest', antialias=0>(x, r, a)", "float[0] r = {}, float[4] a = {1, 1, 2, 2}"),
}


@pytest.mark.parametrize("opset", [13, 14, 16])
@pytest.mark.parametrize("name", SAME)
def test_an_older_form_gives_the_same_values(name: str, opset: int) -> None:
    body, stored = SAME[name]
    if name == "equal parts":
        body = body.replace("y, z", "y, z, w")
    model = graph(body.replace("'", '"'), stored=stored)
    x = np.random.default_rng(0).normal(0, 3, (2, 3, 4, 6)).astype(np.float32)
    expected = run(model, x)
    lower_opset(model, opset)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=False)
    assert proto.opset_import[0].version == opset
    np.testing.assert_allclose(run(model, x), expected, rtol=0, atol=2e-6)


REFUSED = {
    "no older form is known": ("y = BitwiseNot(x)", "", 18),
    "antialias 1": (
        "y = Resize<mode='linear', antialias=1>(x, r, a)",
        "float[0] r = {}, float[4] a = {1, 1, 2, 2}",
        18,
    ),
    "a side of zero": ("y = Reshape<allowzero=1>(x, a)", "int64[2] a = {0, 24}", 14),
    "its input 1 is computed": ("s = Shape(x)\ny = ReduceMean(x, s)", "", 18),
    "pads of chosen axes": ("y = Pad(x, a, , b)", "int64[2] a = {1, 1}, int64[1] b = {3}", 18),
    "4 in 3 parts": ("y, z, w = Split<axis=2, num_outputs=3>(x)", "", 18),
    "over several axes": ("y = LayerNormalization<axis=2>(x, a)", "float[4,6] a = {1}", 17),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_has_no_older_form_is_refused_with_the_lowest_opset(reason: str) -> None:
    body, stored, lowest = REFUSED[reason]
    model = graph(body.replace("'", '"'), stored=stored.replace("{1}", "{" + ", ".join(["1"] * 24) + "}"))
    with pytest.raises(ExportError, match=rf"opset 13 has no form of .*{reason}.*: use --opset {lowest}$"):
        lower_opset(model, 13)


def test_a_newer_opset_than_the_graphs_changes_nothing() -> None:
    model = graph("y = Relu(x)")
    lower_opset(model, 21)
    assert model.opset_imports[""] == 18
