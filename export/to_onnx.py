"""Checkpoint -> verified ONNX file."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import onnx
import onnx_ir as ir
from torch import nn

from deploykit import __version__
from deploykit.errors import ExportError, ImageSizeError, SpecError, UsageError, require
from deploykit.export import passes
from deploykit.export.clock import Clock
from deploykit.export.compare import expect
from deploykit.export.feeds import make_feeds
from deploykit.export.nms_export import TRANSLATIONS, NmsMode, NmsPlan, plan_of
from deploykit.export.parity_report import ParityReport
from deploykit.export.place import check_place, folder_beside, move_into_place
from deploykit.export.report import ExportReport
from deploykit.export.rounding import eased, float32_share
from deploykit.export.torch_session import TorchSession, spec_of_module
from deploykit.export.trace import example_input, traced
from deploykit.models._fuse import fuse_model
from deploykit.models._registry import DEFAULT, ReferenceModel, load_model
from deploykit.runtime.parity import Expected, Feeds
from deploykit.spec import METADATA_KEY, Dynamic, ModelSpec, PoseObjectRows, RawRows, Thresholds

__all__ = ["OPSETS", "export_onnx", "onnx_from_model"]

OPSETS = range(18, 24)
"""Below 18 the exporter writes models that are not valid; above 23 it has no operators."""

LARGE = 2**31 - 2**20  # bytes: protobuf's limit, less what the graph itself may need


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
    nms: NmsMode = "none",
    conf: float | None = None,
    iou: float | None = None,
    max_det: int | None = None,
    pre_nms_topk: int | None = None,
    preprocessing: str = DEFAULT,
    on_step: Callable[[str], None] = lambda _: None,
    on_expected: Callable[[Expected], None] = lambda _: None,
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
        nms: ``none``: raw rows; ``graph``: suppressed in the graph by ONNX's NonMaxSuppression; ``basic``: by basic
            operators only; ``plugin``: by the node ``deploykit::NmsKpt``, after ``deploykit::DecodeRows``
            where the head is one of anchors. All have one meaning, that of
            :mod:`deploykit.runtime.nms`.
        conf, iou, max_det, pre_nms_topk: instead of the model's own thresholds; with NMS inside they are fixed.
        preprocessing: how pictures are prepared, where a model was published with two ways: ``legacy`` for the weights
            of YOLOX's release 0.0.1 and those trained alike. It is written into the file's spec.
        on_step: told what is being done: reading, building, fusing, tracing, simplifying, writing, checking.
        on_expected: given what the checkpoint gives on the images of the check, for whoever builds on the file.

    Raises:
        ParityError: the file does not agree with the model; nothing is left behind, an older file stays.
        ImageSizeError: a side is not a multiple of the model's stride; the message has the next good one.
        CheckpointError, FoldError, ExportError, OutputError: see :mod:`deploykit.errors`.
    """
    clock = Clock(on_step)
    model = load_model(weights, clock, preprocessing=preprocessing)
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
        nms=nms,
        thresholds=_thresholds(model.spec.thresholds, conf, iou, max_det, pre_nms_topk),
        checkpoint_size=Path(weights).stat().st_size,
        clock=clock,
        on_expected=on_expected,
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
    nms: NmsMode = "none",
    thresholds: Thresholds | None = None,
    checkpoint_size: int = 0,
    clock: Clock | None = None,
    on_expected: Callable[[Expected], None] = lambda _: None,
) -> ExportReport:
    """The part of :func:`export_onnx` after the checkpoint: any :class:`ReferenceModel` to a verified file."""
    clock = clock or Clock(lambda _: None)
    spec = _spec(model, img, batch, dynamic, opset)
    check_place(out)
    example = example_input(spec.input)
    feeds = make_feeds(spec, samples) if check else None
    if check:
        require("onnxruntime", "cpu")
    clock("fusing")
    fused = fuse_model(model.module)
    plan, spec = plan_of(spec, nms, thresholds or spec.thresholds, fused)
    if nms != "none" and exporter != "dynamo":
        raise UsageError(f"--nms {nms} needs --exporter dynamo")
    clock("tracing")
    graph = traced(
        plan.module(fused), example, spec, exporter, simplify, plan.outputs, TRANSLATIONS if plan.candidates else None
    )
    if simplify:
        clock("simplifying")
        passes.simplify(graph)
    _finish(graph, spec, plan, fused)
    weights = {name for name, _ in plan.module(fused).named_parameters()}
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
    with folder_beside(out) as folder:
        file = _write(graph, folder / out.name, report.weight_size)
        del graph
        parity = _proved(model, fused, file, spec, plan, feeds, clock, on_expected) if feeds else None
        size = sum(p.stat().st_size for p in folder.iterdir())
        if parity is not None:
            _report_of(file).write_text(parity.to_json())
        move_into_place(folder, out, companions=(_weights_of(out), _report_of(out)))
    return replace(report, size=size, parity=parity, seconds=clock.seconds())


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


