"""Conversions of files that deploykit did not make: every form of graph, what holds, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import deploykit
from deploykit.errors import (
    AccuracyError,
    ArtefactError,
    BackendError,
    DataError,
    DeployError,
    ExportError,
    FoldError,
    ImageError,
    NotFoundError,
    ParityError,
    SpecError,
    UsageError,
)
from deploykit.export.foreign import conversion, prepare
from deploykit.export.foreign.quantize import quantize_onnx
from deploykit.export.foreign.report import ConversionReport
from deploykit.export.options import AccuracyGate, Calibration, ImagePreparation, Precision, PrecisionOptions
from deploykit.export.precision.read_back import precisions_of
from deploykit.runtime.integrity.chain import verify_chain
from deploykit.runtime.verified import onnx_doubt, sha256
from deploykit.spec import METADATA_KEY, ModelSpec
from tests.cell_model import BLUE, RED, planted
from tests.foreign_networks import SIDE, Form, write_blocks, write_by_hand

PLAIN = ImagePreparation(mean=(0.0,), std=(1.0,), fit="resize")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with four blocks each, in noise."""
    folder, chance = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number in range(6):
        places = chance.choice(64, 4, replace=False)
        blocks = [(int(place % 8), int(place // 8), RED if chance.random() < 0.5 else BLUE) for place in places]
        noisy = planted(*blocks).astype(int) + chance.integers(0, 40, (SIDE, SIDE, 3))
        cv2.imwrite(str(folder / f"{number}.png"), np.clip(noisy, 0, 255).astype(np.uint8))
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def options(precision: Precision, images: Path, **others: Any) -> PrecisionOptions:
    calibration = Calibration(str(images), size=4) if precision in ("int8", "fp8") else None
    return PrecisionOptions(precision, calibration=calibration, **others)


def converted(file: Path, precision: Precision, images: Path, **others: Any) -> ConversionReport:
    return quantize_onnx(file, precision=options(precision, images), **others)


@pytest.fixture
def damage(monkeypatch: pytest.MonkeyPatch) -> None:
    """The range of one layer's input is far too small, where that is quantized: as by a black calibration."""
    attach = conversion.attach

    def damaged(model: Any, choice: Any) -> None:
        layers = [node for node in model.graph if node.op_type in ("Conv", "Gemm")]
        chosen = [node for node in layers if "depthwise" in node.name] or layers
        pairs = [node.inputs[0].producer() for node in chosen]
        for pair in [node for node in pairs if node is not None and node.op_type == "DequantizeLinear"][-1:]:
            pair.inputs[1].const_value = conversion.ir.tensor(np.array(1e-6, np.float32))
            pair.inputs[0].producer().replace_input_with(1, pair.inputs[1])
        attach(model, choice)

    monkeypatch.setattr(conversion, "attach", damaged)


# Forms of graphs.


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("form", [form for form in get_args(Form) if form != "stranger"])
def test_every_form_of_a_graph_is_converted_and_runs(
    form: Form, precision: Precision, images: Path, tmp_path: Path
) -> None:
    file = write_by_hand(tmp_path / "m.onnx", form)
    report = converted(file, precision, images, inputs={"factor": [1, 2]} if form == "two inputs" else None)
    assert report.parity.ok
    assert report.precision.base is not None
    assert report.precision.base.ok
    assert report.precision.computes[precision] >= 1
    assert onnx_doubt(report.path) == ""
    if form in ("nms", "if"):
        assert list(report.choice) == [{"nms": "NonMaxSuppression", "if": "If"}[form]]
        assert any("goes into the choice" in note for note in report.parity.notes)
    chance = np.random.default_rng(1)
    feeds = {
        info.name: (chance.random(info.shape) * (40 if "uint8" in info.type else 40 / 255)).astype(
            np.uint8 if "uint8" in info.type else np.float32
        )
        for info in onnxruntime.InferenceSession(file).get_inputs()
    }
    sides = [onnxruntime.InferenceSession(path).run(None, feeds) for path in (file, report.path)]
    if form != "nms":  # which gives numbers of cells
        for a, b in zip(*sides, strict=True):
            np.testing.assert_allclose(b, a, atol=0.1 * np.abs(a).max())
        assert not np.array_equal(sides[1][0], sides[0][0])


@pytest.mark.parametrize(
    ("precision", "opset", "expected"),
    [("fp16", 11, 18), ("fp16", 20, 20), ("bf16", 13, 22), pytest.param("fp8", 15, 19, marks=pytest.mark.slow)],
)
def test_the_opset_is_raised_where_it_must_be(
    precision: Precision, opset: int, expected: int, images: Path, tmp_path: Path
) -> None:
    file = write_by_hand(tmp_path / "m.onnx")
    onnx.save(onnx.version_converter.convert_version(onnx.load(str(file)), opset), str(file))
    report = converted(file, precision, images)
    assert report.opset == onnx.load(str(report.path)).opset_import[0].version == expected
    assert (f"opset {opset} raised to {expected}" in report.prepared) == (opset != expected)


def test_batch_norms_are_folded_and_constants_are_initializers(images: Path, tmp_path: Path) -> None:
    file = write_blocks(tmp_path / "m.onnx", "maps", opset=11, outputs=("logits", "features"))
    assert "BatchNormalization" in [node.op_type for node in onnx.load(str(file)).graph.node]
    report = converted(file, "fp16", images)
    assert "1 batch norm folded" in report.prepared
    assert not {node.op_type for node in onnx.load(str(report.path)).graph.node} & {"BatchNormalization", "Constant"}


def test_a_free_batch_stays_free(images: Path, tmp_path: Path) -> None:
    file = write_blocks(tmp_path / "m.onnx", "classes", free=True, folded=True)
    report = converted(file, "int8", images, preparation=PLAIN)
    assert {m.what for m in report.parity.matchings} == {"classes"}
    session = onnxruntime.InferenceSession(report.path)
    assert session.get_inputs()[0].shape[0] == "batch"
    assert session.run(None, {"images": np.zeros((3, 3, SIDE, SIDE), np.float32)})[0].shape == (3, 3)


# End-to-end heads.


@pytest.mark.parametrize(
    "precision", ["fp16", "int8", *(pytest.param(p, marks=pytest.mark.slow) for p in ("bf16", "fp8"))]
)
def test_detections_that_a_network_chooses_stay(precision: Precision, images: Path, tmp_path: Path) -> None:
    file = write_blocks(tmp_path / "m.onnx", "chosen", opset=13)
    report = converted(file, precision, images)
    assert report.choice == {"ArgMax": 1, "TopK": 1}
    matched = [m for m in report.parity.matchings if m.input.endswith(".png")]
    if precision in ("int8", "fp8"):  # verified on images of the calibration
        assert sum(m.expected for m in matched) == 4 * len(matched) == 16
    assert all(m.matched == m.expected == m.found for m in report.parity.matchings)
    model = onnx.load(str(report.path))
    place = next(place for place, node in enumerate(model.graph.node) if node.op_type in report.choice)
    kinds = [node.op_type for node in model.graph.node[place:]]
    assert "TopK" in kinds
    assert not {"QuantizeLinear", "DequantizeLinear"} & set(kinds)
    spec = ModelSpec.from_json({entry.key: entry.value for entry in model.metadata_props}[METADATA_KEY])
    assert (spec.precision, spec.output.kind) == (precision, "end-to-end")


def test_a_value_that_does_not_change_hides_no_layer(images: Path, tmp_path: Path) -> None:
    """The boxes of this head are constants: their error of 0 has a derivative by no layer, and not NaN."""
    report = converted(write_blocks(tmp_path / "m.onnx", "chosen"), "int8", images)
    assert report.precision.quantised is not None
    assert report.precision.quantised.sensitivity is not None
    parts = report.precision.quantised.sensitivity.layers
    assert np.isfinite(list(parts.values())).all()
    assert max(parts.values()) > 0


def test_the_new_file_predicts_what_the_old_one_does(images: Path, tmp_path: Path) -> None:
    file = write_blocks(tmp_path / "m.onnx", "chosen")
    report = converted(file, "int8", images)
    found = []
    for path in (file, report.path):
        with deploykit.load(path, conf=0.5, task="detect", verify=path != file) as predictor:
            found.append([predictor(cv2.imread(str(image))) for image in sorted(images.iterdir())])
    assert sum(map(len, found[0])) == 24
    for a, b in zip(*found, strict=True):
        assert sorted(map(tuple, a.boxes.tolist())) == sorted(map(tuple, b.boxes.tolist()))


@pytest.mark.usefixtures("damage")
def test_a_network_that_loses_its_objects_is_refused(images: Path, tmp_path: Path) -> None:
    file = write_blocks(tmp_path / "m.onnx", "chosen")
    with pytest.raises(ParityError, match=r"detections of m\.int8\.onnx against m\.onnx"):
        converted(file, "int8", images)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["m.onnx"]


@pytest.mark.usefixtures("damage")
def test_plain_values_that_are_far_off_are_refused(images: Path, tmp_path: Path) -> None:
    with pytest.raises(ParityError, match=r"values, root mean square of m\.int8\.onnx differ"):
        converted(write_by_hand(tmp_path / "m.onnx"), "int8", images)


# The record, and options.


def test_the_record_has_both_hashes(images: Path, tmp_path: Path) -> None:
    file = write_by_hand(tmp_path / "m.onnx", "external")
    report = converted(file, "int8", images)
    about = json.loads((tmp_path / "m.int8.onnx.parity.json").read_text())
    assert about["sha256"] == report.sha256 == sha256(report.path)
    assert about["source_sha256"] == report.source_sha256 == sha256(file)
    assert about["source_parts"] == {"m.onnx.data": sha256(tmp_path / "m.onnx.data")}
    assert about["precision"]["quantised"]["done"]["layers"]
    assert json.loads(json.dumps(report.to_dict()))["parity"]["ok"]
    links = {(link.file.name, link.state) for link in verify_chain(report.path).links}
    assert {("m.int8.onnx", "ok"), ("m.onnx", "ok"), ("m.onnx.data", "ok")} <= links
    (tmp_path / "m.onnx.data").write_bytes(b"another")
    assert ("m.onnx.data", "differs") in {(link.file.name, link.state) for link in verify_chain(report.path).links}


@pytest.mark.slow
def test_two_runs_give_the_same_bytes(images: Path, tmp_path: Path) -> None:
    file = write_blocks(tmp_path / "m.onnx", "chosen")
    reports = [converted(file, "int8", images, out=tmp_path / name / "x.onnx") for name in ("a", "b")]
    assert reports[0].sha256 == reports[1].sha256


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_named_layers_stay(precision: Precision, images: Path, tmp_path: Path) -> None:
    file = write_blocks(tmp_path / "m.onnx", "maps", outputs=("logits", "features"))
    report = quantize_onnx(file, precision=options(precision, images, nodes_to_exclude=("score",)))
    assert report.precision.computes == {precision: 3, "fp32": 1}
    assert len(precisions_of(report.path)["fp32"]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_file_of_layers_is_written_and_read(precision: Precision, images: Path, tmp_path: Path) -> None:
    file, chosen = write_blocks(tmp_path / "m.onnx"), tmp_path / "keep.json"
    first = quantize_onnx(file, precision=options(precision, images, keep_file=chosen, nodes_to_exclude=("score",)))
    again = quantize_onnx(file, precision=options(precision, images, keep_file=chosen), out=tmp_path / "again.onnx")
    assert [row.layer for row in first.precision.kept] == [row.layer for row in again.precision.kept] == ["score"]
    assert again.precision.computes == {precision: 3, "fp32": 1}
    assert first.sha256 == again.sha256


def test_preparation_reaches_the_calibration(images: Path, tmp_path: Path) -> None:
    file = write_by_hand(tmp_path / "m.onnx")
    plain = converted(file, "int8", images)
    report = converted(file, "int8", images, preparation=ImagePreparation(scale=1.0, colour="bgr", fit="resize"))
    canvas = report.spec.input
    assert (canvas.scale, canvas.colour, canvas.fit.kind) == (1.0, "bgr", "resize")
    ranges = [
        0.0 if each.precision.quantised is None else each.precision.quantised.ranges["x"] for each in (plain, report)
    ]
    assert ranges[1] > 200 * ranges[0] > 0
    assert any(note.startswith("assumed: letterbox") for note in plain.notes)


def test_bytes_are_pixels(images: Path, tmp_path: Path) -> None:
    assert converted(write_by_hand(tmp_path / "m.onnx", "bytes"), "fp16", images).spec.input.scale == 1.0


def test_a_tolerance_of_ones_own_is_enforced(images: Path, tmp_path: Path) -> None:
    file = write_by_hand(tmp_path / "m.onnx")
    assert converted(file, "int8", images, tolerance="dense=0.2").parity.ok
    with pytest.raises(ParityError, match=r"m\.int8\.onnx does not agree"):
        converted(file, "int8", images, tolerance="dense=1e-6")


@pytest.fixture(scope="module")
def gate(images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AccuracyGate]:
    """A detector, and a gate with what it finds itself as the truth."""
    folder = tmp_path_factory.mktemp("gate")
    metadata = {"names": "{0: 'red', 1: 'blue'}", "stride": "8"}
    file, boxes = write_blocks(folder / "m.onnx", "chosen", metadata=metadata), []
    paths = sorted(images.iterdir())
    with deploykit.load(file, conf=0.5, task="detect") as predictor:
        for number, image in enumerate(paths):
            result = predictor(cv2.imread(str(image)))
            for (x, y, right, bottom), label in zip(result.boxes.tolist(), result.labels.tolist(), strict=True):
                box = {"bbox": [x, y, right - x, bottom - y], "area": (right - x) * (bottom - y), "iscrowd": 0}
                boxes.append({"id": len(boxes) + 1, "image_id": number, "category_id": label + 1, **box})
    data = {
        "images": [{"id": n, "file_name": each.name, "width": SIDE, "height": SIDE} for n, each in enumerate(paths)],
        "categories": [{"id": number + 1, "name": name} for number, name in enumerate(("red", "blue"))],
        "annotations": boxes,
    }
    (folder / "truth.json").write_text(json.dumps(data))
    return file, AccuracyGate(max_drop=1.0, data=folder / "truth.json", images=images, bootstrap=0)


def test_a_file_that_keeps_its_accuracy_passes_the_gate(
    gate: tuple[Path, AccuracyGate], images: Path, tmp_path: Path
) -> None:
    report = converted(gate[0], "int8", images, gate=gate[1], out=tmp_path / "x.onnx")
    assert report.accuracy is not None
    with pytest.raises(UsageError, match="--max-drop is for networks whose spec is known"):
        converted(write_by_hand(tmp_path / "hand.onnx"), "int8", images, gate=gate[1])


@pytest.mark.usefixtures("damage")
def test_a_file_that_loses_accuracy_is_not_kept(gate: tuple[Path, AccuracyGate], images: Path, tmp_path: Path) -> None:
    every = options("int8", images, nodes_to_exclude="none")
    with pytest.raises(AccuracyError):
        quantize_onnx(gate[0], precision=every, gate=gate[1], out=tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("damage")
def test_further_layers_stay_until_accuracy_holds(
    gate: tuple[Path, AccuracyGate], images: Path, tmp_path: Path
) -> None:
    report = converted(gate[0], "int8", images, gate=gate[1], out=tmp_path / "x.onnx")
    assert "accuracy" in {row.why for row in report.precision.kept}
    assert "depthwise" in {row.layer for row in report.precision.kept}
    assert report.precision.computes["int8"] >= 1
    assert report.nodes == len(onnx.load(str(report.path)).graph.node)


# What is refused.


def _quantized(folder: Path) -> Path:
    file = write_by_hand(folder / "m.onnx", opset=13)
    model = onnx.load(str(file))
    numbers = {"s": np.array(0.1, np.float32), "z": np.array(0, np.int8)}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in numbers.items())
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", ["q", "s", "z"], ["back"]))
    model.graph.node.insert(0, helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]))
    next(node for node in model.graph.node if node.op_type == "Conv").input[0] = "back"
    onnx.save(model, str(file))
    return file


def _without_layers(folder: Path) -> Path:
    image = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, SIDE, SIDE]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", image[:1], image[1:])
    opsets = [helper.make_opsetid("", 13)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), str(folder / "m.onnx"))
    return folder / "m.onnx"


