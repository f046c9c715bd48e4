"""Values of annotated types from parsed JSON: what is taken for what, and what is not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from deploykit.errors import SpecError
from deploykit.spec import json_safe, read_value


@dataclass(frozen=True)
class Sample:
    share: float = 0.5
    count: int = 1
    on: bool = False
    name: str = ""
    pair: tuple[int, float] = (1, 2.0)
    several: tuple[str, ...] = ()
    kind: Literal["a", "b"] = "a"
    maybe: float | None = None


@pytest.mark.parametrize(
    ("field", "given", "expected"),
    [
        ("share", 1, 1.0),
        ("share", 0.25, 0.25),
        ("pair", [3, 4], (3, 4.0)),
        ("several", ["x", "y"], ("x", "y")),
        ("maybe", None, None),
        ("maybe", 2, 2.0),
    ],
)
def test_a_whole_number_is_a_float_where_one_is_expected(field: str, given: Any, expected: Any) -> None:
    found = getattr(read_value(Sample, {field: given}, "it"), field)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("share", True),
        ("share", "0.5"),
        ("share", None),
        ("count", True),
        ("count", 1.0),
        ("on", 1),
        ("name", 1),
        ("pair", [1]),
        ("pair", [1, True]),
        ("pair", [1.0, 1.0]),
        ("several", "xy"),
        ("kind", "c"),
        ("maybe", False),
        ("other", 1),
    ],
)
def test_what_is_of_another_type_is_refused_with_its_place(field: str, wrong: Any) -> None:
    with pytest.raises(SpecError, match=rf"^it(\.{field}| has no field '{field}')"):
        read_value(Sample, {field: wrong}, "it")


def test_json_gets_words_for_what_it_has_no_numbers_for() -> None:
    told = json_safe({"a": [float("nan"), (float("inf"), -float("inf"))], "b": 1.5, "c": 3})
    assert told == {"a": ["nan", ["inf", "-inf"]], "b": 1.5, "c": 3}
