"""Two evaluations side by side, intervals by resampling images, curves, and upstream's preprocessing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import deploykit
from deploykit.cli import main
from deploykit.errors import AccuracyError, UsageError
from deploykit.runtime.evaluate.coco_metrics import coco_scores
from deploykit.runtime.evaluate.compare import AccuracyComparison, check_drop, compare_evaluations, interval_of
from deploykit.runtime.evaluate.detection import as_upstream
from deploykit.runtime.evaluate.plots import f1_curve, write_plots
from deploykit.runtime.evaluate.report import Evaluation
from deploykit.runtime.images.letterbox import Letterbox
from deploykit.spec import Fit, InputSpec, ModelSpec, RawDetections, Source
from tests.cell_model import BLUE, RED, write_cell_model
from tests.coco_folder import Folder, pose_spec, write_folder
from tests.heard import Heard

pytest.importorskip("hotcoco", reason="the extra eval is not installed")

IMAGES = tuple((((i % 5, i % 7, RED), (6, (i + 3) % 8, BLUE)), ((i % 8, 2, BLUE),), ())[i % 3] for i in range(12))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return write_folder(tmp_path_factory.mktemp("cells") / "cells", IMAGES)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cell_model(tmp_path_factory.mktemp("model") / "cells.onnx", spec=pose_spec())


@pytest.fixture(scope="module")
def other(folder: Folder, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """The same images with every third one black: what is lost there is known."""
    place = tmp_path_factory.mktemp("other") / "cells"
    copied = write_folder(place, IMAGES)
    for number, file in enumerate(sorted(copied.images.iterdir())):
        if number % 4 == 0:
            image = cv2.imread(str(file))
            cv2.imwrite(str(file), np.zeros_like(image))
    return copied


@pytest.fixture(scope="module")
def good(model: Path, folder: Folder) -> Evaluation:
    return deploykit.evaluate(model, folder.data, images=folder.images, task="detect")


@pytest.fixture(scope="module")
def worse(model: Path, folder: Folder, other: Folder) -> Evaluation:
    return deploykit.evaluate(model, folder.data, images=other.images, task="detect")


def test_a_difference_is_the_models_minus_the_references(good: Evaluation, worse: Evaluation) -> None:
    found = compare_evaluations(worse, good)
    assert found.difference["AP"] == worse.metrics["AP"] - good.metrics["AP"] < 0
    assert set(found.difference) == {name for name, value in good.metrics.items() if value >= 0}
    assert found.per_class["red"] == worse.per_class["red"].ap - good.per_class["red"].ap
    assert found.intervals == {}
    assert compare_evaluations(good, good).difference["AP"] == 0.0


def test_the_interval_is_that_of_data_sets_drawn_outright(good: Evaluation, worse: Evaluation) -> None:
    """hotcoco's resampling against evaluations of annotations in which an image stands as often as it was drawn."""
    found = compare_evaluations(worse, good, samples=400)
    low, high = found.intervals["AP"]
    assert low <= found.difference["AP"] <= high
    chance = np.random.default_rng(1)
    drawn = []
    for _ in range(60):
        order = chance.integers(0, len(IMAGES), len(IMAGES))
        drawn.append(_resampled(worse, order) - _resampled(good, order))
    inside = np.mean([(low - 0.03 <= d <= high + 0.03) for d in drawn])
    assert inside >= 0.85
    assert abs((high - low) - np.subtract(*np.percentile(drawn, [97.5, 2.5]))) < 0.15


def _resampled(found: Evaluation, order: np.ndarray[Any, Any]) -> float:
    """AP of the images of ``order``, each drawn one an image of its own."""
    truth, detections = found.scored.truth, found.detections
    ids = [found.scored.image_ids[i] for i in order]
    images = {p.id: p for p in truth.images}
    new = tuple(replace(images[i], id=n + 1) for n, i in enumerate(ids))
    annotations = [
        {**a, "image_id": n + 1, "id": 1000 * n + k + 1}
        for n, i in enumerate(ids)
        for k, a in enumerate(truth.annotations)
        if a["image_id"] == i
    ]
    parts = [np.flatnonzero(detections.image_ids == i) for i in ids]
    rows = np.concatenate(parts)
    again = replace(
        detections,
        image_ids=np.repeat(np.arange(1, len(ids) + 1), [len(p) for p in parts]),
        category_ids=detections.category_ids[rows],
        boxes=detections.boxes[rows],
        scores=detections.scores[rows],
        keypoints=None,
    )
    data = replace(truth, images=new, annotations=tuple(annotations))
    scores = coco_scores(
        data, again, kind="bbox", image_ids=range(1, len(ids) + 1), category_ids=found.scored.category_ids
    )
    return scores.metrics["AP"]


