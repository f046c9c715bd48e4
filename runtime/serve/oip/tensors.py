"""Tensors as the Open Inference Protocol writes them: names of types, bytes, and values of JSON."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deploykit.errors import UsageError
from deploykit.runtime.arrays import Array

__all__ = ["BYTES", "Tensor", "datatype_of", "from_bytes", "from_values", "to_bytes", "to_values"]

BYTES = "BYTES"
TYPES = {
    "BOOL": np.bool_, "UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32, "UINT64": np.uint64,
    "INT8": np.int8, "INT16": np.int16, "INT32": np.int32, "INT64": np.int64,
    "FP16": np.float16, "FP32": np.float32, "FP64": np.float64,
}  # fmt: skip
NAMES = {np.dtype(kind): name for name, kind in TYPES.items()}
MOST_AXES = 16
LENGTH = struct.Struct("<I")


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor: its name, its type in the protocol's words, and its values (of ``BYTES`` an array of bytes objects)."""

    name: str
    datatype: str
    values: Array


def datatype_of(dtype: str) -> str:
    """Return the protocol's name of a type of numpy.

    Raises:
        UsageError: it has none.
    """
    try:
        return NAMES[np.dtype(dtype)]
    except (KeyError, TypeError) as e:
        raise UsageError(f"tensors of type {dtype} are not part of the protocol") from e


def _checked(name: str, datatype: str, shape: Sequence[int]) -> int:
    """Return the number of values of a shape.

    Raises:
        UsageError: the type is unknown, or the shape is none.
    """
    if datatype != BYTES and datatype not in TYPES:
        raise UsageError(f"the datatype of {name!r} must be one of {', '.join((*TYPES, BYTES))}, got {datatype[:20]!r}")
    if len(shape) > MOST_AXES or any(side < 1 for side in shape):
        raise UsageError(f"the shape of {name!r} must be at most {MOST_AXES} sides of at least 1, got {list(shape)}")
    return math.prod(shape)


def from_bytes(name: str, datatype: str, shape: Sequence[int], data: bytes | memoryview) -> Tensor:
    """Read a tensor from its raw bytes: little-endian, row by row; of ``BYTES`` each value after its length (uint32).

    Raises:
        UsageError: there are more or fewer bytes than the shape has.
    """
    count = _checked(name, datatype, shape)
    if datatype == BYTES:
        return Tensor(name, datatype, _objects(_split(name, data, count), shape))
    kind = np.dtype(TYPES[datatype]).newbyteorder("<")
    if count * kind.itemsize != len(data):
        raise UsageError(
            f"{name!r} of shape {list(shape)} and type {datatype} has {count * kind.itemsize:,} bytes, not {len(data)}"
        )
    values = np.frombuffer(data, kind).reshape(shape)
    if datatype == "BOOL" and len(data) and int(np.frombuffer(data, np.uint8).max()) > 1:
        raise UsageError(f"{name!r} is of type BOOL, whose bytes are 0 or 1")
    return Tensor(name, datatype, values.astype(kind.newbyteorder("="), copy=False))


def _split(name: str, data: bytes | memoryview, count: int) -> list[bytes]:
    found: list[bytes] = []
    place, view = 0, memoryview(data)
    while place < len(view) and len(found) < count:
        if place + LENGTH.size > len(view):
            break
        (length,) = LENGTH.unpack_from(view, place)
        place += LENGTH.size
        if place + length > len(view):
            break
        found.append(bytes(view[place : place + length]))
        place += length
    if len(found) != count or place != len(view):
        raise UsageError(f"{name!r} must be {count} values, each after its length in 4 bytes, and nothing more")
    return found


def _objects(values: Sequence[bytes], shape: Sequence[int]) -> Array:
    array = np.empty(len(values), object)
    array[:] = values
    return array.reshape(shape)


def from_values(name: str, datatype: str, shape: Sequence[int], data: Any) -> Tensor:
    """Read a tensor from numbers, truth values or text: flat, or in lists as its shape is.

    Raises:
        UsageError: they are not as many as the shape has, or not of the type.
    """
    count = _checked(name, datatype, shape)
    flat = _flat(name, data)
    if len(flat) != count:
        raise UsageError(f"{name!r} of shape {list(shape)} has {count:,} values, got {len(flat):,}")
    if datatype == BYTES:
        if not all(isinstance(each, (str, bytes)) for each in flat):
            raise UsageError(f"{name!r} is of type BYTES, whose values are text")
        return Tensor(name, datatype, _objects([e.encode() if isinstance(e, str) else e for e in flat], shape))
    kind = np.dtype(TYPES[datatype])
    allowed = {bool} if datatype == "BOOL" else {int} if kind.kind in "iu" else {int, float}
    if not {type(each) for each in flat} <= allowed:
        raise UsageError(f"{name!r} is of type {datatype}, and has values of another type")
    try:
        with np.errstate(over="ignore"):  # a number that is too large is infinite, as in a file
            values = np.array(flat, kind)
    except (OverflowError, ValueError) as e:
        raise UsageError(f"{name!r} is of type {datatype}, and has a value that does not fit") from e
    return Tensor(name, datatype, values.reshape(shape))


def _flat(name: str, data: Any) -> list[Any]:
    """Return the values of nested lists in order."""
    level = data if isinstance(data, list) else [data]
    for _ in range(MOST_AXES):
        nested = [isinstance(each, list) for each in level]
        if not any(nested):
            return level
        if not all(nested):
            break
        level = [item for each in level for item in each]
    raise UsageError(f"the data of {name!r} must be flat, or lists in lists as its shape is")


def to_bytes(tensor: Tensor) -> bytes:
    """Return the raw bytes of a tensor; see :func:`from_bytes`."""
    if tensor.datatype == BYTES:
        return b"".join(LENGTH.pack(len(each)) + each for each in tensor.values.ravel())
    values = np.ascontiguousarray(tensor.values)
    return values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()


def to_values(tensor: Tensor) -> list[Any]:
    """Return the values of a tensor for JSON, flat.

    Raises:
        UsageError: JSON cannot hold them.
    """
    if tensor.datatype == BYTES:
        try:
            return [each.decode() for each in tensor.values.ravel()]
        except UnicodeDecodeError as e:
            raise UsageError(f"{tensor.name!r} is no text, which JSON needs: ask for binary data") from e
    if tensor.values.dtype.kind == "f" and not np.isfinite(tensor.values).all():
        raise UsageError(f"{tensor.name!r} has values that are no numbers, which JSON lacks: ask for binary data")
    found: list[Any] = tensor.values.ravel().tolist()
    return found
