"""What ONNX Runtime's WebGPU provider has to be kept from: calls of two threads, and convolutions that it gets wrong.

Seen with onnxruntime-ep-webgpu 0.4.0 in ONNX Runtime 1.31.1.
"""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

from deploykit.errors import ArtefactError
from deploykit.runtime.backends.forks import tell_forks
from deploykit.runtime.backends.onnx_weights import Convolution, convolutions

__all__ = ["NEEDS", "NO_ADAPTER", "WEBGPU", "layout_for", "turn_of"]

WEBGPU = "WebGpuExecutionProvider"

NEEDS = "a GPU with a driver for Vulkan (and libvulkan.so.1), Direct3D 12 or Metal"

NO_ADAPTER = "Failed to get a WebGPU adapter"
"""What ONNX Runtime says where the system knows of a GPU, and no driver for it is found."""


class _Turn:
    """A lock that is free in a forked process, where the thread that held it is not."""

    def __init__(self) -> None:
        self.forked()
        tell_forks(self)

    def forked(self) -> None:
        self._lock = threading.RLock()  # a session may be freed while another one is held

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


_webgpu = _Turn()


def turn_of(provider: str) -> contextlib.AbstractContextManager[None]:
    """Return what is to be held while a session of a provider is made, run or freed.

    All sessions of WebGPU share one device without a lock of their own: two threads that run two of them end the
    process (microsoft/onnxruntime#32561). Those of other providers need not wait for each other.
    """
    return _webgpu if provider == WEBGPU else contextlib.nullcontext()


def layout_for(provider: str, file: Path) -> tuple[dict[str, str], str]:
    """Return the provider's options for a network, and a note on them; both are empty where it needs none.

    With channels last, which it prefers, WebGPU computes a convolution wrongly that has 6, 9, 15, 18, ... input
    channels and a number of output channels that 4 divides, unless its kernel is one pixel without a stride: it then
    reads three channels at a time and mixes them up. With channels first it is right, and slower.
    """
    if provider != WEBGPU:
        return {}, ""
    with contextlib.suppress(ArtefactError):  # which ONNX Runtime explains better
        wrong = sorted({each.weights[1] for each in convolutions(file) if _is_wrong(each)})
        if wrong:
            channels = ", ".join(map(str, wrong))
            return {"preferredLayout": "NCHW"}, (
                f"this network has convolutions of {channels} input channels, which WebGPU computes wrongly with "
                "channels last: it computes with channels first, which takes longer"
            )
    return {}, ""


def _is_wrong(convolution: Convolution) -> bool:
    """Whether a convolution comes out wrong; of a grouped one it is not known to, and may be said all the same."""
    outputs, inputs, *kernel = convolution.weights
    by_three = inputs % 3 == 0 and inputs % 4 != 0 and inputs != 3
    is_product = not convolution.moves and all(side == 1 for side in kernel)  # which has a way of its own
    return by_three and outputs % 4 == 0 and not is_product
