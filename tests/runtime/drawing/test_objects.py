"""What is drawn over what, from which certainty on, and that the image itself is left alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from deploykit.errors import UsageError
from deploykit.runtime.arrays import Array
from deploykit.runtime.drawing.objects import Objects, draw_objects
from deploykit.runtime.drawing.palette import class_colour, shade
from deploykit.runtime.options import DrawOptions
from deploykit.runtime.postprocess.rotated import corners_of
from deploykit.spec import KeypointSpec

GREY = np.full((120, 160, 3), 128, np.uint8)
EYES = KeypointSpec(("left eye", "right eye", "nose"), skeleton=((0, 1),), flip_pairs=((0, 1),))
BOX = [30.0, 60.0, 110.0, 110.0]


def drawn(boxes: list[list[float]], labels: list[int], options: DrawOptions | None = None, **more: Any) -> Array:
    count = len(boxes)
    objects = Objects(np.array(boxes), np.linspace(0.9, 0.5, count), np.array(labels), [""] * count, **more)
    return draw_objects(GREY, objects, options)


def test_the_best_object_is_drawn_over_the_others() -> None:
    for best, other in ((0, 3), (3, 0)):
        canvas = drawn([BOX, BOX], [best, other])
        assert tuple(canvas[110, 70]) == tuple(canvas[85, 30]) == class_colour(best)


@pytest.mark.parametrize("ground", [0, 255, "colour"])
def test_a_box_is_seen_on_any_ground(ground: int | str) -> None:
    """The line and its halo differ in brightness, so that one of them differs from the ground."""
    for label in range(20):
        colour = class_colour(label) if ground == "colour" else (ground,) * 3
        image = np.full((120, 160, 3), colour, np.uint8)
        objects = Objects(np.array([BOX]), np.ones(1), np.array([label]), [""])
        canvas = draw_objects(image, objects, DrawOptions(labels=False)).astype(int)
        assert np.abs(canvas[80:90, 26:35] - np.array(colour)).sum(axis=2).max() > 150


@pytest.mark.parametrize(("visibility", "seen"), [(0.5, True), (0.51, True), (0.49, False)])
def test_a_keypoint_is_drawn_from_its_threshold_on(visibility: float, seen: bool) -> None:
    points = np.array([[[60.0, 80.0, visibility], [90.0, 80.0, 0.0], [70.0, 95.0, 0.0]]])
    canvas = drawn([BOX], [0], keypoints=points, keypoint_spec=EYES, keypoint_threshold=0.5)
    assert (canvas[77:84, 57:64] != 128).any() == seen
    assert (canvas[77:84, 87:94] == 128).all()


def test_an_uncertain_keypoint_is_a_ring() -> None:
    points = np.array([[[60.0, 80.0, 0.6], [90.0, 80.0, 0.9], [70.0, 95.0, 0.0]]])
    canvas = drawn([BOX], [0], DrawOptions(line_width=4), keypoints=points, keypoint_threshold=0.5)
    centre, disc = canvas[80, 60].astype(int), canvas[80, 90].astype(int)
    assert centre.max() < 60  # dark inside
    assert disc[1] > 180  # filled


def test_keypoints_of_a_small_object_leave_it_visible() -> None:
    face = np.array([[40.0, 40.0, 52.0, 52.0]])
    points = np.array([[[43.0, 44, 1], [49, 44, 1], [46, 46, 1], [44, 49, 1], [48, 49, 1]]])
    objects = Objects(face, np.ones(1), np.zeros(1, int), ["face"], keypoints=points)
    inside = draw_objects(GREY, objects, DrawOptions(labels=False))[42:51, 42:51]
    assert 5 <= (inside != 128).any(axis=2).sum() <= 40  # of 81 pixels; five discs with outlines would hide all


def test_the_sides_of_a_body_have_colours_of_their_own() -> None:
    points = np.array([[[60.0, 80.0, 1.0], [90.0, 80.0, 1.0], [75.0, 95.0, 1.0]]])
    canvas = drawn([BOX], [0], keypoints=points, keypoint_spec=EYES)
    left, right, middle = (tuple(canvas[int(y), int(x)]) for x, y, _ in points[0])
    assert len({left, right, middle}) == 3
    unnamed = drawn([BOX], [0], keypoints=points)
    assert {tuple(unnamed[int(y), int(x)]) for x, y, _ in points[0]} == {middle}


def test_a_mask_tints_its_pixels_and_has_an_outline_of_its_colour() -> None:
    mask = np.zeros((1, 120, 160), bool)
    mask[0, 70:90, 50:70] = True
    canvas = drawn([BOX], [1], masks=mask)
    expected = 0.55 * 128 + 0.45 * np.array(class_colour(1))
    assert np.abs(canvas[75:85, 55:65] - expected).max() <= 1
    assert np.abs(canvas[89, 55:65] - np.array(class_colour(1), float)).max() <= 20  # a smoothed line
    assert (canvas[95:105, 80:100] == 128).all()


def test_masks_of_one_class_are_shades_of_its_colour() -> None:
    masks = np.zeros((3, 120, 160), bool)
    for i in range(3):
        masks[i, 65:105, 32 + 25 * i : 50 + 25 * i] = True
    canvas = drawn([BOX] * 3, [4, 4, 4], DrawOptions(labels=False), masks=masks)
    colours = [tuple(canvas[85, 41 + 25 * i]) for i in range(3)]
    assert len(set(colours)) == 3
    for i, colour in enumerate(colours):
        assert np.abs(np.array(colour, float) - (0.55 * 128 + 0.45 * np.array(shade(class_colour(4), i)))).max() <= 1


def test_an_oriented_box_has_ticks_at_the_ends_of_its_axis() -> None:
    for angle, ends in ((0.0, [(60, 28), (60, 132)]), (np.pi / 2, [(8, 80), (112, 80)])):
        rotated = np.array([[80.0, 60.0, 90.0, 40.0, angle]], np.float32)
        corners = corners_of(rotated)
        hull = np.concatenate((corners.min(axis=1), corners.max(axis=1)), 1)
        canvas = drawn(hull.tolist(), [0], DrawOptions(labels=False, line_width=2), corners=corners)
        for y, x in ends:
            assert (canvas[y - 1 : y + 2, x - 1 : x + 2] != 128).any()
        assert (canvas[60, 80] == 128).all()


def test_the_image_itself_is_not_drawn_on_and_drawing_is_deterministic() -> None:
    before = GREY.copy()
    mask = np.ones((1, 120, 160), bool)
    first = drawn([BOX], [0], masks=mask, keypoints=np.array([[[60.0, 80.0, 1.0]]]))
    assert (before == GREY).all()
    assert (first == drawn([BOX], [0], masks=mask, keypoints=np.array([[[60.0, 80.0, 1.0]]]))).all()


def test_options_leave_out_labels_and_scores_and_set_the_width() -> None:
    objects = Objects(np.array([BOX]), np.array([0.5]), np.array([0]), ["cat"])
    bare = draw_objects(GREY, objects, DrawOptions(labels=False))
    assert (bare[:56] == 128).all()
    full, name = draw_objects(GREY, objects), draw_objects(GREY, objects, DrawOptions(conf=False))
    widths = [np.flatnonzero((canvas[50:57] != 128).any(axis=(0, 2))).size for canvas in (full, name)]
    assert widths[0] > 1.5 * widths[1] > 0
    thick = draw_objects(GREY, objects, DrawOptions(labels=False, line_width=9))
    line = (thick[85] == np.array(class_colour(0), np.uint8)).all(axis=1)
    assert line.sum() == 2 * 9
    with pytest.raises(UsageError, match="line_width must be at least 1 pixel, got 0"):
        DrawOptions(line_width=0)


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (96, 128), (4320, 7680)])
def test_images_of_any_size_are_drawn(size: tuple[int, int]) -> None:
    height, width = size
    boxes = np.array([[0.0, 0, width, height], [width * 0.2, height * 0.2, width * 0.9, height * 0.8]])
    image = np.full((*size, 3), 90, np.uint8)
    canvas = draw_objects(image, Objects(boxes, np.array([0.9, 0.8]), np.array([0, 5]), ["person", "bus"]))
    assert canvas.shape == image.shape
    assert (canvas != 90).any()


def test_nothing_found_draws_nothing() -> None:
    nothing = Objects(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), [])
    assert (draw_objects(GREY, nothing) == GREY).all()
