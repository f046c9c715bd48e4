"""The shipped model: its ONNX file is what its checkpoint gives, it scores what its page says, and it stays small."""

from __future__ import annotations

import hashlib
import re
import zlib
from pathlib import Path

import numpy as np
import pytest

import deploykit
from scripts.markers.dataset import scenes, write_coco
from scripts.markers.prints import CLASSES, CORNERS

ASSETS = Path(deploykit.__file__).parent / "assets"
MODEL, CHECKPOINT = ASSETS / "markers.onnx", ASSETS / "markers.pt"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "models" / "markers.md"


def test_the_exported_file_is_its_checkpoint() -> None:
    report = deploykit.compare(CHECKPOINT, MODEL)
    assert report.ok, report


def test_its_spec_names_classes_and_corners() -> None:
    with deploykit.load(MODEL) as model:
        spec = model.spec
    assert spec.classes == CLASSES
    assert spec.keypoints is not None
    assert spec.keypoints.names == CORNERS
    assert spec.source.sha256 == hashlib.sha256(CHECKPOINT.read_bytes()).hexdigest()
    assert spec.thresholds.conf == 0.5


def test_it_scores_what_its_page_says(tmp_path: Path) -> None:
    pytest.importorskip("hotcoco", reason="the extra eval")
    row = re.findall(r"\| the test's 20 scenes \| 448 \| ([\d.]+) \| [\d.]+ \| ([\d.]+) \|", PAGE.read_text())[0]
    stated = {"detect": float(row[0]), "keypoints": float(row[1])}
    file = write_coco(tmp_path, scenes(2, 20))
    for task, expected in stated.items():
        found = deploykit.evaluate(MODEL, file, images=tmp_path / "images", task=task, img=448)
        # another version of OpenCV draws, resizes and encodes a little otherwise
        assert found.metrics["AP50"] == pytest.approx(expected, abs=0.03), task


def test_no_number_of_the_exported_file_needs_more_than_half_precision() -> None:
    """But for the head's implicits, which the export folds: that is what makes the file small in a wheel."""
    onnx = pytest.importorskip("onnx")
    weights = [onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(MODEL).graph.initializer]
    large = [w for w in weights if w.dtype == np.float32 and w.ndim == 4]
    assert len(large) > 50
    exact = [w for w in large if np.array_equal(w, w.astype(np.float16).astype(np.float32))]
    assert len(large) - len(exact) <= 3


def test_what_ships_is_small() -> None:
    sizes = {
        name: len(zlib.compress((ASSETS / name).read_bytes())) for name in ("markers.onnx", "markers.pt", "markers.jpg")
    }
    assert sum(sizes.values()) < 1_500_000, sizes  # in a wheel, which is compressed
    assert sizes["markers.jpg"] < 150_000
