"""Trained models of others, on real images: what they find through our export, and what others' exports find."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import deploykit
from deploykit.export.options import OnnxOptions
from deploykit.export.report import ExportReport
from deploykit.runtime.predict.predictor import Predictor
from deploykit.spec import ModelSpec

pytestmark = pytest.mark.data

GOLDEN = (
    "yolov7-w6-pose-narrow",
    "yolov7-training-narrow",
    "yolov7-tiny-training-narrow",
    "yolov5s6-pose-narrow",
    "yolov6n-narrow",
    "yolox-s-narrow",
)


@pytest.mark.parametrize("name", GOLDEN)
def test_the_original_projects_outputs_are_met_in_onnx_runtime(name: str, shared: Path, tmp_path: Path) -> None:
    golden = np.load(shared / "golden" / f"{name}.npz")
    images, expected = golden["images"], golden["output"]
    report = deploykit.export_onnx(
        shared / "golden" / f"{name}.pt",
        img=images.shape[2:],
        options=OnnxOptions(batch=len(images)),
        out=tmp_path / "m.onnx",
    )
    assert report.parity is not None
    assert report.parity.ok
    with deploykit.open_session(report.path) as session:
        found = session.run({"images": images})["output"]
    assert found.shape == expected.shape
    probabilities = [4, *range(5, 5 + len(report.spec.classes))]
    if report.spec.keypoints:
        probabilities += list(range(5 + len(report.spec.classes) + 2, expected.shape[-1], 3))
    pixels = np.setdiff1d(np.arange(expected.shape[-1]), probabilities)
    difference = np.abs(found - expected)
    assert difference[..., pixels].max() <= 1e-3
    assert difference[..., probabilities].max() <= 1e-5
    assert expected[..., pixels].std() > 1  # the golden output is not a constant


@pytest.fixture(scope="module")
def faces(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    weights = shared / "data" / "weights" / "yolov7-lite-e_face5kpt.pt"
    return deploykit.export_onnx(weights, img=640, out=tmp_path_factory.mktemp("faces") / "faces.onnx")


@pytest.mark.slow
def test_our_face_model_finds_the_same_faces_as_an_independent_export(faces: ExportReport, shared: Path) -> None:
    spec: ModelSpec = faces.spec
    theirs_path = shared / "data" / "onnx" / "yolov7-lite-e_face5kpt.onnx"
    images = sorted((shared / "data" / "images" / "faces-wider").glob("*.jpg"))
    assert len(images) == 24
    total = 0
    with deploykit.load(faces.path) as ours, deploykit.load(theirs_path, spec=spec) as theirs:
        for image in images:
            mine, other = ours(image), theirs(image)
            assert len(mine) == len(other), image.name
            # Both are sorted by score; two faces of nearly the same score may change places, so pair by place.
            centres = [(r.boxes[:, :2] + r.boxes[:, 2:]) / 2 for r in (mine, other)]
            nearest = np.linalg.norm(centres[0][:, None] - centres[1][None], axis=-1).argmin(1)
            assert sorted(nearest) == list(range(len(mine)))
            assert np.abs(mine.boxes - other.boxes[nearest]).max(initial=0) < 0.5
            assert mine.keypoints is not None
            assert other.keypoints is not None
            assert np.abs(mine.keypoints[..., :2] - other.keypoints[nearest, :, :2]).max(initial=0) < 0.5
            assert np.abs(mine.scores - other.scores[nearest]).max(initial=0) < 1e-4
            total += len(mine)
    assert total > 100


def test_keypoints_of_a_face_lie_in_its_box(faces: ExportReport) -> None:
    from deploykit.export.parity.inputs import sample_image

    with deploykit.load(faces.path) as model:
        result = model(sample_image())
    assert len(result) == 3  # the crew of Apollo 11
    assert result.keypoints is not None
    for box, points in zip(result.boxes, result.keypoints, strict=True):
        assert (points[:, :2] >= box[:2]).all()
        assert (points[:, :2] <= box[2:]).all()
        left_eye, right_eye, nose, left_mouth, right_mouth = points[:, :2]
        assert max(left_eye[1], right_eye[1]) < nose[1] < min(left_mouth[1], right_mouth[1])


@pytest.fixture(scope="module")
def plates(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    weights = shared / "data" / "weights" / "yolov7-lite-s_plate4kpt.pt"
    report = deploykit.export_onnx(weights, dynamic="shape", out=tmp_path_factory.mktemp("plates") / "plates.onnx")
    return deploykit.load(report.path)


@pytest.mark.slow
def test_the_plate_model_finds_the_plates_and_their_kind(plates: Predictor, shared: Path) -> None:
    """Two classes and four keypoints: a head that breaks code with one class or 17 keypoints hard-wired."""
    images = sorted((shared / "data" / "images" / "plates").iterdir())
    assert len(images) == 10
    for image in images:
        result = plates(image)
        assert len(result) >= 1, image.name
        assert result.scores[0] > 0.6
        assert result.keypoints is not None
        assert result.keypoints.shape[1:] == (4, 3)
        # The four corners span the box of the plate.
        corners = result.keypoints[0, :, :2]
        low, high = corners.min(0), corners.max(0)
        box = result.boxes[0]
        overlap = np.clip(np.minimum(high, box[2:]) - np.maximum(low, box[:2]), 0, None).prod()
        assert overlap / ((high - low).prod() + (box[2:] - box[:2]).prod() - overlap) > 0.5
        if "double" in image.name:
            assert result.labels[0] == 1, f"{image.name} shows a plate of two lines"
        elif "single" in image.name:
            assert result.labels[0] == 0, f"{image.name} shows a plate of one line"


def test_the_released_tiny_models_structure_exports(shared: Path, tmp_path: Path) -> None:
    weights = shared / "data" / "weights" / "official_yolov7-tiny.structure-randomfill.pt"
    report = deploykit.export_onnx(weights, img=(320, 256), out=tmp_path / "tiny.onnx", check=False)
    assert report.model == "yolov7-tiny"
    assert report.parameters == 6_219_709
    assert report.spec.classes[:2] == ("person", "bicycle")


SEEN = {
    "bus.jpg": {"person": 3, "bus": 1},
    "zidane.jpg": {"person": 2},
    "horses.jpg": {"horse": 3},
}
"""What anybody sees on these images, or a little less."""


def test_yolov5n_finds_the_same_before_and_after_its_export(shared: Path, tmp_path: Path) -> None:
    weights = shared / "data" / "weights" / "yolov5n_official_coco.pt"
    report = deploykit.export_onnx(weights, img=640, out=tmp_path / "yolov5n.onnx")
    assert report.parity is not None
    assert report.parity.ok
    with deploykit.load(weights) as checkpoint, deploykit.load(report.path) as exported:
        for image, things in SEEN.items():
            for model in (checkpoint, exported):
                result = model(shared / "data" / "images" / "yolov7-inference" / image)
                found = [report.spec.classes[label] for label in result.labels]
                for thing, count in things.items():
                    assert found.count(thing) >= count, f"{image}: {found}"


def test_the_ghost_pose_model_finds_people_who_stand_upright(shared: Path, tmp_path: Path) -> None:
    weights = shared / "data" / "weights" / "yolo-pose-ghost_coco17kpt.pt"
    report = deploykit.export_onnx(weights, img=192, out=tmp_path / "ghost.onnx")
    assert report.parity is not None
    assert report.parity.ok
    assert report.spec.keypoints is not None
    names = report.spec.keypoints.names
    with deploykit.load(report.path) as model:
        result = model(shared / "data" / "images" / "yolov7-inference" / "bus.jpg")
    assert len(result) == 2
    assert result.keypoints is not None
    for box, points in zip(result.boxes, result.keypoints, strict=True):
        eyes, shoulders, hips, ankles = (
            points[[names.index(f"left {part}"), names.index(f"right {part}")], 1].mean()
            for part in ("eye", "shoulder", "hip", "ankle")
        )
        assert box[1] < eyes < shoulders < hips < ankles < box[3]
