"""KaPao's rows on their way through exports: verified, built, refused where they must be, and the same poses then."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from deploykit.errors import UsageError
from deploykit.export.engine.build import build_engine
from deploykit.export.inspection import inspect_file
from deploykit.export.matching import Matching
from deploykit.export.options import OnnxOptions
from deploykit.export.outputs import export_adapter_of
from deploykit.export.parity.compare import compare
from deploykit.export.parity.inputs import sample_image
from deploykit.export.report import ExportReport
from deploykit.export.to_onnx import export_onnx, onnx_from_model
from deploykit.facade import open_session
from deploykit.models.create.original_format import original_checkpoint
from deploykit.models.families.kapao import config_of
from deploykit.runtime.cuda import gpu_unavailable_reason
from deploykit.runtime.engine_record import reference_values_path
from deploykit.runtime.images.reading import read_image
from deploykit.runtime.model_spec import session_spec
from deploykit.runtime.parity.expected import ReferenceOutputs
from deploykit.runtime.parity.tolerance import Tolerance
from deploykit.runtime.predict.predictor import Predictor
from deploykit.spec import InputSpec, KeypointSpec, ModelSpec, PoseFusion, PoseObjectRows, RawDetections, Thresholds
from tests.narrow import graph_of, model_of

NAMES = ("person", "left_hand", "right_hand")
LAYOUT = PoseObjectRows(cls=(5, 8), coords=(8, 12))
SPEC = ModelSpec(
    task="keypoints",
    input=InputSpec(size=(640, 640)),
    output=LAYOUT,
    classes=("person",),
    keypoints=KeypointSpec(("left hand", "right hand")),
    thresholds=Thresholds(conf=0.25, iou=0.45, pre_nms_topk=30_000, keypoint=0.0),
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A narrow model with seeded weights that finds a lot, in the format of its project."""
    file = tmp_path_factory.mktemp("kapao") / "narrow.pt"
    graph = graph_of(config_of("kapao_s", len(NAMES), width=0.0625), objectness=0.0)
    file.write_bytes(original_checkpoint(graph, NAMES))
    return file


@pytest.fixture(scope="module")
def exported(checkpoint: Path) -> ExportReport:
    return export_onnx(checkpoint, img=(64, 128))


def test_an_export_is_verified_on_persons_and_on_keypoint_objects(exported: ExportReport) -> None:
    parity = exported.parity
    assert parity is not None
    assert parity.ok
    assert {d.values for d in parity.differences} == {"boxes", "scores", "keypoints"}
    assert sum(m.matched for m in parity.matchings) > 100
    assert isinstance(exported.spec.output, PoseObjectRows)
    assert exported.spec.keypoints == KeypointSpec(("left hand", "right hand"))


def test_the_poses_of_the_export_are_those_of_the_checkpoint(checkpoint: Path, exported: ExportReport) -> None:
    results, image = [], cv2.resize(read_image(sample_image()), (256, 128))
    for file in (checkpoint, exported.path):
        session = open_session(file)
        own = session_spec(session, file.name)
        # The checkpoint takes rectangles of any size; the image is of the export's.
        with Predictor(session, replace(own, input=replace(own.input, size=(64, 128)))) as predictor:
            results.append(predictor(image))
    a, b = results
    assert len(a) == len(b) > 10
    assert a.keypoints is not None
    assert b.keypoints is not None
    assert (a.keypoints[..., 2] > 0).sum() > 5
    np.testing.assert_allclose(b.keypoints[..., 2], a.keypoints[..., 2], atol=1e-5)
    np.testing.assert_allclose(b.keypoints[..., :2], a.keypoints[..., :2], atol=1e-2)


