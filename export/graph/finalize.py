"""From a traced graph to a file: its last operators, its names and its spec, and the bytes."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
from torch import nn

from deploykit.errors import ExportError
from deploykit.export.graph import passes
from deploykit.export.nms.plan import NmsPlan
from deploykit.spec import METADATA_KEY, DenseOutput, ModelSpec, PoseObjectRows, RawDetections
from deploykit.version import __version__

__all__ = ["external_data_path", "finalize_graph", "write"]

LARGE = 2**31 - 2**20  # bytes: protobuf's limit, less what the graph itself may need


def finalize_graph(graph: ir.Model, spec: ModelSpec, plan: NmsPlan, fused: nn.Module) -> None:
    """Add NMS, strip, name the dynamic axes, and stamp the spec."""
    plan.append(graph, spec, fused)
    passes.strip(graph)
    canvas = spec.input
    batch: int | str = canvas.batch if canvas.dynamic == "none" else "batch"
    height, width = ("height", "width") if canvas.dynamic == "shape" else canvas.size
    passes.name_axes(graph.graph.inputs[0], (batch, canvas.channels, height, width))
    output = graph.graph.outputs[0]
    if isinstance(spec.output, (RawDetections, PoseObjectRows)) and output.shape is not None:  # NMS has named its own
        rows = output.shape[1]  # the legacy exporter does not know it where the batch is free
        passes.name_axes(output, (batch, rows if isinstance(rows, int) else "rows", spec.output.columns))
    elif isinstance(spec.output, DenseOutput) and output.shape is not None:
        free = ("out_height", "out_width")  # the network may enlarge or shrink
        sides = [side if isinstance(side, int) else name for side, name in zip(output.shape[2:], free, strict=False)]
        channels = output.shape[1]
        passes.name_axes(output, (batch, channels if isinstance(channels, int) else "channels", *sides))
    passes.stamp(graph, METADATA_KEY, spec.to_json(), name=spec.source.model, version=__version__)


def write(graph: ir.Model, file: Path, weights: int) -> Path:
    """Check the graph and write it; with over 2 GiB of ``weights`` (bytes) these go beside it.

    Raises:
        ExportError: it is not valid ONNX.
    """
    try:
        if weights > LARGE:
            ir.save(graph, file, external_data=external_data_path(file).name)
            onnx.checker.check_model(str(file))
        else:  # serialised once, for the checker and for the file
            data = ir.to_proto(graph).SerializeToString()
            onnx.checker.check_model(data)
            file.write_bytes(data)
    except onnx.checker.ValidationError as e:
        raise ExportError(f"the exported graph is not valid ONNX: {str(e).splitlines()[0]}") from e
    return file


def external_data_path(file: Path) -> Path:
    """Where the weights of a file of over 2 GiB are."""
    return file.with_name(f"{file.name}.data")
