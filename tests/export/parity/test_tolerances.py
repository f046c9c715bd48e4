"""The tolerances of fp32, fp16 and bf16 are those of docs/precision.md, and each of them judges.

The limits are read from the page, so that a damage of half and of twice a limit is an absolute one: a wider constant is
no longer the page's, and a comparison that does not apply it lets twice the limit pass.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deploykit.export.outputs import export_adapter_of
from deploykit.export.parity.detections import RowMatcher
from deploykit.export.parity.tolerances import BF16, FP16, LIMITS
from deploykit.runtime.arrays import Array
from deploykit.runtime.outputs import adapter_of
from deploykit.runtime.parity.tolerance import Tolerance
from deploykit.runtime.postprocess.detections import NetworkDetections
from deploykit.spec import DenseOutput, InputSpec, KeypointSpec, ModelSpec, RawDetections, Thresholds

PAGE = Path(__file__).resolve().parents[3] / "docs" / "precision.md"
LAYOUT = RawDetections(cls=(5, 7), keypoints=(7, 10))
SPEC = ModelSpec(
    task="keypoints",
    input=InputSpec(size=(640, 640)),
    output=LAYOUT,
    classes=("cat", "dog"),
    keypoints=KeypointSpec(("nose",)),
    thresholds=Thresholds(conf=0.25, iou=0.45),
)
DENSE = DenseOutput()
RESTORE = ModelSpec("restore", InputSpec(size=(10, 10)), DENSE, ())
NAMES = ("a", "b", "one image")


def table_of(page: str) -> dict[str, dict[str, float]]:
    """Precision -> field of a Tolerance -> its limit, as the page's table has them."""
    titles = re.search(r"^\| limit of \| field \|(.*)\|$", page, re.MULTILINE)
    assert titles is not None, f"{PAGE.name} has no table of limits"
    precisions = [title.strip() for title in titles[1].split("|")]
    found: dict[str, dict[str, float]] = {precision: {} for precision in precisions}
    for field, cells in re.findall(r"^\|[^|]*\| `(\w+)` \|(.*)\|$", page, re.MULTILINE):
        for precision, cell in zip(precisions, cells.split("|"), strict=True):
            found[precision][field] = float(cell)
    return found


TABLE = table_of(PAGE.read_text())


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_the_limits_are_those_of_the_page(precision: str) -> None:
    limits = dataclasses.asdict(LIMITS[precision])
    assert limits.pop("judged") is True
    assert TABLE[precision] == limits


def test_int8_and_fp8_are_measured_and_not_judged() -> None:
    assert set(LIMITS) == {*TABLE, "int8", "fp8"}
    assert not LIMITS["int8"].judged
    assert not LIMITS["fp8"].judged


# A damage of so many times each limit.


def row(x: float, y: float, score: float, *, side: float = 100.0, label: int = 0, nose: float = 0.0) -> list[float]:
    """One candidate: a square box, its score as objectness, sure of its class."""
    return [x, y, side, side, score, float(label == 0), float(label == 1), x + nose, y, 1.0]


def raw_values_agree(expected: list[float], found: list[float], limits: Tolerance) -> bool:
    sides = [[np.array([row(30, 30, 0.9), values])] for values in (expected, found)]
    return all(d.ok for d in adapter_of(SPEC).differences(NAMES, *sides, limits))


def detections_match(expected: list[list[float]], found: list[list[float]], limits: Tolerance) -> bool:
    sides = [[np.array(rows, np.float32)] for rows in (expected, found)]
    (matching, *_) = export_adapter_of(SPEC).match(NAMES, *sides, limits)
    assert matching.what == "detections"
    return matching.ok


def objects_in(rows: Array) -> NetworkDetections:
    found: NetworkDetections = adapter_of(SPEC).objects({LAYOUT.name: rows[None]}, 0)
    return found


MATCHER = RowMatcher(LAYOUT, objects_in, (SPEC.thresholds,))


def without(rows: list[list[float]], lost: int) -> NetworkDetections:
    """What is found in rows, but for the last detections."""
    found = objects_in(np.array(rows, np.float32))
    kept = slice(len(found.scores) - lost)
    assert found.keypoints is not None
    return replace(
        found,
        boxes=found.boxes[kept],
        scores=found.scores[kept],
        labels=found.labels[kept],
        keypoints=found.keypoints[kept],
    )


def pixels(limit: float, limits: Tolerance) -> bool:
    """Far from the origin, where a share of the coordinate would be much, and of a box without a side."""
    moved = [10_000.0 + limit, *row(10_000.0, 50, 0.9, side=0.0)[1:]]
    return raw_values_agree(row(10_000.0, 50, 0.9, side=0.0), moved, limits)


def side(limit: float, limits: Tolerance) -> bool:
    """A box of 100,000 px, of which the fixed part of the limit is nothing."""
    return raw_values_agree(row(0, 0, 0.9, side=1e5), row(1e5 * limit, 0, 0.9, side=1e5), limits)


def probability(limit: float, limits: Tolerance) -> bool:
    return raw_values_agree(row(50, 50, 0.5), row(50, 50, 0.5 + limit), limits)


