"""Checkpoint -> verified ONNX file."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import onnx_ir as ir
import torch
from torch import nn

from deploykit.errors import ImageSizeError, SpecError, UsageError, import_extra
from deploykit.export.accuracy_gate import Gated, check_gate
from deploykit.export.graph import passes
from deploykit.export.graph.finalize import external_data_path, finalize_graph, write
from deploykit.export.graph.trace import example_input, export_to_ir
from deploykit.export.graph.two_stage_ops import TRANSLATIONS
from deploykit.export.nms.one_to_one import model_of_rows, without_choice
from deploykit.export.nms.plan import NmsPlan, plan_nms
from deploykit.export.options import TRACED, NmsMode, OnnxOptions, Precision, PrecisionOptions
from deploykit.export.output import check_writable, output_path, publish, staging_dir
from deploykit.export.package_layout import in_package_layout, package_metadata
from deploykit.export.parity.inputs import make_parity_inputs
from deploykit.export.parity.onnx_file import reference_for
from deploykit.export.parity.report import ParityReport
from deploykit.export.parity.verification import Verification
from deploykit.export.precision.convert import (
    ExportContext,
    PrecisionReport,
    traced_graph,
    verify_file,
    verify_precision,
)
from deploykit.export.precision.gate_search import keep_for_accuracy
from deploykit.export.precision.search.kept import keep_file_of, write_kept
from deploykit.export.report import ExportReport, report_of
from deploykit.export.sessions.freed_memory import release_freed_memory
from deploykit.export.step_timer import StepTimer
from deploykit.models.checkpoint.safetensors_file import INDEX, SHARD, find_shards
from deploykit.models.fuse import fuse_model
from deploykit.models.registry import ReferenceModel, load_model, with_preprocessing, with_rewrite
from deploykit.models.timm_models import load_timm, name_in
from deploykit.progress import SILENT, Progress
from deploykit.runtime.engine_record import parity_report_path
from deploykit.runtime.files import is_folder
from deploykit.runtime.parity.expected import ReferenceOutputs
from deploykit.runtime.verified import digests
from deploykit.spec import Dynamic, ModelSpec, Thresholds
from deploykit.version import __version__

__all__ = ["VerifiedExport", "export_checkpoint", "export_onnx", "onnx_from_model"]

COLLECTED = 64 << 20
"""Bytes of weights that are worth looking for objects that refer to themselves, which takes 0.2 s."""


class VerifiedExport(NamedTuple):
    """The report on an exported file, and the reference values that it was verified with.

    ``reference`` is None if the file was not checked.
    """

    report: ExportReport
    reference: ReferenceOutputs | None


def export_onnx(
    weights: str | Path,
    *,
    img: int | tuple[int, int] | None = None,
    dynamic: Dynamic | None = None,
    nms: NmsMode | None = None,
    precision: Precision | PrecisionOptions | None = None,
    out: str | Path | None = None,
    samples: Sequence[str | Path] = (),
    check: bool = True,
    options: OnnxOptions | None = None,
    progress: Progress = SILENT,
) -> ExportReport:
    """Read a checkpoint safely, fold it, export it to ONNX and verify that the file gives the same numbers.

    Args:
        weights: a checkpoint of a known model (``.pt``, ``.pth``, ``.safetensors``), or ``timm:NAME``.
        img, dynamic, nms, precision: the most common options by name; None takes the value in ``options``. int8 and
            fp8 need calibration images, so they are given as a :class:`PrecisionOptions`.
        out: the file, or a folder for it; None writes it beside the weights.
        samples: images for the parity check; none takes the one that ships with deploykit. Noise is always checked too.
        check: False writes the file without verifying it, and the report says so.
        options: all other options; None takes the defaults.
        progress: receives the steps (reading, building, fusing, tracing, simplifying, converting, writing, checking)
            and how far the long ones are (measuring ranges, comparing layers, evaluating).

    Raises:
        ParityError: the file does not agree with the model. It is removed, and an older file stays.
        AccuracyError: the file loses more accuracy on the gate's images than is allowed. It is removed as well.
        ImageSizeError: a side is not a multiple of the model's stride; the message names the next valid size.
        CheckpointError, FoldError, ExportError, OutputError: see :mod:`deploykit.errors`.
    """
    asked = (options or OnnxOptions()).updated(img=img, dynamic=dynamic, nms=nms, precision=precision)
    return export_checkpoint(weights, asked, out=out, samples=samples, check=check, progress=progress).report


def onnx_from_model(
    model: ReferenceModel,
    *,
    out: Path,
    img: int | tuple[int, int] | None = None,
    dynamic: Dynamic | None = None,
    nms: NmsMode | None = None,
    precision: Precision | PrecisionOptions | None = None,
    samples: Sequence[str | Path] = (),
    check: bool = True,
    options: OnnxOptions | None = None,
    progress: Progress = SILENT,
) -> ExportReport:
    """Export any :class:`ReferenceModel` to a verified file: :func:`export_onnx` without reading a checkpoint."""
    asked = (options or OnnxOptions()).updated(img=img, dynamic=dynamic, nms=nms, precision=precision)
    return export_model(model, asked, out=out, samples=samples, check=check, timer=StepTimer(progress)).report


def export_checkpoint(
    weights: str | Path,
    options: OnnxOptions,
    *,
    out: str | Path | None = None,
    samples: Sequence[str | Path] = (),
    check: bool = True,
    progress: Progress = SILENT,
) -> VerifiedExport:
    """Do the work of :func:`export_onnx`, and return the reference values as well."""
    timer = StepTimer(progress)
    named = name_in(weights)
    default = Path(f"{named.replace('/', '_')}.onnx") if named else _beside(Path(weights))
    path = output_path(default, out, (".onnx",))
    if options.timm is None and named is None:
        model = load_model(
            weights,
            timer,
            preprocessing=options.preprocessing,
            rewrite=options.rewrite,
            loading=options.loading,
        )
    else:
        timm_model = load_timm(weights, options.timm, timer, loading=options.loading)
        model = with_preprocessing(timm_model, options.preprocessing)
        model = with_rewrite(model, options.rewrite)
    done = export_model(model, options, out=path, samples=samples, check=check, timer=timer)
    shards = None if named else find_shards(Path(weights))
    files = [shards.folder / name for name in shards.files] if shards else [Path(weights)]
    size = 0 if named else sum(file.stat().st_size for file in files)
    return done._replace(report=replace(done.report, checkpoint_size=size))


def _beside(weights: Path) -> Path:
    """The default file: ``m.onnx`` for ``m.pt`` and ``m.pth.tar``, for shards of ``m`` and for a folder ``m``."""
    if is_folder(weights):
        return weights.parent / f"{weights.resolve().name}.onnx"
    shard = SHARD.fullmatch(weights.name)
    if shard or weights.name.endswith(INDEX):
        base = shard[1] if shard else weights.name.removesuffix(INDEX)
    else:
        base = Path(weights.name.removesuffix(".tar")).stem
    return weights.with_name(f"{base}.onnx")


def export_model(
    model: ReferenceModel,
    options: OnnxOptions,
    *,
    out: Path,
    samples: Sequence[str | Path] = (),
    check: bool = True,
    timer: StepTimer,
) -> VerifiedExport:
    """Do the work of :func:`onnx_from_model`, and return the reference values as well."""
    if options.layout == "ultralytics":
        model = in_package_layout(model, options)
    context = _context(model, options, out, samples, check=check, timer=timer)
    verification, asked = context.verification, options.precision
    spec = replace(context.spec, precision=asked.precision)
    with staging_dir(out) as folder:
        graph, precision, rows, base, further = traced_graph(context, asked, folder, out.stem)
        writing = _Writing(model, options, context, spec, out, folder, timer)
        report = writing.write(graph)
        plan, gate, file = context.plan, options.gate, writing.file
        fused = context.fused if gate is not None else None
        if verification is not None:
            verification.fused = None
        del graph, context  # the folded weights are as large as the model's own, and are in the file now
        if further is None:
            del writing

        def verified(precision: PrecisionReport | None) -> tuple[PrecisionReport | None, ParityReport | None]:
            precision = verify_precision(precision, file) if precision else None
            if report.weight_size >= COLLECTED:
                gc.collect()  # modules and graphs refer to themselves
                release_freed_memory()
            return precision, verify_file(verification, file, plan, spec, precision, rows) if verification else None

        precision, parity = verified(precision)
        accuracy = None
        if gate is not None and fused is not None:
            timer.step("evaluating")
            gated = Gated(gate, spec, fused, None if plan.chosen else base, timer)
            accuracy = gated.compared(file)
            if further is not None and not gated.holds(accuracy):
                precision, accuracy, report = keep_for_accuracy(gated, file, further, writing.write, timer)
                precision, parity = verified(precision)
            gated.check(accuracy)
        if base is not None:
            shutil.rmtree(base.parent)
        size = sum(p.stat().st_size for p in folder.iterdir())
        reference = None
        if parity is not None and verification is not None:
            reference = replace(reference_for(plan, verification.expected, spec), limits=parity.tolerance)
            about = digests(file, (external_data_path(file),), spec.source.sha256)
            kept = {"kept": precision.to_dict()["kept"]} if precision is not None and precision.kept else {}
            parity_report_path(file).write_text(parity.to_json({**about, **kept}))
        publish(folder, out, parts=(external_data_path(out),), reports=(parity_report_path(out),))
    if precision is not None:
        write_kept(asked, precision.kept, spec.source)
    done = replace(report, size=size, parity=parity, precision=precision, accuracy=accuracy, seconds=timer.seconds())
    return VerifiedExport(done, reference)


@dataclass(frozen=True)
class _Writing:
    """How a graph of an export becomes its file, in ``folder``, and what is reported of it."""

    model: ReferenceModel
    options: OnnxOptions
    context: ExportContext
    spec: ModelSpec
    out: Path
    folder: Path
    timer: StepTimer

    @property
    def file(self) -> Path:
        """The file."""
        return self.folder / self.out.name

    def write(self, graph: ir.Model) -> ExportReport:
        """Write a graph, which has no weights then."""
        options, spec, context = self.options, self.spec, self.context
        metadata = package_metadata(spec, options) if options.layout == "ultralytics" else None
        finalize_graph(graph, spec, context.plan, context.fused, metadata)
        report = report_of(self.model, graph, spec, context, self.out)
        report = replace(report, notes=(*report.notes, *report.runtime_notes()))
        if options.effective_opset != options.opset:
            asked = options.precision.precision
            raised = f"opset {spec.opset} is used instead of {options.opset}: {asked} needs at least that"
            report = replace(report, notes=(*report.notes, raised))
        self.timer.step("writing")
        write(graph, self.file, report.weight_size)
        passes.drop_weights(graph)
        return report


def _context(
    model: ReferenceModel,
    options: OnnxOptions,
    out: Path,
    samples: Sequence[str | Path],
    *,
    check: bool,
    timer: StepTimer,
) -> ExportContext:
    """The context of an export before its graph is traced; everything that can be refused early is refused here."""
    spec, thresholds = _spec(model, options), _thresholds(model.spec, options)
    check_writable(out, (external_data_path(out), parity_report_path(out)))
    if options.precision.calibration is not None:
        options.precision.calibration.images()
    if keep_file_of(options.precision) is None and options.precision.keep_file is not None:
        check_writable(Path(options.precision.keep_file).expanduser())
    if options.gate is not None:
        check_gate(options.gate, spec)
    example = example_input(spec.input)  # first, because its error explains a lack of memory
    inputs = make_parity_inputs(spec, samples) if check or options.precision.precision != "fp32" else None
    if check or options.precision.calibration is not None:
        import_extra("onnxruntime", "cpu")
    timer.step("fusing")
    fused = fuse_model(model.module)
    plan, exported = plan_nms(spec, options.nms, thresholds, fused)
    # Precisions are measured on the raw rows, which stay in an opset that our own session computes.
    layout = plan.rows if plan.chosen else model.spec.output
    raw = replace(exported, output=layout, opset=max(exported.opset, TRACED))
    rows_plan, rows = plan_nms(raw, "none", exported.thresholds, fused)
    _check_combination(model, options, plan, exported)
    source = (model_of_rows(model, plan.rows), without_choice(fused)) if plan.chosen else (model, fused)
    return ExportContext(
        trace=partial(_trace, plan, example, exported, options, timer),
        plan=plan,
        rows_plan=rows_plan,
        spec=exported,
        rows=rows,
        fused=fused,
        inputs=inputs,
        verification=Verification(*source, rows, inputs, timer) if inputs and check else None,
        progress=timer,
        again=options.gate is not None,
    )


def _check_combination(model: ReferenceModel, options: OnnxOptions, plan: NmsPlan, spec: ModelSpec) -> None:
    """Check that the options go with one another and with the model.

    Raises:
        UsageError: they do not.
    """
    nms = options.nms
    if (nms != "none" or plan.has_own_operators) and options.exporter != "dynamo":
        what = f"--nms {nms}" if nms != "none" else f"{model.name} chooses its detections itself, which"
        raise UsageError(f"{what} needs --exporter dynamo")
    if options.gate is not None and nms != "none":
        raise UsageError(f"--max-drop goes with --nms none: the thresholds of --nms {nms} change AP by themselves")


def _trace(
    plan: NmsPlan,
    example: torch.Tensor,
    spec: ModelSpec,
    options: OnnxOptions,
    timer: StepTimer,
    module: nn.Module,
    outputs: Sequence[str],
) -> ir.Model:
    """Trace a module to a graph, and simplify it if that is asked for."""
    timer.step("tracing")
    translations = TRANSLATIONS if plan.has_own_operators else None
    graph = export_to_ir(module, example, spec, options.exporter, options.simplify, outputs, translations)
    if options.simplify:
        timer.step("simplifying")
        passes.simplify(graph)
    passes.name_transposed(graph, {name: p.detach().numpy() for name, p in module.named_parameters()})
    return graph


def _spec(model: ReferenceModel, options: OnnxOptions) -> ModelSpec:
    img = model.spec.input.size if options.img is None else options.img
    size = (img, img) if isinstance(img, int) else img
    _check_size(size, model.stride, model.name, model.spec.input.fit.least)
    if options.dynamic == "shape" and model.fixed_size_reason:
        raise UsageError(
            f"{model.name} is exported for a fixed image size, because {model.fixed_size_reason} depend on it: take "
            "--dynamic batch, and set another size with --img"
        )
    source = replace(model.spec.source, model=model.name, deploykit=__version__)
    # A network with a dynamic shape takes an image's own rectangle, which is less to compute than a padded square.
    fit = replace(model.spec.input.fit, auto=options.dynamic == "shape")
    try:
        canvas = replace(model.spec.input, size=size, batch=options.batch, dynamic=options.dynamic, fit=fit)
    except SpecError as e:
        raise ImageSizeError(f"{e}; choose a smaller --img or --batch") from e
    return replace(model.spec, input=canvas, opset=options.effective_opset, source=source)


def _thresholds(spec: ModelSpec, options: OnnxOptions) -> Thresholds:
    """The model's own thresholds, replaced by those in the options."""
    own, asked = spec.thresholds, (options.conf, options.iou, options.max_det, options.pre_nms_topk)
    if not spec.output.finds_objects and asked != (None,) * 4:
        names = ("conf", "iou", "max_det", "pre_nms_topk")
        given = [name for name, value in zip(names, asked, strict=True) if value is not None]
        raise UsageError(f"{', '.join(given)}: thresholds are for detectors, and this model's task is {spec.task}")
    try:
        return replace(
            own,
            conf=own.conf if options.conf is None else options.conf,
            iou=own.iou if options.iou is None else options.iou,
            max_det=own.max_det if options.max_det is None else options.max_det,
            pre_nms_topk=own.pre_nms_topk if options.pre_nms_topk is None else options.pre_nms_topk,
        )
    except SpecError as e:
        raise UsageError(str(e)) from e


def _check_size(size: tuple[int, int], stride: int, name: str, least: int) -> None:
    if 1 <= min(size) < least:
        good = " ".join(str(-(-max(side, least) // stride) * stride) for side in size)
        raise ImageSizeError(
            f"{size[0]}x{size[1]} (height x width) does not fit {name}: it takes sides of at least {least} pixels, of "
            f"which its halvings leave something; the next valid size is --img {good}"
        )
    for side in size:
        if side < 1 or side % stride:
            good = " ".join(str(max(1, -(-s // stride)) * stride) for s in size)
            raise ImageSizeError(
                f"{size[0]}x{size[1]} (height x width) does not fit {name}: both sides must be multiples of its stride "
                f"{stride}; the next valid size is --img {good}"
            )
