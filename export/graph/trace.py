"""Export a module to an ONNX graph by torch's exporters, before any of our passes."""

from __future__ import annotations

import contextlib
import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from typing import Any, cast

import onnx
import onnx_ir as ir
import torch
from torch import nn

from deploykit.errors import DeployError, ExportError, ImageSizeError, import_extra
from deploykit.export.graph.passes import register_constants
from deploykit.export.graph.shortcuts import exporter_shortcuts, optimize
from deploykit.export.options import TRACED
from deploykit.spec import InputSpec, ModelSpec

__all__ = ["example_input", "export_to_ir"]

AXIS_MAX = 128  # of a dynamic axis, in strides
SIDE_MAX = 8192  # or in pixels, where the stride is small

CHATTY = ("torch._guards", "torch.onnx", *(f"torch.onnx._internal.exporter.{m}" for m in ("_registration", "_schemas")))
"""Loggers that report the exporter's internals; what concerns the user is raised."""


def export_to_ir(
    module: nn.Module,
    example: torch.Tensor,
    spec: ModelSpec,
    exporter: str,
    simplify: bool,
    outputs: Sequence[str],
    translations: Mapping[Any, Any] | None = None,
) -> ir.Model:
    """Export a module and return the exporter's own graph.

    Args:
        module: in eval mode.
        example: the input to trace with; see :func:`example_input`.
        spec: of the export; its input says which axes are dynamic, its output what they are called.
        exporter: ``dynamo`` or ``legacy``.
        simplify: let the exporter's own optimizer (``legacy``: onnxsim) run.
        outputs: names of the module's outputs, in their order.
        translations: our own torch operators -> functions that write them in ONNX.

    Raises:
        ExportError: the exporter refused the module.
    """
    names = {"input_names": [spec.input.name], "output_names": list(outputs), "opset_version": max(spec.opset, TRACED)}
    if translations:
        names["custom_translation_table"] = translations
    trace = _dynamo if exporter == "dynamo" else _legacy
    try:
        with _quiet():
            return trace(module, example, spec, names, simplify)
    except (OSError, DeployError):
        raise
    except Exception as e:  # the exporter raises what its many parts raise
        cause = e.__cause__ or e  # the exporter's own error only says how far it got
        reason = str(cause).strip().splitlines()
        raise ExportError(
            f"torch's {exporter} exporter refused the model: {reason[0] if reason else type(cause).__name__}"
        ) from e


def example_input(canvas: InputSpec) -> torch.Tensor:
    """The input to trace with; the exporter would take a dynamic axis of length one for a constant."""
    batch = canvas.batch if canvas.dynamic == "none" else max(2, canvas.batch)
    least = 2 * canvas.fit.stride if canvas.dynamic == "shape" else 0
    shape = (batch, canvas.channels, *(max(side, least) for side in canvas.size))
    try:
        return torch.zeros(shape)
    except RuntimeError as e:
        gigabytes = 4 * math.prod(shape) / 1e9
        raise ImageSizeError(
            f"an input of {'x'.join(map(str, shape))} takes {gigabytes:,.0f} GB, more memory than there is: "
            "choose a smaller --img or --batch"
        ) from e


def _dynamo(
    module: nn.Module, example: torch.Tensor, spec: ModelSpec, names: dict[str, Any], simplify: bool
) -> ir.Model:
    with exporter_shortcuts():
        program = torch.onnx.export(
            module, (example,), dynamo=True, dynamic_shapes=_axes(spec.input), optimize=False, verbose=False, **names
        )
    assert program is not None
    if simplify:
        optimize(program)
        register_constants(program.model)
    return program.model


def _axes(canvas: InputSpec) -> tuple[dict[int, Any]] | None:
    if canvas.dynamic == "none":
        return None
    dim, axes = torch.export.Dim, {0: torch.export.Dim("batch", min=1, max=1024)}
    if canvas.dynamic == "shape":
        stride = canvas.fit.stride
        most = max(AXIS_MAX, SIDE_MAX // stride)
        axes |= {2: stride * dim("h", min=1, max=most), 3: stride * dim("w", min=1, max=most)}
    return (axes,)


def _legacy(
    module: nn.Module, example: torch.Tensor, spec: ModelSpec, names: dict[str, Any], simplify: bool
) -> ir.Model:
    canvas = spec.input
    free = {"none": {}, "batch": {0: "batch"}, "shape": {0: "batch", 2: "height", 3: "width"}}[canvas.dynamic]
    axes = {canvas.name: free}
    for tensor in spec.output_tensors:
        moving = {"batch", *(tensor.free if canvas.dynamic == "shape" else ())}
        axes[tensor.name] = {i: name for i, name in enumerate(tensor.axes) if free and name in moving}
    buffer = BytesIO()
    torch.onnx.export(module, (example,), cast(str, buffer), dynamo=False, dynamic_axes=axes, **names)
    proto = onnx.load_model_from_string(buffer.getvalue())
    if simplify:
        onnxsim = import_extra("onnxsim", "export")
        proto, _ = onnxsim.simplify(proto, check_n=0)  # the parity check below is stricter than onnxsim's own
    return ir.from_proto(proto)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter logs and warns about its internals: nothing in it concerns the user."""
    loggers = [logging.getLogger(name) for name in CHATTY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
