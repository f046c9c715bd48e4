"""One checkpoint to several formats: the ONNX file first, because every engine is built from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from deploykit.errors import UsageError
from deploykit.export.engine.build import build_engine, check_engine, chosen_flavour
from deploykit.export.engine.report import EngineReport
from deploykit.export.options import EngineOptions, OnnxOptions
from deploykit.export.output import is_folder, output_path
from deploykit.export.report import ExportReport
from deploykit.export.to_onnx import export_checkpoint
from deploykit.progress import SILENT, Progress, Within
from deploykit.runtime.engine_record import FLAVOURS, Flavour
from deploykit.spec import ENGINE_SUFFIXES, ModelSpec

__all__ = ["FORMATS", "Exports", "Format", "export_formats", "formats_for"]

Format = Literal["onnx", "tensorrt", "tensorrt-rtx"]
FORMATS: tuple[str, ...] = ("onnx", *FLAVOURS)


@dataclass(frozen=True)
class Exports:
    """The files that were written: the ONNX file (None if it was the source) and the engines."""

    onnx: ExportReport | None
    engines: tuple[EngineReport, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able data: the fields of the ONNX export, and a list ``engines``."""
        return {**(self.onnx.to_dict() if self.onnx else {}), "engines": [e.to_dict() for e in self.engines]}


def formats_for(formats: Sequence[str], out: str | Path | None) -> tuple[str, ...]:
    """Return the formats to write: those that were asked for, else what the suffix of ``out`` says, else ONNX.

    Raises:
        UsageError: a format and the suffix contradict each other. MissingDependencyError: ``out`` is an engine, and no
            TensorRT is installed.
    """
    file = None if out is None or is_folder(out) else Path(out)
    engine = file is not None and file.suffix in ENGINE_SUFFIXES
    if not formats:
        return (chosen_flavour("auto"),) if engine else ("onnx",)
    if engine and not set(formats) & set(FLAVOURS):
        raise UsageError(f"--out {out} is an engine by its name, and --format is {formats[0]}: give one of the two")
    if file is not None and file.suffix == ".onnx" and "onnx" not in formats:
        raise UsageError(f"--out {out} is an ONNX file by its name, and --format is {formats[0]}: give one of the two")
    return tuple(formats)


def export_formats(
    weights: str | Path,
    formats: Sequence[str] = (),
    *,
    out: str | Path | None = None,
    onnx: OnnxOptions | None = None,
    engines: EngineOptions | None = None,
    spec: ModelSpec | str | Path | None = None,
    samples: Sequence[str | Path] = (),
    check: bool = True,
    progress: Progress = SILENT,
) -> Exports:
    """Export a checkpoint, or an ONNX file, to each of ``formats``; engines are compared with the checkpoint.

    The ONNX file ``X.onnx`` is kept even if only engines are asked for: they are built from it, and it runs without a
    GPU. An engine is ``X.trt``. If both flavours are built, the engine of TensorRT for RTX is ``X-rtx.trt``.

    Args:
        weights: a checkpoint, or an ``.onnx`` file to build engines from.
        formats: some of :data:`FORMATS`; none: what the suffix of ``out`` says, else an ONNX file.
        out: the file for one format, a folder for several; None writes beside the weights.
        onnx: the options of the ONNX file; None takes the defaults.
        engines: the options of the engines; None takes the defaults.
        spec: the spec of an ONNX file that does not carry its own.
        samples, check: see :func:`deploykit.export_onnx`.
        progress: receives the steps of all exports; those of an engine begin with its flavour.

    Raises:
        UsageError: formats and files do not go together. Other errors are those of :func:`deploykit.export_onnx` and
            :func:`deploykit.build_engine`.
    """
    source, options = Path(weights), engines or EngineOptions()
    ready = source.suffix.lower() == ".onnx"
    formats = formats_for(formats, out)
    _check(source, formats, out, ready=ready)
    flavours: list[Flavour] = [f for name in dict.fromkeys(formats) for f in get_args(Flavour) if f == name]
    if flavours and onnx is not None and onnx.precision.target == "cpu":
        raise UsageError(
            "--target cpu makes a file that TensorRT refuses: leave it out for engines, or take --format onnx"
        )
    for flavour in flavours:  # before the minute that the ONNX file takes
        check_engine(flavour, options)
    exported = None
    if not ready:
        path = _onnx_path(source, out)
        exported = export_checkpoint(
            source, onnx or OnnxOptions(), out=path, samples=samples, check=check, progress=progress
        )
    file = exported.report.path if exported else source
    built = [
        build_engine(
            file,
            flavour=flavour,
            out=output_path(_engine_default(file, flavour, alone=len(flavours) == 1), out, ENGINE_SUFFIXES),
            options=options,
            spec=spec,
            samples=samples,
            check=check,
            reference=exported.reference.select_reference("the checkpoint")
            if exported and exported.reference
            else None,
            progress=Within(f"{flavour}, ", progress),
        )
        for flavour in flavours
    ]
    return Exports(exported.report if exported else None, tuple(built))


def _check(source: Path, formats: Sequence[str], out: str | Path | None, *, ready: bool) -> None:
    if unknown := next((name for name in formats if name not in FORMATS), None):
        raise UsageError(f"a format must be one of {', '.join(FORMATS)}, got {unknown!r}")
    if ready and "onnx" in formats:
        raise UsageError(f"{source} is already an ONNX file: take --format tensorrt or --format tensorrt-rtx")
    if out is not None and len(set(formats)) > 1 and not is_folder(out):
        raise UsageError(f"--out must be a folder for several formats, got {out}: end its name with /")


def _onnx_path(source: Path, out: str | Path | None) -> str | Path | None:
    """The path of the ONNX file: beside the engine if ``out`` names an engine file."""
    return Path(out).with_suffix(".onnx") if out is not None and Path(out).suffix in ENGINE_SUFFIXES else out


def _engine_default(onnx: Path, flavour: Flavour, *, alone: bool) -> Path:
    name = onnx.stem if alone or flavour == "tensorrt" else f"{onnx.stem}-rtx"
    return onnx.with_name(f"{name}{ENGINE_SUFFIXES[0]}")
