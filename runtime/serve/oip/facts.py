"""What the protocol tells of the server and its models: metadata, configuration, statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deploykit.runtime.serve.core.model import ServedModel
from deploykit.runtime.serve.core.registry import Registry
from deploykit.runtime.serve.oip.tensors import datatype_of
from deploykit.runtime.session import TensorInfo
from deploykit.spec import ENGINE_SUFFIXES
from deploykit.version import __version__

__all__ = ["index", "model_config", "model_metadata", "model_statistics", "server_metadata"]

EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository", "statistics")


def server_metadata() -> dict[str, Any]:
    """Return what the server is."""
    return {"name": "deploykit", "version": __version__, "extensions": list(EXTENSIONS)}


def model_metadata(registry: Registry, model: ServedModel) -> dict[str, Any]:
    """Return a model's tensors; a side of -1 is dynamic."""
    session = model.predictor.session
    return {
        "name": model.source.name,
        "versions": [str(version) for version in registry.versions(model.source.name)],
        "platform": _platform(model)[0],
        "inputs": [_tensor(info) for info in session.inputs],
        "outputs": [_tensor(info) for info in session.outputs],
    }


def model_config(model: ServedModel) -> dict[str, Any]:
    """Return a model's configuration in the words of Triton, whose sides leave out that of the batch."""
    session, (platform, backend) = model.predictor.session, _platform(model)
    batched = model.dynamic_batch
    inputs, outputs = (
        [
            {
                "name": info.name,
                "data_type": f"TYPE_{datatype_of(info.dtype)}",
                "dims": [-1 if side is None else side for side in info.shape[batched:]],
            }
            for info in infos
        ]
        for infos in (session.inputs, session.outputs)
    )
    delay = int(1e3 * model.options.batch_window)
    return {
        "name": model.source.name,
        "platform": platform,
        "backend": backend,
        "max_batch_size": model.most if batched else 0,
        "input": inputs,
        "output": outputs,
        **({"dynamic_batching": {"max_queue_delay_microseconds": delay}} if batched else {}),
    }


def model_statistics(model: ServedModel) -> dict[str, Any]:
    """Return a model's statistics in the words of Triton: counts, and nanoseconds in all."""
    known, sizes = model.statistics, model.batcher.sizes

    def part(ms: float, count: int = known.count) -> dict[str, int]:
        return {"count": count, "ns": int(1e6 * ms)}

    return {
        "name": model.source.name,
        "version": str(model.source.version),
        "last_inference": int(1e3 * known.last),
        "inference_count": sum(size * count for size, count in sizes.items()),
        "execution_count": sum(sizes.values()),
        "inference_stats": {
            "success": part(known.ms),
            "fail": part(known.failed_ms, known.failed),
            "queue": part(known.queue_ms),
            "compute_input": part(known.input_ms),
            "compute_infer": part(known.network_ms),
            "compute_output": part(known.output_ms),
        },
        "batch_stats": [
            {"batch_size": size, "compute_infer": part(model.batcher.sizes_ms[size], count)}
            for size, count in sorted(sizes.items())
        ],
    }


def index(registry: Registry, *, ready: bool = False) -> list[dict[str, str]]:
    """Return the models and their states; ``ready``: only those that are open."""
    open_now = {(model.source.name, model.source.version) for model in registry.models}
    found = []
    for source in registry.sources:
        is_open = (source.name, source.version) in open_now
        if is_open or not ready:
            state = "READY" if is_open else "LOADING"
            found.append({"name": source.name, "version": str(source.version), "state": state, "reason": ""})
    return found


def _platform(model: ServedModel) -> tuple[str, str]:
    """Return what runs a model, as Triton calls it: platform and backend."""
    suffix = Path(model.source.path).suffix.lower()
    if suffix == ".onnx":
        return "onnxruntime_onnx", "onnxruntime"
    return ("tensorrt_plan", "tensorrt") if suffix in ENGINE_SUFFIXES else ("pytorch", "python")


def _tensor(info: TensorInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "datatype": datatype_of(info.dtype),
        "shape": [-1 if side is None else side for side in info.shape],
    }
