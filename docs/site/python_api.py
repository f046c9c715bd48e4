"""The reference of the public names in Python, made of their docstrings by Sphinx' autodoc."""

from __future__ import annotations

import inspect

import deploykit

__all__ = ["python_pages"]

GROUPS = {
    "run": ("Running models", "load Predictor PredictOptions open_session"),
    "results": (
        "Results",
        "Result deploykit.runtime.results.detection.Detection ImageResult "
        "deploykit.runtime.results.dense.Classification deploykit.runtime.results.dense.LabelMap "
        "deploykit.runtime.results.dense.RestoredImage deploykit.runtime.results.dense.RestoredRaw "
        "deploykit.runtime.results.dense.Features",
    ),
    "export": (
        "Exporting",
        "export_onnx OnnxOptions PrecisionOptions Calibration AccuracyGate LoadOptions quantize_onnx ImagePreparation "
        "build_engine EngineOptions",
    ),
    "verify": ("Verifying", "verify VerifyReport compare"),
    "measure": (
        "Measuring",
        "evaluate evaluate_against EvalOptions deploykit.runtime.bench.benchmark.benchmark",
    ),
    "spec": ("Specs", "ModelSpec deploykit.spec.InputSpec deploykit.spec.Fit deploykit.spec.Thresholds"),
}
"""Page -> its title, and the names on it: public ones of deploykit, others with their module."""


def python_pages() -> dict[str, str]:
    """Return the pages of the Python API by their places; a public name of no group is on the last page."""
    pages = {name: (title, names.split()) for name, (title, names) in GROUPS.items()}
    known = {name for _, names in pages.values() for name in names}
    if rest := [name for name in deploykit.__all__ if name not in known]:
        pages["more"] = ("More names", rest)
    entries = "\n".join(f"python/{name}" for name in pages)
    index = [
        "# Python API",
        "Importing `deploykit` loads nothing heavy: each name is imported on first use, and only exports need PyTorch."
        " Errors are [subclasses of `deploykit.DeployError`](../errors/index.md).",
    ]
    for place, (title, names) in pages.items():
        rows = [f"| [`{name.rpartition('.')[2]}`](python/{place}.md) | {_summary(name)} |" for name in names]
        index.append("\n".join([f"## {title}", "", "| | |", "|---|---|", *rows]))
    index.append(f"```{{toctree}}\n:hidden:\n\n{entries}\n```")
    found = {"reference/python.md": "\n\n".join(index) + "\n"}
    for place, (title, names) in pages.items():
        blocks = "\n\n".join(_block(name) for name in names)
        found[f"reference/python/{place}.md"] = f"# {title}\n\n{blocks}\n"
    return found


def _found(name: str) -> object:
    if "." not in name:
        return getattr(deploykit, name)
    module, _, last = name.rpartition(".")
    return getattr(__import__(module, fromlist=[last]), last)


def _summary(name: str) -> str:
    first = " ".join(str(inspect.getdoc(_found(name))).split("\n\n")[0].split())
    return first.replace("``", "`").replace("|", "\\|").replace(":class:", "").replace(":mod:", "").replace("<", "\\<")


def _block(name: str) -> str:
    path = name if "." in name else f"deploykit.{name}"
    found = _found(name)
    lines = [f".. autoclass:: {path}", "   :members:"] if inspect.isclass(found) else [f".. autofunction:: {path}"]
    short = name.rpartition(".")[2]
    return "\n".join([f"## {short}", "", "```{eval-rst}", *lines, "```"])
