"""Networks whose masks are made of prototypes, as artefacts: verified, converted, and refused where they are wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deploykit.errors import AccuracyError, ParityError, SpecError
from deploykit.export.graph.trace import export_to_ir
from deploykit.export.options import AccuracyGate, OnnxOptions, PrecisionOptions
from deploykit.export.parity.compare import check_expected, compare, expect
from deploykit.export.parity.inputs import make_parity_inputs
from deploykit.export.precision import convert
from deploykit.export.precision.calibration import Calibration
from deploykit.export.report import ExportReport
from deploykit.export.to_onnx import export_onnx, onnx_from_model
from deploykit.facade import load
from deploykit.models.fuse import fuse_model
from deploykit.runtime.parity.expected import ReferenceOutputs
from deploykit.runtime.session import open_session
from tests.masked_network import FIRST, MASKS, SIDE, masked_model
from tests.output_error import output_error


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    return onnx_from_model(masked_model(), out=tmp_path_factory.mktemp("masked") / "m.onnx", dynamic="shape")


def test_it_is_verified_with_its_masks(exported: ExportReport) -> None:
    parity = exported.parity
    assert parity is not None
    assert parity.ok
    assert {d.values for d in parity.differences} == {"boxes", "scores", "masks"}
    cells = (SIDE // 4) ** 2 * 80  # of each image; all of its 80 rows are among the best 100
    assert {d.count for d in parity.differences if d.values == "masks"} == {cells, 3 * cells}  # one slot, and three
    assert all(d.max_abs > 0 for d in parity.differences)
    found = [m for m in parity.matchings if m.what == "detections"]
    assert all(m.min_mask == 1.0 and m.matched > 3 for m in found)
    assert [str(t) for t in exported.outputs] == [
        "output float32 (batch, rows, 11)",
        "prototypes float32 (batch, 4, mask_height, mask_width)",
    ]


def wrong_network(part: str) -> nn.Module:
    """The folded network with a little more in one of its biases."""
    network = masked_model().module
    with torch.no_grad():
        network.get_parameter(f"{part}.bias").add_(1e-3)
    return fuse_model(network)


@pytest.mark.parametrize("part", ["head.proto.cv3.bn", "head.proto.upsample", "head.cv4.0.2"])
def test_a_file_with_other_masks_is_refused(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = wrong_network(part)
    monkeypatch.setattr("deploykit.export.to_onnx.export_to_ir", lambda _, *rest: export_to_ir(wrong, *rest))
    with pytest.raises(ParityError, match=r"masks of m\.onnx differ from the checkpoint"):
        onnx_from_model(masked_model(), out=tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_reference_values_hold_the_prototypes(exported: ExportReport, tmp_path: Path) -> None:
    """Those of an engine are written to a file, and the first run on a GPU is compared with them."""
    feeds = make_parity_inputs(exported.spec, ())
    with open_session(exported.path) as session:
        expected = expect({"m.onnx": session}, exported.spec, feeds)
        expected.save(tmp_path / "values.npz")
        loaded = ReferenceOutputs.load(tmp_path / "values.npz")
        report = check_expected(loaded, "again", session, exported.spec)
    assert report.ok
    assert all(d.max_abs == 0 for d in report.differences if d.values == "masks" and len(feeds.images) == 1)
    values = {label: rows.copy() for label, rows in loaded.rows["m.onnx"].items()}
    for rows in values.values():
        rows[-2] += 0.01  # the last cells of the last prototype
    damaged = ReferenceOutputs(loaded.feeds, {"m.onnx": values}, loaded.computed, loaded.layout)
    with open_session(exported.path) as session:
        again = check_expected(damaged, "again", session, exported.spec)
    assert {d.values for d in again.differences if not d.ok} == {"masks"}
    short = ReferenceOutputs(
        loaded.feeds, {"m.onnx": {k: v[:-1] for k, v in values.items()}}, loaded.computed, loaded.layout
    )
    with open_session(exported.path) as session, pytest.raises(ParityError, match="with masks of prototypes"):
        check_expected(short, "again", session, exported.spec)


def test_half_precision_is_held_to_its_tolerance(exported: ExportReport, tmp_path: Path) -> None:
    report = onnx_from_model(masked_model(), out=tmp_path / "h.onnx", precision=PrecisionOptions("fp16"))
    assert report.precision is not None
    for parity in (report.parity, report.precision.base, report.precision.in_torch):
        assert parity is not None
        assert parity.ok
        assert all(d.count > 0 for d in parity.differences if d.values == "masks")
    halves, whole = (
        max(d.max_abs for d in parity.differences if d.values == "masks")
        for parity in (report.parity, report.precision.base)
        if parity is not None
    )
    assert halves > 10 * whole
    assert compare(exported.path, report.path).ok


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibration")
    for seed in range(3):
        noise = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        cv2.imwrite(str(folder / f"{seed}.png"), noise)
    return folder


def test_int8_measures_its_error_on_masks_too(images: Path, tmp_path: Path) -> None:
    """Where only the layers of the prototypes are quantized, all of the error is theirs."""
    kept: dict[str, Any] = {"all": "none", "prototypes": ("stem.*", "fine.*", "coarse.*", "head.cv*")}
    errors = {}
    for name, layers in kept.items():
        calibration = Calibration(images, method="minmax")
        options = PrecisionOptions("int8", calibration=calibration, nodes_to_exclude=layers, cache=False)
        report = onnx_from_model(masked_model(), out=tmp_path / "q.onnx", precision=options)
        assert report.precision is not None
        assert report.precision.quantised is not None
        assert report.parity is not None
        errors[name] = report.precision.quantised.error
        changed = {d.values for d in report.parity.differences if d.max_abs > 1e-4}
        assert changed == ({"boxes", "scores", "masks"} if name == "all" else {"masks"})
    part, whole = errors["prototypes"], errors["all"]
    assert part is not None
    assert whole is not None
    assert 0 < part < whole


@pytest.fixture(scope="module")
def annotated(exported: ExportReport, images: Path) -> Path:
    """The objects that the network itself finds in the images, as COCO annotations."""
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(exported.spec.classes)]
    truth: dict[str, Any] = {"images": [], "annotations": [], "categories": categories}
    with load(exported.path) as predictor:
        for number, file in enumerate(sorted(images.glob("*.png"))):
            truth["images"].append({"id": number, "file_name": file.name, "width": SIDE, "height": SIDE})
            result = predictor(str(file))
            assert result.masks is not None
            for each in result.to_coco(number):
                mask = each["segmentation"]
                truth["annotations"].append(
                    {
                        **{key: each[key] for key in ("image_id", "category_id", "bbox")},
                        "id": len(truth["annotations"]) + 1,
                        "segmentation": mask,
                        "area": sum(mask["counts"][1::2]),
                        "iscrowd": 0,
                    }
                )
    assert len(truth["annotations"]) > 10
    file = images / "truth.json"
    file.write_text(json.dumps(truth))
    return file


def test_the_gate_is_of_the_ap_of_masks(
    images: Path, annotated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An int8 file whose boxes are right and whose masks are not is stopped."""
    pytest.importorskip("hotcoco", reason="the extra eval is not installed")
    gate = AccuracyGate(20.0, annotated, images, bootstrap=20)
    calibration = Calibration(images, method="minmax")
    layers = ("stem.*", "fine.*", "coarse.*", "head.cv*")
    options = PrecisionOptions("int8", calibration=calibration, nodes_to_exclude=layers, cache=False)
    report = onnx_from_model(
        masked_model(), out=tmp_path / "good.onnx", options=OnnxOptions(precision=options, gate=gate)
    )
    assert report.accuracy is not None
    assert report.accuracy.reference.task == "instances"
    assert report.accuracy.reference.metrics["AP50"] > 0.7

    def blind(*args: Any, **kwargs: Any) -> Any:
        done = quantize_graph(*args, **kwargs)
        turned = [
            value
            for name, value in args[0].graph.initializers.items()
            if name.startswith("head.proto.") and name.endswith("_int8")
        ]
        assert turned
        for value in turned:
            value.const_value.numpy()[:] = 0
        return done

    quantize_graph = convert.quantize_graph
    monkeypatch.setattr(convert, "quantize_graph", blind)
    with pytest.raises(AccuracyError, match="AP falls"):
        onnx_from_model(masked_model(), out=tmp_path / "bad.onnx", options=OnnxOptions(precision=options, gate=gate))
    assert not (tmp_path / "bad.onnx").exists()


