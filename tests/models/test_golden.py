"""Trained and upstream-made checkpoints: the numbers are those of the original code, or of somebody else's export."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from deploykit.errors import CheckpointError
from deploykit.export.options import OnnxOptions
from deploykit.export.to_onnx import onnx_from_model
from deploykit.facade import open_session
from deploykit.models.fuse import fuse_model
from deploykit.models.layers.anchor_head import IKeypoint, Keypoint
from deploykit.models.layers.focus import Focus
from deploykit.models.layers.ghost import C3Ghost
from deploykit.models.layers.lite import DWConvblock, ShuffleBlock
from deploykit.models.registry import ReferenceModel, load_model
from deploykit.runtime.images.letterbox import Letterbox
from deploykit.runtime.images.reading import read_image
from deploykit.runtime.images.to_tensor import to_nchw
from deploykit.spec import COCO_KEYPOINTS, PoseObjectRows, RawDetections

pytestmark = pytest.mark.data
SHARED = Path(__file__).resolve().parents[2].parent / "shared"
GOLDEN, WEIGHTS, IMAGES = SHARED / "golden", SHARED / "data" / "weights", SHARED / "data" / "images"
FACES, PLATES = WEIGHTS / "yolov7-lite-e_face5kpt.pt", WEIGHTS / "yolov7-lite-s_plate4kpt.pt"
YOLOV5N, GHOST = WEIGHTS / "yolov5n_official_coco.pt", WEIGHTS / "yolo-pose-ghost_coco17kpt.pt"
OFFICIAL = WEIGHTS / "official_yolov7-tiny.structure-randomfill.pt"
Array = NDArray[np.float32]

NARROW = {
    "yolov7-w6-pose-narrow": ("yolov7-w6-pose-width-0.125", ("person",), 64),
    "yolov7-training-narrow": ("yolov7-width-0.125", tuple(f"class{i}" for i in range(80)), 32),
    "yolov7-tiny-training-narrow": ("yolov7-tiny-width-0.25", ("cat", "dog", "bird"), 32),
    "yolov5s6-pose-narrow": ("yolov5-p6-pose-depth-0.33-width-0.125", ("person",), 64),
    "kapao-s-narrow": ("kapao-depth-0.33-width-0.125", ("person",), 64),
    "yolov6n-narrow": ("yolov6n-width-0.125", tuple(f"c{i}" for i in range(5)), 32),
    "yolox-s-narrow": ("yolox-depth-0.33-width-0.125", tuple(f"class {i}" for i in range(4)), 32),
}
PHOTOS = 4


@cache
def model_of(path: Path) -> ReferenceModel:
    return load_model(path)


def probability_columns(rows: RawDetections | PoseObjectRows) -> NDArray[np.bool_]:
    """Which columns are probabilities; the others are pixels."""
    found = np.zeros(rows.columns, bool)
    found[4 : rows.cls[1]] = True
    if isinstance(rows, RawDetections) and rows.keypoints is not None:
        found[rows.keypoints[0] + 2 : rows.keypoints[1] : 3] = True
    return found


def rows_of(module: nn.Module, images: Array) -> Array:
    with torch.no_grad():
        return module(torch.from_numpy(images)).numpy()  # type: ignore[no-any-return]


def assert_within(found: Array, expected: Array, model: ReferenceModel, pixels: float, probability: float) -> None:
    assert isinstance(model.spec.output, (RawDetections, PoseObjectRows))
    assert found.shape == expected.shape
    assert np.isfinite(found).all()
    columns = probability_columns(model.spec.output)
    error = np.abs(found - expected).reshape(-1, found.shape[-1]).max(axis=0)
    assert error[columns].max() <= probability
    assert error[~columns].max() <= pixels


@pytest.mark.parametrize("fused", [False, True], ids=["trained form", "folded"])
@pytest.mark.parametrize("name", NARROW)
def test_the_originals_own_output_is_reproduced(name: str, fused: bool) -> None:
    model = model_of(GOLDEN / f"{name}.pt")
    with np.load(GOLDEN / f"{name}.npz") as golden:
        images, expected = golden["images"], golden["output"]
    found = rows_of(fuse_model(model.module) if fused else model.module, images)
    assert_within(found, expected, model, pixels=1e-3, probability=1e-5)
    # These random weights dampen the image to a few thousandths of a pixel, which the limits above would not miss:
    # so what changes from one image to the other is compared by itself, too.
    change, expected_change = (np.subtract(*rows.astype(np.float64)) for rows in (found, expected))
    assert np.linalg.norm(change - expected_change) <= 0.1 * np.linalg.norm(expected_change)


@pytest.mark.parametrize(("name", "facts"), NARROW.items())
def test_a_checkpoint_says_what_it_is(name: str, facts: tuple[str, tuple[str, ...], int]) -> None:
    model = model_of(GOLDEN / f"{name}.pt")
    assert (model.name, model.spec.classes, model.stride) == facts
    # The list of names in the file of KaPao has 52 entries; its 18 classes are the person and COCO's keypoints.
    expected = ("it names 52 classes and has 18: its names are not used",) if "kapao" in name else ()
    assert model.notes == expected


def test_the_released_tiny_is_recognised_and_folds_to_its_published_size() -> None:
    model = model_of(OFFICIAL)
    assert model.name == "yolov7-tiny"
    assert len(model.spec.classes) == 80
    assert model.spec.classes[0] == "person"
    assert model.spec.input.size == (640, 640)
    assert model.notes == ()
    assert sum(p.numel() for p in model.module.parameters()) == 6_227_101
    assert sum(p.numel() for p in fuse_model(model.module).parameters()) == 6_219_709


def letterboxed(paths: list[Path], model: ReferenceModel) -> Array:
    canvases = []
    for path in paths:
        image = read_image(path)
        canvases.append(
            Letterbox.fit(image.shape[:2], model.spec.input.size, model.spec.input.fit, auto=False).apply(image)
        )
    return to_nchw(canvases, model.spec.input)


@pytest.fixture(scope="module")
def photographs() -> Array:
    paths = sorted((IMAGES / "faces-wider").glob("*.jpg"))
    return letterboxed(paths[:: len(paths) // PHOTOS][:PHOTOS], model_of(FACES))


@pytest.fixture(scope="module")
def exported_rows(photographs: Array) -> Array:
    """What the author's own ONNX export of the face model gives, image by image."""
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    path = SHARED / "data" / "onnx" / "yolov7-lite-e_face5kpt.onnx"
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: image[None]})[0] for image in photographs])


