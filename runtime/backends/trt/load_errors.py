"""Why TensorRT does not load an engine and what to do about it, from its log."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from deploykit.errors import ArtefactError, BackendError, DeviceError
from deploykit.runtime.backends.trt.bindings import BuildLog
from deploykit.runtime.cuda import Gpu
from deploykit.runtime.engine_record import EngineRecord

__all__ = ["explain_load_failure"]

LISTED = r"Supported compute capabilities: ([^.]*(?:\.\d[^.]*)*)\. TensorRT-RTX does not support"
"""The message of TensorRT for RTX on a GPU that runs none of its engines."""
OWN_PLUGINS = ("NmsKpt", "DecodeRows")


def explain_load_failure(
    path: Path, data: bytes, log: BuildLog, record: EngineRecord | None, runtime: Any, trt: Any, gpu: Gpu
) -> ArtefactError | BackendError:
    """Return the error for an engine that TensorRT did not deserialise.

    The log is searched for the messages of TensorRT 7 to 11. The version in the record and TensorRT for RTX's
    diagnostics of the file's header are used as well.
    """
    messages = " ".join(" ".join(log.errors()).split())
    again = f"build it again with {trt.__version__}" + (f" from {record.onnx}" if record else "")
    if found := re.search(r"expecting library version (\S+) got (\S*[^\s.,)])", messages):
        return ArtefactError(f"{path} was built by TensorRT {found[2]}, but this is {found[1]}: {again}")
    if "ersion tag does not match" in messages:
        return _other_version(path, record, trt, again)
    if found := re.search(r"expecting compute ([\d.]+) got compute ([\d.]+)", messages):
        return DeviceError(
            f"{path} was built for compute capability {found[2]}, but {gpu.name} has {found[1]}: build it on this "
            "GPU, or with --hardware-compatible"
        )
    if found := re.search(
        r"(?:[Cc]annot|could not) find plugin:?\s*'?(\w+)[ ',:]*(?:version:?\s*'?([\w.]+))?", messages
    ):
        version = f" version {found[2]}" if found[2] else ""
        own = "deploykit plugins build makes it for this TensorRT"
        remedy = own if found[1] in OWN_PLUGINS else "load the library that has it before the engine"
        return BackendError(
            f"{path} needs the plugin {found[1]}{version}, but no loaded library has it: {remedy}, or build the "
            "engine from an ONNX file with --nms graph, which needs none"
        )
    if found := re.search(LISTED, messages):
        return _unsupported(path, record, gpu, found[1])
    if "agic" in messages or _malformed(data, runtime, trt):
        return ArtefactError(
            f"{path} is not an engine of this flavour of TensorRT, or it is damaged ({len(data):,} bytes): deploykit "
            f"inspect --verify {path} tells which; {again}"
        )
    if (
        "incompatible device" in messages
        or "not supported by this TensorRT" in messages
        or _other_gpu(data, runtime, trt)
    ):
        major, minor = gpu.compute_capability
        built = f" (it was built on {record.gpu})" if record and record.gpu else ""
        return DeviceError(f"{path} does not run on {gpu.name} (compute capability {major}.{minor}){built}: {again}")
    if "out of memory" in messages.lower() or "OutOfMemory" in messages:
        free, total = gpu.memory()
        return DeviceError(
            f"{gpu.name} has only {free / 1e9:.1f} of {total / 1e9:.1f} GB free, too little for "
            f"{path}: end other programs on it, or take another GPU (--device cuda:N)"
        )
    if record and record.version != trt.__version__:
        return _other_version(path, record, trt, again)
    return BackendError(f"TensorRT cannot load {path}: {messages or 'it gives no reason'}")


def _unsupported(path: Path, record: EngineRecord | None, gpu: Gpu, listed: str) -> DeviceError:
    """TensorRT for RTX can build engines on GPUs that it cannot run them on; another build does not help."""
    major, minor = gpu.compute_capability
    which = "" if listed == "None" else f"; it runs on {listed}"
    file = record.onnx if record else "the ONNX file"
    return DeviceError(
        f"TensorRT for RTX does not support {gpu.name} (compute capability {major}.{minor}{which}), so {path.name} "
        f"cannot run here: build an engine with --format tensorrt, or run {file} in ONNX Runtime"
    )


def _other_version(path: Path, record: EngineRecord | None, trt: Any, again: str) -> ArtefactError:
    built = f"TensorRT {record.version}" if record else "another version of TensorRT"
    return ArtefactError(f"{path} was built by {built}, but this is {trt.__version__}: {again}")


def _diagnostics(data: bytes, runtime: Any) -> int:
    """Return what TensorRT for RTX finds wrong with the file's header; 0 where TensorRT has no such check."""
    if not hasattr(runtime, "get_engine_validity"):
        return 0
    return int(runtime.get_engine_validity(data[: runtime.engine_header_size])[1])


def _malformed(data: bytes, runtime: Any, trt: Any) -> bool:
    found = _diagnostics(data, runtime)
    return bool(found and found & int(trt.EngineInvalidityDiagnostics.MALFORMED_ENGINE))


def _other_gpu(data: bytes, runtime: Any, trt: Any) -> bool:
    found = _diagnostics(data, runtime)
    return bool(found and found & int(trt.EngineInvalidityDiagnostics.UNSUPPORTED_CC))
