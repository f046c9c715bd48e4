"""COCO's metrics: two libraries against each other, by hand, and at both ends of the scale."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.errors import MissingDependencyError, UsageError
from deploykit.runtime.datasets.coco import Category, CocoData, Image, read_coco
from deploykit.runtime.evaluate.coco_metrics import (
    BOX_KEYS,
    KEYPOINT_KEYS,
    CocoScores,
    Detections,
    Kind,
    coco_scores,
    encoded_masks,
    library,
)
from deploykit.spec import COCO_KEYPOINTS

pytest.importorskip("hotcoco", reason="the extra eval is not installed")
BOTH = pytest.mark.skipif(
    importlib.util.find_spec("pycocotools") is None, reason="pycocotools (extra dev) is not installed: nothing to ask"
)
PROBLEMS = {"seed": st.integers(0, 2**32), "images": st.integers(1, 4), "objects": st.integers(0, 14)}
SIGMAS = COCO_KEYPOINTS.sigmas
NONE = Detections(np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, 4)), np.empty(0), np.empty((0, 17, 3)))


def _data(annotations: list[dict[str, Any]], count: int = 1, categories: tuple[int, ...] = (1,)) -> CocoData:
    images = tuple(Image(i + 1, f"{i}.jpg", None) for i in range(count))
    entries = tuple({"iscrowd": 0, "id": i + 1, **a} for i, a in enumerate(annotations))
    return CocoData(Path("none.json"), images, tuple(Category(c, f"class {c}") for c in categories), entries)


def _object(box: list[float], category: int = 1, image: int = 1, **more: Any) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": box, "area": box[2] * box[3], **more}


def _found(*rows: tuple[int, int, float, list[float]], keypoints: Any = None) -> Detections:
    images, categories, scores, boxes = zip(*rows, strict=True)
    return Detections(
        np.array(images), np.array(categories), np.array(boxes, np.float64), np.array(scores, np.float64), keypoints
    )


def _scores(data: CocoData, found: Detections, kind: Kind = "bbox", engine: str = "hotcoco") -> CocoScores:
    return coco_scores(
        data,
        found,
        kind=kind,
        image_ids=[p.id for p in data.images],
        category_ids=[c.id for c in data.categories],
        sigmas=SIGMAS if kind == "keypoints" else (),
        metrics=engine,
    )


def _problem(seed: int, images: int, objects: int) -> tuple[CocoData, Detections]:
    """Objects and detections near them: crowds, objects without keypoints, tied scores, empty images, strangers."""
    rng = np.random.default_rng(seed)
    categories = (2, 5, 9)
    annotations, rows, points = [], [], []
    for _ in range(objects):
        image, category = int(rng.integers(1, images + 1)), int(rng.choice(categories))
        box = np.concatenate((rng.uniform(0, 300, 2), rng.choice([20, 60, 200], 2) * rng.uniform(0.8, 1.2, 2)))
        keypoints = np.concatenate((rng.uniform(0, 1, (17, 2)) * box[2:] + box[:2], rng.integers(0, 3, (17, 1))), 1)
        one = _object(box.tolist(), category, image, iscrowd=int(rng.random() < 0.1))
        kind = rng.random()
        if kind < 0.9:
            labelled = keypoints * (1 if kind < 0.8 else 0)  # some with not one visible
            one |= {"keypoints": labelled.ravel().tolist(), "num_keypoints": int((labelled[:, 2] > 0).sum())}
        annotations.append(one)
        for _ in range(int(rng.integers(0, 4))):
            noise = rng.normal(0, rng.choice([0, 1, 8]), 4)
            label = category if rng.random() < 0.8 else int(rng.choice(categories))
            rows.append((image, label, float(np.round(rng.random(), 1)), np.abs(box + noise).tolist()))
            points.append(keypoints + rng.normal(0, rng.choice([0, 2, 20]), keypoints.shape))
    found = _found(*rows, keypoints=np.array(points, np.float32)) if rows else NONE
    return _data(annotations, images, categories), found


@BOTH
@settings(max_examples=40)
@given(**PROBLEMS, kind=st.sampled_from(["bbox", "keypoints"]))
def test_both_libraries_give_the_same_numbers_to_the_last_bit(seed: int, images: int, objects: int, kind: Kind) -> None:
    data, found = _problem(seed, images, objects)
    if kind == "bbox":
        found = Detections(found.image_ids, found.category_ids, found.boxes, found.scores)
    ours, theirs = (_scores(data, found, kind, engine) for engine in ("hotcoco", "pycocotools"))
    assert ours == theirs


@pytest.mark.parametrize("engine", ["hotcoco", pytest.param("pycocotools", marks=BOTH)])
def test_what_was_not_asked_for_does_not_count(engine: str) -> None:
    """Two categories in two images, of which one category is found in one image."""
    places = [[10.0, 10.0, 50.0, 50.0], [100.0, 100.0, 60.0, 60.0]]
    data = _data([_object(places[c - 1], c, i) for c in (1, 2) for i in (1, 2)], 2, (1, 2))
    found = _found((1, 1, 0.9, places[0]))
    for images, categories, recall in (([1], [1], 1.0), ([1, 2], [1], 0.5), ([1], [1, 2], 0.5), ([1, 2], [1, 2], 0.25)):
        scores = coco_scores(data, found, kind="bbox", image_ids=images, category_ids=categories, metrics=engine)
        assert scores.metrics["AR100"] == pytest.approx(recall)
        assert set(scores.per_class) == set(categories)


@settings(max_examples=40)
@given(**PROBLEMS)
def test_the_truth_itself_scores_one_and_nothing_scores_zero(seed: int, images: int, objects: int) -> None:
    data, _ = _problem(seed, images, objects)
    real = [a for a in data.annotations if not a["iscrowd"]]
    truth = _found(*((a["image_id"], a["category_id"], 0.9, a["bbox"]) for a in real)) if real else NONE
    empty = Detections(NONE.image_ids, NONE.category_ids, NONE.boxes, NONE.scores)
    for found, value in ((truth, 1.0), (empty, 0.0)):
        scores = _scores(data, found)
        for key in ("AP", "AP50", "AP75", "AR100"):
            assert scores.metrics[key] == pytest.approx(value if real else -1)
        sizes = [scores.metrics[key] for key in ("APs", "APm", "APl")]
        assert all(v in (-1, pytest.approx(value)) for v in sizes)
        for category, score in scores.per_class.items():
            there = any(a["category_id"] == category for a in real)
            assert score.ap == pytest.approx(value if there else -1)


@pytest.mark.parametrize("engine", ["hotcoco", pytest.param("pycocotools", marks=BOTH)])
def test_a_small_case_that_a_person_worked_out(engine: str) -> None:
    """Found, missed, found: precision 1 up to a recall of 0.5, which is 51 of 101 recalls, then 2/3."""
    data = _data([_object([10, 10, 40, 40]), _object([100, 100, 40, 40]), _object([0, 0, 9, 9], 2)], 1, (1, 2, 3))
    found = _found((1, 1, 0.9, [10, 10, 40, 40]), (1, 1, 0.8, [300, 300, 40, 40]), (1, 1, 0.7, [100, 100, 40, 40]))
    scores = _scores(data, found, engine=engine)
    expected = (51 + 50 * 2 / 3) / 101
    assert tuple(scores.metrics) == BOX_KEYS
    assert (scores.per_class[1].ap, scores.per_class[1].ap50) == (pytest.approx(expected), pytest.approx(expected))
    assert (scores.per_class[1].objects, scores.per_class[1].detections) == (2, 3)
    assert (scores.per_class[2].ap, scores.per_class[3].ap) == (0, -1)  # an object and nothing found; no object
    assert scores.metrics["AP"] == pytest.approx(expected / 2, abs=1e-12)
    assert scores.metrics["AP50"] == scores.metrics["AP75"] == pytest.approx(expected / 2)
    assert scores.metrics["APm"] == pytest.approx(expected, abs=1e-12)  # 40 x 40
    assert scores.metrics["APs"] == 0  # 9 x 9
    assert scores.metrics["APl"] == scores.metrics["ARl"] == -1
    assert scores.metrics["AR1"] == pytest.approx(0.25)
    assert scores.metrics["AR10"] == scores.metrics["AR100"] == pytest.approx(0.5)


@pytest.mark.parametrize("engine", ["hotcoco", pytest.param("pycocotools", marks=BOTH)])
def test_the_similarity_of_keypoints_follows_from_the_sigmas(engine: str) -> None:
    """Each point off by d: OKS is exp(-d^2 / (2 area (2 sigma)^2)), here 0.72: over 5 of the 10 overlaps."""
    keypoints = np.concatenate((np.random.default_rng(0).uniform(20, 80, (17, 2)), np.full((17, 1), 2)), 1)
    area, sigma = 10_000.0, 0.05
    away = np.sqrt(-2 * area * (2 * sigma) ** 2 * np.log(0.72))
    annotation = _object([0, 0, 100, 100], keypoints=keypoints.ravel().tolist(), num_keypoints=17)
    found = _found((1, 1, 0.5, [0, 0, 1, 1]), keypoints=(keypoints + np.array((away, 0, 0)))[None])
    scores = coco_scores(
        _data([annotation]), found, kind="keypoints", image_ids=[1], category_ids=[1], sigmas=(sigma,) * 17,
        metrics=engine,
    )  # fmt: skip
    assert tuple(scores.metrics) == KEYPOINT_KEYS
    assert (scores.metrics["AP"], scores.metrics["AR"]) == (pytest.approx(0.5), pytest.approx(0.5))
    assert (scores.metrics["AP50"], scores.metrics["AP75"]) == (pytest.approx(1), 0)


def test_shuffled_labels_score_nearly_nothing() -> None:
    rng = np.random.default_rng(3)
    count, classes = 300, tuple(range(1, 21))
    boxes = np.concatenate((rng.uniform(0, 500, (count, 2)), rng.uniform(30, 90, (count, 2))), 1)
    labels = rng.integers(1, 21, count)
    data = _data([_object(b, int(c)) for b, c in zip(boxes.tolist(), labels, strict=True)], 1, classes)
    ids = np.ones(count, np.int64)
    right = Detections(ids, labels, boxes, np.full(count, 0.5))
    wrong = Detections(ids, rng.permutation(labels), boxes, np.full(count, 0.5))
    assert _scores(data, right).metrics["AP"] == pytest.approx(1)
    assert _scores(data, wrong).metrics["AP"] < 0.05


def test_only_the_images_that_were_looked_at_count() -> None:
    data = _data([_object([10, 10, 40, 40], image=1), _object([10, 10, 40, 40], image=2)], count=2)
    found = _found((1, 1, 0.9, [10, 10, 40, 40]))
    values = [
        coco_scores(data, found, kind="bbox", image_ids=ids, category_ids=[1]).metrics["AR100"] for ids in ([1], [1, 2])
    ]
    assert values == [1, 0.5]


def test_nothing_is_printed_and_the_truth_is_left_as_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    data = _data([_object([10, 10, 40, 40]), _object([1, 1, 20, 20], iscrowd=1)])
    before = json.dumps(data.annotations)
    for engine in ("hotcoco", "pycocotools") if importlib.util.find_spec("pycocotools") else ("hotcoco",):
        _scores(data, _found((1, 1, 0.9, [10, 10, 40, 40])), engine=engine)
        _scores(data, NONE, "keypoints", engine)
    assert capfd.readouterr() == ("", "")
    assert json.dumps(data.annotations) == before


def test_entries_keep_every_digit_and_have_boxes_or_keypoints() -> None:
    score, box = 0.1 + 0.2, [1 / 3, 0.1, 2 / 3, 10.123456789012345]
    assert _found((4, 2, score, box)).entries() == [{"image_id": 4, "category_id": 2, "score": score, "bbox": box}]
    (entry,) = _found((4, 2, score, box), keypoints=np.ones((1, 2, 3), np.float32)).entries()
    assert entry == {"image_id": 4, "category_id": 2, "score": score, "keypoints": [1.0] * 6}


def test_a_library_that_is_missing_or_unknown_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="must be hotcoco or pycocotools, got 'coco'"):
        library("coco")
    for module, extra in (("hotcoco", "eval"), ("pycocotools", "dev")):
        monkeypatch.setitem(__import__("sys").modules, module, None)
        monkeypatch.setitem(__import__("sys").modules, f"{module}.coco", None)
        with pytest.raises(MissingDependencyError, match=rf"pip install 'deploykit-vision\[{extra}\]'"):
            library(module)


@BOTH
@pytest.mark.data
@pytest.mark.parametrize(("name", "kind"), [("instances", "bbox"), ("person_keypoints", "keypoints")])
def test_both_libraries_agree_on_real_annotations(shared: Path, name: str, kind: Kind) -> None:
    data = read_coco(shared / "data" / "annotations" / "coco-mini" / f"{name}_val2017.json")
    rng = np.random.default_rng(0)
    rows, points = [], []
    for a in data.annotations:
        for _ in range(3):
            box = np.abs(np.array(a["bbox"]) * rng.uniform(0.9, 1.1, 4))
            rows.append((a["image_id"], a["category_id"], float(np.round(rng.random(), 2)), box.tolist()))
            if kind == "keypoints":
                xyv = np.array(a["keypoints"]).reshape(17, 3)
                points.append(xyv + rng.normal(0, 3, xyv.shape))
    found = _found(*rows, keypoints=np.array(points) if points else None)
    ours, theirs = (_scores(data, found, kind, engine) for engine in ("hotcoco", "pycocotools"))
    assert ours == theirs
    assert 0.1 < ours.metrics["AP"] < 0.9


def _masks_of_truth(data: CocoData, shift: int) -> Detections:
    """Every object's rectangle as a mask, moved to the right."""
    sizes = {p.id: p.size for p in data.images}
    masks = []
    for a in data.annotations:
        size = sizes[a["image_id"]]
        assert size is not None
        mask = np.zeros((1, *size), bool)
        x, y, width, height = (round(v) for v in a["bbox"])
        mask[0, y : y + height, x + shift : x + shift + width] = True
        masks.append(encoded_masks(mask)[0])
    boxes = np.array([a["bbox"] for a in data.annotations])
    ids, labels = (np.array([a[key] for a in data.annotations]) for key in ("image_id", "category_id"))
    return Detections(ids, labels, boxes, np.linspace(0.9, 0.3, len(ids)), masks=tuple(masks))


