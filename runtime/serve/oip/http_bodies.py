"""Bodies of an inference over HTTP: JSON, and after it the bytes of tensors in their order."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deploykit.errors import UsageError
from deploykit.runtime.serve.core.model import ServedModel
from deploykit.runtime.serve.oip.inference import Inference, check_parameters
from deploykit.runtime.serve.oip.tensors import Tensor, from_bytes, from_values, to_bytes, to_values
from deploykit.strict_json import JsonError, parse_json

__all__ = ["HEADER", "Read", "body_of", "read_inference"]

HEADER = "inference-header-content-length"
SIZE = "binary_data_size"


@dataclass(frozen=True)
class Read:
    """A request as it was read.

    Attributes:
        inference: what it asks for.
        id: its own number, which the answer has too.
        binary: whether outputs are bytes, for those that say; ``""`` for those that do not.
    """

    inference: Inference
    id: str
    binary: Mapping[str, bool]


def read_inference(body: bytes, header: str, name: str, version: str) -> Read:
    """Read the body of an inference.

    Args:
        body: the body, not compressed.
        header: the number of its bytes that are JSON, as the header tells; empty: all.
        name, version: of the model.

    Raises:
        UsageError: it is not one.
    """
    if header and not (header.isdecimal() and len(header) < 16 and int(header) <= len(body)):
        raise UsageError(f"{HEADER} must be the number of bytes of the JSON, got {header[:20]!r}")
    size = int(header) if header else len(body)
    try:
        asked = parse_json(body[:size], most=max(size, 1))
    except JsonError as e:
        raise UsageError(f"the body is not JSON: {e}") from e
    fields = _object(asked, "the body")
    parameters = _object(fields.get("parameters", {}), "parameters")
    rest = memoryview(body)[size:]
    tensors, place = [], 0
    for each in _list(fields.get("inputs"), "inputs"):
        tensor, used = _input(_object(each, "an input"), rest[place:])
        tensors.append(tensor)
        place += used
    if place != len(rest):
        raise UsageError(f"{len(rest) - place:,} bytes after the JSON belong to no input")
    everything = parameters.get("binary_data_output") is True
    outputs, binary = [], {"": everything}
    for each in _list(fields.get("outputs", []), "outputs"):
        wanted = _object(each, "an output")
        own = _object(wanted.get("parameters", {}), "the parameters of an output")
        check_parameters(own)
        outputs.append(_text(wanted.get("name"), "the name of an output"))
        binary[outputs[-1]] = own.get("binary_data", everything) is True
    return Read(Inference(name, version, tensors, outputs, parameters), _text(fields.get("id", ""), "id"), binary)


def _input(fields: Mapping[str, Any], rest: memoryview) -> tuple[Tensor, int]:
    """Read one input, and return how many bytes after the JSON it took."""
    name, datatype = _text(fields.get("name"), "the name of an input"), _text(fields.get("datatype"), "datatype")
    shape = _list(fields.get("shape"), "shape")
    if not all(type(side) is int for side in shape):
        raise UsageError(f"the shape of {name!r} must be whole numbers")
    parameters = _object(fields.get("parameters", {}), "the parameters of an input")
    check_parameters(parameters)
    if (SIZE in parameters) == ("data" in fields):
        raise UsageError(f"{name!r} must have either data or {SIZE}")
    if "data" in fields:
        return from_values(name, datatype, shape, fields["data"]), 0
    size = parameters[SIZE]
    if type(size) is not int or not 0 <= size <= len(rest):
        raise UsageError(f"{SIZE} of {name!r} must be at most the {len(rest):,} bytes that follow, got {size!r:.20}")
    return from_bytes(name, datatype, shape, rest[:size]), size


def body_of(read: Read, model: ServedModel, outputs: Sequence[Tensor]) -> tuple[bytes, int | None]:
    """Return the body of an answer, and the number of its bytes that are JSON; None: all."""
    parts, described = [], []
    for tensor in outputs:
        about: dict[str, Any] = {
            "name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.values.shape)
        }  # fmt: skip
        if read.binary.get(tensor.name, read.binary[""]):
            parts.append(to_bytes(tensor))
            about["parameters"] = {SIZE: len(parts[-1])}
        else:
            about["data"] = to_values(tensor)
        described.append(about)
    answer = {
        **({"id": read.id} if read.id else {}),
        "model_name": model.source.name,
        "model_version": str(model.source.version),
        "outputs": described,
    }
    text = json.dumps(answer, allow_nan=False, separators=(",", ":")).encode()
    return b"".join((text, *parts)), len(text) if parts else None


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"{what} must be a JSON object")
    return value


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise UsageError(f"{what} must be a list")
    return value


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{what} must be text")
    return value
