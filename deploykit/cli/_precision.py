"""The options and the printed report of ``deploykit export`` for precision and accuracy."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from deploykit.cli._label_maps import label_map_flags
from deploykit.cli._options import Flag, Flags

if TYPE_CHECKING:
    from deploykit.export.options import AccuracyGate, Calibration, PrecisionOptions
    from deploykit.export.precision.convert import PrecisionReport


ANY = "precision (docs/precision.md)"
QUANTISED = "precision int8 and fp8"
OF_GRAPH = "of weights and activations in the graph; layers that lose too much stay in fp32"
NO_DEFAULT = " (no default: it has to be given)"


def _choice_or_names(words: list[str]) -> str | tuple[str, ...]:
    return words[0] if words in (["auto"], ["none"]) else tuple(words)


def precision_flags(*, needed: bool = False) -> Flags[PrecisionOptions]:
    """Return the options of precision, and those of int8 and fp8 but for their images; ``needed``: one is asked for."""
    from deploykit.export.options import HalfIO, Int8Target, KeepAs, Precision, PrecisionOptions

    return Flags(
        PrecisionOptions,
        {
            ANY: (
                Flag(
                    "--precision",
                    "precision",
                    OF_GRAPH + NO_DEFAULT * needed,
                    choices=get_args(Precision),
                ),
                Flag(
                    "--half-io",
                    "half_io",
                    "fp16: which inputs and outputs of the file are fp16 too (default none: they stay float32)",
                    choices=get_args(HalfIO),
                ),
                Flag(
                    "--keep",
                    "nodes_to_exclude",
                    "layers that stay in higher precision: auto (by measurement), none, or names and patterns",
                    metavar="LAYER",
                    nargs="+",
                    fills=_choice_or_names,
                ),
                Flag(
                    "--keep-file",
                    "keep_file",
                    "layers to keep: read if the file exists, else written, for further exports",
                    metavar="FILE",
                ),
                Flag("--calib-cache", "cache", "keep what was measured, ranges and layers to keep, for later exports"),
            ),
            QUANTISED: (
                Flag(
                    "--reduce-range",
                    "reduce_range",
                    "use 7 bits for int8 weights, for CPUs whose int8 kernels saturate",
                ),
                Flag(
                    "--target",
                    "target",
                    "int8: any (ONNX Runtime, TensorRT), or cpu: integer kernels of ONNX Runtime, faster on CPUs with "
                    "VNNI, refused by TensorRT (docs/precision.md)",
                    choices=get_args(Int8Target),
                ),
                Flag(
                    "--folds",
                    "folds",
                    "what prepares weights: auto (what lowers the error), none, or names: equalise, smooth, correct",
                    metavar="NAME",
                    nargs="+",
                    fills=_choice_or_names,
                ),
                Flag("--keep-as", "keep_as", "precision of the layers that stay", choices=get_args(KeepAs)),
            ),
        },
    )


def calibration_flags() -> Flags[Calibration]:
    """Return the options for the images that ranges are measured on."""
    from deploykit.export.options import Calibration, CalibrationMethod

    return Flags(
        Calibration,
        {
            "images for int8 and fp8": (
                Flag(
                    "--calib",
                    "source",
                    "int8, fp8: images to measure the ranges of activations on: a folder, or data.yaml",
                    metavar="DIR",
                ),
                Flag("--calib-size", "size", "number of calibration images", metavar="N", type=int),
                Flag(
                    "--calib-method",
                    "method",
                    "calibration method; auto: the one with the lowest output error",
                    choices=get_args(CalibrationMethod),
                ),
            )
        },
    )


def gate_flags() -> Flags[AccuracyGate]:
    """Return the options for the allowed drop in accuracy and the images it is measured on."""
    from deploykit.export.options import AccuracyGate

    return Flags(
        AccuracyGate,
        {
            "accuracy": (
                Flag(
                    "--max-drop",
                    "max_drop",
                    "evaluate the file and its source, and keep the file only if AP (top-1, mIoU) falls by at most "
                    "POINTS hundredths",
                    metavar="POINTS",
                    type=float,
                ),
                Flag("--data", "data", "for --max-drop: COCO annotations, data.yaml or a folder, as for eval", "PATH"),
                Flag("--split", "split", "for --max-drop: train, val or test of data.yaml or a folder", metavar="NAME"),
                Flag("--images", "images", "for --max-drop: the folder with the annotated images", metavar="DIR"),
                Flag("--limit", "limit", "for --max-drop: only the first N images", metavar="N", type=int),
                *label_map_flags("for --max-drop: "),
            )
        },
    )


def add_precision_arguments(parser: argparse.ArgumentParser, *, needed: bool = False) -> None:
    """Declare the options of precision and accuracy; ``needed``: a precision has to be given."""
    precision_flags(needed=needed).add(parser)
    calibration_flags().add(parser)
    gate_flags().add(parser)


def gate_of(args: argparse.Namespace) -> AccuracyGate | None:
    """Return the gate that ``--max-drop`` and its data ask for.

    Raises:
        UsageError: one of them is given without the others.
    """
    from deploykit.errors import UsageError
    from deploykit.runtime.datasets.yolo import is_yolo
    from deploykit.runtime.files import is_folder

    flags = gate_flags()
    given = flags.given(args)
    if not given:
        return None
    data = getattr(args, "data", "")
    alone = data and (is_yolo(data) or is_folder(Path(data).expanduser()))
    needed = ("--max-drop", "--data", *(() if alone else ("--images",)))
    missing = [name for name in needed if name not in given]
    if missing:
        raise UsageError(
            f"missing: {' and '.join(missing)}; --max-drop needs --data data.yaml, --data JSON with --images DIR, or a "
            "folder as deploykit eval takes it"
        )
    return flags.fill(args)


def precision_of(args: argparse.Namespace) -> PrecisionOptions:
    """Return the options of precision.

    Raises:
        UsageError: options that do not go with the precision.
    """
    from deploykit.errors import UsageError
    from deploykit.export.options import PrecisionOptions

    flags, images = precision_flags(), calibration_flags()
    asked = getattr(args, "precision", PrecisionOptions.precision)
    given = [name for name in (*images.given(args), *flags.given(args, QUANTISED)) if name != "--calib"]
    if given and asked not in ("int8", "fp8"):
        raise UsageError(f"{', '.join(given)}: for --precision int8 and fp8, not for {asked}")
    return flags.fill(args, calibration=images.fill(args) if "calib" in args else None)


def precision_facts(report: PrecisionReport) -> list[tuple[str, str]]:
    """Return what became of the graph, one line per fact."""
    from deploykit.export.precision.search.kept import lines_of, summary_of

    counts = ", ".join(f"{count} in {kind}" for kind, count in report.computes.items())
    lines = [("computes", f"convolutions and matrix multiplications: {counts} (read from the file)")]
    if report.half is not None:
        half = report.half
        kept = ", ".join(f"{len(names)} by {reason}" for reason, names in half.kept.items()) or "none"
        largest, name = half.largest
        lines.append(("in fp32", f"nodes kept: {kept}; {half.casts} casts"))
        if half.dtype == "fp16":
            lines.append(
                ("range", f"largest {half.dtype} value {largest:.4g} of 65504 ({name}), on the images of the check")
            )
        lines += [("", text) for text in _out_of_range(half.out_of_range)]
    if report.quantised is not None:
        lines += report.quantised.lines()
    if report.search is not None:
        lines.append(("search", report.search.line()))
    if report.quantised is None:  # it has named them already
        lines += [("kept" if not place else "", text) for place, text in enumerate(lines_of(report.kept))]
    if report.kept:
        lines.append(("that costs", summary_of(report.kept)))
    if report.base is not None:
        worst = max((d.limit_ratio for d in report.base.differences), default=0.0)
        lines.append(("fp32 before it", f"verified, {100 * worst:.1f} % of its limits used"))
    return [*lines, *(("note", note) for note in report.notes)]


def _out_of_range(tensors: Mapping[str, tuple[float, str]], most: int = 3) -> list[str]:
    """Return lines about the tensors that stay in fp32 for their values, the largest first."""
    lines = [f"{name} stays in fp32: it reaches {value:,.0f} on {image}" for name, (value, image) in tensors.items()]
    return [*lines[:most], *([f"and {len(lines) - most} further tensors (--json)"] if len(lines) > most else [])]
