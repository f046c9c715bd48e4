"""docs/compatibility.md from the kept outcomes of the cells."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from scripts.matrix.cells import CELLS, NOT_RUN, TABLES, Cell, checks_of
from scripts.matrix.environments import ROOT, Outcome

__all__ = ["PAGE", "RESULTS", "kept", "page_of"]

PAGE = ROOT / "docs" / "compatibility.md"
RESULTS = Path(__file__).with_name("results.json")
SHOWN = ("numpy", "opencv-python-headless", "onnxruntime", "torch", "onnx", "onnx-ir", "onnxscript")


def kept() -> dict[str, Outcome]:
    """Return the outcome of each cell that ran."""
    if not RESULTS.is_file():
        return {}
    return {
        name: Outcome(**{**each, "passed": tuple(each["passed"])})
        for name, each in json.loads(RESULTS.read_text()).items()
    }


def page_of(outcomes: Mapping[str, Outcome]) -> str:
    """Return the page, in Markdown."""
    return "\n".join([INTRODUCTION, *(line for key in TABLES for line in _table(key, outcomes)), _ending(outcomes)])


def _table(key: str, outcomes: Mapping[str, Outcome]) -> list[str]:
    extra = key == "extra"
    columns = [
        "",
        "Python",
        *(() if extra else (_title(name) for name in SHOWN)),
        "packages" if extra else "",
        "result",
    ]
    columns = [name for number, name in enumerate(columns) if name or number == 0]
    lines = [f"## {TABLES[key]}", "", f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for cell in (cell for cell in CELLS if cell.table == key):
        outcome = outcomes.get(cell.name)
        has = outcome.versions if outcome else {}
        middle = [str(len(has) or "")] if extra else [has.get(name, "") for name in SHOWN]
        row = [cell.name, (outcome.python if outcome else "") or cell.python, *middle, _result(cell, outcome)]
        lines.append(f"| {' | '.join(row)} |")
    if extra:
        lines += [f"| {name} | | | not run: it {why} |" for name, why in NOT_RUN.items()]
    return [*lines, ""]


def _title(package: str) -> str:
    return {"opencv-python-headless": "OpenCV", "onnxruntime": "ONNX Runtime"}.get(package, package)


def _result(cell: Cell, outcome: Outcome | None) -> str:
    if outcome is None:
        return "not run yet"
    if "install" in outcome.failed:
        return "does not install [" + _mark(cell) + "]"
    wanted = checks_of(cell)
    said = f"{len(set(outcome.passed) & set(wanted))} of {len(wanted)} checks"
    failed = ", ".join(outcome.failed)
    return f"{said}; fails: {failed} [{_mark(cell)}]" if failed else said


def _mark(cell: Cell) -> str:
    return str([each.name for each in CELLS].index(cell.name) + 1)


def _ending(outcomes: Mapping[str, Outcome]) -> str:
    failures = [
        f"* [{_mark(cell)}] {cell.name}, {check}: {' '.join(says.split())}"
        for cell in CELLS
        if cell.name in outcomes
        for check, says in outcomes[cell.name].failed.items()
    ]
    dates = sorted({outcome.date for outcome in outcomes.values()})
    days = "" if not dates else dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    text = (
        f"All of it ran on {days}, on Linux x86-64 with glibc and without a GPU." if dates else "Nothing has run yet."
    )
    return "\n".join([*(["## What failed", "", *failures, ""] if failures else []), "## Conditions", "", text, ""])


INTRODUCTION = """# Compatibility

What was installed together and checked, and what came of it. `python -m scripts.matrix` writes this page: it builds
the wheel with the native library, makes an environment for each row with uv, runs the checks there outside of the
source tree, and deletes it.

| check | what it does |
|---|---|
| import, help | the package loads; every command shows its help |
| doctor | whatever is installed works, of what loads in a minute |
| sbom | `deploykit doctor --sbom` lists what is installed |
| native | NMS of the library in the wheel gives what numpy gives, bit for bit |
| predict | the shipped model finds the eight codes on the shipped image, on the CPU |
| raw, eval, serve | a RAW file is written and read; detections are scored; a server answers over HTTP |
| cluster | Ray on this machine runs a model, and `cluster check` finds every row |
| export, verify | the shipped checkpoint is exported; the export is verified against it in float64, and run |
| half, int8, legacy | verified exports in fp16 with NMS inside, in int8, and by the older exporter with onnxsim |
| timm | a network of timm is exported and verified |
| signing | a model is signed, and a changed one has no valid signature |

A row has the checks that its extras allow. OpenCV is its headless build. The oldest versions are the lowest ones that
pyproject.toml allows and for which there is a wheel for that Python; the newest are what the index gave on that day.
"""
