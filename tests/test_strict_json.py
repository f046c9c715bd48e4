"""JSON from outside: what is read, and what is refused before anybody walks it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.strict_json import DEEPEST, JsonError, parse_json, read_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inside: st.lists(inside, max_size=4) | st.dictionaries(st.text(), inside, max_size=4),
)


@given(VALUES, st.booleans())
def test_what_python_writes_is_read_as_it_was(value: Any, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert parse_json(text) == parse_json(text.encode()) == value


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_bytes_may_be_in_any_encoding_of_unicode(encoding: str) -> None:
    assert parse_json('{"größe": [1, "\\ud83d\\ude00"]}'.encode(encoding)) == {"größe": [1, "\N{GRINNING FACE}"]}


@pytest.mark.parametrize("empty", ["[]", "{}", '{"a": 1}'])
def test_nesting_ends_at_the_limit(empty: str) -> None:
    inside = DEEPEST - 1
    for opened, closed in (("[", "]"), ('{"a":', "}")):
        parse_json(opened * inside + empty + closed * inside)
        with pytest.raises(JsonError, match="nested deeper than 64 levels"):
            parse_json(opened * DEEPEST + empty + closed * DEEPEST)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value"),
        ("[" * 2_000 + "]" * 2_000, "nested deeper than 64 levels"),
        ("[" * 1_000_000, "nested deeper than 64 levels"),
        ("[NaN]", "NaN is no number of JSON"),
        ('{"a": -Infinity}', "-Infinity is no number of JSON"),
        ('{"a": 1, "b": 2, "a": 3}', "an object has the name 'a' twice"),
        ('[{"x": {"b": [], "b": []}}]', "an object has the name 'b' twice"),
        ('["\\ud83d"]', "half a surrogate pair"),
        ('{"\\uDE00": 1}', "half a surrogate pair"),
        ('{"a": {"b": ["\\ude00\\ud83d"]}}', "half a surrogate pair"),
        ('["\ud83d"]', "half a surrogate pair"),
        ("1" * 5_000, "limit"),  # Python's own, against conversions in quadratic time
        (b'{"a": "\xe1"}', "byte 7 is not text in UTF-8"),
        (b"\xff\xfe\x00", "is not text in UTF-16"),
        ("[0," * 20, "Expecting value"),
    ],
)
def test_what_json_lacks_or_breaks_a_limit_is_refused(text: str | bytes, message: str) -> None:
    with pytest.raises(JsonError, match=message):
        parse_json(text)


def test_a_whole_pair_of_surrogates_is_a_character() -> None:
    assert parse_json('["\\ud83d\\ude00", "\\\\ud83d"]') == ["\N{GRINNING FACE}", "\\ud83d"]


def test_a_text_is_read_up_to_its_limit() -> None:
    assert parse_json('"abc"', most=5) == "abc"
    for text in ('"abcd"', b'"abcd"'):
        with pytest.raises(JsonError, match="longer than 5 bytes"):
            parse_json(text, most=5)


def test_constants_are_let_through_for_who_names_their_place() -> None:
    assert repr(parse_json("[NaN, -Infinity]", constants=True)) == "[nan, -inf]"


def test_only_a_regular_file_is_read(tmp_path: Path) -> None:
    file, pipe = tmp_path / "a.json", tmp_path / "pipe.json"
    file.write_text("[1]")
    assert read_json(file) == [1]
    with pytest.raises(JsonError, match="longer than 2 bytes"):
        read_json(file, most=2)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json")
    os.mkfifo(pipe)
    for no_file in (pipe, tmp_path, Path(os.devnull)):
        with pytest.raises(JsonError, match="not a regular file"):
            read_json(no_file)
