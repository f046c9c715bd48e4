"""Exports of the ultralytics package's networks agree with PyTorch on images that the parity check did not see."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from deploykit.export.engine.build import build_engine
from deploykit.export.options import OnnxOptions
from deploykit.export.sessions.torch_module import TorchSession, spec_of_module
from deploykit.export.to_onnx import onnx_from_model
from deploykit.facade import open_session
from deploykit.models.registry import ReferenceModel
from deploykit.runtime.cuda import gpu_unavailable_reason
from deploykit.spec import DenseOutput
from tests.meta_model import meta_model
from tests.narrow_free import group_of, groups, narrow_free

MANY = {"branch": "one2many"}
EXPORTED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "yolov8n": ({"num_classes": 1}, {"dynamic": "batch"}),
    "yolov8m-p6": ({}, {"img": (64, 128)}),
    "yolov8n-cls": ({}, {"batch": 2}),
    "yolov8s-obb": ({}, {"img": (32, 96)}),
    "yolo11m-pose": ({"kpt_shape": (5, 2)}, {"img": (64, 96)}),
    "yolo12l-seg": ({}, {"dynamic": "batch"}),
    "yolo26n-seg": (MANY, {"img": (32, 64)}),
    "yolo26s-pose": (MANY, {}),
    "yolo26m-obb": (MANY, {}),
    "yolov10s": (MANY, {"batch": 2}),
    "yolov9t": ({}, {"img": (96, 32)}),
    "yolov9e-seg": ({}, {}),
    "yolov5nu": ({}, {}),
    "yolov3-sppu": ({}, {"img": (32, 64)}),
    "yolov3-tinyu": ({}, {}),
}
"""(How the model is made, how it is exported): each task, each kind of layer and each option at least once."""

MORE = {
    "yolov8n-p2": ({}, {}), "yolov8n-pose": ({"kpt_shape": (17, 3)}, {"dynamic": "batch"}), "yolov8n-seg": ({}, {}),
    "yolov8n-seg-p6": ({}, {}), "yolov8n-pose-p6": ({}, {}), "yolo11n": ({}, {}), "yolo11x-seg": ({}, {}),
    "yolo11n-obb": ({}, {"dynamic": "batch"}), "yolo11n-cls": ({}, {}), "yolo12n": ({}, {}), "yolo12n-pose": ({}, {}),
    "yolo12x-obb": ({}, {}), "yolo12n-cls": ({}, {}), "yolo26x": (MANY, {}), "yolo26n-cls": ({}, {}),
    "yolo26n-p2": (MANY, {}), "yolo26n-p6": (MANY, {}), "yolov10n": (MANY, {}), "yolov10m": (MANY, {}),
    "yolov10b": (MANY, {}), "yolov10x": (MANY, {}), "yolov9m": ({}, {}), "yolov9c": ({}, {}), "yolov9e": ({}, {}),
    "yolov9c-seg": ({}, {}), "yolov5n6u": ({}, {}), "yolov3u": ({}, {}),
}  # fmt: skip
"""The same for the other lists of layers, where there is time: they are made of layers that those above have."""

QUICK = ("yolov8n", "yolov8n-cls", "yolov8s-obb", "yolo11m-pose", "yolo26n-seg", "yolov5nu", "yolov3-tinyu")
"""Those that are exported in every run: each task, and most kinds of layers."""

LEGACY = ("yolov8n", "yolov8s-obb", "yolov3-tinyu")


def noise(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(7).random(shape, np.float32)


def export_and_compare(name: str, out: Path, **exporter: Any) -> None:
    """Export a narrow network, and compare what PyTorch in float64 and ONNX Runtime make of noise."""
    made, options = {**EXPORTED, **MORE}[name]
    model = narrow_free(name, **made)
    report = onnx_from_model(model, out=out, options=OnnxOptions(**options, **exporter))
    assert report.parity is not None
    assert report.parity.ok
    images = noise(options.get("batch", 2 if options.get("dynamic") else 1), 3, *report.spec.input.size)
    exact = TorchSession(model.module, spec_of_module(model), exact=True)
    with open_session(out, provider="cpu") as session:
        expected, found = (s.run({"images": images}) for s in (exact, session))
    assert found.keys() == expected.keys() == {tensor.name for tensor in report.outputs}
    for output, values in found.items():
        assert values.shape == expected[output].shape
        limit = np.full(values.shape[-1], 1e-3) + 1e-5 * np.abs(expected[output])
        if output == "output":
            limit[..., 4 : 4 + len(model.spec.classes)] = 1e-5
        elif isinstance(model.spec.output, DenseOutput):
            limit = np.full_like(values, 1e-5 * np.abs(expected[output]).max())
        assert (np.abs(values - expected[output]) <= limit).all(), output
    assert 0.99 <= report.weight_size / (4 * report.parameters) <= 1.0
    graph = onnx.load(out).graph
    vectors = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 1}
    products = [node for node in graph.node if node.op_type == "MatMul"]
    assert not [node.name for node in products if node.input[1] in vectors]  # many small products, one for each cell


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in (*EXPORTED, *MORE)]
)
def test_every_list_of_layers_exports_and_agrees(name: str, tmp_path: Path) -> None:
    export_and_compare(name, tmp_path / "m.onnx")


@pytest.mark.parametrize("name", LEGACY)
def test_the_older_exporter_agrees_too(name: str, tmp_path: Path) -> None:
    export_and_compare(name, tmp_path / "m.onnx", exporter="legacy")


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="TensorRT for RTX is not installed")
@pytest.mark.skipif(gpu_unavailable_reason() is None, reason="on a GPU tests/gpu builds engines and runs them")
@pytest.mark.parametrize(
    "name", ["yolo26n", *(pytest.param(name, marks=pytest.mark.slow) for name in ("yolov8n-seg", "yolov8s-obb"))]
)
def test_an_engine_is_built(name: str, tmp_path: Path) -> None:
    """Of a head that chooses its detections itself, of one with prototypes beside its rows, and of turned boxes."""
    model = narrow_free(name)
    onnx_from_model(model, out=tmp_path / "m.onnx", check=False)
    engine = build_engine(tmp_path / "m.onnx", flavour="tensorrt-rtx", out=tmp_path)
    assert engine.path.stat().st_size > 100_000
    assert engine.record.spec.source.model == name
    assert engine.record.spec.output == model.spec.output
    assert not engine.record.verified


def kinds_of(model: ReferenceModel) -> set[type[torch.nn.Module]]:
    return {type(module) for module in model.module.modules()}


@pytest.mark.slow
def test_what_is_exported_stands_for_all() -> None:
    """Every list of layers is exported, and its smallest and its largest size have no layer that is not exported.

    Sizes of one list differ in numbers alone, and in blocks that the m, l and x have and the n has not.
    """
    assert {group_of()[name] for name in (*EXPORTED, *MORE)} == set(groups())
    exported = set[type[torch.nn.Module]]().union(
        *(kinds_of(narrow_free(n, **made)) for n, (made, _) in EXPORTED.items())
    )
    ends = {name for names in groups().values() for name in (names[0], names[-1])}
    assert not {name: missing for name in ends if (missing := kinds_of(meta_model(name)) - exported)}