def test_draws_are_seeded_and_a_single_model_has_intervals_too(good: Evaluation, worse: Evaluation) -> None:
    first, second = (compare_evaluations(worse, good, samples=50).intervals for _ in range(2))
    assert first == second
    own = interval_of(worse, samples=50)
    assert own["AP"][0] <= worse.metrics["AP"] <= own["AP"][1]
    assert 0 <= own["AP"][0] < own["AP"][1] <= 1
    assert compare_evaluations(good, good, samples=20).intervals["AP"] == (0.0, 0.0)


def test_a_drop_beyond_the_limit_is_refused(good: Evaluation, worse: Evaluation) -> None:
    found = compare_evaluations(worse, good, samples=50)
    drop = -100 * found.difference["AP"]
    assert check_drop(found, drop) == drop
    with pytest.raises(AccuracyError, match=rf"by {drop:.2f} points \(95 % interval of the difference -"):
        check_drop(found, drop - 0.01)
    assert check_drop(compare_evaluations(good, worse), 0.0) < 0  # it gains
    for wrong in (-1.0, float("nan")):
        with pytest.raises(UsageError, match="must be at least 0 points"):
            check_drop(found, wrong)
    with pytest.raises(UsageError, match="ARx has no value"):
        check_drop(found, 1.0, metric="ARx")


def test_only_evaluations_of_the_same_images_are_compared(good: Evaluation, model: Path, folder: Folder) -> None:
    fewer = deploykit.evaluate(model, folder.data, images=folder.images, task="detect", limit=3)
    points = deploykit.evaluate(model, folder.data, images=folder.images)
    for other in (fewer, points):
        with pytest.raises(UsageError, match="images and categories are the same"):
            compare_evaluations(good, other)
    with pytest.raises(UsageError, match="must be at least 0, got"):
        compare_evaluations(good, good, samples=-1)


def test_other_settings_are_reported(good: Evaluation, model: Path, folder: Folder) -> None:
    strict = deploykit.evaluate(model, folder.data, images=folder.images, task="detect", conf=0.5)
    assert "conf is 0.5 here and 0.001 in the reference" in compare_evaluations(strict, good).notes[0]


def _compared(model: Path, folder: Folder, **options: Any) -> AccuracyComparison:
    return deploykit.evaluate_against(model, model, folder.data, images=folder.images, **options)


