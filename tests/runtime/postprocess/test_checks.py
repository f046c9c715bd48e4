"""Checks of values by the bits of half precision find what numpy's own comparison finds."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deploykit.runtime.arrays import Array
from deploykit.runtime.postprocess.checks import _ends


@given(
    bits=hnp.arrays(np.uint16, st.integers(1, 12), elements=st.integers(0, 0xFFFF))
    | hnp.arrays(np.uint16, st.integers(1, 12), elements=st.integers(0x8000, 0xFC00))
    | hnp.arrays(np.uint16, st.integers(1, 12), elements=st.integers(0, 0x7C00)),
    apart=st.booleans(),
)
def test_the_ends_of_halves_are_those_that_numpy_finds(bits: Array, apart: bool) -> None:
    """Of any values: negative ones alone, both zeros, infinity and NaN among them, side by side or not."""
    values = (np.repeat(bits[:, None], 3, axis=1)[:, 1] if apart else bits).view(np.float16)
    np.testing.assert_array_equal(_ends(values), (values.min(), values.max()))
