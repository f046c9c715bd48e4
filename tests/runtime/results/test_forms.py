"""Results in other forms: one line of text, tables, labels of YOLO and LabelMe, objects of supervision and FiftyOne."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.errors import MissingDependencyError, UsageError
from deploykit.runtime.arrays import Array
from deploykit.runtime.postprocess.masks import outline, outlines
from deploykit.runtime.results.dense import Classification, Features, LabelMap, RestoredImage
from deploykit.runtime.results.detection import Result
from deploykit.runtime.results.objects import rounded, short
from deploykit.spec import KeypointSpec

SIZE = (100, 200)
POINTS = KeypointSpec(("nose", "tail, tip"))
NAMES = ("dog", "cat")


def _masks() -> Array:
    masks = np.zeros((2, *SIZE), bool)
    masks[0, 10:40, 20:60] = True
    masks[1, 50:60, 100:120] = masks[1, 70:90, 130:150] = True
    return masks


def _result(**changes: Any) -> Result:
    fields: dict[str, Any] = {
        "boxes": [[20, 10, 60, 40], [100, 50, 150, 90]],
        "scores": [0.9, 0.8],
        "labels": [1, 0],
        "size": SIZE,
        "classes": NAMES,
        "name": "a/pets.jpg",
    }
    return Result(**{**fields, **changes})


def _poses(**changes: Any) -> Result:
    points = [[[30, 20, 0.9], [50, 30, 0.2]], [[110, 60, 0.5], [-1, 60, 0.9]]]
    return _result(keypoints=points, keypoint_spec=POINTS, **changes)


def _oriented() -> Result:
    return _result(rotated=[[40, 25, 30, 10, 0], [195, 90, 20, 10, np.pi / 2]])


def _empty() -> Result:
    return Result(
        np.zeros((0, 4)), [], [], size=SIZE, classes=NAMES, keypoint_spec=POINTS, keypoints=np.zeros((0, 2, 3))
    )


def test_a_result_prints_as_one_line() -> None:
    assert repr(_result()) == "<Result pets.jpg 200x100: dog 1, cat 1>"
    assert repr(_result(frame=7, name="film.mp4")) == "<Result film.mp4 frame 7 200x100: dog 1, cat 1>"
    assert repr(Result(np.zeros((0, 4)), [], [], size=SIZE)) == "<Result 200x100: nothing found>"
    assert repr(_result()[0]) == "<Detection cat 0.900: 20,10 to 60,40>"
    seen = Classification(labels=[1], scores=[0.75], classes=NAMES, size=SIZE)
    assert repr(seen) == "<Classification 200x100: cat 0.750>"
    flat = LabelMap(labels=np.zeros(SIZE), classes=NAMES, size=SIZE)
    assert repr(flat) == "<LabelMap 200x100: dog 100.0 %>"
    assert repr(Features(values=[3, 4], size=SIZE)) == "<Features 200x100: 2 features, of length 5>"


def _read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines()))


def test_csv_has_a_row_per_object_and_columns_for_all_that_a_model_gives() -> None:
    plain = _result().to_csv()
    assert plain.splitlines()[0] == "image,frame,label,name,score,x1,y1,x2,y2"
    assert plain.splitlines()[1] == "a/pets.jpg,,1,cat,0.9,20.0,10.0,60.0,40.0"
    second = _read(_poses(masks=_masks()).to_csv())[1]
    assert (second["mask_area"], second["nose_x"], second["tail, tip_v"]) == ("600", "110.0", "0.9")
    assert _read(_oriented().to_csv())[0]["angle"] == "0.0"
    assert _result(frame=3).to_csv(header=False).startswith("a/pets.jpg,3,1,cat,")
    assert _empty().to_csv().splitlines() == [_poses().to_csv().splitlines()[0]]


def test_csv_of_whole_images() -> None:
    classes = Classification(labels=[1, 0], scores=[0.75, 0.25], classes=NAMES, size=SIZE, name="a.jpg")
    assert classes.to_csv() == "image,frame,rank,label,name,score\na.jpg,,1,1,cat,0.75\na.jpg,,2,0,dog,0.25\n"
    labels = np.zeros(SIZE)
    labels[:75] = 1
    assert LabelMap(labels=labels, classes=NAMES, size=SIZE).to_csv().splitlines()[1:] == [
        ",,1,cat,15000,0.75",
        ",,0,dog,5000,0.25",
    ]
    assert Features(values=[3, 4], size=SIZE).to_csv() == "image,frame,feature_0,feature_1\n,,3.0,4.0\n"
    image = RestoredImage(pixels=np.zeros((*SIZE, 3), np.uint8), size=SIZE)
    assert not image.has_table
    with pytest.raises(UsageError, match="a RestoredImage is an image and has no rows of a table"):
        image.to_csv()


def test_csv_is_written_with_the_bytes_of_names_that_are_no_text(tmp_path: Path) -> None:
    text = _result(name="caf\udce9, 1.jpg").to_csv(tmp_path / "r.csv")
    assert (tmp_path / "r.csv").read_bytes() == text.encode("utf-8", "surrogateescape")
    assert b'\n"caf\xe9, 1.jpg",' in (tmp_path / "r.csv").read_bytes()


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_data_frame_has_typed_columns_also_without_a_row(library: Any) -> None:
    pytest.importorskip(library)
    frame, nothing = _poses().to_df(library), _empty().to_df(library)
    assert type(frame).__module__.startswith(library)
    header = next(csv.reader(_poses().to_csv().splitlines()))
    assert list(frame.columns) == list(nothing.columns) == header
    assert (frame.shape, nothing.shape) == ((2, 15), (0, 15))
    assert list(frame["name"]) == ["cat", "dog"]
    assert [str(kind) for kind in frame.dtypes][1:5] == [str(kind) for kind in nothing.dtypes][1:5]
    assert float(frame["x2"].sum()) == 210


def test_a_data_frame_is_of_pandas_or_of_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("polars")
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert type(_result().to_df()).__module__.startswith("polars")
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(MissingDependencyError, match=r"pandas or polars is required .*: pip install pandas"):
        _result().to_df()
    with pytest.raises(MissingDependencyError, match=r"polars is required .*: pip install polars"):
        _result().to_df("polars")
    with pytest.raises(UsageError, match="a data frame is of pandas or polars, got 'arrow'"):
        _result().to_df("arrow")  # type: ignore[arg-type]


def _filled(polygons: list[Array], scale: int = 8) -> Array:
    """The pixels whose centres lie in polygons, drawn on a canvas ``scale`` times as large."""
    canvas = np.zeros((SIZE[0] * scale, SIZE[1] * scale), np.uint8)
    cv2.fillPoly(canvas, [np.rint(p * scale).astype(np.int32) for p in polygons], 1)
    return canvas[scale // 2 :: scale, scale // 2 :: scale].astype(bool)


def test_outlines_run_along_the_borders_of_pixels() -> None:
    square, pieces = _masks()
    (border,) = outlines(square)
    assert sorted(map(tuple, border)) == [(20, 10), (20, 40), (60, 10), (60, 40)]
    large, small = outlines(pieces)
    assert sorted(map(tuple, large)) == [(130, 70), (130, 90), (150, 70), (150, 90)]
    assert sorted(map(tuple, small)) == [(100, 50), (100, 60), (120, 50), (120, 60)]
    assert np.array_equal(_filled(outlines(pieces)), pieces)
    single = np.zeros(SIZE, bool)
    single[7, 9] = True
    assert sorted(map(tuple, outlines(single)[0])) == [(9, 7), (9, 8), (10, 7), (10, 8)]
    assert outlines(np.zeros(SIZE, bool)) == []


def test_outlines_of_curves_are_at_most_a_pixel_off_and_short() -> None:
    y, x = np.mgrid[:100, :200] + 0.5
    disc = (x - 90) ** 2 + (y - 50) ** 2 < 40**2
    (border,) = outlines(disc)
    distance = np.hypot(*(border - (90, 50)).T)
    assert (abs(distance - 40) < 1.5).all()
    assert len(border) < 60
    same = _filled([border])
    assert (same & disc).sum() / (same | disc).sum() > 0.97


def test_the_pieces_of_a_mask_are_one_outline_without_area_between_them() -> None:
    pieces = _masks()[1]
    assert np.array_equal(_filled([outline(pieces)])[50:90, 100:150], pieces[50:90, 100:150])
    assert outline(np.zeros(SIZE, bool)).tolist() == [[0, 0]]


def _lines(text: str) -> list[list[float]]:
    return [[float(v) for v in line.split()] for line in text.splitlines()]


def test_labels_of_yolo() -> None:
    assert _result().to_yolo() == "1 0.2 0.25 0.2 0.3\n0 0.625 0.7 0.25 0.4\n"
    assert _result().to_yolo(score=True).splitlines()[0] == "1 0.2 0.25 0.2 0.3 0.9"
    first, second = _lines(_poses().to_yolo())
    assert first[5:] == [0.15, 0.2, 2, 0, 0, 0]  # the second keypoint is below the threshold
    assert second[5:] == [0.55, 0.6, 2, 0, 0, 0]  # ... and here outside of the image
    turned, outside = _lines(_oriented().to_yolo())
    assert sorted(zip(turned[1::2], turned[2::2], strict=True)) == [
        (0.125, 0.2),
        (0.125, 0.3),
        (0.275, 0.2),
        (0.275, 0.3),
    ]
    assert (len(outside), max(outside[1:])) == (9, 1)
    square, pieces = _lines(_result(masks=_masks()).to_yolo())
    assert sorted(zip(square[1::2], square[2::2], strict=True)) == [(0.1, 0.1), (0.1, 0.4), (0.3, 0.1), (0.3, 0.4)]
    assert len(pieces) == 1 + 2 * (4 + 1 + 4 + 1)
    assert _empty().to_yolo() == ""


def test_a_document_of_labelme() -> None:
    document = json.loads(json.dumps(_poses().to_labelme()))
    assert {key: document[key] for key in ("imagePath", "imageData", "imageHeight", "imageWidth", "flags")} == {
        "imagePath": "pets.jpg", "imageData": None, "imageHeight": 100, "imageWidth": 200, "flags": {}
    }  # fmt: skip
    kinds = [(s["label"], s["shape_type"], s["group_id"]) for s in document["shapes"]]
    assert kinds == [("cat", "rectangle", 0), ("nose", "point", 0), ("dog", "rectangle", 1), ("nose", "point", 1),
                     ("tail, tip", "point", 1)]  # fmt: skip
    assert document["shapes"][0]["points"] == [[20, 10], [60, 40]]
    assert document["shapes"][1]["points"] == [[30, 20]]
    assert document["shapes"][0]["description"] == "score 0.900"
    (shape, _) = _oriented().to_labelme("../x.jpg")["shapes"]
    assert (shape["shape_type"], shape["group_id"], len(shape["points"])) == ("polygon", None, 4)
    shapes = _result(masks=_masks()).to_labelme()["shapes"]
    assert [(s["shape_type"], s["group_id"]) for s in shapes] == [("polygon", None), ("polygon", 1), ("polygon", 1)]


@pytest.mark.parametrize("name", ["supervision", "fiftyone"])
def test_a_package_that_is_missing_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=f"pip install {name}"):
        getattr(_poses(), f"to_{name}")()
    with pytest.raises(MissingDependencyError, match=f"pip install {name}"):
        getattr(_poses(), f"to_{name}")(keypoints=True)
    with pytest.raises(UsageError, match="this result has no keypoints"):
        getattr(_result(), f"to_{name}")(keypoints=True)


def test_supervision_takes_masks_keypoints_and_corners() -> None:
    supervision = pytest.importorskip("supervision")
    image = np.zeros((*SIZE, 3), np.uint8)
    found = _poses(masks=_masks()).to_supervision()
    assert found.mask.sum() == 1800
    assert supervision.MaskAnnotator().annotate(image.copy(), found).any()
    points = _poses().to_supervision(keypoints=True)
    assert points.xy.tolist()[0] == [[30, 20], [50, 30]]
    assert supervision.OrientedBoxAnnotator().annotate(image.copy(), _oriented().to_supervision()).any()
    assert len(_empty().to_supervision()) == 0


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for FiftyOne that keeps what its labels are made of, because the package is large."""
    names = (
        "Detection",
        "Detections",
        "Polyline",
        "Polylines",
        "Keypoint",
        "Keypoints",
        "Classification",
        "Segmentation",
    )
    made = {name: type(name, (SimpleNamespace,), {}) for name in names}
    monkeypatch.setitem(sys.modules, "fiftyone", SimpleNamespace(**made))  # type: ignore[arg-type]


