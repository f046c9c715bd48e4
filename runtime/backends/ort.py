"""ONNX Runtime: the backend of ``.onnx`` files, on the CPU or a GPU."""

from __future__ import annotations

import contextlib
import logging
import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from deploykit.errors import (
    ArtefactError,
    BackendError,
    DeployError,
    OutOfMemoryError,
    UsageError,
    import_extra,
    installing,
)
from deploykit.runtime.arrays import Array
from deploykit.runtime.backends.forks import never_free, tell_forks
from deploykit.runtime.backends.memory_limit import MEMORY_LIMIT, is_over_limit, memory_limit, run_within_limit
from deploykit.runtime.backends.onnx_weights import has_free_sides
from deploykit.runtime.backends.ort_cpu import give_back, low_memory, open_on_cpu, set_for_cpu
from deploykit.runtime.backends.ort_cuda import CPU, CUDA, DeviceRuns, open_on_gpu
from deploykit.runtime.backends.ort_providers import (
    CudaOptions,
    own_providers,
    plugin_for,
    reason_of,
    tensor_info,
    without_telemetry,
)
from deploykit.runtime.backends.ort_webgpu import NEEDS, NO_ADAPTER, WEBGPU, layout_for, turn_of
from deploykit.runtime.backends.run_limit import RunLimit
from deploykit.runtime.compute import default_threads
from deploykit.runtime.native.library import check_undamaged, find_library, library_folder
from deploykit.runtime.session import Session, check_inputs
from deploykit.runtime.verified import size_doubt

__all__ = ["Optimization", "OrtSession", "open_session"]

LOG = logging.getLogger(__name__)

INSTALL = {
    CUDA: "",
    "TensorrtExecutionProvider": "",
    "OpenVINOExecutionProvider": "pip install onnxruntime-openvino in place of onnxruntime",
    "DmlExecutionProvider": "pip install onnxruntime-directml in place of onnxruntime, on Windows",
    "QNNExecutionProvider": "pip install onnxruntime-qnn in place of onnxruntime",
    "MIGraphXExecutionProvider": "pip install onnxruntime-migraphx in place of onnxruntime, on Linux with an AMD GPU",
    "CoreMLExecutionProvider": "it is part of onnxruntime on macOS only",
    WEBGPU: f"{installing('webgpu')} beside it",
}
"""Provider -> how to get an ONNX Runtime that has it; empty: by the extra gpu."""
OWN_OPERATOR = re.compile(r"deploykit:(NmsKpt|DecodeRows)\(")  # in ONNX Runtime's message about an unknown operator
SILENT = 4  # log severity of ONNX Runtime; it raises its errors as well

SUFFIX = "ExecutionProvider"
Providers = list[str | tuple[str, dict[str, str]]]

Optimization = Literal["all", "pairs", "extended", "none"]
LEVELS: dict[Optimization, str] = {
    "all": "ORT_ENABLE_ALL",
    "pairs": "ORT_ENABLE_ALL",
    "extended": "ORT_ENABLE_EXTENDED",
    "none": "ORT_DISABLE_ALL",
}


