"""YOLOv6 exported with every kind of axis and NMS, and built as an engine: heads without anchors go every way."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest

from deploykit.export.engine.build import build_engine
from deploykit.export.options import OnnxOptions
from deploykit.export.parity.inputs import sample_image
from deploykit.export.to_onnx import onnx_from_model
from deploykit.facade import load, open_session
from deploykit.runtime.cuda import gpu_unavailable_reason
from deploykit.spec import Thresholds
from tests.asked import asked
from tests.export.test_exports import assert_agree, checked, exact, layout_of, noise, rows_of
from tests.narrow import model_of

LIMITS = Thresholds(conf=0.5, iou=0.4, max_det=40, pre_nms_topk=60)


@pytest.mark.slow
def test_a_dynamic_shape_takes_any_batch_and_any_good_size(tmp_path: Path) -> None:
    """The grid is computed, and with a distribution over distances every side by itself."""
    model = model_of("yolov6m")
    out = tmp_path / "m.onnx"
    report = checked(onnx_from_model(model, out=out, img=64, dynamic="shape"))
    assert str(report.outputs[0]) == "output float32 (batch, rows, 8)"
    for shape in ((1, 3, 32, 32), (3, 3, 64, 96)):
        assert_agree(*rows_of(exact(model), out, noise(*shape)), layout_of(report.spec))


def test_the_column_of_ones_is_not_stored(tmp_path: Path) -> None:
    report = checked(
        onnx_from_model(model_of("yolov6n"), out=tmp_path / "m.onnx", img=64, options=OnnxOptions(exporter="legacy"))
    )
    with open_session(report.path) as session:
        found = session.run({"images": noise(1, 3, 64, 64)})["output"]
    assert (found[..., 4] == 1).all()
    stored = [onnx.numpy_helper.to_array(t) for t in onnx.load(str(report.path)).graph.initializer]
    assert not any(array.size >= 64 and (array == 1).all() for array in stored)


@pytest.mark.slow
def test_nms_in_the_graph_finds_what_nms_behind_it_finds(tmp_path: Path) -> None:
    results = {}
    for mode in ("none", "graph", "basic"):
        out = tmp_path / f"{mode}.onnx"
        checked(onnx_from_model(model_of("yolov6n", score=0.0), out=out, img=64, nms=mode, options=asked(LIMITS)))
        with load(out) as predictor:
            results[mode] = predictor(sample_image())
    expected = results.pop("none")
    assert len(expected) > 5
    for found in results.values():
        np.testing.assert_array_equal(found.labels, expected.labels)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)
        np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-3)


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="TensorRT for RTX is not installed")
@pytest.mark.skipif(gpu_unavailable_reason() is None, reason="on a GPU tests/gpu builds engines and runs them")
@pytest.mark.parametrize("name", ["yolov6m", pytest.param("yolov6n_v1", marks=pytest.mark.slow)])
def test_an_engine_is_built(name: str, tmp_path: Path) -> None:
    out = tmp_path / "m.onnx"
    onnx_from_model(model_of(name), out=out, img=64, options=OnnxOptions(exporter="legacy"), check=False)
    engine = build_engine(out, flavour="tensorrt-rtx", out=tmp_path)
    assert engine.path.stat().st_size > 100_000
    assert engine.record.spec.source.model == name.replace("_", "-")
    assert not engine.record.verified
