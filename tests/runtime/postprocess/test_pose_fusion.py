"""Poses from persons and keypoint objects, against the definition and against what a person can work out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deploykit.errors import BackendError, SpecError
from deploykit.runtime.backends.fake import FakeSession
from deploykit.runtime.images.letterbox import Letterbox
from deploykit.runtime.kinds.detection import PoseAdapter
from deploykit.runtime.postprocess.detections import to_source
from deploykit.runtime.postprocess.pose_fusion import KeypointObjects, fuse, kept_objects
from deploykit.runtime.predict.predictor import Predictor
from deploykit.runtime.session import TensorInfo
from deploykit.spec import (
    Fit,
    InputSpec,
    KeypointSpec,
    ModelSpec,
    PoseFusion,
    PoseObjectRows,
    Thresholds,
)
from tests.nms_corpus import Rows
from tests.reference.fusion import fused, split_and_suppress

LAYOUT = PoseObjectRows(cls=(5, 8), coords=(8, 12))  # a person, and two keypoints
SPEC = ModelSpec(
    task="keypoints",
    input=InputSpec(size=(64, 64)),
    output=LAYOUT,
    classes=("person",),
    keypoints=KeypointSpec(("nose", "tail"), ((0, 1),)),
    thresholds=Thresholds(conf=0.25, iou=0.65, keypoint=0.0),
)


def person(x: float, y: float, score: float, *points: float, side: float = 40) -> list[float]:
    return [x, y, side, side, score, 1, 0, 0, *points]


def keypoint(x: float, y: float, score: float, which: int, side: float = 4) -> list[float]:
    return [x, y, side, side, score, 0, which == 0, which == 1, 9, 9, 9, 9]


def poses_of(rows: list[list[float]], spec: ModelSpec = SPEC, image: tuple[int, int] = (64, 64)) -> np.ndarray:
    network = FakeSession(lambda _: {"output": np.array([rows], np.float32)}, spec=spec)
    result = Predictor(network)(np.zeros((*image, 3), np.uint8))
    assert result.keypoints is not None
    return result.keypoints


@st.composite
def problems(draw: st.DrawFn) -> tuple[Rows, PoseObjectRows, Thresholds, tuple[int, int]]:
    """Few places and few scores, so that ties, equal boxes and exact thresholds are common."""
    points = draw(st.integers(1, 3))
    usual = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])
    layout = PoseObjectRows(
        cls=(5, 6 + points),
        coords=(6 + points, 6 + 3 * points),
        fusion=PoseFusion(
            conf=draw(usual),
            iou=draw(usual),
            person=draw(usual),
            tolerance=draw(st.sampled_from([0.0, 2.0, 5.0, 99.0])),
        ),
    )
    odd = st.sampled_from([float("nan"), float("inf"), -float("inf")])
    place = st.one_of(*[st.integers(-2, 10).map(float)] * 15, odd)
    count = draw(st.integers(0, 24))
    parts = [
        draw(hnp.arrays(np.float32, (count, 4), elements=place)),
        draw(hnp.arrays(np.float32, (count, 2 + points), elements=usual)),
        draw(hnp.arrays(np.float32, (count, 2 * points), elements=place)),
    ]
    thresholds = Thresholds(
        conf=draw(usual), iou=draw(usual), max_det=draw(st.integers(1, 9)), pre_nms_topk=draw(st.integers(1, 30))
    )
    return np.concatenate(parts, 1), layout, thresholds, draw(st.sampled_from([(8, 8), (4, 8), (8, 2)]))


@given(problems())
def test_any_rows_give_what_the_definition_says(
    problem: tuple[Rows, PoseObjectRows, Thresholds, tuple[int, int]],
) -> None:
    rows, layout, thresholds, size = problem
    persons, objects = split_and_suppress(rows, layout, thresholds)
    for kept, expected in zip(kept_objects(rows, layout, thresholds), (persons, objects), strict=True):
        assert kept.rows.tolist() == [k.row for k in expected]
        assert kept.labels.tolist() == [k.label for k in expected]
        assert kept.scores.tolist() == [k.score for k in expected]
    spec = replace(SPEC, output=layout, keypoints=KeypointSpec.unnamed(layout.num_keypoints), thresholds=thresholds)
    letterbox = Letterbox.fit(size, (8, 8), Fit())  # pads on one side or the other, and no scale
    left, top = letterbox.pad
    found = PoseAdapter(spec).objects({"output": rows[None]}, 0)
    _, keypoints, _ = to_source(found, letterbox)
    places = []
    for k in objects:
        x, y, w, h = (float(v) for v in rows[k.row, :4])
        x1, x2 = (min(max(v - left, 0.0), size[1]) for v in (x - w / 2, x + w / 2))
        y1, y2 = (min(max(v - top, 0.0), size[0]) for v in (y - h / 2, y + h / 2))
        places.append(((x1 + x2) / 2, (y1 + y2) / 2, k.label, k.score))
    poses = [
        [(float(x) - left, float(y) - top, 0.0) for x, y in rows[k.row, slice(*layout.coords)].reshape(-1, 2)]
        for k in persons
    ]
    expected_poses = fused(poses, [k.score for k in persons], places, layout.fusion, size)
    assert keypoints is not None
    assert keypoints.dtype == np.float32
    np.testing.assert_array_equal(keypoints, np.array(expected_poses, np.float32).reshape(keypoints.shape))


@given(seed=st.integers(0, 2**32))
def test_crowds_are_fused_as_the_definition_says(seed: int) -> None:
    """Real numbers and many objects a keypoint, so that poses compete; places are those of a float32."""
    rng = np.random.default_rng(seed)
    n, m, k = int(rng.integers(1, 12)), int(rng.integers(0, 80)), 3
    poses = rng.uniform(-10, 110, (n, k, 3)).astype(np.float32)
    scores = rng.uniform(0, 1, n).astype(np.float32)
    boxes = rng.uniform(0, 100, (m, 2)).astype(np.float32)[:, [0, 1, 0, 1]]
    ranked = -np.sort(-rng.uniform(0, 1, m).astype(np.float32))
    labels = rng.integers(0, k, m)
    fusion = PoseFusion(tolerance=float(rng.choice([5, 20, 200])))
    found = fuse(poses, scores, boxes, KeypointObjects(boxes, ranked, labels, fusion), (100, 100))
    objects = [(float(b[0]), float(b[1]), int(q), float(s)) for b, q, s in zip(boxes, labels, ranked, strict=True)]
    expected = fused(
        [[(float(x), float(y), 0.0) for x, y, _ in pose] for pose in poses],
        scores.tolist(),
        objects,
        fusion,
        (100, 100),
    )
    np.testing.assert_array_equal(found, np.array(expected, np.float32))


def test_a_keypoint_object_replaces_the_keypoint_where_it_is_nearest() -> None:
    rows = [
        person(20, 20, 0.9, 10, 10, 30, 30),
        person(44, 44, 0.8, 40, 40, 60, 60),
        keypoint(12, 11, 0.7, 0),
        keypoint(62, 59, 0.6, 1),
    ]
    assert poses_of(rows).tolist() == [
        [[12, 11, pytest.approx(0.7)], [30, 30, 0]],
        [[40, 40, 0], [62, 59, pytest.approx(0.6)]],
    ]


def test_the_more_certain_object_wins_and_the_other_is_lost() -> None:
    """A second object of a keypoint finds it taken by a better one, even where it lies nearer to where it was."""
    rows = [person(20, 20, 0.9, 10, 10, 30, 30), keypoint(10, 10, 0.5, 0), keypoint(16, 10, 0.6, 0)]
    assert poses_of(rows)[0, 0].tolist() == [16, 10, pytest.approx(0.6)]


def test_a_second_object_finds_another_pose_when_the_first_has_moved_away() -> None:
    rows = [
        person(20, 20, 0.9, 30, 10, 30, 30),
        person(44, 44, 0.8, 40, 10, 60, 60),
        keypoint(26, 10, 0.9, 0),  # the first pose's nose, which it takes to x = 26
        keypoint(34, 10, 0.5, 0),  # nearer to 30 than to 40, but not to 26
    ]
    assert poses_of(rows)[:, 0, 0].tolist() == [26, 34]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, [14, 10]),
        ({"tolerance": 4.0}, [10, 10]),  # is not nearer than 4
        ({"person": 0.5}, [10, 10]),  # the person's score is not over it
        ({"conf": 0.7}, [10, 10]),  # the object's neither
    ],
)
def test_each_limit_of_the_fusion_holds(change: dict[str, float], expected: list[float]) -> None:
    spec = replace(SPEC, output=replace(LAYOUT, fusion=replace(PoseFusion(), **change)))
    rows = [person(20, 20, 0.5, 10, 10, 30, 30), keypoint(14, 10, 0.7, 0)]
    assert poses_of(rows, spec)[0, 0, :2].tolist() == expected


def test_the_tolerance_is_in_pixels_of_the_source() -> None:
    """Four network pixels are four in an image of the network's size, and sixteen in one of four times that."""
    spec = replace(SPEC, output=replace(LAYOUT, fusion=PoseFusion(tolerance=10)))
    rows = [person(20, 20, 0.9, 10, 10, 30, 30), keypoint(14, 10, 0.7, 0)]
    assert poses_of(rows, spec)[0, 0].tolist() == [14, 10, pytest.approx(0.7)]
    assert poses_of(rows, spec, (256, 256))[0, 0].tolist() == [40, 40, 0]


