"""Every cell of the support matrix is a test that exists and may run."""

from __future__ import annotations

import pytest

from tests.support import FAMILIES, KINDS, TABLES, Table, needs_of
from tests.test_docs import ROOT


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.title)
def test_every_cell_is_a_test_that_is_not_always_skipped(table: Table) -> None:
    for row, cells in table.rows.items():
        assert set(cells) <= set(table.columns), row
        for column, node in cells.items():
            needs = needs_of(ROOT, node)
            assert needs is not None, f"{row}, {column}: there is no test {node}"
            assert "skip" not in needs, f"{row}, {column}: {node} is always skipped"


def test_a_test_that_does_not_exist_is_found() -> None:
    assert needs_of(ROOT, "tests/test_docs.py::test_unheard_of") is None
    assert needs_of(ROOT, "tests/test_unheard_of.py::test") is None
    assert needs_of(ROOT, "tests/export/test_exports.py::test_every_family_exports_and_agrees[unheard_of]") is None
    assert needs_of(ROOT, "tests/export/test_exports.py::test_every_family_exports_and_agrees[yolov5n]") == set()
    assert needs_of(ROOT, "tests/gpu/test_engines.py::test_it_agrees_with_the_onnx_file") == {"gpu"}


def test_every_family_and_every_kind_has_a_row() -> None:
    from deploykit.models.registry import NAMES
    from deploykit.spec import OUTPUTS

    named = " ".join(FAMILIES.rows).lower().replace("-", "")
    assert not [name for name in NAMES if name.partition(".")[0] not in named]
    ours = {kind for kind, output in OUTPUTS.items() if output.__module__.startswith("deploykit.")}
    assert {row.split(" (")[0] for row in KINDS.rows} >= ours
