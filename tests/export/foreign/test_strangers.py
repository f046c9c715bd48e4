"""Forms that files of other projects have, each of which a conversion once stumbled over."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploykit.errors import ExportError, FoldError
from deploykit.export.foreign import quantize
from deploykit.export.foreign.choice import attach, detach
from deploykit.export.foreign.quantize import quantize_onnx
from deploykit.export.foreign.stages import open_stages
from deploykit.export.options import Calibration, ImagePreparation, Precision, PrecisionOptions
from deploykit.runtime.arrays import Array
from tests.foreign_networks import SIDE

PLAIN = ImagePreparation(mean=(0.0,), std=(1.0,), fit="resize")
node = helper.make_node


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, chance = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number in range(3):
        cv2.imwrite(str(folder / f"{number}.png"), chance.integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8))
    return folder


def converted(file: Path, precision: Precision, images: Path, **others: Any) -> Any:
    calibration = Calibration(str(images), size=3) if precision == "int8" else None
    options = PrecisionOptions(precision, calibration=calibration, nodes_to_exclude=())
    return quantize_onnx(file, precision=options, preparation=PLAIN, **others)


def written(
    file: Path,
    nodes: Sequence[Any],
    constants: dict[str, Array],
    *,
    opset: int = 13,
    ir_version: int = 8,
    outputs: Sequence[str] = ("y",),
) -> Path:
    """Write a network of one image; weights are inputs too where the IR version asks for it."""
    stored = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, SIDE, SIDE])]
    if ir_version < 4:
        inputs += [helper.make_tensor_value_info(each.name, each.data_type, list(each.dims)) for each in stored]
    ends = [helper.make_tensor_value_info(n, 1, [1, 3, SIDE, SIDE] if n == "x" else None) for n in outputs]
    graph = helper.make_graph(list(nodes), "g", inputs, ends, stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    onnx.save(model, str(file))
    return file


def weights(seed: int = 0) -> dict[str, Array]:
    chance = np.random.default_rng(seed)
    return {
        "w": chance.normal(0, 0.2, (8, 3, 3, 3)).astype(np.float32),
        "w2": chance.normal(0, 0.2, (8, 8, 3, 3)).astype(np.float32),
        "b": chance.normal(0, 0.1, 8).astype(np.float32),
    }


STEM = [
    node("Conv", ["x", "w", "b"], ["c"], strides=[4, 4]),
    node("Relu", ["c"], ["r"]),
    node("Conv", ["r", "w2", "b"], ["f"], strides=[2, 2]),
]


def chooser(file: Path) -> Path:
    """A network that chooses two rows in its middle, and a layer behind the choice with a bias of the network's."""
    nodes = [
        *STEM,
        node("GlobalAveragePool", ["f"], ["mean"]),
        node("Flatten", ["mean"], ["row"]),
        node("TopK", ["row", "two"], ["best", "places"]),
        node("Gemm", ["best", "last", "b"], ["y"]),
    ]
    more = {"two": np.array([2]), "last": np.random.default_rng(1).normal(0, 1, (2, 8)).astype(np.float32)}
    return written(file, nodes, weights() | more)


def values(file: Path, seed: int = 3) -> list[Array]:
    image = np.random.default_rng(seed).random((1, 3, SIDE, SIDE), dtype=np.float32)
    found: list[Array] = onnxruntime.InferenceSession(file).run(None, {"x": image})
    return found


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_choice_may_share_a_constant_with_the_network(precision: Precision, images: Path, tmp_path: Path) -> None:
    file = chooser(tmp_path / "m.onnx")
    report = converted(file, precision, images)
    assert (report.choice, report.kept_layers) == ({"TopK": 1}, 1)
    (before,), (after,) = values(file), values(report.path)
    np.testing.assert_allclose(after, before, atol=0.05 * np.abs(before).max())
    model = onnx.load(str(report.path))
    gemm = next(each for each in model.graph.node if each.op_type == "Gemm")
    stored = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    assert stored[gemm.input[2]].dtype == np.float32


def test_a_choice_keeps_a_constant_that_the_network_has_changed(tmp_path: Path) -> None:
    file = chooser(tmp_path / "m.onnx")
    model = ir.load(file)
    choice = detach(model)
    new = model.clone()
    new.graph.initializers["b"].const_value = ir.tensor(np.zeros(8, np.float32), name="b")
    attach(new, choice)
    ir.save(new, tmp_path / "new.onnx")
    stored = {e.name: numpy_helper.to_array(e) for e in onnx.load(str(tmp_path / "new.onnx")).graph.initializer}
    assert np.array_equal(stored["b"], np.zeros(8))
    assert np.array_equal(stored["b_before"], weights()["b"])
    onnxruntime.InferenceSession(tmp_path / "new.onnx")


