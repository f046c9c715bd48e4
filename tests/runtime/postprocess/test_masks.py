"""Small masks laid over boxes, as pixels of the image."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.runtime.postprocess.masks import pasted, run_lengths
from tests.reference import two_stage as reference

SIDE = st.floats(-6, 18).map(lambda v: round(v, 2))


@settings(max_examples=60)
@given(st.tuples(SIDE, SIDE, SIDE, SIDE), st.integers(1, 5), st.integers(0, 1000))
def test_it_is_the_definition(box: tuple[float, ...], cells: int, seed: int) -> None:
    box = (min(box[0], box[2]), min(box[1], box[3]), max(box[0], box[2]), max(box[1], box[3]))
    mask = np.random.default_rng(seed).random((cells, cells)).astype(np.float32)
    found = pasted(mask[None], np.array([box]), (11, 13))
    assert found.shape == (1, 11, 13)
    assert found[0].tolist() == reference.pasted(torch.from_numpy(mask), box, 11, 13)


def test_a_full_mask_fills_its_box() -> None:
    boxes = np.array([[2.0, 3.0, 9.0, 7.0], [-5.0, -5.0, 3.0, 3.0], [4.0, 4.0, 4.0, 9.0], [50.0, 50.0, 60.0, 60.0]])
    found = pasted(np.ones((4, 28, 28), np.float32), boxes, (12, 16))
    assert found[0, 3:7, 2:9].all()
    assert found[0].sum() == 4 * 7
    assert found[1].sum() == found[1, :3, :3].sum() == 9
    assert not found[2:].any()  # without width, and outside of the image


def test_no_object_has_no_mask() -> None:
    assert pasted(np.zeros((0, 28, 28), np.float32), np.zeros((0, 4)), (5, 6)).shape == (0, 5, 6)


def test_a_pixel_at_the_threshold_belongs_to_the_object_and_one_below_does_not() -> None:
    box = np.array([[0.0, 0.0, 8.0, 8.0]])
    inside = np.s_[2:6, 2:6]  # between the centres of the outer cells every value is the mask's own
    for value, threshold, belongs in ((0.5, 0.5, True), (0.25, 0.25, True), (0.25, 0.5, False)):
        found = pasted(np.full((1, 2, 2), value, np.float32), box, (8, 8), threshold)
        assert found[0][inside].all() == found[0][inside].any() == belongs


def test_a_pixel_whose_centre_is_outside_of_the_box_is_never_of_the_object() -> None:
    found = pasted(np.ones((1, 4, 4), np.float32), np.array([[2.7, 1.5, 6.3, 5.5]]), (8, 9), 0.01)[0]
    assert found[1:6, 3:6].sum() == found.sum()
    assert found[1:6].any(1).all()  # a centre on the box's edge is inside


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=5))
def test_run_lengths_begin_with_the_background(rows: list[list[bool]]) -> None:
    mask = np.array(rows)
    told = run_lengths(mask)
    assert told["size"] == [len(rows), 3]
    values = np.repeat(np.arange(len(told["counts"])) % 2 == 1, told["counts"])
    assert (mask == values.reshape(3, len(rows)).T).all()
    assert all(told["counts"][1:])  # of no length is the first one alone


def test_the_run_lengths_of_a_mask_that_begins_at_once() -> None:
    assert run_lengths(np.array([[True, False], [True, True]]))["counts"] == [0, 2, 1, 1]
    assert run_lengths(np.zeros((0, 4), bool))["counts"] == [0]
