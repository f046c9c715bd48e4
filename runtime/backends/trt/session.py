"""TensorRT engines (``.trt``, ``.engine``) on an NVIDIA GPU, for TensorRT and for TensorRT for RTX."""

from __future__ import annotations

import hashlib
import logging
import queue
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from deploykit.errors import ArtefactError, BackendError, DeployError, DeviceError, ParityError, UsageError
from deploykit.runtime.arrays import Array
from deploykit.runtime.backends import ort
from deploykit.runtime.backends.chain import ChainSession
from deploykit.runtime.backends.forks import never_free, tell_forks
from deploykit.runtime.backends.ort_providers import CudaOptions
from deploykit.runtime.backends.trt.bindings import NUMPY_NAMES, BuildLog, dtype_name, installed, load_flavour, logger
from deploykit.runtime.backends.trt.context import KernelCache, TrtContext
from deploykit.runtime.backends.trt.device_runs import TrtRuns
from deploykit.runtime.backends.trt.load_errors import explain_load_failure
from deploykit.runtime.cuda import Gpu, device_index, open_gpu
from deploykit.runtime.engine_record import (
    FLAVOURS,
    EngineRecord,
    Flavour,
    Profile,
    find_onnx_source,
    read_record,
    reference_values_path,
    second_stage_path,
)
from deploykit.runtime.outputs import adapter_of
from deploykit.runtime.parity.expected import ReferenceOutputs, runs
from deploykit.runtime.session import Session, TensorInfo, check_inputs
from deploykit.runtime.verified import sha256
from deploykit.spec import METADATA_KEY

__all__ = ["TrtSession", "open_engine", "open_session"]

LOG = logging.getLogger(__name__)


def open_session(
    path: Path, *, provider: str = "auto", threads: int | None = None, contexts: int | None = None
) -> Session:
    """Load an engine. One that was built without a GPU is compared with its reference values first.

    If the second stage of the network lies beside the engine, the two form one session.

    Args:
        path: an existing ``.trt`` or ``.engine`` file.
        provider: ``auto`` or ``cuda`` for the first GPU, ``cuda:1`` for another one. For an engine without a record,
            ``tensorrt`` or ``tensorrt-rtx`` states its flavour.
        threads: must be None: an engine does not run on CPU threads.
        contexts: how many runs may be on the GPU at the same time; each has its own stream and memory. None: those of
            :class:`deploykit.runtime.backends.ort_providers.CudaOptions`.

    Raises:
        DeviceError: there is no GPU, none with this number, or one that the engine was not built for.
        ArtefactError: the file is not an engine, is damaged, or belongs to another TensorRT version.
        MissingDependencyError: the flavour, or the library for the GPU's memory, is not installed.
        ParityError: the outputs of the engine differ from its reference values.
        UsageError: an option that engines do not have.
    """
    if threads is not None:
        raise UsageError(f"{path} is an engine and runs on a GPU; threads are for the CPU: leave them out")
    options = CudaOptions.from_environment()
    if contexts is not None and contexts < 1:
        raise UsageError(f"contexts must be at least 1, got {contexts}")
    options = replace(options, contexts=contexts or options.contexts)
    if provider == "cpu":
        source = find_onnx_source(path)
        raise UsageError(
            f"{path} is a TensorRT engine, which runs on an NVIDIA GPU only: for the device cpu take its ONNX file"
            + (f", {source}" if source else "")
        )
    record = read_record(path)
    gpu = _gpu(path, 0 if provider in ("auto", *FLAVOURS) else device_index(provider))
    flavour: str = record.flavour if record else provider
    if flavour not in FLAVOURS:
        if len(installed()) != 1:
            raise UsageError(
                f"the flavour of TensorRT is unknown: {path} has no record ({path.name}.json) beside it; keep "
                f"the two in one folder, or pass the device {' or '.join(FLAVOURS)}"
            )
        (flavour,) = installed()
    session = TrtSession(path, gpu, load_flavour(flavour), flavour, record, options=options)
    try:
        if record and not record.verified and reference_values_path(path).exists():
            _verify(path, session, record)
        if second_stage_path(path).exists():
            return ChainSession(session, ort.open_session(second_stage_path(path)))
    except BaseException:
        session.close()
        raise
    return session


def open_engine(path: Path, record: EngineRecord, gpu: Gpu) -> TrtSession:
    """Load an engine with a known record, without comparing it with reference values."""
    return TrtSession(path, gpu, load_flavour(record.flavour), record.flavour, record)


def _gpu(path: Path, index: int) -> Gpu:
    try:
        return open_gpu(index)
    except DeviceError as e:
        source = find_onnx_source(path)
        instead = f"; {source} {_relation(path, source)} and runs here" if source else ""
        raise DeviceError(f"{path} is a TensorRT engine: {e}{instead}") from e


def _relation(engine: Path, source: Path) -> str:
    """What an ONNX file beside an engine is to it: only the record knows the bytes that the engine was built from."""
    with suppress(ArtefactError, OSError):  # a damaged file is no reason to hide that there is no GPU
        if (record := read_record(engine)) and record.onnx_sha256 == sha256(source):
            return "is the same network"
    return "lies beside it"


