"""The two flavours of TensorRT behind one API: ``tensorrt`` and ``tensorrt_rtx`` (TensorRT for RTX)."""

from __future__ import annotations

import gc
import logging
import time
import weakref
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from deploykit.errors import BackendError, UsageError, import_extra
from deploykit.runtime.engine_record import FLAVOURS, Flavour
from deploykit.runtime.native.library import built_with, find_library

__all__ = ["NUMPY_NAMES", "BuildLog", "dtype_name", "installed", "load_flavour", "logger"]

LOG = logging.getLogger(__name__)

NUMPY_NAMES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
    "UINT8": "uint8",
}
"""TensorRT's names of the element types that numpy has -> numpy's names."""


def installed() -> tuple[str, ...]:
    """Return the flavours whose package is installed."""
    return tuple(flavour for flavour, module in FLAVOURS.items() if find_spec(module) is not None)


def load_flavour(flavour: Flavour | str) -> Any:
    """Import the Python module of a flavour.

    For TensorRT, its own plugins (RoiAlign is one) are registered, and NmsKpt and DecodeRows are loaded too if their
    library is built. TensorRT for RTX has no plugins: with one in its registry, reading a graph that needs it ends the
    process.

    Raises:
        UsageError: no flavour has this name.
        MissingDependencyError: the package of the flavour is not installed, or cannot be loaded.
    """
    if flavour not in FLAVOURS:
        raise UsageError(f"the flavour of TensorRT must be {' or '.join(FLAVOURS)}, got {flavour!r}")
    trt: Any = import_extra(FLAVOURS[flavour], flavour)
    if flavour == "tensorrt":
        register = getattr(trt, "init_libnvinfer_plugins", None)
        if register is not None:
            register(logger(trt, BuildLog()), "")
        if library := find_library("tensorrt"):
            _load_plugin(trt, library)
    return trt


_loaded: set[Path] = set()
_loggers: weakref.WeakSet[Any] = weakref.WeakSet()  # those that something of TensorRT still holds


def _load_plugin(trt: Any, library: Path) -> None:
    """Load the plugin library once per process; one that does not fit is not loaded but reported as a warning.

    The major versions must be equal: TensorRT 11 receives its logger through another virtual function than 10.
    """
    if library in _loaded:
        return
    _loaded.add(library)
    major = str(trt.__version__).split(".", maxsplit=1)[0]
    try:
        headers = built_with(library)
    except BackendError as e:
        headers, problem = "", str(e)
    else:
        problem = f"{library} was built for another TensorRT than {trt.__version__} ({headers})"
    if headers.startswith(f"TensorRT {major}."):
        if trt.get_plugin_registry().load_library(str(library)) is not None:
            return
        problem = f"TensorRT {trt.__version__} cannot load {library} ({headers})"
    LOG.warning(
        "%s; models with the nodes NmsKpt and DecodeRows cannot be loaded: run deploykit plugins build", problem
    )


def dtype_name(dtype: Any) -> str:
    """Return numpy's name of a TensorRT element type, or TensorRT's in lower case if numpy lacks the type."""
    name = str(dtype).rsplit(".", 1)[-1]
    return NUMPY_NAMES.get(name, name.lower())


class BuildLog:
    """The log of TensorRT: one (seconds since the start, severity, text) per line.

    Args:
        verbose: keep the lines of severity VERBOSE too; a small network has ten thousand of them.
    """

    def __init__(self, *, verbose: bool = False) -> None:
        self.lines: list[tuple[float, str, str]] = []
        self._start = time.perf_counter()
        self._verbose = verbose

    def add(self, severity: str, text: str) -> None:
        """Append a line."""
        if severity != "VERBOSE" or self._verbose:
            self.lines.append((time.perf_counter() - self._start, severity, text))

    def errors(self) -> list[str]:
        """Return the lines of severity ERROR and above."""
        return [text for _, severity, text in self.lines if severity in ("ERROR", "INTERNAL_ERROR")]

    def text(self) -> str:
        """Return the whole log as text."""
        return "".join(f"[{seconds:8.2f} s] {severity:<8} {text}\n" for seconds, severity, text in self.lines)


def logger(trt: Any, log: BuildLog) -> Any:
    """Create an ``ILogger`` of this TensorRT that fills ``log``; it must outlive everything made with it."""
    # TensorRT waits for itself if one of its objects is freed while it logs, and there Python may collect garbage.
    # A user's program can hold such objects in a cycle with an error, so they are freed before the next work begins.
    # They hold their logger: where none is left there are none, and a large program is spared a second.
    if _loggers:
        gc.collect()

    class Logger(trt.ILogger):  # type: ignore[misc]  # the module is known at run time only
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            log.add(str(severity).rsplit(".", 1)[-1], msg)

    made = Logger()
    _loggers.add(made)
    return made
