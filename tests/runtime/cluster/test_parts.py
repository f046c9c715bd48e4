"""Parts: rows to the bytes of a file and back, in both formats, and all of them as one."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.errors import DataError
from deploykit.runtime.cluster.parts import FORMATS, Format, Row, arrow_schema, encoded, failure, join_parts, outline

ROW: Row = {
    "schema": 1, "name": "a.jpg", "frame": None, "size": [4, 6],
    "detections": [
        {"label": 0, "name": "cat", "score": 0.5, "box": [1, 2.5, 3, 4],
         "mask": {"size": [4, 6], "counts": [3, 21]}, "keypoints": [[1, 2, 0.5], [3, 4, 1]]},
    ],
    "truncated": False, "timings_ms": {"read": 1.5, "inference": 2},
}  # fmt: skip
TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
ROWS = st.lists(
    st.builds(lambda name, error: failure(name, error) if error is not None else {**ROW, "name": name},
              TEXT, st.none() | TEXT),
    max_size=6,
)  # fmt: skip


def needed(form: Format) -> None:
    if form == "parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")


@pytest.mark.parametrize("form", FORMATS)
def test_names_and_failures_come_back(form: Format) -> None:
    needed(form)

    @given(ROWS)
    def check(rows: list[Row]) -> None:
        assert outline(encoded(rows, form), form) == [(row["name"], "error" in row) for row in rows]

    check()


def test_a_line_is_the_document_itself() -> None:
    assert [json.loads(line) for line in encoded([ROW, ROW], "jsonl").splitlines()] == [ROW, ROW]


def test_parquet_has_the_document_in_columns(tmp_path: Path) -> None:
    needed("parquet")
    import pyarrow.parquet

    (tmp_path / "a.parquet").write_bytes(encoded([ROW, failure("b.jpg", "bad")], "parquet"))
    good, bad = pyarrow.parquet.read_table(tmp_path / "a.parquet").to_pylist(maps_as_pydicts="strict")
    assert _without_none(good) == ROW
    assert _without_none(bad) == {"schema": 1, "name": "b.jpg", "error": "bad"}


def _without_none(value: Any) -> Any:
    """Leave out what a column has where a document has no such member; ``frame`` of a good row is there and null."""
    if isinstance(value, list):
        return [_without_none(each) for each in value]
    if not isinstance(value, dict):
        return value
    kept = {name: _without_none(each) for name, each in value.items() if each is not None}
    return {**kept, "frame": None} if "detections" in value and value["detections"] is not None else kept


def test_parquet_of_any_task_has_the_same_columns() -> None:
    needed("parquet")
    others: list[Row] = [
        {"schema": 1, "name": "c", "frame": None, "size": [1, 1], "timings_ms": {}, "features": [0.5, 1]},
        {"schema": 1, "name": "d", "frame": None, "size": [1, 1], "timings_ms": {}, "shares": {"sky": 1.0}},
        {"schema": 1, "name": "e", "frame": None, "size": [1, 1], "timings_ms": {},
         "classes": [{"label": 1, "name": "cat", "score": 1.0}]},
    ]  # fmt: skip
    import io

    import pyarrow.parquet

    tables = [pyarrow.parquet.read_table(io.BytesIO(encoded([row], "parquet"))) for row in (ROW, *others)]
    assert all(table.schema.equals(arrow_schema()) for table in tables)
    values = [{name for name, value in table.to_pylist()[0].items() if value is not None} for table in tables]
    assert [names & {"detections", "features", "shares", "classes"} for names in values] == [
        {"detections"}, {"features"}, {"shares"}, {"classes"},
    ]  # fmt: skip


@pytest.mark.parametrize("form", FORMATS)
def test_what_is_damaged_is_refused(form: Format) -> None:
    needed(form)
    data = encoded([ROW, ROW], form)
    for damaged in (data[:-1], data[: len(data) // 3], b"{}\n", b"[1]\n", b"x"):
        with pytest.raises(DataError):
            outline(damaged, form)


@pytest.mark.parametrize("form", FORMATS)
def test_parts_become_one_file_in_their_order(form: Format, tmp_path: Path) -> None:
    needed(form)
    parts = []
    for number in range(3):
        parts.append(tmp_path / f"{number}")
        parts[-1].write_bytes(encoded([{**ROW, "name": f"{number}-{i}"} for i in range(number)], form))
    join_parts(parts, tmp_path / "whole", form)
    assert outline((tmp_path / "whole").read_bytes(), form) == [("1-0", False), ("2-0", False), ("2-1", False)]


def test_numbers_that_json_lacks_do_not_get_into_a_part() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        encoded([{**ROW, "size": [math.nan]}], "jsonl")