def _text(folder: Path) -> Path:
    (folder / "m.onnx").write_text("no network")
    return folder / "m.onnx"


def _half(folder: Path) -> Path:
    return write_by_hand(folder / "m.onnx", kind=np.float16)


REFUSED: list[tuple[Any, type[DeployError], str]] = [
    (_quantized, ExportError, "quantized already .*QuantizeLinear.*give the fp32 file"),
    (_half, ExportError, "not in fp32: the weight of .* float16"),
    (_without_layers, ExportError, "no convolution or matrix product"),
    (_text, ArtefactError, "is not a whole ONNX file"),
    (lambda folder: write_by_hand(folder / "m.onnx", "stranger"), BackendError, "needs the operator nobody:Unheard"),
    (
        lambda folder: write_by_hand(folder / "m.onnx", "two inputs"),
        UsageError,
        "takes factor float32 .*--input factor=",
    ),
    (lambda folder: write_blocks(folder / "m.onnx", "classes"), UsageError, "no tensor of .*--mean: .*--std: "),
    (lambda folder: folder / "none.onnx", NotFoundError, r"none\.onnx"),
]


@pytest.mark.parametrize(("made", "error", "message"), REFUSED)
def test_what_cannot_be_converted_is_refused_with_the_reason(
    made: Any, error: type[DeployError], message: str, images: Path, tmp_path: Path
) -> None:
    file = made(tmp_path)
    with pytest.raises(error, match=message):
        converted(file, "int8", images)
    assert not list(tmp_path.glob("*int8*"))