def open_session(
    path: Path,
    *,
    provider: str = "auto",
    threads: int | None = None,
    overrides: Mapping[str, Array] | None = None,
    optimization: Optimization = "all",
    profile: Path | None = None,
) -> OrtSession:
    """Load an ONNX file.

    Args:
        path: an existing ``.onnx`` file.
        provider: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ONNX Runtime's name of a provider, with or without
            ``ExecutionProvider``.
        threads: threads within one operator; None: :func:`deploykit.runtime.compute.default_threads`, else ONNX
            Runtime's choice (one per core of the machine, whatever this process may use of it).
        overrides: values that replace stored tensors, by name; of the same type and shape.
        optimization: ONNX Runtime's level of graph optimization. A level below ``all`` computes the same with other
            kernels, layouts and orders of summation, which is how its rounding is measured. ``pairs`` is ``all``, but
            for layers between pairs of QuantizeLinear and DequantizeLinear, which it leaves in floating point.
        profile: the beginning of the path of a file in which ONNX Runtime keeps the time of every operator, see
            :meth:`OrtSession.end_profiling`; None: it keeps none.

    Raises:
        ArtefactError: the file is not ONNX, is damaged, or lacks its external data.
        BackendError: the graph needs something that this ONNX Runtime lacks, or ``provider`` is not in effect.
        UsageError: no provider has this name.
        MissingDependencyError: onnxruntime is not installed.
    """
    ort: Any = import_extra("onnxruntime", "cpu")
    without_telemetry(ort)
    plugin = plugin_for(ort, provider)
    providers = [] if plugin else _provider_list(provider, own_providers(ort), ort.get_all_providers())
    settings = CudaOptions.from_environment()
    options = ort.SessionOptions()
    options.log_severity_level = SILENT
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, LEVELS[optimization])
    count, reason = (threads, "as asked for") if threads is not None else default_threads()
    if count is not None:
        options.intra_op_num_threads = count
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    replacements = {name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in (overrides or {}).items()}
    for name, value in replacements.items():
        options.add_initializer(name, value)
    layout_note = ""
    if plugin:
        layout, layout_note = layout_for(plugin[0], path)
        options.add_provider_for_devices(plugin[1], plugin[2] | layout)
    elif providers == [CPU]:
        set_for_cpu(ort, options)
    if optimization == "pairs":
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    whole = bool(replacements) or optimization in (
        "extended",
        "none",
    )  # ONNX Runtime then uses stored tensors as they are
    first = plugin[0] if plugin else providers[0] if isinstance(providers[0], str) else providers[0][0]
    with turn_of(first):
        try:
            session, runs, notes = _loaded(ort, path, options, providers, settings, whole)
        except Exception as e:  # ONNX Runtime's exceptions share no base class
            if not OWN_OPERATOR.search(str(e)):
                raise _load_error(path, e) from e
            _register_own_operators(path, options)
            try:
                session, runs, notes = _loaded(ort, path, options, providers, settings, whole)
            except Exception as second:
                raise _load_error(path, second) from second
    opened = OrtSession(path, session, first, requested=provider != "auto", runs=runs)
    doubt = size_doubt(path)
    opened.notes = (*opened.notes, *notes, *filter(None, (layout_note, doubt)))
    opened.threads, opened.threads_from = count, reason
    opened.overrides = replacements  # ONNX Runtime does not keep them alive
    return opened


def _loaded(
    ort: Any, path: Path, options: Any, providers: Providers, settings: CudaOptions, whole: bool
) -> tuple[Any, DeviceRuns | None, list[str]]:
    """Return ONNX Runtime's session, its runs on a GPU with buffers there, and notes; without providers, a plugin's."""

    def load(providers: Providers, fall_back: bool, model: str | bytes = str(path)) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # OrtSession reports a provider that did not load
            # Its second attempt without a GPU prints a banner to stdout; without a GPU there is nothing else to try.
            return ort.InferenceSession(model, options, providers=providers or None, enable_fallback=int(fall_back))

    if providers == [CPU]:
        return open_on_cpu(lambda model: load(providers, False, model), path, options, whole=whole), None, []

    if providers and providers[0] != CPU:
        name, given = (providers[0], {}) if isinstance(providers[0], str) else providers[0]
        if name == CUDA:
            if settings.graph and has_free_sides(path):  # which would be loaded twice to find out
                settings = replace(settings, graph=False)
            return open_on_gpu(ort, load, int(given.get("device_id", 0)), settings)
    return load(providers, bool(providers)), None, []


def _register_own_operators(path: Path, options: Any) -> None:
    """Register deploykit's operators with a session; the library is not loaded for files that need none."""
    library = find_library("onnxruntime")
    if library is None:
        raise BackendError(
            f"{path} needs deploykit's operators (NmsKpt, DecodeRows), but {library_folder()} has no library of them: "
            "run deploykit plugins build --onnxruntime FOLDER, or export without --nms plugin"
        )
    check_undamaged(library)
    try:
        options.register_custom_ops_library(str(library))
    except Exception as e:  # ONNX Runtime's exceptions share no base class
        reason = reason_of(" ".join(str(e).split()))
        raise BackendError(f"ONNX Runtime cannot load {library} ({reason}): run deploykit plugins build") from e


