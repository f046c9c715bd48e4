"""Detections that a network has chosen itself are compared as they are: a one-to-one branch may give boxes of one class
that overlap, and NMS would take them from the reference alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deploykit.export.parity.compare import check_expected, expect
from deploykit.runtime.arrays import Array
from deploykit.runtime.backends.fake import FakeSession
from deploykit.runtime.parity.expected import Batch, ParityInputs, ReferenceOutputs
from deploykit.spec import EndToEndRows, InputSpec, ModelSpec, RawDetections, Thresholds

SPEC = ModelSpec(
    "detect",
    InputSpec(size=(64, 64)),
    EndToEndRows(),
    ("cat", "dog"),
    thresholds=Thresholds(conf=0.25, iou=0.7),
)
FEEDS = ParityInputs({"noise": np.zeros((1, 3, 64, 64), np.float32)}, (Batch("noise", ("noise",)),))
ROWS = np.array(
    [
        [10, 10, 30, 30, 0.9, 0],
        [10, 10, 30, 31, 0.8, 0],  # of the same class, and nearly the same place
        [10, 10, 30, 30, 0.7, 1],
        [40, 40, 60, 60, 0.6, 1],
        [40, 40, 60, 60, 0.1, 0],  # under the threshold, and still one of them
    ],
    np.float32,
)


def network(rows: Array, spec: ModelSpec = SPEC) -> FakeSession:
    return FakeSession(lambda inputs: {"output": np.repeat(rows[None], len(inputs["images"]), 0)}, spec=spec)


def reference(rows: Array = ROWS) -> ReferenceOutputs:
    return expect({"the checkpoint": network(rows)}, SPEC, FEEDS)


def test_boxes_of_one_class_that_overlap_are_all_expected() -> None:
    report = check_expected(reference(), "the file", network(ROWS), SPEC)
    (matching,) = report.matchings
    assert report.ok
    assert (matching.expected, matching.found, matching.matched) == (5, 5, 5)


@pytest.mark.parametrize("lost", range(5))
def test_one_that_the_file_suppressed_is_missed(lost: int) -> None:
    report = check_expected(reference(), "the file", network(np.delete(ROWS, lost, 0)), SPEC)
    assert not report.ok
    assert report.matchings[0].matched == 4


def test_a_file_of_reference_values_says_that_they_were_chosen(tmp_path: Path) -> None:
    assert reference().chosen
    reference().save(tmp_path / "e.npz")
    read = ReferenceOutputs.load(tmp_path / "e.npz")
    assert read.chosen
    assert read.select_reference("the checkpoint").chosen
    assert check_expected(read, "the engine", network(ROWS), SPEC).ok


def test_raw_rows_are_still_suppressed_for_a_network_that_has_nms_inside() -> None:
    raw = np.zeros((5, 6), np.float32)
    raw[:, :2], raw[:, 2:4] = (ROWS[:, :2] + ROWS[:, 2:4]) / 2, ROWS[:, 2:4] - ROWS[:, :2]
    raw[np.arange(5), 4 + ROWS[:, 5].astype(int)] = ROWS[:, 4]
    rows_spec = replace(SPEC, output=RawDetections(obj=None, cls=(4, 6)))
    expected = expect({"the checkpoint": network(raw, rows_spec)}, rows_spec, FEEDS)
    assert not expected.chosen
    assert check_expected(expected, "the file", network(np.delete(ROWS, 1, 0)), SPEC).ok
    assert not check_expected(expected, "the file", network(ROWS), SPEC).ok
