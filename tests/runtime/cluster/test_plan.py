"""The plan of a run: which images, in which parts, and how two plans differ."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.errors import NotFoundError, UsageError
from deploykit.runtime.cluster.plan import Plan, difference, items_of
from deploykit.runtime.sources.opening import open_sources
from deploykit.strict_json import parse_json
from tests.cluster_workers import planned

NAMES = st.lists(st.text(max_size=8), min_size=1, max_size=30, unique=True)


def opened(*words: str | Path) -> list[object]:
    return [source for word in words for source in open_sources(str(word))]


@given(names=NAMES, per_part=st.integers(1, 12))
def test_every_image_is_in_exactly_one_part(names: list[str], per_part: int) -> None:
    plan = planned(names, per_part)
    parts = [plan.part(number) for number in range(plan.parts)]
    assert [item for part in parts for item in part] == list(plan.items)
    assert all(len(part) == per_part for part in parts[:-1])
    assert 1 <= len(parts[-1]) <= per_part


@given(names=NAMES, per_part=st.integers(1, 12))
def test_the_file_of_a_plan_is_strict_json_in_ascii_and_the_same_each_time(names: list[str], per_part: int) -> None:
    plan = planned(names, per_part)
    assert plan.data == planned(names, per_part).data
    head, *parts = [parse_json(line) for line in plan.data.decode("ascii").splitlines()]
    assert (head["images"], head["per_part"]) == (len(names), per_part)
    assert [name for part in parts for name in part["names"]] == names


@given(names=NAMES, other=NAMES)
def test_plans_of_other_images_are_other_plans(names: list[str], other: list[str]) -> None:
    one, two = planned(names, 3), planned(other, 3)
    assert (one.data == two.data) == (names == other)
    if names != other:
        said = difference(one.data, two.data)
        assert "images" in said  # gone, new, or in another order


def test_a_file_is_known_by_its_size_and_time_and_named_as_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("b.png").write_bytes(b"12345")
    os.utime("b.png", ns=(7, 11))
    (item,) = items_of(opened("b.png"))  # type: ignore[arg-type]  # images all
    assert (item.name, item.source, item.size, item.modified_ns) == ("b.png", str(tmp_path / "b.png"), 5, 11)
    assert item.is_unchanged()
    os.utime("b.png", ns=(7, 12))
    assert not item.is_unchanged()
    Path("b.png").unlink()
    assert not item.is_unchanged()


def test_an_image_that_is_named_twice_is_taken_once(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
    items = items_of(opened(tmp_path / "b.png", tmp_path, tmp_path / "*.png"))  # type: ignore[arg-type]  # images all
    assert [Path(item.name).name for item in items] == ["b.png", "a.png"]


@pytest.mark.skipif(os.name == "nt", reason="names are text on Windows")
def test_a_name_that_is_no_text_is_shown_with_escapes(tmp_path: Path) -> None:
    place = os.fsencode(tmp_path) + b"/\xe9.png"
    with open(place, "wb"):  # noqa: PTH123  (a name of bytes)
        pass
    (item,) = items_of(opened(tmp_path))  # type: ignore[arg-type]  # images all
    assert item.name == f"{tmp_path}/\\xe9.png"
    assert item.is_unchanged()
    assert Plan({}, [item], 1).data


def test_a_file_that_is_gone_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    sources = opened(tmp_path)
    (tmp_path / "a.png").unlink()
    with pytest.raises(NotFoundError, match=r"a\.png, but it cannot be read: No such file"):
        items_of(sources)  # type: ignore[arg-type]  # images all


def test_a_plan_needs_images_and_parts_with_some() -> None:
    with pytest.raises(UsageError, match="no image"):
        Plan({}, [], 3)
    with pytest.raises(UsageError, match="at least 1 image, got 0"):
        planned(["a"], 0)


def test_what_differs_is_said() -> None:
    plan = planned(["a", "b", "c"], 2)

    def said(other: Plan) -> str:
        return difference(plan.data, other.data)

    assert (
        said(replace(plan, about={**plan.about, "model": "n"}))
        == "it is of another model, or this one has changed since"
    )
    assert said(replace(plan, about={**plan.about, "options": {"conf": 0.5}})) == "--conf was not given and is 0.5"
    assert said(replace(plan, about={**plan.about, "format": "parquet"})) == "format was jsonl and is parquet"
    assert said(replace(plan, per_part=3)) == "parts had 2 images and now have 3"
    assert said(planned(["a", "b"], 2)) == "c was among the images and is not any more"
    assert said(planned(["a", "b", "c", "d"], 2)) == "d is new among the images"
    assert said(planned(["b", "a", "c"], 2)) == "its images are in another order"
    changed = replace(plan.items[1], size=3)
    assert said(replace(plan, items=[plan.items[0], changed, plan.items[2]])) == "b has changed since"
    assert difference(b"{", plan.data).startswith("its plan is damaged (")
    assert difference(b"[]\n", plan.data) == "its plan is damaged (it is no plan)"
