"""``deploykit.verify``: what a gate asks beyond a comparison."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import deploykit
from deploykit.errors import NotFoundError, ParityError, UsageError
from deploykit.export.parity import relaxing
from deploykit.export.parity.compare import Given, prepared
from deploykit.export.parity.tolerances import FP16, LIMITS
from deploykit.export.sessions import torch_module
from deploykit.export.to_onnx import onnx_from_model
from deploykit.export.verify import chosen_tolerance, error_junit, verify
from deploykit.runtime.parity.tolerance import Tolerance
from deploykit.spec import METADATA_KEY, DenseOutput, ModelSpec
from tests.cell_model import cell_spec, write_cell_model
from tests.dense_networks import canvas_of
from tests.export.parity.test_float32_noise import magnifying
from tests.export.test_junit import check_junit
from tests.foreign_exports import write_constant
from tests.narrow import model_of

TEN = ModelSpec("classify", canvas_of("crop", (32, 32)), DenseOutput(), tuple("abcdefghij"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_cell_model(tmp_path / "cells.onnx", spec=cell_spec())


def change(file: Path, out: Path, name: str, amount: float, *, foreign: bool = False) -> Path:
    """A copy with ``amount`` added to the first value of a stored tensor; ``foreign``: without its spec."""
    found = onnx.load(str(file))
    tensor = next(t for t in found.graph.initializer if t.name == name)
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] += amount
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    if foreign:
        del found.metadata_props[:]
    onnx.save(found, str(out))
    return out


def test_two_that_agree_are_verified_and_the_file_says_so(model: Path, tmp_path: Path) -> None:
    copy = change(model, tmp_path / "copy.onnx", "boxes", 0.0)
    report = verify(model, copy)
    assert report.ok
    assert report.failures == ()
    report.raise_if_bad()
    report.junit(tmp_path / "out.xml")
    suite = check_junit((tmp_path / "out.xml").read_bytes())
    assert suite.attrib["failures"] == "0"
    names = [case.attrib["name"] for case in suite.findall("testcase")]
    assert "boxes on apollo11_crew.jpg against cells.onnx" in names
    assert "scores on noise (seed 0) against cells.onnx" in names
    assert len(names) == len(report.checks)
    assert json.loads(json.dumps(report.to_dict()))["verified"] is True


def test_a_difference_is_a_failure_with_its_values_and_its_limit(model: Path, tmp_path: Path) -> None:
    moved = change(model, tmp_path / "moved.onnx", "boxes", 2.0)
    report = verify(model, moved)
    assert not report.ok
    assert report.failures[0].says == str(report.parity.worst)
    with pytest.raises(ParityError, match=r"moved\.onnx is not verified against .*: boxes of moved\.onnx differ"):
        report.raise_if_bad()
    report.junit(tmp_path / "out.xml")
    suite = check_junit((tmp_path / "out.xml").read_bytes())
    failed = [c for c in suite.findall("testcase") if c.find("failure") is not None]
    assert {c.attrib["name"].split(" on ")[0] for c in failed} <= {"boxes", "best rows", "detections"}
    (first, *_) = (c.find("failure") for c in failed if c.attrib["name"].startswith("boxes on apollo"))
    assert first is not None
    assert "row 0, column 0 is 6, expected 4" in first.attrib["message"]
    assert "tolerance: pixels 0.001, " in str(first.text)


def test_the_precision_of_a_foreign_file_is_read_from_its_graph(tmp_path: Path) -> None:
    """A difference of a thousandth of a score is far over the limit of fp32, and little for fp16."""
    files = {}
    for kind in ("fp32", "fp16"):
        files[kind] = exported_conv(tmp_path / f"{kind}.onnx", half=kind == "fp16")
    report = verify(files["fp32"], files["fp16"], spec=TEN)
    assert report.precisions == {str(files["fp32"]): {"fp32": 1}, str(files["fp16"]): {"fp16": 1}}
    assert report.parity.tolerance == FP16
    assert report.ok
    assert not verify(files["fp32"], files["fp16"], spec=TEN, tolerance="fp32").ok


def test_reference_values_have_their_own_limits_and_a_lower_precision_has_its(tmp_path: Path) -> None:
    fp32, fp16 = (exported_conv(tmp_path / f"{kind}.onnx", half=kind == "fp16") for kind in ("fp32", "fp16"))
    with prepared(fp32, fp16, Given(spec=TEN)) as pair:
        replace(pair.expected, limits=Tolerance(dense=1e-4)).save(tmp_path / "known.npz")
    same = verify(tmp_path / "known.npz", fp32, spec=TEN)
    assert same.ok
    assert same.parity.tolerance == Tolerance(dense=1e-4)
    lower = verify(tmp_path / "known.npz", fp16, spec=TEN)
    assert lower.ok
    assert lower.parity.tolerance == FP16
    assert not verify(tmp_path / "known.npz", fp16, spec=TEN, tolerance="fp32").ok


def exported_conv(file: Path, *, half: bool) -> Path:
    """A classifier of ten classes with one convolution, in fp32 or fp16."""
    kind, numbers = (TensorProto.FLOAT16, np.float16) if half else (TensorProto.FLOAT, np.float32)
    weights = np.random.default_rng(0).normal(0, 0.1, (10, 3, 8, 8)).astype(numbers)
    nodes = [
        helper.make_node("Cast", ["images"], ["x"], to=kind),
        helper.make_node("Conv", ["x", "weights"], ["maps"], name="conv", strides=[8, 8]),
        helper.make_node("GlobalAveragePool", ["maps"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Cast", ["flat"], ["logits"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 32, 32])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 10])],
        [numpy_helper.from_array(weights, "weights")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(made, str(file))
    return file


def test_a_file_that_computes_in_another_precision_than_it_says_fails(tmp_path: Path) -> None:
    report = onnx_from_model(model_of("few"), out=tmp_path / "few.onnx", img=32, check=False)
    found = onnx.load(str(report.path))
    lying = json.loads(next(e.value for e in found.metadata_props if e.key == METADATA_KEY)) | {"precision": "fp16"}
    helper.set_model_props(found, {METADATA_KEY: json.dumps(lying)})
    onnx.save(found, str(tmp_path / "lying.onnx"))
    verdict = verify(report.path, tmp_path / "lying.onnx")
    (failed,) = verdict.failures
    assert failed.name == "precision of lying.onnx"
    assert "must compute in fp16, but its convolutions and matrix products are" in failed.says


def test_int8_is_not_passed_without_limits(tmp_path: Path) -> None:
    a = exported_conv(tmp_path / "a.onnx", half=False)
    b = with_int8(a, tmp_path / "b.onnx")
    with pytest.raises(UsageError, match=r"b\.onnx computes in int8, which has no limit per value.*--tolerance"):
        verify(a, b, spec=TEN)
    assert verify(a, b, spec=TEN, tolerance="dense=0.2,unmatched=1").ok
    assert not verify(a, b, spec=TEN, tolerance="dense=1e-9,unmatched=1").ok


def with_int8(file: Path, out: Path) -> Path:
    """The convolution with both operands from DequantizeLinear."""
    found = onnx.load(str(file))
    weights = numpy_helper.to_array(found.graph.initializer[0])
    scale = np.float32(np.abs(weights).max() / 127)
    stored = {
        "weights": np.rint(weights / scale).astype(np.int8),
        "weight_scale": scale,
        "scale": np.float32(1 / 127),
        "zero": np.int8(0),
    }
    del found.graph.initializer[:]
    found.graph.initializer.extend(numpy_helper.from_array(np.array(v), n) for n, v in stored.items())
    new = [
        helper.make_node("DequantizeLinear", ["weights", "weight_scale", "zero"], ["w"]),
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dx"]),
    ]
    nodes = list(found.graph.node)
    nodes[1].input[:] = ["dx", "w"]
    del found.graph.node[:]
    found.graph.node.extend([nodes[0], *new, *nodes[1:]])
    onnx.save(found, str(out))
    return out


def test_networks_that_find_nothing_are_not_verified(tmp_path: Path) -> None:
    """Rows of NMS outputs that are all empty: both agree, and nothing was compared."""
    empty = {
        "num_dets": np.zeros((1, 1), np.int32),
        "det_boxes": np.zeros((1, 5, 4), np.float32),
        "det_scores": np.zeros((1, 5), np.float32),
        "det_classes": np.zeros((1, 5), np.int32),
    }
    a, b = (write_constant(tmp_path / f"{n}.onnx", empty) for n in "ab")
    report = verify(a, b)
    (failed,) = report.failures
    assert report.parity.ok
    assert failed.name == "something is compared"
    assert "--sample" in failed.says


@pytest.mark.slow
def test_nms_in_the_graph_is_also_run_with_its_thresholds_open(tmp_path: Path) -> None:
    """A network of random weights detects nothing at its thresholds; a wrong box shows all the same."""
    network = model_of("few", num_keypoints=3)
    rows = onnx_from_model(network, out=tmp_path / "rows.onnx", img=64, check=False).path
    nms = onnx_from_model(network, out=tmp_path / "nms.onnx", img=64, nms="graph", check=False).path
    report = verify(rows, nms)
    assert report.ok
    assert all(m.expected == m.found == 0 for m in report.parity.matchings if m.what == "detections")
    assert sum(d.count for d in report.parity.differences) > 100
    other = model_of("few", num_keypoints=3, seed=1)
    wrong = onnx_from_model(other, out=tmp_path / "wrong.onnx", img=64, nms="graph", check=False).path
    assert not verify(rows, wrong).ok


@pytest.mark.slow
def test_a_network_that_magnifies_rounding_is_judged_as_its_export_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = magnifying()
    exported = onnx_from_model(network, out=tmp_path / "m.onnx")
    checkpoint = tmp_path / "m.pt"
    checkpoint.write_bytes(b"stands for the checkpoint")
    for module in (torch_module, relaxing):
        monkeypatch.setattr(module, "load_model", lambda *_, **__: network)
    report = verify(checkpoint, exported.path)
    assert report.ok
    assert report.parity.tolerance.probability > 3 * Tolerance().probability
    assert any("float32 alone" in note for note in report.parity.notes)
    assert not verify(checkpoint, exported.path, tolerance="fp32").ok  # what is asked for is not widened
    wrong = onnx_from_model(model_of("few-yolox", seed=1), out=tmp_path / "wrong.onnx", check=False).path
    assert not verify(checkpoint, wrong).ok


@pytest.mark.parametrize(
    ("text", "precision", "expected"),
    [
        ("", "fp16", FP16),
        ("", None, None),
        ("bf16", "fp32", LIMITS["bf16"]),
        ("pixels=2", "fp32", Tolerance(pixels=2.0)),
        ("fp32, pixels=2 ,unmatched=0.5", "fp16", Tolerance(pixels=2.0, unmatched=0.5)),
        ("fp32,pixels=2", None, Tolerance(pixels=2.0)),
    ],
)
def test_a_tolerance_as_text(text: str, precision: str | None, expected: Tolerance | None) -> None:
    assert chosen_tolerance(text, precision) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("fp64", "must be one of fp32, fp16, bf16, int8, fp8"),
        ("fp32,fp16", "must be one of"),
        ("pixel=1", "has the limits pixels, relative, .*; got 'pixel'"),
        ("pixels=few", "must be a number from 0 on, got 'few'"),
        ("pixels=-1", "must be a number from 0 on, got '-1'"),
        ("pixels=nan", "must be a number from 0 on, got 'nan'"),
        ("judged=0", "got 'judged'"),
    ],
)
def test_a_tolerance_that_is_none(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        chosen_tolerance(text, "fp32")


def test_changes_of_unnamed_limits_are_refused() -> None:
    with pytest.raises(UsageError, match="such as fp32,pixels=1"):
        chosen_tolerance("pixels=1", None)


def test_an_error_has_a_file_too(tmp_path: Path) -> None:
    error = NotFoundError("there is no <such> file")
    error_junit("a.onnx", "b.onnx", error, tmp_path / "out.xml")
    suite = check_junit((tmp_path / "out.xml").read_bytes())
    assert (suite.attrib["tests"], suite.attrib["errors"], suite.attrib["failures"]) == ("1", "1", "0")
    (found,) = suite.iter("error")
    assert found.attrib == {"message": "there is no <such> file", "type": "NotFoundError (exit code 4)"}


def test_it_is_public(model: Path, tmp_path: Path) -> None:
    assert deploykit.verify is verify
    assert deploykit.verify(model, change(model, tmp_path / "c.onnx", "boxes", 0.0, foreign=True)).ok
