"""ONNX Runtime: the backend of ``.onnx`` files, on the CPU or a GPU."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from deploykit.errors import ArtefactError, BackendError, UsageError, require
from deploykit.runtime.arrays import Array
from deploykit.runtime.native.library import find_library, library_folder
from deploykit.runtime.session import Session, TensorInfo, check_inputs

__all__ = ["Optimization", "OrtSession", "open_session"]

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
SHORT_NAMES = {"cpu": CPU, "cuda": CUDA}
NEEDS_OURS = re.compile(
    r"deploykit:(NmsKpt|DecodeRows)\("
)  # in what ONNX Runtime says of an operator that it does not know
SILENT = 4  # ONNX Runtime's log severity: what it would log as an error, it also raises

Optimization = Literal["all", "extended", "none"]
LEVELS: dict[Optimization, str] = {
    "all": "ORT_ENABLE_ALL",
    "extended": "ORT_ENABLE_EXTENDED",
    "none": "ORT_DISABLE_ALL",
}

# ONNX Runtime's names of element types that numpy calls otherwise.
NUMPY_NAMES = {"float": "float32", "double": "float64", "string": "object"}


def open_session(
    path: Path,
    *,
    provider: str = "auto",
    threads: int | None = None,
    overrides: Mapping[str, Array] | None = None,
    optimization: Optimization = "all",
) -> OrtSession:
    """Load an ONNX file.

    Args:
        path: an existing ``.onnx`` file.
        provider: ``auto``, ``cpu``, ``cuda`` or ONNX Runtime's own name of a provider.
        threads: threads within one operator; None: ONNX Runtime's choice (one a core).
        overrides: other values for stored tensors, by name; of the same type and shape.
        optimization: what ONNX Runtime may make of the graph; less than ``all`` computes the same by other kernels, in
            other layouts and orders of summation, which is how far its rounding is measured.

    Raises:
        ArtefactError: not ONNX, damaged, or without its external data.
        BackendError: the graph needs what this ONNX Runtime lacks, or ``provider`` is not in effect.
        UsageError: there is no provider of that name.
        MissingDependencyError: onnxruntime is not installed.
    """
    ort: Any = require("onnxruntime", "cpu")
    wanted = _wanted(provider, ort.get_available_providers())
    options = ort.SessionOptions()
    options.log_severity_level = SILENT
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, LEVELS[optimization])
    if threads is not None:
        options.intra_op_num_threads = threads
    kept = {name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in (overrides or {}).items()}
    for name, value in kept.items():
        options.add_initializer(name, value)
    try:
        session = _loaded(ort, path, options, wanted)
    except Exception as e:  # ONNX Runtime's exceptions have no base class of their own
        if not NEEDS_OURS.search(str(e)):
            raise _refusal(path, e) from e
        _register_ours(path, options)
        try:
            session = _loaded(ort, path, options, wanted)
        except Exception as second:
            raise _refusal(path, second) from second
    opened = OrtSession(path, session, wanted[0], asked=provider != "auto")
    opened.threads = threads
    opened.overrides = kept  # ONNX Runtime does not keep them alive
    return opened


def _loaded(ort: Any, path: Path, options: Any, providers: list[str]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a provider that does not load: open_session says it, as an error
        return ort.InferenceSession(str(path), options, providers=providers)


def _register_ours(path: Path, options: Any) -> None:
    """Give a session the operators of this project: a file that needs none is spared the library."""
    library = find_library("onnxruntime")
    if library is None:
        raise BackendError(
            f"{path} needs the operators of deploykit (NmsKpt, DecodeRows), whose library is not built (looked for in "
            f"{library_folder()}): deploykit plugins build --onnxruntime FOLDER, or export without --nms plugin"
        )
    try:
        options.register_custom_ops_library(str(library))
    except Exception as e:  # ONNX Runtime's exceptions have no base class of their own
        reason = _reason(" ".join(str(e).split()))
        raise BackendError(f"ONNX Runtime does not take {library} ({reason}): deploykit plugins build") from e


def _wanted(provider: str, available: list[str]) -> list[str]:
    """The provider list for ONNX Runtime, the one that must be in effect first."""
    if provider == "auto":
        return [CUDA, CPU] if CUDA in available else [CPU]
    name = SHORT_NAMES.get(provider, provider)
    if not name.endswith("ExecutionProvider"):
        raise UsageError(f"provider must be auto, cpu, cuda or one of {', '.join(available)}; got {provider!r}")
    if name not in available:
        hint = ": pip install 'deploykit[gpu]' in place of 'deploykit[cpu]'" if name == CUDA else ""
        raise BackendError(f"this ONNX Runtime has no {name}, it has {', '.join(available)}{hint}")
    return [name] if name == CPU else [name, CPU]


def _refusal(path: Path, error: Exception) -> ArtefactError | BackendError:
    """The sentence for a file that ONNX Runtime did not load."""
    text = " ".join(str(error).split())
    size = path.stat().st_size
    if size == 0 or "Protobuf parsing failed" in text or "No graph was found" in text:
        return ArtefactError(f"{path} is not a whole ONNX file ({size} bytes): export it again, or copy it again")
    quoted = (Path(name) for name in re.findall(r'["\[]([^"\[\]]+\.[^"\[\]]+)["\]]', text))
    if missing := next((p for p in quoted if p.parent == path.parent and not p.exists()), None):
        return ArtefactError(
            f"{path} keeps its weights in {missing.name}, which is not beside it: move the two together"
        )
    if "External initializer" in text:
        return ArtefactError(f"the external weights of {path} are cut off: copy its .data file again ({_reason(text)})")
    if unknown := re.search(r"([\w.:]+)\(-?\d+\) is not a registered function/op", text):
        return BackendError(f"{path} needs the operator {unknown[1]}, which this ONNX Runtime does not have")
    hint = ""
    if "NOT_IMPLEMENTED" in text or "Could not find an implementation" in text or "float8" in text:
        hint = "; bf16 and fp8 are for a GPU, or to be looked at with backend torch (deploykit eval --backend torch)"
    return BackendError(f"ONNX Runtime does not load {path}: {_reason(text)}{hint}")


def _reason(text: str) -> str:
    """ONNX Runtime's message without its ``[ONNXRuntimeError] : 1 : FAIL :`` and source positions."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    return re.sub(r"(?<=[ .])\S+\.(?:cc|h):\d+ \S+ ", " ", text)


