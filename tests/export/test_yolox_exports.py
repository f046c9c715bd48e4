"""What is new in an export of YOLOX: its images, its decode with free sizes, NMS and engines behind it."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import deploykit
from deploykit.cli import main
from deploykit.errors import SpecError, UsageError
from deploykit.export.options import OnnxOptions
from deploykit.export.parity.inputs import make_parity_inputs
from deploykit.export.sessions.torch_module import open_torch_session
from deploykit.export.to_onnx import onnx_from_model
from deploykit.models.families.yolox.model import Yolox
from deploykit.spec import METADATA_KEY, Fit, InputSpec, ModelSpec, NmsOutputs, RawDetections
from tests.coco_folder import write_folder
from tests.export.test_exports import assert_agree, checked, exact, layout_of, rows_of
from tests.narrow import CLASSES, model_of, write_yolox, yolox_network

SIDE = 64


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, shape).astype(np.float32)


@pytest.mark.parametrize("exporter", [pytest.param("dynamo", marks=pytest.mark.slow), "legacy"])
def test_a_dynamic_shape_takes_any_batch_and_any_good_size(exporter: Any, tmp_path: Path) -> None:
    model = model_of("few-yolox", num_classes=2)
    out = tmp_path / "m.onnx"
    report = checked(onnx_from_model(model, out=out, img=32, dynamic="shape", options=OnnxOptions(exporter=exporter)))
    assert str(report.inputs[0]) == "images float32 (batch, 3, height, width)"
    assert str(report.outputs[0]) == "output float32 (batch, rows, 7)"
    for shape in ((1, 3, 32, 32), (3, 3, 64, 96)):
        assert_agree(*rows_of(exact(model), out, pixels(*shape)), layout_of(report.spec))


@pytest.mark.parametrize("nms", ["graph", "basic"])
def test_nms_inside_finds_what_the_runtime_finds(nms: Any, tmp_path: Path) -> None:
    model = model_of("few-yolox-pose", num_classes=2, num_keypoints=3, objectness=1.5)
    report = checked(onnx_from_model(model, out=tmp_path / "in.onnx", img=SIDE, nms=nms))
    assert isinstance(report.spec.output, NmsOutputs)
    plain = onnx_from_model(
        model, out=tmp_path / "out.onnx", img=SIDE, options=OnnxOptions(exporter="legacy"), check=False
    )
    image = np.random.default_rng(1).integers(0, 256, (50, 40, 3), dtype=np.uint8)
    with deploykit.load(plain.path) as outside, deploykit.load(report.path) as inside:
        a, b = outside(image), inside(image)
    assert len(a) > 10
    assert np.array_equal(a.labels, b.labels)
    assert np.allclose(a.scores, b.scores, rtol=0, atol=1e-5)
    assert np.allclose(a.boxes, b.boxes, rtol=0, atol=1e-3)
    assert a.keypoints is not None
    assert b.keypoints is not None
    assert np.allclose(a.keypoints, b.keypoints, rtol=0, atol=1e-3)


def test_a_checkpoint_is_exported_with_its_own_preprocessing(tmp_path: Path) -> None:
    weights = write_yolox(tmp_path / "it.pth", "yolox_s")
    report = deploykit.export_onnx(weights, img=(32, SIDE), options=OnnxOptions(exporter="legacy"))
    assert report.path == tmp_path / "it.onnx"
    assert report.parity is not None
    assert report.parity.ok
    fit = Fit(stride=32, anchor="top-left", rounding="floor")
    assert report.spec.input == InputSpec(size=(32, SIDE), colour="bgr", scale=1.0, fit=fit)
    with deploykit.load(report.path) as model:
        assert model.spec.input == report.spec.input


def test_noise_and_images_of_the_check_are_pixels_of_the_spec() -> None:
    spec = model_of("yolox_s").spec
    for image in make_parity_inputs(spec).images.values():
        assert image.shape == (1, 3, 64, 64)
        assert 150 < image.max() <= 255
        assert image.min() >= 0


# Legacy preprocessing


def test_legacy_preprocessing_goes_into_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = write_yolox(tmp_path / "it.pth", "yolox_s", width=0.0625)
    words = ["export", "--weights", str(weights), "--img", "32", "--exporter", "legacy", "--preprocessing", "legacy"]
    assert main(words) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "RGB, divided by 255, minus (0.485, 0.456, 0.406), over (0.229, 0.224, 0.225)" in out
    assert "images are prepared as legacy weights want it (--preprocessing legacy)" in out
    (entry,) = (p for p in onnx.load(str(tmp_path / "it.onnx")).metadata_props if p.key == METADATA_KEY)
    canvas = ModelSpec.from_json(entry.value).input
    assert (canvas.colour, canvas.scale) == ("rgb", 1 / 255)
    assert (canvas.mean, canvas.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert canvas.fit == Fit(anchor="top-left", rounding="floor")


def test_a_checkpoint_is_predicted_with_by_either_preprocessing(tmp_path: Path) -> None:
    weights = write_yolox(tmp_path / "it.pth", "yolox_s", width=0.0625)
    image = np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    fed = {}
    for name in ("default", "legacy"):
        with deploykit.load(weights, preprocessing=name) as model:
            assert model.spec.input == open_torch_session(weights, preprocessing=name)[1].input
            run = model.session.run

            def looking(inputs: Any, run: Any = run, name: str = name) -> Any:
                fed[name] = inputs["images"]
                return run(inputs)

            model.session.run = looking  # type: ignore[method-assign]  # to see what goes in
            model(image)
    mean, std = (np.array(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    assert np.allclose(fed["legacy"], (fed["default"][:, ::-1] / 255 - mean) / std, rtol=0, atol=1e-5)


def test_a_checkpoint_is_evaluated_by_either_preprocessing(tmp_path: Path) -> None:
    """As its export is, which has the one that was chosen inside."""
    weights = write_yolox(tmp_path / "it.pth", "yolox_s", 2, width=0.0625, objectness=3.0)
    folder = write_folder(tmp_path / "cells")
    given = {"images": folder.images, "task": "detect", "conf": 0.2}
    found = {}
    for name in ("default", "legacy"):
        exported = deploykit.export_onnx(
            weights,
            out=tmp_path / f"{name}.onnx",
            img=32,
            options=OnnxOptions(exporter="legacy", preprocessing=name),
            check=False,
        ).path
        ours = deploykit.evaluate(weights, folder.data, img=32, preprocessing=name, **given).detections
        theirs = deploykit.evaluate(exported, folder.data, **given).detections
        assert len(ours.scores) == len(theirs.scores) > 0
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-5)
        found[name] = ours
    assert not np.array_equal(found["default"].scores, found["legacy"].scores)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["export", "--img", "32", "--preprocessing", "old"], "has no preprocessing 'old'; it has default, legacy"),
        (["predict", "--source", "0", "--preprocessing", "old"], "has no preprocessing 'old'; it has default, legacy"),
    ],
)
def test_another_name_is_refused(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = str(write_yolox(tmp_path / "it.pth", "yolox_s", width=0.0625))
    option = "--weights" if words[0] == "export" else "--model"
    if words[0] == "predict":
        words[words.index("0")] = str(_image(tmp_path))
    assert main([*words, option, weights]) == UsageError.exit_code
    assert said in capsys.readouterr().err
    assert not list(tmp_path.glob("*.onnx"))


def test_an_exported_file_has_its_own(tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    onnx_from_model(model_of("few-yolox"), out=file, options=OnnxOptions(exporter="legacy"), check=False)
    with pytest.raises(UsageError, match=r"m\.onnx says in its spec how images are prepared"):
        deploykit.load(file, preprocessing="legacy")


def _image(folder: Path) -> Path:
    path = folder / "p.png"
    path.write_bytes(cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes())
    return path


# Somebody else's export, which ends before the decode


class WithoutDecode(nn.Module):
    """As the original's own export is by default: the box as the head has it, the others as probabilities."""

    def __init__(self, network: Yolox) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        head = self.network.head
        maps = [head.raw(x, level).flatten(2) for level, x in enumerate(self.network.backbone(images))]
        rows = torch.cat(maps, 2).transpose(1, 2)
        return torch.cat((rows[..., :4], rows[..., 4:].sigmoid()), -1)