@pytest.mark.parametrize("form", ["polygon", "run lengths"])
def test_masks_are_scored_alike_by_both_libraries(tmp_path: Path, form: str) -> None:
    pytest.importorskip("pycocotools", reason="pycocotools (extra dev) is not installed")
    rng = np.random.default_rng(3)
    coco: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 1, "name": "a"}, {"id": 4, "name": "b"}],
    }
    for image in range(1, 5):
        coco["images"].append({"id": image, "file_name": f"{image}.png", "height": 90, "width": 120})
        for _ in range(image):
            x, y, width, height = (int(v) for v in (*rng.integers(0, 40, 2), *rng.integers(8, 40, 2)))
            corners = [x, y, x + width, y, x + width, y + height, x, y + height]
            mask = np.zeros((1, 90, 120), bool)
            mask[0, y : y + height, x : x + width] = True
            entry = {"image_id": image, "category_id": int(rng.choice([1, 4])), "bbox": [x, y, width, height]}
            entry |= {"id": len(coco["annotations"]) + 1, "area": width * height, "iscrowd": 0}
            entry["segmentation"] = [corners] if form == "polygon" else encoded_masks(mask, "pycocotools")[0]
            coco["annotations"].append(entry)
    file = tmp_path / "a.json"
    file.write_text(json.dumps(coco))
    data = read_coco(file)

    def scores(found: Detections, engine: str) -> CocoScores:
        return coco_scores(data, found, kind="segm", image_ids=[1, 2, 3, 4], category_ids=[1, 4], metrics=engine)

    exact, moved = _masks_of_truth(data, 0), _masks_of_truth(data, 4)
    assert scores(exact, "hotcoco").metrics["AP"] == pytest.approx(1.0)
    assert scores(moved, "hotcoco") == scores(moved, "pycocotools")
    assert 0.0 < scores(moved, "hotcoco").metrics["AP"] < 1.0
    assert scores(exact, "hotcoco").metrics["APl"] == -1.0  # no object is that large
