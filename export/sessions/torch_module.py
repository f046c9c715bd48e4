"""A PyTorch model as a session of the runtime, so that a checkpoint predicts and is compared like an artefact."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from deploykit.errors import BackendError, DeviceError, UsageError
from deploykit.export.sessions.exact_convolutions import ExactConvolutions, NarrowedError, widened
from deploykit.models.fuse import fuse_model, torch_threads
from deploykit.models.load_options import LoadOptions
from deploykit.models.registry import DEFAULT, ReferenceModel, load_model
from deploykit.runtime.arrays import Array
from deploykit.runtime.compute import default_threads
from deploykit.runtime.cuda import device_index, gpu_unavailable_reason
from deploykit.runtime.session import Session, TensorInfo, check_inputs
from deploykit.spec import METADATA_KEY, ModelSpec

__all__ = ["TorchSession", "open_torch_session", "spec_of_module", "torch_device"]


class TorchSession(Session):
    """A module in eval mode: one input, the spec's outputs in their order, any batch, any size it supports.

    ``exact`` computes in float64, which shows what the weights mean without the rounding of any implementation. It is
    a few times slower, and the output is float64 (:mod:`deploykit.export.sessions.exact_convolutions`). ``device``:
    ``auto`` is the CPU; a GPU computes without TF32. ``threads``: per operator; None:
    :func:`deploykit.runtime.compute.default_threads`, else torch's own setting.

    Raises:
        DeviceError: torch has no such device. UsageError: it is not ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    """

    def __init__(
        self,
        module: nn.Module,
        spec: ModelSpec,
        *,
        exact: bool = False,
        threads: int | None = None,
        device: str = "auto",
    ) -> None:
        self._device = torch_device(device)
        self._module: nn.Module | None = module if self._device.type == "cpu" else module.to(self._device)
        self._exact = exact
        self._wide: nn.Module | None = None
        self._outputs = spec.output_names
        self.inputs = (TensorInfo(spec.input.name, (None, spec.input.channels, None, None), "float32"),)
        dtype = "float64" if exact else "float32"
        self.outputs = _outputs(spec, dtype)
        self.metadata = {METADATA_KEY: spec.to_json()}
        self.providers = (f"PyTorch {_shown(self._device)} {dtype}",)
        self.notes = ()
        self._wanted, self.threads_from = (threads, "as asked for") if threads is not None else default_threads()
        self.threads = torch.get_num_threads() if self._wanted is None else self._wanted

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See :meth:`deploykit.runtime.session.Session.run`."""
        if self._module is None:
            raise BackendError("the PyTorch session is closed")
        check_inputs(self.inputs, inputs)
        fed = inputs[self.inputs[0].name]
        image = torch.from_numpy(fed.copy() if min(fed.strides, default=0) < 0 else fed)  # torch has no such strides
        image = image.to(self._device)
        try:
            with torch.inference_mode(), self._threads(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                output = self._exactly(image.double()) if self._exact else self._module(image)
        except RuntimeError as e:
            raise BackendError(f"PyTorch failed: {e}") from e
        found = output if isinstance(output, tuple) else (output,)
        if len(found) != len(self._outputs):
            told = f"{len(found)} output{'s' * (len(found) > 1)}"
            raise BackendError(f"PyTorch gave {told}, the spec names {', '.join(self._outputs)}")
        return {name: value.cpu().numpy() for name, value in zip(self._outputs, found, strict=True)}

    def _exactly(self, image: Tensor) -> Any:
        """Compute in float64."""
        wide = self._widened()
        if self._device.type != "cpu":
            return wide(image)
        try:
            with ExactConvolutions():
                return wide(image)
        except (NarrowedError, RuntimeError):  # the network reads a layer's weights itself, or their type
            self._wide = wide = widened(cast(nn.Module, self._module), whole=True)
            with ExactConvolutions():
                return wide(image)

    def _widened(self) -> nn.Module:
        if self._wide is None:  # only when needed: it takes memory
            self._wide = widened(cast(nn.Module, self._module), whole=self._device.type != "cpu")
        return self._wide

    @contextlib.contextmanager
    def side_by_side(self, most: int) -> Iterator[int]:
        """Let up to ``most`` threads call :meth:`run` at the same time; yields how many, which share torch's threads.

        The threads of an operator wait for one another, which costs most where other programs compute too. Images do
        not wait.
        """
        threads = self.threads or 1
        count = max(1, min(most, threads)) if self._device.type == "cpu" else 1
        if self._exact and self._module is not None:
            self._widened()
        before = self._wanted
        with torch_threads(max(1, threads // count)):
            self._wanted = None
            try:
                yield count
            finally:
                self._wanted = before

    def _threads(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self._wanted is None else torch_threads(self._wanted)

    def close(self) -> None:
        """Drop the module."""
        self._module = self._wide = None


def torch_device(name: str) -> torch.device:
    """Return torch's device of this name.

    Raises:
        DeviceError: torch has no such device. UsageError: it is not ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    """
    if name in ("auto", "cpu"):
        return torch.device("cpu")
    if not name.startswith("cuda"):
        raise UsageError(f"a checkpoint runs in torch, on the device cpu, cuda or cuda:N; {name!r} is for exports")
    index, version = device_index(name), torch.__version__
    if torch.version.cuda is None:
        raise DeviceError(f"PyTorch {version} is built for the CPU: for {name} install a build of it for CUDA")
    if not torch.cuda.is_available():
        reason = gpu_unavailable_reason() or "torch finds none"
        raise DeviceError(f"PyTorch {version} (CUDA {torch.version.cuda}) has no GPU for {name}: {reason}")
    if index >= (count := torch.cuda.device_count()):
        raise DeviceError(f"{name} was asked for, but torch has {count} GPU{'s' * (count != 1)}, from cuda:0 on")
    return torch.device("cuda", index)


def _shown(device: torch.device) -> str:
    return "CPU" if device.type == "cpu" else f"{torch.cuda.get_device_name(device)} (cuda:{device.index})"


def _outputs(spec: ModelSpec, dtype: str) -> tuple[TensorInfo, ...]:
    return tuple(
        TensorInfo(tensor.name, (None,) * len(tensor.axes), dtype if tensor.dtype == "float" else tensor.dtype)
        for tensor in spec.output_tensors
    )


def spec_of_module(model: ReferenceModel) -> ModelSpec:
    """The spec of the model as PyTorch runs it: any batch, and any size that is a multiple of the stride.

    So it takes each image's own rectangle, as an export with a dynamic shape does.
    """
    fit = replace(model.spec.input.fit, auto=True)
    return replace(model.spec, input=replace(model.spec.input, dynamic="shape", fit=fit))


def open_torch_session(
    path: str | Path,
    *,
    exact: bool = False,
    threads: int | None = None,
    device: str = "auto",
    preprocessing: str = DEFAULT,
    loading: LoadOptions | None = None,
) -> tuple[TorchSession, ModelSpec]:
    """Read a checkpoint without executing it, fold it and run it in PyTorch; ``exact``: in float64.

    Raises:
        CheckpointError: not a checkpoint that deploykit knows.
        UsageError: the model has no such preprocessing (see :func:`deploykit.models.registry.with_preprocessing`).
        FoldError: a fold changed its numbers.
        DeviceError: torch has no such device.
    """
    torch_device(device)  # a device that is missing is an error before seconds of loading
    model = load_model(path, preprocessing=preprocessing, loading=loading)
    spec = spec_of_module(model)
    session = TorchSession(fuse_model(model.module), spec, exact=exact, threads=threads, device=device)
    session.notes = model.all_notes
    return session, spec
