"""A PyTorch model as a session of the runtime, so that a checkpoint predicts and is compared like an artefact."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from deploykit.errors import BackendError
from deploykit.models.fuse import fuse_model, torch_threads
from deploykit.models.load_options import LoadOptions
from deploykit.models.registry import DEFAULT, ReferenceModel, load_model
from deploykit.runtime.arrays import Array
from deploykit.runtime.session import Session, TensorInfo, check_inputs
from deploykit.spec import METADATA_KEY, ModelSpec

__all__ = ["TorchSession", "open_torch_session", "spec_of_module"]


class TorchSession(Session):
    """A module on the CPU in eval mode: one input, the spec's outputs in their order, any batch, any size it supports.

    ``exact`` computes in float64, which shows what the weights mean without the rounding of any implementation. It is
    about six times slower, and the output is float64. ``threads``: per operator; None keeps torch's own setting.
    """

    def __init__(self, module: nn.Module, spec: ModelSpec, *, exact: bool = False, threads: int | None = None) -> None:
        self._module: nn.Module | None = module
        self._exact, self._wide = exact, False
        self._outputs = spec.output_names
        self.inputs = (TensorInfo(spec.input.name, (None, spec.input.channels, None, None), "float32"),)
        dtype = "float64" if exact else "float32"
        self.outputs = _outputs(spec, dtype)
        self.metadata = {METADATA_KEY: spec.to_json()}
        self.providers = (f"PyTorch CPU {dtype}",)
        self.notes = ()
        self.threads = torch.get_num_threads() if threads is None else threads
        self._wanted = threads

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See :meth:`deploykit.runtime.session.Session.run`."""
        if self._module is None:
            raise BackendError("the PyTorch session is closed")
        check_inputs(self.inputs, inputs)
        fed = inputs[self.inputs[0].name]
        image = torch.from_numpy(fed.copy() if min(fed.strides, default=0) < 0 else fed)  # torch has no such strides
        if self._exact:
            image = image.double()
            if not self._wide:  # only when needed: it takes twice the memory
                self._module, self._wide = copy.deepcopy(self._module).double(), True
        try:
            with torch.inference_mode(), self._threads():
                output = self._module(image)
        except RuntimeError as e:
            raise BackendError(f"PyTorch failed: {e}") from e
        found = output if isinstance(output, tuple) else (output,)
        if len(found) != len(self._outputs):
            told = f"{len(found)} output{'s' * (len(found) > 1)}"
            raise BackendError(f"PyTorch gave {told}, the spec names {', '.join(self._outputs)}")
        return {name: value.numpy() for name, value in zip(self._outputs, found, strict=True)}

    def _threads(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self._wanted is None else torch_threads(self._wanted)

    def close(self) -> None:
        """Drop the module."""
        self._module = None


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
    preprocessing: str = DEFAULT,
    loading: LoadOptions | None = None,
) -> tuple[TorchSession, ModelSpec]:
    """Read a checkpoint without executing it, fold it and run it in PyTorch; ``exact``: in float64.

    Raises:
        CheckpointError: not a checkpoint that deploykit knows.
        UsageError: the model has no such preprocessing (see :func:`deploykit.models.registry.with_preprocessing`).
        FoldError: a fold changed its numbers.
    """
    model = load_model(path, preprocessing=preprocessing, loading=loading)
    spec = spec_of_module(model)
    session = TorchSession(fuse_model(model.module), spec, exact=exact, threads=threads)
    session.notes = model.all_notes
    return session, spec
