"""Parts of the results: rows as the bytes of one file, JSON lines or Parquet, and back; and all parts as one file.

A row is the document of ``predict --json``, or for an image without a result ``schema``, ``name``, ``frame`` and
``error``. The columns of Parquet are the members of that document's JSON Schema, the same in each part; a member that a
row does not have is null there.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from deploykit.errors import DataError, import_extra
from deploykit.runtime.results.base import SCHEMA
from deploykit.strict_json import JsonError, parse_json

__all__ = ["FORMATS", "Format", "Row", "arrow_schema", "encoded", "failure", "join_parts", "outline"]

Format = Literal["jsonl", "parquet"]
FORMATS: tuple[Format, ...] = ("jsonl", "parquet")

Row = dict[str, Any]
"""One image's row."""

DOCUMENT = "predict.schema.json"
LARGEST_ROW = 1 << 28  # bytes
MOST_ROWS = 4096  # that one step of joining holds


def failure(name: str, error: str) -> Row:
    """Return the row of an image without a result."""
    return {"schema": SCHEMA, "name": name, "frame": None, "error": error}


def encoded(rows: Sequence[Row], form: Format) -> bytes:
    """Return rows as the bytes of a file.

    Raises:
        MissingDependencyError: Parquet needs pyarrow.
    """
    if form == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows).encode("utf-8")
    arrow, parquet = _arrow()
    table = arrow.Table.from_pylist([_with_pairs(row) for row in rows], schema=arrow_schema())
    stream = io.BytesIO()
    parquet.write_table(table, stream, compression="zstd")
    return stream.getvalue()


def outline(data: bytes, form: Format) -> list[tuple[str, bool]]:
    """Return the name of each row in a file's bytes, and whether it is that of an image without a result.

    Raises:
        DataError: the file is damaged. MissingDependencyError: Parquet needs pyarrow.
    """
    try:
        if form == "parquet":
            arrow, parquet = _arrow()
            try:
                rows = parquet.read_table(io.BytesIO(data), columns=["name", "error"]).to_pylist()
            except (arrow.ArrowException, OSError) as e:
                raise DataError(f"it is no Parquet file of rows ({e})") from e
        else:
            *lines, rest = data.split(b"\n")
            if rest:
                raise DataError("its last line has no end")
            rows = [parse_json(line, most=LARGEST_ROW) for line in lines]
        return [(row["name"], row.get("error") is not None) for row in rows]
    except (JsonError, KeyError, TypeError, AttributeError) as e:
        raise DataError(f"its lines are no rows ({e})") from e


def join_parts(parts: Sequence[Path], place: Path, form: Format) -> None:
    """Write the rows of parts, in order, as one file.

    Raises:
        OSError: a part cannot be read, or the place cannot be written. MissingDependencyError: Parquet needs pyarrow.
    """
    if form == "jsonl":
        with place.open("wb") as whole:
            for part in parts:
                with part.open("rb") as stream:
                    shutil.copyfileobj(stream, whole)
        return
    _, parquet = _arrow()
    with parquet.ParquetWriter(place, arrow_schema(), compression="zstd") as whole:
        for part in parts:
            with parquet.ParquetFile(part) as file:
                for batch in file.iter_batches(MOST_ROWS):
                    whole.write_batch(batch)


def _arrow() -> tuple[ModuleType, ModuleType]:
    return import_extra("pyarrow", "cluster"), import_extra("pyarrow.parquet", "cluster")


@cache
def arrow_schema() -> Any:
    """Return the Arrow schema of rows, which follows from the JSON Schema of predict's lines.

    Raises:
        MissingDependencyError: pyarrow is not installed.
    """
    arrow, _ = _arrow()
    document = parse_json(resources.files("deploykit").joinpath("assets", DOCUMENT).read_text(encoding="utf-8"))
    names = {**document["properties"], "error": {"type": "string"}}
    return arrow.schema([(name, _type_of(about, document["$defs"], arrow)) for name, about in names.items()])


def _type_of(about: Mapping[str, Any], known: Mapping[str, Any], arrow: ModuleType) -> Any:
    """Return the Arrow type of what a part of the JSON Schema describes."""
    if "$ref" in about:
        return _type_of(known[about["$ref"].rpartition("/")[2]], known, arrow)
    if "const" in about:
        return arrow.int64()
    kinds = about["type"] if isinstance(about["type"], list) else [about["type"]]
    kind = next(each for each in kinds if each != "null")
    if kind == "array":
        return arrow.list_(_type_of(about["items"], known, arrow))
    if kind == "object" and "properties" in about:
        return arrow.struct([(name, _type_of(each, known, arrow)) for name, each in about["properties"].items()])
    if kind == "object":
        return arrow.map_(arrow.string(), _type_of(about["additionalProperties"], known, arrow))
    plain: Mapping[str, Callable[[], Any]] = {
        "string": arrow.string, "boolean": arrow.bool_, "integer": arrow.int64, "number": arrow.float64,
    }  # fmt: skip
    return plain[kind]()


def _with_pairs(row: Row) -> Row:
    """Return a row whose objects of free names (``timings_ms``, ``shares``) are pairs, as Arrow takes a map."""
    return {name: list(value.items()) if isinstance(value, dict) else value for name, value in row.items()}