def _verify(path: Path, session: TrtSession, record: EngineRecord) -> None:
    """Compare the engine with its reference values, then record that it is verified."""
    ending = reference_values_path(path).name.removeprefix(path.name)
    if record.reports.get(ending) not in (None, sha256(reference_values_path(path))):
        raise ArtefactError(
            f"{reference_values_path(path)} is not the file that was written with {path.name}, by the hash in its "
            f"record: copy both again, or build the engine again"
        )
    expected = ReferenceOutputs.load(reference_values_path(path)).restrict_to(session.accepts_shape)
    if record.spec.output.nms_inside and expected.layout.kind != record.spec.output.kind:
        how = f"deploykit compare {reference_values_path(path)} {path}"
        session.notes = (f"the outputs of this engine are not verified yet: run {how}",)
        return
    adapter = adapter_of(record.spec)
    for batch, reference, rows, found in runs(expected, path.name, session, adapter.values):
        for each in adapter.differences((reference, path.name, batch.name), rows, found, expected.limits):
            if not each.ok:
                raise ParityError(
                    f"{path.name} ran for the first time and its outputs differ from the reference values: {each}; "
                    f"deploykit compare {reference_values_path(path)} {path} shows all differences"
                )
    with suppress(DeployError):  # in a read-only folder the engine is compared each time
        replace(record, verified=True, unverified="").write(path)