def test_a_calibration_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    file, empty, broken = write_by_hand(tmp_path / "m.onnx"), tmp_path / "empty", tmp_path / "broken"
    empty.mkdir()
    broken.mkdir()
    (broken / "a.png").write_bytes(b"no image")
    with pytest.raises((DataError, ImageError), match="image"):
        converted(file, "int8", empty)
    with pytest.raises(ImageError, match=r"a\.png"):
        converted(file, "int8", broken)
    with pytest.raises(NotFoundError, match="nowhere"):
        converted(file, "int8", tmp_path / "nowhere")
    assert not list(tmp_path.glob("*int8*"))


def test_arguments_that_make_no_sense_are_refused(images: Path, tmp_path: Path) -> None:
    file = write_by_hand(tmp_path / "m.onnx")
    with pytest.raises(UsageError, match="in fp32 already"):
        converted(file, "fp32", images)
    with pytest.raises(UsageError, match="is the file to convert"):
        converted(file, "fp16", images, out=file)
    with pytest.raises(UsageError, match="there is no input 'y'"):
        converted(file, "fp16", images, inputs={"y": 1})
    spec = ModelSpec.from_json('{"task": "features", "input": {"size": [32, 32]}, "output": {"kind": "tensor"}}')
    with pytest.raises(SpecError, match=r"\(1, 3, 32, 32\)"):
        converted(file, "fp16", images, spec=spec)
    with pytest.raises(UsageError, match="the given spec says how images are prepared"):
        converted(file, "fp16", images, spec=spec, preparation=PLAIN)


def test_a_preparation_of_the_graph_that_changes_numbers_is_found_out(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fold = prepare._fold_constants

    def damaged(graph: Any) -> None:
        fold(graph)
        value = graph.graph.initializers["b"]
        value.const_value = prepare.ir.tensor(value.const_value.numpy() + np.float32(0.1))

    monkeypatch.setattr(prepare, "_fold_constants", damaged)
    with pytest.raises(FoldError, match="changed its numbers"):
        converted(write_by_hand(tmp_path / "m.onnx"), "fp16", images)