def tied(file: Path, lift: float = 0.0, last: float = 1.0) -> Path:
    """Rows with almost the same scores: the best one is chosen, and ``lift`` for the second decides which that is."""
    nodes = [
        *STEM,
        node("GlobalAveragePool", ["f"], ["mean"]),
        node("Mul", ["mean", "nothing"], ["no"]),
        node("ReduceSum", ["no", "axes"], ["zero"], keepdims=0),
        node("Add", ["zero", "scores"], ["all"]),
        node("TopK", ["all", "one"], ["best", "place"]),
        node("Gather", ["table", "place"], ["found"], axis=0),
        node("Mul", ["found", "last"], ["y"]),
    ]
    more = {
        "nothing": np.array(0, np.float32),
        "axes": np.array([1, 2, 3]),
        "scores": np.array([1.0, 1.0 + lift], np.float32),
        "one": np.array([1]),
        "table": np.array([[1.0, 2.0], [5.0, 7.0]], np.float32),
        "last": np.array(last, np.float32),
    }
    return written(file, nodes, weights() | more)


def test_rows_that_change_places_are_no_difference(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What rounding decides is decided by the source, and what follows from it is compared."""
    file, other = tied(tmp_path / "m.onnx"), tied(tmp_path / "other.onnx", lift=1e-6)
    assert values(file)[0].tolist() != values(other)[0].tolist()
    prepared = quantize.prepared_graph
    monkeypatch.setattr(quantize, "prepared_graph", lambda _, precision: prepared(other, precision))
    report = converted(file, "fp16", images)
    assert report.precision.base is not None
    assert any("from each choice to the next" in note for note in report.precision.base.notes)
    other = tied(tmp_path / "other.onnx", lift=1e-6, last=1.5)  # this is none of rounding
    with pytest.raises(FoldError, match="changed its numbers: y of "):
        converted(file, "fp16", images)


def test_a_source_without_the_values_between_stages_is_not_cut(tmp_path: Path) -> None:
    file = tied(tmp_path / "m.onnx")
    model = ir.load(file)
    next(each for each in model.graph if each.op_type == "Add").outputs[0].name = "renamed"
    assert open_stages(file, model, tmp_path) is None


@pytest.mark.parametrize("opset", [7, 8, 9, 10])
def test_old_files_are_read(opset: int, images: Path, tmp_path: Path) -> None:
    """Files of 2018 and 2019: weights that are inputs, attributes that became inputs, and Upsample."""
    up: list[Any] = [node("Resize", ["f", "scales"], ["up"], mode="linear")]
    if opset < 10:
        up = [node("Upsample", ["f", "scales"], ["up"], mode="linear")]
    if opset < 9:
        up = [node("Upsample", ["f"], ["up"], mode="linear", scales=[1.0, 1.0, 2.0, 2.0])]
    nodes = [*STEM, *up, node("Clip", ["up"], ["y"], min=-0.3, max=0.3)]
    more = {} if opset < 9 else {"scales": np.array([1, 1, 2, 2], np.float32)}
    file = written(tmp_path / "m.onnx", nodes, weights() | more, opset=opset, ir_version=3)
    report = converted(file, "fp16", images)
    assert (report.precision.computes, report.opset) == ({"fp16": 2}, 18)
    np.testing.assert_allclose(values(report.path)[0], values(file)[0], atol=0.005)


def test_a_file_that_is_too_old_is_refused(images: Path, tmp_path: Path) -> None:
    file = written(tmp_path / "m.onnx", STEM, weights(), opset=6, ir_version=3, outputs=("f",))
    with pytest.raises(ExportError, match="has opset 6, and opsets from 7 on are read"):
        converted(file, "fp16", images)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_an_output_may_be_a_constant_and_an_input(precision: Precision, images: Path, tmp_path: Path) -> None:
    file = written(tmp_path / "m.onnx", STEM, weights(), outputs=("f", "b", "x"))
    report = converted(file, precision, images)
    assert report.precision.computes == {precision: 2}
    for before, after in zip(values(file)[1:], values(report.path)[1:], strict=True):
        assert np.array_equal(before, after)


def test_an_operator_that_onnx_has_not_is_named(images: Path, tmp_path: Path) -> None:
    file = written(tmp_path / "m.onnx", [*STEM, node("Erfc", ["f"], ["y"])], weights())
    with pytest.raises(ExportError, match="cannot be raised to 18: ONNX has no operator Erfc"):
        converted(file, "fp16", images)


TRAINING = node("Constant", [], ["on"], value=numpy_helper.from_array(np.array(True)))
DROPS = [
    [node("RandomUniformLike", ["f"], ["noise"], name="drop"), node("Add", ["f", "noise"], ["y"])],
    [TRAINING, node("Dropout", ["f", "", "on"], ["y"], name="drop")],
]


@pytest.mark.parametrize("drop", DROPS, ids=["paths", "values"])
def test_a_network_in_training_mode_is_refused(drop: list[Any], images: Path, tmp_path: Path) -> None:
    """It drops others in each run, so nothing could be compared."""
    file = written(tmp_path / "m.onnx", [*STEM, *drop], weights())
    with pytest.raises(ExportError, match=r"other values in each run \(node 'drop', .*eval"):
        converted(file, "fp16", images)


def test_values_that_are_no_tensors_are_named(images: Path, tmp_path: Path) -> None:
    file = written(tmp_path / "m.onnx", STEM, weights())
    model = onnx.load(str(file))
    entry = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    model.graph.output.append(helper.make_value_info("map", helper.make_sequence_type_proto(entry)))
    onnx.save(model, str(file))
    with pytest.raises(ExportError, match=r"no tensors \(Map types .*\): export it without them \(ZipMap\)"):
        converted(file, "fp16", images)


def test_a_height_may_be_fixed_and_a_width_free(images: Path, tmp_path: Path) -> None:
    """As of readers of text lines, whose images have one height and any width."""
    file = written(tmp_path / "m.onnx", [*STEM, node("ReduceMean", ["f"], ["y"], axes=[2])], weights())
    model = onnx.load(str(file))
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_param = "width"
    onnx.save(model, str(file))
    report = converted(file, "fp16", images)
    assert (report.spec.input.size, report.spec.input.dynamic) == ((SIDE, 640), "none")
    assert onnxruntime.InferenceSession(report.path).get_inputs()[0].shape == [1, 3, SIDE, "width"]


def guarded(file: Path, mask: float) -> Path:
    """An attention of four rows by torch's exporter since 2.9, which sets a row to 0 of which the mask hides all."""
    nodes = [
        *STEM,
        node("Reshape", ["f", "rows"], ["q"]),
        node("Transpose", ["q"], ["turned"], perm=[0, 2, 1]),
        node("Mul", ["turned", "small"], ["k"]),
        node("MatMul", ["q", "k"], ["logits"]),
        node("Add", ["logits", "mask"], ["masked"]),
        node("Softmax", ["masked"], ["p"], axis=-1),
        node("IsNaN", ["p"], ["lost"]),
        node("Where", ["lost", "zero", "p"], ["kept"]),
        node("MatMul", ["kept", "q"], ["mixed"]),
        node("Reshape", ["mixed", "row"], ["flat"]),
        node("MatMul", ["flat", "last"], ["y"]),
    ]
    hidden = np.zeros((8, 8), np.float32)
    hidden[2] = mask
    more = {
        "rows": np.array([1, 8, 49]),
        "row": np.array([1, 8 * 49]),
        "mask": hidden,
        "zero": np.array(0, np.float32),
        "small": np.array(0.01, np.float32),
        "last": np.random.default_rng(1).normal(0, 0.1, (8 * 49, 4)).astype(np.float32),
    }
    return written(file, nodes, weights() | more)


@pytest.mark.parametrize(("mask", "there"), [(-4.0, False), (-np.inf, True)])
def test_a_guard_of_a_softmax_that_cannot_be_nan_is_taken_away(
    mask: float, there: bool, images: Path, tmp_path: Path
) -> None:
    """Then int8 knows the attention, whose products are fp16; a row that is hidden whole keeps its guard, and its 0."""
    file = guarded(tmp_path / "m.onnx", mask)
    report = converted(file, "int8", images)
    assert ("IsNaN" in {each.op_type for each in onnx.load(str(report.path)).graph.node}) == there
    assert (report.precision.computes.get("fp16", 0) == 2) == (not there)
    (before,), (after,) = values(file), values(report.path)
    np.testing.assert_allclose(after, before, atol=0.1 * np.abs(before).max())
