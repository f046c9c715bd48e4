"""What computes a model, and with how many CPU threads: the only place that states both and their defaults."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from deploykit.errors import UsageError
from deploykit.numerals import typed_number
from deploykit.runtime.cores import limited_threads

__all__ = ["ComputeOptions", "default_threads", "either", "limit_opencv", "parse_device"]

DEVICE, THREADS = "DEPLOYKIT_DEVICE", "DEPLOYKIT_THREADS"
"""The environment variables that replace the defaults."""

GPU = re.compile(r"(?:(?:cuda|gpu):)?(\d{1,4})|cuda|gpu", re.IGNORECASE)
PROVIDER = re.compile(r"[A-Za-z][A-Za-z-]*")


@dataclass(frozen=True)
class ComputeOptions:
    """What computes a model, and with how many CPU threads.

    Attributes:
        device: ``auto`` (a GPU where the backend has one, else the CPU), ``cpu``, ``cuda`` or ``cuda:1``, a GPU's
            number (``1``), or a provider of the backend (``openvino``, ``OpenVINOExecutionProvider``, ...); None: the
            environment variable ``DEPLOYKIT_DEVICE``, else ``auto``. A checkpoint computes on the CPU unless a GPU is
            asked for.
        threads: CPU threads within one operator; None: the environment variable ``DEPLOYKIT_THREADS``, else as many as
            the CPU quota or the affinity of this process allows, else the backend's choice (one per core).
    """

    device: str | int | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.device is not None:
            parse_device(self.device)
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"threads must be at least 1, got {self.threads}")

    @property
    def provider(self) -> str:
        """The device as a backend takes it: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or the name of a provider."""
        if self.device is not None:
            return parse_device(self.device)
        typed = os.environ.get(DEVICE, "").strip()
        return parse_device(typed, DEVICE) if typed else "auto"


def parse_device(device: str | int, named: str = "the device") -> str:
    """Return ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` for the forms that people type; else the provider's name.

    Raises:
        UsageError: it has none of these forms.
    """
    text = "" if isinstance(device, bool) else str(device).strip()
    if text.lower() in ("auto", "cpu"):
        return text.lower()
    if text in ("CPUExecutionProvider", "CUDAExecutionProvider"):
        return text.removesuffix("ExecutionProvider").lower()
    if found := GPU.fullmatch(text):
        return "cuda" if found[1] is None else f"cuda:{int(found[1])}"
    if not PROVIDER.fullmatch(text):
        several = "; a model runs on one GPU" if "," in text else ""
        raise UsageError(
            f"{named} must be auto, cpu, cuda, cuda:N, the number of a GPU, or a provider such as openvino; "
            f"got {device!r}{several}"
        )
    return text


def either(device: str | int | None, provider: str | None) -> str | int | None:
    """Return the device where ``provider``, another name of the argument, may be given instead.

    Raises:
        UsageError: both are given.
    """
    if device is not None and provider is not None:
        raise UsageError(f"provider is another name of device: give one of them, got {device!r} and {provider!r}")
    return provider if device is None else device


def default_threads() -> tuple[int | None, str]:
    """Return the number of threads where none was asked for, and where it is from; (None, ""): the backend's choice.

    Raises:
        UsageError: the environment variable is not a number from 1 on.
    """
    typed = os.environ.get(THREADS, "").strip()
    if not typed:
        return limited_threads()
    if not (count := typed_number(typed)):
        raise UsageError(f"{THREADS} must be a whole number from 1 on, got {typed!r}")
    return count, THREADS


def limit_opencv() -> None:
    """Let OpenCV compute with no more threads than :func:`default_threads`; it has one number for the whole process."""
    count, _ = default_threads()
    if count is not None:
        import cv2

        cv2.setNumThreads(min(count, cv2.getNumThreads()))
