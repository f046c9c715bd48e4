"""Checkpoint -> verified ONNX file."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, cast

import onnx
import onnx_ir as ir
import torch
from torch import nn

from deploykit import __version__
from deploykit.errors import DeployError, ExportError, ImageSizeError, OutputError, UsageError, require, writing
from deploykit.export import passes
from deploykit.export.compare import ParityReport, check_parity
from deploykit.export.feeds import Feeds, make_feeds
from deploykit.export.report import ExportReport
from deploykit.export.torch_session import TorchSession, spec_of_module
from deploykit.models._fuse import fuse_model
from deploykit.models._registry import ReferenceModel, load_model
from deploykit.runtime.session import open_session
from deploykit.spec import METADATA_KEY, Dynamic, InputSpec, ModelSpec, RawRows, Tensor

__all__ = ["OPSETS", "export_onnx", "onnx_from_model"]

OPSETS = range(18, 24)
"""Below 18 the exporter writes models that are not valid; above 23 it has no operators."""

LARGE = 2**31 - 2**20  # bytes: protobuf's limit, less what the graph itself may need
AXIS_MAX = 128  # of a dynamic axis, in strides

CHATTY = ("torch._guards", "torch.onnx", *(f"torch.onnx._internal.exporter.{m}" for m in ("_registration", "_schemas")))
"""Loggers that tell about the exporter's insides; what is for the user comes as an exception."""

Step = Callable[[str], None]


def export_onnx(
    weights: str | Path,
    *,
    img: int | tuple[int, int] | None = None,
    batch: int = 1,
    dynamic: Dynamic = "none",
    opset: int = 18,
    simplify: bool = True,
    out: str | Path | None = None,
    samples: Sequence[str | Path] = (),
    check: bool = True,
    exporter: Literal["dynamo", "legacy"] = "dynamo",
    on_step: Step = lambda _: None,
) -> ExportReport:
    """Read a checkpoint safely, fold it, export it to ONNX and prove that the file gives the same numbers.

    Args:
        weights: a checkpoint of a known model (``.pt``, ``.pth``, ``.safetensors``).
        img: input size in pixels, one side or ``(height, width)``; None: the size the model was published for.
        batch: images a run; with a dynamic batch the preferred number.
        dynamic: ``none``; ``batch``: any batch; ``shape``: any batch and any size that is a multiple of the stride.
        opset: ONNX operator set, 18 to 23.
        simplify: fold constants and remove what is idle.
        out: the file, or a folder for it; None: beside the weights.
        samples: pictures for the parity check; none: the one that ships with deploykit. Noise is always checked too.
        check: False writes the file without proving it, and the report says so.
        exporter: ``dynamo``, or torch's ``legacy`` one (with onnxsim).
        on_step: told what is being done: reading, building, fusing, tracing, simplifying, writing, checking.

    Raises:
        ParityError: the file does not agree with the model; nothing is left behind, an older file stays.
        ImageSizeError: a side is not a multiple of the model's stride; the message has the next good one.
        CheckpointError, FoldError, ExportError, OutputError: see :mod:`deploykit.errors`.
    """
    clock = _Clock(on_step)
    model = load_model(weights, clock)
    return onnx_from_model(
        model,
        out=_place(Path(weights), out),
        img=img,
        batch=batch,
        dynamic=dynamic,
        opset=opset,
        simplify=simplify,
        samples=samples,
        check=check,
        exporter=exporter,
        checkpoint_size=Path(weights).stat().st_size,
        clock=clock,
    )


def onnx_from_model(
    model: ReferenceModel,
    *,
    out: Path,
    img: int | tuple[int, int] | None = None,
    batch: int = 1,
    dynamic: Dynamic = "none",
    opset: int = 18,
    simplify: bool = True,
    samples: Sequence[str | Path] = (),
    check: bool = True,
    exporter: Literal["dynamo", "legacy"] = "dynamo",
    checkpoint_size: int = 0,
    clock: _Clock | None = None,
) -> ExportReport:
    """The part of :func:`export_onnx` after the checkpoint: any :class:`ReferenceModel` to a verified file."""
    clock = clock or _Clock(lambda _: None)
    spec = _spec(model, img, batch, dynamic, opset)
    _check_place(out)
    example = _example(spec.input)
    feeds = make_feeds(spec, samples) if check else None
    if check:
        require("onnxruntime", "cpu")
    clock("fusing")
    fused = fuse_model(model.module)
    clock("tracing")
    graph = _traced(fused, example, spec, exporter, simplify)
    if simplify:
        clock("simplifying")
        passes.simplify(graph)
    _finish(graph, spec)
    weights = {name for name, _ in fused.named_parameters()}
    report = ExportReport(
        path=out,
        model=model.name,
        size=0,
        parameters=sum(p.numel() for p in fused.parameters()),
        weight_size=sum(c.size for c in passes.initializers_of(graph) if c.name in weights),
        constants=tuple(c for c in passes.initializers_of(graph) if c.name not in weights),
        checkpoint_size=checkpoint_size,
        nodes=sum(1 for _ in graph.graph),
        opset=graph.opset_imports[""],
        inputs=passes.interface_of(graph.graph.inputs),
        outputs=passes.interface_of(graph.graph.outputs),
        spec=spec,
        parity=None,
        notes=model.notes,
    )
    clock("writing")
    with _folder_beside(out) as folder:
        file = _write(graph, folder / out.name, report.weight_size)
        del graph
        parity = _proved(model, fused, file, spec, feeds, clock) if feeds else None
        size = sum(p.stat().st_size for p in folder.iterdir())
        if parity is not None:
            _report_of(file).write_text(parity.to_json())
        _move(folder, out)
    return replace(report, size=size, parity=parity, seconds=clock.seconds())


