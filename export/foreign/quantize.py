"""Somebody's fp32 ONNX file -> a verified file of fp16, bf16, int8 or fp8."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from deploykit.errors import ExportError, FoldError, ParityError, SpecError, UsageError
from deploykit.export.accuracy_gate import Gated, check_gate
from deploykit.export.foreign.choice import detach
from deploykit.export.foreign.conversion import Conversion, Converted, FurtherLayers, Network, network_file, network_of
from deploykit.export.foreign.judging import (
    PREPARED,
    compare_sessions,
    limits_of,
    values_apart,
)
from deploykit.export.foreign.meaning import Meaning, meaning_of
from deploykit.export.foreign.prepare import Prepared, prepared_graph
from deploykit.export.foreign.report import ConversionReport
from deploykit.export.foreign.stages import open_stages
from deploykit.export.graph import passes
from deploykit.export.graph.finalize import external_data_path, write
from deploykit.export.options import AccuracyGate, ImagePreparation, Precision, PrecisionOptions
from deploykit.export.output import check_writable, output_path, publish, staging_dir
from deploykit.export.parity.inputs import make_parity_inputs
from deploykit.export.parity.report import ParityReport
from deploykit.export.parity.tolerances import REPORT_ONLY
from deploykit.export.precision.calibration import spread_numbers
from deploykit.export.precision.convert import PrecisionReport
from deploykit.export.precision.gate_search import keep_for_accuracy
from deploykit.export.precision.read_back import precisions_of
from deploykit.export.precision.search.kept import keep_file_of, write_kept
from deploykit.export.sessions.fed import FedSession, ImageInput, image_input
from deploykit.export.sessions.onnx_in_torch import OnnxInTorchSession
from deploykit.export.step_timer import StepTimer
from deploykit.export.verify import chosen_tolerance
from deploykit.progress import SILENT, Progress, Within
from deploykit.runtime.backends import ort
from deploykit.runtime.engine_record import parity_report_path
from deploykit.runtime.evaluate.compare import Comparison
from deploykit.runtime.files import existing_file
from deploykit.runtime.parity.expected import Batch, ParityInputs
from deploykit.runtime.parity.tolerance import Tolerance
from deploykit.runtime.session import Session, TensorInfo, input_arrays
from deploykit.runtime.spec_file import read_spec
from deploykit.runtime.verified import digests, sha256
from deploykit.spec import METADATA_KEY, ModelSpec, Source, json_safe
from deploykit.version import __version__

__all__ = ["quantize_onnx"]

CHECKED = 4  # calibration images on which the result is verified, where no samples are given
IN_TORCH = ("bf16", "fp8")
"""Precisions that ONNX Runtime's CPU provider does not run, or not all of."""


