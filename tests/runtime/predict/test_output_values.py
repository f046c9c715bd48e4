"""What a network gives is checked before anything is made of it, in every task and by every caller."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import deploykit
from deploykit.cli import main
from deploykit.errors import BackendError, NotFiniteError, SpecError
from deploykit.runtime.arrays import Array
from deploykit.runtime.backends.fake import FakeSession
from deploykit.runtime.predict.predictor import Predictor
from deploykit.spec import DenseOutput, Fit, InputSpec, KeypointSpec, ModelSpec, NmsOutputs, RawDetections
from tests.cell_model import RED, cell_spec, planted, write_cell_model

IMAGE = np.zeros((32, 32, 3), np.uint8)
ROWS = ModelSpec(
    "keypoints",
    InputSpec(size=(32, 32)),
    RawDetections(cls=(5, 7), keypoints=(7, 10)),
    ("a", "b"),
    KeypointSpec(("p",)),
)
NMS = ModelSpec(
    "keypoints", InputSpec(size=(32, 32)), NmsOutputs(keypoints="keypoints"), ("a", "b"), KeypointSpec(("p",))
)


def _predict(spec: ModelSpec, **outputs: Array) -> Any:
    return Predictor(FakeSession(lambda _: outputs, spec=spec))(IMAGE)


def _rows(**changes: float) -> Array:
    """One object and nine rows of nothing; ``changes`` are values of the object's columns."""
    rows = np.zeros((1, 10, 10), np.float32)
    names = {"x": 0, "w": 2, "obj": 4, "a": 5, "b": 6, "v": 9}
    rows[0, 3] = [16, 16, 8, 8, 0.9, 0.8, 0.1, 16, 16, 0.7]
    for name, value in changes.items():
        rows[0, 3, names[name]] = value
    return rows


def _nms(**changes: Any) -> dict[str, Array]:
    outputs = {
        "num_dets": np.array([[1]], np.int32),
        "boxes": np.array([[[8, 8, 16, 24], [np.nan] * 4]], np.float32),  # nobody looks into an empty slot
        "scores": np.array([[0.9, np.nan]], np.float32),
        "labels": np.array([[1, 99]], np.int32),
        "keypoints": np.array([[[[4, 4, 0.5]], [[np.nan] * 3]]], np.float32),
        "num_candidates": np.array([[1]], np.int32),
    }
    for name, value in changes.items():
        if np.ndim(value):
            outputs[name] = np.asarray(value)
        else:
            outputs[name] = outputs[name].astype(np.result_type(outputs[name], type(value)))
            outputs[name][(0,) * outputs[name].ndim] = value
    return outputs


def test_rows_in_order_pass() -> None:
    assert _predict(ROWS, output=_rows()).counts() == {"a": 1}
    assert _predict(ROWS, output=_rows(obj=1.004, a=1.004)).counts() == {"a": 1}  # what half precision may round to


@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize("column", ["x", "obj", "b", "v"])
def test_nan_in_rows_is_an_error_that_names_the_tensor(column: str, kind: type) -> None:
    with pytest.raises(NotFiniteError, match=r"1 of 100 values of its output 'output' are NaN"):
        _predict(ROWS, output=_rows(**{column: np.nan}).astype(kind))


def test_rows_that_are_all_infinite_are_an_error() -> None:
    rows = _rows()
    rows[..., 2] = np.inf
    with pytest.raises(NotFiniteError, match=r"10 of 100 values of its output 'output' are infinity"):
        _predict(ROWS, output=rows)


@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_an_object_with_an_infinite_side_is_left_out_with_a_warning(
    kind: type, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert len(_predict(ROWS, output=_rows(w=np.inf).astype(kind))) == 0
    assert "gives infinity in some rows of 'output': NMS leaves these rows out" in caplog.text
    caplog.clear()
    assert len(_predict(ROWS, output=_rows(w=np.inf, obj=0.1).astype(kind))) == 0  # not an object at all
    assert not caplog.records


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"obj": 158.9}, "gives objectness of 158.9"),
        ({"obj": -0.5}, "gives objectness of -0.5"),
        ({"a": 158.9}, "gives scores of 158.9"),
        ({"v": 31.5}, "gives keypoint visibilities of 31.5"),
    ],
)
def test_probabilities_outside_of_0_to_1_are_refused(changes: dict[str, float], words: str) -> None:
    with pytest.raises(SpecError, match=f"must be probabilities .*'output' {words}: the spec does not fit"):
        _predict(ROWS, output=_rows(**changes))