@pytest.mark.parametrize("fused", [False, True], ids=["trained form", "folded"])
def test_the_face_model_agrees_with_its_authors_export(photographs: Array, exported_rows: Array, fused: bool) -> None:
    """0.5 px and 1e-4: the export was made from the half-precision weights by another program."""
    model = model_of(FACES)
    found = rows_of(fuse_model(model.module) if fused else model.module, photographs)
    assert exported_rows.shape == (PHOTOS, 25_200, 21)
    assert (exported_rows[..., 4] * exported_rows[..., 5] > 0.5).any(axis=1).all(), "there are faces in every image"
    assert_within(found, exported_rows, model, pixels=0.5, probability=1e-4)


def test_the_face_model_says_what_it_is() -> None:
    model = model_of(FACES)
    assert (model.name, model.spec.classes, model.spec.task) == ("yolov7-lite-e", ("face",), "keypoints")
    assert isinstance(model.module.head, IKeypoint)
    assert model.spec.keypoints is not None
    assert len(model.spec.keypoints.names) == 5
    assert model.spec.output == RawDetections(cls=(5, 6), keypoints=(6, 21))


def test_two_classes_and_four_keypoints_are_not_one_and_seventeen() -> None:
    model = model_of(PLATES)
    assert model.spec.classes == ("single", "double")
    assert model.spec.output == RawDetections(cls=(5, 7), keypoints=(7, 19))
    paths = sorted(p for p in (IMAGES / "plates").iterdir() if p.suffix.lower() in (".jpg", ".png"))
    rows = rows_of(fuse_model(model.module), letterboxed(paths[:2], model))
    assert rows.shape == (2, 25_200, 19)
    assert np.isfinite(rows).all()
    probabilities = rows[..., probability_columns(model.spec.output)]
    assert probabilities.min() >= 0
    assert probabilities.max() <= 1


def test_plates_are_found_with_their_four_corners_around_them() -> None:
    """On every image the best row is a plate, and its corners lie near its box."""
    model = model_of(PLATES)
    paths = sorted(p for p in (IMAGES / "plates").iterdir() if p.suffix.lower() in (".jpg", ".png"))[:4]
    rows = rows_of(fuse_model(model.module), letterboxed(paths, model))
    for image in rows:
        score = image[:, 4] * image[:, 5:7].max(axis=1)
        best = image[score.argmax()]
        assert score.max() > 0.5
        corners = best[7:].reshape(4, 3)[:, :2]
        assert (np.abs(corners - best[:2]) <= best[2:4]).all()


@pytest.mark.parametrize(("path", "kind"), [(FACES, nn.ReLU), (PLATES, nn.SiLU)], ids=["lite-e", "lite-s"])
def test_lite_models_keep_the_activation_that_they_were_trained_with(path: Path, kind: type[nn.Module]) -> None:
    """It is in no state dict and not in the description; with the other one nothing is found."""
    model = model_of(path)
    blocks = [m for m in model.module.modules() if isinstance(m, ShuffleBlock | DWConvblock)]
    assert {type(block) for block in blocks} == {ShuffleBlock, DWConvblock}
    activations = [m for block in blocks for m in block.modules() if isinstance(m, nn.ReLU | nn.SiLU)]
    assert {type(m) for m in activations} == {kind}
    (note,) = model.notes
    assert note.endswith(
        f"activations are {kind.__name__}, as in the pickled model; its layer description does not say so"
    )


