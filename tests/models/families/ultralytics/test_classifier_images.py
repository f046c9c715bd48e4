"""How images are prepared for a classifier of the ultralytics package: by its file's steps, its release, or assumed."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import deploykit
from deploykit.errors import UsageError
from deploykit.export.options import OnnxOptions
from deploykit.export.to_onnx import onnx_from_model
from deploykit.models.checkpoint.reader import Checkpoint, Module
from deploykit.models.class_names import IMAGENET_MEAN, IMAGENET_STD
from deploykit.models.create.original_format import StandIn, module_record, pickled, record_of
from deploykit.models.families.ultralytics import classifier_images as source
from deploykit.models.families.ultralytics.build import build_graph
from deploykit.models.families.ultralytics.classifier_images import classifier_images
from deploykit.models.families.ultralytics.description import Description
from deploykit.models.load_options import LoadOptions
from deploykit.models.registry import ReferenceModel, load_model
from deploykit.runtime.images.placing import place_on_canvas
from deploykit.runtime.images.to_tensor import to_nchw
from deploykit.spec import InputSpec

GOLDEN = Path(__file__).resolve().parents[5] / "shared" / "golden"
YAML = {"nc": 3, "backbone": [[-1, 1, "Conv", [8, 3, 2]]], "head": [[-1, 1, "Classify", ["nc"]]], "channels": 3}
TORCHVISION, OLD = "torchvision.transforms.transforms", "ultralytics.yolo.data.augment"
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
IMAGENET = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
SHAPE = {"size": (320, 320), "stride": 1}


def step(kind: str, **attributes: Any) -> StandIn:
    return module_record(kind, attributes=attributes)


def filter_named(name: str) -> StandIn:
    record = step("torchvision.transforms.functional.InterpolationMode")
    record.__dict__ = {"value": name}
    return record


def newer(size: Any = 320, crop: Any = 320, **more: Any) -> list[StandIn]:
    numbers = {name: torch.tensor(values) for name, values in PLAIN.items()}
    return [
        step(f"{TORCHVISION}.Resize", size=size, max_size=None, antialias=True, **more),
        step(f"{TORCHVISION}.CenterCrop", size=crop),
        step(f"{TORCHVISION}.ToTensor"),
        step(f"{TORCHVISION}.Normalize", inplace=False, **numbers),
    ]


def older() -> list[StandIn]:
    return [
        step(f"{OLD}.CenterCrop", h=320, w=320),
        step(f"{OLD}.ToTensor", half=False),
        step(f"{TORCHVISION}.Normalize", mean=list(IMAGENET_MEAN), std=list(IMAGENET_STD), inplace=False),
    ]


@cache
def network() -> Any:
    torch.manual_seed(0)
    return build_graph(Description.from_yaml(YAML))


def written(path: Path, steps: list[StandIn] | None = None, version: str | None = None) -> Path:
    """A file as the package writes one, with a network of two layers."""
    attributes: dict[str, Any] = {"yaml": YAML, "names": {0: "cat", 1: "dog", 2: "fox"}}
    if steps is not None:
        attributes["transforms"] = step(f"{TORCHVISION}.Compose", transforms=steps)
    kind = "ultralytics.nn.tasks.ClassificationModel"
    model = module_record(kind, modules={"model": record_of(network().model)}, attributes=attributes)
    beside = {} if version is None else {"version": version}
    path.write_bytes(pickled({"model": model, "ema": None, "train_args": {"imgsz": 320}, **beside}))
    return path


def way(model: ReferenceModel) -> tuple[bool, str, dict[str, Any]]:
    """Whether the middle is cut out first, what scales it, and the mean and the deviation."""
    canvas = model.spec.input
    return canvas.fit.crop_first, canvas.fit.resample, {"mean": canvas.mean, "std": canvas.std}


@pytest.mark.parametrize(
    ("steps", "version", "expected", "said"),
    [
        (newer(), "8.3.0", (False, "bilinear", PLAIN), "by the steps that its file holds: Resize, CenterCrop, ToTen"),
        (newer(), "8.0.50", (False, "bilinear", PLAIN), "by the steps that its file holds: Resize, CenterCrop, ToTen"),
        (older(), "8.0.50", (True, "opencv", IMAGENET), "by the steps that its file holds: CenterCrop, ToTensor, Nor"),
        (older(), None, (True, "opencv", IMAGENET), "by the steps that its file holds: CenterCrop, ToTensor, Normal"),
        (None, "8.0.0", (True, "opencv", IMAGENET), "as release 8.0.0 of the package, which wrote the file, does it"),
        (None, "8.0.120", (True, "opencv", IMAGENET), "as release 8.0.120 of the package, which wrote the file"),
        (None, "8.1.0", (False, "bilinear", PLAIN), "as release 8.1.0 of the package, which wrote the file, does it"),
        (None, "8.4.190", (False, "bilinear", PLAIN), "as release 8.4.190 of the package, which wrote the file"),
    ],
)  # fmt: skip
def test_the_file_tells(
    tmp_path: Path, steps: list[StandIn] | None, version: str | None, expected: Any, said: str
) -> None:
    model = load_model(written(tmp_path / "m.pt", steps, version))
    assert way(model) == expected
    assert model.spec.input.size == (320, 320)
    assert model.spec.assumptions == ()
    assert [note for note in model.notes if said in note]
    assert model.spec.classes == ("cat", "dog", "fox")


def test_without_steps_and_release_it_is_assumed_and_said(tmp_path: Path) -> None:
    file = written(tmp_path / "m.pt")
    model = load_model(file)
    assert way(model) == (False, "bilinear", PLAIN)
    first, second = model.spec.assumptions
    assert first.endswith("without a mean and a deviation: no tensor tells; choose with --mean and --std")
    assert second.endswith("Pillow's bilinear filter: no tensor tells; choose with --crop and --interpolation")
    assert source.UNTOLD in model.notes
    asked = load_model(file, preprocessing="legacy")
    assert way(asked) == (True, "opencv", IMAGENET)
    assert asked.spec.assumptions == ()
    with pytest.raises(UsageError, match="leave --crop out"):
        load_model(file, preprocessing="legacy", loading=LoadOptions(crop=0.9))


def test_a_release_between_the_two_ways_leaves_it_open(tmp_path: Path) -> None:
    file = written(tmp_path / "m.pt", version="8.0.196")
    model = load_model(file)
    assert way(model) == (True, "opencv", IMAGENET)
    assert len(model.spec.assumptions) == 2
    assert source.BETWEEN.format("8.0.196") in model.notes
    assert way(load_model(file, preprocessing="current")) == (False, "bilinear", PLAIN)


def test_a_file_that_tells_has_one_way(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no preprocessing 'legacy'"):
        load_model(written(tmp_path / "m.pt", newer()), preprocessing="legacy")


@pytest.mark.parametrize(
    ("size", "crop", "fit", "canvas"),
    [
        (256, 224, ("crop", 0.875), (224, 224)),
        ([300], (300, 300), ("crop", 1.0), (300, 300)),
        ([160, 320], [160, 320], ("resize", 0.875), (160, 320)),  # each side by itself, nothing is cut off
        ((224, 224), (224, 224), ("resize", 0.875), (224, 224)),
    ],
)
def test_sizes_are_those_of_the_steps(
    tmp_path: Path, size: Any, crop: Any, fit: tuple[str, float], canvas: tuple[int, int]
) -> None:
    found = load_model(written(tmp_path / "m.pt", newer(size, crop), "8.3.0")).spec.input
    assert ((found.fit.kind, found.fit.crop_share), found.size) == (fit, canvas)
    assert found.fit.resample == "bilinear"


STRANGE = [
    step(f"{TORCHVISION}.RandomResizedCrop", size=(320, 320)),
    step(f"{TORCHVISION}.RandomHorizontalFlip", p=0.5),
    step(f"{TORCHVISION}.ToTensor"),
]


@pytest.mark.parametrize(
    "steps",
    [
        STRANGE,
        newer(interpolation="nearest"),
        newer(interpolation=[2]),
        newer(interpolation=True),
        newer(0, 0),
        newer(224, 320),
        newer("320"),
        [*newer()[:3], step(f"{TORCHVISION}.Normalize", mean=[math.nan] * 3, std=[1.0] * 3)],
        [*newer()[:3], step(f"{TORCHVISION}.Normalize", mean=[0.0] * 3, std=[0.0] * 3)],
        [*newer()[:3], step(f"{TORCHVISION}.Normalize", mean=[0.0] * 2, std=[1.0] * 2)],
        [*newer()[:3], step(f"{TORCHVISION}.Normalize", mean=[255.0] * 3, std=[1.0] * 3)],
        [step(f"{TORCHVISION}.CenterCrop", size=320), step(f"{TORCHVISION}.ToTensor")],
        [*newer(), step(f"{TORCHVISION}.Normalize", mean=[0.5] * 3, std=[0.5] * 3)],
    ],
)
def test_other_steps_are_named_and_not_used(tmp_path: Path, steps: list[StandIn]) -> None:
    model = load_model(written(tmp_path / "m.pt", steps, "8.0.100"))
    assert way(model) == (True, "opencv", IMAGENET)
    names = ", ".join(type(each).__name__ for each in steps)
    assert source.OTHER_STEPS.format(names) in model.notes


@pytest.mark.parametrize("pickled_as", ["value", "name", "number"])
def test_a_filter_is_read_however_python_pickled_it(pickled_as: str, tmp_path: Path) -> None:
    """Enumerations are pickled as a call with their value, or as an attribute of their class."""

    class Mode(StandIn):
        def __reduce__(self) -> Any:
            if pickled_as == "name":
                return getattr, (type(self), "BICUBIC")
            return type(self), (3 if pickled_as == "number" else "bicubic",)

    module = "PIL.Image" if pickled_as == "number" else "torchvision.transforms.functional"
    Mode.__module__ = module
    Mode.__qualname__ = Mode.__name__ = "Resampling" if pickled_as == "number" else "InterpolationMode"
    model = load_model(written(tmp_path / "m.pt", newer(interpolation=Mode())))
    assert model.spec.input.fit.resample == "bicubic"
    assert any("getattr" in note for note in model.notes) == (pickled_as == "name")
    assert not any("InterpolationMode" in note or "Resampling" in note for note in model.notes)


def test_steps_within_themselves_are_left_out(tmp_path: Path) -> None:
    steps = newer()
    steps.append(step(f"{TORCHVISION}.Compose", transforms=steps))
    assert way(load_model(written(tmp_path / "m.pt", steps, "8.0.100"))) == (True, "opencv", IMAGENET)


plain = st.none() | st.booleans() | st.integers(-9, 1 << 40) | st.floats() | st.text(max_size=4)
values = st.recursive(plain, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner))
kinds = st.sampled_from(
    [f"{TORCHVISION}.{name}" for name in ("Resize", "CenterCrop", "ToTensor", "Normalize", "Pad")]
    + [f"{OLD}.CenterCrop", "", "x"]
)
names = st.sampled_from(["step", "size", "mean", "std", "interpolation", "h", "transforms"])
hostile_steps = st.builds(
    lambda kind, more: {**more, "step": kind}, kinds | values, st.dictionaries(names, values, max_size=4)
)


@settings(max_examples=60)
@given(steps=st.lists(hostile_steps, max_size=5) | values, version=values)
def test_hostile_steps_give_an_input_all_the_same(steps: Any, version: Any) -> None:
    root = Module("", "ultralytics.nn.tasks.ClassificationModel", {"transforms": {"step": "x", "transforms": steps}})
    empty = Checkpoint(Path("m.pt"), 0, "", "torch-zip", "model", {}, None, None, None, (root,), {}, ())  # type: ignore[arg-type]  # any format
    found = classifier_images(64, 3, replace(empty, metadata={"version": version}))
    assert isinstance(found.canvas, InputSpec)
    assert all(len(note) < 1000 for note in found.notes)


@given(size=st.integers(1, 600), more=st.integers(0, 600))
def test_the_share_leads_back_to_the_scaled_side(size: int, more: int) -> None:
    assert math.floor(size / source._share(size, size + more)) == size + more


def test_the_older_way_is_opencvs_of_the_middle_square(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (117, 190, 3), np.uint8)
    canvas = load_model(written(tmp_path / "m.pt", version="8.0.120")).spec.input
    placed = place_on_canvas(image, canvas)
    square = cv2.resize(np.ascontiguousarray(image[:, 36:153]), (320, 320), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(placed.canvas, square)
    values = (square[..., ::-1] / 255 - IMAGENET_MEAN) / IMAGENET_STD
    np.testing.assert_allclose(to_nchw([placed.canvas], canvas)[0].transpose(1, 2, 0), values, atol=3e-7)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package's own file, exported for the size of its reference values."""
    if not GOLDEN.is_dir():
        pytest.skip("the golden files are not here")
    model = load_model(GOLDEN / "yolov8n-cls-narrow.pt")
    out = tmp_path_factory.mktemp("cls") / "m.onnx"
    onnx_from_model(model, out=out, img=(64, 64), options=OnnxOptions())
    return out


