"""Exports that must pass their parity check, and really agree with PyTorch on inputs that the check did not see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from deploykit.export.options import OnnxOptions
from deploykit.export.parity.report import ParityReport
from deploykit.export.report import ExportReport
from deploykit.export.sessions.torch_module import TorchSession, spec_of_module
from deploykit.export.to_onnx import onnx_from_model
from deploykit.facade import open_session
from deploykit.models.fuse import fuse_model
from deploykit.models.layers.focus import Focus
from deploykit.models.registry import ReferenceModel, builder_of, create_model, list_models
from deploykit.runtime.arrays import Array
from deploykit.spec import ModelSpec, PoseObjectRows, RawDetections
from tests.export.test_instances import INSTANCES
from tests.narrow import model_of, yolov6_config
from tests.narrow_dense import NARROW, narrow_dense
from tests.narrow_free import group_of

FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "yolov3": ({}, {"dynamic": "batch"}),
    "yolov3_spp": ({"num_classes": 1}, {}),
    "yolov3_tiny": ({}, {"img": (32, 96)}),
    "yolov5n": ({}, {"img": (32, 64)}),
    "yolov5s": ({"num_classes": 1}, {"img": (32, 96)}),
    "yolov5m": ({}, {"dynamic": "batch"}),
    "yolov5l": ({}, {"batch": 2}),
    "yolov5x": ({}, {}),
    "yolov5n6": ({}, {"img": (64, 128)}),
    "yolov5s6": ({}, {"dynamic": "batch"}),
    "yolov5m6": ({}, {"simplify": False}),
    "yolov5l6": ({}, {}),
    "yolov5x6": ({}, {}),
    "yolov5s6_pose": ({"num_keypoints": 17, "num_classes": 1}, {"img": (64, 128)}),
    "yolov5m6_pose": ({"num_keypoints": 5, "num_classes": 2}, {}),
    "yolov5l6_pose": ({}, {}),
    "yolov5s6_pose_ti_lite": ({"num_classes": 1}, {"img": (64, 128)}),
    "yolov5m6_pose_ti_lite": ({"num_keypoints": 17, "num_classes": 1}, {}),
    "yolov5l6_pose_ti_lite": ({}, {}),
    "yolov5n_seg": ({}, {"img": (32, 64)}),
    "kapao_s": ({"num_classes": 18}, {"img": (64, 128)}),
    "kapao_m": ({}, {"batch": 2}),
    "kapao_l": ({"num_classes": 15}, {"dynamic": "batch"}),
    "yolov6n": ({"num_classes": 1, "depth": 2}, {"img": (32, 96)}),
    "yolov6m": ({}, {}),
    "yolov6l": ({}, {"batch": 2}),
    "yolov6n6": ({}, {"dynamic": "batch"}),
    "yolov6n_v2": ({}, {"img": (64, 128)}),
    "yolov6n_v1": ({}, {}),
    "yolov7_tiny": ({"training": True, "num_classes": 1}, {"img": (32, 96)}),
    "yolov7": ({"training": True}, {"opset": 23}),
    "yolov7x": ({}, {"batch": 2}),
    "yolov7_w6": ({"training": True}, {"dynamic": "batch"}),
    "yolov7_e6": ({}, {"simplify": False}),
    "yolov7_d6": ({}, {}),
    "yolov7_e6e": ({"training": True}, {}),
    "yolov7_w6_pose": ({"num_keypoints": 5, "num_classes": 2}, {"img": (64, 128)}),
    "yolox_nano": ({}, {"img": (32, 96)}),
    "yolox_s": ({"num_classes": 1}, {"batch": 2, "img": (96, 32)}),
    "yolox_m": ({}, {"dynamic": "batch"}),
    "yolox_darknet53": ({}, {"img": (32, 64)}),
    "yolox_s_ti_lite": ({}, {"simplify": False}),
    "yolox_s_pose": ({"num_classes": 1, "num_keypoints": 17}, {"img": (32, 64)}),
    "yolox_s_pose_ti_lite": ({"num_classes": 2, "num_keypoints": 5}, {}),
}
"""Each variant once, and each option at least once: (how the model is made, how it is exported).

