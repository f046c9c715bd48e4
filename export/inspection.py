"""Inspection of a checkpoint or an exported model.

Nothing is run, except an ONNX file without a spec, once on noise, where its shapes and metadata leave something open.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploykit.describe import preprocessing
from deploykit.errors import CheckpointError, MissingDependencyError, SpecError, UsageError, import_extra
from deploykit.models.load_options import LoadOptions
from deploykit.runtime.engine_record import read_record
from deploykit.runtime.files import existing_file, is_folder
from deploykit.runtime.foreign.draft import SpecDraft, draft_spec, takes_images
from deploykit.runtime.session import is_checkpoint, open_session
from deploykit.runtime.verified import engine_doubt, onnx_doubt, sha256
from deploykit.spec import ENGINE_SUFFIXES, METADATA_KEY, ModelSpec
from deploykit.strict_json import parse_json

__all__ = ["Inspection", "draft_of_file", "inspect_file"]


@dataclass(frozen=True)
class Inspection:
    """Facts in the order in which they are shown, and notes on anything unusual."""

    facts: dict[str, Any]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able data."""
        return {**self.facts, "notes": list(self.notes)}


def inspect_file(path: str | Path, loading: LoadOptions | None = None) -> Inspection:
    """Inspect a checkpoint (``.pt .pth .pkl .safetensors`` or anything else) or an exported model (``.onnx .trt``).

    ``loading``: how a checkpoint is loaded.

    Raises:
        NotFoundError: there is no such file. CheckpointError, ArtefactError: it is neither.
        UsageError: ``loading`` is given for an exported model.
    """
    if is_folder(Path(path)) and is_checkpoint(path):
        return _checkpoint(Path(path), loading)
    file = existing_file(path, "a checkpoint or an exported model")
    kinds = {".onnx": _artefact, **dict.fromkeys(ENGINE_SUFFIXES, _engine)}
    artefact = kinds.get(file.suffix.lower())
    if artefact is None:
        return _checkpoint(file, loading)
    if loading is not None:
        raise UsageError(f"{file} is no checkpoint: how one is loaded ({loading}) is not asked of it")
    return artefact(file)


def _checkpoint(file: Path, loading: LoadOptions | None) -> Inspection:
    from deploykit.models.checkpoint.reader import read_checkpoint
    from deploykit.models.registry import model_from_checkpoint

    checkpoint = read_checkpoint(file, entry=loading.entry if loading else "")
    precisions: Counter[str] = Counter()
    for tensor in checkpoint.state_dict.values():
        precisions[str(tensor.dtype).removeprefix("torch.")] += tensor.numel()
    facts: dict[str, Any] = {"kind": "checkpoint"}
    notes = checkpoint.notes
    try:
        model = model_from_checkpoint(checkpoint, loading)
        facts |= {"family": model.family, "model": model.name, **_meaning(model.spec)}
        facts |= {"stride": getattr(getattr(model.module, "head", None), "stride", (model.stride,))}
        facts["parameters"] = sum(p.numel() for p in model.module.parameters())
        notes = model.all_notes
    except CheckpointError as e:
        facts |= {"family": "unknown", "classes": checkpoint.names, "stride": checkpoint.stride}
        notes = (*notes, f"deploykit cannot build it: {e}")
    facts |= {
        "file": str(file),
        "bytes": checkpoint.size,
        "format": checkpoint.format,
        "weights from": checkpoint.entry or "the top level",
        "weights in": [str(entry) for entry in checkpoint.entries],
        "tensors": len(checkpoint.state_dict),
        "values": sum(precisions.values()),
        "precision": dict(precisions.most_common()),
        "pickled modules": len(checkpoint.modules),
        "sha256": checkpoint.sha256,
        "entries": dict(checkpoint.metadata),
    }
    return Inspection(facts, notes)


def _artefact(file: Path) -> Inspection:
    with open_session(file, provider="cpu") as session:  # explains what is wrong with a file that is not ONNX
        inputs, outputs = session.inputs, session.outputs
        text = session.metadata.get(METADATA_KEY)
        draft = draft_spec(session, str(file)) if text is None and takes_images(session) else None
    notes: tuple[str, ...] = ()
    facts: dict[str, Any] = {"kind": "ONNX model"}
    if text is None:
        described, notes = _foreign(draft, str(file))
        facts |= described
    else:
        try:
            spec = ModelSpec.from_json(text)
            facts |= {"model": spec.source.model, **_meaning(spec), "dynamic": spec.input.dynamic}
            facts |= {"precision": spec.precision, "checkpoint sha256": spec.source.sha256}
            notes = spec.assumption_notes
        except SpecError as e:
            notes = (f"its spec cannot be used: {e}",)
    if doubt := onnx_doubt(file):
        notes = (*notes, doubt)
    facts |= {
        "file": str(file),
        "bytes": file.stat().st_size,
        "sha256": sha256(file),
        "inputs": [f"{t.name} {t}" for t in inputs],
        "outputs": [f"{t.name} {t}" for t in outputs],
    }
    try:
        facts |= _graph(file)
    except MissingDependencyError as e:  # the runtime is installed without onnx, which only the graph needs
        notes = (*notes, f"opset, nodes and operators are not shown: {e}")
    return Inspection(facts, notes)


