"""ONNX file -> TensorRT engine, for TensorRT and for TensorRT for RTX, with a record beside it."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from deploykit.atomic import write_atomic
from deploykit.errors import (
    ArtefactError,
    DeployError,
    DeviceError,
    ExportError,
    MissingDependencyError,
    SpecError,
    UsageError,
    import_extra,
    installing,
)
from deploykit.export.engine.builder import check_options
from deploykit.export.engine.layers import precisions_in
from deploykit.export.engine.report import EngineReport
from deploykit.export.engine.stages import EngineJob
from deploykit.export.graph.finalize import external_data_path
from deploykit.export.nms.graph import CONF
from deploykit.export.options import EngineOptions
from deploykit.export.output import check_writable, output_path, publish, staging_dir
from deploykit.export.parity.compare import check_expected, expect
from deploykit.export.parity.inputs import make_parity_inputs
from deploykit.export.parity.report import ParityReport
from deploykit.export.parity.tolerances import LIMITS
from deploykit.export.precision.read_back import check_precision
from deploykit.export.step_timer import StepTimer
from deploykit.progress import SILENT, Progress, Within
from deploykit.runtime.backends import ort
from deploykit.runtime.backends.chain import ChainSession
from deploykit.runtime.backends.onnx_weights import external_paths
from deploykit.runtime.backends.trt.bindings import BuildLog, installed, load_flavour, logger
from deploykit.runtime.backends.trt.session import open_engine
from deploykit.runtime.cuda import Gpu, gpu_unavailable_reason, open_gpu
from deploykit.runtime.engine_record import (
    FLAVOURS,
    EngineRecord,
    Flavour,
    Profile,
    build_log_path,
    parity_report_path,
    record_path,
    reference_values_path,
    second_stage_path,
)
from deploykit.runtime.files import existing_file
from deploykit.runtime.parity.expected import ReferenceOutputs
from deploykit.runtime.session import Session, open_session
from deploykit.runtime.spec_file import read_spec
from deploykit.runtime.verified import digests, sha256
from deploykit.spec import ENGINE_SUFFIXES, METADATA_KEY, ModelSpec

__all__ = ["NO_GPU", "build_engine", "check_engine", "chosen_flavour"]

NO_GPU = "built, not run: no GPU"


def build_engine(
    onnx: str | Path,
    *,
    flavour: Flavour | Literal["auto"] = "auto",
    out: str | Path | None = None,
    options: EngineOptions | None = None,
    spec: ModelSpec | str | Path | None = None,
    samples: Sequence[str | Path] = (),
    check: bool = True,
    reference: ReferenceOutputs | None = None,
    progress: Progress = SILENT,
) -> EngineReport:
    """Build a TensorRT engine from an ONNX file and, if there is a GPU, verify that it gives the same numbers.

    A network in two stages (instances) becomes an engine of TensorRT as a whole: NMS is a layer of its own and RoiAlign
    its plugin. Where TensorRT refuses it, and for TensorRT for RTX, which has neither, the engine ends before the first
    operator that depends on data. The second stage is then written beside it (``X.trt.rest.onnx``), and runs in ONNX
    Runtime wherever the engine is opened.

    The record (``X.trt.json``), the builder's log (``X.trt.log``) and the parity report are written beside the engine
    ``X.trt``. If the engine cannot run here, the reference values (``X.trt.parity.npz``) are written instead of the
    report; the first load on a GPU, or ``deploykit compare``, compares the engine with them.

    Args:
        onnx: the file; one that deploykit exported carries all that is needed.
        flavour: ``tensorrt``, ``tensorrt-rtx`` (which builds without a GPU), or ``auto``: the first of them that is
            installed and can build here.
        out: the file (``.trt`` or ``.engine``), or a folder for it; None writes it beside the ONNX file.
        options: the options of the build; None takes the defaults, with TF32 off.
        spec: for an ONNX file that does not carry its own: a :class:`ModelSpec`, or a JSON file that holds one.
        samples: images for the parity check; none takes the one that ships with deploykit. Noise is always checked too.
        check: False builds without reference values or comparison, and the record says so.
        reference: the reference values of the engine; None takes those of the ONNX file in ONNX Runtime.
        progress: receives the steps (reading, parsing, building, writing, checking), and from another thread the
            builder's phase and how far it is.

    Raises:
        ExportError: TensorRT refused the model, or built nothing. ParityError: the engine gives other numbers.
        DeviceError: TensorRT proper has no GPU to build on. MissingDependencyError: the flavour is not installed.
        SpecError, UsageError, OutputError: see :mod:`deploykit.errors`.
    """
    asked, timer = options or EngineOptions(), StepTimer(progress)
    timer.step("reading")
    file = existing_file(onnx, "an ONNX file")
    place = output_path(file.with_suffix(ENGINE_SUFFIXES[0]), out, ENGINE_SUFFIXES)
    check_writable(place, (*_parts(place), *_reports(place)))
    chosen = check_engine(flavour, asked)
    known = read_spec(spec) or _embedded_spec(file)

    def values() -> ReferenceOutputs:
        return _reference_values(file, known, samples, timer) if reference is None else reference

    return _build(file, place, chosen, asked, known, values if check else None, timer)


def _build(
    file: Path,
    place: Path,
    flavour: Flavour,
    options: EngineOptions,
    spec: ModelSpec,
    reference: Callable[[], ReferenceOutputs] | None,
    timer: StepTimer,
) -> EngineReport:
    """Build after the arguments are checked; ``reference`` returns the reference values, None: no verification."""
    log = BuildLog(verbose=options.verbose)
    trt, device = load_flavour(flavour), None if gpu_unavailable_reason() else open_gpu(options.gpu)
    with staging_dir(place) as folder:
        job = EngineJob(trt, file, spec, options, flavour, device, log, timer)
        try:
            with device.current() if device else contextlib.nullcontext():
                source, network, shapes, plan = job.built(folder, place)
        except ExportError as e:
            _save_log(place, log)
            named = f"; deploykit preflight {file} names the node, and what to do" if job.source == file else ""
            raise type(e)(f"{e} (full log: {build_log_path(place)}){named}") from e
        record = EngineRecord(
            flavour=flavour,
            version=trt.__version__,
            spec=spec,
            onnx=file.name,
            onnx_sha256=sha256(file),
            onnx_parts={part.name: sha256(part) for part in external_paths(file)},
            size=plan.nbytes,
            gpu=device.name if device else "",
            profiles=shapes,
            options=options.builder,
            layers=network.layers,
            precision=network.precision,
            unverified="not checked, as asked for",
        )
        del network
        timer.step("writing")
        if source != file:
            shutil.rmtree(source.parent)
        engine = folder / place.name
        engine.write_bytes(plan)
        del plan
        check_header(trt, engine)
        build_log_path(engine).write_text(log.text(), encoding="utf-8")
        parity = None
        if reference is not None:
            expected = reference().restrict_to(lambda shape: _accepts_shape(shapes, spec, shape))
            record, parity = _verify_engine(engine, record, expected, device, timer)
        stages, reports = _hashes(engine, _parts(engine)), _hashes(engine, _reports(engine))
        record = replace(record, sha256=sha256(engine), second_stage=stages, reports=reports)
        record.write(engine)
        publish(folder, place, parts=_parts(place), reports=_reports(place))
    return EngineReport(place, record, parity, timer.seconds())


def check_engine(flavour: Flavour | Literal["auto"], options: EngineOptions | None = None) -> Flavour:
    """Check before the work begins that an engine can be built here, and return the flavour to build.

    Raises:
        MissingDependencyError, DeviceError, UsageError: see :func:`build_engine`.
    """
    chosen = chosen_flavour(flavour)
    check_options(chosen, options or EngineOptions())
    reason = gpu_unavailable_reason()
    if chosen == "tensorrt" and reason:
        raise DeviceError(
            f"TensorRT builds engines on an NVIDIA GPU, and {reason}: take --format tensorrt-rtx, which builds without "
            "one, or build on the machine where the engine will run"
        )
    load_flavour(chosen)
    return chosen


def chosen_flavour(flavour: Flavour | Literal["auto"]) -> Flavour:
    """Return the flavour to build; ``auto`` takes an installed one, and TensorRT proper needs a GPU if both are.

    Raises:
        MissingDependencyError: neither is installed. UsageError: there is no such flavour.
    """
    if flavour != "auto":
        if flavour not in FLAVOURS:
            raise UsageError(f"an engine's flavour must be auto, {' or '.join(FLAVOURS)}, got {flavour!r}")
        return flavour
    have = installed()
    if "tensorrt" in have and ("tensorrt-rtx" not in have or gpu_unavailable_reason() is None):
        return "tensorrt"
    if "tensorrt-rtx" in have:
        return "tensorrt-rtx"
    raise MissingDependencyError(
        f"an engine needs TensorRT, which is not installed: {installing('tensorrt')}, or "
        f"{installing('tensorrt-rtx')}, which builds without a GPU"
    )


def _embedded_spec(file: Path) -> ModelSpec:
    """Return the spec in the ONNX file's metadata."""
    onnx = import_extra("onnx", "export")
    try:
        model = onnx.load(str(file), load_external_data=False)
    except Exception as e:  # protobuf's errors have no common base class
        raise ArtefactError(f"{file} is not a whole ONNX file: {str(e).splitlines()[0]}") from e
    text = next((entry.value for entry in model.metadata_props if entry.key == METADATA_KEY), None)
    if text is None:
        raise SpecError(
            f"{file} carries no spec of its input and output (no metadata key {METADATA_KEY!r}): export it with "
            "deploykit, or pass a spec (spec= in Python, --spec FILE on the command line)"
        )
    return ModelSpec.from_json(text)