class OrtSession(Session):
    """A network in ONNX Runtime; made by :func:`open_session`. ``run`` may be called from several threads."""

    overrides: Mapping[str, Any] = {}

    def __init__(self, path: Path, session: Any, wanted: str, *, asked: bool) -> None:
        self._path = path
        self._session = session
        self.inputs = tuple(map(_info, session.get_inputs()))
        self.outputs = tuple(map(_info, session.get_outputs()))
        self.metadata = dict(session.get_modelmeta().custom_metadata_map)
        self.providers = tuple(session.get_providers())
        if wanted not in self.providers:  # ONNX Runtime falls back to the CPU without an error
            found = f"{wanted} did not load on this machine, {', '.join(self.providers)} is in effect"
            if asked:
                raise BackendError(f"{found}: check the GPU's driver and CUDA libraries, or take provider 'cpu'")
            self.notes = (found,)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See :meth:`deploykit.runtime.session.Session.run`."""
        if self._session is None:
            raise BackendError(f"the session of {self._path} is closed")
        check_inputs(self.inputs, inputs)
        feed = {name: np.ascontiguousarray(value) for name, value in inputs.items()}
        try:
            outputs = self._session.run(None, feed)
        except Exception as e:  # ONNX Runtime's exceptions have no base class of their own
            reason = _reason(" ".join(str(e).split()))
            raise BackendError(f"ONNX Runtime failed while it ran {self._path}: {reason}") from e
        return {info.name: value for info, value in zip(self.outputs, outputs, strict=True)}

    def close(self) -> None:
        """Drop the network; ONNX Runtime frees it with its last reference."""
        self._session = None


def _info(tensor: Any) -> TensorInfo:
    kind = re.fullmatch(r"tensor\((\w+)\)", tensor.type)
    name = kind[1] if kind else tensor.type  # sequences and maps keep ONNX Runtime's words
    shape = tuple(side if isinstance(side, int) and side >= 0 else None for side in tensor.shape)
    return TensorInfo(tensor.name, shape, NUMPY_NAMES.get(name, name))
