"""The commands with ONNX files of other projects, which carry no spec."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

import deploykit
from deploykit.cli import main
from deploykit.errors import NotFiniteError
from deploykit.export.parity.compare import compare
from tests.foreign_exports import SIDE, ULTRALYTICS, names, v5, v8, write_constant


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """An export as the ultralytics package writes it, with one person at 60, 45, 100, 75; and an image."""
    cv2.imwrite(str(tmp_path / "a.png"), np.full((SIDE, SIDE, 3), 128, np.uint8))
    metadata = {**ULTRALYTICS, "task": "detect", "names": names(3)}
    return write_constant(tmp_path / "theirs.onnx", {"output0": v8()}, metadata)


def test_predict_says_what_it_took_the_file_for(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--model", str(file), "--source", str(file.with_name("a.png")), "--json"]) == 0
    out, err = capsys.readouterr()
    (found,) = json.loads(out.splitlines()[0])["detections"]
    assert (found["name"], found["score"]) == ("person", pytest.approx(0.9))
    assert found["box"] == pytest.approx([60, 45, 100, 75], abs=0.01)
    assert "carries no deploykit spec; understood as: 0-3: cx cy w h; 4-6: 3 classes" in err
    assert "assumed: images are prepared as ultralytics does" in err


def test_bench_takes_it(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--engine", str(file), "--runs", "2", "--warmup", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["file"] == str(file)


def test_eval_takes_it(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = {
        "images": [{"id": 1, "file_name": "a.png", "width": SIDE, "height": SIDE}],
        "categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "class1"}, {"id": 3, "name": "class2"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [60, 45, 40, 30], "area": 1200, "iscrowd": 0}
        ],
    }
    file.with_name("truth.json").write_text(json.dumps(truth))
    data = ["--data", str(file.with_name("truth.json")), "--images", str(file.parent)]
    assert main(["eval", "--model", str(file), *data, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["AP"] == pytest.approx(1.0)


def agreed(a: Path, b: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What compare prints of two files that agree."""
    assert main(["compare", str(a), str(b)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert " agrees with " in text
    return text


def test_compare_takes_rows_in_either_order(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classes = ["person", "class1", "class2"]
    spec = {"task": "detect", "input": {"size": [SIDE, SIDE]}, "classes": classes,
            "output": {"kind": "rows", "obj": None, "cls": [4, 7]}}  # fmt: skip
    ours = write_constant(
        file.with_name("ours.onnx"), {"output": v8().transpose(0, 2, 1)}, {"deploykit": json.dumps(spec)}
    )
    assert "boxes 0 px" in agreed(file, ours, capsys)
    assert "boxes 0 px" in agreed(ours, file, capsys)
    moved = v8()
    moved[0, :4, 7] += 1.0
    other = write_constant(
        file.with_name("other.onnx"), {"output": moved.transpose(0, 2, 1)}, {"deploykit": json.dumps(spec)}
    )
    assert main(["compare", str(file), str(other)]) == 42


def test_compare_finds_the_detections_of_an_end_to_end_file_in_the_rows_of_another(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = np.zeros((1, 300, 6), np.float32)
    chosen[0, 3] = 60, 45, 100, 75, 0.9, 0
    metadata = {**ULTRALYTICS, "task": "detect", "names": names(3), "end2end": "True"}
    ours = write_constant(file.with_name("chosen.onnx"), {"output0": chosen}, metadata)
    assert "detections" in agreed(file, ours, capsys)
    chosen[0, 3, 0] = 40
    write_constant(ours, {"output0": chosen}, metadata)
    assert main(["compare", str(file), str(ours)]) == 42


def test_inspect_shows_it_and_drafts_a_spec_that_predict_takes(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(file)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "this is what its metadata, its shapes and a run on noise tell" in shown
    assert "task detect" in shown
    assert main(["inspect", str(file), "--draft-spec"]) == 0
    spec = file.with_name("spec.json")
    spec.write_text(capsys.readouterr().out)
    image = str(file.with_name("a.png"))
    assert main(["predict", "--model", str(file), "--spec", str(spec), "--source", image]) == 0
    assert "a.png: person 1" in capsys.readouterr().out


def test_a_draft_says_what_has_to_be_filled_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = v5(16)
    output[0, :, 6:] = 50.0
    file = write_constant(tmp_path / "m.onnx", {"output": output})
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((SIDE, SIDE, 3), np.uint8))
    assert main(["predict", "--model", str(file), "--source", str(tmp_path)]) == 51
    error = capsys.readouterr().err
    assert "the file does not tell classes and output.cls: export it with deploykit, or write a draft" in error
    assert main(["inspect", str(file), "--draft-spec"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["output"]["cls"] == {
        "fill in": "the columns of the classes, [5, 5 + their number]; add those of keypoints"
    }
    assert "fill in classes: the class names; not all columns from 5 on are probabilities" in err


def with_masks(file: Path, name: str, coefficient: float = 1.0, cell: float = 1.0) -> Path:
    """A file of one object, whose mask is all that its box covers, and the value of one cell inside of that box."""
    output = v8(extra=2)
    output[0, -2:, 7] = coefficient, 0.5
    if name == "chosen":
        output = np.zeros((1, 300, 8), np.float32)
        output[0, 3] = 60, 45, 100, 75, 0.9, 0, coefficient, 0.5
    prototypes = np.ones((1, 2, 40, 40), np.float32)
    prototypes[0, 0, 15, 20] = cell  # at 82, 62
    metadata = {**ULTRALYTICS, "task": "segment", "names": names(3), "end2end": str(name == "chosen")}
    return write_constant(file, {"output0": output, "output1": prototypes}, metadata)


@pytest.mark.parametrize("name", ["rows", "chosen"])
def test_compare_looks_at_the_masks_of_prototypes(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = with_masks(tmp_path / "a.onnx", name)
    shown = agreed(first, with_masks(tmp_path / "b.onnx", name), capsys)
    assert " masks " in shown
    assert "not compared" not in shown.replace("only its detections are compared", "")
    for wrong in (
        with_masks(tmp_path / "coefficient.onnx", name, coefficient=1.001),
        with_masks(tmp_path / "prototype.onnx", name, cell=1.001),
        with_masks(tmp_path / "sign.onnx", name, cell=-1.0),
    ):
        report = compare(first, wrong)
        assert not report.ok
        assert {d.values for d in report.differences if not d.ok} == {"masks"}
        bad = [m for m in report.matchings if not m.ok]
        assert bool(bad) == (wrong.stem == "sign")
        assert all(m.min_mask == pytest.approx(1 - 1 / 80) for m in bad)  # the box has 10 x 8 centres of cells


@pytest.mark.parametrize("name", ["rows", "chosen"])
def test_prototypes_that_are_no_numbers_are_refused(name: str, tmp_path: Path) -> None:
    file = with_masks(tmp_path / "a.onnx", name, cell=np.nan)
    assert {d.values for d in compare(with_masks(tmp_path / "b.onnx", name), file).differences if not d.ok} == {"masks"}
    with deploykit.load(file) as predictor, pytest.raises(NotFiniteError, match="output1"):
        predictor(np.zeros((SIDE, SIDE, 3), np.uint8))


def oriented(file: Path, *, angle: float = 0.3, end_to_end: bool = False) -> Path:
    """A file of one oriented box."""
    output = v8(extra=1)
    output[0, 7, 7] = angle
    if end_to_end:
        output = np.zeros((1, 300, 7), np.float32)
        output[0, 0] = 80, 60, 40, 30, 0.9, 0, angle
    metadata = {**ULTRALYTICS, "task": "obb", "names": names(3), "end2end": str(end_to_end)}
    return write_constant(file, {"output0": output}, metadata)


def test_oriented_boxes_in_predict_bench_and_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, image = oriented(tmp_path / "obb.onnx"), tmp_path / "a.png"
    cv2.imwrite(str(image), np.full((SIDE, SIDE, 3), 128, np.uint8))
    places = ["--out", str(tmp_path / "drawn"), "--coco", str(tmp_path / "coco.json")]
    assert main(["predict", "--model", str(model), "--source", str(image), "--json", *places]) == 0
    (found,) = json.loads(capsys.readouterr().out.splitlines()[0])["detections"]
    assert found["rotated"] == pytest.approx([80, 60, 40, 30, 0.3], abs=1e-4)
    (entry,) = json.loads((tmp_path / "coco.json").read_text())
    ((x, y, *others),) = entry["segmentation"]
    along, across = (20 * np.cos(0.3), 20 * np.sin(0.3)), (-15 * np.sin(0.3), 15 * np.cos(0.3))
    assert (x, y) == pytest.approx((80 + along[0] + across[0], 60 + along[1] + across[1]), abs=1e-3)
    assert len(others) == 6
    assert (cv2.imread(str(tmp_path / "drawn" / "a.png")) != 128).any()
    assert main(["bench", "--engine", str(model), "--runs", "2", "--warmup", "0", "--json"]) == 0
    capsys.readouterr()
    assert main(["inspect", str(model)]) == 0
    assert "task oriented" in " ".join(capsys.readouterr().out.split())


def test_the_ap_of_oriented_boxes_and_that_of_the_upright_ones_around_them(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = {
        "images": [{"id": 1, "file_name": "a.png", "width": SIDE, "height": SIDE}],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(("person", "class1", "class2"))],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [60, 45, 40, 30], "area": 1200, "iscrowd": 0}
        ],
    }
    file.with_name("truth.json").write_text(json.dumps(truth))
    data = ["--data", str(file.with_name("truth.json")), "--images", str(file.parent)]
    model = str(oriented(file.with_name("obb.onnx"), angle=np.pi))
    for task in ("oriented", "detect"):
        assert main(["eval", "--model", model, *data, "--task", task, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["task"], found["metrics"]["AP"]) == (task, pytest.approx(1.0))
    assert main(["eval", "--model", model, *data]) == 0
    printed = capsys.readouterr().out
    assert "mean over ProbIoU thresholds" in printed
    assert "at a ProbIoU of 0.75" in printed
    assert "metrics by deploykit" in " ".join(printed.split())
    for more, told in (
        (["--metrics", "pycocotools"], "metrics: no library has the overlap of oriented boxes"),
        (["--bootstrap", "5"], "there are no intervals of oriented boxes"),
    ):
        assert main(["eval", "--model", model, *data, *more]) == 2
        assert told in capsys.readouterr().err
    assert main(["eval", "--model", model, *data, "--against", model]) == 0
    assert "there are no intervals of oriented boxes" in capsys.readouterr().err


def test_compare_of_oriented_boxes_looks_at_the_angles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = oriented(tmp_path / "a.onnx")
    for i, angle in enumerate((0.3, 0.3 + np.pi, 0.3 - np.pi)):
        assert " angles " in agreed(first, oriented(tmp_path / f"same{i}.onnx", angle=angle), capsys)
    assert main(["compare", str(first), str(oriented(tmp_path / "b.onnx", angle=0.31))]) == 42
    assert "angles" in capsys.readouterr().out
    chosen = [
        oriented(tmp_path / f"e{i}.onnx", angle=angle, end_to_end=True) for i, angle in enumerate((0.3, 0.3, 0.5))
    ]
    assert "2 of 2" in agreed(first, chosen[0], capsys)
    assert "2 of 2" in agreed(chosen[0], chosen[1], capsys)
    assert main(["compare", str(first), str(chosen[2])]) == 42


def test_eval_scores_masks_of_prototypes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = v8(extra=1)
    output[0, -1, 7] = 1.0
    outputs = {"output0": output, "output1": np.ones((1, 1, 40, 40), np.float32)}
    metadata = {**ULTRALYTICS, "task": "segment", "names": names(3)}
    file = write_constant(tmp_path / "masks.onnx", outputs, metadata)
    cv2.imwrite(str(tmp_path / "a.png"), np.full((SIDE, SIDE, 3), 128, np.uint8))
    square = [60, 45, 100, 45, 100, 75, 60, 75]
    found = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [60, 45, 40, 30], "area": 1200, "iscrowd": 0}
    truth = {
        "images": [{"id": 1, "file_name": "a.png", "width": SIDE, "height": SIDE}],
        "categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "class1"}, {"id": 3, "name": "class2"}],
        "annotations": [{**found, "segmentation": [square]}],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    data = ["--data", str(tmp_path / "truth.json"), "--images", str(tmp_path), "--task", "instances"]
    assert main(["eval", "--model", str(file), *data, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["AP"] == pytest.approx(1.0)


def test_compare_refuses_two_meanings_of_a_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = []
    for name, counts in (("product", True), ("objectness", False)):
        spec = {"task": "detect", "input": {"size": [SIDE, SIDE]}, "classes": ["person"],
                "output": {"kind": "rows", "cls_counts": counts}}  # fmt: skip
        files.append(write_constant(tmp_path / f"{name}.onnx", {"output": v5(1)}, {"deploykit": json.dumps(spec)}))
    assert main(["compare", *map(str, files)]) == 51
    error = capsys.readouterr().err
    assert "is obj*cls in product.onnx and obj in objectness.onnx, so equal rows give other detections" in error
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    assert main(["compare", *map(str, files), "--spec", str(tmp_path / "spec.json")]) == 0
