"""A checkpoint of oriented boxes whose export does NMS itself, against what the original finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deploykit.export.options import NmsMode, OnnxOptions
from deploykit.export.to_onnx import export_onnx
from deploykit.facade import load, open_session

pytestmark = pytest.mark.data


@pytest.mark.parametrize("mode", [pytest.param("graph", marks=pytest.mark.slow), "none"])
def test_the_export_finds_what_the_original_finds(shared: Path, tmp_path: Path, mode: NmsMode) -> None:
    golden = np.load(shared / "golden" / "yolov8n-obb-narrow.npz")
    conf, iou = map(float, golden["nms_conf_iou"])
    report = export_onnx(
        shared / "golden" / "yolov8n-obb-narrow.pt", img=(128, 160), out=tmp_path / "m.onnx", nms=mode,
        dynamic="batch", options=OnnxOptions(conf=conf, iou=iou),
    )  # fmt: skip
    assert report.parity is not None
    assert report.parity.ok
    if mode == "graph":
        with open_session(report.path, provider="cpu") as session:
            found = session.run({"images": golden["images"].astype(np.float32)})
        for i, (expected, count) in enumerate(zip(golden["nms"], golden["nms_count"], strict=True)):
            assert found["num_dets"][i, 0] == count
            rows = np.column_stack([found[n][i] for n in ("boxes", "scores", "labels", "angles")])
            np.testing.assert_allclose(rows[:count], expected[:count], atol=2e-3)
    with load(report.path, conf=conf) as predictor:
        result = predictor(np.ascontiguousarray(golden["predict_image_rgb"][..., ::-1]))
    corners, rows = golden["predict_obb_corners"], golden["predict_obb"]
    assert len(result) == len(corners)
    assert result.corners is not None
    far = np.abs(result.corners[:, :, None] - corners[:, None]).max(-1).min(2).max(1)  # they begin at another corner
    # The original scales w as x and h as y, whatever the angle, and the two scales are half a percent apart here.
    assert (far < 0.005 * rows[:, 2:4].max(1) + 0.1).all()
    np.testing.assert_allclose(result.scores, rows[:, 5], atol=2e-3)
