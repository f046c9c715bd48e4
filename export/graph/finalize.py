"""From a traced graph to a file: its last operators, its names and its spec, and the bytes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
import onnx_ir as ir
from torch import nn

from deploykit.errors import ExportError
from deploykit.export.graph import passes
from deploykit.export.graph.lower_opset import lower_opset
from deploykit.export.graph.streaming import write_streaming
from deploykit.export.graph.versions import lowest_ir_version
from deploykit.export.nms.plan import NmsPlan
from deploykit.spec import METADATA_KEY, ModelSpec
from deploykit.version import __version__

__all__ = ["external_data_path", "finalize_graph", "write"]

LARGE = 2**31 - 2**20  # bytes: protobuf's limit, minus room for the graph itself


def finalize_graph(
    graph: ir.Model, spec: ModelSpec, plan: NmsPlan, fused: nn.Module, metadata: Mapping[str, str] | None = None
) -> None:
    """Append NMS, lower the opset to the spec's, strip metadata, name the dynamic axes and stamp the spec.

    ``metadata`` is what else the file says of itself, for other readers than ours.
    """
    plan.append(graph, spec, fused)
    lower_opset(graph, spec.opset)
    passes.strip(graph)
    canvas = spec.input
    batch: int | str = canvas.batch if canvas.dynamic == "none" else "batch"
    height, width = ("height", "width") if canvas.dynamic == "shape" else canvas.size
    passes.name_axes(graph.graph.inputs[0], (batch, canvas.channels, height, width))
    if not spec.output.thresholds_inside:  # such a network has named its own
        for tensor, output in zip(spec.output_tensors, graph.graph.outputs, strict=True):
            if output.shape is not None:
                known = zip(output.shape, tensor.axes, strict=True)
                sides = [side if isinstance(side, int) else name for side, name in known]
                if tensor.columns is not None:  # the legacy exporter does not know it where the batch is free
                    sides[tensor.columns_axis] = tensor.columns
                passes.name_axes(output, (batch, *sides[1:]))
    graph.ir_version = lowest_ir_version(graph)
    graph.metadata_props.update(metadata or {})
    passes.stamp(graph, METADATA_KEY, spec.to_json(), name=spec.source.model, version=__version__)


def write(graph: ir.Model, file: Path, weights: int, *, check: bool = True) -> Path:
    """Check the graph and write it; weights of over 2 GiB (``weights``, in bytes) go to a file beside it.

    ``check``: False for a graph that ONNX Runtime alone reads, which needs no shapes of outputs.

    Raises:
        ExportError: it is not valid ONNX.
    """
    try:
        if weights > LARGE:
            ir.save(graph, file, external_data=external_data_path(file).name)
            if check:
                onnx.checker.check_model(str(file))
        else:
            write_streaming(graph, file, check=check)
    except onnx.checker.ValidationError as e:
        raise ExportError(f"the exported graph is not valid ONNX: {str(e).splitlines()[0]}") from e
    return file


def external_data_path(file: Path) -> Path:
    """The file with the weights of an ONNX file whose weights exceed 2 GiB."""
    return file.with_name(f"{file.name}.data")