@dataclass
class _Clock:
    """Tells the caller each step, and how long each took."""

    on_step: Step
    _marks: list[tuple[str, float]] = field(default_factory=list)

    def __call__(self, step: str) -> None:
        self._marks.append((step, time.perf_counter()))
        self.on_step(step)

    def seconds(self) -> dict[str, float]:
        """Seconds by step, a step's details (``checking: noise``) added up."""
        ends = [start for _, start in self._marks[1:]] + [time.perf_counter()]
        total: dict[str, float] = {}
        for (step, start), end in zip(self._marks, ends, strict=True):
            name = step.split(":")[0]
            total[name] = round(total.get(name, 0.0) + end - start, 3)
        return total


def _place(weights: Path, out: str | Path | None) -> Path:
    name = weights.with_suffix(".onnx").name
    if out is None:
        return weights.with_name(name)
    place = Path(out)
    if place.is_dir() or str(out).endswith(("/", os.sep)):
        return place / name
    if place.suffix != ".onnx":
        raise UsageError(f"--out is a file that ends in .onnx, or a folder; got {out}")
    return place


def _check_place(out: Path) -> None:
    """Find out now, not after a minute of work, that the result cannot be written."""
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        probe = out.with_name(f".{out.name}.{os.getpid()}.probe")
        probe.write_bytes(b"")
        probe.unlink()
    if out.is_dir():
        raise OutputError(f"cannot write {out}: it is a folder")


def _spec(
    model: ReferenceModel, img: int | tuple[int, int] | None, batch: int, dynamic: Dynamic, opset: int
) -> ModelSpec:
    size = model.spec.input.size if img is None else (img, img) if isinstance(img, int) else img
    _check_size(size, model.stride, model.name)
    if batch < 1:
        raise UsageError(f"--batch must be at least 1, got {batch}")
    if opset not in OPSETS:
        raise UsageError(f"--opset must be {OPSETS[0]} to {OPSETS[-1]}, got {opset}: lower ones give invalid models")
    source = replace(model.spec.source, model=model.name, deploykit=__version__)
    # A network of any size takes a picture's own rectangle: less to compute than the square that it would be padded to.
    fit = replace(model.spec.input.fit, auto=dynamic == "shape")
    canvas = replace(model.spec.input, size=size, batch=batch, dynamic=dynamic, fit=fit)
    return replace(model.spec, input=canvas, opset=opset, source=source)


