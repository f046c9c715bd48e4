"""``deploykit bench --report``: the page of a benchmark."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.cli._compute import compute_of
from deploykit.cli._display import note
from deploykit.cli._model import model_of
from deploykit.errors import DeployError, OutputError

if TYPE_CHECKING:
    from deploykit.runtime.bench.baseline import BaselineComparison
    from deploykit.runtime.bench.operators import OperatorProfile
    from deploykit.runtime.bench.report import Benchmark
    from deploykit.runtime.bench.runs import AnyPredictor
    from deploykit.runtime.session import Session

NO_PROFILE = "Only ONNX Runtime on the CPU gives a profile of operators."


def check_report(name: str) -> None:
    """Refuse a page that could not be written, before anything is measured.

    Raises:
        OutputError: it is a folder, or its folder cannot be written to.
    """
    from deploykit.atomic import check_folder_writable
    from deploykit.runtime.files import is_folder

    file = Path(name).expanduser()
    if is_folder(file):
        raise OutputError(f"--report takes the name of a file, but {file} is a folder")
    check_folder_writable(file.parent)


def write_report(
    args: argparse.Namespace,
    report: Benchmark,
    facts: Sequence[tuple[str, str]],
    predictor_of: Callable[[Session], AnyPredictor],
    baseline: BaselineComparison | None,
) -> None:
    """Profile the operators where the backend can, and write the page.

    Raises:
        OutputError: the page cannot be written.
    """
    from deploykit.runtime.bench.html import benchmark_page

    profile, why_not = _profile(args, report, predictor_of)
    page = benchmark_page(report, facts, profile=profile, no_profile=why_not, baseline=baseline)
    write_page(args.report, page)


def write_page(name: str, page: str) -> None:
    """Write a page, whole or not at all."""
    from deploykit.atomic import write_atomic

    write_atomic(Path(name).expanduser(), page.encode(), durable=False)


def _profile(
    args: argparse.Namespace, report: Benchmark, predictor_of: Callable[[Session], AnyPredictor]
) -> tuple[OperatorProfile | None, str]:
    """Return the profile of the operators, or why there is none."""
    from deploykit.runtime.bench.operators import operator_profile
    from deploykit.runtime.compute import ComputeOptions

    file = Path(model_of(args)).expanduser()
    if file.suffix.lower() != ".onnx":
        return None, NO_PROFILE
    compute = compute_of(args)
    provider = ComputeOptions(**compute).provider
    try:
        found = operator_profile(file, report.images, predictor_of, provider=provider, threads=compute.get("threads"))
    except DeployError as e:  # what was measured is not lost for it
        note(f"the page has no profile of operators: {e}")
        return None, str(e)
    return found, NO_PROFILE
