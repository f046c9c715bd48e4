"""Execution providers of ONNX Runtime: the options of CUDA's, and providers that come as libraries of their own.

A provider is part of an ONNX Runtime package (``onnxruntime-gpu`` has CUDA's), or a plugin: a package that holds only
the provider's library, which works beside any ONNX Runtime from 1.24 on and is registered with it when it is asked for.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, Self, get_args

from deploykit.errors import BackendError, UsageError
from deploykit.numerals import typed_number
from deploykit.runtime.backends.memory_limit import size_of
from deploykit.runtime.backends.ort_webgpu import NEEDS, WEBGPU
from deploykit.runtime.session import TensorInfo

__all__ = [
    "CUDA",
    "CUDA_SETTINGS",
    "PLUGINS",
    "CudaOptions",
    "Plugin",
    "own_providers",
    "plugin_for",
    "preload_cuda",
    "reason_of",
    "tensor_info",
    "without_telemetry",
]

LOG = logging.getLogger(__name__)

CUDA = "CUDAExecutionProvider"

CUDA_SETTINGS = "DEPLOYKIT_CUDA"
"""The environment variable with the options of runs on an NVIDIA GPU, such as ``tf32,no-graph,search=heuristic``."""

SWITCHES = ("graph", "tf32", "nhwc", "stages")
Search = Literal["auto", "exhaustive", "heuristic", "default"]

# ONNX Runtime's type names that differ from numpy's.
NUMPY_NAMES = {"float": "float32", "double": "float64", "string": "object"}


@dataclass(frozen=True)
class CudaOptions:
    """Options of runs on an NVIDIA GPU, most of them of ONNX Runtime's CUDA provider.

    Attributes:
        graph: capture the run of a network whose shapes are all fixed in a CUDA graph, which starts it with one call.
        tf32: let float32 products and convolutions round their inputs to 10 bits of mantissa; faster, and not float32.
        nhwc: let the provider turn convolutions to channels last.
        search: how cuDNN's algorithm of each convolution is chosen: by timing all (``exhaustive``), by cuDNN's own
            estimate (``heuristic``), the same for all (``default``). ``auto``: exhaustive where the run is captured in
            a graph, else heuristic, because every new shape would be timed anew.
        stages: letterbox, decode and NMS of a prediction run on the GPU too, where the kernels do what it needs
            (:mod:`deploykit.runtime.predict.on_gpu`).
        contexts: how many runs of a TensorRT engine may be on the GPU at the same time.
        memory: the most bytes of the GPU that a network of ONNX Runtime may hold; None: no limit.

    An engine of TensorRT has ``graph``, ``stages`` and ``contexts``.
    """

    graph: bool = True
    tf32: bool = False
    nhwc: bool = False
    search: Search = "auto"
    stages: bool = False
    contexts: int = 2
    memory: int | None = None

    @classmethod
    def from_environment(cls) -> Self:
        """Read :data:`CUDA_SETTINGS`; where it is not set, the defaults.

        Raises:
            UsageError: it holds a word that is no option.
        """
        values: dict[str, Any] = {}
        for word in os.environ.get(CUDA_SETTINGS, "").replace(",", " ").split():
            name, _, value = word.partition("=")
            switch = name.removeprefix("no-")
            if name == "search" and value in get_args(Search):
                values["search"] = value
            elif name == "contexts" and (count := typed_number(value)):
                values["contexts"] = count
            elif name == "memory" and (size := size_of(value)):
                values["memory"] = size
            elif switch in SWITCHES and not value:
                values[switch] = name == switch
            else:
                raise UsageError(
                    f"{CUDA_SETTINGS} holds words of {', '.join(SWITCHES)}, each also with no- before it, and "
                    f"search={'|'.join(get_args(Search))}, contexts=N and memory=BYTES; got {word!r}"
                )
        return cls(**values)

    def for_provider(self, index: int, *, stream: int = 0, graph: bool = False) -> dict[str, str]:
        """Return the options by the provider's own names.

        Args:
            index: the number of the GPU.
            stream: the handle of the stream that everything runs on; 0: one of the provider's own.
            graph: whether runs may be captured.
        """
        search = self.search if self.search != "auto" else "exhaustive" if graph else "heuristic"
        named = {"device_id": str(index)} if index else {}  # ONNX Runtime 1.31 warns wherever it is given
        named |= {
            "use_tf32": str(int(self.tf32)),
            "prefer_nhwc": str(int(self.nhwc)),
            "cudnn_conv_algo_search": search.upper(),
            "enable_cuda_graph": str(int(graph)),
        }
        if self.memory is not None:  # and no block of the next power of two, which may be over it
            named |= {"gpu_mem_limit": str(self.memory), "arena_extend_strategy": "kSameAsRequested"}
        return {**named, "user_compute_stream": str(stream)} if stream else named


@dataclass(frozen=True)
class Plugin:
    """A provider's package: the names that people ask by, the module, and what the provider needs."""

    names: tuple[str, ...]
    module: str
    needs: str