def _check_size(size: tuple[int, int], stride: int, name: str) -> None:
    for side in size:
        if side < 1 or side % stride:
            good = " ".join(str(max(1, -(-s // stride)) * stride) for s in size)
            raise ImageSizeError(
                f"{size[0]}x{size[1]} (height x width) does not fit {name}: both sides must be multiples of its stride "
                f"{stride}; the next good size is --img {good}"
            )


def _traced(module: nn.Module, example: torch.Tensor, spec: ModelSpec, exporter: str, simplify: bool) -> ir.Model:
    """The exporter's own result, before any of our passes."""
    output = cast("RawRows | Tensor", spec.output).name
    names = {"input_names": [spec.input.name], "output_names": [output], "opset_version": spec.opset}
    trace = _dynamo if exporter == "dynamo" else _legacy
    try:
        with _quiet():
            return trace(module, example, spec.input, names, simplify)
    except (OSError, DeployError):
        raise
    except Exception as e:  # the exporter raises what its many parts raise
        cause = e.__cause__ or e  # around it the exporter only says how far it got
        reason = str(cause).strip().splitlines()
        raise ExportError(
            f"torch's {exporter} exporter refused the model: {reason[0] if reason else type(cause).__name__}"
        ) from e


def _example(canvas: InputSpec) -> torch.Tensor:
    """The input that the exporter traces with. A free axis of one image or one cell would be taken for a constant."""
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
    module: nn.Module, example: torch.Tensor, canvas: InputSpec, names: dict[str, Any], simplify: bool
) -> ir.Model:
    program = torch.onnx.export(
        module, (example,), dynamo=True, dynamic_shapes=_axes(canvas), optimize=False, verbose=False, **names
    )
    assert program is not None
    if simplify:
        program.optimize()
    return program.model


def _axes(canvas: InputSpec) -> tuple[dict[int, Any]] | None:
    if canvas.dynamic == "none":
        return None
    dim, axes = torch.export.Dim, {0: torch.export.Dim("batch", min=1, max=1024)}
    if canvas.dynamic == "shape":
        stride = canvas.fit.stride
        axes |= {2: stride * dim("h", min=1, max=AXIS_MAX), 3: stride * dim("w", min=1, max=AXIS_MAX)}
    return (axes,)


def _legacy(
    module: nn.Module, example: torch.Tensor, canvas: InputSpec, names: dict[str, Any], simplify: bool
) -> ir.Model:
    free = {"none": {}, "batch": {0: "batch"}, "shape": {0: "batch", 2: "height", 3: "width"}}[canvas.dynamic]
    rows = {1: "rows"} if canvas.dynamic == "shape" else {}
    axes = {canvas.name: free, names["output_names"][0]: {0: "batch", **rows} if free else {}}
    buffer = BytesIO()
    torch.onnx.export(module, (example,), cast(str, buffer), dynamo=False, dynamic_axes=axes, **names)
    proto = onnx.load_model_from_string(buffer.getvalue())
    if simplify:
        onnxsim = require("onnxsim", "export")
        proto, _ = onnxsim.simplify(proto, check_n=0)  # the parity check below is stricter than onnxsim's own
    return ir.from_proto(proto)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter logs and warns about its own insides; nothing in it is for the user."""
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


def _finish(graph: ir.Model, spec: ModelSpec) -> None:
    """Strip, name the dynamic axes, and stamp the spec."""
    passes.strip(graph)
    canvas = spec.input
    batch: int | str = canvas.batch if canvas.dynamic == "none" else "batch"
    height, width = ("height", "width") if canvas.dynamic == "shape" else canvas.size
    passes.name_axes(graph.graph.inputs[0], (batch, canvas.channels, height, width))
    output = graph.graph.outputs[0]
    if isinstance(spec.output, RawRows) and output.shape is not None:
        rows = output.shape[1]  # the legacy exporter does not know it where the batch is free
        passes.name_axes(output, (batch, rows if isinstance(rows, int) else "rows", spec.output.columns))
    passes.stamp(graph, METADATA_KEY, spec.to_json(), name=spec.source.model, version=__version__)


@contextlib.contextmanager
def _folder_beside(out: Path) -> Iterator[Path]:
    """A temporary folder on the same disk: files are born there under their final names, and moved when proved."""
    folder = out.with_name(f".{out.stem}.{os.getpid()}.partial")
    with writing(out):
        folder.mkdir(exist_ok=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _write(graph: ir.Model, file: Path, weights: int) -> Path:
    try:
        if weights > LARGE:
            ir.save(graph, file, external_data=_weights_of(file).name)
            onnx.checker.check_model(str(file))
        else:  # serialised once, for the checker and for the file
            data = ir.to_proto(graph).SerializeToString()
            onnx.checker.check_model(data)
            file.write_bytes(data)
    except onnx.checker.ValidationError as e:
        raise ExportError(f"the exported graph is not valid ONNX: {str(e).splitlines()[0]}") from e
    return file


def _proved(
    model: ReferenceModel, fused: nn.Module, file: Path, spec: ModelSpec, feeds: Feeds, clock: _Clock
) -> ParityReport:
    clock("checking")
    torch_spec = spec_of_module(model)
    references = {
        "the checkpoint": TorchSession(model.module, torch_spec, exact=True),
        "the folded model": TorchSession(fused, torch_spec, exact=True),
    }
    with contextlib.ExitStack() as stack:
        parity = check_parity(
            references,
            file.name,
            lambda: stack.enter_context(open_session(file, provider="cpu")),
            spec,
            feeds,
            once={"the folded model"},
            closing=True,
            on_step=lambda step: clock(f"checking: {step}"),
        )
    parity.raise_if_bad(file.name)
    return parity


def _weights_of(file: Path) -> Path:
    return file.with_name(f"{file.name}.data")


def _report_of(file: Path) -> Path:
    return file.with_name(f"{file.name}.parity.json")


def _move(folder: Path, out: Path) -> None:
    """Move the files to their places: the weights before the graph that names them, the proof after it."""
    files = sorted(folder.iterdir(), key=lambda p: (p.suffix != ".data", p.suffix == ".json"))
    for file in files:
        file.replace(out.with_name(file.name))
    for companion in (_weights_of(out), _report_of(out)):  # of an older file: they say nothing about this one
        if companion.name not in [file.name for file in files]:
            companion.unlink(missing_ok=True)