def _accepts_shape(profiles: Sequence[Profile], spec: ModelSpec, shape: tuple[int, ...]) -> bool:
    if not profiles:  # with a fixed batch the other slots repeat the image
        return shape[1:] == (spec.input.channels, *spec.input.size) and shape[0] <= spec.input.batch
    return any(profile.covers(shape) for profile in profiles)


def check_header(trt: Any, engine: Path) -> None:
    """Check that a file has the header of an engine.

    Only TensorRT for RTX has this check, and it is all that can be checked without a GPU.

    Raises:
        ExportError: the header is malformed.
    """
    runtime = trt.Runtime(logger(trt, BuildLog()))
    if not hasattr(runtime, "get_engine_validity"):
        return
    with engine.open("rb") as file:
        header = file.read(runtime.engine_header_size)
    _, found = runtime.get_engine_validity(header)
    if found & int(trt.EngineInvalidityDiagnostics.MALFORMED_ENGINE):
        raise ExportError("the file that TensorRT built has a malformed engine header: build it again")


def _reference_values(file: Path, spec: ModelSpec, samples: Sequence[str | Path], timer: StepTimer) -> ReferenceOutputs:
    """Return the reference values of the ONNX file, in ONNX Runtime on the CPU."""
    timer.step("checking")
    overrides: dict[str, Any] = {}
    if spec.output.two_stages:  # detections of any score, because a comparison of no detections verifies nothing
        overrides = {CONF: np.zeros(1, np.float32)}
        spec = replace(spec, thresholds=replace(spec.thresholds, conf=0.0))
    with ort.open_session(file, provider="cpu", overrides=overrides) as session:
        feeds = make_parity_inputs(spec, samples)
        values = expect({file.name: session}, spec, feeds, progress=Within("checking: ", timer))
    return replace(values, limits=LIMITS[spec.precision])


