"""Times that were measured, kept as JSON, and docs/performance.md, which shows them.

    python benchmarks/measured.py [--out docs/performance.md]

writes the page and its drawings from benchmarks/results/*.json and measures nothing. A benchmark prints its tables by
:meth:`Table.markdown`, and ``--json FILE`` keeps them. Every table is of variants that ran in turn in one sitting.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import plots

from deploykit.runtime.machine import processor_name, versions

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"
HEAD = """# How long it takes

<!-- Written by benchmarks/measured.py from benchmarks/results. What the numbers show is in benchmarks/README.md. -->

Each table is of one sitting on one machine, with the variants in turn: compare within a table, and by the ratios, which
are in brackets. [The page of the benchmarks](../benchmarks/README.md) says what was compared and what the numbers show.
Some benchmarks are there alone; [accuracy.md](accuracy.md) has the speeds of precisions. `deploykit bench` measures
your models on your machine ([benchmarks.md](benchmarks.md)).

"""
DRAWINGS = "images/performance"  # below the page
OVERVIEW = "ratios"
FEWEST_POINTS = 3  # of a line


@dataclass(frozen=True)
class Row:
    """A line: its labels, the number in each column, and ratios to the base where they are not those of the numbers.

    Ratios are kept where the numbers are rounded and the ratios were taken before.
    """

    labels: tuple[str, ...]
    values: dict[str, float]
    ratios: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """Numbers by row and column.

    ``labels``: the titles of the columns before the numbers. ``columns``: titles and how a number is written, with its
    unit. ``base``: the column that the others are divided by; empty: none.
    """

    title: str
    labels: tuple[str, ...]
    columns: dict[str, str]
    rows: tuple[Row, ...]
    base: str = ""
    ratio: str = ".2f"

    def ratio_of(self, row: Row, column: str) -> float:
        """A number's ratio to that in the column of the base."""
        kept = row.ratios.get(column)
        return row.values[column] / row.values[self.base] if kept is None else kept

    def markdown(self) -> str:
        """The table in Markdown; a cell is a number and, in brackets, its ratio to the base."""
        titles = (*self.labels, *self.columns)
        lines = [titles, ("---",) * len(titles)]
        lines += [(*row.labels, *(self._cell(row, column) for column in self.columns)) for row in self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"

    def _cell(self, row: Row, column: str) -> str:
        if column not in row.values:
            return ""
        text = self.columns[column].format(row.values[column])
        if not self.base or column == self.base:
            return text
        return f"{text} ({self.ratio_of(row, column):{self.ratio}})"

    def drawing(self) -> str:
        """The columns as lines over the rows (SVG), where rows are numbers; else empty."""
        labels = [row.labels[0] for row in self.rows]
        whole = all(row.values.keys() == self.columns.keys() for row in self.rows)
        if len(self.labels) != 1 or len(labels) < FEWEST_POINTS or not whole or not all(map(_is_number, labels)):
            return ""
        columns = {column: [row.values[column] for row in self.rows] for column in self.columns}
        return plots.lines(labels, columns, self.labels[0], self.title.rpartition(", ")[2])

    def ranges(self) -> dict[str, tuple[float, float]]:
        """The smallest and the largest ratio of each column but the base."""
        found = {}
        for column in self.columns if self.base else ():
            if column != self.base:
                ratios = [self.ratio_of(row, column) for row in self.rows if column in row.values]
                found[column] = (min(ratios), max(ratios))
        return found


@dataclass(frozen=True)
class Result:
    """The tables of a sitting and their conditions. ``how`` says what the numbers are: medians, rounds, what else ran.

    ``kept``: how the numbers came here.
    """

    title: str
    script: str
    date: str
    machine: str
    versions: str
    how: str
    kept: str
    tables: tuple[Table, ...]

    def json(self) -> str:
        """The text of the file, one row of a table a line."""
        facts = asdict(self)
        tables = []
        for table in facts.pop("tables"):
            rows = ",\n".join(f"   {json.dumps(row)}" for row in table.pop("rows"))
            tables.append(f'  {json.dumps(table)[:-1]}, "rows": [\n{rows}\n  ]}}')
        head, body = json.dumps(facts, indent=1).removesuffix("\n}"), ",\n".join(tables)
        return f'{head},\n "tables": [\n{body}\n ]\n}}\n'


def medians(times: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The median of each variant, to a tenth of a microsecond if times are in ms."""
    return {name: round(statistics.median(values), 4) for name, values in times.items()}


def show(tables: Sequence[Table], title: str, script: str, how: str, file: Path | None, machine: str = "") -> None:
    """Print tables that were measured now on this machine, and keep them if there is a file to keep them in."""
    about = ", ".join(f"{name} {version}" for name, version in versions().items())
    date = datetime.now(UTC).date().isoformat()
    where = machine or processor_name()
    found = Result(title, script, date, where, about, how, "The benchmark wrote the numbers.", tuple(tables))
    print(section_of(found))
    if file is not None:
        file.write_text(found.json())


def result_of(text: str) -> Result:
    """A result from the text of its file."""
    facts = json.loads(text)
    tables = []
    for table in facts.pop("tables"):
        rows = tuple(Row(tuple(row["labels"]), row["values"], row["ratios"]) for row in table.pop("rows"))
        tables.append(Table(**{**table, "labels": tuple(table["labels"]), "rows": rows}))
    return Result(**facts, tables=tuple(tables))


def page_of(results: Sequence[Result]) -> str:
    """The whole page: the ratios of all tables, then each result with its conditions."""
    lines = ["| | divided by | ratios, smallest to largest | machine | date |", "|---|---|---|---|---|"]
    for result in results:
        for table in result.tables:
            told = "; ".join(f"{column} {_range(*ends, table.ratio)}" for column, ends in table.ranges().items())
            if told:
                lines.append(f"| {table.title} | {table.base} | {told} | {result.machine} | {result.date} |")
    overview = f"![Ratios of all tables, smallest to largest, on a logarithmic axis]({DRAWINGS}/{OVERVIEW}.svg)\n"
    return "\n".join([HEAD + "\n".join(lines) + "\n", overview, *map(section_of, results)])


def drawings_of(results: Sequence[Result]) -> dict[str, str]:
    """The drawings of the page (SVG) by their names, without suffix."""
    found = {}
    ratios: dict[str, dict[str, tuple[float, float]]] = {}
    for result in results:
        for number, table in enumerate(result.tables):
            if text := table.drawing():
                found[_name(result, number)] = text
            ends = {f"{column} / {table.base}".replace("`", ""): ends for column, ends in table.ranges().items()}
            if ends:
                ratios.setdefault(table.title, {}).update(ends)
    return found | {OVERVIEW: plots.ranges(ratios)}


def write_page(folder: Path, page: Path) -> Path:
    """Write the page, and its drawings below it, from the results in a folder; drawings of other ones are removed."""
    results = [result_of(file.read_text()) for file in sorted(folder.glob("*.json"))]
    page.write_text(page_of(results))
    images = page.parent / DRAWINGS
    images.mkdir(parents=True, exist_ok=True)
    drawings = drawings_of(results)
    for file in images.glob("*.svg"):
        if file.stem not in drawings:
            file.unlink()
    for name, text in drawings.items():
        (images / f"{name}.svg").write_text(text)
    return page


def _name(result: Result, number: int) -> str:
    return f"{re.sub(r'[^a-z0-9]+', '-', result.title.lower()).strip('-')}-{number + 1}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def section_of(result: Result) -> str:
    """A result's tables under its title and conditions."""
    parts = [
        f"## {result.title}\n",
        f"`python benchmarks/{result.script}`, {result.date}, on {result.machine}: {result.versions}.",
        f"{result.how} {result.kept}\n",
    ]
    for number, table in enumerate(result.tables):
        parts.append(f"**{table.title}**\n\n{table.markdown()}")
        if table.drawing():
            parts.append(f"![{table.title}, over {table.labels[0]}]({DRAWINGS}/{_name(result, number)}.svg)\n")
    return "\n".join(parts)


def _range(low: float, high: float, form: str) -> str:
    ends = f"{low:{form}}", f"{high:{form}}"
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=PAGE)
    args = parser.parse_args()
    write_page(RESULTS, args.out)


if __name__ == "__main__":
    main()
