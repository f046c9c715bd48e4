"""Labels are inside the image, never over one another, beside what they name, and not over small objects."""

from __future__ import annotations

import time

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploykit.runtime.arrays import Array
from deploykit.runtime.drawing.placement import CROWD, MOST_HIDDEN, Place, place_labels

IMAGE = (300, 400)


def place(
    boxes: list[list[float]], size: tuple[int, int] = (50, 12), image: tuple[int, int] = IMAGE
) -> list[Place | None]:
    return place_labels(np.array(boxes, float), np.full((len(boxes), 1, 2), size), image)


def fields(places: list[Place | None], sizes: Array) -> Array:
    """xyxy of the labels that are shown."""
    found = [(p.x, p.y, *(np.array([p.x, p.y]) + sizes[i, p.size])) for i, p in enumerate(places) if p is not None]
    return np.array(found, float).reshape(-1, 4)


def common(one: Array, others: Array) -> Array:
    """The area that a box has in common with each other box."""
    low, high = np.maximum(one[:2], others[:, :2]), np.minimum(one[2:], others[:, 2:])
    return np.prod(np.maximum(high - low, 0), axis=1)


@st.composite
def scenes(draw: st.DrawFn) -> tuple[Array, Array, tuple[int, int]]:
    """Boxes anywhere, also outside the image, labels of any size, and images down to one pixel."""
    height, width = draw(st.integers(1, 200)), draw(st.integers(1, 200))
    count, steps = draw(st.integers(0, 25)), draw(st.integers(1, 2))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    corners = rng.uniform(-50, 250, (count, 2, 2))
    boxes = np.concatenate((corners.min(axis=1), corners.max(axis=1)), 1)
    return boxes, rng.integers(1, draw(st.integers(2, 250)), (count, steps, 2)), (height, width)


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(scenes())
def test_labels_are_inside_and_apart_for_any_boxes(scene: tuple[Array, Array, tuple[int, int]]) -> None:
    boxes, sizes, (height, width) = scene
    places = place_labels(boxes, sizes, (height, width))
    assert places == place_labels(boxes.copy(), sizes.copy(), (height, width))  # deterministic
    shown = fields(places, sizes)
    assert len(places) == len(boxes)
    assert (shown[:, :2] >= 0).all()
    assert (shown[:, 2:] <= [width, height]).all()
    for i in range(len(shown)):
        assert common(shown[i], shown[i + 1 :]).sum() == 0


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(scenes())
def test_no_label_hides_much_of_the_other_objects(scene: tuple[Array, Array, tuple[int, int]]) -> None:
    boxes, sizes, image = scene
    clipped = np.clip(boxes, -1, [image[1] + 1, image[0] + 1] * 2)
    areas = np.prod(np.maximum(clipped[:, 2:] - clipped[:, :2], 1), axis=1)
    for i, found in enumerate(place_labels(boxes, sizes, image)):
        if found is not None:
            field = np.array([found.x, found.y, found.x + sizes[i, found.size, 0], found.y + sizes[i, found.size, 1]])
            hidden = common(field, clipped) / areas
            assert hidden.sum() - hidden[i] <= MOST_HIDDEN + 1e-3


def test_a_label_is_above_its_box_or_inside_at_the_upper_edge() -> None:
    assert place([[100, 100, 200, 200]]) == [Place(100, 88, 0)]
    assert place([[100, 0, 200, 200]]) == [Place(100, 0, 0)]
    assert place([[380, 100, 400, 200]]) == [Place(350, 88, 0)]  # moved back into the image


def test_the_best_object_takes_its_place_and_others_give_way() -> None:
    first, second = place([[100, 100, 200, 200], [100, 100, 200, 220]])
    assert first == Place(100, 88, 0)
    assert second is not None
    assert second != first


def test_a_small_object_is_not_hidden_by_the_label_of_its_neighbour() -> None:
    small = [100.0, 80.0, 130.0, 99.0]
    places = place([[100, 100, 200, 200], small])
    assert places[0] is not None
    field = np.array([places[0].x, places[0].y, places[0].x + 50, places[0].y + 12], float)
    assert common(field, np.array([small])).sum() == 0
    # Between the two at the upper left corner there is nothing to hide.
    assert place([[100, 100, 200, 200]])[0] == Place(100, 88, 0)


def test_a_smaller_text_is_taken_where_a_larger_one_hides_something() -> None:
    around = [[0.0, 0, 20, 12], [62, 0, 100, 12], [0, 30, 100, 42]]
    boxes = np.array([[22.0, 13, 60, 29], *around])
    sizes = np.tile(np.array([[[70, 12], [36, 9]]]), (4, 1, 1))
    places = place_labels(boxes, sizes, (42, 100))
    assert places[0] is not None
    assert places[0].size == 1


def test_faces_of_a_crowd_that_are_smaller_than_their_text_have_no_labels() -> None:
    faces = [[20.0 * i, 30.0, 20.0 * i + 11, 43.0] for i in range(CROWD + 1)]
    assert place(faces) == [None] * len(faces)
    assert sum(found is not None for found in place(faces[:3])) == 3
    of_many_classes = place_labels(
        np.array(faces), np.full((len(faces), 1, 2), (50, 12)), IMAGE, classes=np.arange(len(faces))
    )
    assert sum(found is not None for found in of_many_classes) >= CROWD / 2  # there the names are news
    large = [[30.0 * i, 30.0, 30.0 * i + 26, 60.0] for i in range(CROWD + 1)]
    assert sum(found is not None for found in place(large)) >= CROWD / 2


def test_a_label_that_is_wider_than_the_image_is_left_out() -> None:
    assert place([[0, 0, 40, 40]], size=(50, 12), image=(40, 40)) == [None]


def test_a_crowd_of_300_takes_milliseconds() -> None:
    rng = np.random.default_rng(0)
    corners, sides = rng.uniform(0, 1200, (300, 2)), rng.uniform(10, 150, (300, 2))
    boxes, sizes = np.concatenate((corners, corners + sides), 1), np.full((300, 1, 2), (60, 14))
    took = []
    for _ in range(5):
        start = time.thread_time()
        places = place_labels(boxes, sizes, (720, 1280))
        took.append(time.thread_time() - start)
    assert sum(found is not None for found in places) > 50
    assert min(took) < 0.1
