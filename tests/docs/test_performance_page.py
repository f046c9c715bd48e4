"""docs/performance.md shows the numbers that are kept, and these hold together."""

from __future__ import annotations

import functools
import itertools
import re
import sys
from importlib import util
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.test_docs import ROOT

BENCHMARKS = ROOT / "benchmarks"
FILES = sorted((BENCHMARKS / "results").glob("*.json"))


@functools.cache
def module() -> Any:
    """benchmarks/measured.py: the benchmarks are run and import one another by name."""
    if str(BENCHMARKS) not in sys.path:
        sys.path.append(str(BENCHMARKS))
    spec = util.spec_from_file_location("measured", BENCHMARKS / "measured.py")
    assert spec is not None
    assert spec.loader is not None
    found = sys.modules[spec.name] = util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture(scope="module")
def measured() -> Any:
    return module()


def test_the_page_is_what_the_kept_numbers_give(measured: Any) -> None:
    assert FILES
    shown = (ROOT / "docs" / "performance.md").read_text()
    assert shown == measured.page_of([measured.result_of(file.read_text()) for file in FILES]), (
        "python benchmarks/measured.py writes it"
    )


def test_the_drawings_are_those_of_the_kept_numbers(measured: Any) -> None:
    shown = {file.stem: file.read_text() for file in (ROOT / "docs" / measured.DRAWINGS).glob("*.svg")}
    assert shown == measured.drawings_of([measured.result_of(file.read_text()) for file in FILES]), (
        "python benchmarks/measured.py writes them"
    )
    linked = re.findall(r"\]\(images/performance/([\w-]+)\.svg\)", (ROOT / "docs" / "performance.md").read_text())
    assert sorted(linked) == sorted(shown)
    for text in shown.values():
        ElementTree.fromstring(text)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_kept_result_says_what_it_depends_on(measured: Any, file: Path) -> None:
    result = measured.result_of(file.read_text())
    assert result.json() == file.read_text()
    assert (BENCHMARKS / result.script.split()[0]).is_file()
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", result.date)
    assert "Python 3." in result.versions
    assert result.machine
    assert re.search(r"\brounds\b", result.how)
    assert result.tables


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_kept_ratios_are_those_of_the_kept_numbers(measured: Any, file: Path) -> None:
    """As far as the decimals go with which both are written: a ratio may have been taken before they were cut."""
    for table in measured.result_of(file.read_text()).tables:
        for row in table.rows:
            assert set(row.values) <= set(table.columns)  # what a row was not measured for stays empty
            assert not table.base or table.base in row.values
            for column, ratio in row.ratios.items():
                least, most = ends(row.values[column], table.columns[column])
                base_least, base_most = ends(row.values[table.base], table.columns[table.base])
                low, high = ends(ratio, f"{{:{table.ratio}}}")
                assert low <= most / base_least, (row, column)
                assert high >= least / base_most, (row, column)


def ends(value: float, form: str) -> tuple[float, float]:
    """The smallest and the largest number that is written like this one."""
    decimals = re.search(r"\.(\d)f", form)
    half = 0.5 * 10 ** -int(decimals[1]) if decimals else 0.0
    return value - half - 1e-9, value + half + 1e-9


numbers = st.floats(0.001, 1e4)


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=5))
def test_what_is_kept_is_read_back_and_its_range_holds_every_ratio(pairs: list[tuple[float, float]]) -> None:
    kept = module()
    rows = tuple(kept.Row((f"row {i}",), {"a": a, "b": b}) for i, (a, b) in enumerate(pairs))
    table = kept.Table("a and b", ("",), {"a": "{:.2f}", "b": "{:.2f}"}, rows, "a")
    result = kept.Result("t", "nms.py", "2026-01-01", "m", "Python 3.11", "2 rounds.", "k", (table,))
    assert kept.result_of(result.json()) == result
    low, high = table.ranges()["b"]
    assert all(low <= b / a <= high for a, b in pairs)
    assert f"| row 0 | {pairs[0][0]:.2f} | {pairs[0][1]:.2f} ({pairs[0][1] / pairs[0][0]:.2f}) |" in table.markdown()


@given(st.lists(st.tuples(numbers, numbers), min_size=3, max_size=8))
def test_a_table_of_numbers_is_drawn_with_every_value_in_its_frame(pairs: list[tuple[float, float]]) -> None:
    kept = module()
    rows = tuple(kept.Row((str(i),), {"a": a, "b": b}) for i, (a, b) in enumerate(pairs))
    table = kept.Table("a & b, ms", ("px",), {"a": "{:.2f}", "b": "{:.2f}"}, rows, "a")
    drawing = ElementTree.fromstring(table.drawing())
    _, _, width, height = map(float, drawing.attrib["viewBox"].split())
    dots = [one for one in drawing.iter() if one.tag.endswith("circle")]
    assert len(dots) == 2 * len(pairs)
    assert all(0 <= float(one.attrib["cx"]) <= width and 0 <= float(one.attrib["cy"]) <= height for one in dots)
    # The larger of two values lies higher.
    first = [float(one.attrib["cy"]) for one in dots[: len(pairs)]]
    order = sorted(range(len(pairs)), key=lambda i: pairs[i][0])
    assert all(first[a] >= first[b] for a, b in itertools.pairwise(order))
    few = kept.Table("few", ("px",), {"a": "{:.2f}", "b": "{:.2f}"}, rows[:2], "a")
    assert few.drawing() == ""