def _provider_list(provider: str, available: list[str], known: list[str]) -> Providers:
    """Return the provider list for ONNX Runtime, without CPU's duplicates; the first one must be in effect."""
    if provider == "auto":
        return [CUDA, CPU] if CUDA in available else [CPU]
    kind, _, number = provider.partition(":")
    short = {name.removesuffix(SUFFIX).lower(): name for name in (*known, *available)}
    short["directml"] = "DmlExecutionProvider"
    name = short.get(kind.removesuffix(SUFFIX).lower())
    if name is None:
        raise UsageError(
            f"the device of an ONNX file must be auto, cpu, cuda, cuda:N or a provider of ONNX Runtime; this one has "
            f"{', '.join(available)}; got {provider!r}"
        )
    if name not in available:
        how = INSTALL.get(name, "nothing installs it") or f"{installing('gpu')} instead of the extra cpu"
        raise BackendError(f"this ONNX Runtime has no {name}, only {', '.join(available)}: {how}")
    if name == CPU:
        return [CPU]
    return [(name, {"device_id": number}) if number else name, CPU]


def _load_error(path: Path, error: Exception) -> ArtefactError | BackendError:
    """Return the error for a file that ONNX Runtime did not load."""
    text = " ".join(str(error).split())
    if str(path).encode(errors="replace").decode() != str(path):
        return ArtefactError(f"ONNX Runtime opens only paths that are UTF-8, but {path} is not: rename it")
    size = path.stat().st_size
    if size == 0 or "Protobuf parsing failed" in text or "No graph was found" in text:
        return ArtefactError(f"{path} is not a complete ONNX file ({size} bytes): export it again, or copy it again")
    quoted = (Path(name) for name in re.findall(r'["\[]([^"\[\]]+\.[^"\[\]]+)["\]]', text))
    if missing := next((p for p in quoted if p.parent == path.parent and not p.exists()), None):
        return ArtefactError(
            f"{path} keeps its weights in {missing.name}, which is not beside it: put both into one folder"
        )
    if "External initializer" in text:
        return ArtefactError(
            f"the external weights of {path} are truncated: copy its .data file again ({reason_of(text)})"
        )
    if NO_ADAPTER in text:
        return BackendError(f"WebGPU finds no driver that it can use for the GPU of this machine: it needs {NEEDS}")
    if unknown := re.search(r"([\w.:]+)\(-?\d+\) is not a registered function/op", text):
        return BackendError(f"{path} needs the operator {unknown[1]}, which this ONNX Runtime does not have")
    hint = ""
    if "NOT_IMPLEMENTED" in text or "Could not find an implementation" in text or "float8" in text:
        hint = "; bf16 and fp8 need a GPU; to evaluate the file without one, use deploykit eval --backend torch"
        if newer := re.search(r"implementation for (\w+)\((\d+)\)", text):
            hint += f". If its {newer[1]} is float32, export with an --opset below {newer[2]}"
    return BackendError(f"ONNX Runtime cannot load {path}: {reason_of(text)}{hint}")


