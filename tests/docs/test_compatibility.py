"""docs/compatibility.md is what the kept outcomes of the matrix give, and its cells cover the extras and Pythons."""

from __future__ import annotations

import re
import tomllib

from scripts.matrix.cells import CELLS, NOT_RUN, PYTHONS, checks_of
from scripts.matrix.checks import CHECKS
from scripts.matrix.environments import Outcome
from scripts.matrix.page import PAGE, kept, page_of
from tests.test_docs import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OF_DEVELOPERS = {"dev", "docs"}


def test_the_page_is_what_the_kept_outcomes_give() -> None:
    assert PAGE.read_text() == page_of(kept()), "python -m scripts.matrix --page writes it"


def test_each_extra_has_a_cell_or_a_reason_why_not() -> None:
    in_cells = {extra for cell in CELLS for extra in cell.extras}
    assert in_cells | set(NOT_RUN) == set(PROJECT["optional-dependencies"]) - OF_DEVELOPERS
    assert not in_cells & set(NOT_RUN)


def test_each_check_is_wanted_somewhere_and_exists() -> None:
    assert {name for cell in CELLS for name in checks_of(cell)} == set(CHECKS)
    names = [cell.name for cell in CELLS]
    assert len(set(names)) == len(names)
    assert set(kept()) <= set(names)


def test_a_python_is_promised_only_where_something_ran_on_it() -> None:
    promised = {each.rpartition(" ")[2] for each in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", each)}
    ran = {cell.python for cell in CELLS if cell.name in kept() and not kept()[cell.name].failed.get("install")}
    assert promised <= set(PYTHONS)
    assert "3.11" in ran
    if "3.14" in promised:
        assert "3.14" in ran


def test_what_failed_is_shown_with_its_words() -> None:
    cell = CELLS[0]
    page = page_of({cell.name: Outcome("2026-01-02", "3.11.9", {"numpy": "2.0"}, ("import",), {"half": "it broke"})})
    wanted = len(checks_of(cell))
    assert f"| {cell.name} | 3.11.9 | 2.0 |" in page
    assert f"1 of {wanted} checks; fails: half [1]" in page
    assert f"* [1] {cell.name}, half: it broke" in page
    assert f"| {CELLS[1].name} | {CELLS[1].python} |" in page
    assert page.count("not run yet") == len(CELLS) - 1
