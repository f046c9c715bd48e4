"""COCO's protocol for given overlaps, against the library that computes its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.runtime.arrays import Array
from deploykit.runtime.datasets.coco import CocoData
from deploykit.runtime.evaluate.coco_metrics import Detections, evaluator
from deploykit.runtime.scoring.average_precision import ImageOverlaps, Scored, score
from tests.runtime.evaluate.test_coco_metrics import PROBLEMS, _problem

hotcoco = pytest.importorskip("hotcoco", reason="the extra eval is not installed")


def upright(data: CocoData, found: Detections, image: int, category: int) -> ImageOverlaps:
    """The overlaps of upright boxes, by the library."""
    objects = [a for a in data.annotations if (a["image_id"], a["category_id"]) == (image, category)]
    (own,) = np.nonzero((found.image_ids == image) & (found.category_ids == category))
    own = own[np.argsort(-found.scores[own], kind="stable")]
    boxes, crowd = found.boxes[own], np.array([a["iscrowd"] for a in objects], bool)
    overlaps = np.zeros((len(own), len(objects)))
    if overlaps.size:
        overlaps = hotcoco.primitives.bbox_iou(boxes, np.array([a["bbox"] for a in objects]), crowd)
    areas = np.array([a["area"] for a in objects])
    return ImageOverlaps(found.scores[own], boxes[:, 2] * boxes[:, 3], areas, crowd, overlaps)


@settings(max_examples=60)
@given(**PROBLEMS)
def test_with_the_librarys_overlaps_it_gives_the_librarys_numbers(seed: int, images: int, objects: int) -> None:
    """Crowds, tied scores, empty images, strangers, objects of all sizes."""
    data, found = _problem(seed, images, objects)
    found = Detections(found.image_ids, found.category_ids, found.boxes, found.scores)
    numbers, categories = [i.id for i in data.images], [c.id for c in data.categories]
    ours = score([[upright(data, found, i, c) for i in numbers] for c in categories])
    run: Any = evaluator(data, found, kind="bbox", image_ids=numbers, category_ids=categories)
    run.accumulate()
    run.summarize()
    np.testing.assert_array_equal(ours.precision, run.eval["precision"])
    np.testing.assert_array_equal(ours.recall, run.eval["recall"])
    np.testing.assert_array_equal(ours.scores[ours.precision > 0], np.asarray(run.eval["scores"])[ours.precision > 0])
    assert ours.stats() == pytest.approx(list(run.stats), abs=1e-12)


def one(overlaps: Any, scores: Any, *, area: float = 1000.0, crowd: Any = None) -> ImageOverlaps:
    matrix: Array = np.array(overlaps, np.float64)
    found, objects = matrix.shape
    regions = np.zeros(objects, bool) if crowd is None else np.array(crowd, bool)
    return ImageOverlaps(np.array(scores), np.full(found, area), np.full(objects, area), regions, matrix)


def ap(scored: Scored) -> float:
    return scored.stats()[0]


def test_what_a_person_worked_out() -> None:
    """The first detection overlaps by 0.72, over five of ten thresholds; the second is nowhere, the third exact."""
    image = one([[0.72, 0.1], [0.0, 0.0], [0.0, 1.0]], [0.9, 0.8, 0.7])
    below, above = (51 + 50 * 2 / 3) / 101, 51 * (1 / 3) / 101  # at recalls to 0.5 and 1; to 0.5 alone
    assert ap(score([[image]])) == pytest.approx((5 * below + 5 * above) / 10)
    at_50, at_75 = score([[image]]).stats()[1:3]
    assert (at_50, at_75) == pytest.approx((below, above))
    assert score([[image]]).stats()[6:9] == pytest.approx([0.25, 0.75, 0.75])  # the best one; ten; a hundred


def test_no_object_is_taken_twice_and_the_best_score_takes_first() -> None:
    assert ap(score([[one([[0.96], [1.0]], [0.9, 0.8])]])) == pytest.approx(1.0)
    assert ap(score([[one([[0.4], [1.0]], [0.9, 0.8])]])) == pytest.approx(0.5)


def test_a_crowd_takes_any_number_and_counts_for_nothing() -> None:
    crowd = one([[0.0, 0.9], [0.0, 0.9], [1.0, 0.0]], [0.9, 0.8, 0.3], crowd=[False, True])
    assert ap(score([[crowd]])) == pytest.approx(0.9 + 0.1 / 3)  # at 0.95 the crowd takes neither


def test_without_an_object_there_is_no_number() -> None:
    assert set(score([[one(np.zeros((2, 0)), [0.9, 0.8])], []]).stats()) == {-1.0}
    assert ap(score([[one(np.zeros((0, 2)), [])]])) == 0.0


@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(1, 6))
@settings(max_examples=40)
def test_a_larger_overlap_is_never_worse_for_the_best_detection(seed: int, found: int, objects: int) -> None:
    """Of one object, and at each recall: moving its overlap up can only add thresholds at which it is found."""
    random = np.random.default_rng(seed)
    overlaps, scores = random.uniform(0, 1, (found, 1)), np.sort(random.uniform(0, 1, found))[::-1]
    better = overlaps.copy()
    better[0] = min(1.0, overlaps[0, 0] + objects / 10)
    assert ap(score([[one(better, scores)]])) >= ap(score([[one(overlaps, scores)]])) - 1e-12
