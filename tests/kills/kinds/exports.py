"""Exports: ONNX in fp32 and in int8, an engine of TensorRT for RTX, and an ONNX file in a folder that is new."""

from __future__ import annotations

from pathlib import Path

from tests.kills.kind import Kind
from tests.kills.kinds.inputs import CELLS, CHECKPOINT, IMAGES, write_cells, write_network

ONNX = ("m.onnx", "m.onnx.parity.json")  # the report says whether reference values were kept of an earlier export
ENGINE = ("m.trt", "m.trt.json", "m.trt.log", "m.trt.parity.npz")
MODULES = ("torch", "onnx", "onnxscript", "onnxruntime", "onnxsim", "torch.onnx", "deploykit.export.to_onnx")


def doubt_of_onnx(out: Path) -> str:
    """A report that is about another file."""
    from deploykit.runtime.verified import onnx_doubt

    file = out / "m.onnx"
    return "" if not file.exists() or not (out / ONNX[1]).exists() else onnx_doubt(file)


def doubt_of_engine(out: Path) -> str:
    """A record that is of another engine, or a file of it that is damaged."""
    from deploykit.errors import DeployError
    from deploykit.runtime.engine_record import read_record, reference_values_path
    from deploykit.runtime.parity.expected import ReferenceOutputs
    from deploykit.runtime.verified import sha256

    engine = out / "m.trt"
    if not engine.exists():
        return ""
    try:
        record = read_record(engine)
        if reference_values_path(engine).exists():
            ReferenceOutputs.load(reference_values_path(engine))
    except DeployError as e:
        return str(e)
    return "the record is of another engine" if record and record.sha256 != sha256(engine) else ""


def _onnx(old: bool) -> list[str]:
    return ["export", CHECKPOINT, "--out", "out/m.onnx", "--img", "32" if old else "64"]


def _int8(old: bool) -> list[str]:
    calibration = ["--precision", "int8", "--calib", IMAGES, "--calib-size", "2"]
    return ["export", CHECKPOINT, "--out", "out/m.onnx", "--img", "32" if old else "64", *calibration]


def _engine(old: bool) -> list[str]:
    options = ["--optimization-level", "0"] if old else []
    return ["export", CELLS, "--format", "tensorrt-rtx", "--out", "out/m.trt", *options]


EXPORT = Kind(
    "export", write_network, _onnx, removed_first=ONNX[1:], varying=ONNX[1:], doubt=doubt_of_onnx, imports=MODULES
)
INT8 = Kind(
    "int8", write_network, _int8, removed_first=ONNX[1:], varying=ONNX[1:], doubt=doubt_of_onnx, imports=MODULES
)
BUILD = Kind(
    "build", write_cells, _engine, removed_first=ENGINE[1:], doubt=doubt_of_engine,
    imports=(*MODULES, "tensorrt_rtx", "deploykit.export.engine.build"),
)  # fmt: skip