def quantize_onnx(
    path: str | Path,
    *,
    precision: Precision | PrecisionOptions,
    out: str | Path | None = None,
    spec: ModelSpec | str | Path | None = None,
    samples: Sequence[str | Path] = (),
    tolerance: Tolerance | str | None = None,
    gate: AccuracyGate | None = None,
    preparation: ImagePreparation | None = None,
    inputs: Mapping[str, Any] | None = None,
    progress: Progress = SILENT,
) -> ConversionReport:
    """Convert an fp32 ONNX file of any project to a lower precision, and verify the result against it.

    Args:
        path: the file; its opset is 7 or newer.
        precision: ``fp16`` or ``bf16``; int8 and fp8 need calibration images, so they are :class:`PrecisionOptions`.
        out: the new file, or a folder for it; None: ``X.int8.onnx`` beside ``X.onnx``.
        spec: what the network is for, or a JSON file that holds it; None: its own, or what the file tells
            (docs/spec.md). Without one, its outputs are compared as plain values.
        samples: the images of the verification; none takes some of the calibration's, or the one that ships with
            deploykit.
        tolerance: the limits that are enforced; None: those of the precision; text as for :func:`deploykit.verify`.
        gate: the accuracy gate, which decides about int8 and fp8 in place of a tolerance.
        preparation: how images become the input, where no spec says it.
        inputs: the values of inputs that take no images, by name.
        progress: receives the steps.

    Raises:
        UsageError: something has to be known of the file that it does not tell, or it is no ONNX file.
        ExportError: it is quantized already or not in fp32, or no layer of it can be converted.
        FoldError: what was done before the conversion changed its numbers.
        ParityError: the result does not agree with the file. It is not written, and an older one stays.
        AccuracyError: it loses more accuracy on the gate's images than is allowed. It is not written either.
        DataError, NotFoundError, ImageError: calibration images are missing or cannot be read.
        BackendError: ONNX Runtime does not run the file, so that nothing could be verified.
    """
    options = PrecisionOptions(precision) if isinstance(precision, str) else precision
    if options.precision == "fp32":
        raise UsageError("the file is in fp32 already: ask for fp16, bf16, int8 or fp8 (--precision)")
    source, timer = existing_file(path, "an ONNX file"), StepTimer(progress)
    target = output_path(source.with_name(f"{source.stem}.{options.precision}.onnx"), out, (".onnx",))
    if target.exists() and target.samefile(source):
        raise UsageError(f"{target} is the file to convert: write the result to another one (--out)")
    check_writable(target, (external_data_path(target), parity_report_path(target)))
    if keep_file_of(options) is None and options.keep_file is not None:
        check_writable(Path(options.keep_file).expanduser())
    if options.calibration is not None:
        options.calibration.images()
    timer.step("reading")
    prepared = prepared_graph(source, options.precision)
    image = image_input(_infos(prepared.graph), inputs)
    with ExitStack() as stack:
        before = stack.enter_context(_fed(ort.open_session(source, provider="cpu"), image))
        known = meaning_of(
            before,
            source,
            read_spec(spec),
            preparation or ImagePreparation(),
            bytes_in=image.dtype == "uint8",
            chooses=bool(detach(prepared.graph.clone()).nodes),
        )
        known = replace(known, spec=_named_as_found(known.spec, before))
        _check_fits(known.spec, before, source)
        if gate is not None and not (known.known and image.plain):
            raise UsageError("--max-drop is for networks whose spec is known (--spec) and which take only images")
        if gate is not None:
            check_gate(gate, known.spec)
        limits = tolerance if isinstance(tolerance, Tolerance) else chosen_tolerance(tolerance or "", options.precision)
        assert limits is not None
        if not tolerance:
            limits = REPORT_ONLY if gate is not None and options.quantised else limits_of(options.precision)
        job = _Job(source, target, prepared, image, before, known, options, limits, timer)
        folder = stack.enter_context(staging_dir(target))
        return job.run(folder, samples, gate)


