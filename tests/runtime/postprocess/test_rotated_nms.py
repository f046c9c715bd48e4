"""Oriented boxes: their overlap and their NMS against independent definitions, and their way back to the image."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.runtime.arrays import Array
from deploykit.runtime.images.letterbox import Letterbox
from deploykit.runtime.postprocess.nms import Choice
from deploykit.runtime.postprocess.rotated import corners_of, hulls_of, longer_first, rotated_to_source
from deploykit.runtime.postprocess.rotated_nms import overlaps, rotated_nms
from deploykit.spec import RawDetections, Thresholds
from tests.nms_corpus import Case
from tests.rotated_corpus import corpus, reference, surely

LAYOUT = RawDetections(obj=None, cls=(4, 6), angle=(6, 7))
SIDE, PLACE, ANGLE = st.floats(0.5, 400), st.floats(-50, 700), st.floats(-7, 7)
BOX = st.tuples(PLACE, PLACE, SIDE, SIDE, ANGLE)


def by_gaussians(a: Array, b: Array) -> float:
    """1 - the Hellinger distance of two Gaussians, from their covariance matrices."""
    matrices = []
    for _, _, w, h, angle in (a, b):
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        matrices.append(turn @ np.diag([w * w / 12, h * h / 12]) @ turn.T)
    mean, apart = (matrices[0] + matrices[1]) / 2, np.subtract(a[:2], b[:2])
    distance = apart @ np.linalg.solve(mean, apart) / 8
    logs = [np.linalg.slogdet(matrix)[1] for matrix in (mean, *matrices)]
    distance += (logs[0] - (logs[1] + logs[2]) / 2) / 2
    return 1 - math.sqrt(max(0.0, 1 - math.exp(-max(distance, 0.0))))


def rows_of(boxes: Array, scores: Array, labels: Array) -> Array:
    rows = np.zeros((len(boxes), 7), np.float32)
    rows[:, :4], rows[:, 6] = boxes[:, :4], boxes[:, 4]
    rows[np.arange(len(rows)), 4 + np.asarray(labels, int)] = scores
    return rows


def kept(rows: Array, iou: float = 0.5, **more: float) -> list[int]:
    return rotated_nms(rows, LAYOUT, Thresholds(conf=0.1, iou=iou, **more)).rows.tolist()  # type: ignore[arg-type]


def ship(*turned: tuple[float, float, float, float, float], scores: tuple[float, ...], labels: object = 0) -> Array:
    return rows_of(np.array(turned), np.array(scores), np.broadcast_to(np.array(labels), len(turned)))


@given(BOX, BOX)
def test_the_overlap_is_that_of_two_gaussians(a: tuple[float, ...], b: tuple[float, ...]) -> None:
    found = overlaps(np.array([a]), np.array([b]))[0, 0]
    expected = by_gaussians(np.array(a), np.array(b))
    assert (1 - found) ** 2 == pytest.approx((1 - expected) ** 2, abs=1e-8)  # before the root, which magnifies rounding
    assert 0.0 <= found <= 1.0
    assert found == pytest.approx(overlaps(np.array([b]), np.array([a]))[0, 0], abs=1e-7)


@given(BOX, BOX, st.integers(-2, 2))
def test_half_a_turn_and_a_quarter_with_exchanged_sides_change_nothing(
    a: tuple[float, ...], b: tuple[float, ...], turns: int
) -> None:
    box, other = np.array([a]), np.array([b])
    same = box + np.array([0, 0, 0, 0, turns * math.pi])
    swapped = box[:, [0, 1, 3, 2, 4]] + np.array([0, 0, 0, 0, math.pi / 2])
    for equal in (same, swapped, longer_first(box)):
        np.testing.assert_allclose(overlaps(equal, other), overlaps(box, other), atol=1e-6)
        assert overlaps(equal, box)[0, 0] > 0.999
        far = np.abs(corners_of(equal)[0][:, None] - corners_of(box)[0][None]).max(-1)
        assert (far.min(1) < 1e-5).all()


def test_worked_out_by_hand() -> None:
    """Squares of 12 pixels have variances of 12: 12 apart, d = 12^2 / 24 / 4 = 1.5. A cross of two boxes of 40 x 10 has
    d = ln((850 / 12)^2 / (40^2 10^2 / 12^2)) / 2 = ln(850 / 400)."""
    found = overlaps(np.array([[0.0, 0, 12, 12, 0.3]]), np.array([[12.0, 0, 12, 12, 1.1]]))
    assert found[0, 0] == pytest.approx(1 - math.sqrt(1 - math.exp(-1.5)), abs=1e-12)
    crossed = overlaps(np.array([[5.0, 5, 40, 10, 0]]), np.array([[5.0, 5, 40, 10, math.pi / 2]]))
    assert crossed[0, 0] == pytest.approx(1 - math.sqrt(1 - 400 / 850), abs=1e-12)


def test_thin_boxes_lose_no_digits() -> None:
    thin = np.array([[100.0, 100, 1e4, 1e-3, 0.7]])
    assert overlaps(thin, thin)[0, 0] > 1 - 1e-7
    assert overlaps(thin, thin + np.array([0, 0, 0, 0, math.pi]))[0, 0] > 0.99


def test_equal_boxes_suppress_within_their_class_and_ties_go_by_row() -> None:
    box = (80.0, 60.0, 60.0, 20.0, 0.5)
    quarter = (80.0, 60.0, 20.0, 60.0, 0.5 + math.pi / 2)
    assert kept(ship(box, quarter, scores=(0.5, 0.9))) == [1]
    assert kept(ship(box, quarter, scores=(0.9, 0.9))) == [0]
    assert kept(ship(box, quarter, box, scores=(0.5, 0.9, 0.8), labels=(0, 1, 0))) == [1, 2]


def test_a_turned_box_is_not_the_upright_one() -> None:
    assert kept(ship((80, 60, 60, 10, 0), (80, 60, 60, 10, math.pi / 2), scores=(0.9, 0.8))) == [0, 1]


def test_a_box_that_is_removed_still_removes() -> None:
    row = [(x, 60.0, 60.0, 20.0, 0.0) for x in (80.0, 90.0, 100.0)]
    expected = [1 - math.sqrt(1 - math.exp(-(apart**2) / 300 / 8)) for apart in (10, 20)]  # 0.80 and 0.61
    assert overlaps(np.array(row[:1]), np.array(row[1:]))[0] == pytest.approx(expected, abs=1e-12)
    assert kept(ship(*row, scores=(0.9, 0.8, 0.7)), iou=0.7) == [0]
    assert kept(ship(row[0], row[2], scores=(0.9, 0.7)), iou=0.7) == [0, 1]


def test_what_is_no_box_neither_suppresses_nor_is_suppressed() -> None:
    flat, negative, whole = (80.0, 60.0, 60.0, 0.0, 0.0), (80.0, 60.0, -5.0, 5.0, 0.0), (80.0, 60.0, 60.0, 20.0, 0.0)
    assert kept(ship(flat, negative, whole, flat, scores=(0.9, 0.8, 0.7, 0.6))) == [0, 1, 2, 3]
    broken = ship(whole, whole, scores=(0.9, 0.8))
    broken[0, 6] = np.nan
    assert kept(broken) == [1]


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.integers(1, 150), st.integers(1, 20))
def test_it_is_the_definition(seed: int, count: int, most: int) -> None:
    """More boxes than are compared at once, in a crowd."""
    random = np.random.default_rng(seed)
    parts = random.uniform(0, 60, (count, 2)), random.uniform(5, 40, (count, 2)), random.uniform(-3, 3, count)
    boxes = np.column_stack(parts)
    rows = rows_of(boxes.astype(np.float32), random.choice([0.2, 0.4, 0.6, 0.8], count), random.integers(0, 2, count))
    scores, labels = rows[:, 4:6].max(1), rows[:, 4:6].argmax(1)
    order = sorted(range(count), key=lambda i: (-scores[i], i))
    wide = rows.astype(np.float64)[:, [0, 1, 2, 3, 6]]
    expected, sure = [], True
    for place, i in enumerate(order):
        before = [by_gaussians(wide[j], wide[i]) for j in order[:place] if labels[j] == labels[i]]
        sure = sure and all(abs(value - 0.5) > 1e-6 for value in before)
        expected += [i] * all(value <= 0.5 for value in before)
    if sure:
        assert kept(rows, max_det=most) == expected[:most]


@pytest.mark.parametrize("case", corpus(), ids=lambda c: c.name)
def test_the_corpus_agrees(case: Case) -> None:
    expected = reference(case.rows, case.layout, case.thresholds)
    if case.kept is not None:
        assert tuple(k.row for k in expected) == case.kept
    assert case.thresholds.iou in (0, 1) or surely(case.rows, case.layout, case.thresholds, 3e-5)
    found = rotated_nms(case.rows, case.layout, case.thresholds)
    assert found.rows.tolist() == [k.row for k in expected]
    assert found.labels.tolist() == [k.label for k in expected]
    np.testing.assert_array_equal(found.scores, np.float32([k.score for k in expected]))


def test_two_labels_of_a_row() -> None:
    rows = ship((80, 60, 60, 20, 0.5), scores=(0.9,))
    rows[0, 5] = 0.6
    found = rotated_nms(rows, LAYOUT, Thresholds(), Choice(multi_label=True))
    assert (found.labels.tolist(), found.candidates) == ([0, 1], 2)


def test_wanted_labels_alone_and_all_labels_alike() -> None:
    boxes = np.float32([[80, 60, 60, 20, 0.5], [82, 60, 60, 20, 0.5]])
    rows = rows_of(boxes, np.array([0.9, 0.8]), np.array([0, 1]))
    both = rotated_nms(rows, LAYOUT, Thresholds())
    first = rotated_nms(rows, LAYOUT, Thresholds(), Choice(agnostic=True))
    assert (both.rows.tolist(), first.rows.tolist()) == ([0, 1], [0])
    wanted = rotated_nms(rows, LAYOUT, Thresholds(max_det=1), Choice(classes=(1,), agnostic=True))
    assert (wanted.rows.tolist(), wanted.labels.tolist(), wanted.candidates) == ([1], [1], 1)


@pytest.mark.data
def test_it_keeps_what_the_original_keeps(shared: Path) -> None:
    """A network of the ultralytics package, and the detections of its own NMS."""
    layout = RawDetections(obj=None, cls=(4, 7), angle=(7, 8))
    with np.load(shared / "golden" / "yolov8n-obb-narrow.npz") as golden:
        conf, iou = map(float, golden["nms_conf_iou"])
        for columns, expected, count in zip(golden["output"], golden["nms"], golden["nms_count"], strict=True):
            rows = columns.T
            found = rotated_nms(rows, layout, Thresholds(conf=conf, iou=iou))
            whole = rows[found.rows]
            given = np.column_stack((whole[:, :4], found.scores, found.labels, whole[:, 7]))
            np.testing.assert_array_equal(given, expected[:count])


@given(BOX)
def test_the_longer_side_comes_first_and_its_angle_lies_below_pi(box: tuple[float, ...]) -> None:
    for kind in (np.float32, np.float64):
        ((_, _, w, h, angle),) = longer_first(np.array([box], kind))
        assert w >= h
        assert 0 <= angle < math.pi


def test_an_angle_just_below_none_is_none() -> None:
    for angle in (-1e-9, -0.0, math.pi, 3 * math.pi):
        found = longer_first(np.array([[0, 0, 2, 1, angle]], np.float32))[0, 4]
        assert 0 <= found < math.pi
        assert min(found, math.pi - found) < 1e-6


def test_corners_and_the_upright_box_around_them() -> None:
    box = np.array([[50.0, 40.0, 20.0, 10.0, math.pi / 2]])
    np.testing.assert_allclose(hulls_of(box), [[45, 30, 55, 50]], atol=1e-12)
    np.testing.assert_allclose(corners_of(box)[0], [[45, 50], [55, 50], [55, 30], [45, 30]], atol=1e-12)
    turned = np.array([[50.0, 40.0, 20.0, 10.0, 0.4], [1.0, 2.0, 3.0, 4.0, -2.0]])
    corners = corners_of(turned)
    np.testing.assert_allclose(hulls_of(turned), np.concatenate((corners.min(1), corners.max(1)), 1), atol=1e-12)


@given(BOX)
def test_where_both_scales_are_equal_the_corners_are_mapped(box: tuple[float, ...]) -> None:
    place = Letterbox((80, 120), (40, 60), (64, 64), (2, 12))
    found = rotated_to_source(np.array([box]), place)
    expected = place.to_source(corners_of(np.array([box]))[0])
    far = np.abs(corners_of(found.astype(np.float64))[0][:, None] - expected[None]).max(-1)
    assert (far.min(1) < 1e-2).all()


def test_unequal_scales_keep_the_longer_side_and_the_area() -> None:
    stretched = Letterbox((100, 200), (100, 100), (100, 100), (0, 0))  # an image twice as wide
    upright = rotated_to_source(np.array([[50.0, 50, 10, 30, 0.0]]), stretched)
    np.testing.assert_allclose(upright, [[100, 50, 30, 20, math.pi / 2]], rtol=1e-6)
    slanted = rotated_to_source(np.array([[50.0, 50, 40, 1, math.pi / 4]]), stretched)
    along = np.array([2 * 40, 40]) / math.sqrt(2)
    length = float(np.hypot(*along))
    np.testing.assert_allclose(slanted, [[100, 50, length, 40 * 2 / length, math.atan2(1, 2)]], rtol=1e-6)