@pytest.mark.parametrize("exporter", ["legacy", pytest.param("dynamo", marks=pytest.mark.slow)])
def test_a_free_shape_takes_any_batch_and_any_multiple_of_the_stride(
    exporter: Any, checkpoint: Path, tmp_path: Path
) -> None:
    options = OnnxOptions(img=(64, 128), dynamic="shape", exporter=exporter)
    report = export_onnx(checkpoint, out=tmp_path / "m.onnx", options=options)
    assert str(report.inputs[0]) == "images float32 (batch, 3, height, width)"
    with open_session(report.path) as session, open_session(checkpoint) as original:
        for batch, height, width in ((1, 64, 64), (2, 128, 64), (3, 64, 192)):
            images = np.random.default_rng(batch).random((batch, 3, height, width), np.float32)
            rows, expected = (each.run({"images": images})["output"] for each in (session, original))
            assert rows.shape == (batch, 255 * height * width // 64**2, 12)
            np.testing.assert_allclose(rows, expected, rtol=1e-5, atol=1e-3)
    poses = []
    for file in (checkpoint, report.path):  # the image's own rectangle, by both
        with Predictor(open_session(file), report.spec) as predictor:
            poses.append(predictor(read_image(sample_image())))
    assert len(poses[0]) == len(poses[1]) > 10
    np.testing.assert_allclose(poses[1].boxes, poses[0].boxes, atol=0.05)


def test_a_checkpoint_and_its_export_are_compared(checkpoint: Path, exported: ExportReport) -> None:
    assert compare(checkpoint, exported.path).ok


@pytest.mark.parametrize("mode", ["graph", "basic", "plugin"])
def test_nms_inside_is_refused_with_the_reason(mode: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"--nms {mode} does not go with pose objects.*use --nms none"):
        onnx_from_model(model_of("pose objects"), out=tmp_path / "m.onnx", img=64, nms=mode)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="TensorRT for RTX is not installed")
@pytest.mark.skipif(gpu_unavailable_reason() is None, reason="this machine has a GPU, where engines run at once")
def test_an_engine_is_built_with_the_rows_that_it_must_give(exported: ExportReport) -> None:
    report = build_engine(exported.path, flavour="tensorrt-rtx")
    assert report.record.spec == exported.spec
    expected = ReferenceOutputs.load(reference_values_path(report.path))
    assert expected.layout == RawDetections(cls=(5, 8), keypoints=(8, 12), kpt_dims=2)


def test_what_the_columns_hold_is_told(checkpoint: Path, exported: ExportReport) -> None:
    said = exported.spec.output.describe(exported.spec)
    for part in (
        "5-7: a person and 2 keypoints as classes",
        "8-11: x y of a person's keypoints",
        "within 50 source pixels",
    ):
        assert part in said
    for file in (checkpoint, exported.path):
        facts = inspect_file(file).facts
        assert (facts["task"], facts["columns"], facts["classes"]) == ("keypoints", 12, ["person"])
        assert facts["output"] == said
    assert inspect_file(checkpoint).facts["family"] == "KaPao"


# Matching: both runs of NMS, each by its own thresholds.


def row(x: float, y: float, score: float, label: int, side: float = 40, hand: float = 0.0) -> list[float]:
    return [x, y, side, side, score, *(float(label == c) for c in range(3)), x + hand, y, x, y]


def matched(expected: list[list[float]], found: list[list[float]], spec: ModelSpec = SPEC) -> Matching:
    sides = [[np.array(rows, np.float32)] for rows in (expected, found)]
    return export_adapter_of(spec).match(("a", "b", "one image"), sides[0], sides[1], Tolerance())[0]


ROWS = [row(60 + 90 * i, 60 + 90 * j, 0.9 - 0.02 * i, label=(i + j) % 3) for i in range(4) for j in range(3)]


def test_persons_and_keypoint_objects_match() -> None:
    result = matched(ROWS, ROWS)
    assert result.ok
    assert (result.what, result.expected, result.matched) == ("detections", 12, 12)


@pytest.mark.parametrize("at", range(3))
@pytest.mark.parametrize(
    "change",
    [{"score": 0.1}, {"score": 0.91}, {"x": 64.0}, {"label": 9}],
    ids=["lost", "surer", "moved", "of no class"],
)
def test_one_that_changed_fails_whatever_it_is(at: int, change: dict[str, Any]) -> None:
    mine = {"x": 60.0, "y": 60.0 + 90 * at, "score": 0.9, "label": at}
    assert not matched(ROWS, [row(**{**mine, **change}), *(r for i, r in enumerate(ROWS) if i != at)]).ok


def test_the_coordinates_of_persons_count_and_those_of_objects_do_not() -> None:
    for label, ok in ((0, False), (1, True)):
        assert matched([*ROWS, row(500, 500, 0.8, label)], [*ROWS, row(500, 500, 0.8, label, hand=0.1)]).ok is ok


def test_each_kind_is_borderline_at_its_own_threshold() -> None:
    spec = replace(SPEC, output=replace(LAYOUT, fusion=PoseFusion(conf=0.4)))
    for label, threshold in ((0, 0.25), (1, 0.4), (2, 0.4)):
        result = matched(
            [*ROWS, row(500, 500, threshold + 5e-6, label)], [*ROWS, row(500, 500, threshold, label)], spec
        )
        assert result.ok
        assert (result.matched, result.borderline) == (12, 1)
    assert not matched([*ROWS, row(500, 500, 0.25, 1)], [*ROWS, row(500, 500, 0.41, 1)], spec).ok