def outputs_of(images: int = 2) -> dict[str, NDArray[Any]]:
    random = np.random.default_rng(0)
    rows = random.uniform(10, 50, (images, 5, FIRST + MASKS)).astype(np.float32)
    rows[:, :, 4:FIRST] = 0.5
    rows[:, :, FIRST:] = random.normal(size=(images, 5, MASKS))
    return {"output": rows, "prototypes": random.normal(size=(images, MASKS, 6, 7)).astype(np.float32)}


def test_the_error_of_two_outputs_includes_both() -> None:
    error, exact = partial(output_error, masked_model().spec), outputs_of()
    assert error(exact, outputs_of()) == 0.0
    for factor in (1.1, 0.9):  # all logits are a tenth off, whether by coefficients or by prototypes
        one, other = outputs_of(), outputs_of()
        one["prototypes"] *= factor
        other["output"][..., FIRST:] *= factor
        assert error(exact, one) == pytest.approx(0.1, rel=1e-4)
        assert error(exact, other) == pytest.approx(0.1, rel=1e-4)
    swapped = outputs_of()
    swapped["prototypes"] = swapped["prototypes"][::-1]  # those of the other image
    assert error(exact, swapped) > 0.5
    broken = outputs_of()
    broken["prototypes"][1, 2, 3, 4] = np.nan
    assert error(exact, broken) == np.inf
    boxes = outputs_of()
    boxes["output"][..., 0] += 1.0
    boxes["prototypes"] *= 1.1
    assert error(exact, boxes) > 0.1 + 1e-3


