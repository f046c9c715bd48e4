"""Networks with one dense output, from module to verified file: classes, label maps, restored images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from deploykit.errors import ParityError, UsageError
from deploykit.export.engine.build import build_engine
from deploykit.export.options import Calibration, OnnxOptions, PrecisionOptions
from deploykit.export.outputs import export_adapter_of
from deploykit.export.parity.compare import check_expected, compare, expect
from deploykit.export.parity.inputs import make_parity_inputs, preprocess_for_parity, sample_image
from deploykit.export.parity.tolerances import FP16
from deploykit.export.precision.calibration import calibration_images
from deploykit.export.sessions.torch_module import TorchSession, spec_of_module
from deploykit.export.to_onnx import onnx_from_model
from deploykit.models.create.random_weights import randomise
from deploykit.models.layers.conv import Conv
from deploykit.models.registry import ReferenceModel
from deploykit.runtime.arrays import Array
from deploykit.runtime.backends.fake import FakeSession
from deploykit.runtime.images.reading import read_image
from deploykit.runtime.images.to_tensor import to_nchw
from deploykit.runtime.parity.differences import tensor_difference
from deploykit.runtime.parity.expected import ReferenceOutputs
from deploykit.runtime.parity.tolerance import Tolerance
from deploykit.runtime.session import open_session
from deploykit.spec import DenseOutput, Fit, InputSpec, ModelSpec

CLASSES = ("sky", "tree", "road")


class Segmenter(nn.Module):
    """Half the size and back."""

    def __init__(self, channels: int = 3, classes: int = 3) -> None:
        super().__init__()
        self.stem = Conv(channels, 8, 3, 2)
        self.last = nn.Conv2d(8, classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = nn.functional.interpolate(self.last(self.stem(images)), scale_factor=2, mode="bilinear")
        return found


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = Conv(3, 8, 3, 2)
        self.last = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.last(self.stem(images).mean((2, 3)))
        return found


class Restorer(nn.Module):
    """A residual, for images of any size."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.stem = Conv(channels, 8, 3, 1)
        self.last = nn.Conv2d(8, channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        return images + 0.1 * self.last(self.stem(images))


def model_of(task: str, channels: int = 3, classes: int = 3) -> ReferenceModel:
    torch.manual_seed(0)
    module = {
        "segment": lambda: Segmenter(channels, classes), "classify": Classifier, "restore": lambda: Restorer(channels),
    }[task]()  # fmt: skip
    randomise(module)
    fit = {"segment": Fit(kind="resize", stride=2), "classify": Fit(kind="crop"), "restore": Fit(kind="pad", stride=1)}
    size = (48, 64) if task != "classify" else (32, 32)
    zeros, ones = (0.0,) * channels, (1.0,) * channels
    canvas = InputSpec(size=size, channels=channels, mean=zeros, std=ones, fit=fit[task])
    output = DenseOutput(name="image" if task == "restore" else "logits")
    names = () if task == "restore" else CLASSES[:classes]
    return ReferenceModel(task, "test", module.eval(), ModelSpec(task, canvas, output, names))  # type: ignore[arg-type]  # a str


TASKS = ("segment", "classify", "restore")


@pytest.mark.parametrize("exporter", ["dynamo", "legacy"])
@pytest.mark.parametrize("dynamic", ["none", "batch", "shape"])
@pytest.mark.parametrize("task", TASKS)
def test_a_dense_network_becomes_a_verified_file(task: str, dynamic: str, exporter: str, tmp_path: Path) -> None:
    model = model_of(task)
    report = onnx_from_model(model, out=tmp_path / "m.onnx", dynamic=dynamic, options=OnnxOptions(exporter=exporter))  # type: ignore[arg-type]  # strings
    assert report.parity is not None
    assert report.parity.ok
    assert {d.values for d in report.parity.differences} == {model.spec.output.name}  # type: ignore[union-attr]  # a Tensor
    what = "grey levels" if task == "restore" else "classes"
    assert all(m.what == what and m.matched == m.expected > 0 for m in report.parity.matchings)
    output = onnx.load(str(report.path)).graph.output[0].type.tensor_type.shape.dim
    axes = [d.dim_param or d.dim_value for d in output]
    assert axes[0] == (1 if dynamic == "none" else "batch")
    assert axes[1] == 3
    if task != "classify":
        assert axes[2:] == ([48, 64] if dynamic != "shape" else ["out_height", "out_width"])
    sizes = {image for image in (d.input for d in report.parity.differences) if "rectangle" in image}
    assert bool(sizes) == (dynamic == "shape" and task != "classify")


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_networks_of_other_numbers_of_channels(channels: int, tmp_path: Path) -> None:
    report = onnx_from_model(model_of("restore", channels), out=tmp_path / "m.onnx")
    assert report.parity is not None
    assert report.parity.ok
    assert report.inputs[0].shape == (1, channels, 48, 64)


def test_what_is_fed_are_the_colours_in_the_networks_order() -> None:
    image = read_image(sample_image())
    canvas = model_of("segment").spec.input
    three = preprocess_for_parity(image, canvas, auto=False)
    four = preprocess_for_parity(image, replace(canvas, channels=4, mean=(0.0,) * 4, std=(1.0,) * 4), auto=False)
    np.testing.assert_allclose(four[:, :3], three, atol=1e-7)
    assert 0 < np.abs(four[:, 3] - four[:, 1]).mean() < 0.2


def test_images_of_the_networks_channels_are_fed_as_they_are_and_others_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In the calibration as in the verification; 16 bits become 8."""
    spec = model_of("restore", 4).spec
    image = np.random.default_rng(0).integers(0, 65536, (*spec.input.size, 4), dtype=np.uint16)
    (tmp_path / "four.png").write_bytes(cv2.imencode(".png", image)[1].tobytes())
    expected = to_nchw([(image >> 8).astype(np.uint8)], spec.input)
    fed = make_parity_inputs(spec, [tmp_path / "four.png"])
    np.testing.assert_array_equal(fed.images["four.png"], expected)
    (measured,) = calibration_images(Calibration((str(tmp_path / "four.png"),)), spec, 1)
    np.testing.assert_array_equal(measured, expected)
    assert not caplog.messages
    calibration_images(Calibration((str(sample_image()),) * 3), spec, 3)
    (said,) = caplog.messages
    assert said.startswith("the network takes 4 channels, but ")
    assert said.endswith("has 3: red, green, blue and grey stand in for them in the calibration")


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("task", TASKS)
def test_lower_precisions(task: str, precision: str, tmp_path: Path) -> None:
    asked = PrecisionOptions(precision=precision)  # type: ignore[arg-type]  # strings
    report = onnx_from_model(model_of(task), out=tmp_path / "m.onnx", precision=asked)
    assert report.parity is not None
    assert report.parity.ok
    assert max(d.max_abs for d in report.parity.differences) > 1e-6


@pytest.mark.parametrize("task", TASKS)
def test_an_engine_is_built(task: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    onnx_from_model(model_of(task), out=tmp_path / "m.onnx")
    report = build_engine(tmp_path / "m.onnx", flavour="tensorrt-rtx", out=tmp_path / "m.trt")
    if not report.record.verified:
        expected = ReferenceOutputs.load(tmp_path / "m.trt.parity.npz")
        assert expected.layout == model_of(task).spec.output
        with open_session(tmp_path / "m.onnx", provider="cpu") as session:
            assert check_expected(expected, "itself", session, report.record.spec).ok


@pytest.mark.parametrize("task", TASKS)
def test_a_network_that_is_off_is_found(task: str, tmp_path: Path) -> None:
    model = model_of(task)
    report = onnx_from_model(model, out=tmp_path / "m.onnx")
    other = model_of(task)
    with torch.no_grad():
        next(other.module.parameters()).mul_(1.001)
    session = TorchSession(other.module, spec_of_module(other))
    parity = compare(report.path, session)
    assert not parity.ok
    with pytest.raises(ParityError, match=r"channel [0-9]+, pixel [0-9]+ is .* expected"):
        parity.raise_if_bad("it")


def test_an_image_in_the_wrong_slot_is_found() -> None:
    model = model_of("segment")
    spec = spec_of_module(model)
    feeds = make_parity_inputs(replace(spec, input=replace(spec.input, dynamic="batch")))
    right = TorchSession(model.module, spec)
    expected = expect({"it": right}, spec, feeds)

    def swapped(inputs: Mapping[str, Array]) -> dict[str, Array]:
        return right.run({"images": inputs["images"][::-1]})

    session = FakeSession(swapped, inputs=right.inputs)
    parity = check_expected(expected, "swapped", session, spec)
    assert not parity.ok
    assert all("slots shuffled" in d.input for d in parity.differences if not d.ok)


def test_nms_is_not_for_networks_that_find_no_boxes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--nms graph is for detectors: this model's task is segment"):
        onnx_from_model(model_of("segment"), out=tmp_path / "m.onnx", nms="graph")


SPEC = model_of("segment").spec


def matching(a: Array, b: Array, limits: Tolerance | None = None, spec: ModelSpec = SPEC) -> tuple[int, int, int]:
    (found,) = export_adapter_of(spec).match(("a", "b", "x"), [a], [b], limits or Tolerance())
    return found.expected, found.matched, found.borderline


def test_pixels_are_matched_by_their_class() -> None:
    a = np.zeros((3, 2, 2), np.float32)
    a[1] = [[1, 2], [3, 0.000001]]
    b = a.copy()
    b[1, 1, 1] = -0.000001  # a tie
    assert matching(a, b) == (4, 3, 2)
    b[2, 0, 0] = 5
    assert matching(a, b) == (4, 2, 2)
    (found,) = export_adapter_of(SPEC).match(("a", "b", "x"), [a], [b], Tolerance())
    assert not found.ok
    assert found.max_score > 0.7
    assert "2 of 4 match (2 borderline), probabilities within" in str(found)


def test_one_channel_is_a_class_against_none() -> None:
    a = np.array([[[-1.0, 1.0, 2.0]]], np.float32)
    assert matching(a, a) == (3, 3, 0)
    assert matching(a, -a) == (3, 0, 0)


def test_grey_levels_are_those_of_eight_bits() -> None:
    spec = model_of("restore").spec
    a = np.full((3, 2, 2), 0.5, np.float32)
    b = a.copy()
    b[0] += 0.9 / 255
    b[1] += 1.2 / 255
    assert matching(a, b, spec=spec) == (12, 8, 0)
    scaled = replace(spec, input=replace(spec.input, std=(2.0, 2.0, 2.0)))
    assert matching(a, b, spec=scaled) == (12, 4, 0)
    b[2] = np.nan
    assert matching(a, b, spec=spec) == (12, 4, 0)


def test_the_limit_grows_with_the_largest_value() -> None:
    a = np.array([[[100.0, 0.0]]], np.float64)
    for shift, ok in ((9e-4, True), (2e-3, False)):
        found = tensor_difference(("a", "b", "x"), "logits", [a], [a + shift], Tolerance())
        assert found.ok == ok
    found = tensor_difference(("a", "b", "x"), "logits", [a / 100], [a / 100 + 2e-5], Tolerance())
    assert not found.ok
    found = tensor_difference(("a", "b", "x"), "logits", [a], [np.full_like(a, np.nan)], FP16)
    assert found.limit_ratio == np.inf
    with pytest.raises(ParityError, match=r"b gives \(1, 1, 3\) values"):
        tensor_difference(("a", "b", "x"), "logits", [a], [np.zeros((1, 1, 3))], Tolerance())


class PaddedPool(nn.Module):
    """Pads with zeros, and then pools negative values. ONNX Runtime 1.31.1 makes one wrong pool of the two."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.pad, self.pool = nn.ZeroPad2d((0, 1, 0, 1)), nn.MaxPool2d(2, 1)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.pool(self.pad(-torch.relu(self.stem(images)) - 1))
        return found


def test_a_graph_that_the_runtimes_optimizer_changes_is_never_kept(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = replace(model_of("segment", classes=4), module=PaddedPool().eval())
    model = replace(model, spec=replace(model.spec, classes=tuple("abcd")))
    try:
        onnx_from_model(model, out=tmp_path / "m.onnx", img=32)
    except ParityError as e:
        assert "its optimizer changes what this graph computes" in str(e)  # noqa: PT017
        assert not list(tmp_path.iterdir())
        return
    images = np.random.default_rng(0).random((1, 3, 32, 32), dtype=np.float32)  # a release that computes it right
    with open_session(tmp_path / "m.onnx") as session:
        (found,) = session.run({session.inputs[0].name: images}).values()
    np.testing.assert_allclose(found, model.module(torch.from_numpy(images)).detach().numpy(), atol=1e-4)