def test_python_and_the_command_line_say_the_same(
    model: Path, folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    heard = Heard()
    found = _compared(model, folder, bootstrap=20, progress=heard)
    assert heard.shares[-1] == ("evaluating, 12 of 12 images", 1.0)
    assert len(heard.shares) == 24
    words = ["eval", "--model", model, "--against", model, "--data", folder.data, "--images", folder.images]
    assert main([*map(str, words), "--bootstrap", "20", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["metrics"] == found.model.metrics == told["against"]["metrics"]
    assert told["difference"] == found.difference
    assert told["intervals"]["AP"] == [0.0, 0.0]
    assert told["bootstrap"]["samples"] == 20
    assert main([*map(str, words), "--bootstrap", "20", "--per-class"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[:1] == ["AP"] and "+0.00 to +0.00" in line for line in lines)
    assert any(line.startswith(("blue", "Blue")) for line in lines)
    assert main(["eval", "--model", str(model), *map(str, words[5:]), "--bootstrap", "20"]) == 0
    assert "95 % interval" in capsys.readouterr().out


# Curves.


def test_the_best_threshold_is_where_a_direct_count_finds_it(worse: Evaluation) -> None:
    curve = f1_curve(worse)
    score, best = curve.best
    assert 0 < best < 1
    assert curve.f1.max() == best
    counted = _counted(worse, score)
    assert best == pytest.approx(counted, abs=0.02)
    assert (np.diff(curve.recall) <= 1e-12).all()  # a higher threshold finds no more


def _counted(found: Evaluation, threshold: float) -> float:
    """F1 of all classes' mean by counting: every detection of this network is an object, or is in a black image."""
    values = []
    for category in found.scored.category_ids:
        objects = sum(a["category_id"] == category for a in found.scored.truth.annotations)
        chosen = (found.detections.category_ids == category) & (found.detections.scores >= threshold)
        boxes = {
            (int(i), *np.round(b).astype(int))
            for i, b in zip(found.detections.image_ids[chosen], found.detections.boxes[chosen], strict=True)
        }
        truth = {
            (a["image_id"], *np.round(a["bbox"]).astype(int))
            for a in found.scored.truth.annotations
            if a["category_id"] == category
        }
        right = len(boxes & truth)
        precision, recall = right / max(chosen.sum(), 1), right / objects
        values.append(2 * precision * recall / max(precision + recall, 1e-12))
    return float(np.mean(values))


def test_curves_are_drawn_for_one_model_and_for_two(
    tmp_path: Path, good: Evaluation, worse: Evaluation, capsys: pytest.CaptureFixture[str], model: Path, folder: Folder
) -> None:
    pytest.importorskip("matplotlib", reason="the extra eval is not installed")
    for name, shown in (("one", {"a": good}), ("two", {"a": good, "b": worse})):
        written = write_plots(tmp_path / name, shown)
        assert [p.name for p in written] == ["precision-recall.png", "f1.png", "classes.png", "curves.json"]
        for place in written[:3]:
            image = cv2.imread(str(place))
            assert min(image.shape[:2]) > 300
            assert image.std() > 5  # something is drawn
        again = write_plots(tmp_path / f"{name} again", shown)
        assert [p.read_bytes() for p in again] == [p.read_bytes() for p in written]
    numbers = json.loads((tmp_path / "two" / "curves.json").read_text())
    assert set(numbers) == {"a", "b"}
    assert np.mean([np.array(p)[0].mean() for p in numbers["b"]["precision"].values()]) == pytest.approx(
        worse.metrics["AP50"], abs=1e-5
    )
    words = ["eval", "--model", model, "--data", folder.data, "--images", folder.images, "--plots", tmp_path / "cli"]
    assert main([*map(str, words)]) == 0
    assert "the best F1 is 1.000, at a score threshold of" in capsys.readouterr().err
    assert (tmp_path / "cli" / "f1.png").is_file()


# Upstream's preprocessing.


def upstream_spec(name: str, **fit: Any) -> ModelSpec:
    return ModelSpec(
        task="detect",
        input=InputSpec(size=(640, 640), dynamic="shape", fit=Fit(**fit)),
        output=RawDetections(),
        classes=("a",),
        source=Source(model=name),
    )


@pytest.mark.parametrize(("name", "whole"), [("yolov5n", np.ceil), ("yolov7", np.floor)])
@pytest.mark.parametrize("size", [(427, 640), (480, 640), (333, 500), (1080, 1919), (640, 427), (640, 640)])
def test_a_rectangle_is_that_of_the_projects_loader(
    name: str, whole: Callable[[float], float], size: tuple[int, int]
) -> None:
    """Their rule in plain numbers: the long side to 640, the rectangle in strides plus a half, centred."""
    fit = as_upstream(upstream_spec(name)).input.fit
    found = Letterbox.fit(size, (640, 640), fit, auto=True)
    gain = 640 / max(size)
    assert found.resized == tuple(max(1, int(whole(side * gain))) for side in size)
    aspect = size[0] / size[1]
    shape = (aspect, 1.0) if aspect < 1 else (1.0, 1 / aspect)
    assert found.canvas == tuple(int(np.ceil(s * 640 / 32 + 0.5)) * 32 for s in shape)
    assert found.pad == tuple(
        round((canvas - side) / 2 - 0.1)
        for canvas, side in zip(reversed(found.canvas), reversed(found.resized), strict=True)
    )


def test_images_shrink_by_area_and_grow_linearly() -> None:
    fit = as_upstream(upstream_spec("yolov5n")).input.fit
    image = np.random.default_rng(0).integers(0, 256, (1280, 1280, 3), np.uint8)
    small = Letterbox.fit((1280, 1280), (640, 640), fit, auto=False)
    np.testing.assert_array_equal(small.apply(image), cv2.resize(image, (640, 640), interpolation=cv2.INTER_AREA))
    large = Letterbox.fit((320, 320), (640, 640), fit, auto=False)
    piece = image[:320, :320]
    np.testing.assert_array_equal(large.apply(piece), cv2.resize(piece, (640, 640), interpolation=cv2.INTER_LINEAR))


def test_on_a_fixed_shape_only_the_interpolation_is_upstreams(
    model: Path, folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    found = deploykit.evaluate(model, folder.data, images=folder.images, preprocessing="upstream")
    assert found.settings.preprocessing == "upstream"
    assert not found.settings.rectangles
    assert any("only area resampling" in note for note in found.notes)
    words = ["eval", "--model", model, "--data", folder.data, "--images", folder.images]
    assert main([*map(str, words), "--preprocess", "upstream"]) == 0
    assert "as the original project evaluates" in " ".join(capsys.readouterr().out.split())


def test_models_without_such_a_preprocessing_are_refused() -> None:
    with pytest.raises(UsageError, match="yolox-s is evaluated with the preprocessing of its spec"):
        as_upstream(upstream_spec("yolox-s", anchor="top-left"))
