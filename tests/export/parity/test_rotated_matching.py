"""What rounding may decide in the NMS of oriented boxes, where a box that is removed removes others."""

from __future__ import annotations

import math

import numpy as np
import pytest

from deploykit.export.parity.detections import RowMatcher
from deploykit.runtime.arrays import Array
from deploykit.runtime.kinds.detection import RowAdapter
from deploykit.runtime.parity.tolerance import Tolerance
from deploykit.runtime.postprocess.detections import NetworkDetections
from deploykit.spec import InputSpec, ModelSpec, RawDetections, Thresholds

LAYOUT = RawDetections(obj=None, cls=(4, 5), angle=(5, 6))
SPEC = ModelSpec("oriented", InputSpec(), LAYOUT, ("ship",), thresholds=Thresholds(iou=0.7))


def apart(overlap: float, width: float = 60) -> float:
    """How far two such boxes are apart along their width to overlap by so much."""
    return width * math.sqrt(-8 / 12 * math.log(1 - (1 - overlap) ** 2))


def objects(rows: Array) -> NetworkDetections:
    return RowAdapter(SPEC).objects({LAYOUT.name: rows[None]}, 0)


@pytest.mark.parametrize(("overlap", "ok"), [(0.7003, True), (0.71, False)])
def test_a_box_that_was_removed_may_have_decided(overlap: float, ok: bool) -> None:
    """The first removes the second, and the second the third, which another network keeps."""
    second = 100 + apart(0.75)
    places = (100, second, second + apart(overlap))
    rows = np.array([[x, 100, 60, 20, score, 0] for x, score in zip(places, (0.9, 0.8, 0.7), strict=True)], np.float32)
    assert len(objects(rows).scores) == 1
    found = objects(rows[[0, 2]])
    assert len(found.scores) == 2
    matching = RowMatcher(LAYOUT, objects, (SPEC.thresholds,)).match_found(
        ("a", "b", "noise"), [rows], [found], Tolerance()
    )
    assert (matching.matched, matching.borderline, matching.ok) == (1, int(ok), ok)
