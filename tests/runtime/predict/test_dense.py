"""Classes, label maps and restored images, from images of any kind, by networks whose answers are known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import deploykit
from deploykit.cli import main
from deploykit.errors import DeployError, ImageError, ImageSizeError, OutputError, SpecError, UsageError
from deploykit.runtime.arrays import Array
from deploykit.runtime.backends.fake import FakeSession
from deploykit.runtime.bench.benchmark import benchmark
from deploykit.runtime.drawing.label_map import draw_label_map
from deploykit.runtime.drawing.palette import class_colour
from deploykit.runtime.options import PredictOptions
from deploykit.runtime.predict.predictor import Predictor
from deploykit.runtime.raw.dng import dng_bytes
from deploykit.runtime.raw.mosaic import RawImage, pack, read_raw
from deploykit.runtime.results.dense import Classification, LabelMap, RestoredImage, RestoredRaw
from deploykit.spec import DenseOutput, ModelSpec, RawDetections
from tests.dense_networks import blurrer, brightener, canvas_of, classifier, segmenter

RED, GREEN, BLUE = (0, 0, 255), (0, 255, 0), (255, 0, 0)


def plain(colour: tuple[int, ...], size: tuple[int, int] = (40, 60)) -> Array:
    return np.full((*size, len(colour)), colour, np.uint8)


def halves(size: tuple[int, int] = (40, 60)) -> Array:
    image = plain(RED, size)
    image[:, size[1] // 2 :] = BLUE
    return image


def test_an_image_is_classified(tmp_path: Path) -> None:
    with deploykit.load(classifier(tmp_path / "c.onnx"), task="classify", top=2) as model:
        found = model(plain((20, 200, 100)))
    assert isinstance(found, Classification)
    assert found.labels.tolist() == [1, 0]
    expected = np.exp(np.array([100, 200, 20]) / 25.5)
    np.testing.assert_allclose(found.scores, (expected / expected.sum())[[1, 0]], rtol=1e-4)
    assert [name for name, _ in found.named] == ["green", "red"]
    assert json.loads(json.dumps(found.to_dict()))["classes"][0]["name"] == "green"
    assert found.draw().shape == (40, 60, 3)
    assert found.timings.keys() == {"read", "prepare", "inference", "postprocess"}


@pytest.mark.parametrize("classes", [("red", "green", "blue"), ("red",)])
def test_every_pixel_gets_a_class(tmp_path: Path, classes: tuple[str, ...]) -> None:
    with deploykit.load(segmenter(tmp_path / "s.onnx", classes), task="segment") as model:
        found = model(halves())
    assert isinstance(found, LabelMap)
    left, right = (0, 2) if len(classes) > 1 else (1, 0)
    assert found.labels.shape == (40, 60)
    assert (found.labels[:, :28] == left).all()
    assert (found.labels[:, 32:] == right).all()
    names = {"red", "blue"} if len(classes) > 1 else {"red", "background"}
    assert found.shares().keys() == names
    assert sum(found.shares().values()) == pytest.approx(1.0)
    assert found.to_dict()["shares"].keys() == names
    found.save_map(tmp_path / "map.png")
    images = pytest.importorskip("PIL.Image", reason="pillow (the extra eval) is not installed")
    with images.open(tmp_path / "map.png") as saved:
        np.testing.assert_array_equal(np.array(saved), found.labels)
        assert saved.mode == "P"
    with pytest.raises(OutputError, match=r"a label map is a PNG file, but map.npy does not end in \.png"):
        found.save_map(tmp_path / "map.npy")
    assert not (tmp_path / "map.npy").exists()


@pytest.mark.parametrize("dynamic", ["none", "shape"])
@pytest.mark.parametrize("size", [(32, 48), (20, 30), (77, 101)])
def test_an_image_of_any_size_is_restored(tmp_path: Path, dynamic: Any, size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 180, (*size, 3), dtype=np.uint8)
    with deploykit.load(brightener(tmp_path / "r.onnx", dynamic=dynamic), task="restore") as model:
        found = model(image)
    assert isinstance(found, RestoredImage)
    np.testing.assert_array_equal(found.pixels, np.rint(image * 1.2345).astype(np.uint8))
    assert (found.tiles > 1) == (size == (77, 101) and dynamic == "none")
    np.testing.assert_array_equal(found.draw(), found.pixels)
    assert cv2.imread(str(found.save(tmp_path / "x.png"))).shape == image.shape


@pytest.mark.parametrize("dynamic", ["none", "batch", "shape"])
def test_tiles_give_what_the_whole_image_gives(tmp_path: Path, dynamic: Any) -> None:
    image = np.random.default_rng(0).integers(0, 256, (90, 75, 3), dtype=np.uint8)
    network = blurrer(tmp_path / "b.onnx", dynamic=dynamic, batch=1 if dynamic == "none" else 4)
    with deploykit.load(network, task="restore", tile=32, overlap=1) as model:
        found = model(image)
        with pytest.raises(UsageError, match="keep nothing"):
            deploykit.load(network, task="restore", tile=32, overlap=16)
    assert isinstance(found, RestoredImage)
    assert found.tiles == 9
    padded = cv2.copyMakeBorder(image, 1, 1, 1, 1, cv2.BORDER_CONSTANT).astype(np.float64)
    expected = sum(padded[i : i + 90, j : j + 75] for i in range(3) for j in range(3)) / 9
    assert np.abs(found.pixels - expected).max() <= 0.5 + 1e-3


def test_a_network_of_fixed_batch_takes_tiles_too(tmp_path: Path) -> None:
    with deploykit.load(blurrer(tmp_path / "b.onnx", batch=4), task="restore", overlap=2) as model:
        found = model([plain(RED, (32, 60)), plain(RED, (32, 32))])
    assert [f.tiles for f in found] == [2, 1]  # type: ignore[attr-defined]  # restored images
    with pytest.raises(UsageError, match="a fixed batch of 4, got 3: export it with --batch 3 or --dynamic batch"):
        deploykit.load(tmp_path / "b.onnx", batch=3)


def test_images_share_a_run_where_their_canvases_are_of_one_size(tmp_path: Path) -> None:
    with deploykit.load(segmenter(tmp_path / "s.onnx", dynamic="batch", batch=3), task="segment") as model:
        found = model([halves(), halves((50, 20)), plain(GREEN), plain(BLUE)])
    assert [f.labels[5, -1] for f in found] == [2, 2, 1, 2]  # type: ignore[attr-defined]  # label maps


def mosaic(pattern: tuple[int, int, int, int] = (1, 2, 0, 1), size: tuple[int, int] = (67, 90)) -> RawImage:
    values = np.random.default_rng(0).integers(80, 700, size).astype(np.uint16)
    return RawImage(values, pattern, (64, 65, 66, 67), 1023, white_balance=(2.0, 1.0, 1.6))


def test_a_raw_file_is_restored(tmp_path: Path) -> None:
    pytest.importorskip("rawpy", reason="rawpy (the extra raw) is not installed")
    source = tmp_path / "a.dng"
    source.write_bytes(dng_bytes(mosaic()))
    cv2.imwrite(str(tmp_path / "b.png"), plain((1, 2, 3, 4), (20, 20)))
    with deploykit.load(blurrer(tmp_path / "b.onnx", channels=4), task="restore", overlap=3) as model:
        assert model.takes_raw
        found = model(source)
        both = list(model.stream(tmp_path))
        assert [type(f) for f in both] == [RestoredRaw, RestoredImage]
    assert isinstance(found, RestoredRaw)
    assert found.tiles == 4  # 34 x 45 cells
    planes = pack(mosaic())
    padded = np.pad(planes, ((0, 0), (1, 1), (1, 1)))
    expected = sum(padded[:, i : i + 34, j : j + 45] for i in range(3) for j in range(3)) / 9
    np.testing.assert_allclose(pack(found.raw)[:, :33], expected[:, :33], atol=0.5 / 950)  # the last row is repeated
    saved = read_raw(found.save(tmp_path / "out.dng"))
    np.testing.assert_array_equal(saved.mosaic, found.raw.mosaic)
    assert (saved.black, saved.white, saved.letters) == ((64, 65, 66, 67), 1023, "GBRG")
    deep = cv2.imread(str(found.save(tmp_path / "out.png")), cv2.IMREAD_UNCHANGED)
    assert (deep.dtype, deep.shape) == (np.uint16, (67, 90, 3))
    assert cv2.imread(str(found.save(tmp_path / "out.jpg"))).shape == (67, 90, 3)
    assert found.to_dict()["pattern"] == "GBRG"


def test_a_raw_file_is_developed_for_other_networks(tmp_path: Path) -> None:
    rawpy = pytest.importorskip("rawpy", reason="rawpy (the extra raw) is not installed")
    source = tmp_path / "a.dng"
    source.write_bytes(dng_bytes(mosaic()))
    with rawpy.imread(str(source)) as raw:
        expected = raw.postprocess(use_camera_wb=True)[..., ::-1]
    with deploykit.load(blurrer(tmp_path / "b.onnx"), task="restore") as model:
        found, listed = model(source), model([source])[0]
        with pytest.raises(ImageError, match="more than the 100"):
            deploykit.load(tmp_path / "b.onnx", max_pixels=100)(source)
    assert (found.name, found.size) == (str(source), (67, 90))
    assert isinstance(found, RestoredImage)
    assert found.image is not None
    np.testing.assert_array_equal(found.image, expected)
    assert listed.image is not None  # kept, because drawing would have to develop it again


def test_a_mosaic_is_refused_by_other_networks(tmp_path: Path) -> None:
    blurrer(tmp_path / "b.onnx")
    with (
        deploykit.load(tmp_path / "b.onnx", task="restore") as model,
        pytest.raises(UsageError, match="restoration network with 4 channels"),
    ):
        model.restore_raw(mosaic())


def test_images_of_four_channels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 200, (30, 40, 4), dtype=np.uint8)
    network = brightener(tmp_path / "n.onnx", kind="letterbox", channels=4)
    file = tmp_path / "x.png"
    cv2.imwrite(str(file), image)
    seen: list[Array] = []

    def answer(inputs: Any) -> dict[str, Array]:
        seen.append(inputs["images"])
        return {"logits": inputs["images"]}

    spec = ModelSpec("segment", canvas_of("resize", (30, 40), channels=4), DenseOutput(), ("a", "b", "c", "d"))
    with Predictor(FakeSession(answer, spec=spec)) as model:
        for source in (image, file, file.read_bytes()):
            found = model(source)
            assert isinstance(found, LabelMap)
            np.testing.assert_array_equal(found.labels, image[..., [2, 1, 0, 3]].argmax(2))
        np.testing.assert_allclose(seen[0][0, 3], image[..., 3] / 255, atol=1e-7)
        np.testing.assert_allclose(seen[0][0, 0], image[..., 2] / 255, atol=1e-7)
        with pytest.raises(ImageError, match=r"takes uint8 images of 4 channels .* got uint8 \(40, 60, 3\)"):
            model(plain(RED))
        with pytest.raises(ImageError, match="is empty"):
            model(b"")
    assert network.exists()


def test_grey_networks_take_grey(tmp_path: Path) -> None:
    with deploykit.load(brightener(tmp_path / "n.onnx", channels=1), task="restore") as model:
        found = model(plain((10, 20, 30), (32, 48)))
    assert isinstance(found, RestoredImage)
    assert found.pixels.shape == (32, 48)
    assert set(np.unique(found.pixels)) == {round(1.2345 * round(0.114 * 10 + 0.587 * 20 + 0.299 * 30))}
    assert found.draw().shape == (32, 48, 3)


def test_videos_are_segmented_frame_by_frame(tmp_path: Path) -> None:
    file = tmp_path / "v.avi"
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"MJPG"), 5, (60, 40))
    for _ in range(3):
        writer.write(halves())
    writer.release()
    with deploykit.load(segmenter(tmp_path / "s.onnx"), task="segment") as model:
        frames = list(model.stream(file))
    assert [f.frame for f in frames] == [0, 1, 2]
    assert frames[1].draw().shape == (40, 60, 3)


@pytest.mark.parametrize(
    ("made", "options", "words"),
    [
        (classifier, {"conf": 0.5}, "conf: not for the task classify of this model"),
        (classifier, {"top": 0}, "top must be at least 1"),
        (classifier, {"task": "segment"}, "'segment' was asked for, .* is for 'classify'"),
        (segmenter, {"top": 3}, "top: not for the task segment of this model"),
        (segmenter, {"tile": 64}, "tile: not for the task segment of this model"),
        (
            brightener,
            {"tile": 64},
            r"takes only tiles of \(32, 48\) \(height, width\), got \(64, 64\): leave .*--img or",
        ),
        (classifier, {"batch": 2}, "a fixed batch of 1, got 2"),
    ],
)
def test_options_of_other_tasks_are_refused(made: Any, options: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        deploykit.load(made(tmp_path / "n.onnx"), **options)


def test_an_option_that_does_not_exist_brings_those_that_do(tmp_path: Path) -> None:
    model = classifier(tmp_path / "n.onnx")
    with pytest.raises(TypeError, match=r"^load\(\) has no option 'img': its options are conf, .*top, .*, threads$"):
        deploykit.load(model, img=240)  # type: ignore[call-overload]  # the error is the point
    with pytest.raises(
        TypeError, match=r"^evaluate\(\) has no option 'imgs': its options are split, limit, .*, threads$"
    ):
        deploykit.evaluate(model, tmp_path, imgs=2)  # type: ignore[call-overload]  # the error is the point


def test_a_predictor_tells_its_task_and_classes(tmp_path: Path) -> None:
    with deploykit.load(segmenter(tmp_path / "s.onnx")) as model:
        assert (model.task, model.classes) == ("segment", model.spec.classes)
        assert model.classes


def test_a_detector_has_no_tiles(tmp_path: Path) -> None:
    spec = ModelSpec("detect", canvas_of("letterbox", (32, 32)), RawDetections(), ("a",))
    with pytest.raises(UsageError, match="tile, overlap: not for the task detect of this model"):
        Predictor(FakeSession(dict, spec=spec), options=PredictOptions(tile=32, overlap=4))


def test_a_network_that_gives_something_else_is_named(tmp_path: Path) -> None:
    spec = ModelSpec("segment", canvas_of("resize", (8, 8)), DenseOutput(), ("a", "b"))
    with (
        Predictor(FakeSession(lambda _: {"logits": np.zeros((1, 2), np.float32)}, spec=spec)) as model,
        pytest.raises(SpecError, match="needs an output of 4 axes"),
    ):
        model(plain(RED))
    with pytest.raises(SpecError, match="3 channels needs as many values of mean and std, got 2"):
        Predictor(FakeSession(dict, spec=replace(spec, input=replace(spec.input, mean=(0.0, 0.0)))))


def test_classes_of_one_name_are_not_lost() -> None:
    """ImageNet has two cranes."""
    both = Classification(size=(2, 2), labels=np.array([0, 1]), scores=np.array([0.6, 0.4]), classes=("crane", "crane"))
    assert [name for name, _ in both.named] == ["crane", "crane"]
    painted = LabelMap(size=(1, 4), labels=np.array([[0, 1, 1, 2]]), classes=("crane", "crane", "sky"))
    assert painted.shares() == {"crane": 0.75, "sky": 0.25}


def test_what_no_result_can_be() -> None:
    with pytest.raises(UsageError, match="must have the same shape"):
        Classification(size=(2, 2), labels=np.arange(3), scores=np.zeros(2))
    with pytest.raises(UsageError, match="finite"):
        Classification(size=(2, 2), labels=np.arange(1), scores=np.array([np.nan]))
    with pytest.raises(UsageError, match="that shape"):
        LabelMap(size=(2, 2), labels=np.zeros((2, 3)))
    with pytest.raises(UsageError, match="does not have its image any more"):
        LabelMap(size=(2, 2), labels=np.zeros((2, 2))).draw()
    with pytest.raises(UsageError, match=r"for an image of \(2, 2\)"):
        LabelMap(size=(2, 2), labels=np.zeros((2, 2))).draw(plain(RED))


def test_a_map_is_drawn_in_the_colours_of_its_classes() -> None:
    image = np.full((300, 400, 3), 200, np.uint8)
    labels = np.zeros((300, 400), np.int32)
    labels[200:, 250:] = 1
    drawn = draw_label_map(image, labels, ("background", "cat"), legend=False)
    assert (drawn[50, 50] == 200).all()
    expected = 0.5 * 200 + 0.5 * np.array(class_colour(1))
    assert np.abs(drawn[280, 380] - expected).max() <= 0.5
    assert not (drawn[199, 300] == 200).all()  # a border
    named = draw_label_map(image, labels, ("background", "cat"))
    assert (named[5:30, 5:20] != drawn[5:30, 5:20]).any()
    sky = draw_label_map(image, labels, ("sky", "cat"), legend=False)[50, 50]
    assert np.abs(sky - (0.5 * 200 + 0.5 * np.array(class_colour(0)))).max() <= 0.5
    assert draw_label_map(image[:3, :3], labels[:3, :3] + 300).shape == (3, 3, 3)
    with pytest.raises(UsageError, match="alpha must lie in"):
        draw_label_map(image, labels, alpha=2)
    with pytest.raises(UsageError, match=r"labels must lie in 0\.\.0"):
        draw_label_map(image, labels, colours=np.zeros((1, 3)))


def test_a_saved_map_has_the_colours_of_the_drawn_one(tmp_path: Path) -> None:
    from PIL import Image

    labels = np.array([[0, 1], [2, 200]])
    for classes, first in ((("background", "cat"), (0, 0, 0)), (("sky", "cat"), class_colour(0)[::-1])):
        LabelMap(size=(2, 2), labels=labels, classes=classes).save_map(tmp_path / "map.png")
        with Image.open(tmp_path / "map.png") as found:
            assert np.array_equal(np.array(found), labels)
            colours = np.array(found.convert("RGB"))
        assert tuple(colours[0, 0]) == first
        assert [tuple(colours[at])[::-1] for at in ((0, 1), (1, 0), (1, 1))] == [class_colour(n) for n in (1, 2, 200)]


@pytest.mark.parametrize("made", [classifier, segmenter, brightener])
def test_it_is_measured_as_others_are(made: Any, tmp_path: Path) -> None:
    network = made(tmp_path / "n.onnx")
    report = benchmark(lambda: deploykit.load(network), runs=2, warmup=0)
    assert report.end_to_end.stages.keys() == {"decode", "prepare", "inference", "postprocess", "rest"}
    assert report.objects == 0
    assert main(["bench", "--engine", str(network), "--duration", "0.1"]) == 0


def test_what_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    pytest.importorskip("rawpy", reason="rawpy (the extra raw) is not installed")
    (tmp_path / "a.dng").write_bytes(b"no mosaic")
    (tmp_path / "b.dng").write_bytes(dng_bytes(mosaic()))
    left: list[DeployError] = []
    with deploykit.load(blurrer(tmp_path / "b.onnx", channels=4), task="restore") as model:
        found = list(model.stream([tmp_path / "a.dng", tmp_path / "b.dng"], skip=left.append))
    assert len(found) == len(left) == 1
    assert isinstance(left[0], ImageError)


def test_an_image_too_small_to_be_mirrored(tmp_path: Path) -> None:
    with deploykit.load(brightener(tmp_path / "n.onnx", kind="resize"), task="restore", overlap=0) as model:
        assert model(plain(RED, (1, 1))).size == (1, 1)
    with deploykit.load(segmenter(tmp_path / "s.onnx"), task="segment") as segments:
        spec = replace(segments.spec, input=replace(segments.spec.input, fit=canvas_of("pad", (1, 1)).fit))
        padding = Predictor(segments.session, spec)
        with pytest.raises(ImageSizeError, match="takes images of at most 32x48"):
            padding(plain(RED, (100, 100)))