The default exporter makes them all, and takes seconds a network. Those that together have every kind of layer are
always run; :data:`MORE_OF_THE_SAME` only where there is time.
"""

MORE_OF_THE_SAME = {
    "yolov3", "yolov5m", "yolov5l", "yolov5x", "yolov5n6", "yolov5m6", "yolov5l6", "yolov5x6",
    "yolov5m6_pose", "yolov5l6_pose", "yolov5m6_pose_ti_lite", "yolov5l6_pose_ti_lite", "kapao_m", "kapao_l",
    "yolov6l", "yolov7x", "yolov7_w6", "yolov7_d6", "yolox_s", "yolox_m",
    "yolov3_spp", "yolov5s", "yolov5s6", "yolov5s6_pose", "yolov6n6", "yolov6n_v2", "yolov7_e6", "yolox_s_ti_lite",
    "yolox_s_pose_ti_lite",
}  # fmt: skip
"""Variants that differ from another one of their family in how many layers there are of each kind, or in an option of
the export that another one has too."""

LEGACY = (
    "yolov3_tiny",
    "yolov5s",
    "yolov5s6_pose",
    "kapao_s",
    "yolov6n_v2",
    "yolov7_tiny",
    "yolox_nano",
    "yolox_s_pose_ti_lite",
)
"""One variant a family, by torch's older exporter as well."""

AS: dict[str, tuple[str, ...]] = {
    "yolov6s": ("yolov6n",),
    "yolov6s6": ("yolov6n6",),
    "yolov6m6": ("yolov6m", "yolov6n6"),
    "yolov6l6": ("yolov6l", "yolov6n6"),
    "yolov6n_qa": ("yolov6n",),
    "yolov6s_qa": ("yolov6n",),
    "yolov6m_qa": ("yolov6m",),
    "yolov6t_v2": ("yolov6n_v2",),
    "yolov6s_v2": ("yolov6n_v2",),
    "yolov6m_v2": ("yolov6m", "yolov6n_v2"),
    "yolov6l_v2": ("yolov6l", "yolov6n_v2"),
    "yolov6l_relu_v2": ("yolov6m", "yolov6n_v2"),
    "yolov6s_v1": ("yolov6n_v1",),
    "yolov6t_v1": ("yolov6n_v1",),
}
"""Variants that are, once folded, made of the parts of some above; only numbers of blocks and channels differ."""


def parts_of(name: str) -> set[tuple[str, Any]]:
    """What a YOLOv6 variant is made of when its blocks are folded: the choices of its description, without numbers."""
    layout = yolov6_config(name, 1)
    crossing = [bool(stage.hidden) for stage in (*layout.stages, *layout.down, *layout.up)]
    assert len(set(crossing)) == 1
    return {
        ("stage", (crossing[0], layout.activation)),
        ("pooling", (layout.cspsppf, layout.activation)),
        ("levels", layout.levels),
        ("fusion", layout.bifusion),
        ("head", (layout.reg_max, layout.objectness)),
    }


ALIKE = {
    **dict.fromkeys(("yolov5s_seg", "yolov5m_seg", "yolov5l_seg", "yolov5x_seg"), "yolov5n_seg"),
    "yolox_tiny": "yolox_s",
    "yolox_l": "yolox_m",
    "yolox_x": "yolox_m",
    "yolox_nano_ti_lite": "yolox_s_ti_lite",
    "yolox_tiny_ti_lite": "yolox_s_ti_lite",
    "yolox_m_ti_lite": "yolox_s_ti_lite",
}
"""Variants that have the layers of another one and no other, in other numbers: that one is exported for them."""


def rows_of(reference: TorchSession, file: Path, image: Array) -> tuple[Array, Array]:
    """What PyTorch and ONNX Runtime make of an input."""
    with open_session(file, provider="cpu") as session:
        return tuple(s.run({"images": image})["output"] for s in (reference, session))  # type: ignore[return-value]


