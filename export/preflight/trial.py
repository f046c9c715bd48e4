"""Verdicts by trying: ONNX Runtime loads the file here, and TensorRT builds it here where that is possible."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deploykit.errors import ArtefactError, BackendError, MissingDependencyError, import_extra
from deploykit.export.graph.versions import oldest_runtime
from deploykit.export.preflight.graph import Graph
from deploykit.export.preflight.operators import ADVICE
from deploykit.export.preflight.report import Finding, Target, Verdict
from deploykit.runtime.backends import ort
from deploykit.strict_json import JsonError, parse_json

__all__ = ["built_here", "loaded_here", "node_in", "shortened"]


def loaded_here(graph: Graph) -> tuple[Verdict, tuple[Finding, ...]]:
    """Load a file in this machine's ONNX Runtime, on the CPU."""
    target: Target = "onnxruntime"
    try:
        version = _ort_version()
        with ort.open_session(graph.file, provider="cpu"):
            return Verdict(target, "loaded here", version, _oldest(graph)), ()
    except MissingDependencyError as e:
        return Verdict(target, "not tried", "no ONNX Runtime", str(e)), ()
    except (ArtefactError, BackendError) as e:
        op, name = node_in(str(e), graph)
        return Verdict(target, "refused", version, str(e)), (Finding("refused", (target,), str(e), "", name, op),)


def _ort_version() -> str:
    return f"ONNX Runtime {import_extra('onnxruntime', 'cpu').__version__}"


def _oldest(graph: Graph) -> str:
    try:
        oldest = oldest_runtime(graph.opset, graph.model.ir_version)
    except StopIteration:
        return f"opset {graph.opset} and IR version {graph.model.ir_version} are newer than the table of releases"
    return f"by its opset and IR version ONNX Runtime {oldest[0]}.{oldest[1]} and newer load it"


def built_here(
    target: Target, flavour: str, graph: Graph, known: Sequence[Finding], seconds: float
) -> tuple[Verdict, tuple[Finding, ...]]:
    """Build an engine in a process of its own, and throw it away.

    Args:
        target: the runtime.
        flavour: its name as an engine's flavour.
        graph: the file.
        known: what the rules found, for the advice.
        seconds: the time limit.
    """
    told = _run(flavour, graph.file, seconds)
    by = f"TensorRT{' for RTX' if flavour == 'tensorrt-rtx' else ''} {told.get('version', '')}".strip()
    if "built" in told:
        shapes = f" with shapes {told['shapes']}" if "shapes" in told else ""
        return Verdict(target, "built here", by, f"{told['built'] / 1e6:.1f} MB{shapes}"), ()
    if "untried" in told:
        return Verdict(target, "not tried", by, str(told["untried"])), ()
    op, name = node_in(str(told["refused"]), graph)
    why = shortened(str(told["refused"]))
    same = next((f for f in known if f.node == name and f.op == op and f.level == "refused"), None)
    advice = same.do if same else ADVICE.get(op, "")
    finding = Finding("refused", (target,), why, advice, name, op)
    return Verdict(target, "refused", by, f"{finding.where}: {why}" if op else why), (finding,)


def shortened(message: str) -> str:
    """Return TensorRT's message without its source positions."""
    text = re.sub(r"\[\S+::\d+\] ?", "", message)
    text = re.sub(r"\s*\bIn \w+ at \S+:\d+", "", text)
    text = re.sub(r"Assertion \S+ failed\. ", "", text)
    return " ".join(text.split())


def _run(flavour: str, file: Path, seconds: float) -> dict[str, Any]:
    """Return what the process said: a dictionary as :mod:`deploykit.export.preflight.build_here` prints it."""
    command = [sys.executable, "-m", "deploykit.export.preflight.build_here", flavour, str(file)]
    package = str(Path(str(sys.modules["deploykit"].__file__)).resolve().parents[1])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH", "")]))
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
            env={**os.environ, "PYTHONPATH": path},
        )
    except subprocess.TimeoutExpired:
        return {"untried": f"the build took longer than {seconds:g} s: raise the limit with --time-limit"}
    for line in reversed(done.stdout.splitlines()):
        try:
            told = parse_json(line)
        except JsonError:
            continue
        if isinstance(told, dict):
            return told
    last = next((line.strip() for line in reversed(done.stderr.splitlines()) if line.strip()), "it said nothing")
    if done.returncode < 0:
        return {"refused": f"the builder ended its process ({signal.Signals(-done.returncode).name}): {last}"}
    return {"untried": f"the process of the build ended with code {done.returncode}: {last}"}


def node_in(message: str, graph: Graph) -> tuple[str, str]:
    """Return the operator and the name of the node that a message is about, the longest name first; else empty."""
    named = sorted((node for node in graph.nodes if node.name), key=lambda node: -len(node.name))
    found = next((node for node in named if node.name in message), None)
    if found is None:  # only an operator, as in ONNX Runtime's messages
        words = set(re.findall(r"[\w.]+:\w+", message))
        found = next((node for node in graph.nodes if f"{node.domain or 'ai.onnx'}:{node.op_type}" in words), None)
    return (found.op_type, found.name) if found else ("", "")