class OrtSession(Session):
    """A network in ONNX Runtime, made by :func:`open_session`; several threads may call ``run``.

    ``runs`` are its runs on an NVIDIA GPU, for work that is put before and after the network there; None: elsewhere.
    """

    overrides: Mapping[str, Any] = {}

    def __init__(
        self, path: Path, session: Any, provider: str, *, requested: bool, runs: DeviceRuns | None = None
    ) -> None:
        self._path = path
        self._session, self.runs = session, runs
        self._limit, self._forked = RunLimit(), False
        self._turn = turn_of(provider)
        tell_forks(self)
        self._run_options: Any = import_extra("onnxruntime", "cpu").RunOptions
        self._lean, self._bounded = low_memory(), memory_limit() is not None
        try:
            self.inputs = tuple(map(tensor_info, session.get_inputs()))
            self.outputs = tuple(map(tensor_info, session.get_outputs()))
            self.metadata = dict(session.get_modelmeta().custom_metadata_map)
        except UnicodeDecodeError as e:
            raise ArtefactError(
                f"{path} is damaged: its metadata or its tensors' names are not text ({e}): copy it again, export it "
                "again"
            ) from e
        self.providers = tuple(session.get_providers())
        self.concurrent = runs is not None or self.providers == (CPU,)
        if provider not in self.providers:  # ONNX Runtime falls back to the CPU without an error
            problem = f"{provider} did not load on this machine; {', '.join(self.providers)} is in effect"
            if requested:
                raise BackendError(f"{problem}: check the GPU's driver and CUDA libraries, or use the device cpu")
            self.notes = (problem,)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See :meth:`deploykit.runtime.session.Session.run`."""
        with self._turn:
            return self._run(inputs)

    def _run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        session = self._session  # which lives until this run is done, if another thread closes it meanwhile
        if session is None:
            raise BackendError(f"the session of {self._path} is closed")
        if self._forked:
            self._check_forked()
        check_inputs(self.inputs, inputs)
        feed = {name: np.ascontiguousarray(value) for name, value in inputs.items()}
        options, limit, watched = self._run_options(), self._limit, None
        try:
            with limit.watch(options) as watched:
                if self.runs:
                    outputs = self.runs.run(feed, options)
                elif self._bounded:
                    outputs = run_within_limit(partial(session.run, None, feed), options, lean=self._lean)
                else:
                    outputs = session.run(None, feed, options)
        except Exception as e:  # ONNX Runtime's exceptions share no base class
            raise self._run_error(e, limit, watched.ended_by if watched else "") from e
        if self.runs:
            self.stage_ms, self.device_memory = self.runs.stage_ms, self.runs.size
        if self._lean:
            give_back()
        return {info.name: value for info, value in zip(self.outputs, outputs, strict=True)}

    def forked(self) -> None:
        """In a forked process: keep what would wait for threads, or call a GPU, when it is freed."""
        self._forked = True
        if self.runs:
            self.runs.forked = True
        if self._session is not None and (self.threads != 1 or self.providers != (CPU,)):
            never_free(self._session)

    def _check_forked(self) -> None:
        """Tell what a network can do in a process that was forked after it was opened.

        Raises:
            BackendError: it cannot run.
        """
        if self.providers != (CPU,):
            raise BackendError(
                f"{self._path} was opened on {self.providers[0]} before this process was forked, which a GPU does not "
                "survive: open it in this process"
            )
        self._forked = False  # it is told once
        if self.threads != 1:
            LOG.warning(
                "%s was opened before this process was forked, and its threads are not here: it computes with one; "
                "open it in this process",
                self._path,
            )

    def _run_error(self, error: Exception, limit: RunLimit, ended_by: str) -> DeployError:
        """Return the error of a run that failed, or was ended."""
        if is_over_limit(error):
            return OutOfMemoryError(
                f"a run of {self._path} needs more memory than the limit leaves it ({MEMORY_LIMIT}, serve "
                "--memory-limit): take smaller images, a smaller batch or fewer at the same time, or raise it"
            )
        if ended_by == "limit":
            return BackendError(
                f"{self._path} was stopped: one run took longer than the time limit of {limit.seconds:g} s; raise "
                "it (--time-limit), or look for an endless loop in the network"
            )
        if ended_by:
            by = "by a signal" if ended_by == "signal" else "because nobody waits for its result any more"
            return BackendError(f"a run of {self._path} was stopped {by}")
        reason = reason_of(" ".join(str(error).split()))
        return BackendError(f"ONNX Runtime failed while running {self._path}: {reason}")

    def limit_time(self, seconds: float | None) -> None:
        """See :meth:`deploykit.runtime.session.Session.limit_time`."""
        if seconds is not None and not 0 < seconds < math.inf:
            raise UsageError(f"the time limit of a run must be over 0 seconds, got {seconds:g}")
        self._limit, self.time_limit = RunLimit(seconds), seconds

    def end_profiling(self) -> Path:
        """Return the file with the times of operators, whole now, of a session that was opened with ``profile``."""
        return Path(self._session.end_profiling())

    def __del__(self) -> None:
        with contextlib.suppress(Exception), self._turn:  # it may not be whole
            self._session = None

    def close(self) -> None:
        """Drop the network; ONNX Runtime frees it with the last reference."""
        with self._turn:
            if self._session is None:
                return
            self._session = None
        if self.runs:
            self.runs.close()
        give_back()