def min_score(limit: float, limits: Tolerance) -> bool:
    """A box that is far off, of a row that scores so much on both sides."""
    return raw_values_agree(row(50, 50, limit), row(500, 50, limit), limits)


def same_box(limit: float, limits: Tolerance) -> bool:
    """Tiny boxes that do not overlap at all."""
    here, there = row(300, 300, 0.9, side=limit / 10), row(300 + limit, 300, 0.9, side=limit / 10, nose=-limit)
    return detections_match([here], [there], limits)


def max_keypoint(limit: float, limits: Tolerance) -> bool:
    return detections_match([row(300, 300, 0.9)], [row(300, 300, 0.9, nose=limit)], limits)


def max_score(limit: float, limits: Tolerance) -> bool:
    return detections_match([row(300, 300, 0.7)], [row(300, 300, 0.7 + limit)], limits)


def borderline_iou(limit: float, limits: Tolerance) -> bool:
    """The weaker of two boxes is lost, whose overlap is so far below the threshold; moved by d, it is
    (100 - d) / (100 + d)."""
    iou = 0.45 - limit
    rows = [row(300, 300, 0.9), row(300 + 100 * (1 - iou) / (1 + iou), 300, 0.6)]
    assert len(without(rows, 0).scores) == 2
    return MATCHER.match_found(NAMES, [np.array(rows, np.float32)], [without(rows, 1)], limits).ok


def min_iou(limit: float, limits: Tolerance) -> bool:
    """``limit`` is how far below 1 the overlap is."""
    moved = 500 * limit / (2 - limit)
    return detections_match([row(300, 300, 0.9, side=500)], [row(300 + moved, 300, 0.9, side=500, nose=-moved)], limits)


def unmatched(limit: float, limits: Tolerance) -> bool:
    """So many of 250 detections are lost, far from every tie."""
    rows = [row(20 + 40 * (i % 16), 20 + 40 * (i // 16), 0.9, side=30) for i in range(250)]
    lost = round(2 * 250 * limit / (1 + limit))  # of both sides together: lost / (500 - lost)
    return MATCHER.match_found(NAMES, [np.array(rows, np.float32)], [without(rows, lost)], limits).ok


def unmatched_values(limit: float, limits: Tolerance) -> bool:
    """So many of 1000 values of a restored image are two grey levels off."""
    expected = np.full((10, 10, 10), 0.5)
    found = expected.copy()
    found.reshape(-1)[: round(1000 * limit)] += 2 / 255
    (matching,) = export_adapter_of(RESTORE).match(NAMES, [expected], [found], limits)
    return matching.ok


def dense_agrees(expected: Array, found: Array, limits: Tolerance) -> bool:
    (difference,) = adapter_of(RESTORE).differences(NAMES, [expected], [found], limits)
    return difference.ok


def dense(limit: float, limits: Tolerance) -> bool:
    """A share of the largest value, which is 40."""
    expected = np.linspace(-40, 10, 100).reshape(1, 10, 10)
    found = expected.copy()
    found[0, 9, 9] += 40 * limit
    return dense_agrees(expected, found, limits)


def dense_of_small_values(limit: float, limits: Tolerance) -> bool:
    """A share of 1 where no value is larger."""
    expected = np.full((1, 10, 10), 1e-3)
    return dense_agrees(expected, expected + limit, limits)


def class_probability(limit: float, limits: Tolerance) -> bool:
    """Of two classes whose logits are equal, the probability moves by a quarter of what a logit does."""
    logits = np.zeros((2, 10, 10))
    found = logits.copy()
    found[0] = np.log((0.5 + limit) / (0.5 - limit))
    (matching,) = export_adapter_of(ModelSpec("segment", RESTORE.input, DENSE, ("a", "b"))).match(
        NAMES, [logits], [found], limits
    )
    return matching.ok


DAMAGES: dict[Callable[[float, Tolerance], bool], str] = {
    pixels: "pixels",
    side: "side",
    probability: "probability",
    min_score: "min_score",
    same_box: "same_box",
    max_keypoint: "max_keypoint",
    max_score: "max_score",
    class_probability: "max_score",
    borderline_iou: "borderline_iou",
    min_iou: "min_iou",
    unmatched: "unmatched",
    unmatched_values: "unmatched",
    dense: "dense",
    dense_of_small_values: "dense",
}
"""What agrees after a damage of so much -> the limit that judges it."""


def test_every_limit_of_reduced_precision_has_a_damage() -> None:
    assert {*DAMAGES.values(), "relative"} == set(TABLE["fp16"])
    assert FP16.relative == BF16.relative == 0  # which the damage of pixels shows, far from the origin


@pytest.mark.parametrize(("precision", "limits"), [("fp16", FP16), ("bf16", BF16)])
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_half_of_a_limit_passes_and_twice_a_limit_fails(
    damage: Callable[[float, Tolerance], bool], precision: str, limits: Tolerance
) -> None:
    told = TABLE[precision][DAMAGES[damage]]
    limit = 1 - told if damage is min_iou else told
    assert damage(0.5 * limit, limits)
    assert not damage(2 * limit, limits)