def test_rows_without_objectness_are_checked_too() -> None:
    spec = ModelSpec("detect", InputSpec(size=(32, 32)), RawDetections(obj=None, cls=(4, 10)))
    with pytest.raises(SpecError, match="gives scores of 16"):
        _predict(spec, output=_rows())
    with pytest.raises(NotFiniteError, match="'output' are NaN"):
        _predict(spec, output=_rows(v=np.nan))


def test_rows_of_words_or_of_another_batch_are_refused() -> None:
    for wrong in (np.full((1, 3, 10), "a", object), np.zeros((0, 3, 10), np.float32)):
        with pytest.raises(SpecError, match=r"must be float rows of 1 image, the network gives (object|float32) \("):
            _predict(ROWS, output=wrong)


def test_nms_outputs_in_order_pass() -> None:
    assert _predict(NMS, **_nms()).counts() == {"b": 1}


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"scores": np.nan}, NotFiniteError, "'scores' are NaN"),
        ({"scores": 7.5}, SpecError, "gives scores of 7.5"),
        ({"boxes": np.inf}, NotFiniteError, "'boxes' are infinity"),
        ({"labels": 2}, SpecError, "labels must be whole numbers, 0 to 1, but output 'labels' gives 2"),
        ({"labels": -1}, SpecError, "gives -1"),
        ({"labels": 0.5}, SpecError, "gives 0.5"),
        ({"keypoints": np.nan}, NotFiniteError, "'keypoints' are NaN"),
        ({"keypoints": [[[[4, 4, 9.0]], [[0, 0, 0]]]]}, SpecError, "gives keypoint visibilities of 9"),
        ({"num_dets": 3}, BackendError, r"must lie in 0\.\.2, got 3"),
        ({"num_dets": -1}, BackendError, "must be a whole number from 0 on, got -1"),
        ({"num_dets": np.nan}, BackendError, "must be a whole number from 0 on, got nan"),
        ({"num_candidates": 0.5}, BackendError, "must be a whole number from 0 on, got 0.5"),
        ({"scores": np.full((1, 2), "a", object)}, BackendError, "'scores' must be numbers, got object"),
    ],
)
def test_nms_outputs_that_cannot_be_are_refused(changes: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        _predict(NMS, **_nms(**changes))


def test_masks_are_probabilities() -> None:
    output = NmsOutputs(masks="masks")
    spec = ModelSpec("instances", InputSpec(size=(32, 32)), output, ("a", "b"))
    masks = np.zeros((1, 2, 4, 4), np.float32)
    assert len(_predict(spec, **_nms(), masks=masks)) == 1
    masks[0, 0, 1, 1] = 4.5
    with pytest.raises(SpecError, match=r"'masks' gives masks of 4\.5"):
        _predict(spec, **_nms(), masks=masks)
    with pytest.raises(BackendError, match=r"'masks' must be \(batch, 2, \?, \?\), got \(1, 5, 4, 4\)"):
        _predict(spec, **_nms(), masks=np.zeros((1, 5, 4, 4), np.float32))


def _dense(task: str, classes: tuple[str, ...] = ()) -> ModelSpec:
    return ModelSpec(task, InputSpec(size=(32, 32), fit=Fit(kind="resize")), DenseOutput(), classes)


@pytest.mark.parametrize("task", ["classify", "segment", "restore", "features"])
@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")])
def test_one_value_of_a_dense_output_that_is_not_finite_is_an_error(task: str, value: float, word: str) -> None:
    logits = np.zeros((1, 3) if task in ("classify", "features") else (1, 3, 32, 32), np.float32)
    assert _predict(_dense(task), logits=logits).size == (32, 32)
    logits[(0, 1, *(0,) * (logits.ndim - 2))] = value
    with pytest.raises(NotFiniteError, match=rf"1 of {logits.size:,} values of its output 'logits' are {word}"):
        _predict(_dense(task), logits=logits)


@pytest.mark.parametrize(
    ("task", "classes", "output", "words"),
    [
        ("classify", (), np.zeros((1, 0), np.float32), r"must hold values for 1 image, the network gives \(1, 0\)"),
        ("classify", (), np.zeros((0, 3), np.float32), r"must hold values for 1 image, the network gives \(0, 3\)"),
        ("classify", (), np.full((1, 3), "a", object), "must be numbers, the network gives object"),
        ("classify", ("a", "b"), np.zeros((1, 3), np.float32), "names 2 classes, but the output 'logits' has 3"),
        ("segment", (), np.zeros((1, 3, 0, 0), np.float32), r"the network gives \(1, 3, 0, 0\)"),
        ("segment", tuple("abcd"), np.zeros((1, 3, 32, 32), np.float32), "names 4 classes, but the output"),
        ("segment", (), np.zeros((1, 3), np.float32), "needs an output of 4 axes"),
        ("restore", (), np.zeros((1, 5, 32, 32), np.float32), "the output 'logits' has 5 channels"),
        ("features", (), np.zeros((1, 0), np.float32), r"the network gives \(1, 0\)"),
    ],
)
def test_dense_outputs_that_cannot_be_are_refused(
    task: str, classes: tuple[str, ...], output: Array, words: str
) -> None:
    with pytest.raises(SpecError, match=words):
        _predict(_dense(task, classes), logits=output)


def test_unused_slots_of_a_fixed_batch_may_hold_anything() -> None:
    spec = dataclasses.replace(ROWS, input=InputSpec(size=(32, 32), batch=2))
    rows = np.concatenate((_rows(), np.full((1, 10, 10), np.nan, np.float32)))
    predict = Predictor(FakeSession(lambda _: {"output": rows}, spec=spec))
    assert predict(IMAGE).counts() == {"a": 1}
    with pytest.raises(NotFiniteError):
        predict([IMAGE, IMAGE])


def test_every_tile_is_checked() -> None:
    spec = dataclasses.replace(_dense("restore"), input=InputSpec(size=(32, 32), fit=Fit(kind="tile", stride=2)))
    predict = Predictor(FakeSession(lambda fed: {"logits": np.where(fed["images"] > 0.5, np.nan, 0)}, spec=spec))
    image = np.zeros((64, 64, 3), np.uint8)
    assert predict(image).tiles > 1
    image[60, 60] = 255
    with pytest.raises(NotFiniteError, match="'logits' are NaN"):
        predict(image)


def _with_nan(path: Path, place: Path) -> Path:
    model = onnx.load(path)
    (box,) = (tensor for tensor in model.graph.initializer if tensor.name == "zero")
    box.CopyFrom(numpy_helper.from_array(np.full(1, np.nan, np.float32), "zero"))
    onnx.save(model, place)
    return place


def test_predict_bench_and_eval_say_that_a_network_gives_nan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = _with_nan(write_cell_model(tmp_path / "cells.onnx", spec=cell_spec()), tmp_path / "nan.onnx")
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "1.png").write_bytes(cv2.imencode(".png", planted((1, 2, RED)))[1].tobytes())
    truth = tmp_path / "truth.json"
    truth.write_text(
        '{"images": [{"id": 1, "file_name": "1.png"}], "categories": [{"id": 1, "name": "red"}, {"id": 2, "name": '
        '"blue"}], "annotations": [{"image_id": 1, "category_id": 1, "bbox": [8, 16, 8, 8]}]}'
    )
    for words in (
        ["predict", "--model", model, "--source", folder],
        ["bench", "--engine", model, "--runs", "1", "--warmup", "0"],
        ["eval", "--model", model, "--data", truth, "--images", folder, "--task", "detect"],
    ):
        assert main([*map(str, words)]) == NotFiniteError.exit_code
        assert "values of its output 'output' are NaN: its weights are damaged" in capsys.readouterr().err
    with pytest.raises(NotFiniteError):
        deploykit.load(model)(folder / "1.png")