def _thresholds(
    own: Thresholds, conf: float | None, iou: float | None, max_det: int | None, pre_nms_topk: int | None
) -> Thresholds:
    asked = {"conf": conf, "iou": iou, "max_det": max_det, "pre_nms_topk": pre_nms_topk}
    changed: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    try:
        return replace(own, **changed)
    except SpecError as e:
        raise UsageError(str(e)) from e


def _check_size(size: tuple[int, int], stride: int, name: str) -> None:
    for side in size:
        if side < 1 or side % stride:
            good = " ".join(str(max(1, -(-s // stride)) * stride) for s in size)
            raise ImageSizeError(
                f"{size[0]}x{size[1]} (height x width) does not fit {name}: both sides must be multiples of its stride "
                f"{stride}; the next good size is --img {good}"
            )


def _finish(graph: ir.Model, spec: ModelSpec, plan: NmsPlan, fused: nn.Module) -> None:
    """Add NMS, strip, name the dynamic axes, and stamp the spec."""
    plan.append(graph, spec, fused)
    passes.strip(graph)
    canvas = spec.input
    batch: int | str = canvas.batch if canvas.dynamic == "none" else "batch"
    height, width = ("height", "width") if canvas.dynamic == "shape" else canvas.size
    passes.name_axes(graph.graph.inputs[0], (batch, canvas.channels, height, width))
    output = graph.graph.outputs[0]
    if isinstance(spec.output, (RawRows, PoseObjectRows)) and output.shape is not None:  # NMS has named its own
        rows = output.shape[1]  # the legacy exporter does not know it where the batch is free
        passes.name_axes(output, (batch, rows if isinstance(rows, int) else "rows", spec.output.columns))
    passes.stamp(graph, METADATA_KEY, spec.to_json(), name=spec.source.model, version=__version__)


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
    model: ReferenceModel,
    fused: nn.Module,
    file: Path,
    spec: ModelSpec,
    plan: NmsPlan,
    feeds: Feeds,
    clock: Clock,
    on_expected: Callable[[Expected], None],
) -> ParityReport:
    clock("checking")

    def tell(step: str) -> None:
        clock(f"checking: {step}")

    torch_spec = spec_of_module(model)
    references = {
        "the checkpoint": TorchSession(model.module, torch_spec, exact=True),
        "the folded model": TorchSession(fused, torch_spec, exact=True),
    }
    rows = spec if plan.mode == "none" else replace(spec, output=plan.layout)
    expected = expect(references, rows, feeds, once={"the folded model"}, closing=True, on_step=tell)
    parity = plan.check(expected, file, spec, tell)
    if not parity.ok:
        tell("what float32 costs")
        share = float32_share(expected, fused, torch_spec)
        limits = eased(parity.tolerance, share)
        if limits is not None:
            again = plan.check(expected, file, spec, tell, limits)
            wider = limits.pixels / parity.tolerance.pixels
            note = (
                f"PyTorch in float32 uses {share:.3g} times the limits itself: they are {wider:.3g} times as wide here"
            )
            parity = replace(again, notes=(*again.notes, note)) if again.ok else parity
    parity.raise_if_bad(file.name)
    on_expected(replace(expected, limits=parity.tolerance))
    return parity


def _weights_of(file: Path) -> Path:
    return file.with_name(f"{file.name}.data")


def _report_of(file: Path) -> Path:
    return file.with_name(f"{file.name}.parity.json")