@pytest.mark.usefixtures("recorded")
def test_fiftyone_gets_shares_of_the_image() -> None:
    first, second = _result(masks=_masks()).to_fiftyone().detections
    assert (first.label, first.confidence) == ("cat", pytest.approx(0.9))
    assert first.bounding_box == [0.1, 0.1, 0.2, 0.3]
    assert (first.mask.shape, first.mask.all()) == ((30, 40), True)
    assert (second.mask.shape, int(second.mask.sum())) == ((40, 50), 600)
    line, _ = _oriented().to_fiftyone().polylines
    assert (line.closed, sorted(line.points[0])) == (True, [(0.125, 0.2), (0.125, 0.3), (0.275, 0.2), (0.275, 0.3)])
    point, _ = _poses().to_fiftyone(keypoints=True).keypoints
    assert (point.label, point.points[0], point.confidence) == ("cat", (0.15, 0.2), pytest.approx([0.9, 0.2]))
    assert np.isnan(point.points[1]).all()
    seen = Classification(labels=[1], scores=[0.75], classes=NAMES, size=SIZE).to_fiftyone()
    assert (seen.label, seen.confidence) == ("cat", 0.75)
    assert LabelMap(labels=np.zeros(SIZE), size=SIZE).to_fiftyone().mask.shape == SIZE


@given(st.lists(st.tuples(*[st.floats(width=32)] * 3), max_size=5))
def test_numbers_are_rounded_together_as_each_by_itself(rows: list[tuple[float, ...]]) -> None:
    found = rounded(np.array(rows, np.float32).reshape(len(rows), 3))
    assert json.dumps(found) == json.dumps([[short(float(np.float32(value))) for value in row] for row in rows])
    assert rounded(np.zeros((0, 4, 3), np.float32)) == []
