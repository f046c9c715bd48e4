"""``deploykit plugins``: build, describe or check the native libraries."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.cli._display import console, print_json, shown_progress

if TYPE_CHECKING:
    from deploykit.export.plugins_check import Check
    from deploykit.runtime.native.build import LibraryInfo

BUILD_OPTIONS = ("out", "only", "tensorrt", "onnxruntime", "architecture")

EXAMPLES = (
    ("deploykit plugins build", "all libraries that can be built here"),
    ("deploykit plugins test", "each library compared with numpy"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "action",
        choices=("build", "info", "test"),
        help="build the libraries from the sources in this package; show which are available; test them against numpy",
    )
    parser.add_argument("--json", action="store_true", help="print everything as one JSON document")
    parser.add_argument(
        "--allow-none", action="store_true", help="test: succeed even if no library is built, so that none was tested"
    )
    group = parser.add_argument_group("build")
    group.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="the folder for the libraries (default: $DEPLOYKIT_PLUGINS, or the package)",
    )
    group.add_argument(
        "--only",
        action="append",
        choices=("cpu", "onnxruntime", "cuda", "tensorrt"),
        help="build this library besides cpu, and cuda for tensorrt; may be repeated (default: all that can be built)",
    )
    group.add_argument(
        "--tensorrt", type=Path, metavar="FOLDER", help="the folder of TensorRT's headers, or the one above it"
    )
    group.add_argument("--onnxruntime", type=Path, metavar="FOLDER", help="the folder of ONNX Runtime's C++ headers")
    group.add_argument(
        "--architecture",
        type=int,
        action="append",
        metavar="N",
        help="GPU compute capability, such as 90; may be repeated (default: all from 75 on)",
    )


def run(args: argparse.Namespace) -> int:
    """Build, describe or check; return 0 unless a check failed."""
    from deploykit.errors import UsageError

    if args.action != "build" and (given := [name for name in BUILD_OPTIONS if getattr(args, name)]):
        raise UsageError(f"--{given[0]} is for deploykit plugins build, not for {args.action}")
    if args.allow_none and args.action != "test":
        raise UsageError(f"--allow-none is for deploykit plugins test, not for {args.action}")
    return {"build": _build, "info": _info, "test": _test}[args.action](args)


def _build(args: argparse.Namespace) -> int:
    from deploykit.runtime.native.build import build_libraries
    from deploykit.runtime.native.library import FOLDER, LIBRARIES, library_folder

    with shown_progress() as progress:
        report = build_libraries(
            args.out,
            only=args.only or (),
            tensorrt=args.tensorrt,
            onnxruntime=args.onnxruntime,
            architectures=args.architecture or (),
            progress=progress,
        )
    if args.json:
        print_json(dataclasses.asdict(report))
        return 0
    _print_table([(name, what, report.said[name]) for name, what in LIBRARIES.items() if name in report.said])
    folder = report.log.parent
    print(f"the libraries and the build log ({report.log.name}) are in {folder}")
    if folder.absolute() != library_folder().absolute():
        print(f"to use them, set {FOLDER}={folder.absolute()}")
    return 0


def _info(args: argparse.Namespace) -> int:
    from deploykit.runtime.native.build import library_info
    from deploykit.runtime.native.library import ABI, FOLDER, LIBRARIES, SWITCH, cpu_library, library_folder

    found = [library_info(name) for name in LIBRARIES]
    in_use = cpu_library() is not None
    if args.json:
        libraries = [dataclasses.asdict(info) for info in found]
        print_json({"folder": library_folder(), "abi": ABI, "nms_is_native": in_use, "libraries": libraries})
        return 0
    _print_table([(info.name, info.what, _about(info)) for info in found])
    print(f"folder: {library_folder()} (set {FOLDER} to use another one); required ABI: {ABI}")
    print(f"NMS on the CPU: {'the library' if in_use else 'numpy'} (set {SWITCH}=0 to switch the library off)")
    return 0


def _about(info: LibraryInfo) -> str:
    if info.problem:
        return info.problem
    gpus = f", for {' '.join(info.architectures)}" if info.architectures else ""
    return f"ABI {info.abi}, {info.built_with}{gpus}"


def _test(args: argparse.Namespace) -> int:
    from deploykit.errors import MissingDependencyError, ParityError
    from deploykit.export.plugins_check import check_libraries

    checks = list(check_libraries())
    if args.json:
        print_json([dataclasses.asdict(check) for check in checks])
    else:
        _print_table([(check.library, _verdict(check), check.says) for check in checks])
    if all(check.ok is None for check in checks) and not args.allow_none:
        raise MissingDependencyError(
            "no native library was tested, because none can be used here: run deploykit plugins build, or pass "
            "--allow-none"
        )
    return ParityError.exit_code if any(check.ok is False for check in checks) else 0


def _verdict(check: Check) -> str:
    return "not run" if check.ok is None else "ok" if check.ok else "WRONG"


def _print_table(rows: list[tuple[str, str, str]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    console().print(table)
