"""``deploykit bench --compare``: every way to run a model here, in turn, and which one to take."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.cli._bench_report import write_page
from deploykit.cli._compute import compute_of
from deploykit.cli._display import console, print_json, shown_progress
from deploykit.errors import NotFoundError

if TYPE_CHECKING:
    from deploykit.runtime.bench.runs import AnyPredictor
    from deploykit.runtime.bench.variants import Variant, VariantsReport
    from deploykit.runtime.options import ComputeKeywords

Open = Callable[[str, "ComputeKeywords"], "AnyPredictor"]


def compare_here(args: argparse.Namespace, file: Path, open_predictor: Open, max_pixels: int) -> VariantsReport:
    """Measure the file, those of ``--compare`` and those beside it, and print the table or the JSON."""
    from deploykit.runtime.bench.variants import benchmark_variants

    variants = _variants(args, file, open_predictor)
    with shown_progress(threaded=False) as progress:
        report = benchmark_variants(
            variants,
            args.source,
            duration=args.duration * len(variants),
            rounds=args.runs,
            max_pixels=max_pixels,
            progress=progress,
        )
    if args.json:
        print_json(report.to_dict(samples=args.samples))
    else:
        _print(report)
    if args.report is not None:
        from deploykit.runtime.bench.html import variants_page

        write_page(args.report, variants_page(report, list(_facts(report))))
    return report


def _variants(args: argparse.Namespace, file: Path, open_predictor: Open) -> list[Variant]:
    from deploykit.runtime.bench.candidates import candidates, files_beside
    from deploykit.runtime.bench.variants import Variant
    from deploykit.runtime.files import exists

    others = [Path(name).expanduser() for name in args.compare]
    missing = next((one for one in (file, *others) if not exists(one)), None)
    if missing is not None:
        raise NotFoundError(f"the model {missing} does not exist")
    files = list(dict.fromkeys((file, *others, *files_beside(file))))
    found = candidates(files, **compute_of(args))
    return [
        Variant(
            one.name,
            partial(open_predictor, str(one.file), {"device": one.device, "threads": one.threads}),
            str(one.file),
            file_size(one.file),
            one.threads,
        )
        for one in found
    ]


def file_size(file: Path) -> int:
    """Return the bytes of a model and of the external weights beside it."""
    return sum(part.stat().st_size for part in (file, file.with_name(f"{file.name}.data")) if part.is_file())


def _print(report: VariantsReport) -> None:
    from rich.markup import escape
    from rich.table import Table

    from deploykit.runtime.files import format_size

    out = console()
    for _, text in _facts(report):
        out.print(text, markup=False)
    out.print()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", "precision", "size", "threads"):
        table.add_column(name)
    for name in ("model only", "end to end", "ratio"):
        table.add_column(name, justify="right")
    for one in report.variants:
        threads = "default" if one.threads is None else str(one.threads)
        style = "bold" if one is report.recommended else None
        numbers = f"{one.model_only.p50:.2f}", f"{one.end_to_end.p50:.2f}"
        ratio = "1" if one is report.variants[0] else str(one.ratio)
        cells = (one.name, one.precision, format_size(one.bytes), threads, *numbers, ratio)
        table.add_row(*map(escape, cells), style=style)
    out.print(table)
    for one in report.variants:
        if one.unlike:
            out.print(f"* {one.name} is {one.unlike}, so it is not recommended", markup=False)
    for name, reason in report.left_out.items():
        out.print(f"* {name} does not run here: {reason}", markup=False)
    out.print()
    for sentence in report.sentences():
        out.print(sentence, markup=False)


def _facts(report: VariantsReport) -> Iterator[tuple[str, str]]:
    """Yield the conditions, a label and a sentence each."""
    machine, count = report.machine, len(report.images.data)
    quota = "" if machine.core_limit is None else f" (limited to {machine.core_limit:g} by a quota)"
    load = "" if machine.load is None else f", load {machine.load:.1f} before the first round"
    features = ", ".join(report.features) or "unknown instructions"
    yield "machine", f"{machine.processor} ({features}), {machine.cores} cores{quota}{load}"
    for gpu in machine.gpus:
        yield "GPU", f"{gpu.name}, driver {gpu.driver}"
    yield "versions", ", ".join(f"{name} {version}" for name, version in report.versions.items())
    yield (
        "rounds",
        f"{report.rounds} rounds in {report.seconds:.1f} s, variants in turn, {count} image{'s' * (count != 1)} from "
        f"{', '.join(report.images.sources[:3])}; ms of one image, medians; ratios to the first line, with intervals "
        "of 95 %",
    )
