"""What the values of label maps mean: classes, the ignored value, and values that the network cannot give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from onnx import helper

import deploykit
from deploykit.cli import main
from deploykit.errors import DataError, UsageError
from deploykit.runtime.arrays import Array
from deploykit.runtime.evaluate.mask_values import MaskValues
from deploykit.runtime.options import EvalOptions
from deploykit.spec import DenseOutput, ModelSpec
from tests.dense_networks import canvas_of, write

pytest.importorskip("hotcoco", reason="hotcoco (the extra eval) is not installed")
pillow = pytest.importorskip("PIL.Image", reason="Pillow (the extra eval) is not installed")


def _save(path: Path, image: Array) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)
    return path


def two_classes(path: Path, names: tuple[str, ...]) -> Path:
    """The class of a pixel is whether it has more green than red."""
    spec = ModelSpec("segment", canvas_of("resize", (32, 48)), DenseOutput(), names)
    nodes = [helper.make_node("Slice", ["images", "first", "end", "axis"], ["logits"])]
    return write(path, spec, nodes, {"first": np.array([0]), "end": np.array([2]), "axis": np.array([1])})


class Case:
    """A two-class network, two images, and its own answers as their label maps: 0 and 1."""

    def __init__(self, folder: Path, names: tuple[str, ...] = ("ground", "cloud")) -> None:
        self.folder, self.images = folder, folder / "images"
        self.model = two_classes(folder / "two.onnx", names)
        self.labels: dict[str, Array] = {}
        with deploykit.load(self.model, task="segment") as predict:
            for seed, name in enumerate(("a.png", "b.png")):
                image = np.random.default_rng(seed).integers(0, 200, (32, 48, 3), np.uint8)
                _save(self.images / name, image)
                self.labels[name] = predict(self.images / name).labels.astype(np.uint8)
        assert all(set(np.unique(labels)) == {0, 1} for labels in self.labels.values())

    def maps(self, name: str, change: Any = lambda labels: labels) -> Path:
        """Write the label maps after a change, and return their folder."""
        for file, labels in self.labels.items():
            _save(self.folder / name / file, change(labels.copy()))
        return self.folder / name

    def evaluated(self, maps: Path, **options: Any) -> Any:
        return deploykit.evaluate(self.model, maps, images=self.images, **options)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("case"))


def test_maps_of_0_and_255_are_ambiguous_for_two_classes_and_either_meaning_can_be_said(case: Case) -> None:
    assert case.evaluated(case.maps("plain")).metrics["Dice"] == 1.0
    masks = case.maps("masks", lambda labels: labels * 255)
    with pytest.raises(DataError, match=r"only 0 and 255.*--mask-values 0,255 if 255 is class 1, or --ignore-label"):
        case.evaluated(masks)
    found = case.evaluated(masks, mask_values=(0, 255))
    assert (found.metrics["Dice"], found.metrics["mIoU"]) == (1.0, 1.0)
    assert found.counts == {"images": 2, "pixels": 2 * 32 * 48}
    ignored = sum(int(labels.sum()) for labels in case.labels.values())
    found = case.evaluated(masks, ignore_label=255)
    assert found.counts == {"images": 2, "pixels": 2 * 32 * 48 - ignored, "ignored": ignored}
    swapped = case.evaluated(masks, mask_values=(255, 0))
    assert swapped.metrics["aAcc"] == 0.0


def test_a_border_of_ignored_pixels_is_not_ambiguous(case: Case) -> None:
    def bordered(labels: Array) -> Array:
        labels[:, 23:25] = 255
        return labels

    found = case.evaluated(case.maps("bordered", bordered))
    assert found.metrics["mIoU"] == 1.0
    assert found.counts["ignored"] == 2 * 2 * 32


def test_the_names_that_a_unet_has_from_its_weights_say_the_values(tmp_path: Path) -> None:
    named = Case(tmp_path, ("mask 0", "mask 255"))
    assert named.evaluated(named.maps("masks", lambda labels: labels * 255)).metrics["Dice"] == 1.0
    with pytest.raises(
        DataError, match=r"the label 1 \(\d+ pixels\), but the network has 2 classes \(0, 255; no value"
    ):
        named.evaluated(named.maps("plain"))


def test_values_that_are_no_class_are_named_and_counted(case: Case) -> None:
    def odd(labels: Array) -> Array:
        labels[0, :5] = 7
        labels[1, :2] = 9
        labels[2, :1] = 200
        return labels

    with pytest.raises(
        DataError,
        match=r"a\.png has the labels 7 \(5 pixels\), 9 \(2 pixels\), 200 \(1 pixel\), but the network has 2 classes "
        r"\(0 to 1; 255 is ignored\)",
    ):
        case.evaluated(case.maps("odd", odd))
    with pytest.raises(DataError, match=r"the label 255 \(\d+ pixels\).*no value is ignored"):
        case.evaluated(case.maps("masks", lambda labels: labels * 255), ignore_label="none")


def test_maps_without_a_pixel_that_counts_are_refused(case: Case) -> None:
    with pytest.raises(DataError, match=r"no pixel can be scored: all 3,072 pixels .* have the value 255"):
        case.evaluated(case.maps("nothing", lambda labels: np.full_like(labels, 255)))
    half = case.maps("half")
    _save(half / "b.png", np.full((32, 48), 255, np.uint8))
    found = case.evaluated(half)
    assert found.metrics["mIoU"] == 1.0
    assert "1 of the 2 (b.png) label maps have nothing but ignored pixels" in found.notes


def test_ambiguous_maps_are_found_at_the_end_where_the_first_ones_do_not_tell(case: Case) -> None:
    def late(labels: Array) -> Array:
        return np.zeros_like(labels)

    maps = case.maps("late", late)
    assert case.evaluated(maps).metrics["aAcc"] < 1.0  # without a pixel of 255 nothing is ambiguous
    _save(maps / "b.png", np.full((32, 48), 255, np.uint8))
    with pytest.raises(DataError, match="only 0 and 255"):
        case.evaluated(maps)


def test_grey_saved_as_colours_is_read_and_said_and_colours_are_refused(case: Case) -> None:
    grey = case.maps("grey", lambda labels: np.repeat(labels[..., None], 3, 2))
    found = case.evaluated(grey)
    assert found.metrics["mIoU"] == 1.0
    assert "2 of the 2 (a.png, b.png) label maps are grey saved as RGB: read as grey" in found.notes
    colours = np.array([(0, 0, 0), (128, 0, 0)], np.uint8)
    with pytest.raises(DataError, match=r"one channel or a palette.*a\.png is RGB with 2 colours: save the number"):
        case.evaluated(case.maps("colours", lambda labels: colours[labels]))
    with pytest.raises(DataError, match=r"a\.png is RGBA"):
        case.evaluated(case.maps("alpha", lambda labels: np.repeat(labels[..., None], 4, 2)))


def test_a_palette_is_its_indices_and_its_colours_mean_nothing(case: Case) -> None:
    (case.folder / "palette").mkdir()
    for name, labels in case.labels.items():
        indexed = pillow.fromarray(labels, "P")
        indexed.putpalette([0, 0, 0, 255, 255, 255])
        indexed.save(case.folder / "palette" / name)
    assert case.evaluated(case.folder / "palette").metrics["mIoU"] == 1.0


def test_jpeg_changes_label_maps_and_the_error_says_so(case: Case) -> None:
    folder = case.folder / "jpeg"
    for name, labels in case.labels.items():
        _save(folder / Path(name).with_suffix(".jpg"), labels * 255)
    with pytest.raises(DataError, match="JPEG changes the values, a label map needs PNG"):
        case.evaluated(folder, mask_values=(0, 255))


def test_values_of_16_bits_and_an_ignored_0_have_their_meaning() -> None:
    values = MaskValues.of(EvalOptions(mask_values=(1, 2, 40_000), ignore_label=0), 3)
    found = np.array([[0, 1], [2, 40_000]])
    assert values.labels(found, Path("a.png")).tolist() == [[3, 0], [1, 2]]
    assert MaskValues.of(EvalOptions(), 300).ignored is None  # 255 is a class of this network
    with pytest.raises(DataError, match=r"the labels -1 \(1 pixel\), 70000 \(1 pixel\)"):
        values.labels(np.array([[-1, 70_000, 1]]), Path("a.png"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (EvalOptions(mask_values=(0, 1, 2)), "each of the network's 2 classes, got 3 values"),
        (EvalOptions(mask_values=(5, 5)), "different numbers"),
        (EvalOptions(mask_values=(0, 70_000)), "from 0 to 65535"),
        (EvalOptions(ignore_label=-1), "from 0 to 65535"),
    ],
)
def test_values_that_make_no_sense_are_refused(options: EvalOptions, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        MaskValues.of(options, 2)


def test_the_command_line_fills_the_options(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    masks = case.maps("cli", lambda labels: labels * 255)
    words = ["eval", "--model", case.model, "--data", masks, "--images", case.images, "--json"]
    assert main(list(map(str, words))) == DataError.exit_code
    assert "--mask-values 0,255" in capsys.readouterr().err
    assert main([*map(str, words), "--mask-values", "0,255"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["Dice"] == 1.0
    assert main([*map(str, words), "--mask-values", "0-1", "--ignore-label", "255"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"]["ignored"] > 0
    assert main([*map(str, words), "--ignore-label", "none"]) == DataError.exit_code