@dataclass(frozen=True, eq=False)
class _Job:
    """One conversion; ``before`` is the source in ONNX Runtime, fed by images."""

    source: Path
    target: Path
    prepared: Prepared
    image: ImageInput
    before: Session
    known: Meaning
    options: PrecisionOptions
    limits: Tolerance
    timer: StepTimer

    def run(self, folder: Path, samples: Sequence[str | Path], gate: AccuracyGate | None) -> ConversionReport:
        """Convert, verify and publish."""
        work = folder / "base"
        work.mkdir()
        feeds = self._feeds(samples)
        choice, file = network_file(self.prepared.graph, self.image, self.known.spec, work / "network.onnx")
        base = self._check_prepared(work / "prepared.onnx", feeds, ordered=not choice.nodes)
        network = network_of(self.known.spec, choice, file, known=self.known.known)
        conversion = Conversion(self.prepared.graph, network, self.image, feeds, self.timer)
        converted, new = conversion.converted(self.options), folder / self.target.name
        nodes, precision, accuracy = self._write(converted.graph, new), converted.report, None
        if gate is not None:
            further = FurtherLayers(conversion, self.options, precision)
            nodes, precision, accuracy = self._gated(gate, new, further, nodes)
        counts = {kind: len(names) for kind, names in precisions_of(new).items()}
        if self.options.precision not in counts:
            raise ExportError(
                f"no layer of {self.source} computes in {self.options.precision}: all were left as they are "
                "(--keep none converts all)"
            )
        self.timer.step("checking")
        parity = self._verdict(new, network, converted, self._judged(feeds))
        shutil.rmtree(work)
        report = ConversionReport(
            path=self.target,
            size=sum(part.stat().st_size for part in folder.iterdir()),
            sha256=sha256(new),
            source=self.source,
            source_size=sum(part.stat().st_size for part in (self.source, *self.prepared.parts)),
            source_sha256=sha256(self.source),
            opset=int(converted.graph.opset_imports[""]),
            nodes=nodes,
            spec=self._spec(converted.graph),
            stamped=self._stamps,
            prepared=self.prepared.done,
            choice=choice.kinds,
            kept_layers=choice.layers,
            precision=replace(precision, base=base, computes=counts),
            parity=parity,
            accuracy=accuracy,
            notes=(*self.known.notes, *self.image.notes()),
            seconds=self.timer.seconds(),
        )
        about = digests(new, (external_data_path(new),)) | self._about_source(report)
        parity_report_path(new).write_text(parity.to_json(about))
        publish(
            folder, self.target, parts=(external_data_path(self.target),), reports=(parity_report_path(self.target),)
        )
        write_kept(self.options, report.precision.kept, report.spec.source)
        return report

    def _gated(
        self, gate: AccuracyGate, file: Path, further: FurtherLayers, nodes: int
    ) -> tuple[int, PrecisionReport, Comparison]:
        """Evaluate the written file, and keep further layers in higher precision if it loses too much.

        Returns:
            How many nodes the file has then, the report of its conversion, and the comparison.

        Raises:
            AccuracyError: it loses too much all the same, or the layers to keep are not chosen by measurement.
        """
        self.timer.step("evaluating")
        gated = Gated(gate, self._spec(self.prepared.graph), None, self.source, self.timer)
        precision, accuracy = further.first, gated.compared(file)
        if self.options.nodes_to_exclude == "auto" and not gated.holds(accuracy):
            write = partial(self._write, file=file)
            precision, accuracy, nodes = keep_for_accuracy(gated, file, further, write, self.timer)
        gated.check(accuracy)
        return nodes, precision, accuracy

    def _feeds(self, samples: Sequence[str | Path]) -> ParityInputs:
        """The images of the verification, and noise."""
        images, calibration = list(samples), self.options.calibration
        if not images and calibration is not None:
            found = calibration.images()
            images = [found[number] for number in spread_numbers(len(found), CHECKED)]
        return make_parity_inputs(self.known.spec, images)

    def _judged(self, feeds: ParityInputs) -> ParityInputs:
        """The images that decide: of int8 and fp8 real ones only, because ranges are not measured on noise."""
        if self.options.quantised is None:
            return feeds
        real = {label: image for label, image in feeds.images.items() if not label.startswith("noise")}
        return ParityInputs(real, tuple(Batch(label, (label,)) for label in real), feeds.notes)

    def _check_prepared(self, file: Path, feeds: ParityInputs, *, ordered: bool) -> ParityReport:
        """Check that the prepared graph gives what the source gives.

        Raises:
            FoldError: it does not.
        """
        self.timer.step("checking")
        graph = self.prepared.graph.clone()
        write(graph, file, sum(each.size for each in passes.initializers_of(graph)))
        names = self.source.name, "the prepared graph"
        with _fed(ort.open_session(file, provider="cpu"), self.image) as after:
            parity = self._compared(names, (self.before, after), feeds, PREPARED, ordered=ordered)
        if not parity.ok and not ordered:
            parity = self._in_stages(names, file.parent, feeds) or parity
        if not parity.ok:
            raise FoldError(f"what was done to {self.source} before its conversion changed its numbers: {parity.worst}")
        return parity

    def _in_stages(self, names: tuple[str, str], folder: Path, feeds: ParityInputs) -> ParityReport | None:
        """Compare the prepared graph with the source by stages, if it can be cut into them."""
        opened = open_stages(self.source, self.prepared.graph, folder)
        if opened is None:
            return None
        with _fed(opened[0], self.image) as before, _fed(opened[1], self.image) as after:
            parity = values_apart(names, (before, after), feeds, PREPARED, Within("checking: ", self.timer))
        note = "the whole networks choose other rows: compared from each choice to the next, from the same values"
        return replace(parity, notes=(*parity.notes, note))

    def _compared(
        self,
        names: tuple[str, str],
        sessions: tuple[Session, Session],
        feeds: ParityInputs,
        limits: Tolerance,
        *,
        ordered: bool = True,
    ) -> ParityReport:
        """Compare two whole networks by their results, or by their outputs where nothing says what they mean."""
        details = Within("checking: ", self.timer)
        if self.known.known:
            return compare_sessions(names, sessions, self.known.spec, feeds, limits, details)
        return values_apart(names, sessions, feeds, limits, details, ordered=ordered)

    def _verdict(self, file: Path, network: Network, converted: Converted, feeds: ParityInputs) -> ParityReport:
        """Judge the written file.

        Raises:
            ParityError: it does not agree with the source, or gives values that are not finite.
        """
        names, notes = (self.source.name, file.name), []
        in_torch = self.options.precision in IN_TORCH
        runs_here = not in_torch or not converted.choice.beyond_torch
        if runs_here and (self.known.known or not converted.choice.nodes):
            with _fed(self._open(file), self.image) as after:
                parity = self._compared(names, (self.before, after), feeds, self.limits)
        else:
            if runs_here:
                with _fed(self._open(file), self.image) as after:
                    _check_finite(after, feeds, file.name)
            with ort.open_session(network.file, provider="cpu") as exact, self._open(converted.network) as found:
                parity = values_apart(names, (exact, found), feeds, self.limits)
            notes.append(f"compared by what goes into the choice at the end ({', '.join(converted.choice.kinds)})")
        parity.raise_if_bad(file.name)
        if self.options.precision in IN_TORCH:
            notes.append(
                f"ONNX Runtime's CPU provider does not run every {self.options.precision} file: computed in torch"
            )
        if self.known.known and self.known.spec.output.finds_objects and not any(m.expected for m in parity.matchings):
            notes.append("nothing was found on any of these images, so this verifies little: give others (--sample)")
        return replace(parity, notes=(*parity.notes, *notes))

    def _open(self, file: Path) -> Session:
        """Open a converted file: in torch where ONNX Runtime's CPU provider has not its types."""
        if self.options.precision in IN_TORCH:
            return OnnxInTorchSession(ir.load(file))
        return ort.open_session(file, provider="cpu")

    @property
    def _stamps(self) -> bool:
        """Whether the file gets its spec: it is known, and says all about how the network is fed."""
        return self.known.known and self.image.plain

    def _spec(self, graph: ir.Model) -> ModelSpec:
        spec = self.known.spec
        origin = Source(spec.source.model or self.source.stem, spec.source.sha256, __version__)
        return replace(spec, precision=self.options.precision, opset=int(graph.opset_imports[""]), source=origin)

    def _write(self, graph: ir.Model, file: Path) -> int:
        """Write a converted graph, with the metadata of its source and, where it is known, its spec.

        Returns:
            The number of its nodes.
        """
        self.timer.step("writing")
        passes.strip(graph)
        graph.metadata_props.update({k: v for k, v in self.prepared.metadata.items() if k != METADATA_KEY})
        if self._stamps:
            spec = self._spec(graph)
            passes.stamp(graph, METADATA_KEY, spec.to_json(), name=spec.source.model, version=__version__)
        write(graph, file, sum(each.size for each in passes.initializers_of(graph)))
        return sum(1 for _ in graph.graph)

    def _about_source(self, report: ConversionReport) -> dict[str, Any]:
        """What the parity report says of the source, and of the conversion."""
        parts = {part.name: sha256(part) for part in self.prepared.parts}
        return {
            "source": self.source.name,
            "source_sha256": report.source_sha256,
            **({"source_parts": parts} if parts else {}),
            "prepared": list(report.prepared),
            "precision": json_safe(report.precision.to_dict()),
        }


