"""A YOLOv7 of one class from its checkpoint to its scores: the objectness, wherever NMS runs."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import deploykit
from deploykit.cli import main
from deploykit.export.options import NmsMode, OnnxOptions
from deploykit.export.parity.inputs import make_parity_inputs, sample_image
from deploykit.facade import load, open_session
from deploykit.models.load_options import LoadOptions
from deploykit.models.registry import load_model
from deploykit.models.yolo_graph.one_class import OBJECTNESS
from deploykit.spec import RawDetections, Thresholds
from tests.narrow import few_layers, write_checkpoint
from tests.nms_corpus import Kept, reference

pytestmark = pytest.mark.usefixtures("one_thread")

SIDE, CONF = 64, 0.5
WAYS: tuple[NmsMode, ...] = ("none", "graph", "basic")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose class, untrained, says 0.02 everywhere."""
    path = tmp_path_factory.mktemp("one") / "hands.pt"
    write_checkpoint(path, few_layers(num_classes=1), objectness=1.0)
    saved = torch.load(path, weights_only=False)
    head = saved["model"].model[-1]
    for conv, scale in zip(head.m, head.im, strict=True):
        conv.bias.data.view(3, 6)[:, 5] = -4.0
        conv.weight.data.view(3, 6, -1)[:, 5] = 0.0
        scale.implicit.data[:] = 1.0
    saved["model"].traced = False  # as YOLOv7's main branch leaves it
    torch.save(saved, path)
    return path


@pytest.fixture(scope="module")
def files(weights: Path) -> dict[str, Path]:
    """Its exports by where NMS runs."""
    return {
        nms: deploykit.export_onnx(weights, img=SIDE, nms=nms, out=weights.with_name(f"{nms}.onnx")).path
        for nms in WAYS
    }


@pytest.fixture(scope="module")
def kept(weights: Path) -> list[Kept]:
    """What the definition of NMS, as plain loops, keeps of the checkpoint's rows on the sample image."""
    model = load_model(weights)
    spec = replace(model.spec, input=replace(model.spec.input, size=(SIDE, SIDE)))
    image = make_parity_inputs(spec).images[sample_image().name]
    with torch.no_grad():
        rows = model.module(torch.from_numpy(image))[0].numpy()
    assert rows[:, 5].max() < 0.02, "the class does not say it"
    return reference(rows, RawDetections(cls_counts=False), Thresholds(conf=CONF, iou=0.45))


def scores_of(kept: list[Kept]) -> list[float]:
    assert len(kept) > 10
    return [k.score for k in kept]


@pytest.mark.parametrize("nms", WAYS)
def test_every_way_finds_what_the_objectness_of_the_checkpoints_rows_says(
    nms: str, files: dict[str, Path], kept: list[Kept]
) -> None:
    with load(files[nms], conf=CONF, iou=0.45) as predictor:
        found = predictor(sample_image())
    np.testing.assert_allclose(found.scores, scores_of(kept), atol=1e-5)
    assert not found.labels.any()


def test_the_commands_say_it_and_give_the_same(
    weights: Path, files: dict[str, Path], kept: list[Kept], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "--weights", str(weights), "--img", str(SIDE), "--out", str(tmp_path / "m.onnx")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert OBJECTNESS in said
    assert "4: objectness, which is the score; 5: 1 class, which does not count" in said
    for file in (weights, files["none"]):
        assert main(["inspect", str(file)]) == 0
        assert "score the objectness alone" in " ".join(capsys.readouterr().out.split())
    out = tmp_path / "found.json"
    words = ["--source", str(sample_image()), "--conf", str(CONF), "--iou", "0.45", "--coco", str(out)]
    assert main(["predict", "--model", str(files["none"]), *words, "--out", str(tmp_path / "drawn")]) == 0
    found = [entry["score"] for entry in json.loads(out.read_text())]
    np.testing.assert_allclose(sorted(found, reverse=True), scores_of(kept), atol=1e-4)


def test_an_evaluation_scores_by_it(files: dict[str, Path], kept: list[Kept], tmp_path: Path) -> None:
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 50, 50], "area": 2500, "iscrowd": 0}
    image = {"id": 1, "file_name": sample_image().name, "height": 471, "width": 600}
    data, out = tmp_path / "data.json", tmp_path / "found.json"
    data.write_text(json.dumps({"images": [image], "annotations": [box], "categories": [{"id": 1, "name": "cat"}]}))
    for nms in WAYS:
        words = ["--data", str(data), "--images", str(sample_image().parent), "--detections", str(out)]
        assert main(["eval", "--model", str(files[nms]), *words, "--conf", str(CONF), "--iou", "0.45"]) == 0
        found = [entry["score"] for entry in json.loads(out.read_text())]
        np.testing.assert_allclose(sorted(found, reverse=True), scores_of(kept), atol=1e-4)


def test_asked_for_the_product_the_same_file_gives_it(weights: Path, tmp_path: Path) -> None:
    report = deploykit.export_onnx(
        weights,
        img=SIDE,
        out=tmp_path / "m.onnx",
        options=OnnxOptions(loading=LoadOptions(score="obj*cls")),
        check=False,
    )
    assert report.notes[0] == "its score is obj*cls (--score)"
    with load(report.path, conf=0.05) as predictor:
        assert len(predictor(sample_image())) == 0


@pytest.mark.data
@pytest.mark.slow
def test_a_trained_one_scores_as_its_project_does(shared: Path, tmp_path: Path) -> None:
    weights = shutil.copy(shared / "cases" / "detectors" / "nc1_yolov7_tiny.pt", tmp_path)
    golden = np.load(shared / "cases" / "detectors" / "nc1_yolov7_tiny.pt.npz")
    options = OnnxOptions(batch=len(golden["images"]))
    exact = deploykit.export_onnx(weights, img=golden["images"].shape[2:], out=tmp_path / "exact.onnx", options=options)
    with open_session(exact.path) as session:
        found = session.run({"images": golden["images"]})["output"]
    np.testing.assert_allclose(found[..., :4], golden["output"][..., :4], atol=1e-3)
    np.testing.assert_allclose(found[..., 4:], golden["output"][..., 4:], atol=1e-5)
    for nms in WAYS:
        file = deploykit.export_onnx(weights, img=320, nms=nms, out=tmp_path / f"{nms}.onnx", check=False).path
        with load(file, conf=0.5, iou=0.45) as predictor:
            result = predictor(sample_image())
        assert (len(result), round(float(result.scores.max()), 4)) == (300, 0.9173), nms
