"""The steps as models of Triton's Python backend, which creates them and calls ``initialize`` and ``execute``.

The module ``triton_python_backend_utils`` is Triton's own and exists inside of Triton alone. The interface is described
at https://github.com/triton-inference-server/python_backend.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from deploykit.errors import BackendError, DeployError
from deploykit.runtime.arrays import Array
from deploykit.runtime.options import PredictOptions
from deploykit.runtime.predict.predictor import Predictor
from deploykit.runtime.results.base import ImageResult
from deploykit.runtime.session import Session, TensorInfo, check_inputs
from deploykit.runtime.spec_file import read_spec
from deploykit.runtime.triton.steps import Decoding, Preparation
from deploykit.runtime.triton.tensors import (
    CANVAS,
    IMAGE,
    PLACEMENT,
    RESULT,
    TYPES,
    ResultArray,
    arrays_of,
    network_tensor,
    result_arrays,
    typed,
)
from deploykit.spec import ModelSpec
from deploykit.strict_json import parse_json, read_json

__all__ = ["NETWORK_FILE", "PARAMETERS", "SPEC_FILE", "Postprocess", "Predict", "Preprocess"]

SPEC_FILE = "spec.json"
"""The spec of the network as :func:`deploykit.runtime.triton.steps.fixed_spec` returns it, beside ``model.py``."""

NETWORK_FILE = "network.json"
"""The network that :class:`Predict` calls: its model in Triton, its tensors, and the tiles of one run."""

PARAMETERS: dict[str, type[int] | type[float]] = {
    "conf": float,
    "iou": float,
    "max_det": int,
    "top": int,
    "tile": int,
    "overlap": int,
    "max_pixels": int,
}
"""Parameters of the configuration: fields of :class:`deploykit.runtime.options.PredictOptions`."""


class _Step(ABC):
    """What all do: read their configuration, and answer each request of a call for itself."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Read the configuration and the spec.

        Args:
            args: Triton's: ``model_config`` (JSON), ``model_repository`` (the model's folder), ``model_version``.

        Raises:
            SpecError, UsageError: they do not fit; Triton then does not load the model.
        """
        import triton_python_backend_utils as backend

        self._backend = backend
        config: dict[str, Any] = parse_json(args["model_config"])
        self._folder = Path(args["model_repository"], args["model_version"])
        spec = read_spec(self._folder / SPEC_FILE)
        assert spec is not None
        given = {name: typed(config.get("parameters", {}), name, kind) for name, kind in PARAMETERS.items()}
        options = PredictOptions(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]  # of the kinds in the table
        self._prepare(spec, config, options)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Return one response per request: its tensors, or its error, which is no error of the others."""
        return [self._response(request) for request in requests]

    def _response(self, request: Any) -> Any:
        backend = self._backend
        try:
            found = self._answer(request)
        except DeployError as e:
            return backend.InferenceResponse(error=backend.TritonError(str(e), backend.TritonError.INVALID_ARG))
        return backend.InferenceResponse([backend.Tensor(name, value) for name, value in found.items()])

    def _input(self, request: Any, name: str) -> Array:
        value: Array = self._backend.get_input_tensor_by_name(request, name).as_numpy()
        return value

    @abstractmethod
    def _prepare(self, spec: ModelSpec, config: Mapping[str, Any], options: PredictOptions) -> None:
        """Set up the step."""

    @abstractmethod
    def _answer(self, request: Any) -> dict[str, Array]:
        """Return the output tensors of a request."""


class Preprocess(_Step):
    """Encoded images to the network's input, and their placements."""

    def _prepare(self, spec: ModelSpec, config: Mapping[str, Any], options: PredictOptions) -> None:
        self._step = Preparation(spec, _network_input(config), options)

    def _answer(self, request: Any) -> dict[str, Array]:
        images = [_bytes(value) for value in self._input(request, IMAGE).ravel()]
        tensor, placements = self._step(images)
        return {CANVAS: tensor, PLACEMENT: placements}


