"""The two flavours of TensorRT behind one API: ``tensorrt`` and ``tensorrt_rtx`` (TensorRT for RTX)."""

from __future__ import annotations

import logging
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from deploykit.errors import BackendError, UsageError, require
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
"""TensorRT's names of element types that numpy has -> numpy's."""


def installed() -> tuple[str, ...]:
    """The flavours whose package is there."""
    return tuple(flavour for flavour, module in FLAVOURS.items() if find_spec(module) is not None)


def load_flavour(flavour: Flavour | str) -> Any:
    """The Python module of a flavour; TensorRT also gets the plugins NmsKpt and DecodeRows, where
    their library is built.

    TensorRT for RTX has no plugins; with one in its registry, reading a graph that needs it ends the process.

    Raises:
        UsageError: there is no such flavour. MissingDependencyError: its package is not installed, or does not load.
    """
    if flavour not in FLAVOURS:
        raise UsageError(f"a flavour of TensorRT is {' or '.join(FLAVOURS)}, got {flavour!r}")
    trt: Any = require(FLAVOURS[flavour], flavour)
    if flavour == "tensorrt" and (library := find_library("tensorrt")):
        _load_plugin(trt, library)
    return trt


_loaded: set[Path] = set()


def _load_plugin(trt: Any, library: Path) -> None:
    """Once a process; a library that does not fit is said to, and left alone.

    The major versions must be equal: how TensorRT hands over its logger is another virtual function in 11 than in 10.
    """
    if library in _loaded:
        return
    _loaded.add(library)
    major = str(trt.__version__).split(".", maxsplit=1)[0]
    try:
        words = built_with(library)
    except BackendError as e:
        words, problem = "", str(e)
    else:
        problem = f"{library} was built for another TensorRT than {trt.__version__} ({words})"
    if words.startswith(f"TensorRT {major}."):
        if trt.get_plugin_registry().load_library(str(library)) is not None:
            return
        problem = f"TensorRT {trt.__version__} does not take {library} ({words})"
    LOG.warning("%s: deploykit plugins build; models with the nodes NmsKpt and DecodeRows do not load", problem)


def dtype_name(dtype: Any) -> str:
    """numpy's name of a TensorRT element type, or TensorRT's own in small letters where numpy has none."""
    name = str(dtype).rsplit(".", 1)[-1]
    return NUMPY_NAMES.get(name, name.lower())


class BuildLog:
    """What TensorRT says: (seconds since the start, severity, text) a line.

    Args:
        verbose: keep the lines of severity VERBOSE too; a small network has ten thousand of them.
    """

    def __init__(self, *, verbose: bool = False) -> None:
        self.lines: list[tuple[float, str, str]] = []
        self._start = time.perf_counter()
        self._verbose = verbose

    def add(self, severity: str, text: str) -> None:
        """Keep a line."""
        if severity != "VERBOSE" or self._verbose:
            self.lines.append((time.perf_counter() - self._start, severity, text))

    def errors(self) -> list[str]:
        """The lines of severity ERROR and worse."""
        return [text for _, severity, text in self.lines if severity in ("ERROR", "INTERNAL_ERROR")]

    def text(self) -> str:
        """Everything, a line each."""
        return "".join(f"[{seconds:8.2f} s] {severity:<8} {text}\n" for seconds, severity, text in self.lines)


def logger(trt: Any, log: BuildLog) -> Any:
    """An ``ILogger`` of this TensorRT that fills ``log``; it must live as long as everything made with it."""

    class Logger(trt.ILogger):  # type: ignore[misc]  # the module is known at run time only
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            log.add(str(severity).rsplit(".", 1)[-1], msg)

    return Logger()
