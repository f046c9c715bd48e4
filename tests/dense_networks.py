"""Small ONNX files with one dense output, whose answers are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from deploykit.spec import METADATA_KEY, DenseOutput, Dynamic, Fit, InputSpec, ModelSpec

CLASSES = ("red", "green", "blue")


def write(path: Path, spec: ModelSpec, nodes: list[Any], stored: dict[str, np.ndarray] | None = None) -> Path:
    """The file; the output's shape is left open."""
    canvas = spec.input
    free = canvas.dynamic
    size: tuple[Any, ...] = ("h", "w") if free == "shape" else canvas.size
    batch = canvas.batch if free == "none" else "n"
    name = spec.output.name if isinstance(spec.output, DenseOutput) else ""
    rank = 2 if spec.task == "classify" else 4
    graph = helper.make_graph(
        nodes,
        spec.task,
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, (batch, canvas.channels, *size))],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank)],
        [numpy_helper.from_array(value, key) for key, value in (stored or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    model.metadata_props.append(onnx.StringStringEntryProto(key=METADATA_KEY, value=spec.to_json()))
    onnx.save(model, str(path))
    return path


def canvas_of(
    kind: Literal["resize", "crop", "pad", "tile", "letterbox"],
    size: tuple[int, int],
    *,
    channels: int = 3,
    dynamic: Dynamic = "none",
    batch: int = 1,
) -> InputSpec:
    """Numbers of 0 to 1, without mean and std."""
    zeros, ones = (0.0,) * channels, (1.0,) * channels
    fit = Fit(kind=kind, stride=1)
    return InputSpec(size=size, batch=batch, dynamic=dynamic, channels=channels, mean=zeros, std=ones, fit=fit)


def classifier(path: Path, **changes: Any) -> Path:
    """Its logits are ten times the means of red, green and blue."""
    spec = ModelSpec("classify", canvas_of("crop", (32, 32), **changes), DenseOutput(), CLASSES)
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["a"]),
        helper.make_node("Flatten", ["a"], ["b"]),
        helper.make_node("Mul", ["b", "ten"], ["logits"]),
    ]
    return write(path, spec, nodes, {"ten": np.array(10.0, np.float32)})


def segmenter(path: Path, classes: tuple[str, ...] = CLASSES, **changes: Any) -> Path:
    """The class of a pixel is its brightest colour; of one class: whether it is more than half red."""
    spec = ModelSpec("segment", canvas_of("resize", (32, 48), **changes), DenseOutput(), classes)
    if len(classes) > 1:
        return write(path, spec, [helper.make_node("Identity", ["images"], ["logits"])])
    nodes = [
        helper.make_node("Slice", ["images", "zero", "one", "one"], ["red"]),
        helper.make_node("Sub", ["red", "half"], ["logits"]),
    ]
    whole = {"zero": np.array([0]), "one": np.array([1])}
    return write(path, spec, nodes, {**whole, "half": np.array(0.5, np.float32)})


def brightener(path: Path, size: tuple[int, int] = (32, 48), kind: Any = "pad", **changes: Any) -> Path:
    """A restored image is brighter, by a factor that gives no half grey levels."""
    spec = ModelSpec("restore", canvas_of(kind, size, **changes), DenseOutput(name="image"))
    nodes = [helper.make_node("Mul", ["images", "more"], ["image"])]
    return write(path, spec, nodes, {"more": np.array(1.2345, np.float32)})


def blurrer(path: Path, size: tuple[int, int] = (32, 32), **changes: Any) -> Path:
    """Means of 3 x 3 pixels with zeros around: a network that sees an image's border."""
    channels = changes.get("channels", 3)
    spec = ModelSpec("restore", canvas_of("tile", size, **changes), DenseOutput(name="image"))
    nodes = [helper.make_node("Conv", ["images", "w"], ["image"], group=channels, pads=[1, 1, 1, 1])]
    return write(path, spec, nodes, {"w": np.full((channels, 1, 3, 3), 1 / 9, np.float32)})