def _verify_engine(
    engine: Path, record: EngineRecord, expected: ReferenceOutputs, device: Gpu | None, timer: StepTimer
) -> tuple[EngineRecord, ParityReport | None]:
    """Compare the engine with the reference values, or save them beside it if it cannot run here."""
    if device is None:
        expected.save(reference_values_path(engine))
        return replace(record, unverified=f"{NO_GPU} ({gpu_unavailable_reason()})"), None
    timer.step("checking")
    try:
        session = open_engine(engine, record, device)
    except DeviceError as e:  # the engine was built for other GPUs
        expected.save(reference_values_path(engine))
        reason = str(e).replace(str(engine), engine.name)  # the file is about to be moved
        return replace(record, unverified=f"built, not run: {reason}"), None
    with contextlib.ExitStack() as stack:
        whole: Session = stack.enter_context(session)
        record = _with_layer_precision(record, precisions_in(session.layer_information()), engine.name)
        if second_stage_path(engine).exists():
            whole = ChainSession(session, stack.enter_context(open_session(second_stage_path(engine))))
        parity = check_expected(expected, engine.name, whole, record.spec, progress=Within("checking: ", timer))
    parity.raise_if_bad(engine.name)
    parity_report_path(engine).write_text(
        parity.to_json(digests(engine, _parts(engine), record.spec.source.sha256)), encoding="utf-8"
    )
    return replace(record, verified=True), parity


def _with_layer_precision(record: EngineRecord, found: dict[str, int], name: str) -> EngineRecord:
    """Return the record with the precision of the engine's layers, if the inspector reports it.

    Raises:
        ExportError: no layer has the precision that was asked for.
    """
    if not found:
        return record
    if record.spec.precision not in found:  # the builder may take a wider type for some layers, but not for all
        check_precision(found, record.spec.precision, f"{name}, as TensorRT built it,")
    return replace(record, precision=found, precision_from="engine")


def _save_log(place: Path, log: BuildLog) -> None:
    """Save the log of a failed build; an error of writing it must not hide that of the build."""
    with contextlib.suppress(DeployError):
        write_atomic(build_log_path(place), log.text().encode())


def _hashes(engine: Path, files: Sequence[Path]) -> dict[str, str]:
    """Return the hashes of those of the files that exist, by what their names add to the engine's."""
    return {file.name.removeprefix(engine.name): sha256(file) for file in files if file.exists()}


def _parts(engine: Path) -> tuple[Path, ...]:
    """The files that an engine needs beside it, if its network has two stages; each before what needs it."""
    rest = second_stage_path(engine)
    return external_data_path(rest), rest


def _reports(engine: Path) -> tuple[Path, ...]:
    """The files that say something about an engine; the record, which makes it an engine of ours, is the last."""
    about = (build_log_path, reference_values_path, parity_report_path, record_path)
    return tuple(path(engine) for path in about)
