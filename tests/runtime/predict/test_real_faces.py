"""A trained face model, exported by its author, on photographs with faces."""

from __future__ import annotations

import statistics
from pathlib import Path

import cv2
import numpy as np
import pytest

import deploykit
from deploykit.runtime.images.letterbox import Letterbox
from deploykit.runtime.images.reading import read_image
from deploykit.runtime.images.to_tensor import to_nchw
from deploykit.runtime.postprocess.nms import nms
from deploykit.runtime.predict.predictor import Predictor
from deploykit.spec import InputSpec, KeypointSpec, ModelSpec, RawDetections

DATA = Path(__file__).resolve().parents[3].parent / "shared" / "data"
MODEL = DATA / "onnx" / "yolov7-lite-e_face5kpt.onnx"
PHOTOS = DATA / "images" / "faces-wider"
SPEC = ModelSpec(
    task="keypoints",
    input=InputSpec(size=(640, 640)),
    output=RawDetections(cls=(5, 6), keypoints=(6, 21)),
    classes=("face",),
    keypoints=KeypointSpec(("left eye", "right eye", "nose", "left mouth corner", "right mouth corner")),
)
# Counted by eye on the photographs: all faces in them are large and unobstructed.
FACES = {"22_Picnic_Picnic_22_10": 4, "22_Picnic_Picnic_22_561": 2, "22_Picnic_Picnic_22_564": 2}

pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(not MODEL.exists() or not PHOTOS.exists(), reason=f"there is no {MODEL} or {PHOTOS}"),
]


@pytest.fixture(scope="module")
def predict() -> Predictor:
    return deploykit.load(MODEL, spec=SPEC)


@pytest.mark.parametrize(("name", "count"), FACES.items())
def test_every_large_face_is_found_with_its_features_in_order(predict: Predictor, name: str, count: int) -> None:
    result = predict(PHOTOS / f"{name}.jpg")
    assert len(result) == count
    assert result.scores.min() > 0.6
    for face in result:
        assert face.keypoints is not None
        x1, y1, x2, y2 = face.box
        assert (face.keypoints[:, 2] > 0.9).all()
        assert ((face.keypoints[:, :2] > (x1, y1)) & (face.keypoints[:, :2] < (x2, y2))).all()
        eyes, nose, mouth = face.keypoints[:2, 1].mean(), face.keypoints[2, 1], face.keypoints[3:, 1].mean()
        assert eyes < nose < mouth


def test_a_crowd_gives_a_plausible_number_of_faces(predict: Predictor) -> None:
    counts = [len(result) for result in predict.stream(PHOTOS)]
    assert len(counts) == 24
    assert min(counts) >= 1
    assert 100 <= sum(counts) <= 160
    assert statistics.median(counts) == pytest.approx(3.5, abs=1)


def test_threads_and_workers_change_no_bit(predict: Predictor) -> None:
    photos = sorted(PHOTOS.iterdir())[:6]
    expected = [predict(photo).to_dict() for photo in photos]
    for options in ({"threads": 1}, {"threads": 2, "workers": 3}, {"workers": 2}, {"workers": "auto"}):
        with deploykit.load(MODEL, spec=SPEC, **options) as model:
            found = [result.to_dict() for result in model.stream(photos)]
        for each in (*expected, *found):
            each.pop("timings_ms", None)
        assert found == expected, options


def test_nms_keeps_what_opencvs_keeps(predict: Predictor) -> None:
    compared = 0
    for path in sorted(PHOTOS.iterdir()):
        image = read_image(path)
        letterbox = Letterbox.fit(image.shape[:2], SPEC.input.size, SPEC.input.fit)
        rows = predict.session.run({"images": to_nchw([letterbox.apply(image)], SPEC.input)})["output"][0]
        assert isinstance(SPEC.output, RawDetections)
        kept = nms(rows, SPEC.output, SPEC.thresholds)
        corners = np.concatenate((rows[:, :2] - rows[:, 2:4] / 2, rows[:, 2:4]), axis=1)
        scores = rows[:, 4] * rows[:, 5]
        theirs = cv2.dnn.NMSBoxes(corners, scores, SPEC.thresholds.conf, SPEC.thresholds.iou)
        assert kept.rows.tolist() == np.asarray(theirs).reshape(-1).tolist()
        compared += len(kept.rows)
    assert compared > 100
