"""YOLOv5 7.0's networks of masks and of classes: files, layers, values, images and exports."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import deploykit
from deploykit.errors import CheckpointError, WeightsMismatchError
from deploykit.export.nms.candidates import RowSelection, with_candidate_head
from deploykit.export.options import OnnxOptions
from deploykit.export.to_onnx import onnx_from_model
from deploykit.facade import open_session
from deploykit.models.class_names import IMAGENET_MEAN, IMAGENET_STD
from deploykit.models.create.random_weights import create_checkpoint, randomise
from deploykit.models.families.yolov5 import CLASSIFIERS, MULTIPLES, VARIANTS, config_of
from deploykit.models.fuse import fuse_model
from deploykit.models.layers.anchor_head import Segment
from deploykit.models.registry import ReferenceModel, load_model, model_from_checkpoint
from deploykit.models.yolo_graph.classifier import build_classifier
from deploykit.models.yolo_graph.description import GraphConfig
from deploykit.models.yolo_graph.layer_graph import LayerGraph, build_graph
from deploykit.runtime.images.placing import place_on_canvas
from deploykit.runtime.images.to_tensor import to_nchw
from deploykit.spec import RawDetections
from tests.models.families import test_yolov5
from tests.models.families.test_yolov5 import bare, yaml_of
from tests.narrow import model_of
from tests.narrow_dense import narrow_dense
from tests.reference.heads import decode

GOLDEN = Path(__file__).resolve().parents[4] / "shared" / "golden"
SEGMENTERS = sorted(name for name, variant in VARIANTS.items() if variant.masks)
SIZES = pytest.mark.parametrize("size", MULTIPLES)


@pytest.fixture
def golden() -> Path:
    if not GOLDEN.is_dir():
        pytest.skip("the golden files are not here")
    return GOLDEN


def numbers(graph: nn.Module) -> tuple[int, int, int]:
    """Parameters, tensors but for the anchors in pixels, batch norms."""
    tensors = [key for key in graph.state_dict() if not key.endswith("anchor_grid")]
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in graph.modules())
    return sum(p.numel() for p in graph.parameters()), len(tensors), norms


def conv(c1: int, c2: int, k: int) -> int:
    return k * k * c1 * c2 + 2 * c2


# Masks.


@SIZES
def test_a_segmenter_is_its_detector_with_32_more_columns_and_prototypes(size: str) -> None:
    """Its parameters from the published ones: an anchor has 32 values more, and there are three convolutions."""
    with torch.device("meta"):
        graph = build_graph(config_of(f"yolov5{size}_seg", 80))
    width = MULTIPLES[size][1]
    channels = [math.ceil(c * width / 8) * 8 for c in (256, 512, 1024)]
    hidden = channels[0]
    more = sum(3 * 32 * (c + 1) for c in channels)
    more += conv(channels[0], hidden, 3) + conv(hidden, hidden, 3) + conv(hidden, 32, 1)
    parameters, _, keys, norms, *_ = test_yolov5.PUBLISHED[f"yolov5{size}", 7]
    assert numbers(graph) == (parameters + more, keys + 3 * 6, norms + 3)


def test_rows_and_prototypes_of_the_original_are_reproduced(golden: Path) -> None:
    model = load_model(golden / "yolov5n-seg-narrow.pt")
    assert (model.family, model.spec.task, model.spec.classes) == ("YOLOv5", "instances", ("c0", "c1", "c2", "c3"))
    assert model.spec.output == RawDetections(cls=(5, 9), coefficients=(9, 41), prototypes="prototypes")
    assert model.spec.assumptions == ()
    with np.load(golden / "yolov5n-seg-narrow.npz") as values, torch.inference_mode():
        images = torch.from_numpy(values["images"])
        for module, share in ((model.module, 1), (fuse_model(model.module), 5)):
            rows, prototypes = (t.numpy() for t in module(images))
            error = np.abs(rows - values["output"])
            assert error[..., :4].max() <= share * 1e-3
            assert error[..., 4:9].max() <= share * 1e-5
            assert error[..., 9:].max() <= share * 1e-5
            assert np.abs(prototypes - values["protos"]).max() <= share * 2e-5


def test_its_file_finds_what_the_original_finds(golden: Path, tmp_path: Path) -> None:
    """Boxes and scores are the original's; masks too, but for a cell at the sides of a box and along an outline.

    YOLOv5 crops the map of cells before it enlarges it (docs/predict.md). Who has no pixel is left out here.
    """
    model = load_model(golden / "yolov5n-seg-narrow.pt")
    report = onnx_from_model(model, out=tmp_path / "m.onnx", img=(128, 160), options=OnnxOptions())
    assert [str(output) for output in report.outputs] == [
        "output float32 (1, 1260, 41)", "prototypes float32 (1, 32, 32, 40)",
    ]  # fmt: skip
    assert report.parity is not None
    assert report.parity.ok
    with np.load(golden / "yolov5n-seg-narrow.npz") as values, deploykit.load(tmp_path / "m.onnx") as predictor:
        for i, image in enumerate(values["images"]):
            pixels = np.rint(image * 255).astype(np.uint8).transpose(1, 2, 0)[..., ::-1]
            found = predictor(np.ascontiguousarray(pixels))
            count = int(values["nms_count"][i])
            expected = values["nms"][i][:count]
            masks = np.unpackbits(values[f"nms_masks{i}"], axis=-1)[..., :160].astype(bool)
            places = [int(np.abs(expected[:, 4] - score).argmin()) for score in found.scores]
            assert np.abs(expected[places, 4] - found.scores).max() <= 1e-5
            assert (expected[places, 5] == found.labels).all()
            assert np.abs(np.clip(expected[places, :4], 0, [160, 128, 160, 128]) - found.boxes).max() <= 1e-3
            left_out = sorted(set(range(count)) - set(places))
            assert len(set(places)) == len(places)
            assert not masks[left_out].any()
            assert len(places) > 15
            for mask, box, theirs in zip(found.masks, expected[places, :4], masks[places], strict=True):
                clear = clear_of_edges(mask, box) & clear_of_edges(theirs, box)
                assert not (mask ^ theirs)[clear].any()


def test_the_originals_masks_follow_from_rows_and_prototypes_by_its_own_rule(golden: Path) -> None:
    """Probabilities of cells, those outside of the box put to 0, enlarged, over a half.

    Its NMS multiplies the coefficients by the objectness too, which moves its outlines and no sign of a logit.
    """
    model = load_model(golden / "yolov5n-seg-narrow.pt")
    with np.load(golden / "yolov5n-seg-narrow.npz") as values, torch.inference_mode():
        rows, prototypes = model.module(torch.from_numpy(values["images"]))
        y, x = torch.meshgrid(torch.arange(32), torch.arange(40), indexing="ij")
        for i, count in enumerate(values["nms_count"]):
            expected = np.unpackbits(values[f"nms_masks{i}"], axis=-1)[..., :160].astype(bool)
            boxes = torch.from_numpy(values["nms"][i][:count, :4])
            corners = torch.cat((rows[i, :, :2] - rows[i, :, 2:4] / 2, rows[i, :, :2] + rows[i, :, 2:4] / 2), 1)
            places = torch.cdist(boxes, corners).argmin(1)
            coefficients = rows[i, places, 9:] * rows[i, places, 4:5]
            assert np.abs(coefficients.numpy() - values["nms"][i][:count, 6:]).max() <= 1e-5
            cells = (coefficients @ prototypes[i].flatten(1)).sigmoid().view(-1, 32, 40)
            left, top, right, bottom = (boxes / 4)[..., None, None].unbind(1)
            cells = cells * ((x >= left) & (x < right) & (y >= top) & (y < bottom))
            found = nn.functional.interpolate(cells[None], size=(128, 160), mode="bilinear", align_corners=False)[0]
            assert (expected == (found > 0.5).numpy()).all()


def clear_of_edges(mask: np.ndarray, box: np.ndarray, cell: int = 4) -> np.ndarray:
    """The pixels that are over a cell away from the outline of a mask and from the sides of its box."""
    window = np.ones((2 * cell + 1, 2 * cell + 1), np.uint8)
    wide, narrow = cv2.dilate(mask.astype(np.uint8), window), cv2.erode(mask.astype(np.uint8), window)
    y, x = np.mgrid[: mask.shape[0], : mask.shape[1]]
    left, top, right, bottom = box
    sides = np.minimum.reduce([np.abs(x - left), np.abs(x - right), np.abs(y - top), np.abs(y - bottom)])
    clear: np.ndarray = (wide == narrow) & (sides > cell)
    return clear


@pytest.mark.parametrize("masks", [1, 7])
def test_coefficients_are_as_the_convolution_gives_them(masks: int) -> None:
    """The other columns are those of a detector, cell by cell."""
    torch.manual_seed(0)
    head = Segment(2, ((12, 16, 19, 36, 40, 28), (36, 75, 76, 55, 72, 146)), (6, 10), masks, 8)
    head.set_stride((8, 16))
    randomise(head)
    features = [torch.randn(2, 6, 6, 4), torch.randn(2, 10, 3, 2)]
    with torch.no_grad():
        rows, prototypes = head.eval()(*features)
        raw = [head.raw(x, level) for level, x in enumerate(features)]
    start = 0
    for x, anchors, stride in zip(raw, head.anchor_grid, head.stride, strict=True):
        cells = x.view(2, 3, 7 + masks, *x.shape[2:])
        boxes = cells[:, :, :7].flatten(1, 2).double().numpy()
        expected = decode(boxes, anchors.flatten().tolist(), stride, 2)
        stop = start + expected.shape[1]
        np.testing.assert_allclose(rows[:, start:stop, :7], expected, atol=1e-4)
        assert torch.equal(rows[:, start:stop, 7:], cells[:, :, 7:].permute(0, 1, 3, 4, 2).flatten(1, 3))
        start = stop
    assert (start, prototypes.shape) == (rows.shape[1], (2, masks, 12, 8))


@pytest.mark.parametrize("name", SEGMENTERS)
def test_a_bare_state_dict_of_a_segmenter_is_told_from_every_other(name: str) -> None:
    model = model_from_checkpoint(bare(name, 7))
    assert (model.name, model.spec.task) == (name.replace("_", "-"), "instances")
    (said,) = model.spec.assumptions
    assert said.startswith("SiLU activations and a batch-norm eps of 0.001, as yolov5")


def test_a_description_of_a_segmenter_says_its_variant() -> None:
    name = "yolov5s_seg"
    yaml = yaml_of(name, 7)
    model = model_from_checkpoint(bare(name, 7, yaml=yaml))
    assert (model.name, model.spec.input.size, model.notes) == ("yolov5s-seg", (640, 640), ())
    head = [*yaml["head"][:-1], [[17, 20, 23], 1, "Segment", ["nc", "anchors", 16, 128]]]
    with torch.device("meta"):
        graph = build_graph(GraphConfig.from_yaml({**yaml, "head": head}))
    custom = model_from_checkpoint(bare(name, 7, yaml={**yaml, "head": head}, state_dict=graph.state_dict()))
    assert isinstance(custom.spec.output, RawDetections)
    assert (custom.name, custom.spec.output.coefficients) == ("yolov5-custom", (85, 101))
    assert custom.module.get_parameter("model.24.proto.cv1.conv.weight").shape == (64, 128, 3, 3)


@pytest.mark.parametrize(
    "arguments", [[0, 256], [-1, 256], [32, -256], [10**9, 256], [32, 10**9], ["x", 256], [32, []]]
)
def test_masks_that_no_model_has_are_refused(arguments: list[Any]) -> None:
    yaml = yaml_of("yolov5n_seg", 7)
    head = [*yaml["head"][:-1], [[17, 20, 23], 1, "Segment", ["nc", "anchors", *arguments]]]
    with pytest.raises(CheckpointError, match="layer 24 of the model's description"):
        model_from_checkpoint(bare("yolov5n_seg", 7, yaml={**yaml, "head": head}))


def test_a_transposed_convolution_is_not_taken_for_repeated_cells() -> None:
    """The ultralytics package's prototypes are enlarged by one, whose tensors no file of YOLOv5 has."""
    state = bare("yolov5n_seg", 7).state_dict
    more = {
        "model.24.proto.upsample.weight": torch.empty(64, 64, 2, 2),
        "model.24.proto.upsample.bias": torch.empty(64),
    }
    with pytest.raises(WeightsMismatchError, match=r"proto\.upsample"):
        model_from_checkpoint(bare("yolov5n_seg", 7, state_dict={**state, **more}))


