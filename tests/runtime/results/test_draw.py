"""What is drawn over what, and from which certainty on."""

from __future__ import annotations

import numpy as np
import pytest

from deploykit.runtime.arrays import Array
from deploykit.runtime.results.draw import class_colour, draw
from deploykit.spec import KeypointSpec

GREY = np.full((120, 160, 3), 128, np.uint8)
EYES = KeypointSpec(("left eye", "right eye", "nose"), skeleton=((0, 1),), flip_pairs=((0, 1),))


def drawn(boxes: list[list[float]], labels: list[int], **more: object) -> Array:
    count = len(boxes)
    scores = np.linspace(0.9, 0.5, count)
    return draw(GREY, np.array(boxes), scores, np.array(labels), [""] * count, **more)  # type: ignore[arg-type]


def test_the_best_object_is_drawn_over_the_others() -> None:
    box = [30.0, 60.0, 110.0, 110.0]
    for best, other in ((0, 3), (3, 0)):
        canvas = drawn([box, box], [best, other])
        for pixel in (canvas[110, 70], canvas[85, 30]):  # smoothed lines let a little of what is below through
            assert np.abs(pixel - np.array(class_colour(best), float)).max() < 10


@pytest.mark.parametrize(("visibility", "seen"), [(0.5, True), (0.51, True), (0.49, False)])
def test_a_keypoint_is_drawn_from_its_threshold_on(visibility: float, seen: bool) -> None:
    points = np.array([[[60.0, 80.0, visibility], [90.0, 80.0, 0.0], [70.0, 95.0, 0.0]]])
    box = [[30.0, 60.0, 110.0, 110.0]]
    canvas = drawn(box, [0], keypoints=points, keypoint_spec=EYES, keypoint_threshold=0.5)
    assert (canvas[80, 60] != 128).any() == seen
    assert (canvas[80, 90] == 128).all()


def test_the_sides_of_a_body_have_colours_of_their_own() -> None:
    points = np.array([[[60.0, 80.0, 1.0], [90.0, 80.0, 1.0], [75.0, 95.0, 1.0]]])
    canvas = drawn([[30.0, 60.0, 110.0, 110.0]], [0], keypoints=points, keypoint_spec=EYES)
    left, right, middle = (tuple(canvas[int(y), int(x)]) for x, y, _ in points[0])
    assert len({left, right, middle}) == 3
    unnamed = drawn([[30.0, 60.0, 110.0, 110.0]], [0], keypoints=points)
    assert {tuple(unnamed[int(y), int(x)]) for x, y, _ in points[0]} == {middle}


def test_a_mask_tints_its_pixels_and_no_other() -> None:
    mask = np.zeros((1, 120, 160), bool)
    mask[0, 70:90, 50:70] = True
    canvas = drawn([[30.0, 60.0, 110.0, 110.0]], [1], masks=mask)
    expected = 0.55 * 128 + 0.45 * np.array(class_colour(1))
    assert np.abs(canvas[75:85, 55:65] - expected).max() <= 1
    assert (canvas[95:105, 80:100] == 128).all()


def test_the_image_itself_is_not_drawn_on() -> None:
    before = GREY.copy()
    drawn([[30.0, 60.0, 110.0, 110.0]], [0])
    assert (before == GREY).all()