def _infos(graph: ir.Model) -> tuple[TensorInfo, ...]:
    """The inputs of a graph."""
    found = passes.interface_of(graph.graph.inputs)
    return tuple(TensorInfo(i.name, tuple(s if isinstance(s, int) else None for s in i.shape), i.dtype) for i in found)


def _fed(session: Session, image: ImageInput) -> Session:
    return session if image.plain else FedSession(session, image)


def _named_as_found(spec: ModelSpec, session: Session) -> ModelSpec:
    """A spec of one output with the name that the network gives it: any name is accepted for a single one."""
    if len(spec.output_tensors) != 1 or len(session.outputs) != 1 or spec.output_names[0] == session.outputs[0].name:
        return spec
    return replace(spec, output=replace(spec.output, name=session.outputs[0].name))  # type: ignore[call-arg]  # drafted ones have a name


def _check_fits(spec: ModelSpec, session: Session, file: Path) -> None:
    """Check that a network takes the input that its spec describes.

    Raises:
        SpecError: it does not.
    """
    canvas = spec.input
    shape = (canvas.batch, canvas.channels, *canvas.size)
    if not session.accepts_shape(shape):
        raise SpecError(f"the spec says that the input is {shape}, {file} takes {session.inputs[0]}")


def _check_finite(session: Session, feeds: ParityInputs, name: str) -> None:
    """Run a network on each image.

    Raises:
        ParityError: a value that it gives is not finite.
    """
    info = session.inputs[0]
    for label, image in feeds.images.items():
        for output, values in session.run(input_arrays(info, image.repeat(info.shape[0] or 1, 0))).items():
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise ParityError(
                    f"{name} was not kept: its output {output!r} has values on {label} that are not finite"
                )
