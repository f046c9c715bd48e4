"""The page of public reports names tests that there are."""

from __future__ import annotations

import re

import pytest

from tests.test_layering import ROOT

NAMED = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (ROOT / "docs" / "reports.md").read_text())


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_a_test_that_holds_an_outcome_is_there(file: str, name: str) -> None:
    assert (ROOT / file).is_file()
    assert f"def {name}" in (ROOT / file).read_text()


def test_every_outcome_has_a_test() -> None:
    rows = [line for line in (ROOT / "docs" / "reports.md").read_text().splitlines() if line.startswith("| ")]
    assert len(NAMED) == sum(line.count(" | ") == 3 and not line.startswith("| report |") for line in rows)
