"""ONNX Runtime's CUDA provider on the CPU, so that what surrounds it can be tested where there is no GPU.

The session, its IO binding and its run options are ONNX Runtime's own; only the names of provider and device are
translated, and memory of the host stands for the device's (:class:`tests.cpu_tensorrt.CpuGpu`). How CUDA itself behaves
is what the tests marked ``gpu`` are for.
"""

from __future__ import annotations

import threading
from typing import Any, ClassVar

import onnxruntime

from tests.cpu_tensorrt import CpuGpu

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


class SharedGpu(CpuGpu):
    """A device on which ONNX Runtime allocates too, as it does for outputs whose shape it learns during a run."""

    def _inside(self, pointer: int, size: int) -> None:
        assert pointer


class Binding(onnxruntime.IOBinding):  # type: ignore[misc]  # it has no types
    """Binds memory of the device, which is the host's."""

    def bind_input(self, name: str, device: str, index: int, *place: Any) -> None:
        """At an address of the device."""
        assert device == "cuda"
        super().bind_input(name, "cpu", index, *place)

    def bind_output(self, name: str, device: str, index: int, *place: Any) -> None:
        """At an address of the device, or wherever ONNX Runtime allocates there."""
        assert device == "cuda"
        super().bind_output(name, "cpu", index, *place)


class CudaSession(onnxruntime.InferenceSession):  # type: ignore[misc]  # as above
    """A session that says that it is on a GPU; a test reads ``loads``, ``runs`` and ``threads``, and sets the rest.

    ``refuses``: what loading with a graph raises. ``wrong_replay``: whether a replay gives other numbers.
    """

    loads: ClassVar[list[dict[str, str]]] = []
    runs: ClassVar[list[str | None]] = []
    threads: ClassVar[list[str]] = []
    refuses: ClassVar[str] = ""
    wrong_replay: ClassVar[bool] = False

    def __init__(self, path: str, options: Any, *, providers: list[Any] | None, enable_fallback: int) -> None:
        given: dict[str, dict[str, str]] = dict(
            each if isinstance(each, tuple) else (each, {}) for each in providers or ()
        )
        self.on_gpu = CUDA in given
        if self.on_gpu:
            self.loads.append(given[CUDA])
            if given[CUDA]["enable_cuda_graph"] == "1" and self.refuses:
                raise RuntimeError(self.refuses)
        super().__init__(path, options, providers=[CPU])

    def get_providers(self) -> list[str]:
        """The GPU first."""
        return [CUDA, CPU] if getattr(self, "on_gpu", False) else super().get_providers()

    def io_binding(self) -> Binding:
        """A binding of this session."""
        return Binding(self)

    def run_with_iobinding(self, binding: Any, options: Any = None) -> None:
        """Run, and note which graph was asked for; None: whatever graph the session has."""
        assert options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
        try:
            graph = options.get_run_config_entry("gpu_graph_id")
        except RuntimeError:
            graph = None
        self.runs.append(graph)
        self.threads.append(threading.current_thread().name)
        super().run_with_iobinding(binding, options)
        if self.wrong_replay and graph is None:
            for value in binding.get_outputs():
                value.update_inplace(value.numpy() + 1)