def draft_of_file(path: str | Path) -> SpecDraft:
    """Draft a spec for an ONNX file that carries none, or return its own.

    Raises:
        NotFoundError, ArtefactError, BackendError: there is no such file, or it cannot be run. SpecError: it takes no
            images.
    """
    file = existing_file(path, "an exported model")
    with open_session(file, provider="cpu") as session:
        text = session.metadata.get(METADATA_KEY)
        return draft_spec(session, str(file)) if text is None else SpecDraft(parse_json(text))


def _foreign(draft: SpecDraft | None, name: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The facts and notes of a file by others, as far as it tells."""
    if draft is None:
        return {}, ("it carries no deploykit spec, and it does not take images: predict cannot run it",)
    try:
        spec = draft.spec(name)
    except SpecError as e:
        return {}, (*draft.notes, str(e))
    note = "it carries no deploykit spec; this is what its metadata, its shapes and a run on noise tell"
    return _meaning(spec), (note, *draft.notes, *spec.assumption_notes)


def _graph(file: Path) -> dict[str, Any]:
    """The facts that need the package onnx."""
    model = import_extra("onnx", "export").load(str(file), load_external_data=False)
    return {
        "opset": {_text(entry.domain) or "ai.onnx": entry.version for entry in model.opset_import},
        "nodes": len(model.graph.node),
        "operators": dict(Counter(_text(node.op_type) for node in model.graph.node).most_common()),
        "stored tensors": len(model.graph.initializer),
        **_stored(model.graph),
        "made by": f"{_text(model.producer_name)} {_text(model.producer_version)}".strip(),
    }


def _stored(graph: Any, count: int = 5) -> dict[str, Any]:
    """Bytes of the weights and constants of a graph by element type, and the ``count`` largest."""
    import onnx

    tensors = {tensor.name: tensor for tensor in graph.initializer}
    tensors |= {
        node.output[0]: attribute.t
        for node in graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.type == onnx.AttributeProto.TENSOR
    }
    total: Counter[str] = Counter()
    shown = []
    for name, tensor in tensors.items():
        kind = _element_type(onnx.TensorProto.DataType.Name(tensor.data_type))
        bits = (
            8 if kind == "bool" else int((re.search(r"\d+", kind) or ["0"])[0])
        )  # strings: no shape tells their bytes
        size = math.prod(tensor.dims) * bits // 8
        total[kind] += size
        shown.append((size, f"{_text(name)} {kind} {'x'.join(map(str, tensor.dims)) or 'scalar'}: {size:,} bytes"))
    shown.sort(key=lambda entry: -entry[0])
    return {"stored bytes": dict(total.most_common()), "largest": [text for _, text in shown[:count]]}


def _text(found: str | bytes) -> str:
    """Return a text of a message; protobuf gives bytes for what is not UTF-8."""
    return found if isinstance(found, str) else found.decode("utf-8", "replace")


def _element_type(name: str) -> str:
    """Return the usual name of ONNX's element type."""
    return {"FLOAT": "float32", "DOUBLE": "float64"}.get(name, name.lower())


def _engine(file: Path) -> Inspection:
    """The facts in the record beside an engine; the engine itself can only be read on a GPU that runs it."""
    record = read_record(file)
    facts: dict[str, Any] = {"kind": "TensorRT engine", "file": str(file), "bytes": file.stat().st_size}
    if record is None:
        return Inspection(facts, (f"there is no record ({file.name}.json) beside it, which describes the engine",))
    spec = record.spec
    notes = spec.assumption_notes
    if not record.verified:
        notes = (*notes, f"its numbers are not verified yet: {record.unverified}")
    if record.size != facts["bytes"]:
        notes = (*notes, f"its record describes an engine of {record.size:,} bytes: this is another one, or damaged")
    elif doubt := engine_doubt(file, record):
        notes = (*notes, doubt)
    facts |= {
        "flavour": record.flavour,
        "version": record.version,
        "model": spec.source.model,
        **_meaning(spec),
        "input shapes": [str(profile) for profile in record.profiles] or [f"{spec.input.batch} x {spec.input.size}"],
        "built on": record.gpu or "a machine without a GPU",
        "built from": record.onnx,
        "onnx sha256": record.onnx_sha256,
        "layers": record.layers,
        "compute layers": record.precision,
        "options": dataclasses.asdict(record.options),
        "verified": record.verified,
        "checkpoint sha256": spec.source.sha256,
    }
    return Inspection(facts, notes)


def _meaning(spec: ModelSpec) -> dict[str, Any]:
    facts: dict[str, Any] = {"task": spec.task, "size": spec.input.size, "classes": list(spec.classes)}
    if spec.keypoints:
        facts["keypoints"] = list(spec.keypoints.names)
    facts |= spec.output.facts(spec)
    return facts | {"preprocessing": preprocessing(spec), "output": spec.output.describe(spec)}
