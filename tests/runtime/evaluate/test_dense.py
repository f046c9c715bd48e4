"""Classification, segmentation and restoration: images in, metrics out, with networks whose answers are known."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import deploykit
from deploykit.cli import main
from deploykit.errors import DataError, ImageSizeError, NotFoundError, SpecError, UsageError
from deploykit.runtime.evaluate.evaluate import meter_class
from deploykit.runtime.evaluate.report import ImageEvaluation
from deploykit.runtime.images.metrics import psnr, ssim
from deploykit.runtime.images.placing import CanvasImage, place_on_canvas
from deploykit.runtime.images.to_tensor import to_nchw
from deploykit.runtime.postprocess.dense import label_map, to_image, top_classes
from deploykit.runtime.raw.dng import dng_bytes
from deploykit.runtime.results.dense import RestoredImage
from deploykit.spec import METADATA_KEY, DenseOutput, Fit, InputSpec, ModelSpec
from tests.dense_networks import blurrer
from tests.dense_networks import segmenter as four_channels
from tests.heard import Heard
from tests.reference.similarity import slow_ssim
from tests.runtime.predict.test_dense import mosaic

RED, GREEN, BLUE = (0, 0, 255), (0, 255, 0), (255, 0, 0)
COLOURS = (RED, GREEN, BLUE)
CHANCE = np.random.default_rng(0)


def write_network(path: Path, task: str, spec: ModelSpec, nodes: list[Any], output: str, shape: list[Any]) -> Path:
    free = spec.input.dynamic == "shape"
    height, width = ("h", "w") if free else spec.input.size
    batch = "n" if free else 1
    arrays = [helper.make_tensor("two", TensorProto.FLOAT, (), [2.0])]
    made = helper.make_graph(
        nodes,
        task,
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, (batch, 3, height, width))],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)],
        arrays,
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    model.metadata_props.append(onnx.StringStringEntryProto(key=METADATA_KEY, value=spec.to_json()))
    onnx.save(model, str(path))
    return path


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    """Its logits are the means of red, green and blue."""
    spec = ModelSpec(
        task="classify",
        input=InputSpec(size=(32, 32), fit=Fit(kind="crop", stride=1)),
        output=DenseOutput(),
        classes=("red", "Green_one", "blue"),
    )
    nodes = [helper.make_node("GlobalAveragePool", ["images"], ["a"]), helper.make_node("Flatten", ["a"], ["logits"])]
    return write_network(tmp_path / "classifier.onnx", "classify", spec, nodes, "logits", [1, 3])


def segmenter(path: Path, *, classes: tuple[str, ...] = ("red", "green", "blue"), fit: Fit | None = None) -> Path:
    """Its logits are the image's own channels, at half the size."""
    spec = ModelSpec(
        task="segment",
        input=InputSpec(size=(64, 64), fit=fit or Fit(kind="letterbox", stride=2, pad_value=0)),
        output=DenseOutput(),
        classes=classes,
    )
    nodes = [helper.make_node("AveragePool", ["images"], ["logits"], kernel_shape=[2, 2], strides=[2, 2])]
    return write_network(path, "segment", spec, nodes, "logits", [1, 3, 32, 32])


def restorer(path: Path, *, brighter: bool = False) -> Path:
    """It gives its input back, or twice of it."""
    spec = ModelSpec(
        task="restore",
        input=InputSpec(size=(32, 32), dynamic="shape", fit=Fit(kind="pad", stride=16)),
        output=DenseOutput(name="image"),
    )
    node = (
        helper.make_node("Mul", ["images", "two"], ["image"])
        if brighter
        else helper.make_node("Identity", ["images"], ["image"])
    )
    return write_network(path, "restore", spec, [node], "image", ["n", 3, "h", "w"])


