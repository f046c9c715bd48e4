"""One loaded network behind two methods, and the table that finds the backend for a file.

A backend is a module with ``open_session(path, *, provider, threads)`` that returns a :class:`Session`; to add one,
write the module and name it in :data:`BACKENDS`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from types import TracebackType
from typing import Protocol, Self, cast

import numpy as np

from deploykit.errors import ArtefactError, BackendError, SpecError, UsageError
from deploykit.runtime.arrays import Array
from deploykit.runtime.files import existing_file
from deploykit.spec import METADATA_KEY, ModelSpec

__all__ = [
    "BACKENDS",
    "Session",
    "TensorInfo",
    "check_inputs",
    "check_threads",
    "fits",
    "input_of",
    "open_session",
    "spec_of",
]

LOG = logging.getLogger(__name__)

BACKENDS: dict[str, dict[str, str]] = {
    ".onnx": {"onnxruntime": "deploykit.runtime.backends.ort"},
    ".trt": {"tensorrt": "deploykit.runtime.backends.trt.session"},
    ".engine": {"tensorrt": "deploykit.runtime.backends.trt.session"},
}
"""File suffix -> backend name -> module; the first backend of a suffix is the default."""


@dataclass(frozen=True)
class TensorInfo:
    """One input or output: its name, its shape (None: a dynamic axis) and numpy's name of its type."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.dtype} ({', '.join('?' if side is None else str(side) for side in self.shape)})"


class Session(Protocol):
    """One loaded network. ``run`` takes and returns arrays by tensor name; nothing else.

    ``metadata`` is what the file carries besides the network, ``providers`` what really computes (never what was
    merely asked for), ``notes`` whatever the user ought to know about that. ``device_memory`` is how many bytes of a
    GPU's memory the network holds (None: it computes on the CPU, or its backend does not say), ``threads`` how many
    CPU threads share one operator (None: the backend's own choice). ``stage_ms`` has the milliseconds of the last run's
    stages on a GPU, where the backend measures them. A session is also a context manager.
    """

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    metadata: Mapping[str, str]
    providers: tuple[str, ...]
    notes: tuple[str, ...] = ()
    device_memory: int | None = None
    threads: int | None = None
    stage_ms: Mapping[str, float] = {}

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Every output by name, for one array an input.

        Raises:
            BackendError: an input is missing, unknown, of another shape or type, or the backend failed.
        """
        ...

    def close(self) -> None:
        """Give the memory back; a second call does nothing."""
        ...

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Whether the first input may have this shape; a dynamic axis may have limits of its own."""
        return fits(self.inputs[0].shape, shape)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_session(
    path: str | os.PathLike[str], *, backend: str = "auto", provider: str = "auto", threads: int | None = None
) -> Session:
    """Load an exported model; the file's suffix says what it is.

    Args:
        path: the model, for example ``yolov7-w6-pose.onnx``.
        backend: ``auto`` (the default one of the suffix) or a name from :data:`BACKENDS`.
        provider: what computes: ``auto`` (a GPU where this installation has one, else the CPU), ``cpu``, ``cuda``,
            or the backend's own name of a provider.
        threads: CPU threads within one operator; None leaves the choice to the backend.

    What the session notes (a GPU that could not be used, an engine whose numbers nothing verifies) is logged too.

    Raises:
        NotFoundError: there is no such file.
        ArtefactError: it cannot be read, or its suffix has no backend.
        BackendError: the backend refused it, or the provider asked for is not in effect.
        MissingDependencyError: the backend's package is not installed.
    """
    file = existing_file(path, "a model")
    choices = BACKENDS.get(file.suffix.lower())
    if choices is None:
        known = ", ".join(BACKENDS)
        found = f"ends in {file.suffix}" if file.suffix else "has no suffix"
        raise ArtefactError(f"{file} {found}, but models that can be run end in {known}: export it to one of them")
    check_threads(threads)
    name = next(iter(choices)) if backend == "auto" else backend
    if name not in choices:
        raise UsageError(f"{file.suffix} files run with {', '.join(choices)} (or auto), not with {backend!r}")
    session = cast(Session, import_module(choices[name]).open_session(file, provider=provider, threads=threads))
    for note in session.notes:
        LOG.warning("%s", note)
    return session


def spec_of(session: Session, name: str) -> ModelSpec:
    """The spec that an artefact carries in its metadata; ``name`` is what the message calls the artefact.

    Raises:
        SpecError: it carries none, or one that does not read.
    """
    text = session.metadata.get(METADATA_KEY)
    if text is None:
        raise SpecError(
            f"{name} says nothing about its input and output (no metadata key {METADATA_KEY!r}): "
            "export it with deploykit, or pass a spec (spec= in Python, --spec FILE on the command line)"
        )
    return ModelSpec.from_json(text)


def fits(expected: tuple[int | None, ...], shape: tuple[int, ...]) -> bool:
    """Whether a shape is one of those that ``expected`` (None: any side) stands for."""
    return len(shape) == len(expected) and all(
        side is None or side == got for side, got in zip(expected, shape, strict=True)
    )


def check_threads(threads: int | None) -> None:
    """Refuse a number of threads that nothing can have.

    Raises:
        UsageError: fewer than one.
    """
    if threads is not None and threads < 1:
        raise UsageError(f"threads must be at least 1, got {threads}")


def input_of(info: TensorInfo, images: Array) -> dict[str, Array]:
    """The one input of a network as it takes it: images in float32, or in the type that its input has."""
    return {info.name: images.astype(np.dtype(info.dtype), copy=False)}


def check_inputs(expected: tuple[TensorInfo, ...], inputs: Mapping[str, Array]) -> None:
    """Compare what ``run`` was given with what the network takes.

    Raises:
        BackendError: a name, a type or a shape differs; the message has both sides.
    """
    names = {info.name for info in expected}
    if set(inputs) != names:
        raise BackendError(
            f"the network's inputs are {', '.join(sorted(names))}; got {', '.join(sorted(inputs)) or 'none'}"
        )
    for info in expected:
        value = inputs[info.name]
        if not fits(info.shape, value.shape) or value.dtype != np.dtype(info.dtype):
            raise BackendError(f"input {info.name!r} must be {info}, got {value.dtype} {value.shape}")
