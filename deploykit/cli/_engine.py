"""The options and the printed report of ``deploykit export`` for TensorRT engines."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from deploykit.cli._display import console, parity_lines, parity_table
from deploykit.cli._options import Flag, Flags
from deploykit.numerals import typed_number

if TYPE_CHECKING:
    from deploykit.export.engine.report import EngineReport
    from deploykit.export.options import EngineOptions
    from deploykit.runtime.engine_record import EngineRecord, Profile


def engine_flags() -> Flags[EngineOptions]:
    """Return the options that fill :class:`deploykit.export.options.EngineOptions`."""
    from deploykit.export.options import EngineOptions
    from deploykit.runtime.engine_record import HardwareCompatibility

    return Flags(
        EngineOptions,
        {
            "engines (--format tensorrt, tensorrt-rtx)": (
                Flag(
                    "--profile",
                    "profiles",
                    "input shapes for a network with --dynamic, as 1x640x640 (batch, height, width); may be repeated "
                    "(default: batches of 1 to 8, images within --img)",
                    metavar=("MIN", "OPT", "MAX"),
                    nargs=3,
                    repeats=True,
                    fills=lambda profiles: tuple(map(_profile, profiles)),
                ),
                Flag(
                    "--workspace",
                    "workspace",
                    "device memory for layers (default: the builder's choice)",
                    metavar="MIB",
                    type=int,
                    fills=lambda mebibytes: mebibytes * 2**20,
                ),
                Flag("--tf32", "tf32", "let fp32 layers round to TF32 (default no)"),
                Flag("--version-compatible", "version_compatible", "run with later TensorRT of this major version"),
                Flag(
                    "--hardware-compatible",
                    "hardware_compatible",
                    "build an engine that runs on other GPUs: Ampere and later, or the same compute capability",
                    choices=get_args(HardwareCompatibility),
                ),
                Flag(
                    "--compute-capability",
                    "compute_capabilities",
                    "TensorRT for RTX: the GPUs to build for, as sm89 sm120 (default: all from Ampere on)",
                    metavar="SM",
                    nargs="+",
                    fills=lambda names: tuple(name.lower() for name in names),
                ),
                Flag("--optimization-level", "optimization_level", "0 (fast build) to 5 (fast engine)", "N", int),
                Flag("--timing-cache", "timing_cache", "TensorRT: reuse measurements of earlier builds on this GPU"),
                Flag("--device", "gpu", "the GPU to build and verify on: cuda, cuda:1 or 1", "DEVICE", gpu_number),
                Flag(
                    "--build-log",
                    "verbose",
                    "the level of detail in X.trt.log (default info)",
                    choices=("info", "verbose"),
                    fills=lambda level: level == "verbose",
                ),
                Flag("--spec", "", "the spec (JSON) of an ONNX file that does not carry one", metavar="FILE"),
            )
        },
    )


def gpu_number(text: str) -> int:
    """Return the number of a GPU for ``cuda``, ``cuda:1`` or ``1``.

    Raises:
        UsageError: it names no GPU.
    """
    from deploykit.errors import UsageError
    from deploykit.runtime.cuda import device_index

    if text == "cpu":
        raise UsageError(
            "--device is for engines, which are built on a GPU; ONNX files are made on the CPU: leave it out"
        )
    number = typed_number(text)
    return device_index(text) if number is None else number


def _profile(words: list[str]) -> Profile:
    """Turn three words such as ``1x640x640``, or ``1x3x640x640`` as reports show it, into a three-channel profile."""
    from deploykit.errors import SpecError, UsageError
    from deploykit.runtime.engine_record import Profile

    shapes = []
    for word in words:
        sides = word.lower().rpartition(":")[2].split("x")  # trtexec: images:1x3x640x640
        if len(sides) == 4 and sides[1] == "3":
            del sides[1]
        numbers = [number for side in sides if (number := typed_number(side)) is not None]
        if len(sides) != 3 or len(numbers) != 3:
            raise UsageError(f"--profile takes shapes such as 1x640x640 (batch, height, width), got {word!r}")
        batch, height, width = numbers
        shapes.append((batch, 3, height, width))
    try:
        return Profile(*shapes)
    except SpecError as e:
        raise UsageError(f"--profile {' '.join(words)}: {e}") from e


def print_engine(report: EngineReport) -> None:
    """Print what was built and what is known about it."""
    from rich.markup import escape
    from rich.table import Table

    from deploykit.runtime.engine_record import build_log_path, reference_values_path
    from deploykit.runtime.files import format_size

    record = report.record
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column()
    facts.add_row("engine", escape(f"{report.path}  {format_size(record.size)}"))
    name = "TensorRT" if record.flavour == "tensorrt" else "TensorRT for RTX"
    facts.add_row("built by", escape(f"{name} {record.version} from {record.onnx}, {_where(record)}"))
    counts = ", ".join(f"{count} in {kind}" for kind, count in record.precision.items())
    facts.add_row("layers", f"{record.layers}; compute layers: {counts} (read from the {record.precision_from})")
    for profile in record.profiles:
        facts.add_row("input shapes", str(profile))
    facts.add_row("options", _options(record))
    facts.add_row("log", escape(str(build_log_path(report.path))))
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
    expected = reference_values_path(report.path)
    if expected.exists():
        print(
            f"the reference values are in {expected}; the first load on a GPU, or\n"
            f"  deploykit compare {expected} {report.path}\nverifies the engine against them"
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