def test_a_prediction_is_the_packages_own(exported: Path) -> None:
    with np.load(GOLDEN / "yolov8n-cls-narrow.npz") as golden, deploykit.load(exported, top=10) as predictor:
        image = np.ascontiguousarray(golden["predict_image_rgb"][..., ::-1])
        canvas = predictor.spec.input
        given_to_it = to_nchw([place_on_canvas(image, canvas).canvas], canvas)
        found = predictor(image)
        expected_input, expected = golden["predict_input"], golden["predict_probs"]
    assert np.abs(given_to_it - expected_input).max() <= 3e-8
    assert np.abs(found.scores - expected[found.labels]).max() <= 1e-5
    assert sorted(found.labels) == list(range(10))


def test_an_evaluation_is_what_the_files_own_probabilities_say(exported: Path, tmp_path: Path) -> None:
    """Images lie in folders of classes that the original network ranks first, third and eighth."""
    image_of = pytest.importorskip("PIL.Image", reason="the images are prepared by Pillow, as the package does it")
    module = load_model(GOLDEN / "yolov8n-cls-narrow.pt").module
    rng, ranks = np.random.default_rng(3), (0, 2, 7)
    with np.load(GOLDEN / "yolov8n-cls-narrow.npz") as golden:
        own, probabilities = golden["predict_image_rgb"], golden["predict_probs"]
    for n, rank in enumerate((*ranks, *ranks)):
        image = own if n < len(ranks) else rng.integers(0, 256, (64 + 9 * n, 64, 3), np.uint8)
        if image is not own:
            top = round((image.shape[0] - 64) / 2)
            pixels = torch.from_numpy(image[top : top + 64].astype(np.float32) / 255).permute(2, 0, 1)[None]
            with torch.inference_mode():
                probabilities = module(pixels).softmax(1)[0].numpy()
        folder = tmp_path / f"class{np.argsort(-probabilities)[rank]}"
        folder.mkdir(exist_ok=True)
        image_of.fromarray(image).save(folder / f"{n}.png")
    found = deploykit.evaluate(exported, tmp_path)
    assert found.metrics == {"top1": 2 / 6, "top5": 4 / 6}
