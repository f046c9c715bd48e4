"""Whole numbers as people type them: what they are, and that nothing else is one."""

from __future__ import annotations

import sys

from hypothesis import example, given
from hypothesis import strategies as st

from deploykit.numerals import typed_number


@given(st.integers(0, 10**9 - 1), st.integers(0, 3))
def test_a_number_of_up_to_nine_digits_is_read(number: int, zeros: int) -> None:
    text = "0" * zeros + str(number)
    assert typed_number(text) == (number if len(text) <= 9 else None)


@given(st.text(max_size=12))
@example("")
@example("\u0663")  # a digit of another script, which int() takes
@example("\u00b2")  # isdigit, which int() does not take
@example("1_0")
@example("+1")
@example("-1")
@example(" 1")
@example("1\n")
@example("9" * (sys.int_info.default_max_str_digits + 1))  # which int() refuses with an error of its own
def test_only_a_few_decimal_digits_are_a_number(text: str) -> None:
    plain = 0 < len(text) <= 9 and set(text) <= set("0123456789")
    assert typed_number(text) == (int(text) if plain else None)
