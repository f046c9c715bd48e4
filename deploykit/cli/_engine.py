"""What ``deploykit export`` asks and says about TensorRT engines."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from deploykit.cli._display import console, parity_lines, parity_table

if TYPE_CHECKING:
    from deploykit.export.engine.report import EngineReport
    from deploykit.runtime.engine_record import EngineRecord, Profile

DEFAULTS: dict[str, Any] = {
    "profile": [],
    "workspace": None,
    "tf32": False,
    "version_compatible": False,
    "hardware_compatible": "none",
    "compute_capability": [],
    "optimization_level": None,
    "timing_cache": True,
    "device": 0,
    "build_log": "info",
    "spec": None,
}


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that are for engines only."""
    group = parser.add_argument_group("engines (--format tensorrt, tensorrt-rtx)")
    group.add_argument(
        "--profile",
        nargs=3,
        action="append",
        metavar=("MIN", "BEST", "MAX"),
        help="shapes of a network with --dynamic, as 1x640x640 (batch, height, width); may be repeated "
        "(default: batches of 1 to 8, images within --img)",
    )
    group.add_argument("--workspace", type=int, metavar="MIB", help="device memory for layers (default: the builder's)")
    group.add_argument("--tf32", action="store_true", help="let fp32 layers round to TF32 (default no)")
    group.add_argument("--version-compatible", action="store_true", help="run with later TensorRT of this major number")
    group.add_argument(
        "--hardware-compatible",
        choices=("none", "ampere+", "same-cc"),
        help="run on other GPUs: from Ampere on, or of the same compute capability (default none)",
    )
    group.add_argument(
        "--compute-capability",
        nargs="+",
        metavar="SM",
        help="TensorRT for RTX: the GPUs to build for, as sm89 sm120 (default: every one from Ampere on)",
    )
    group.add_argument("--optimization-level", type=int, metavar="N", help="0 builds quickly, 5 runs quickly")
    group.add_argument(
        "--timing-cache",
        action=argparse.BooleanOptionalAction,
        help="TensorRT: reuse what earlier builds measured on this GPU (default yes)",
    )
    group.add_argument("--device", type=int, metavar="N", help="the GPU to build and check on (default 0)")
    group.add_argument("--build-log", choices=("info", "verbose"), help="what X.trt.log keeps (default info)")
    group.add_argument("--spec", metavar="FILE", help="the spec (JSON) of an ONNX file that does not carry one")
    parser.set_defaults(**DEFAULTS)


def given_engine_options(args: argparse.Namespace) -> list[str]:
    """The engine options that were given on the command line."""
    return [f"--{name.replace('_', '-')}" for name, default in DEFAULTS.items() if getattr(args, name) != default]


def engine_options(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of :func:`deploykit.build_engine` that the options stand for."""
    from deploykit.runtime.engine_record import EngineOptions

    return {
        "profiles": [_profile(words) for words in args.profile],
        "options": EngineOptions(
            workspace=None if args.workspace is None else args.workspace * 2**20,
            tf32=args.tf32,
            version_compatible=args.version_compatible,
            hardware_compatible=args.hardware_compatible,
            compute_capabilities=tuple(name.lower() for name in args.compute_capability),
            optimization_level=args.optimization_level,
        ),
        "timing_cache": args.timing_cache,
        "gpu": args.device,
        "verbose": args.build_log == "verbose",
        "spec": args.spec,
    }


def _profile(words: list[str]) -> Profile:
    """Three words such as ``1x640x640`` to a profile of a three-channel input."""
    from deploykit.errors import SpecError, UsageError
    from deploykit.runtime.engine_record import Profile

    shapes = []
    for word in words:
        sides = word.lower().split("x")
        if len(sides) != 3 or not all(side.isascii() and side.isdecimal() for side in sides):
            raise UsageError(f"--profile takes shapes such as 1x640x640 (batch, height, width), got {word!r}")
        batch, height, width = map(int, sides)
        shapes.append((batch, 3, height, width))
    try:
        return Profile(*shapes)
    except SpecError as e:
        raise UsageError(f"--profile {' '.join(words)}: {e}") from e


def print_engine(report: EngineReport) -> None:
    """What was built, and what is known of it."""
    from rich.markup import escape
    from rich.table import Table

    from deploykit.runtime.engine_record import expected_of, log_of
    from deploykit.runtime.files import megabytes

    record = report.record
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column()
    facts.add_row("engine", escape(f"{report.path}  {megabytes(record.size)}"))
    name = "TensorRT" if record.flavour == "tensorrt" else "TensorRT for RTX"
    facts.add_row("built by", escape(f"{name} {record.version} from {record.onnx}, {_where(record)}"))
    counts = ", ".join(f"{count} in {kind}" for kind, count in record.precision.items())
    facts.add_row("layers", f"{record.layers}; compute layers: {counts} (read from the {record.precision_from})")
    for profile in record.profiles:
        facts.add_row("input shapes", str(profile))
    facts.add_row("options", _options(record))
    facts.add_row("log", escape(str(log_of(report.path))))
    facts.add_row("time", ", ".join(f"{step} {seconds:.1f} s" for step, seconds in report.seconds.items()))
    out = console()
    out.print()
    out.print(facts)
    if report.parity is not None:
        out.print()
        out.print(parity_table(report.parity))
        for line in parity_lines(report.parity):
            out.print(line, markup=False)
        return
    print(f"parity: {record.unverified}")
    expected = expected_of(report.path)
    if expected.exists():
        print(
            f"what it must give is in {expected}: its first load on a GPU, or\n"
            f"  deploykit compare {expected} {report.path}\nholds it against that"
        )


def _where(record: EngineRecord) -> str:
    return f"on {record.gpu}" if record.gpu else "without a GPU"


def _options(record: EngineRecord) -> str:
    options = record.options
    parts = ["TF32 allowed" if options.tf32 else "TF32 off"]
    if options.workspace is not None:
        parts.append(f"workspace {options.workspace / 2**20:g} MiB")
    if record.flavour == "tensorrt-rtx":
        targets = ", ".join(options.compute_capabilities)
        parts.append(f"for {targets}" if targets else "for every GPU from Ampere on that TensorRT for RTX supports")
    if options.version_compatible:
        parts.append("version compatible")
    if options.hardware_compatible != "none":
        parts.append(f"hardware compatible: {options.hardware_compatible}")
    if options.optimization_level is not None:
        parts.append(f"optimization level {options.optimization_level}")
    return "; ".join(parts)