class Postprocess(_Step):
    """The network's outputs and the placements to JSON documents and arrays."""

    def _prepare(self, spec: ModelSpec, config: Mapping[str, Any], options: PredictOptions) -> None:
        self._names = [tensor.name for tensor in spec.output_tensors]
        self._batched = bool(config["max_batch_size"])
        self._arrays = result_arrays(spec)
        self._step = Decoding(spec, options)

    def _answer(self, request: Any) -> dict[str, Array]:
        outputs = {name: self._input(request, network_tensor(name)) for name in self._names}
        results = self._step(outputs, self._input(request, PLACEMENT))
        found = _told(results, self._arrays, request)
        return {**found, RESULT: found[RESULT][:, None]} if self._batched else found


class Predict(_Step):
    """Encoded images to JSON documents and arrays, by a predictor that calls the network as often as it needs it.

    This is for networks that take an image in tiles, which no ensemble can do.
    """

    def _prepare(self, spec: ModelSpec, config: Mapping[str, Any], options: PredictOptions) -> None:
        facts = read_json(self._folder / NETWORK_FILE)
        tensors = [tuple(_tensor(each) for each in facts[side]) for side in ("inputs", "outputs")]
        session = NetworkInTriton(self._backend, facts["model"], *tensors)
        batch = facts["batch"] if session.inputs[0].shape[0] is None else None
        self._predictor: Predictor[Any] = Predictor(session, spec, replace(options, batch=batch), name=facts["model"])
        self._arrays = result_arrays(spec)

    def _answer(self, request: Any) -> dict[str, Array]:
        images = [_bytes(value) for value in self._input(request, IMAGE).ravel()]
        return _told(self._predictor(images), self._arrays, request)


class NetworkInTriton(Session):
    """A model of the same Triton, called from a Python model.

    Args:
        backend: the module that Triton gives its Python models.
        model: the name of the model.
        inputs, outputs: its tensors.
    """

    def __init__(
        self, backend: Any, model: str, inputs: tuple[TensorInfo, ...], outputs: tuple[TensorInfo, ...]
    ) -> None:
        self._backend, self._model = backend, model
        self.inputs, self.outputs, self.metadata = inputs, outputs, {}
        self.providers = ("Triton",)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See :meth:`deploykit.runtime.session.Session.run`."""
        check_inputs(self.inputs, inputs)
        backend = self._backend
        response = backend.InferenceRequest(
            model_name=self._model,
            requested_output_names=[info.name for info in self.outputs],
            inputs=[backend.Tensor(name, np.ascontiguousarray(value)) for name, value in inputs.items()],
            preferred_memory=backend.PreferredMemory(backend.TRITONSERVER_MEMORY_CPU, 0),
        ).exec()
        if response.has_error():
            raise BackendError(f"{self._model} failed: {response.error().message()}")
        return {info.name: backend.get_output_tensor_by_name(response, info.name).as_numpy() for info in self.outputs}

    def close(self) -> None:
        """Nothing is open."""


def _told(results: Sequence[ImageResult], arrays: Sequence[ResultArray], request: Any) -> dict[str, Array]:
    """Return the documents ``(n,)`` of results, and those of their arrays that a request asks for."""
    asked = set(request.requested_output_names())
    documents = [json.dumps(result.to_dict(), ensure_ascii=False).encode() for result in results]
    found = arrays_of(results, [each for each in arrays if each.name in asked])
    return {RESULT: np.array(documents, np.object_), **found}


def _tensor(facts: Mapping[str, Any]) -> TensorInfo:
    return TensorInfo(facts["name"], tuple(facts["shape"]), facts["dtype"])


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def _network_input(config: Mapping[str, Any]) -> TensorInfo:
    """Return the network's input as the configuration of the step before it says."""
    kinds = {kind: dtype for dtype, kind in TYPES.items()}
    (tensor,) = (each for each in config["output"] if each["name"] == CANVAS)
    sides = [None if int(side) < 0 else int(side) for side in tensor["dims"]]
    return TensorInfo(CANVAS, (None, *sides) if config["max_batch_size"] else tuple(sides), kinds[tensor["data_type"]])