def test_slots_of_a_batch_have_their_own_prototypes(exported: ExportReport) -> None:
    random = np.random.default_rng(3)
    images = [random.integers(0, 256, (SIDE, SIDE, 3), np.uint8) for _ in range(3)]
    with load(exported.path, batch=3) as together, load(exported.path) as alone:
        for found, image in zip(together(images), images, strict=True):
            expected = alone(image)
            assert found.masks is not None
            assert expected.masks is not None
            assert len(found) == len(expected) > 0
            assert (found.masks != expected.masks).mean() < 1e-4


def test_a_network_that_loses_its_prototypes_is_refused(tmp_path: Path) -> None:
    class Alone(nn.Module):
        def __init__(self, whole: nn.Module) -> None:
            super().__init__()
            self.whole = whole

        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            rows, prototypes = self.whole(images)
            return rows, prototypes[:, :2]

    model = masked_model()
    with pytest.raises(SpecError, match=r"the output 'prototypes' must be \(1, 4, height, width\)"):
        onnx_from_model(replace(model, module=Alone(model.module).eval()), out=tmp_path / "m.onnx")


@pytest.mark.data
@pytest.mark.slow
def test_the_originals_network_finds_the_originals_masks(shared: Path, tmp_path: Path) -> None:
    """Every pixel of every object, in an image that needs padding; objects without a pixel are left out there too."""
    with np.load(shared / "golden" / "yolov8n-seg-narrow.npz") as golden:
        image = np.ascontiguousarray(golden["predict_image_rgb"][..., ::-1])
        boxes, bits, shape = (
            golden[f"predict_{name}"] for name in ("boxes_retina", "masks_retina", "masks_retina_shape")
        )
    expected = np.unpackbits(bits, axis=-1)[..., : shape[2]].astype(np.bool_)
    weights = shared / "golden" / "yolov8n-seg-narrow.pt"
    report = export_onnx(weights, img=160, out=tmp_path / "m.onnx", options=OnnxOptions(dynamic="shape"), check=False)
    with load(report.path) as predictor:
        found = predictor(image)
    assert found.masks is not None
    assert len(found) == len(boxes) == 79
    places = [int(np.abs(found.boxes - box).sum(1).argmin()) for box in boxes[:, :4]]
    assert sorted(places) == list(range(79))
    assert np.abs(found.boxes[places] - boxes[:, :4]).max() < 1e-3
    assert (found.masks[places] == expected).all()


@pytest.mark.data
@pytest.mark.slow
def test_the_originals_network_finds_the_same_with_nms_inside(shared: Path, tmp_path: Path) -> None:
    """On noise its scores are all but 1, so that two classes of a row score the same and either may be its label."""
    image = np.random.default_rng(0).integers(0, 256, (117, 190, 3), np.uint8)
    results = []
    for mode in ("none", "graph"):
        out = tmp_path / f"{mode}.onnx"
        report = export_onnx(
            shared / "golden" / "yolov8n-seg-narrow.pt", img=160, out=out, options=OnnxOptions(nms=mode)
        )
        assert report.parity is not None
        assert report.parity.ok
        with load(out) as predictor:
            results.append(predictor(image))
    assert len(results[0]) > 50
    for name in ("boxes", "scores", "labels", "masks"):
        np.testing.assert_array_equal(getattr(results[0], name), getattr(results[1], name), err_msg=name)