PLUGINS = (
    Plugin(
        ("webgpu", WEBGPU),
        "onnxruntime_ep_webgpu",
        NEEDS,
    ),
    Plugin(
        ("cuda", CUDA, "CudaPluginExecutionProvider"),
        "onnxruntime_ep_cuda",
        "an NVIDIA GPU and the libraries of CUDA",
    ),
)
"""Providers that come as libraries of their own. A provider that is part of ONNX Runtime goes before its plugin."""

_registered: set[str] = set()

CUDA_AS_PLUGIN = "cuda-plugin-ep="  # in ONNX Runtime's account of its build


def own_providers(ort: Any) -> list[str]:
    """Return the providers that are part of an ONNX Runtime; it counts registered plugins among the available ones.

    A package may bring CUDA's as a plugin that it registers itself, once the libraries of CUDA are loaded.
    """
    if CUDA_AS_PLUGIN in getattr(ort, "get_build_info", str)() and CUDA not in ort.get_available_providers():
        preload_cuda(ort)
    return [name for name in ort.get_available_providers() if name not in _registered]


def plugin_for(ort: Any, provider: str) -> tuple[str, list[Any], dict[str, str]] | None:
    """Return a plugin's provider, the device that it is to run on, and its options; None: no plugin is asked for.

    Args:
        ort: the module onnxruntime.
        provider: as for :func:`deploykit.runtime.backends.ort.open_session`. ``auto`` takes no plugin.

    Raises:
        BackendError: the plugin is installed, and its library does not load, or finds no device here.
    """
    kind, _, number = provider.partition(":")
    plugin = next((p for p in PLUGINS if kind.lower() in {name.lower() for name in p.names}), None)
    available = own_providers(ort)
    if plugin is None or any(name in available for name in plugin.names):
        return None
    try:
        module: Any = import_module(plugin.module)
    except ImportError:
        return None  # the message about a provider that is not there names the package
    if not hasattr(ort, "register_execution_provider_library"):
        raise BackendError(f"{plugin.module} needs ONNX Runtime 1.24 or later, this one is {ort.__version__}")
    name = module.get_ep_name()
    try:
        if name not in _registered:
            ort.register_execution_provider_library(name, module.get_library_path())
            _registered.add(name)
    except Exception as e:  # ONNX Runtime's exceptions share no base class
        raise BackendError(f"the library of {plugin.module} does not load: {' '.join(str(e).split())}") from e
    devices = [device for device in ort.get_ep_devices() if device.ep_name == name]
    index = int(number or 0)
    if index >= len(devices):
        found = f"only {len(devices)}" if devices else "none"
        raise BackendError(f"{name} finds {found} of the devices it needs here: it needs {plugin.needs}")
    cuda = plugin.module == "onnxruntime_ep_cuda"
    options = CudaOptions.from_environment().for_provider(index) if cuda else {}
    return name, devices[index : index + 1], {k: v for k, v in options.items() if k != "device_id"}


def preload_cuda(ort: Any) -> None:
    """Load CUDA's and cuDNN's libraries from NVIDIA's wheels, so that the provider finds them without LD_LIBRARY_PATH.

    What cannot be loaded is left to the provider, which looks in the usual places and fails with a reason.
    """
    if hasattr(ort, "preload_dlls"):
        said = io.StringIO()
        with contextlib.redirect_stdout(said):  # it prints what it does not find
            ort.preload_dlls()
        if said.getvalue():
            LOG.debug("onnxruntime.preload_dlls: %s", " ".join(said.getvalue().split()))


def without_telemetry(ort: Any) -> None:
    """Let ONNX Runtime keep no events of its sessions, where a program imported it before deploykit could say so."""
    if os.environ.get("ORT_DISABLE_TELEMETRY", "1") not in ("0", "false") and hasattr(ort, "disable_telemetry_events"):
        ort.disable_telemetry_events()


def tensor_info(tensor: Any) -> TensorInfo:
    """Return what ONNX Runtime says of an input or output; sequences and maps keep its names of types."""
    kind = re.fullmatch(r"tensor\((\w+)\)", tensor.type)
    name = kind[1] if kind else tensor.type
    shape = tuple(side if isinstance(side, int) and side >= 0 else None for side in tensor.shape)
    return TensorInfo(tensor.name, shape, NUMPY_NAMES.get(name, name))


def reason_of(text: str) -> str:
    """Return ONNX Runtime's message without ``[ONNXRuntimeError] : 1 : FAIL :`` and source positions."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    return re.sub(r"(?<=[ .])\S+\.(?:cc|h):\d+ \S+ ", " ", text)
