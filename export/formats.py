"""One checkpoint to several formats: the ONNX file first, because every engine is built from it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from deploykit.errors import UsageError
from deploykit.export.engine.build import SUFFIXES, build_engine, check_engine
from deploykit.export.engine.report import EngineReport
from deploykit.export.report import ExportReport
from deploykit.export.to_onnx import export_onnx
from deploykit.runtime.engine_record import FLAVOURS
from deploykit.runtime.parity.expected import ReferenceOutputs

__all__ = ["FORMATS", "Exports", "Format", "export_formats"]

Format = Literal["onnx", "tensorrt", "tensorrt-rtx"]
FORMATS: tuple[str, ...] = ("onnx", *FLAVOURS)


@dataclass(frozen=True)
class Exports:
    """What was written: the ONNX file (None: there was one already) and the engines."""

    onnx: ExportReport | None
    engines: tuple[EngineReport, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: the fields of the ONNX export, and a list ``engines``."""
        return {**(self.onnx.to_dict() if self.onnx else {}), "engines": [e.to_dict() for e in self.engines]}


def export_formats(
    weights: str | Path,
    formats: Sequence[str],
    *,
    out: str | Path | None = None,
    onnx_options: dict[str, Any] | None = None,
    engine_options: dict[str, Any] | None = None,
    samples: Sequence[str | Path] = (),
    check: bool = True,
    on_step: Callable[[str], None] = lambda _: None,
    on_progress: Callable[[str, float], None] = lambda *_: None,
) -> Exports:
    """Export a checkpoint, or an ONNX file, to every format asked for; engines are held against the checkpoint.

    The ONNX file ``X.onnx`` is kept even if only engines are asked for: it is what they are built from, and what runs
    where there is no GPU. An engine is ``X.trt``; of two flavours at once that of TensorRT for RTX is ``X-rtx.trt``.

    Args:
        weights: a checkpoint; or an ``.onnx`` file, to build engines from.
        formats: some of :data:`FORMATS`.
        out: the file for one format, a folder for several; None: beside the weights.
        onnx_options: further arguments of :func:`deploykit.export_onnx`.
        engine_options: further arguments of :func:`deploykit.build_engine`.
        samples, check, on_step, on_progress: see both.

    Raises:
        UsageError: formats and files do not go together. Else what the two functions raise.
    """
    source = Path(weights)
    ready = source.suffix.lower() == ".onnx"
    flavours = [name for name in dict.fromkeys(formats) if name in FLAVOURS]
    _check(source, formats, flavours, out, ready=ready)
    options = engine_options or {}
    for flavour in flavours:  # what cannot be built is found out before the minute that the ONNX file takes
        check_engine(flavour, options.get("options"))
    known: list[ReferenceOutputs] = []
    report = None
    if not ready:
        report = export_onnx(
            source,
            out=_onnx_place(source, out),
            samples=samples,
            check=check,
            on_step=on_step,
            on_expected=known.append,
            on_progress=on_progress,
            **(onnx_options or {}),
        )
    onnx = source if report is None else report.path
    engines = []
    for flavour in flavours:

        def tell(step: str, flavour: str = flavour) -> None:
            on_step(f"{flavour}, {step}")

        engines.append(
            build_engine(
                onnx,
                flavour="tensorrt" if flavour == "tensorrt" else "tensorrt-rtx",
                out=_engine_place(onnx, out, flavour, alone=len(flavours) == 1),
                samples=samples,
                expected=known[0].select_reference("the checkpoint") if known else None,
                check=check,
                on_step=tell,
                on_progress=on_progress,
                **options,
            )
        )
    return Exports(report, tuple(engines))


def _check(source: Path, formats: Sequence[str], flavours: list[str], out: str | Path | None, *, ready: bool) -> None:
    if unknown := next((name for name in formats if name not in FORMATS), None):
        raise UsageError(f"a format is one of {', '.join(FORMATS)}, got {unknown!r}")
    if ready and "onnx" in formats:
        raise UsageError(f"{source} is an ONNX file already; take --format tensorrt or --format tensorrt-rtx")
    if out is not None and len(set(formats)) > 1 and not _is_folder(out):
        raise UsageError(f"--out is a folder where there are several formats (end its name with /), got {out}")


def _is_folder(out: str | Path) -> bool:
    return Path(out).is_dir() or str(out).endswith(("/", os.sep))


def _onnx_place(source: Path, out: str | Path | None) -> str | Path | None:
    """Where the ONNX file goes: for an engine that is a file of its own, beside that."""
    return Path(out).with_suffix(".onnx") if out is not None and Path(out).suffix in SUFFIXES else out


def _engine_place(onnx: Path, out: str | Path | None, flavour: str, *, alone: bool) -> Path:
    if out is not None and not _is_folder(out):
        return Path(out)
    name = onnx.stem if alone or flavour == "tensorrt" else f"{onnx.stem}-rtx"
    return (onnx.parent if out is None else Path(out)) / f"{name}{SUFFIXES[0]}"
