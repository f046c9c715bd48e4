"""Annotation files: what is read of them, what is refused, and how a model's labels meet their categories."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploykit.errors import DataError, NotFoundError
from deploykit.runtime.datasets.coco import (
    Category,
    CategoryMap,
    CocoData,
    match_keypoints,
    match_labels,
    read_coco,
)
from deploykit.spec import COCO_KEYPOINTS
from tests.coco_folder import BLUE_ID, RED_ID, Folder, write_folder


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return write_folder(tmp_path / "cells", scale=1)


def _categories(*names: str) -> tuple[Category, ...]:
    return tuple(Category(10 * i + 1, name) for i, name in enumerate(names))


def test_annotations_are_numbered_anew_and_images_keep_their_order(folder: Folder) -> None:
    data = read_coco(folder.data)
    assert [a["id"] for a in data.annotations] == [1, 2, 3, 4, 5, 6]
    assert [p.id for p in data.images] == [1000, 999, 998, 997]
    assert data.images[0].size == (64, 64)
    assert [(c.id, c.name, c.keypoints) for c in data.categories] == [
        (BLUE_ID, "Blue", ("centre",)),
        (RED_ID, "red", ("centre",)),
    ]
    assert data.annotations[0]["bbox"] == [8, 16, 8, 8]
    assert data.keypoint_counts([RED_ID]) == {1}
    assert data.notes == ()


def test_what_a_file_may_leave_out(folder: Folder) -> None:
    first, second, *_ = folder.coco["annotations"]
    for key in ("id", "area", "iscrowd", "num_keypoints"):
        del first[key]
    del second["keypoints"], second["num_keypoints"]
    del folder.coco["images"][0]["width"]
    data = read_coco(folder.save().data)
    assert data.images[0].size is None
    assert data.annotations[0] == {
        "id": 1,
        "image_id": 1000,
        "category_id": RED_ID,
        "bbox": [8, 16, 8, 8],
        "area": 64,
        "iscrowd": 0,
        "keypoints": [12, 20, 2],
        "num_keypoints": 1,
    }
    assert "keypoints" not in data.annotations[1]
    assert data.notes == ("1 annotations have no area: width times height of their box is used instead",)


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.pop("annotations"), "it has no annotations"),
        (lambda c: (c.pop("images"), c.update(categories={})), "it has no images and no categories"),
        (lambda c: c.update(images=[]), "the list images is empty"),
        (lambda c: c.update(categories=[]), "the list categories is empty"),
        (lambda c: c["images"][1].update(id=1000), "two images share an id"),
        (lambda c: c["images"][1].update(id="7"), r"images\[1\].id must be of type int, got '7'"),
        (lambda c: c["images"][1].update(id=2**60), r"images\[1\].id must be at most"),
        (lambda c: c["images"][1].update(height=True), r"images\[1\].height must be of type int, got True"),
        (lambda c: c["images"][2].pop("file_name"), r"images\[2\].file_name must be of type str, got nothing"),
        (lambda c: c["images"].append(7), r"images\[4\].file_name must be of type str, got nothing"),
        (lambda c: c["categories"][0].update(name="red"), "two categories share a name"),
        (lambda c: c["categories"][0].update(keypoints=1), r"categories\[0\].keypoints must be of type list, got 1"),
        (
            lambda c: c["annotations"][3].update(image_id=5),
            r"annotations\[3\] refers to image 5, which the file does not",
        ),
        (lambda c: c["annotations"][0].update(category_id=9), r"annotations\[0\] refers to category 9, which the file"),
        (
            lambda c: c["annotations"][0].update(bbox=[1, 2, 3]),
            r"annotations\[0\].bbox must be \[x, y, width, height\]",
        ),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, -3, 4]), "must be .x, y, width, height., got"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, "3", 4]), "bbox must be finite numbers"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, float("nan"), 4]), "bbox must be finite numbers"),
        (
            lambda c: c["annotations"][0].update(keypoints=[1, 2]),
            "keypoints must be x, y, v per keypoint, got 2 numbers",
        ),
        (lambda c: c["annotations"].append(None), r"annotations\[6\].image_id must be of type int, got nothing"),
    ],
)
def test_what_is_not_coco_is_refused_by_its_place(folder: Folder, change: Change, said: str) -> None:
    change(folder.coco)
    with pytest.raises(DataError, match=said):
        read_coco(folder.save().data)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "does not parse"),
        (b"\xff\xfe\x00", "does not parse"),
        (b'{"images": [', "does not parse"),
        (b"[" * 100_000, "does not parse"),
        (b'[{"image_id": 1}]', r"it holds a list \(detections, perhaps\?\)"),
        (b"7", "it holds a int"),
    ],
)
def test_what_is_not_json_is_refused(tmp_path: Path, text: bytes, said: str) -> None:
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(DataError, match=said):
        read_coco(tmp_path / "a.json")


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="an annotation file was expected at"):
        read_coco(tmp_path / "none.json")
    with pytest.raises(DataError, match="is a folder"):
        read_coco(tmp_path)


def test_labels_meet_categories_by_name() -> None:
    found = match_labels(("red", "dark_Blue"), 2, _categories("dark blue", "Red"))
    assert found == CategoryMap((11, 1), "name")


def test_what_only_one_side_has_is_left_out_and_reported() -> None:
    few = match_labels(("red",), 1, _categories("green", "red", "blue"))
    assert (few.ids, few.category_ids) == ((11,), [11])
    assert few.notes == (
        "the metrics are over the 1 of 3 categories that the model knows; it does not know green, blue",
    )
    many = match_labels(tuple("abcdefgh"), 8, _categories("b"))
    assert (many.ids, many.category_ids) == ((None, 1, *[None] * 6), [1])
    assert many.notes == (
        "what the model finds of a, c, d, e, f and 2 more does not count: the annotations have no such category",
    )


def test_other_names_are_matched_by_position_where_nothing_speaks_against_it() -> None:
    categories = (Category(9, "couch"), Category(4, "cat"), Category(5, "tv"))  # positions are those of the ids
    found = match_labels(("cat", "tvmonitor", "sofa"), 3, categories)
    assert (found.ids, found.by) == ((4, 5, 9), "position")
    assert "names differ: 'tvmonitor' is 'tv', 'sofa' is 'couch'" in found.notes[0]
    nameless = match_labels((), 3, categories)
    assert (nameless.ids, nameless.by) == ((4, 5, 9), "position")
    assert "the model names no classes" in nameless.notes[0]
    twice = match_labels(("cat", "cat", "cat"), 3, categories[:0] + _categories("a", "b", "c"))
    assert twice.by == "position"


@pytest.mark.parametrize(
    ("classes", "count", "names", "said"),
    [
        (("cat", "sofa"), 2, ("couch", "cat"), "the model has 2 .cat, sofa., the annotations 2 .couch, cat."),
        (("cat", "sofa", "dog"), 3, ("cat", "couch"), "do not fit the annotations' categories: the model has 3"),
        ((), 2, ("a", "b", "c"), "the model has 2 .without names., the annotations 3"),
        ((), 0, ("a",), "does not name its classes"),
    ],
)
def test_classes_that_do_not_fit_are_refused(
    classes: tuple[str, ...], count: int, names: tuple[str, ...], said: str
) -> None:
    with pytest.raises(DataError, match=said):
        match_labels(classes, count, _categories(*names))


def _pose(folder: Folder, names: list[str]) -> tuple[CocoData, CategoryMap]:
    for category in folder.coco["categories"]:
        category["keypoints"] = names
    for annotation in folder.coco["annotations"]:
        annotation["keypoints"] = [1, 2, 2] * len(names)
    return read_coco(folder.save().data), CategoryMap((RED_ID, BLUE_ID), "name")


def test_keypoints_are_matched_by_name(folder: Folder) -> None:
    data, labels = _pose(folder, [n.replace(" ", "_") for n in COCO_KEYPOINTS.names])
    assert match_keypoints(COCO_KEYPOINTS.names, data, labels) == (list(range(17)), ())
    data, labels = _pose(folder, ["c", "A", "b"])
    order, notes = match_keypoints(("a", "b", "c"), data, labels)
    assert order == [2, 0, 1]
    assert notes == ("the annotations have the keypoints in another order: matched by name",)
    order, notes = match_keypoints(("a", "b", "other"), data, labels)
    assert order == [0, 1, 2]
    assert "by position" in notes[0]


def test_keypoints_without_names_are_matched_by_position(folder: Folder) -> None:
    data, labels = _pose(folder, ["a", "b"])
    for category in folder.coco["categories"]:
        del category["keypoints"]
    data = read_coco(folder.save().data)
    order, notes = match_keypoints(("a", "b"), data, labels)
    assert order == [0, 1]
    assert "by position" in notes[0]


def test_another_number_of_keypoints_is_refused(folder: Folder) -> None:
    data, labels = _pose(folder, ["a", "b"])
    with pytest.raises(DataError, match=r"the model has 3 keypoints, the annotations in .* have 2"):
        match_keypoints(("a", "b", "c"), data, labels)
    for entry in (*folder.coco["categories"], *folder.coco["annotations"]):
        del entry["keypoints"]
    with pytest.raises(DataError, match="has no keypoints"):
        match_keypoints(("a", "b"), read_coco(folder.save().data), labels)


@pytest.mark.data
def test_coco_itself_is_read(shared: Path) -> None:
    annotations = shared / "data" / "annotations" / "coco-mini"
    data = read_coco(annotations / "instances_val2017.json")
    assert (len(data.images), len(data.annotations), len(data.categories)) == (79, 624, 80)
    assert sum(a["iscrowd"] for a in data.annotations) == 5
    names = tuple(c.name for c in data.categories)
    found = match_labels(names, 80, data.categories)
    assert (found.by, found.notes, found.ids[-1]) == ("name", (), 90)
    raw = json.loads((annotations / "person_keypoints_val2017.json").read_text())
    people = read_coco(annotations / "person_keypoints_val2017.json")
    assert [a["num_keypoints"] for a in people.annotations] == [a["num_keypoints"] for a in raw["annotations"]]
    assert match_keypoints(COCO_KEYPOINTS.names, people, CategoryMap((1,), "name")) == (list(range(17)), ())


@pytest.mark.parametrize(
    "outline",
    [
        "[[1, 1, -Infinity, 1, 4, 4]]",
        "[[1, NaN, 1, 1, 4, 4]]",
        '{"size": [8, Infinity], "counts": [0, 64]}',
        f"[[1{'0' * 400}, 1, 2]]",
    ],
)
def test_an_outline_has_finite_numbers(folder: Folder, outline: str) -> None:
    folder.coco["annotations"][1]["segmentation"] = "HERE"
    folder.save()
    text = folder.data.read_text()
    folder.data.write_text(text.replace('"HERE"', outline))
    with pytest.raises(DataError, match=r"annotations\[1\]\.segmentation must have finite numbers"):
        read_coco(folder.data)
    folder.data.write_text(text.replace('"HERE"', "[[1, 1, 4, 1, 4, 4]]"))
    assert read_coco(folder.data).annotations[1]["segmentation"] == [[1, 1, 4, 1, 4, 4]]
