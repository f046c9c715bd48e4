"""The preflight of one ONNX file: rules for all runtimes, and trials with those that are installed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from deploykit.errors import SpecError, UsageError, import_extra
from deploykit.export.preflight.graph import Graph, read_graph
from deploykit.export.preflight.operators import SOURCE
from deploykit.export.preflight.report import TARGETS, TENSORRT, Finding, PreflightReport, Target, Verdict
from deploykit.export.preflight.rules import findings_of
from deploykit.export.preflight.trial import built_here, loaded_here
from deploykit.progress import SILENT, Progress
from deploykit.runtime.cuda import gpu_unavailable_reason
from deploykit.runtime.engine_record import FLAVOURS
from deploykit.runtime.files import existing_file
from deploykit.spec import METADATA_KEY, ModelSpec

__all__ = ["preflight"]

SECONDS = 300.0


def preflight(
    onnx: str | Path,
    *,
    targets: Sequence[Target] = TARGETS,
    seconds: float = SECONDS,
    progress: Progress = SILENT,
) -> PreflightReport:
    """Tell which runtimes take an ONNX file, which nodes stop them, and what to do.

    ONNX Runtime loads the file, and TensorRT for RTX builds it, where they are installed; so does TensorRT on a machine
    with a GPU. Otherwise the verdict is that of NVIDIA's list of operators and of what is known besides
    (:mod:`deploykit.export.preflight.operators`): what it refuses is refused, what it does not mention may work.

    Args:
        onnx: the file.
        targets: the runtimes that are asked for.
        seconds: the time limit of one build, which runs in a process of its own.
        progress: hears what is tried.

    Raises:
        NotFoundError, ArtefactError: there is no such file, or it is not ONNX.
        UsageError: there is no such runtime, or the time limit is not over 0.
    """
    if unknown := [target for target in targets if target not in TARGETS]:
        raise UsageError(f"a runtime must be one of {', '.join(TARGETS)}, got {unknown[0]!r}")
    if not targets or not seconds > 0:
        raise UsageError(f"a preflight needs a runtime and a time limit over 0, got {list(targets)} and {seconds:g}")
    import_extra("onnx", "export")
    progress.step("reading")
    graph = read_graph(existing_file(onnx, "an ONNX file"))
    found = (*findings_of(graph), *_two_stages(graph))
    broken = any(f.level == "refused" and set(f.targets) == set(TARGETS) for f in found)  # nothing is left to try
    verdicts: list[Verdict] = []
    tried: list[Finding] = []
    for target in (target for target in reversed(TARGETS) if target in targets):  # what RTX takes is told of the others
        flavour = None if broken else _buildable(target)
        if target == "onnxruntime" and not broken:
            progress.step("loading it in ONNX Runtime")
            verdict, more = loaded_here(graph)
        elif flavour:
            progress.step(f"building it with {flavour}")
            verdict, more = built_here(target, flavour, graph, found, seconds)
            if verdict.says == "not tried":
                verdict = Verdict(target, _by_rules(target, found).says, SOURCE, f"not built: {verdict.why}")
        else:
            verdict, more = _by_rules(target, found), ()
        verdicts.insert(0, verdict)
        tried.extend(more)
        if verdict.says == "built here" and target == "tensorrt-rtx":
            found = tuple(map(_less_doubtful, found))
    return PreflightReport(
        file=str(onnx),
        opset=graph.opset,
        ir_version=graph.model.ir_version,
        nodes=len(graph.nodes),
        verdicts=tuple(verdicts),
        findings=_merged(tried, found, verdicts, targets),
    )


def _buildable(target: Target) -> str | None:
    """Return the flavour with which this machine can build for a runtime; None: it cannot."""
    if target == "tensorrt-rtx":
        return target if find_spec(FLAVOURS[target]) else None
    if target == "onnxruntime" or find_spec("tensorrt") is None or gpu_unavailable_reason():
        return None
    major = str(import_extra("tensorrt", "tensorrt").__version__).split(".", maxsplit=1)[0]
    return "tensorrt" if target == f"tensorrt-{major}" else None


def _by_rules(target: Target, findings: Sequence[Finding]) -> Verdict:
    about = [finding for finding in findings if target in finding.targets]
    by = SOURCE if target in TENSORRT else "the file"
    says = {"refused": "refused", "unknown": "unknown operator", "doubt": "in doubt (table)"}
    for level, word in says.items():
        first = next((finding for finding in about if finding.level == level), None)
        if first is not None:
            return Verdict(target, word, by, f"{first.where}: {first.why}")
    return Verdict(target, "expected (table)", by)


def _less_doubtful(finding: Finding) -> Finding:
    """What no list mentions is no doubt any more if TensorRT for RTX, which shares the parser, has built it."""
    if finding.level != "doubt" or not finding.op or "tensorrt-rtx" not in finding.targets:
        return finding
    return replace(finding, level="note", why=f"{finding.why}; TensorRT for RTX, which shares the parser, took it")


def _merged(
    tried: Sequence[Finding], found: Sequence[Finding], verdicts: Sequence[Verdict], targets: Sequence[Target]
) -> tuple[Finding, ...]:
    """Return the findings for the runtimes that were asked for; what a trial answered is not in doubt any more.

    A trial that names a node replaces what the rules say of that node for its runtime.
    """
    taken = {verdict.target for verdict in verdicts if verdict.says in ("loaded here", "built here")}
    same = {(f.node, f.op, target) for f in tried if f.op for target in f.targets}
    kept = []
    for finding in found:
        asked = tuple(
            target
            for target in finding.targets
            if target in targets
            and (finding.node, finding.op, target) not in same
            and not (target in taken and finding.level != "note")
        )
        if asked:
            kept.append(replace(finding, targets=asked))
    return (*tried, *kept)


def _two_stages(graph: Graph) -> tuple[Finding, ...]:
    """Notes on a detector in two stages, of which TensorRT for RTX computes only the first part."""
    text = next((entry.value for entry in graph.model.metadata_props if entry.key == METADATA_KEY), None)
    try:
        spec = ModelSpec.from_json(text) if text is not None else None
    except SpecError:
        spec = None
    if spec is None or not spec.output.two_stages:
        return ()
    why = "deploykit export builds an engine of its first part, and the rest runs in ONNX Runtime; this is of the whole"
    whole = "it becomes one engine, with RoiAlign as a plugin of TensorRT's own library and NMS as a layer"
    return (
        Finding("note", ("tensorrt-rtx",), why, "deploykit export FILE --format tensorrt-rtx"),
        Finding("note", ("tensorrt-10", "tensorrt-11"), whole, "deploykit export FILE --format tensorrt, on a GPU"),
    )