def test_an_object_at_the_edge_stands_in_the_middle_of_what_is_in_the_image() -> None:
    rows = [person(20, 20, 0.9, 2, 20, 30, 30), keypoint(0, 20, 0.7, 0, side=8)]
    assert poses_of(rows)[0, 0].tolist() == [2, 20, pytest.approx(0.7)]


def test_persons_do_not_suppress_keypoint_objects_nor_count_with_them() -> None:
    thresholds = replace(SPEC.thresholds, max_det=1, pre_nms_topk=1)
    rows = [person(10, 10, 0.9, 10, 10, 30, 30), keypoint(10, 10, 0.7, 0, side=40)]
    assert poses_of(rows, replace(SPEC, thresholds=thresholds))[0, 0, 2] == pytest.approx(0.7)


def test_a_result_has_persons_only_and_every_keypoint_is_drawn() -> None:
    rows = np.array([[person(20, 20, 0.9, 10, 10, 30, 30), keypoint(50, 50, 0.1, 1)]], np.float32)
    result = Predictor(FakeSession(lambda _: {"output": rows}, spec=SPEC))(np.zeros((64, 64, 3), np.uint8))
    assert result.counts() == {"person": 1}
    assert result.keypoints is not None
    assert (result.keypoints[..., 2] == 0).all()  # no object is certain enough
    drawn = result.draw()
    assert drawn[10, 10].any()
    assert drawn[20, 20].any()  # the limb between the two
    assert not replace(result, keypoint_threshold=0.5).draw()[20, 20].any()