@pytest.fixture(scope="module")
def undecoded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("raw") / "theirs.onnx"
    example = torch.zeros(1, 3, SIDE, SIDE)
    names = {"input_names": ["images"], "output_names": ["output"], "opset_version": 18}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the legacy exporter's, of itself
        network = WithoutDecode(yolox_network("few-yolox"))
        torch.onnx.export(network, (example,), str(file), dynamo=False, **names)  # type: ignore[arg-type]
    return file


RAW = ModelSpec(
    task="detect",
    input=InputSpec(size=(SIDE, SIDE), colour="bgr", scale=1.0, fit=Fit(anchor="top-left", rounding="floor")),
    output=RawDetections(cls=(5, 8), decode="yolox", strides=(8, 16, 32)),
    classes=CLASSES,
)


@pytest.mark.parametrize("theirs_first", [True, False])
def test_our_export_agrees_with_one_that_is_not_decoded(undecoded: Path, tmp_path: Path, theirs_first: bool) -> None:
    """The given spec is for the one that carries none; ours says itself that its rows are in pixels."""
    ours = onnx_from_model(
        model_of("few-yolox"), out=tmp_path / "ours.onnx", img=SIDE, options=OnnxOptions(exporter="legacy")
    ).path
    pair = (undecoded, ours) if theirs_first else (ours, undecoded)
    report = deploykit.compare(*pair, spec=RAW)
    assert report.ok
    assert {d.values for d in report.differences} == {"boxes", "scores"}
    assert all(m.matched == m.expected for m in report.matchings)
    other = onnx_from_model(
        model_of("few-yolox", seed=5), out=tmp_path / "other.onnx", img=SIDE, options=OnnxOptions(exporter="legacy")
    ).path
    assert not deploykit.compare(*((undecoded, other) if theirs_first else (other, undecoded)), spec=RAW).ok


