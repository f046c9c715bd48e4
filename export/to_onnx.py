"""Checkpoint -> verified ONNX file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir
import torch
from torch import nn

from deploykit.errors import ImageSizeError, SpecError, UsageError, require
from deploykit.export.accuracy_gate import AccuracyGate, judge
from deploykit.export.graph import passes
from deploykit.export.graph.finalize import finish, weights_of, write
from deploykit.export.graph.trace import example_input, traced
from deploykit.export.graph.two_stage_ops import TRANSLATIONS
from deploykit.export.nms.plan import NmsMode, NmsPlan, plan_of
from deploykit.export.output import check_place, folder_beside, move_into_place
from deploykit.export.parity.inputs import make_feeds
from deploykit.export.parity.report import ParityReport
from deploykit.export.parity.tolerances import LIMITS
from deploykit.export.parity.verification import Verification
from deploykit.export.precision.convert import Job, Lowering, PrecisionReport, lower, read_back
from deploykit.export.report import ExportReport
from deploykit.export.step_timer import Clock
from deploykit.models.fuse import fuse_model
from deploykit.models.registry import DEFAULT, ReferenceModel, load_model, with_preprocessing, with_rewrite
from deploykit.models.timm_models import TimmOptions, load_timm, name_in
from deploykit.runtime.parity.expected import ReferenceOutputs
from deploykit.spec import Dynamic, ModelSpec, Thresholds
from deploykit.version import __version__

__all__ = ["OPSETS", "export_onnx", "onnx_from_model"]

OPSETS = range(18, 24)
"""Below 18 the exporter writes models that are not valid; above 23 it has no operators."""


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
    rewrite: str = "",
    timm: TimmOptions | None = None,
    lowering: Lowering | None = None,
    gate: AccuracyGate | None = None,
    on_step: Callable[[str], None] = lambda _: None,
    on_expected: Callable[[ReferenceOutputs], None] = lambda _: None,
    on_progress: Callable[[str, float], None] = lambda *_: None,
) -> ExportReport:
    """Read a checkpoint safely, fold it, export it to ONNX and verify that the file gives the same numbers.

    Args:
        weights: a checkpoint of a known model (``.pt``, ``.pth``, ``.safetensors``); or ``timm:NAME``.
        img: input size in pixels, one side or ``(height, width)``; None: the size the model was published for.
        batch: images a run; with a dynamic batch the preferred number.
        dynamic: ``none``; ``batch``: any batch; ``shape``: any batch and any size that is a multiple of the stride.
        opset: ONNX operator set, 18 to 23.
        simplify: fold constants and remove what is idle.
        out: the file, or a folder for it; None: beside the weights.
        samples: images for the parity check; none: the one that ships with deploykit. Noise is always checked too.
        check: False writes the file without verifying it, and the report says so.
        exporter: ``dynamo``, or torch's ``legacy`` one (with onnxsim).
        nms: ``none``: raw rows; ``graph``: suppressed in the graph by ONNX's NonMaxSuppression; ``basic``: by basic
            operators only; ``plugin``: by the node ``deploykit::NmsKpt``, after ``deploykit::DecodeRows``
            where the head is one of anchors. All have one meaning, that of
            :mod:`deploykit.runtime.postprocess.nms`.
        conf, iou, max_det, pre_nms_topk: instead of the model's own thresholds; with NMS inside they are fixed.
        preprocessing: how images are prepared, where a model was published with two ways: ``legacy`` for the weights
            of YOLOX's release 0.0.1 and those trained alike. It is written into the file's spec.
        rewrite: another form of the network for the same weights, where a model has one: ``tlc`` of NAFNet.
        timm: how a model of timm is made (docs/models/timm.md).
        lowering: the precision, fp32 if None; what it needs is in it (docs/precision.md).
        gate: annotated images on which the file may lose only so much; None: its accuracy is not looked at.
        on_step: told what is being done: reading, building, fusing, tracing, simplifying, converting, writing,
            checking.
        on_expected: given what the checkpoint gives on the images of the check, for whoever builds on the file.
        on_progress: told the share of a long step that is done: measuring ranges, comparing layers, evaluating.

    Raises:
        ParityError: the file does not agree with the model; nothing is left behind, an older file stays.
        AccuracyError: it loses more on ``gate``'s images than is allowed; nothing is left behind either.
        ImageSizeError: a side is not a multiple of the model's stride; the message has the next good one.
        CheckpointError, FoldError, ExportError, OutputError: see :mod:`deploykit.errors`.
    """
    clock = Clock(on_step)
    model = _loaded(weights, clock, preprocessing, rewrite, timm)
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
        thresholds=_thresholds(model.spec, conf, iou, max_det, pre_nms_topk),
        lowering=lowering,
        gate=gate,
        checkpoint_size=0 if name_in(weights) else Path(weights).stat().st_size,
        clock=clock,
        on_expected=on_expected,
        on_progress=on_progress,
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
    lowering: Lowering | None = None,
    gate: AccuracyGate | None = None,
    checkpoint_size: int = 0,
    clock: Clock | None = None,
    on_expected: Callable[[ReferenceOutputs], None] = lambda _: None,
    on_progress: Callable[[str, float], None] = lambda *_: None,
) -> ExportReport:
    """The part of :func:`export_onnx` after the checkpoint: any :class:`ReferenceModel` to a verified file."""
    clock, lowering = clock or Clock(lambda _: None), lowering or Lowering()
    opset, raised = lowering.opset(opset)
    spec = _spec(model, img, batch, dynamic, opset)
    check_place(out)
    _check_data(lowering, gate)
    example = example_input(spec.input)  # before anything that takes as much memory: it says so where there is none
    feeds = make_feeds(spec, samples) if check or lowering.precision != "fp32" else None
    if check:
        require("onnxruntime", "cpu")
    clock("fusing")
    fused = fuse_model(model.module)
    plan, spec = plan_of(spec, nms, thresholds or spec.thresholds, fused)
    rows_plan, rows = plan_of(replace(spec, output=model.spec.output), "none", spec.thresholds, fused)
    if (nms != "none" or plan.inside is not None) and exporter != "dynamo":
        raise UsageError(f"{f'--nms {nms}' if nms != 'none' else model.name} needs --exporter dynamo")
    if plan.inside is not None and lowering.precision != "fp32":
        raise UsageError(
            f"--precision {lowering.precision} is not for {model.name} yet: the arithmetic of its boxes lies between "
            "layers, and would be rounded with them; export it in fp32"
        )
    if gate is not None and not spec.output.finds_objects:
        raise UsageError(
            f"--max-drop is for detectors, and this model's task is {spec.task}: deploykit eval tells the accuracy of "
            "the checkpoint and of the export"
        )
    if gate is not None and nms != "none":
        raise UsageError(f"--max-drop goes with --nms none: the thresholds of --nms {nms} change AP by themselves")
    verification = Verification(model, fused, rows, feeds, clock) if feeds and check else None
    trace = partial(_traced, fused, example, spec, exporter, simplify, clock)
    with folder_beside(out) as folder:
        lowered, base = None, None
        if lowering.precision == "fp32":
            graph = trace(plan)
        else:
            assert feeds is not None
            job = Job(trace, plan, rows_plan, spec, rows, fused, feeds, verification, clock, on_progress)
            graph, lowered, base = lower(job, lowering, folder)
            spec = replace(spec, precision=lowering.precision)
            clock("writing")
        finish(graph, spec, plan, fused)
        report = _report(model, graph, spec, plan, fused, out, checkpoint_size)
        report = replace(report, notes=(*report.notes, *([raised] if raised else [])))
        clock("writing")
        file = write(graph, folder / out.name, report.weight_size)
        del graph
        lowered = read_back(lowered, file) if lowered else None
        parity = _verified(verification, file, plan, spec, lowered) if verification else None
        judged = None
        if gate is not None:
            clock("evaluating")
            judged = judge(gate, file, spec, fused, base, on_progress)
        if base is not None:
            shutil.rmtree(base.parent)
        size = sum(p.stat().st_size for p in folder.iterdir())
        if parity is not None and verification is not None:
            on_expected(replace(verification.expected, limits=parity.tolerance))
            _report_of(file).write_text(parity.to_json())
        move_into_place(folder, out, companions=(weights_of(out), _report_of(out)))
    return replace(report, size=size, parity=parity, lowered=lowered, accuracy=judged, seconds=clock.seconds())


def _check_data(lowering: Lowering, gate: AccuracyGate | None) -> None:
    """Find out before anything takes time that images or annotations are missing."""
    if lowering.calibration is not None:
        lowering.calibration.images()
    if gate is not None:
        gate.check()


def _traced(
    fused: nn.Module,
    example: torch.Tensor,
    spec: ModelSpec,
    exporter: str,
    simplify: bool,
    clock: Clock,
    plan: NmsPlan,
) -> ir.Model:
    """The graph of what a plan traces."""
    clock("tracing")
    translations = TRANSLATIONS if plan.candidates or plan.inside else None
    graph = traced(plan.module(fused), example, spec, exporter, simplify, plan.outputs, translations)
    if simplify:
        clock("simplifying")
        passes.simplify(graph)
    passes.name_transposed(graph, {name: p.detach().numpy() for name, p in plan.module(fused).named_parameters()})
    return graph


def _report(
    model: ReferenceModel,
    graph: ir.Model,
    spec: ModelSpec,
    plan: NmsPlan,
    fused: nn.Module,
    out: Path,
    checkpoint_size: int,
) -> ExportReport:
    """What is known of a file before it is written; its own size and its parity come later."""
    names = {name for name, _ in plan.module(fused).named_parameters()}
    stored = passes.initializers_of(graph)
    weights = {c.name for c in stored if names.intersection(_weights_of(c.name))}
    return ExportReport(
        path=out,
        model=model.name,
        size=0,
        parameters=sum(p.numel() for p in fused.parameters()),
        weight_size=sum(c.size for c in stored if c.name in weights),
        constants=tuple(c for c in stored if c.name not in weights),
        checkpoint_size=checkpoint_size,
        nodes=sum(1 for _ in graph.graph),
        opset=graph.opset_imports[""],
        inputs=passes.interface_of(graph.graph.inputs),
        outputs=passes.interface_of(graph.graph.outputs),
        spec=spec,
        parity=None,
        notes=model.notes,
    )


def _weights_of(name: str) -> tuple[str, ...]:
    """Parameters that an initialiser may be of: behind their names stand ``_t``, if transposed, and the precision."""
    return name, name.rsplit("_", 1)[0], name.rsplit("_t_", 1)[0]


def _verified(
    verification: Verification, file: Path, plan: NmsPlan, spec: ModelSpec, lowered: PrecisionReport | None
) -> ParityReport:
    """Hold the file to the limits of its precision, in ONNX Runtime where that has it, and in torch.

    Raises:
        ParityError: it does not agree.
    """
    if lowered is None:
        return verification.full(file, plan, spec)
    if spec.precision in ("bf16", "fp8"):  # the one is not, the other not always run by ONNX Runtime's CPU provider
        in_torch = lowered.in_torch or verification.by_types(ir.load(file), file.name, LIMITS[spec.precision])
        what = "bf16 convolutions" if spec.precision == "bf16" else "every fp8 file"
        note = f"ONNX Runtime's CPU provider does not run {what}: this was computed in torch"
        return replace(in_torch, notes=(*in_torch.notes, note))
    parity = verification.reduced(file, plan, spec, LIMITS[spec.precision])
    parity.raise_if_bad(file.name)
    if lowered.in_torch is None:
        return parity
    return replace(
        parity,
        differences=(*parity.differences, *lowered.in_torch.differences),
        matchings=(*parity.matchings, *lowered.in_torch.matchings),
    )


def _loaded(
    weights: str | Path, clock: Clock, preprocessing: str, rewrite: str, timm: TimmOptions | None
) -> ReferenceModel:
    if timm is None and name_in(weights) is None:
        return load_model(weights, clock, preprocessing=preprocessing, rewrite=rewrite)
    return with_rewrite(with_preprocessing(load_timm(weights, timm, clock), preprocessing), rewrite)


def _place(weights: Path, out: str | Path | None) -> Path:
    if named := name_in(weights):
        weights = Path(f"{named.replace('/', '_')}.pth")
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
    if dynamic == "shape" and model.fixed_size_reason:
        raise UsageError(
            f"{model.name} is exported for one size of images, which {model.fixed_size_reason} depend on: choose "
            "--dynamic batch, and --img for another size"
        )
    if opset not in OPSETS:
        raise UsageError(f"--opset must be {OPSETS[0]} to {OPSETS[-1]}, got {opset}: lower ones give invalid models")
    source = replace(model.spec.source, model=model.name, deploykit=__version__)
    # A network of any size takes an image's own rectangle: less to compute than the square that it would be padded to.
    fit = replace(model.spec.input.fit, auto=dynamic == "shape")
    canvas = replace(model.spec.input, size=size, batch=batch, dynamic=dynamic, fit=fit)
    return replace(model.spec, input=canvas, opset=opset, source=source)


def _thresholds(
    spec: ModelSpec, conf: float | None, iou: float | None, max_det: int | None, pre_nms_topk: int | None
) -> Thresholds:
    asked = {"conf": conf, "iou": iou, "max_det": max_det, "pre_nms_topk": pre_nms_topk}
    changed: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    if changed and not spec.output.finds_objects:
        raise UsageError(f"{', '.join(changed)}: thresholds are for detectors, and this model's task is {spec.task}")
    try:
        return replace(spec.thresholds, **changed)
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


def _report_of(file: Path) -> Path:
    return file.with_name(f"{file.name}.parity.json")