def exact(model: ReferenceModel) -> TorchSession:
    return TorchSession(model.module, spec_of_module(model), exact=True)


def noise(*shape: int) -> Array:
    return np.random.default_rng(7).random(shape, np.float32)


def assert_agree(expected: Array, found: Array, layout: RawDetections) -> None:
    """Within the limits of fp32, boxes and keypoints in pixels, all else probabilities."""
    pixels = np.zeros(layout.columns, bool)
    pixels[slice(*layout.box)] = True
    if layout.keypoints:
        span = np.arange(*layout.keypoints)
        pixels[span[(span - span[0]) % layout.kpt_dims < 2]] = True
    assert found.shape == expected.shape
    limit = np.where(pixels, 1e-3 + 1e-5 * np.abs(expected), 1e-5)
    assert (np.abs(expected - found) <= limit).all()


def checked(report: ExportReport) -> ExportReport:
    assert report.parity is not None
    assert report.parity.ok
    assert report.path.exists()
    return report


def layout_of(spec: ModelSpec) -> RawDetections:
    assert isinstance(spec.output, (RawDetections, PoseObjectRows))
    return spec.output.as_rows()


def test_every_registered_model_is_exported_here() -> None:
    """Those with one dense output have tests of their own beside their families'; the table exports each.

    Networks of the ultralytics package are exported by tests/export/test_free_exports.py.
    """
    detectors = sorted(name.replace("_", "-") for name in (*FAMILIES, *AS, *ALIKE))
    missing = set(list_models()) - {*detectors, *NARROW, *INSTANCES, *group_of()}
    assert not missing, "a narrow one of each belongs into NARROW (tests/narrow_dense.py), FAMILIES or AS"
    assert sorted((*detectors, *NARROW, *INSTANCES, *group_of())) == list_models()


def one_of_each_family() -> list[str]:
    narrow = (name for name in reversed(list_models()) if name in NARROW or name.replace("-", "_") in FAMILIES)
    return sorted({builder_of(name).__module__: name for name in narrow}.values())


@pytest.mark.parametrize("name", one_of_each_family())
def test_fusing_leaves_no_batch_norm(name: str) -> None:
    """The exporter folds what ``fuse`` leaves, and nothing would have checked that fold."""
    key = name.replace("-", "_")
    model = narrow_dense(name) if name in NARROW else model_of(key, **FAMILIES[key][0])
    layers = fuse_model(model.module).named_modules()
    assert not [path for path, layer in layers if isinstance(layer, nn.modules.batchnorm._BatchNorm)]


@pytest.mark.parametrize(("name", "exported"), AS.items())
def test_what_is_not_exported_is_made_of_the_parts_of_what_is(name: str, exported: tuple[str, ...]) -> None:
    assert set(exported) <= set(FAMILIES)
    assert parts_of(name) <= set[tuple[str, Any]]().union(*map(parts_of, exported))


def kinds_of(name: str) -> set[str]:
    with torch.device("meta"):
        return {str(type(module)) for module in create_model(name).module.modules()}


def test_what_is_exported_where_there_is_time_has_the_layers_of_what_always_is() -> None:
    always = set[str]().union(*(kinds_of(name) for name in FAMILIES if name not in MORE_OF_THE_SAME))
    assert set(FAMILIES) > MORE_OF_THE_SAME
    assert not {name: missing for name in MORE_OF_THE_SAME if (missing := kinds_of(name) - always)}


@pytest.mark.parametrize(("name", "exported"), ALIKE.items())
def test_what_is_not_exported_has_the_layers_of_what_is(name: str, exported: str) -> None:
    assert kinds_of(name) == kinds_of(exported)


