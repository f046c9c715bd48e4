"""Small masks laid over boxes, as pixels of the image."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.runtime.postprocess.masks import pasted
from tests.reference import two_stage as reference

SIDE = st.floats(-6, 18).map(lambda v: round(v, 2))


@settings(max_examples=60, deadline=None)
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
