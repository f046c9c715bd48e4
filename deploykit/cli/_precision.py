"""What ``deploykit export`` asks and says about precision and accuracy."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, get_args

from deploykit.cli._options import Flag, Flags

if TYPE_CHECKING:
    from deploykit.export.options import AccuracyGate, Calibration, PrecisionOptions
    from deploykit.export.precision.convert import PrecisionReport


ANY = "precision (docs/precision.md)"
QUANTISED = "precision int8 and fp8"


def precision_flags() -> Flags[PrecisionOptions]:
    """The precision, and what only int8 and fp8 have besides their images."""
    from deploykit.export.options import HalfIO, Precision, PrecisionOptions

    return Flags(
        PrecisionOptions,
        {
            ANY: (
                Flag(
                    "--precision",
                    "precision",
                    "of weights and activations, in the graph itself: what loses too much stays in fp32",
                    choices=get_args(Precision),
                ),
                Flag(
                    "--half-io",
                    "half_io",
                    "fp16: which of the file's own inputs and outputs are fp16 too (default none: they stay float32)",
                    choices=get_args(HalfIO),
                ),
            ),
            QUANTISED: (
                Flag(
                    "--int8-keep",
                    "nodes_to_exclude",
                    "layers that are not quantised: auto (by measurement), none, or names and patterns",
                    metavar="LAYER",
                    nargs="+",
                    fills=lambda words: words[0] if words in (["auto"], ["none"]) else tuple(words),
                ),
                Flag("--reduce-range", "reduce_range", "int8 weights of 7 bits, for CPUs whose int8 kernels saturate"),
                Flag("--calib-cache", "cache", "keep measured ranges for later"),
            ),
        },
    )


def calibration_flags() -> Flags[Calibration]:
    """The images that ranges are measured with."""
    from deploykit.export.options import Calibration, CalibrationMethod

    return Flags(
        Calibration,
        {
            "images for int8 and fp8": (
                Flag("--calib", "source", "int8, fp8: images to measure the ranges of activations with", metavar="DIR"),
                Flag("--calib-size", "size", "use so many of them", metavar="N", type=int),
                Flag(
                    "--calib-method",
                    "method",
                    "how a range follows from what was measured; auto: what fits this network best",
                    choices=get_args(CalibrationMethod),
                ),
            )
        },
    )


def gate_flags() -> Flags[AccuracyGate]:
    """What may be lost, and on which images."""
    from deploykit.export.options import AccuracyGate

    return Flags(
        AccuracyGate,
        {
            "accuracy": (
                Flag(
                    "--max-drop",
                    "max_drop",
                    "evaluate the file and what it was made from, and keep it only if AP falls by at most so many "
                    "hundredths",
                    metavar="POINTS",
                    type=float,
                ),
                Flag("--data", "data", "for --max-drop: annotations in COCO's JSON format", metavar="FILE"),
                Flag("--images", "images", "for --max-drop: the folder with the images that they list", metavar="DIR"),
                Flag("--limit", "limit", "for --max-drop: only the first N images", metavar="N", type=int),
            )
        },
    )


def add_precision_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of precision and accuracy."""
    precision_flags().add(parser)
    calibration_flags().add(parser)
    gate_flags().add(parser)


def gate_of(args: argparse.Namespace) -> AccuracyGate | None:
    """What ``--max-drop`` and its data stand for.

    Raises:
        UsageError: one without the others.
    """
    from deploykit.errors import UsageError

    flags = gate_flags()
    given = flags.given(args)
    missing = [name for name in ("--max-drop", "--data", "--images") if name not in given]
    if not given:
        return None
    if missing:
        raise UsageError(f"--max-drop needs --data and --images, and they need it: {' and '.join(missing)} is missing")
    return flags.fill(args)


def precision_of(args: argparse.Namespace) -> PrecisionOptions:
    """What the options stand for.

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
    """What became of the graph, a line each."""
    counts = ", ".join(f"{count} in {kind}" for kind, count in report.computes.items())
    lines = [("computes", f"convolutions and matrix products: {counts} (read from the file)")]
    if report.half is not None:
        half = report.half
        kept = ", ".join(f"{len(names)} by {reason}" for reason, names in half.kept.items()) or "none"
        largest, name = half.largest
        lines.append(("in fp32", f"nodes kept: {kept}; {half.casts} casts"))
        if half.dtype == "fp16":
            lines.append(
                ("range", f"largest {half.dtype} value {largest:.4g} of 65504 ({name}), on the check's images")
            )
    if report.quantised is not None:
        lines += report.quantised.lines()
    if report.base is not None:
        worst = max((d.limit_ratio for d in report.base.differences), default=0.0)
        lines.append(("fp32 before it", f"verified, {100 * worst:.1f} % of its limits used"))
    return [*lines, *(("note", note) for note in report.notes)]