def export_and_compare(name: str, out: Path, **exporter: Any) -> None:
    """Export a variant as the table says, and compare what PyTorch and ONNX Runtime make of noise."""
    made, options = FAMILIES[name]
    model = model_of(name, **made)
    report = checked(onnx_from_model(model, out=out, options=OnnxOptions(**options, **exporter)))
    batch = options.get("batch", 1)
    image = noise(batch, 3, *report.spec.input.size) * np.float32(255 * report.spec.input.scale)
    expected, found = rows_of(exact(model), report.path, image)
    assert_agree(expected, found, layout_of(report.spec))
    assert report.opset == options.get("opset", 18)
    assert found.shape[2] == layout_of(report.spec).columns
    # Every weight of the fused model is in the file once; simplifying may leave out a few that do nothing.
    assert 0.99 <= report.weight_size / (4 * report.parameters) <= 1.0


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in MORE_OF_THE_SAME else ()) for name in FAMILIES]
)
def test_every_family_exports_and_agrees(name: str, tmp_path: Path) -> None:
    export_and_compare(name, tmp_path / "m.onnx")


@pytest.mark.parametrize("name", LEGACY)
def test_the_older_exporter_gives_a_variant_a_family_that_agrees(name: str, tmp_path: Path) -> None:
    export_and_compare(name, tmp_path / "m.onnx", exporter="legacy")


def test_the_older_layers_of_yolov5_export_and_agree(tmp_path: Path) -> None:
    """Those of releases before 6.0 and of YOLO-Pose, with the order of its first layer."""
    model = model_of("older", num_keypoints=3)
    first = model.module.get_submodule("model.0")
    assert isinstance(first, Focus)
    first.rows_first = False
    report = checked(onnx_from_model(model, out=tmp_path / "m.onnx", img=(32, 64)))
    assert_agree(*rows_of(exact(model), report.path, noise(1, 3, 32, 64)), layout_of(report.spec))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"batch": 3},
        {"batch": 3, "exporter": "legacy"},
        {"dynamic": "batch"},
        {"dynamic": "batch", "exporter": "legacy"},
        {"dynamic": "shape"},
    ],
    ids=str,
)
def test_pose_objects_export_and_agree_in_every_shape(options: dict[str, Any], tmp_path: Path) -> None:
    """KaPao's head, whose coordinates are in anchors and from the corner of a cell."""
    model = model_of("pose objects", objectness=1.0)
    report = checked(onnx_from_model(model, out=tmp_path / "m.onnx", img=(32, 64), options=OnnxOptions(**options)))
    assert str(report.outputs[0]).endswith(", 12)")
    layout = layout_of(report.spec)
    free = options.get("dynamic", "none")
    shapes = {"none": [(options.get("batch", 1), 3, 32, 64)], "batch": [(1, 3, 32, 64), (4, 3, 32, 64)]}
    for shape in shapes.get(free, [(1, 3, 32, 64), (2, 3, 96, 48)]):
        assert_agree(*rows_of(exact(model), report.path, noise(*shape)), layout)
    assert report.parity is not None
    assert all(m.matched > 20 for m in report.parity.matchings if m.what == "detections")


@pytest.mark.parametrize("exporter", ["dynamo", "legacy"])
def test_a_dynamic_batch_takes_any_batch(exporter: Any, exported: Path, tmp_path: Path) -> None:
    """Of the default exporter, whose file tests/export/test_artefact.py has by its axes, and of the older one."""
    model = model_of("few", num_keypoints=3, objectness=3.0)
    out = exported / "batch.onnx"
    if exporter == "legacy":
        out = tmp_path / "m.onnx"
        options = OnnxOptions(exporter=exporter, dynamic="batch")
        report = checked(onnx_from_model(model, out=out, img=64, options=options))
        assert str(report.inputs[0]) == "images float32 (batch, 3, 64, 64)"
        assert str(report.outputs[0]) == "output float32 (batch, rows, 16)"
    for batch in (1, 2, 5):
        assert_agree(*rows_of(exact(model), out, noise(batch, 3, 64, 64)), layout_of(model.spec))


