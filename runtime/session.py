"""The session (one loaded network behind two methods) and the table of backends by file suffix.

A backend is a module with ``open_session(path, *, provider, threads)`` that returns a :class:`Session`. To add one,
write the module and name it in :data:`BACKENDS`.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Protocol, Self, TypeVar, cast

import numpy as np

from deploykit.errors import ArtefactError, BackendError, UsageError
from deploykit.runtime.arrays import Array
from deploykit.runtime.compute import ComputeOptions, either
from deploykit.runtime.files import existing_file, is_folder
from deploykit.spec import CHECKPOINT_SUFFIXES, ENGINE_SUFFIXES

__all__ = [
    "BACKENDS",
    "Session",
    "TensorInfo",
    "check_inputs",
    "for_checkpoints",
    "input_arrays",
    "is_checkpoint",
    "open_session",
    "shape_matches",
]

LOG = logging.getLogger(__name__)
Asked = TypeVar("Asked")

BACKENDS: dict[str, dict[str, str]] = {
    ".onnx": {"onnxruntime": "deploykit.runtime.backends.ort"},
    **{suffix: {"tensorrt": "deploykit.runtime.backends.trt.session"} for suffix in ENGINE_SUFFIXES},
}
"""File suffix -> backend name -> module; the first backend of a suffix is the default."""


@dataclass(frozen=True)
class TensorInfo:
    """An input or output tensor: its name, its shape (None: a dynamic axis) and the numpy name of its type."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.dtype} ({', '.join('?' if size is None else str(size) for size in self.shape)})"


class Session(Protocol):
    """One loaded network. ``run`` takes and returns arrays by tensor name, and nothing else.

    ``metadata`` is what the file stores besides the network. ``providers`` are what actually computes, never just what
    was requested; ``notes`` are what a user should know about that. ``device_memory`` is the number of bytes that the
    network holds in GPU memory (None: it runs on the CPU, or its backend does not report it). ``threads`` is the
    number of CPU threads within one operator (None: the backend's own choice), and ``threads_from`` what set it.
    ``time_limit`` is the limit of a run in
    seconds (None: there is none). ``concurrent`` says whether several threads call
    ``run`` for a stream at the same time; else a stream calls it in its caller's thread alone. ``stage_ms`` holds the
    milliseconds of each stage of the last run on a GPU, where the backend measures them. A session is also a context
    manager.

    Several threads may call ``run`` and ``close`` of any session of deploykit at the same time: runs that a backend
    cannot make at once wait for each other, and a run that comes after ``close`` is a BackendError. A session belongs
    to its process: it can be neither pickled nor copied, and docs/reliability.md says what is left of it after a fork.
    """

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    metadata: Mapping[str, str]
    providers: tuple[str, ...]
    notes: tuple[str, ...] = ()
    device_memory: int | None = None
    threads: int | None = None
    threads_from: str = ""
    time_limit: float | None = None
    concurrent: bool = False
    stage_ms: Mapping[str, float] = {}

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the network on one array per input and return every output by name.

        Raises:
            BackendError: an input is missing, unknown or of another shape or type, or the backend failed.
            OutOfMemoryError: it needs more memory than a limit allows (docs/reliability.md).
        """
        ...

    def close(self) -> None:
        """Free the memory; a second call does nothing."""
        ...

    def limit_time(self, seconds: float | None) -> None:
        """End every later run that takes longer than ``seconds``, with a BackendError; None: no limit.

        Raises:
            UsageError: the number is not over 0, or this backend cannot end a run.
        """
        if seconds is not None:
            raise UsageError("a time limit needs an .onnx file in ONNX Runtime: no other backend can end a run")

    def accepts_shape(self, shape: tuple[int, ...]) -> bool:
        """Return whether the first input accepts this shape; a dynamic axis may have limits of its own."""
        return shape_matches(self.inputs[0].shape, shape)

    def __reduce__(self) -> NoReturn:
        raise UsageError(
            "an open session is memory of its process and can be neither pickled nor copied: open the file there, or "
            "send a predictor of deploykit.load(path), which opens itself again"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_session(
    path: str | os.PathLike[str],
    *,
    backend: str = "auto",
    device: str | int | None = None,
    provider: str | None = None,
    threads: int | None = None,
) -> Session:
    """Load an exported model; the file's suffix selects the backend.

    Args:
        path: the model, for example ``yolov7-w6-pose.onnx``.
        backend: ``auto`` (the default backend of the suffix) or a name from :data:`BACKENDS`.
        device, threads: what computes, and with how many CPU threads: see
            :class:`deploykit.runtime.compute.ComputeOptions`.
        provider: the same as ``device``.

    What the session notes (a GPU that could not be used, an engine whose numbers nothing verifies) is logged too.

    Raises:
        NotFoundError: the file does not exist.
        ArtefactError: the file cannot be read, or no backend has its suffix.
        BackendError: the backend cannot load it, or the requested provider is not in effect.
        MissingDependencyError: the backend's package is not installed.
    """
    file = existing_file(path, "a model")
    choices = BACKENDS.get(file.suffix.lower())
    if choices is None:
        *others, last = BACKENDS
        known = f"{', '.join(others)} or {last}"
        found = f"ends in {file.suffix}" if file.suffix else "has no suffix"
        raise ArtefactError(f"expected a model that ends in {known}, but {file} {found}: export it to one of these")
    compute = ComputeOptions(either(device, provider), threads)
    name = next(iter(choices)) if backend == "auto" else backend
    if name not in choices:
        expected = " or ".join(("auto", *choices))
        raise UsageError(f"the backend of a {file.suffix} file must be {expected}, got {backend!r}")
    began = time.perf_counter()
    session = cast(Session, import_module(choices[name]).open_session(file, provider=compute.provider, threads=threads))
    if LOG.isEnabledFor(logging.DEBUG):
        _tell(file, name, session, time.perf_counter() - began)
    for note in session.notes:
        LOG.warning("%s", note)
    return session


def _tell(file: Path, backend: str, session: Session, seconds: float) -> None:
    threads = "the backend's own threads" if session.threads is None else f"{session.threads} threads"
    providers = " and ".join(session.providers)
    tensors = {
        name: ", ".join(f"{info.name} {info}" for info in infos)
        for name, infos in (("inputs", session.inputs), ("outputs", session.outputs))
    }
    LOG.debug("%s: opened by %s in %.0f ms, on %s, with %s", file, backend, 1000 * seconds, providers, threads)
    LOG.debug("%s: inputs %s; outputs %s", file, tensors["inputs"], tensors["outputs"])


def is_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is that of a checkpoint, which runs in PyTorch: by its name, or a folder of safetensors."""
    file = Path(path)
    if file.suffix.lower() in CHECKPOINT_SUFFIXES or file.name.lower().endswith(".safetensors.index.json"):
        return True
    return is_folder(file) and any(file.glob("*.safetensors"))