def test_the_keypoint_branch_of_a_lite_model_is_one_convolution_a_level() -> None:
    fused = fuse_model(model_of(FACES).module)
    head = fused.head
    assert type(head) is Keypoint
    assert [type(branch) for branch in head.m_kpt] == [nn.Conv2d] * 3


def test_the_blocks_of_yolo_pose_are_in_the_order_that_its_pickled_modules_say() -> None:
    """Its state dict fits both orders; with the classic one the numbers are others by far."""
    model = model_of(GOLDEN / "yolov5s6-pose-narrow.pt")
    first = model.module.get_submodule("model.0")
    assert isinstance(first, Focus)
    assert not first.rows_first
    with np.load(GOLDEN / "yolov5s6-pose-narrow.npz") as golden:
        images, expected = golden["images"], golden["output"]
    other = copy.deepcopy(model.module)
    other.get_submodule("model.0").rows_first = True
    change = np.subtract(*expected.astype(np.float64))
    found = np.subtract(*rows_of(other, images).astype(np.float64))
    assert np.linalg.norm(found - change) > 0.5 * np.linalg.norm(change)


def test_the_released_yolov5n_is_recognised_and_folds_to_its_published_size() -> None:
    model = model_of(YOLOV5N)
    assert (model.name, model.family, model.notes) == ("yolov5n", "YOLOv5", ())
    assert model.spec.classes[:2] == ("person", "bicycle")
    assert (model.spec.input.size, model.stride) == ((640, 640), 32)
    assert sum(p.numel() for p in model.module.parameters()) == 1_872_157
    assert sum(p.numel() for p in fuse_model(model.module).parameters()) == 1_867_405


def test_a_trained_yolov8_finds_something() -> None:
    model = model_of(WEIGHTS / "yolov8n_dill_globals.pt")
    assert (model.name, model.family, model.stride) == ("yolov8n", "YOLOv8", 32)
    assert model.spec.classes == ("Keratin Pearl", "keratin pearls")
    assert model.spec.output == RawDetections(obj=None, cls=(4, 6))
    (note,) = model.notes
    assert "not imported, not called" in note
    paths = sorted((IMAGES / "faces-wider").glob("*.jpg"))[:1]
    rows = rows_of(model.module, letterboxed(paths, model))
    assert rows.shape == (1, 8400, 6)
    assert_within(rows_of(fuse_model(model.module), letterboxed(paths, model)), rows, model, 5e-3, 5e-5)


def test_a_model_with_ghost_blocks_keeps_the_bottlenecks_that_it_was_trained_with() -> None:
    """Its project's C3Ghost takes ``False`` for the number of bottlenecks in the head: none."""
    model = model_of(GHOST)
    blocks = [m for m in model.module.modules() if isinstance(m, C3Ghost)]
    assert [len(block.m) for block in blocks] == [1, 1, 1, 0, 0, 0, 0]
    assert model.notes == (
        "4 C3Ghost have fewer bottlenecks than repeats, as in the pickled model; its layer description does not say so",
    )
    assert (model.name, model.module.head.stride, model.stride) == ("yolov5-custom", (4, 8, 16), 16)
    assert model.spec.keypoints is not None


def test_kapao_is_not_taken_for_a_pose_or_a_detection_model() -> None:
    """Its rows are as wide as those of a pose model, its tensors those of a detector of 52 classes."""
    model = model_of(GOLDEN / "kapao-s-narrow.pt")
    assert (model.family, model.spec.task, model.spec.keypoints) == ("KaPao", "keypoints", COCO_KEYPOINTS)
    assert model.spec.output == PoseObjectRows(cls=(5, 23), coords=(23, 57))


def test_the_export_of_kapao_gives_the_originals_output(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model = model_of(GOLDEN / "kapao-s-narrow.pt")
    with np.load(GOLDEN / "kapao-s-narrow.npz") as golden:
        images, expected = golden["images"], golden["output"]
    options = OnnxOptions(img=images.shape[2:], batch=len(images), exporter="legacy")
    report = onnx_from_model(model, out=tmp_path / "m.onnx", options=options)
    assert report.parity is not None
    assert report.parity.ok
    with open_session(report.path, provider="cpu") as session:
        found = session.run({"images": images})["output"]
    assert_within(found, expected, model, pixels=1e-3, probability=1e-5)


def test_a_state_dict_of_no_known_model_is_refused_with_what_to_do() -> None:
    with pytest.raises(CheckpointError, match=r"does not know: .*deploykit inspect shows it, deploykit models lists"):
        load_model(WEIGHTS / "dncnn_wholemodel_main.pth")


def test_a_file_that_was_cut_off_is_refused_with_what_to_do() -> None:
    with pytest.raises(CheckpointError, match=r"truncated.*get it again"):
        load_model(WEIGHTS / "official_yolov7-tiny.truncated.pt")
