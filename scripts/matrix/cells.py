"""The cells of the matrix: an interpreter, extras, and how the versions of other packages are chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["CELLS", "NOT_RUN", "PYTHONS", "TABLES", "Cell", "checks_of"]

Resolution = Literal["newest", "oldest", "pinned"]

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
RUNTIME = ("cpu", "eval", "raw", "serve", "otel")
USUAL = (*RUNTIME, "export")


@dataclass(frozen=True)
class Cell:
    """One environment.

    Attributes:
        name: what the row of the page is called.
        table: the table of the page, a key of ``TABLES``.
        python: the interpreter's version.
        extras: the extras that are installed.
        resolution: newest: what pip takes today; oldest: the lower bounds of pyproject.toml; pinned: constraints.txt.
        pins: requirements that come before it.
    """

    name: str
    table: str
    python: str = "3.11"
    extras: tuple[str, ...] = USUAL
    resolution: Resolution = "newest"
    pins: tuple[str, ...] = ()


TABLES = {
    "python": "Python, with the oldest and the newest versions of everything",
    "package": "One package of the runtime at a bound, and the rest at its newest",
    "extra": "Each extra alone",
}
"""Key -> title on the page."""


def _bounds(package: str, *versions: str) -> list[Cell]:
    """A package of the runtime at several versions, without torch."""
    return [
        Cell(f"{package} {version}", "package", extras=("cpu", "eval"), pins=(f"{package}=={version}",))
        for version in versions
    ]


CELLS = (
    Cell("constraints.txt", "python", resolution="pinned"),
    *(Cell(f"{python}, oldest", "python", python, resolution="oldest") for python in PYTHONS),
    *(Cell(f"{python}, newest", "python", python) for python in PYTHONS),
    *(Cell(f"{python}, without torch", "python", python, RUNTIME) for python in PYTHONS[1:]),
    *_bounds("onnxruntime", "1.20.0", "1.32.0"),
    *_bounds("numpy", "1.26.0", "2.4.6"),
    *_bounds("opencv-python-headless", "4.10.0.84", "4.14.0.94", "5.0.0.93"),
    Cell("no extra", "extra", extras=()),
    Cell("cpu", "extra", extras=("cpu",)),
    Cell("gpu", "extra", extras=("gpu",)),
    Cell("webgpu", "extra", extras=("webgpu",)),
    Cell("export", "extra", extras=("export",), resolution="pinned"),
    Cell("cpu, timm", "extra", extras=("cpu", "export", "timm")),
    Cell("cpu, raw", "extra", extras=("cpu", "raw")),
    Cell("cpu, eval", "extra", extras=("cpu", "eval")),
    Cell("cpu, serve", "extra", extras=("cpu", "serve")),
    Cell("cpu, serve, otel", "extra", extras=("cpu", "serve", "otel")),
    Cell("cpu, signing", "extra", extras=("cpu", "signing")),
    Cell("cpu, cluster", "extra", extras=("cpu", "cluster")),
)

NOT_RUN = {
    "tensorrt": "needs an NVIDIA GPU",
    "tensorrt-rtx": "comes as a source package, which the matrix does not build; the test suite runs with it",
    "pycuda": "is compiled with the CUDA toolkit, and needs an NVIDIA GPU",
    "gpu-decode": "needs an NVIDIA GPU",
}
"""Extras without a cell -> why."""


def checks_of(cell: Cell) -> list[str]:
    """Return the checks that a cell's extras allow, in the order in which they run."""
    has = set(cell.extras)
    onnxruntime = bool(has & {"cpu", "gpu", "webgpu"})
    exports = "export" in has and onnxruntime and "timm" not in has
    wanted = {
        "import": True,
        "help": True,
        "doctor": True,
        "sbom": True,
        "native": True,
        "predict": onnxruntime,
        "raw": "raw" in has,
        "eval": onnxruntime and "eval" in has,
        "serve": onnxruntime and "serve" in has,
        "cluster": "cluster" in has,
        "export": "export" in has and not onnxruntime,
        "verify": exports,
        "half": exports,
        "int8": exports,
        "legacy": exports,
        "timm": "timm" in has,
        "signing": onnxruntime and "signing" in has,
    }
    return [name for name, is_wanted in wanted.items() if is_wanted]