def for_checkpoints(models: Sequence[object], asked: Asked | None) -> list[Asked | None]:
    """Return for each model what is asked of the checkpoints among them; None for an export or an open session.

    Raises:
        UsageError: something is asked, and none of them is a checkpoint.
    """
    found = [asked if isinstance(model, (str, os.PathLike)) and is_checkpoint(model) else None for model in models]
    if asked is not None and not any(each is not None for each in found):
        raise UsageError(f"an option of a checkpoint's loading ({asked}) is given, and none of the models is one")
    return found


def shape_matches(expected: tuple[int | None, ...], shape: tuple[int, ...]) -> bool:
    """Return whether ``shape`` matches ``expected``, where None stands for any size."""
    return len(shape) == len(expected) and all(
        size is None or size == got for size, got in zip(expected, shape, strict=True)
    )


def input_arrays(info: TensorInfo, images: Array) -> dict[str, Array]:
    """Return the inputs of a network that has one: ``images``, converted to the type of that input."""
    return {info.name: images.astype(np.dtype(info.dtype), copy=False)}


def check_inputs(expected: tuple[TensorInfo, ...], inputs: Mapping[str, Array]) -> None:
    """Compare the arrays that ``run`` received with the inputs of the network.

    Raises:
        BackendError: a name, a type or a shape differs; the message states both sides.
    """
    names = {info.name for info in expected}
    if set(inputs) != names:
        raise BackendError(
            f"the network's inputs are {', '.join(sorted(names))}; got {', '.join(sorted(inputs)) or 'none'}"
        )
    for info in expected:
        value = inputs[info.name]
        if not shape_matches(info.shape, value.shape) or value.dtype != np.dtype(info.dtype):
            raise BackendError(f"input {info.name!r} must be {info}, got {value.dtype} {value.shape}")
