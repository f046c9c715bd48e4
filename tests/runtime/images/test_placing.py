"""The middle square of an image on a classifier's canvas: cut out first, and then scaled."""

from __future__ import annotations

import cv2
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.runtime.images.pillow_resize import resample
from deploykit.runtime.images.placing import place_on_canvas
from deploykit.spec import Fit, InputSpec

sides = st.integers(1, 70)


@settings(max_examples=80)
@given(source=st.tuples(sides, sides), size=st.tuples(sides, sides), share=st.floats(0.01, 1.0), pillow=st.booleans())
def test_a_square_from_the_middle_fills_the_canvas(
    source: tuple[int, int], size: tuple[int, int], share: float, pillow: bool
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*source, 3), np.uint8)
    fit = Fit(kind="crop", crop_share=share, crop_first=True, resample="bilinear" if pillow else "opencv")
    placed = place_on_canvas(image, InputSpec(size=size, fit=fit))
    side = max(int(min(source) * share), 1)
    (top, left), (below, right) = [(s - side) // 2 for s in source], [-(-(s - side) // 2) for s in source]
    square = np.ascontiguousarray(image[top : source[0] - below, left : source[1] - right])
    assert square.shape == (side, side, 3)
    if square.shape[:2] == size:
        expected = square
    elif pillow:
        expected = resample(square, size, "bilinear")
    else:
        expected = cv2.resize(square, size[::-1], interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(placed.canvas, expected)
    assert (placed.source, placed.region) == (source, (0, 0, size[1], size[0]))
