"""data.yaml and label files, in the forms that people have."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.errors import DataError, NotFoundError
from deploykit.runtime.datasets.labels import read_labels
from deploykit.runtime.datasets.yolo import CALIBRATED, EVALUATED, is_yolo, label_file, read_yolo


def write(root: Path, yaml: str, *images: str) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "data.yaml").write_text(yaml)
    for name in images:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root / "data.yaml"


@pytest.mark.parametrize(
    ("yaml", "names"),
    [
        ("names: [no, yes, 'on']\n", ("no", "yes", "on")),  # YAML's own words for false and true
        ("names:\n  1: car\n  0: person\n", ("person", "car")),
        ("nc: 2\nnames: [猫, 1]\n", ("猫", "1")),
        ("nc: 2\n", ("0", "1")),
    ],
)
def test_names_are_texts_in_the_order_of_their_numbers(tmp_path: Path, yaml: str, names: tuple[str, ...]) -> None:
    assert read_yolo(write(tmp_path, f"val: images\n{yaml}", "images/a.jpg")).names == names


@pytest.mark.parametrize(
    ("yaml", "place"),
    [
        ("path: .\nval: images/val\n", "images/val/a.jpg"),
        ("path: sub\nval: images\n", "sub/images/a.jpg"),
        ("val: ../valid/images\n", "valid/images/a.jpg"),  # one labelling service writes a level too many
        ("valid: images\n", "images/deep/a.jpg"),
        ("val: [x, y]\n", "y/a.jpg"),
        ("val: list.txt\n", "images/a.jpg"),
    ],
)
def test_a_split_is_found_where_its_file_says(tmp_path: Path, yaml: str, place: str) -> None:
    file = write(tmp_path / "set", f"{yaml}names: [a]\n", place)
    (file.parent / "x").mkdir()
    (file.parent / "list.txt").write_text(f"./{place}\n\n")
    assert [p.resolve() for p in read_yolo(file.parent).images("val")] == [(file.parent / place).resolve()]


def test_paths_may_be_relative_to_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "config", "val: coco/images\nnames: [a]\n")
    write(tmp_path / "coco", "", "images/a.png")
    monkeypatch.chdir(tmp_path)
    assert [p.name for p in read_yolo(file).images("val")] == ["a.png"]


def test_accuracy_and_ranges_are_measured_on_different_splits(tmp_path: Path) -> None:
    both = read_yolo(write(tmp_path, "train: t\nval: v\nnames: [a]\n", "t/a.jpg", "v/a.jpg"))
    assert (both.split(*EVALUATED), both.split(*CALIBRATED)) == ("val", "train")
    only = read_yolo(write(tmp_path, "val: v\nnames: [a]\n"))
    assert (only.split(*EVALUATED), only.split(*CALIBRATED)) == ("val", "val")
    with pytest.raises(DataError, match="no split test, only val"):
        only.split("test")


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("[1, 2]", "found no mapping"),
        ("a: [", "does not parse"),
        ("val: images\n", "it has no names"),
        ("names: [a]\n", "it has no train, val or test"),
        ("names: [a, a]\nval: images\n", "two classes are called 'a'"),
        ("names: {1: a}\nval: images\n", "the numbers 0 to 0"),
        ("names: [a]\nnc: 3\nval: images\n", "nc is 3, but there are 1 names"),
        ("names: [a]\nval: images\nkpt_shape: [5]\n", "kpt_shape must be"),
        ("names: [a]\nval: {x: y}\n", "must be a path"),
    ],
)
def test_what_describes_no_data_set_is_refused(tmp_path: Path, yaml: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_yolo(write(tmp_path, yaml, "images/a.jpg"))


def test_a_missing_folder_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"names imgs for its split val.*did you mean images\?"):
        read_yolo(write(tmp_path, "val: imgs\nnames: [a]\n", "images/a.jpg"))


def test_nothing_in_the_file_is_constructed_or_run(tmp_path: Path) -> None:
    yaml = f"names: [a]\nval: images\ndownload: !!python/object/apply:os.mkdir ['{tmp_path}/made']\n"
    read_yolo(write(tmp_path, yaml, "images/a.jpg"))
    assert not (tmp_path / "made").exists()


def test_what_a_data_set_is_called(tmp_path: Path) -> None:
    assert is_yolo("x.yaml")
    assert not is_yolo(tmp_path)
    write(tmp_path, "")
    assert is_yolo(tmp_path)
    assert not is_yolo(tmp_path / "data.json")


@pytest.mark.parametrize(
    ("image", "labels"),
    [
        ("a/images/b.jpg", "a/labels/b.txt"),
        ("images/images/x/b.c.png", "images/labels/x/b.c.txt"),
        ("photos/b.jpg", "photos/b.txt"),
        ("images.jpg", "images.txt"),
    ],
)
def test_the_labels_of_an_image_are_beside_it(image: str, labels: str) -> None:
    assert label_file(Path(image)) == Path(labels)


def labels_of(tmp_path: Path, text: str, classes: int = 3, shape: tuple[int, int] | None = None) -> list:
    (tmp_path / "a.txt").write_text(text)
    return read_labels(tmp_path / "a.txt", classes, shape)


def test_boxes_outlines_and_keypoints(tmp_path: Path) -> None:
    box, outline = labels_of(tmp_path, "2 0.5 0.4 0.2 0.1\n\n0 0.1 0.2 0.5 0.2 0.3 0.6\n2 0.5 0.4 0.2 0.1\n")
    assert (box.label, box.box.tolist(), box.outline) == (2, [0.5, 0.4, 0.2, 0.1], None)
    np.testing.assert_allclose(outline.box, [0.3, 0.4, 0.4, 0.4])
    assert outline.outline.shape == (3, 2)
    (three,) = labels_of(tmp_path, "0 .5 .5 .2 .2 .4 .4 2 0 0 0", shape=(2, 3))
    assert three.keypoints.tolist() == [[0.4, 0.4, 2], [0, 0, 0]]
    (two,) = labels_of(tmp_path, "0 .5 .5 .2 .2 .4 .4 0 0", shape=(2, 2))
    assert two.keypoints.tolist() == [[0.4, 0.4, 2], [0, 0, 0]], "the origin is not labelled"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 0.5 0.5 0.2 0.2\n3 .5 .5 .1 .1", "line 2: the class must be a number from 0 to 2, got 3"),
        ("0.5 .5 .5 .1 .1", "got 0.5"),
        ("nan .5 .5 .1 .1", "got nan"),
        ("0 320 200 50 60", r"from 0 to 1, got 320: are these pixels\?"),
        ("0 nan .5 .1 .1", "got nan"),
        ("0 .5 .5 .1", "got 4 numbers"),
        ("0 .5 .5 .1 .1 .2", "got 6 numbers"),
        ("cat .5 .5 .1 .1", "expected numbers, got 'cat"),
    ],
)
def test_a_wrong_label_is_an_error_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        labels_of(tmp_path, text)


def test_keypoints_that_do_not_fit_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="that is 11 numbers; got 5"):
        labels_of(tmp_path, "0 .5 .5 .1 .1", shape=(2, 3))


@given(st.binary(max_size=60))
def test_any_bytes_are_labels_or_a_data_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "any.txt"
    file.write_bytes(data)
    with contextlib.suppress(DataError):
        assert all(label.label in (0, 1) for label in read_labels(file, 2))


def test_a_number_without_end_is_no_number_of_a_class(tmp_path: Path) -> None:
    file = write(tmp_path, f"val: images\nnames:\n  ? {'9' * 5000}\n  : a\n", "images/a.jpg")
    with pytest.raises(DataError, match="names must have the numbers 0 to 0"):
        read_yolo(file)
