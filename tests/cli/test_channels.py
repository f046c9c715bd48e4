"""Detectors of one and of four channels through the commands that run them."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

import deploykit
from deploykit.cli import main
from deploykit.errors import ImageError, UsageError
from deploykit.runtime.arrays import Array
from deploykit.runtime.bench.benchmark import benchmark
from tests.cell_model import RED, cell_spec, planted, write_cell_model

GREY_NOTE = "note: this network takes grey images (1 channel): images in colour become grey\n"


def _model(folder: Path, channels: int) -> Path:
    return write_cell_model(folder / f"{channels}.onnx", spec=cell_spec(channels=channels), channels=channels)


def _write(path: Path, image: Array) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, image)[1].tobytes())
    return path


def _white_cell(channels: int) -> Array:
    """One cell that is white in all channels, at the third column and second row of four times the network's size."""
    image = planted((2, 1, (255, 255, 255)), scale=4)
    return image[..., 0] if channels == 1 else np.dstack((image, image[..., 0]))


BOX = [64, 32, 32, 32]  # x, y, width, height


def _truth(path: Path, image: Path) -> Path:
    data = {
        "images": [{"id": 1, "file_name": image.name}],
        "categories": [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": BOX}],
    }
    path.write_text(json.dumps(data))
    return path


@pytest.mark.parametrize("channels", [1, 4])
def test_predict_bench_and_eval_run_it(channels: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("hotcoco")
    model = str(_model(tmp_path, channels))
    image = _write(tmp_path / "images" / "a.png", _white_cell(channels))
    out, coco = tmp_path / "out", tmp_path / "r.json"
    assert main(["predict", "--model", model, "--source", str(image), "--out", str(out), "--coco", str(coco)]) == 0
    said, noted = capsys.readouterr()
    assert "a.png: red 1\n" in said
    assert (GREY_NOTE in noted) == (channels == 1)
    assert [(e["bbox"], e["score"]) for e in json.loads(coco.read_text())] == [(BOX, 1)]
    drawn = cv2.imread(str(out / "a.png"))
    assert drawn.shape == (256, 256, 3)
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 2  # the box has a colour, where the image is black and white

    truth = _truth(tmp_path / "truth.json", image)
    words = ["--model", model, "--data", str(truth), "--images", str(image.parent), "--task", "detect", "--json"]
    assert main(["eval", *words]) == 0
    said, noted = capsys.readouterr()
    assert json.loads(said)["metrics"]["AP"] == pytest.approx(1.0)
    assert (GREY_NOTE in noted) == (channels == 1)

    for source in (["--source", str(image)], []):  # without one, the synthetic image has as many channels
        assert main(["bench", "--engine", model, "--runs", "1", "--warmup", "0", "--json", *source]) == 0
        notes = json.loads(capsys.readouterr().out)["notes"]
        assert any("grey images" in note for note in notes) == (channels == 1)


def test_an_image_in_colour_becomes_grey(tmp_path: Path) -> None:
    predict = deploykit.load(_model(tmp_path, 1), conf=0.05)
    result = predict(planted((1, 2, RED), scale=4))
    assert result.boxes.tolist() == [[32, 64, 64, 96]]
    assert result.scores[0] == pytest.approx((76 / 255) ** 2, abs=1e-6)  # red is 0.299 of white


def test_four_channels_are_drawn_on_the_first_three(tmp_path: Path) -> None:
    predict = deploykit.load(_model(tmp_path, 4))
    image = _white_cell(4)
    for source in (image, cv2.imencode(".png", image)[1].tobytes(), _write(tmp_path / "a.tif", image)):
        result = predict(source)
        assert result.boxes.tolist() == [[64, 32, 96, 64]]
        assert result.draw().shape == (256, 256, 3)
    for result in predict.stream([image]):
        assert result.image is not None
        assert np.array_equal(result.image, image[..., :3])


def test_other_images_are_refused_by_four_channels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, image = _model(tmp_path, 4), _write(tmp_path / "a.png", planted())
    assert main(["predict", "--model", str(model), "--source", str(image)]) == ImageError.exit_code
    assert "takes uint8 images of 4 channels" in capsys.readouterr().err
    five = write_cell_model(tmp_path / "5.onnx", spec=cell_spec(channels=5), channels=5)
    with pytest.raises(UsageError, match=r"no synthetic image has the 5 channels .* give one \(--source\)"):
        benchmark(lambda: deploykit.load(five), runs=1)


@pytest.mark.data
def test_a_trained_layout_of_one_channel(shared: Path, tmp_path: Path) -> None:
    case = shared / "cases" / "detectors" / "ch1_yolov5.pt"
    if not case.exists():
        pytest.skip(f"no {case}")
    known = np.load(f"{case}.npz")
    with deploykit.load(case, conf=0.001) as predict:
        rows = predict.session.run({"images": known["images"]})["output"]
        assert np.abs(rows - known["output"]).max() < 1e-3
        grey = np.rint(known["images"][0, 0] * 255).astype(np.uint8)
        assert len(predict(grey)) == len(predict(cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR))) > 0
