"""An inference of the protocol, whatever carries it: the bare network on tensors, or images to JSON.

Every model takes besides the tensors of its network one input ``image`` of type ``BYTES``, encoded images, and gives
for it one output ``result`` of type ``BYTES``: for each image the document of ``/v1/predict``.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deploykit.errors import BackendError, UsageError
from deploykit.runtime.serve.core.asked import PARAMETERS, asked_options
from deploykit.runtime.serve.core.calls import Call
from deploykit.runtime.serve.core.describing import documented
from deploykit.runtime.serve.core.model import ServedModel
from deploykit.runtime.serve.core.registry import Registry
from deploykit.runtime.serve.oip.tensors import BYTES, Tensor, datatype_of
from deploykit.runtime.session import shape_matches

__all__ = ["IMAGE", "RESULT", "Inference", "infer"]

IMAGE, RESULT = "image", "result"
MOST_SECONDS = 1e9
REFUSED = ("sequence_id", "shared_memory_region", "classification")
"""Parameters with which a request would mean something else than what it is answered with."""


@dataclass(frozen=True)
class Inference:
    """A request of the protocol.

    Attributes:
        name, version: of the model; an empty version: the newest.
        inputs: the tensors.
        outputs: the names of the outputs that are wanted; none: all.
        parameters: of the request: options of a prediction, ``timeout`` in microseconds.
    """

    name: str
    version: str
    inputs: Sequence[Tensor]
    outputs: Sequence[str] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)


async def infer(registry: Registry, asked: Inference, call: Call) -> tuple[ServedModel, list[Tensor]]:
    """Answer a request.

    Returns:
        The model that answered, and the outputs.

    Raises:
        UsageError: inputs or outputs are not those of the model.
        TimeoutError: the request's own time limit has passed.
    """
    check_parameters(asked.parameters)
    model = registry.get(asked.name, asked.version)
    call.model, call.version = model.source.name, model.source.version
    with model.held():
        async with asyncio.timeout(_seconds(asked.parameters.get("timeout"))):
            if [(each.name, each.datatype) for each in asked.inputs] == [(IMAGE, BYTES)]:
                found = [await _of_images(model, asked, call)]
            else:
                found = await _of_tensors(model, asked, call)
    if not asked.outputs:
        return model, found
    by_name = {tensor.name: tensor for tensor in found}
    return model, [by_name[name] for name in asked.outputs]


def check_parameters(parameters: Mapping[str, Any]) -> None:
    """Check the parameters of a request or of a tensor.

    Raises:
        UsageError: one asks for what is not offered.
    """
    for name in REFUSED:
        if parameters.get(name):
            raise UsageError(f"the parameter {name} is not offered here")


def _seconds(microseconds: Any) -> float | None:
    if not microseconds:
        return None
    if type(microseconds) is not int or microseconds < 0:
        raise UsageError("timeout must be a number of microseconds")
    return min(microseconds / 1e6, MOST_SECONDS)


async def _of_images(model: ServedModel, asked: Inference, call: Call) -> Tensor:
    _check_outputs(asked.outputs, [RESULT])
    options = asked_options({name: asked.parameters[name] for name in PARAMETERS if name in asked.parameters}, model)
    (images,) = asked.inputs
    tasks = [
        asyncio.ensure_future(model.predict(data, f"image{i}", options)) for i, data in enumerate(images.values.ravel())
    ]
    try:
        answers = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
    texts = [json.dumps(await documented(answer, model, call)).encode() for answer in answers]
    call.stages.update(answers[-1].timings)
    found = np.empty(len(texts), object)
    found[:] = texts
    return Tensor(RESULT, BYTES, found.reshape(images.values.shape))


async def _of_tensors(model: ServedModel, asked: Inference, call: Call) -> list[Tensor]:
    session = model.predictor.session
    known, given = {info.name: info for info in session.inputs}, {tensor.name: tensor for tensor in asked.inputs}
    if set(given) != set(known) or len(given) != len(asked.inputs):
        expected = ", ".join(f"{info.name} ({datatype_of(info.dtype)})" for info in known.values())
        got = ", ".join(tensor.name[:50] for tensor in asked.inputs) or "none"
        raise UsageError(f"the inputs must be {expected}, or {IMAGE} ({BYTES}); got {got}")
    for name, info in known.items():
        tensor, datatype = given[name], datatype_of(info.dtype)
        if tensor.datatype != datatype or not shape_matches(info.shape, tensor.values.shape):
            shape = [-1 if side is None else side for side in info.shape]
            raise UsageError(
                f"the input {name!r} must be {datatype} {shape}, got {tensor.datatype} {list(tensor.values.shape)}"
            )
    if session.outputs:
        _check_outputs(asked.outputs, [info.name for info in session.outputs])
    try:
        outputs, stages = await model.infer({name: tensor.values for name, tensor in given.items()})
    except BackendError as e:
        raise _size_refused(model, given) or e from e
    call.stages.update(stages)
    _check_outputs(asked.outputs, list(outputs))
    return [Tensor(name, datatype_of(values.dtype.name), values) for name, values in outputs.items()]


def _size_refused(model: ServedModel, given: Mapping[str, Tensor]) -> UsageError | None:
    """Return the error of tensors whose sizes are free, but not any size; None: they have the size of the spec."""
    canvas = model.predictor.spec.input
    if canvas.name not in given or (got := given[canvas.name].values.shape[2:]) == canvas.size:
        return None
    (height, width), step = canvas.size, canvas.fit.stride
    return UsageError(
        f"the network does not take an input {canvas.name!r} of {' x '.join(map(str, got))}: its sides are multiples "
        f"of {step}, such as {height} x {width}"
    )


def _check_outputs(wanted: Sequence[str], known: Sequence[str]) -> None:
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise UsageError(f"there is no output {unknown[0][:50]!r}; there are {', '.join(known)}")
