"""What ``deploykit export`` asks and says about precision."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deploykit.export.accuracy_gate import AccuracyGate
    from deploykit.export.precision.convert import Lowering, PrecisionReport

DEFAULTS: dict[str, Any] = {
    "precision": "fp32",
    "half_io": "none",
    "calib": None,
    "calib_size": None,
    "calib_method": None,
    "int8_keep": None,
    "reduce_range": False,
    "calib_cache": True,
}


def add_precision_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the precision."""
    group = parser.add_argument_group("precision (docs/precision.md)")
    group.add_argument(
        "--precision",
        choices=("fp32", "fp16", "bf16", "int8", "fp8"),
        help="of weights and activations, in the graph itself: what loses too much stays in fp32 (default fp32)",
    )
    group.add_argument(
        "--half-io",
        choices=("none", "input", "output", "both"),
        help="fp16: which of the file's own inputs and outputs are fp16 too (default none: they stay float32)",
    )
    group.add_argument("--calib", metavar="DIR", help="int8, fp8: images to measure the ranges of activations with")
    group.add_argument("--calib-size", type=int, metavar="N", help="use so many of them (default 32)")
    group.add_argument(
        "--calib-method",
        choices=("auto", "minmax", "percentile", "entropy", "mse"),
        help="how a range follows from what was measured (default auto: what fits this network best)",
    )
    group.add_argument(
        "--int8-keep",
        nargs="+",
        metavar="LAYER",
        help="layers that are not quantised: auto (by measurement, the default), none, or names and patterns",
    )
    group.add_argument(
        "--reduce-range", action="store_true", help="int8 weights of 7 bits, for CPUs whose int8 kernels saturate"
    )
    group.add_argument(
        "--calib-cache", action=argparse.BooleanOptionalAction, help="keep measured ranges for later (default yes)"
    )
    parser.set_defaults(**DEFAULTS)
    gate = parser.add_argument_group("accuracy")
    gate.add_argument(
        "--max-drop",
        type=float,
        metavar="POINTS",
        help="evaluate the file and what it was made from, and keep it only if AP falls by at most so many hundredths",
    )
    gate.add_argument("--data", metavar="FILE", help="for --max-drop: annotations in COCO's JSON format")
    gate.add_argument("--images", metavar="DIR", help="for --max-drop: the folder with the images that they list")
    gate.add_argument("--limit", type=int, metavar="N", help="for --max-drop: only the first N images")


def gate_of(args: argparse.Namespace) -> AccuracyGate | None:
    """What ``--max-drop`` and its data stand for.

    Raises:
        UsageError: one without the others.
    """
    from deploykit.errors import UsageError

    parts = {"--max-drop": args.max_drop, "--data": args.data, "--images": args.images}
    missing = [name for name, value in parts.items() if value is None]
    if len(missing) == len(parts) and args.limit is None:
        return None
    if missing:
        raise UsageError(f"--max-drop needs --data and --images, and they need it: {' and '.join(missing)} is missing")
    from deploykit.export.accuracy_gate import AccuracyGate

    return AccuracyGate(args.max_drop, args.data, args.images, args.limit)


def lowering_of(args: argparse.Namespace) -> Lowering:
    """What the options stand for.

    Raises:
        UsageError: options that do not go with the precision.
    """
    from deploykit.errors import UsageError
    from deploykit.export.precision.calibration import Calibration
    from deploykit.export.precision.convert import Lowering

    quantised = args.precision in ("int8", "fp8")
    about = ("calib_size", "calib_method", "int8_keep", "reduce_range", "calib_cache")
    given = [f"--{name.replace('_', '-')}" for name in about if getattr(args, name) != DEFAULTS[name]]
    if given and not quantised:
        raise UsageError(f"{', '.join(given)}: for --precision int8 and fp8, not for {args.precision}")
    chosen = {"size": args.calib_size, "method": args.calib_method}
    calibration = None
    if args.calib is not None:
        calibration = Calibration(args.calib, **{name: value for name, value in chosen.items() if value is not None})
    words = args.int8_keep or ["auto"]
    return Lowering(
        precision=args.precision,
        half_io=args.half_io,
        calibration=calibration,
        keep=words[0] if words in (["auto"], ["none"]) else tuple(words),
        reduce_range=args.reduce_range,
        cache=args.calib_cache,
    )


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