@pytest.mark.parametrize("exporter", [pytest.param("dynamo", marks=pytest.mark.slow), "legacy"])
def test_a_dynamic_shape_takes_any_batch_and_any_good_size(exporter: Any, tmp_path: Path) -> None:
    model = model_of("few", num_keypoints=3)
    out = tmp_path / "m.onnx"
    # The size is the smallest: each axis of the deepest level has one cell, and still it must not become a constant.
    report = checked(
        onnx_from_model(model, out=out, img=model.stride, dynamic="shape", options=OnnxOptions(exporter=exporter))
    )
    assert str(report.inputs[0]) == "images float32 (batch, 3, height, width)"
    assert str(report.outputs[0]) == "output float32 (batch, rows, 16)"
    for shape in ((1, 3, 16, 16), (3, 3, 48, 80), (1, 3, 256, 32)):
        assert_agree(*rows_of(exact(model), out, noise(*shape)), layout_of(report.spec))


def test_a_static_batch_is_checked_in_shuffled_slots(tmp_path: Path) -> None:
    report = checked(onnx_from_model(model_of("few"), out=tmp_path / "m.onnx", img=64, options=OnnxOptions(batch=2)))
    assert str(report.outputs[0]).startswith("output float32 (2, ")
    assert report.parity is not None
    names = list(dict.fromkeys(d.input for d in report.parity.differences))
    assert names == ["2 slots shuffled (1 of 2)", "2 slots shuffled (2 of 2)", "2 slots of apollo11_crew.jpg"]


def test_detections_are_matched_where_there_are_any(tmp_path: Path) -> None:
    model = model_of("few", num_keypoints=3, objectness=3.0)
    report = checked(onnx_from_model(model, out=tmp_path / "m.onnx", img=64))
    assert report.parity is not None
    assert {m.what for m in report.parity.matchings} == {"detections"}
    assert all(m.matched > 20 and m.max_keypoint is not None for m in report.parity.matchings)


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> ParityReport:
    """What was compared of a network that detects nothing."""
    report = checked(onnx_from_model(model_of("few"), out=tmp_path_factory.mktemp("quiet") / "m.onnx", img=64))
    assert report.parity is not None
    return report.parity


def test_without_detections_the_best_rows_are_compared(quiet: ParityReport) -> None:
    assert all(m.expected == 0 for m in quiet.matchings if m.what == "detections")
    best = [m for m in quiet.matchings if m.what == "best rows"]
    assert best
    assert all(m.expected == m.matched == 100 for m in best)


def test_the_checkpoint_is_the_reference_on_every_input(quiet: ParityReport) -> None:
    assert quiet.references == {"the checkpoint": "PyTorch CPU float64"}
    compared = {(d.reference, d.input) for d in quiet.differences}
    assert compared == {("the checkpoint", "apollo11_crew.jpg"), ("the checkpoint", "noise (seed 0)")}


def test_simplifying_keeps_the_numbers_and_removes_nodes(tmp_path: Path) -> None:
    plain, simple = (
        checked(
            onnx_from_model(
                model_of("few"), out=tmp_path / f"{simplify}.onnx", img=64, options=OnnxOptions(simplify=simplify)
            )
        )
        for simplify in (False, True)
    )
    assert simple.nodes < plain.nodes
    operators = {node.op_type for node in onnx.load(str(simple.path)).graph.node}
    assert not operators & {"Shape", "Gather", "Range", "Identity", "Constant", "BatchNormalization"}


def test_without_a_check_nothing_claims_one(tmp_path: Path) -> None:
    out, verification = tmp_path / "m.onnx", tmp_path / "m.onnx.parity.json"
    checked(onnx_from_model(model_of("few"), out=out, img=64, options=OnnxOptions(exporter="legacy")))
    assert verification.exists()
    report = onnx_from_model(model_of("few"), out=out, img=64, options=OnnxOptions(exporter="legacy"), check=False)
    assert report.parity is None
    assert out.exists()
    assert not verification.exists()
