"""``deploykit eval`` as a person or a script uses it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deploykit
from deploykit.cli import main
from deploykit.errors import (
    ArtefactError,
    DataError,
    DeployError,
    ImageError,
    MissingDependencyError,
    NotFoundError,
    SpecError,
    UsageError,
)
from deploykit.runtime.datasets.coco import read_coco
from deploykit.runtime.evaluate.coco_metrics import BOX_KEYS, Detections, coco_scores
from deploykit.spec import RawDetections
from tests.cell_model import cell_spec, write_cell_model
from tests.coco_folder import Folder, pose_spec, write_folder
from tests.error_line import told

pytest.importorskip("hotcoco", reason="the extra eval is not installed")


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return write_folder(tmp_path / "cells")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_cell_model(tmp_path / "cells.onnx", spec=pose_spec())


def _eval(model: Path, folder: Folder, *more: object) -> int:
    named = () if "--model" in more else ("--model", model)
    words = ("eval", *named, "--data", folder.data, "--images", folder.images, *more)
    return main([*map(str, words)])


def _line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of complaint."""
    out, err = capsys.readouterr()
    assert out == ""
    lines = [line for line in err.splitlines() if not line.startswith("[")]
    assert len(lines) == 1, err
    return told(lines[0])


def test_json_is_one_object_with_the_metrics_and_what_they_mean(
    model: Path, folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _eval(model, folder, "--task", "detect", "--json", "--limit", 3) == 0
    out, err = capsys.readouterr()
    data = json.loads(out)
    assert tuple(data["metrics"]) == BOX_KEYS
    assert data["metrics"]["AP"] == pytest.approx(1)
    assert data["metrics"]["APl"] == -1
    assert (data["model"], data["data"], data["images"]) == (str(model), str(folder.data), str(folder.images))
    assert (data["task"], data["counts"]["images"], data["settings"]["conf"]) == ("detect", 3, 0.001)
    assert data["per_class"]["red"]["objects"] == 2
    assert [line.split("] ")[1] for line in err.splitlines() if line.startswith("[")] == [
        "loading",
        "evaluating",
        "scoring",
    ]
    assert data["notes"] == ["only the first 3 of 4 images were evaluated (--limit)"]
    assert f"deploykit: note: {data['notes'][0]}" in err


def test_any_number_of_workers_gives_the_same_numbers(
    model: Path, folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for workers in (1, 3):
        assert _eval(model, folder, "--task", "detect", "--json", "--workers", workers) == 0
        told = json.loads(capsys.readouterr().out)
        assert told.pop("workers") == workers
        assert told.pop("timings_ms")
        found.append(told)
    assert found[0] == found[1]
    assert _eval(model, folder, "--task", "detect", "--workers", 3) == 0
    assert "ms per image, 3 at the same time" in " ".join(capsys.readouterr().out.split())


def test_the_report_says_what_the_numbers_depend_on(
    model: Path, folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.coco["annotations"][0]["iscrowd"] = 1
    (folder.images / "000000000002.png").unlink()
    assert _eval(model, folder.save(), "--task", "detect", "--allow-missing", "--limit", 2, "--per-class") == 0
    told = " ".join(capsys.readouterr().out.split())
    for part in (
        f"model {model}",
        "images 2 of 4 listed, 1 missing, 1 left out by --limit",
        "truth 4 objects of 2 categories (matched by name), 1 crowd region ignored",
        "found 5 detections",
        "thresholds conf 0.001, iou 0.65, max_det 300, each class over conf",
        "pixels the whole canvas of 64x64 (height x width), batch 1",
        "computes CPUExecutionProvider; NMS by ",
        "; metrics by hotcoco",
        "detect AP 1.0000 average precision, mean over IoU thresholds from 0.50 to 0.95",
        "APl none ... of larger ones",
        "class AP AP50 objects detections",
        "red 1.0000 1.0000 1 2",
        "Blue 1.0000 1.0000 3 3",
    ):
        assert part in told


def test_keypoints_are_scored_by_default_where_the_spec_is_of_keypoints(
    model: Path, folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _eval(model, folder, "--max-det", 3) == 0
    out, err = capsys.readouterr()
    told = " ".join(out.split())
    assert "keypoints AP 1.0000 average precision, mean over OKS thresholds from 0.50 to 0.95" in told
    assert "found 6 detections, 1 image with as many as max_det allows" in told
    assert "AR1 " not in told
    assert "note: max_det 3 is below the 20 per image that COCO counts" in err


def test_the_written_detections_replace_nothing_that_is_read(
    model: Path, folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = Path(folder.data)
    before = truth.read_bytes()
    assert _eval(model, folder, "--task", "detect", "--detections", truth) == UsageError.exit_code
    assert f"--detections {truth} would replace a file that is read or written here" in capsys.readouterr().err
    assert truth.read_bytes() == before


def test_the_written_detections_give_the_same_metrics(
    model: Path, folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "new" / "found.json"
    assert _eval(model, folder, "--task", "detect", "--json", "--detections", place) == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    entries = json.loads(place.read_text())
    assert set(entries[0]) == {"image_id", "category_id", "bbox", "score"}
    columns = (np.array([e[key] for e in entries]) for key in ("image_id", "category_id", "bbox", "score"))
    data = read_coco(folder.data)
    again = coco_scores(
        data,
        Detections(*columns),
        kind="bbox",
        image_ids=[p.id for p in data.images],
        category_ids=[c.id for c in data.categories],
    )
    assert again.metrics == metrics


def test_a_checkpoint_and_its_export_are_scored_alike(
    checkpoint: Path, folder: Folder, tmp_path: Path, one_thread: None
) -> None:
    """Random weights find nothing right, so the detections are compared as well; the images are not square."""
    wide = write_folder(tmp_path / "wide", [((1, 1, (0, 0, 255)), (5, 2, (255, 0, 0)))] * 2, scale=2, wide=2)
    export = deploykit.export_onnx(checkpoint, img=64, out=tmp_path / "few.onnx", check=False).path
    options: dict[str, Any] = {"images": wide.images, "task": "detect"}
    ours = deploykit.evaluate(checkpoint, wide.data, img=64, **options)
    theirs = deploykit.evaluate(export, wide.data, **options)
    assert ours.metrics == pytest.approx(theirs.metrics, abs=1e-4)
    assert ours.counts.detections == theirs.counts.detections > 100
    np.testing.assert_allclose(ours.detections.scores, theirs.detections.scores, atol=1e-5)
    assert ours.settings.providers != theirs.settings.providers


def test_batch_spec_and_canvas_come_from_options(
    tmp_path: Path, folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = write_cell_model(tmp_path / "bare.onnx", batch="n")
    assert _eval(bare, folder) == SpecError.exit_code
    assert "--spec FILE" in _line(capsys)
    (tmp_path / "spec.json").write_text(pose_spec(dynamic=True).to_json())
    assert _eval(bare, folder, "--spec", tmp_path / "spec.json", "--batch", 3, "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["settings"]["batch"], data["metrics"]["AP"]) == (3, pytest.approx(1))


Change = Callable[[Folder], object]


@pytest.mark.parametrize(
    ("change", "words", "error", "said"),
    [
        (None, ("--model", "none.onnx"), NotFoundError, "a model was expected at none.onnx"),
        (None, ("--model", "none.pt"), NotFoundError, "a checkpoint was expected at none.pt"),
        (None, ("--data", "none.json"), NotFoundError, "an annotation file was expected at none.json"),
        (None, ("--images", "none"), NotFoundError, "expected a folder of images at none"),
        (None, ("--spec", "none.json"), NotFoundError, "a spec was expected at none.json"),
        (lambda f: f.data.write_text("{"), (), DataError, "does not parse"),
        (lambda f: f.data.write_text("[]"), (), DataError, "is not an annotation file in COCO's format"),
        (lambda f: f.coco["categories"].pop(), (), DataError, "refers to category 7, which the file does not list"),
        (
            lambda f: f.coco["categories"][0].update(name="green"),
            (),
            DataError,
            "do not fit the annotations' categories",
        ),
        (
            lambda f: [c.update(name=n) for c, n in zip(f.coco["categories"], ("crimson", "azure"), strict=True)],
            (),
            None,
            "'red' is 'crimson', 'blue' is 'azure'",
        ),
        (
            lambda f: (f.coco["categories"].append({"id": 9, "name": "x"}), f.coco["categories"][0].update(name="y")),
            (),
            DataError,
            "the model has 2 (red, blue), the annotations 3 (y, red, x)",
        ),
        (lambda f: next(f.images.iterdir()).unlink(), (), NotFoundError, "1 of 4 listed images are not in"),
        (lambda f: f.coco["images"][0].update(width=5), (), DataError, "the annotations say 5x512"),
        (lambda f: [p.write_bytes(b"") for p in f.images.iterdir()], (), ImageError, "is empty (0 bytes)"),
        (None, ("--limit", 0), UsageError, "limit must be at least 1"),
        (None, ("--batch", 2), UsageError, "a fixed batch of 1, got 2"),
        (None, ("--conf", 7), UsageError, "conf must lie in 0..1"),
        (None, ("--img", 32), UsageError, "takes only images of 64x64"),
        (None, ("--img", 1, 2, 3), UsageError, "--img takes one side, or height and width, got 3 numbers"),
        (None, ("--rectangles",), UsageError, "not rectangles"),
    ],
)
def test_what_does_not_fit_is_one_line_with_its_exit_code(
    model: Path,
    folder: Folder,
    change: Change | None,
    words: tuple[object, ...],
    error: type[DeployError] | None,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if change is not None:
        before = folder.data.read_bytes()
        change(folder)
        if folder.data.read_bytes() == before:
            folder.save()
    code = _eval(model, folder, *words)
    if error is None:
        out, err = capsys.readouterr()
        assert code == 0
        assert said in err
        assert out
        return
    assert code == error.exit_code
    assert said in _line(capsys)


def test_the_wrong_task_for_a_model_is_refused(
    tmp_path: Path, folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = replace(cell_spec(), task="detect", keypoints=None, output=RawDetections(cls=(5, 7)))
    model = write_cell_model(tmp_path / "boxes.onnx", spec=spec)
    assert _eval(model, folder, "--task", "keypoints") == UsageError.exit_code
    assert "needs a model with keypoints, and this one has none" in _line(capsys)
    assert _eval(model, folder) == 0
    assert _eval(model, folder, "--task", "dance") == UsageError.exit_code
    assert "cannot be scored for 'dance'" in capsys.readouterr().err


def test_a_library_that_is_not_installed_is_named_with_its_extra(
    model: Path, folder: Folder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "hotcoco", None)
    assert _eval(model, folder) == MissingDependencyError.exit_code
    assert "pip install 'deploykit-vision[eval]'" in _line(capsys)
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    assert _eval(model, folder, "--metrics", "pycocotools") == MissingDependencyError.exit_code
    assert "pip install 'deploykit-vision[dev]'" in _line(capsys)


def test_an_error_can_be_shown_in_full(model: Path, folder: Folder) -> None:
    folder.data.write_text("{")
    with pytest.raises(DataError):
        _eval(model, folder, "--traceback")
    assert not issubclass(DataError, ArtefactError)


@pytest.mark.data
@pytest.mark.slow
def test_a_trained_model_keeps_its_average_precision_in_its_export(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """yolov5n on images of COCO's val2017; docs/evaluation.md has the numbers of all 79."""
    weights = shared / "data" / "weights" / "yolov5n_official_coco.pt"
    export = deploykit.export_onnx(weights, img=640, out=tmp_path / "yolov5n.onnx", check=False).path
    coco = "coco-mini"
    words = ("--data", shared / "data" / "annotations" / coco / "instances_val2017.json", "--json", "--limit", 12)
    metrics = []
    for model in (weights, export):
        place = ("--model", model, "--images", shared / "data" / "images" / coco / "val2017")
        assert main([str(w) for w in ("eval", *place, *words)]) == 0
        metrics.append(json.loads(capsys.readouterr().out)["metrics"])
    assert metrics[0] == pytest.approx(metrics[1], abs=1e-4)
    assert metrics[1]["AP"] > 0.25


def test_the_former_name_of_the_metrics_library_is_taken_with_a_note(
    model: Path, folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _eval(model, folder, "--engine", "hotcoco", "--json") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["settings"]["metrics"] == "hotcoco"
    assert "deploykit: note: --engine is called --metrics now\n" in err
    assert _eval(model, folder, "--engine", "model.trt") == UsageError.exit_code
    assert _line(capsys).startswith("eval takes its model first, as in deploykit eval model.trt --data PATH")
    assert _eval(model, folder, "--engine", "hotcoco", "--metrics", "pycocotools") == UsageError.exit_code
    assert "--engine hotcoco contradicts --metrics pycocotools" in _line(capsys)