class TrtSession(Session):
    """A network in TensorRT. Several threads may call ``run``; at most ``contexts`` of them are on the GPU.

    Args:
        path: the engine.
        gpu: the GPU to run on.
        trt: the Python module of the flavour.
        flavour: ``tensorrt`` or ``tensorrt-rtx``.
        record: the record of the engine, if there is one.
        options: ``contexts``: how many execution contexts there may be; each has its own stream and buffers and is
            created when it is needed. ``graph``: whether runs of the same shapes are captured in a CUDA graph.

    Attributes:
        stage_ms: milliseconds on the GPU to copy the inputs in, to compute, and to copy the outputs out, measured by
            events on the stream; those of the last run of any thread.
    """

    def __init__(
        self,
        path: Path,
        gpu: Gpu,
        trt: Any,
        flavour: Flavour | str,
        record: EngineRecord | None,
        *,
        options: CudaOptions | None = None,
    ) -> None:
        self._path, self._gpu, self._trt = path, gpu, trt
        self._log = BuildLog()
        self._options = options or CudaOptions(contexts=1)
        self._closed, self._slots, self.concurrent = False, self._options.contexts, True
        self._runs: TrtRuns | None = None
        self._lock, self._forked = threading.Lock(), False
        self.stage_ms = {}
        tell_forks(self)
        with gpu.current():
            before = gpu.memory()[0]
            self._logger = logger(trt, self._log)
            self._runtime = trt.Runtime(self._logger)
            self._engine = self._deserialized(record)
            names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
            self._input_names = [n for n in names if self._engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
            self._output_names = [n for n in names if n not in self._input_names]
            self.inputs = tuple(map(self._info, self._input_names))
            self.outputs = tuple(map(self._info, self._output_names))
            self.profiles = tuple(map(self._profile, range(self._engine.num_optimization_profiles)))
            self._kernels = KernelCache(trt, self._engine, self._digest, gpu)
            self._contexts: list[TrtContext] = []
            self._idle: queue.LifoQueue[TrtContext | None] = queue.LifoQueue()
            for _ in range(self._slots - 1):
                self._idle.put(None)  # the slot of a context that is created when it is needed
            self._idle.put(self._new_context())
            self._weights = max(0, before - gpu.memory()[0])
        self.metadata = {METADATA_KEY: record.spec.to_json()} if record else {}
        version = f"{'TensorRT' if flavour == 'tensorrt' else 'TensorRT for RTX'} {trt.__version__}"
        self.providers = (f"{version} on {gpu.name} (cuda:{gpu.index}, driver for CUDA {gpu.driver}, {gpu.binding})",)
        self.notes = ()
        if record and not record.verified and not reference_values_path(path).exists():
            self.notes = (
                f"the outputs of this engine are not verified: {record.unverified or 'it was never compared'}",
            )

    def layer_information(self) -> str:
        """Return the engine inspector's description of all layers as JSON text."""
        with self._gpu.current():
            inspector = self._engine.create_engine_inspector()
            return str(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))

    @property
    def device_memory(self) -> int:  # type: ignore[override]  # it grows; other sessions have a constant
        """Bytes of GPU memory taken by loading (weights, activations of one context) and by all buffers since."""
        return self._weights + sum(context.size for context in self._contexts)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See :meth:`deploykit.runtime.session.Session.run`."""
        self._check_open()
        check_inputs(self.inputs, inputs)
        profile = self._profile_for({name: value.shape for name, value in inputs.items()})
        context = self._idle.get()
        try:
            if self._closed:
                raise BackendError(f"the session of {self._path} was closed while a run waited")
            with self._gpu.current():
                context = context or self._new_context()
                outputs, self.stage_ms = context.run(inputs, profile)
                self._note_graph(context)
                return outputs
        finally:
            self._idle.put(context)

    @property
    def runs(self) -> TrtRuns | None:
        """The runs on a stream of their own, for work around the network on the GPU; made when they are asked for.

        None where the engine has several inputs.
        """
        self._check_open()
        with self._lock, self._gpu.current():
            self._check_open()
            if self._runs is None and len(self.inputs) == 1:
                context = self._new_context()
                self._runs = TrtRuns(self._gpu, context, self.inputs, self._profile_for)
                self._note_graph(context)
            return self._runs

    def accepts_shape(self, shape: tuple[int, ...]) -> bool:
        """See :meth:`deploykit.runtime.session.Session.accepts_shape`; the optimisation profiles decide."""
        return super().accepts_shape(shape) and any(p[self._input_names[0]].covers(shape) for p in self.profiles)

    def close(self) -> None:
        """Wait for the runs that are on the GPU, then free everything; in a forked process nothing, which is not its
        own."""
        if self._forked:
            self._closed = True
            return
        with self._lock:
            if self._closed:
                return
            self._closed = True
        slots = [self._idle.get() for _ in range(self._slots)]
        if self._runs is not None:
            self._runs.close()
        with self._gpu.current():
            for context in self._contexts:
                context.close()
            self._kernels.save()
            self._contexts.clear()
            del self._kernels
            self._engine = self._runtime = None
        for _ in slots:  # waiting threads wake up and find the session closed
            self._idle.put(None)

    def __del__(self) -> None:
        if not sys.is_finalizing():  # when CUDA may be gone, and the driver frees what there is
            with suppress(Exception):  # which may not be whole
                self.close()

    def _check_open(self) -> None:
        """Raise BackendError if the session is closed, or was opened by the process that this one was forked from."""
        if self._closed:
            raise BackendError(f"the session of {self._path} is closed")
        if self._forked:
            raise BackendError(
                f"{self._path} was opened on a GPU before this process was forked, which that does not survive: open "
                "it in this process"
            )

    def forked(self) -> None:
        """In a forked process: keep what would call the GPU when it is freed."""
        self._forked = True
        never_free(self)

    def _deserialized(self, record: EngineRecord | None) -> Any:
        data = self._path.read_bytes()
        if not data:
            raise ArtefactError(f"{self._path} is empty (0 bytes): build it again, or copy it again")
        if record and record.size != len(data):
            raise ArtefactError(
                f"{self._path} has {len(data):,} bytes, but its record says {record.size:,}: copy both again"
            )
        self._digest = hashlib.sha256(data).hexdigest()
        if record and record.sha256 not in ("", self._digest):
            raise ArtefactError(
                f"{self._path} has the SHA-256 {self._digest}, but its record says {record.sha256}: copy both again"
            )
        engine = self._runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise explain_load_failure(self._path, data, self._log, record, self._runtime, self._trt, self._gpu)
        return engine

    def _info(self, name: str) -> TensorInfo:
        engine = self._engine
        if engine.get_tensor_format(name) != self._trt.TensorFormat.LINEAR:
            raise ArtefactError(
                f"{self._path} has {name!r} in the layout {engine.get_tensor_format_desc(name)}: build it with linear "
                "inputs and outputs"
            )
        dtype = dtype_name(engine.get_tensor_dtype(name))
        if dtype not in NUMPY_NAMES.values():
            raise ArtefactError(
                f"{self._path} has {name!r} of type {dtype}, which numpy lacks: build it with fp32 inputs and outputs"
            )
        shape = tuple(None if side < 0 else int(side) for side in engine.get_tensor_shape(name))
        return TensorInfo(name, shape, dtype)

    def _profile(self, index: int) -> dict[str, Profile]:
        shapes = {}
        for name in self._input_names:
            least, best, most = self._engine.get_tensor_profile_shape(name, index)
            shapes[name] = Profile(tuple(least), tuple(best), tuple(most))
        return shapes

    def _profile_for(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """Return the first profile that covers every input; one whose ``best`` shape matches takes precedence."""
        fitting = [i for i, p in enumerate(self.profiles) if all(p[n].covers(s) for n, s in shapes.items())]
        if not fitting:
            ranges = " or ".join(str(p[self._input_names[0]]) for p in self.profiles)
            found = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items())
            raise BackendError(f"this engine takes shapes of {ranges}, got {found}: build it with another --profile")
        return min(fitting, key=lambda i: (any(self.profiles[i][n].opt != s for n, s in shapes.items()), i))

    def _note_graph(self, context: TrtContext) -> None:
        """Say once that the engine could not be captured."""
        note = f"{self._path} runs without a CUDA graph: {context.failed_graph}"
        if context.failed_graph and note not in self.notes:
            self.notes = (*self.notes, note)
            LOG.warning("%s", note)

    def _new_context(self) -> TrtContext:
        made = self._kernels.new_context(self._engine)
        tensors, graph = (self.inputs, self.outputs), self._options.graph
        context = TrtContext(self._path, self._gpu, self._trt, self._engine, made, tensors, self._log, graph=graph)
        self._contexts.append(context)
        return context