def save(path: Path, image: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


# Classification.


@pytest.fixture
def class_folder(tmp_path: Path) -> Path:
    root = tmp_path / "classes"
    for name, colours in (("Red", (RED, RED, BLUE)), ("green one", (GREEN,)), ("blue", (BLUE, BLUE))):
        for i, colour in enumerate(colours):
            save(root / name / f"{i}.png", np.full((40, 50, 3), colour, np.uint8))
    return root


def test_top_one_is_the_share_of_right_classes(classifier: Path, class_folder: Path) -> None:
    heard = Heard()
    found = deploykit.evaluate(classifier, class_folder, task="classify", progress=heard)
    assert found.task == "classify"
    assert found.metrics == {"top1": 5 / 6, "top5": 1.0}
    assert found.per_class["red"] == {"top1": 2 / 3, "top5": 1.0, "images": 3}
    assert found.counts == {"images": 6, "classes": 3}
    assert [share for _, share in heard.shares] == [i / 6 for i in range(1, 7)]
    assert set(found.timings) == {"read", "prepare", "inference", "postprocess", "score"}


def test_class_folders_may_be_numbers(classifier: Path, tmp_path: Path) -> None:
    save(tmp_path / "numbers" / "2" / "a.png", np.full((32, 32, 3), BLUE, np.uint8))
    assert deploykit.evaluate(classifier, tmp_path / "numbers").metrics["top1"] == 1.0


def test_a_crop_is_the_middle_of_the_scaled_image() -> None:
    canvas = InputSpec(size=(28, 28), fit=Fit(kind="crop", crop_share=0.875))
    image = CHANCE.integers(0, 256, (64, 96, 3), np.uint8)
    found = place_on_canvas(image, canvas)
    scaled = cv2.resize(image, (48, 32), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(found.canvas, scaled[2:30, 10:38])


def test_probabilities_are_the_softmax_and_ties_go_to_the_lower_class() -> None:
    order, scores = top_classes(np.array([1.0, 3.0, 3.0, -500.0]), 3)
    assert order.tolist() == [1, 2, 0]
    np.testing.assert_allclose(scores, np.exp([3, 3, 1]) / np.exp([1, 3, 3]).sum())


# Segmentation.


def split_image(size: tuple[int, int] = (64, 96)) -> tuple[Any, Any]:
    """An image of three stripes and its label map."""
    labels = np.repeat(np.arange(3), size[1] // 3)[None].repeat(size[0], 0).astype(np.uint8)
    return np.array(COLOURS, np.uint8)[labels], labels


@pytest.fixture
def stripes(tmp_path: Path) -> tuple[Path, Path]:
    image, labels = split_image()
    labels[:, :32] = 255  # the red stripe does not count ...
    labels[:, 90:] = 1  # ... and a part of the blue one is called green
    save(tmp_path / "images" / "a.jpg.png", image)
    save(tmp_path / "labels" / "a.jpg.png", labels)
    return tmp_path / "images", tmp_path / "labels"


def test_label_maps_are_compared_pixel_by_pixel(tmp_path: Path, stripes: tuple[Path, Path]) -> None:
    images, labels = stripes
    found = deploykit.evaluate(segmenter(tmp_path / "s.onnx"), labels, images=images)
    green, blue, wrong = 32 * 64, 26 * 64, 6 * 64
    iou = {"green": green / (green + wrong), "blue": blue / (blue + wrong)}
    for name, value in iou.items():
        assert found.per_class[name]["IoU"] == pytest.approx(value, abs=0.03)  # borders are off by a pixel
    assert found.metrics["aAcc"] == pytest.approx((green + blue) / (green + blue + wrong), abs=0.02)
    assert found.counts["pixels"] == 64 * 64


@pytest.mark.parametrize("kind", ["letterbox", "resize"])
@pytest.mark.parametrize("size", [(64, 96), (300, 120), (64, 66)])
def test_a_label_map_has_the_images_own_pixels(tmp_path: Path, kind: Any, size: tuple[int, int]) -> None:
    image, labels = split_image(size)
    spec = InputSpec(size=(64, 64), fit=Fit(kind=kind, stride=2, pad_value=0))
    placed = place_on_canvas(image, spec)
    logits = to_nchw([placed.canvas], spec)[0]
    found = label_map(logits, placed)
    assert found.shape == size
    assert (found == labels).mean() > 0.95
    pooled = cv2.resize(np.ascontiguousarray(logits.transpose(1, 2, 0)), (32, 32)).transpose(2, 0, 1)
    assert (label_map(pooled, placed) == labels).mean() > 0.9


def test_many_classes_are_compared_in_parts_as_at_once() -> None:
    logits = CHANCE.normal(size=(21, 16, 16)).astype(np.float32)
    placed = CanvasImage(np.zeros((16, 16, 3), np.uint8), (33, 20), (0, 0, 16, 16))
    enlarged = np.stack([cv2.resize(channel, (20, 33)) for channel in logits])
    np.testing.assert_array_equal(label_map(logits, placed), enlarged.argmax(0))


def test_one_channel_is_class_one_against_class_zero(tmp_path: Path) -> None:
    placed = CanvasImage(np.zeros((4, 4, 3), np.uint8), (4, 4), (0, 0, 4, 4))
    logits = np.array([[[-1.0, 1.0], [1.0, -1.0]]], np.float32).repeat(2, 1).repeat(2, 2)
    found = label_map(logits, placed)
    assert found.tolist() == [[0, 0, 1, 1]] * 2 + [[1, 1, 0, 0]] * 2
    assert label_map(logits, placed, threshold=0.9).sum() == 0


def test_a_palette_is_read_as_its_indices(tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image", reason="the extra eval is not installed")
    image, labels = split_image()
    save(tmp_path / "images" / "a.png", image)
    (tmp_path / "labels").mkdir()
    indexed = pillow.fromarray(labels, "P")
    indexed.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    indexed.save(tmp_path / "labels" / "a.png")
    found = deploykit.evaluate(segmenter(tmp_path / "s.onnx"), tmp_path / "labels", images=tmp_path / "images")
    assert found.metrics["mIoU"] > 0.9


# Restoration.


def test_a_network_that_gives_its_input_back_is_as_good_as_its_input(tmp_path: Path) -> None:
    clean = {f"{i}.png": CHANCE.integers(0, 256, (30 + i, 45, 3), np.uint8) for i in range(2)}
    for name, image in clean.items():
        noisy = np.clip(image.astype(int) + CHANCE.integers(-9, 10, image.shape), 0, 255).astype(np.uint8)
        save(tmp_path / "noisy" / name, noisy)
        save(tmp_path / "clean" / name, image)
    found = deploykit.evaluate(restorer(tmp_path / "r.onnx"), tmp_path / "clean", images=tmp_path / "noisy")
    for name, image in clean.items():
        noisy = cv2.imread(str(tmp_path / "noisy" / name))
        assert found.per_image[name] == {"PSNR": psnr(noisy, image), "SSIM": ssim(noisy, image)}
    assert found.metrics["PSNR"] == np.mean([v["PSNR"] for v in found.per_image.values()])
    same = deploykit.evaluate(restorer(tmp_path / "r.onnx"), tmp_path / "clean", images=tmp_path / "clean")
    assert same.metrics == {"PSNR": math.inf, "SSIM": pytest.approx(1.0)}
    assert json.loads(json.dumps(same.to_dict()))["metrics"]["PSNR"] == "inf"


def test_pixels_are_what_the_network_was_fed() -> None:
    canvas = InputSpec(
        size=(32, 48), fit=Fit(kind="pad", stride=16), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), dynamic="shape"
    )
    image = CHANCE.integers(0, 256, (25, 40, 3), np.uint8)
    placed = place_on_canvas(image, canvas)
    assert placed.canvas.shape == (32, 48, 3)
    np.testing.assert_array_equal(placed.canvas[25], placed.canvas[23])  # mirrored below
    np.testing.assert_array_equal(to_image(to_nchw([placed.canvas], canvas)[0], placed, canvas), image)
    twice = to_nchw([placed.canvas], canvas)[0].repeat(2, 1).repeat(2, 2)
    np.testing.assert_array_equal(to_image(twice, placed, canvas), image.repeat(2, 0).repeat(2, 1))


def test_psnr_and_ssim_are_what_they_are_defined_as() -> None:
    a = CHANCE.integers(0, 256, (19, 23, 3), np.uint8)
    b = np.clip(a.astype(int) + CHANCE.integers(-20, 21, a.shape), 0, 255).astype(np.uint8)
    assert psnr(a, b) == pytest.approx(10 * math.log10(255**2 / np.mean((a.astype(float) - b) ** 2)))
    assert psnr(a, b) == pytest.approx(cv2.PSNR(a, b))
    assert ssim(a, b) == pytest.approx(slow_ssim(a, b), abs=1e-12)
    assert ssim(a[..., 0], b[..., 0]) == pytest.approx(slow_ssim(a[..., 0], b[..., 0]), abs=1e-12)
    with pytest.raises(DataError, match="the same shape"):
        psnr(a, b[1:])
    with pytest.raises(DataError, match="at least 11x11"):
        ssim(a[:10], b[:10])


@pytest.mark.skipif(importlib.util.find_spec("skimage") is None, reason="scikit-image is not installed")
def test_ssim_is_scikit_images() -> None:
    from skimage.metrics import structural_similarity

    a, b = CHANCE.integers(0, 256, (2, 64, 48, 3), np.uint8)
    theirs = structural_similarity(
        a, b, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
    )
    assert ssim(a, b) == pytest.approx(theirs, abs=1e-12)


# The command line, and what does not fit.


def test_the_command_line_says_what_python_says(
    tmp_path: Path, stripes: tuple[Path, Path], classifier: Path, class_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels = stripes
    model = segmenter(tmp_path / "s.onnx")
    words = ["eval", "--model", str(model), "--data", str(labels), "--images", str(images)]
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["metrics"] == deploykit.evaluate(model, labels, images=images).metrics
    assert main([*words, "--per-class", "--against", str(model), "--task", "segment"]) == 0
    out = capsys.readouterr().out
    assert "mIoU" in out
    assert "+0.0000" in out
    assert any(line.startswith("green") for line in out.splitlines())
    assert main(["eval", "--model", str(classifier), "--data", str(class_folder), "--limit", "2"]) == 0
    captured = capsys.readouterr()
    assert "top1" in captured.out
    assert "only the first 2 of 6 images" in captured.err
    assert main([*words, "--conf", "0.5"]) == 2
    assert "conf: cannot be used in an evaluation of the task segment" in capsys.readouterr().err
    assert main([*words, "--plots", str(tmp_path / "plots")]) == 2
    assert "detections (to be written, drawn, or for intervals): cannot be used in" in capsys.readouterr().err


def evaluated(*args: Any, **options: Any) -> ImageEvaluation:
    return deploykit.evaluate(*args, **options)


def test_what_does_not_fit_is_reported(tmp_path: Path, classifier: Path, stripes: tuple[Path, Path]) -> None:
    images, labels = stripes
    model = segmenter(tmp_path / "s.onnx")
    with pytest.raises(UsageError, match="needs --images"):
        evaluated(model, labels)
    with pytest.raises(UsageError, match="leave --images out"):
        evaluated(classifier, labels, images=images)
    with pytest.raises(UsageError, match="task is 'segment', so it cannot be scored for 'restore'"):
        evaluated(model, labels, images=images, task="restore")
    with pytest.raises(NotFoundError, match="folder with label maps or targets at"):
        evaluated(model, tmp_path / "none", images=images)
    with pytest.raises(DataError, match="has no folder"):
        evaluated(classifier, labels)
    save(tmp_path / "others" / "purple" / "a.png", np.zeros((32, 32, 3), np.uint8))
    with pytest.raises(DataError, match=r"'purple' .1 of 1 in .* is not one of the model's 3 classes"):
        evaluated(classifier, tmp_path / "others")
    save(images / "b.png", np.zeros((64, 96, 3), np.uint8))
    with pytest.raises(DataError, match=r"no file of the same name for 1 .*b\.png"):
        evaluated(model, labels, images=images)
    save(labels / "b.png", np.full((64, 96), 7, np.uint8))
    with pytest.raises(DataError, match=r"has the label 7 \(6,144 pixels\), but the network has 3 classes"):
        evaluated(model, labels, images=images)
    save(labels / "b.png", np.zeros((64, 95), np.uint8))
    with pytest.raises(DataError, match=r"has size \(64, 95\)"):
        evaluated(model, labels, images=images)
    save(labels / "b.png", split_image()[0])
    with pytest.raises(DataError, match="one channel or a palette"):
        evaluated(model, labels, images=images)
    with pytest.raises(UsageError, match="at least 1 image"):
        evaluated(model, labels, images=images, limit=0)


def test_an_image_without_space_is_refused() -> None:
    image = np.zeros((40, 40, 3), np.uint8)
    with pytest.raises(ImageSizeError, match="at most 32x32"):
        place_on_canvas(image, InputSpec(size=(32, 32), fit=Fit(kind="pad", stride=16)))
    with pytest.raises(ImageSizeError, match="too small to be mirrored"):
        place_on_canvas(image, InputSpec(size=(128, 128), fit=Fit(kind="pad", stride=16)))
    with pytest.raises(SpecError, match="got the fit 'tile'"):
        place_on_canvas(image, InputSpec(fit=Fit(kind="tile")))
    with pytest.raises(SpecError, match="crop's share"):
        Fit(crop_share=0.0)


def test_features_have_no_truth() -> None:
    spec = ModelSpec("features", InputSpec(size=(32, 32), fit=Fit(kind="crop", stride=1)), DenseOutput(name="features"))
    with pytest.raises(UsageError, match="no ground truth to score against"):
        meter_class(spec, spec.task)


def test_an_image_that_is_larger_than_a_fixed_canvas_is_evaluated_in_the_tiles_of_predict(tmp_path: Path) -> None:
    """The same pixels, in a fixed batch that fills its slots, of any number of channels."""
    image = np.random.default_rng(3).integers(0, 256, (70, 90, 3), np.uint8)
    for batch in (1, 3):
        model = blurrer(tmp_path / f"b{batch}.onnx", batch=batch)
        with deploykit.load(model, task="restore") as predict:
            restored = predict(image)
            assert isinstance(restored, RestoredImage)
            assert restored.tiles > 1
            save(tmp_path / "noisy" / "a.png", image)
            save(tmp_path / "same" / "a.png", restored.pixels)
        found = deploykit.evaluate(model, tmp_path / "same", images=tmp_path / "noisy")
        assert found.metrics == {"PSNR": math.inf, "SSIM": 1.0}
        words = ["eval", "--model", model, "--data", tmp_path / "same", "--images", tmp_path / "noisy"]
        assert main([*map(str, words), "--task", "restore"]) == 0


def test_images_of_four_channels_are_evaluated_as_they_are_predicted(tmp_path: Path) -> None:
    image = np.random.default_rng(4).integers(0, 200, (32, 48, 4), np.uint8)
    model = four_channels(tmp_path / "four.onnx", ("a", "b", "c", "d"), channels=4)
    with deploykit.load(model, task="segment") as predict:
        labels = predict(image).labels
    save(tmp_path / "images" / "a.png", image)
    save(tmp_path / "labels" / "a.png", labels.astype(np.uint8))
    found = deploykit.evaluate(model, tmp_path / "labels", images=tmp_path / "images")
    assert found.metrics["mIoU"] == 1.0


def test_raw_files_are_evaluated_as_they_are_restored(tmp_path: Path) -> None:
    """The truth is the mosaic that predict writes, so nothing is off."""
    pytest.importorskip("rawpy", reason="rawpy (the extra raw) is not installed")
    for name in ("noisy", "restored"):
        (tmp_path / name).mkdir()
    source = tmp_path / "noisy" / "a.dng"
    source.write_bytes(dng_bytes(mosaic()))
    model = blurrer(tmp_path / "b.onnx", channels=4)
    with deploykit.load(model, task="restore") as predict:
        found = predict(source)
        assert found.tiles > 1
        found.save(tmp_path / "restored" / "a.dng")
    scores = deploykit.evaluate(model, tmp_path / "restored", images=tmp_path / "noisy")
    assert scores.metrics == {"PSNR": math.inf, "SSIM": 1.0}
    other = tmp_path / "restored" / "a.dng"
    other.write_bytes(source.read_bytes())
    assert 10 < deploykit.evaluate(model, tmp_path / "restored", images=tmp_path / "noisy").metrics["PSNR"] < 60
