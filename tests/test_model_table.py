"""The committed table of models is of the models that there are, and nothing in it failed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from deploykit.models.registry import list_models
from tests.model_table import FACTS, facts, main, published, row_of
from tests.narrow_free import group_of

TABLE = Path(__file__).resolve().parents[1] / "docs" / "models" / "table.md"


def cells() -> list[list[str]]:
    lines = [line for line in TABLE.read_text().splitlines() if line.startswith("| [")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_model_has_its_row_and_the_published_number_of_parameters() -> None:
    names = [name_of(row) for row in cells()]
    assert not set(list_models()) - set(names), "python -m tests.model_table --missing adds their rows"
    assert names == list_models()
    for name, row in zip(names, cells(), strict=True):
        known = published().get(name)
        if known is None:  # ours, or one whose authors tell no number
            assert row[2].replace(",", "").isdecimal()
        else:
            assert row[2] == f"{known:,} = published"


@pytest.mark.slow
def test_the_facts_that_ship_are_those_of_the_models() -> None:
    """So that listing them needs neither torch nor time; ``python -m tests.model_table --facts`` writes them."""
    found, named = facts(), {entry["name"] for entry in json.loads(FACTS.read_text())}
    assert not set(list_models()) - named, "python -m tests.model_table --facts writes them"
    assert json.loads(FACTS.read_text()) == found


def test_nothing_in_it_failed() -> None:
    assert "FAILED" not in "".join(cell for row in cells() for cell in row)
    exported = {name_of(row) for row in cells() if row[4].endswith("of the limit")}
    others = [row for row in cells() if name_of(row) not in exported]
    assert all(row[4] == row[5] == f"as {group_of()[name_of(row)]}" for row in others)
    assert {row[4].removeprefix("as ") for row in others} <= exported


def name_of(row: list[str]) -> str:
    return re.sub(r"\[(.+?)\].*", r"\1", row[0])


def test_a_row_is_made_by_doing_what_it_says(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = row_of("yolov7-tiny")
    expected = next(row for row in cells() if row[0] == found[0])
    assert list(found[:3]) == expected[:3]
    assert found[4].endswith("% of the limit")
    monkeypatch.setattr("sys.argv", ["model_table", "--only", "no-such-model"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
