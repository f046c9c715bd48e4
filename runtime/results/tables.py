"""Results as tables: comma-separated values, and data frames of pandas or polars."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from deploykit.errors import MissingDependencyError, UsageError

__all__ = ["Library", "Rows", "csv_text", "data_frame", "encoded", "import_package"]

Library = Literal["pandas", "polars"]
LIBRARIES: tuple[Library, ...] = ("pandas", "polars")


@dataclass(frozen=True)
class Rows:
    """Rows of one table: column name -> type of its values, and the values of each row."""

    columns: Mapping[str, type]
    values: Sequence[Sequence[Any]]

    def after(self, same: Mapping[str, Any]) -> Rows:
        """Return the rows with columns before them that have one value in all rows: text, or a number or None."""
        types = {name: str if isinstance(value, str) else int for name, value in same.items()}
        return Rows({**types, **self.columns}, [[*same.values(), *row] for row in self.values])


def csv_text(rows: Rows, *, header: bool = True) -> str:
    """Return the rows as RFC 4180 has them, but with line feeds alone; None is an empty field."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if header:
        writer.writerow(rows.columns)
    writer.writerows(rows.values)
    return text.getvalue()


def encoded(text: str) -> bytes:
    """Return text as UTF-8; bytes of a file name that are no text stay what they are."""
    return text.encode("utf-8", "surrogateescape")


def data_frame(rows: Rows, library: Library | None = None) -> Any:
    """Return the rows as a data frame with typed columns, also where there is no row.

    Args:
        rows: the rows.
        library: ``pandas`` or ``polars``; None: pandas if it is installed, else polars.

    Raises:
        UsageError: another library. MissingDependencyError: it is not installed.
    """
    if library not in (None, *LIBRARIES):
        raise UsageError(f"a data frame is of pandas or polars, got {library!r}")
    found = import_package(*LIBRARIES) if library is None else import_package(library)
    columns = list(zip(*rows.values, strict=True)) or [()] * len(rows.columns)
    if found.__name__ == "polars":
        types = {int: found.Int64, float: found.Float64, str: found.String}
        schema = {name: types[kind] for name, kind in rows.columns.items()}
        return found.DataFrame(dict(zip(rows.columns, columns, strict=True)), schema=schema)
    types = {
        int: "Int64",
        float: "float64",
        str: "object",
    }  # Int64 has a missing value: of a frame, where there is none
    return found.DataFrame(
        {
            name: found.Series(list(values), dtype=types[kind])
            for (name, kind), values in zip(rows.columns.items(), columns, strict=True)
        }
    )


def import_package(*names: str) -> Any:
    """Import the first of some packages that is installed, which nothing else here needs.

    Raises:
        MissingDependencyError: none of them is.
    """
    for name in names:
        try:
            return import_module(name)
        except ImportError as e:
            error = e
    raise MissingDependencyError(
        f"{' or '.join(names)} is required but does not import ({error}): pip install {names[0]}"
    ) from error