def test_undecoded_rows_of_another_size_are_refused_with_the_sum(undecoded: Path) -> None:
    wrong = ModelSpec(RAW.task, RAW.input, RawDetections(cls=(5, 8), decode="yolox", strides=(8, 16)), CLASSES)
    with (
        deploykit.load(undecoded, spec=wrong) as model,
        pytest.raises(SpecError, match=r"has 84 rows, but the spec's strides \[8, 16\] .* = 80"),
    ):
        model(np.zeros((8, 8, 3), np.uint8))


# Engines


@pytest.mark.slow
@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="TensorRT for RTX is not installed")
@pytest.mark.parametrize("nms", ["none", "basic"])
def test_tensorrt_for_rtx_builds_an_engine(nms: Any, tmp_path: Path) -> None:
    """Of a whole network with depthwise convolutions, and of NMS behind a head; what they compute only a GPU shows."""
    whole = nms == "none"
    options: dict[str, Any] = {"exporter": "legacy"} if whole else {"nms": nms}
    model = model_of("yolox_nano" if whole else "few-yolox-pose")
    report = onnx_from_model(model, out=tmp_path / "m.onnx", img=32, check=False, options=OnnxOptions(**options))
    engine = deploykit.build_engine(report.path, flavour="tensorrt-rtx", check=False)
    assert engine.path == tmp_path / "m.trt"
    assert engine.record.size == engine.path.stat().st_size > 10_000
    assert engine.record.spec == report.spec