def test_cells_are_chosen_before_they_are_decoded_with_their_coefficients() -> None:
    model = model_of("yolov5n_seg", objectness=1.0)
    layout, graph, images = model.spec.output, model.module, torch.rand(2, 3, 64, 64)
    assert isinstance(layout, RawDetections)
    assert isinstance(graph, LayerGraph)
    with torch.inference_mode():
        rows, prototypes = graph(images)
        expected = RowSelection(layout, 40)((rows, prototypes))
        found = with_candidate_head(graph, layout, 40)(images)
        beside = with_candidate_head(graph, layout, 40, rows=True)(images)
    assert torch.equal(beside[0], rows)
    for part, ours, theirs, again in zip(expected._fields, found, expected, beside[1:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-5, msg=part)
        assert torch.equal(ours, again)


@pytest.mark.slow
def test_nms_inside_finds_the_same_objects_and_masks(tmp_path: Path) -> None:
    model = model_of("yolov5n_seg", objectness=1.0)
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    found = []
    for mode in ("none", "graph"):
        report = onnx_from_model(model, out=tmp_path / f"{mode}.onnx", options=OnnxOptions(nms=mode))  # type: ignore[arg-type]  # strings
        with deploykit.load(report.path) as predictor:
            found.append(predictor(image))
    rows, inside = found
    assert len(rows) > 5
    assert inside.labels.tolist() == rows.labels.tolist()
    np.testing.assert_allclose(inside.scores, rows.scores, atol=1e-6)
    np.testing.assert_allclose(inside.boxes, rows.boxes, atol=1e-4)
    assert (inside.masks == rows.masks).mean() > 0.999
    assert rows.masks.any()
    plugin = onnx_from_model(model, out=tmp_path / "plugin.onnx", options=OnnxOptions(nms="plugin"))
    assert plugin.parity is not None
    assert plugin.parity.ok
    assert {d.values for d in plugin.parity.differences} == {"boxes", "scores", "masks"}


# Classes.


def classifier(size: str, classes: int = 1000) -> LayerGraph:
    with torch.device("meta"):
        return build_classifier(CLASSIFIERS[f"yolov5{size}_cls"], classes)


@SIZES
def test_a_classifier_is_the_backbone_of_its_detector_and_a_linear_layer(size: str) -> None:
    """Its parameters from those of the detector's first nine layers."""
    with torch.device("meta"):
        detector = build_graph(config_of(f"yolov5{size}", 80)).model[:9]
    parameters, tensors, norms = numbers(detector)
    width = math.ceil(1024 * MULTIPLES[size][1] / 8) * 8
    head = conv(width, 1280, 1) + 1280 * 1000 + 1000
    graph = classifier(size)
    assert numbers(graph) == (parameters + head, tensors + 6 + 2, norms + 1)
    shapes = [(key, tuple(t.shape)) for key, t in graph.state_dict().items() if not key.startswith("model.9.")]
    assert shapes == [(f"model.{key}", tuple(t.shape)) for key, t in detector.state_dict().items()]
    eps = {path: m.eps for path, m in graph.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert eps.pop("model.9.conv.bn") == 1e-5
    assert set(eps.values()) == {1e-3}


def test_logits_of_the_original_are_reproduced(golden: Path) -> None:
    """Its two values of eps too: with one of them for all of its batch norms the logits are others."""
    model = load_model(golden / "yolov5n-cls-narrow.pt")
    assert (model.name, model.family, model.spec.task) == ("yolov5-cls-width-0.125", "YOLOv5", "classify")
    assert (model.spec.classes[:2], model.notes, model.spec.assumptions) == (("n00000", "n00001"), (), ())
    with np.load(golden / "yolov5n-cls-narrow.npz") as values, torch.inference_mode():
        images, expected = torch.from_numpy(values["images"]), values["output"]
        for module in (model.module, fuse_model(model.module)):
            logits = module(images)
            assert np.abs(logits.numpy() - expected).max() <= 2e-5
            assert np.abs(logits.softmax(1).numpy() - values["probabilities"]).max() <= 1e-5
        for eps in (1e-3, 1e-5):
            changed = load_model(golden / "yolov5n-cls-narrow.pt").module
            for norm in (m for m in changed.modules() if isinstance(m, nn.BatchNorm2d)):
                norm.eps = eps
            assert np.abs(changed(images).numpy() - expected).max() > 1e-3


@SIZES
def test_a_bare_state_dict_of_a_classifier_is_recognised(size: str) -> None:
    model = model_from_checkpoint(bare("yolov5n", 7, state_dict=classifier(size, 7).state_dict()))
    assert (model.name, model.spec.task, len(model.spec.classes)) == (f"yolov5{size}-cls", "classify", 7)
    assert model.spec.assumptions == (
        f"SiLU activations and a batch-norm eps of 0.001, 1e-05 in the head, as yolov5{size}-cls has them: no tensor "
        "tells",
    )


def test_images_are_the_middle_square_with_imagenets_numbers() -> None:
    canvas = narrow_dense("yolov5n-cls").spec.input
    image = np.random.default_rng(0).integers(0, 256, (150, 97, 3), np.uint8)
    placed = place_on_canvas(image, canvas)
    square = cv2.resize(np.ascontiguousarray(image[26:123]), canvas.size, interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(placed.canvas, square)
    values = (square[..., ::-1] / 255 - IMAGENET_MEAN) / IMAGENET_STD
    np.testing.assert_allclose(to_nchw([placed.canvas], canvas)[0].transpose(1, 2, 0), values, atol=3e-7)


def test_an_exported_classifier_gives_the_originals_probabilities(golden: Path, tmp_path: Path) -> None:
    model = load_model(golden / "yolov5n-cls-narrow.pt")
    report = onnx_from_model(model, out=tmp_path / "m.onnx", img=64, dynamic="batch", options=OnnxOptions())
    assert [str(output) for output in report.outputs] == ["logits float32 (batch, 10)"]
    assert report.parity is not None
    assert report.parity.ok
    with np.load(golden / "yolov5n-cls-narrow.npz") as values, open_session(report.path, provider="cpu") as session:
        logits = torch.from_numpy(session.run({"images": values["images"]})["logits"])
        assert np.abs(logits.softmax(1).numpy() - values["probabilities"]).max() <= 1e-5


def changed(golden: Path, **attributes: Any) -> Any:
    """The checkpoint of the golden classifier with other attributes of its layer 2."""
    from deploykit.models.checkpoint.reader import read_checkpoint

    checkpoint = read_checkpoint(golden / "yolov5n-cls-narrow.pt")
    modules = [
        replace(m, kind=attributes.get("kind", m.kind), attributes={**m.attributes, **attributes})
        if m.path == "model.2"
        else m
        for m in checkpoint.modules
    ]
    return replace(checkpoint, modules=tuple(modules))


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        (
            {"kind": "models.common.C3Ghost"},
            "with models.common.C3Ghost as its layer 2: deploykit has those of release 7",
        ),
        ({"f": -2}, r"layer 2 is fed by \[0\] in the pickled model"),
    ],
)
def test_other_layers_of_a_classifier_are_refused_by_name(
    golden: Path, attributes: dict[str, Any], message: str
) -> None:
    assert isinstance(model_from_checkpoint(changed(golden)), ReferenceModel)
    with pytest.raises(CheckpointError, match=message):
        model_from_checkpoint(changed(golden, **attributes))


def test_a_classifier_with_other_strides_is_refused(golden: Path) -> None:
    checkpoint = changed(golden)
    modules = tuple(
        replace(m, attributes={**m.attributes, "stride": (1, 1)}) if m.path == "model.3.conv" else m
        for m in checkpoint.modules
    )
    with pytest.raises(CheckpointError, match=r"stride of model.3.conv is \(1, 1\) in the pickled model"):
        model_from_checkpoint(replace(checkpoint, modules=modules))


@pytest.mark.parametrize("key", ["model.0.conv.weight", "model.4.m.0.cv2.bn.running_mean"])
def test_a_wrong_tensor_of_a_classifier_is_named(key: str) -> None:
    state = classifier("n", 7).state_dict()
    wrong = {**state, key: torch.zeros(16, 3, 3, 3, device="meta")}
    with pytest.raises(WeightsMismatchError, match=rf"{key} is \[16, 3, 3, 3\], expected .*of a changed yolov5n-cls"):
        model_from_checkpoint(bare("yolov5n", 7, state_dict=wrong))


@pytest.mark.parametrize(
    "tensor", [torch.empty(0, 3, 6, 6), torch.empty(16, 0, 6, 6), torch.empty(10**9, 0, 1, 1), torch.empty(16)]
)
def test_tensors_that_no_network_has_are_of_no_classifier(tensor: Tensor) -> None:
    state = {**classifier("n", 7).state_dict(), "model.0.conv.weight": tensor}
    with pytest.raises(CheckpointError, match="does not know"):
        model_from_checkpoint(bare("yolov5n", 7, state_dict=state))


# Files of ours.


@pytest.mark.parametrize("name", ["yolov5n-seg", "yolov5n-cls"])
def test_a_created_file_is_in_the_originals_format_and_read_back(name: str, tmp_path: Path) -> None:
    from deploykit.models.checkpoint.reader import read_checkpoint

    file = create_checkpoint(name, tmp_path / "m.pt", num_classes=3)
    kinds = {m.path: m.kind for m in read_checkpoint(file).modules}
    task = "Segmentation" if name.endswith("seg") else "Classification"
    assert kinds[""] == f"models.yolo.{task}Model"
    last = {"yolov5n-seg": ("model.24", "models.yolo.Segment"), "yolov5n-cls": ("model.9", "models.common.Classify")}
    assert kinds[last[name][0]] == last[name][1]
    assert ("model.9.pool" in kinds) == name.endswith("cls")
    model = load_model(file)
    assert (model.name, len(model.spec.classes), model.spec.assumptions) == (name, 3, ())