def test_nobody_and_nothing_give_no_poses() -> None:
    for rows in ([keypoint(10, 10, 0.9, 0)], [person(20, 20, 0.1, 10, 10, 30, 30)]):
        assert poses_of(rows).shape == (0, 2, 3)
    assert poses_of([person(20, 20, 0.9, 10, 10, 30, 30)])[0, 0].tolist() == [10, 10, 0]


def test_more_candidates_of_either_kind_than_nms_considers_are_reported() -> None:
    thresholds = replace(SPEC.thresholds, pre_nms_topk=1)
    rows = np.array([[person(20, 20, 0.9, 1, 1, 3, 3), *[keypoint(50, 50, 0.8, 1)] * 2]], np.float32)
    network = FakeSession(lambda _: {"output": rows}, spec=replace(SPEC, thresholds=thresholds))
    assert Predictor(network)(np.zeros((64, 64, 3), np.uint8)).truncated


def test_an_output_with_too_few_columns_is_refused() -> None:
    with pytest.raises(BackendError, match=r"output 'output' must be \(batch, \?, 12\), got \(1, 3, 11\)"):
        PoseAdapter(SPEC).objects({"output": np.zeros((1, 3, 11), np.float32)}, 0)
    outputs = [TensorInfo("output", (1, 84, 11), "float32")]
    with pytest.raises(SpecError, match=r"\(batch, rows, 12 columns\), the network gives"):
        Predictor(FakeSession(lambda _: {}, spec=SPEC, outputs=outputs))
