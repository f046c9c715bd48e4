"""The graph of an ONNX file without its large weights, which it says to be in the file itself.

ONNX keeps tensors either inside its protobuf message or in another file, by name, offset and length. A message in
memory whose tensors point into the file that they were read from lets a runtime map them instead of copying them.
Numbers of fields are those of onnx.proto: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto (Apache-2.0).
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from deploykit.errors import ArtefactError

__all__ = [
    "Convolution",
    "convolutions",
    "external_files",
    "external_paths",
    "graph_without_weights",
    "has_free_sides",
    "metadata_of",
]

LEAST_TENSOR = 1 << 20  # bytes; grids and other constants are smaller, and runtimes keep those as they are
LEAST_SUM = 16 << 20  # bytes of such tensors in a file; below, reading them costs little

GRAPH, METADATA_PROPS, NODE, INITIALIZER = 7, 14, 1, 5  # two of ModelProto, two of GraphProto
GRAPH_INPUT = 11  # of GraphProto
TO_SIDES = (2, 1, 2, 1)  # from a ValueInfoProto: type, tensor_type, shape, dim
SIDE = 1  # of a dim: its number; without, it has a name or nothing
INPUT, OUTPUT, OP_TYPE, ATTRIBUTE = 1, 2, 4, 5  # of NodeProto
ATTRIBUTE_NAME, INTS = 1, 8  # of AttributeProto
NAME = 8  # of TensorProto, and the next
DIMS, DATA_TYPE, RAW_DATA, EXTERNAL_DATA, DATA_LOCATION = 1, 2, 9, 13, 14  # of TensorProto
FLOAT = EXTERNAL = 1

Field = tuple[int, int, int, int, int]
"""Number, wire type, where the field begins, and where its value begins and ends."""


class Convolution(NamedTuple):
    """The shape (outputs, inputs of a group, kernel) of its weights; whether it has a stride or a border."""

    weights: tuple[int, ...]
    moves: bool


def graph_without_weights(file: Path) -> bytes | None:
    """Return the model of an ONNX file whose large float32 tensors point into the file, by its name.

    None: the file has few of them, has tensors outside already, or is not a whole ONNX file.
    """
    try:
        name = file.name.encode()
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _model(data, name)
    except (OSError, ValueError, IndexError):
        return None


def external_files(file: Path) -> list[str]:
    """Return the files in which tensors of an ONNX file's main graph lie, as it names them; empty: it has none.

    Raises:
        ArtefactError: the file cannot be read.
    """
    found: dict[str, None] = {}
    try:
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for place in _inside(data, (0, len(data)), (GRAPH, INITIALIZER, EXTERNAL_DATA)):
                entry = {number: data[start:end] for number, _, _, start, end in _fields(data, *place)}
                if entry.get(1) == b"location":
                    found[entry.get(2, b"").decode()] = None
    except (OSError, ValueError, IndexError) as e:
        raise _not_onnx(file, e) from e
    return list(found)


def external_paths(file: Path) -> list[Path]:
    """Return those files of :func:`external_files` that lie in the folder of the ONNX file; none leads elsewhere.

    Raises:
        ArtefactError: the file cannot be read.
    """
    named = [name for name in external_files(file) if Path(name).name == name]
    return [part for name in named if (part := file.with_name(name)).is_file()]


def metadata_of(file: Path) -> dict[str, str]:
    """Return the metadata of an ONNX file, which is read without its weights.

    Raises:
        ArtefactError: the file cannot be read.
    """
    found = {}
    try:
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for place in _inside(data, (0, len(data)), (METADATA_PROPS,)):
                entry = {number: data[start:end] for number, _, _, start, end in _fields(data, *place)}
                found[entry.get(1, b"").decode()] = entry.get(2, b"").decode()
    except (OSError, ValueError, IndexError) as e:
        raise _not_onnx(file, e) from e
    return found


def convolutions(file: Path) -> list[Convolution]:
    """Return the convolutions of an ONNX file's main graph whose weights are stored, as they are or quantized.

    Raises:
        ArtefactError: the file cannot be read.
    """
    shapes: dict[bytes, tuple[int, ...]] = {}
    source: dict[bytes, bytes] = {}
    found: list[tuple[bytes, bool]] = []
    try:
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for place in _inside(data, (0, len(data)), (GRAPH, NODE)):
                node: dict[int, list[tuple[int, int]]] = {INPUT: [], OUTPUT: [], OP_TYPE: [], ATTRIBUTE: []}
                for number, _, _, start, end in _fields(data, *place):
                    node.get(number, []).append((start, end))
                kind = b"".join(data[start:end] for start, end in node[OP_TYPE])
                if kind == b"DequantizeLinear":
                    source[data[slice(*node[OUTPUT][0])]] = data[slice(*node[INPUT][0])]
                elif kind == b"Conv":
                    numbers = dict(_whole_numbers(data, *where) for where in node[ATTRIBUTE])
                    moves = max(numbers.get(b"strides", ()), default=1) > 1 or any(numbers.get(b"pads", ()))
                    found.append((data[slice(*node[INPUT][1])], moves))
            for place in _inside(data, (0, len(data)), (GRAPH, INITIALIZER)):
                name, sides = b"", []
                for number, wire, _, start, end in _fields(data, *place):
                    if number == NAME:
                        name = data[start:end]
                    elif number == DIMS:
                        sides += _repeated(data, wire, start, end)
                shapes[name] = tuple(sides)
    except (OSError, ValueError, IndexError) as e:
        raise _not_onnx(file, e) from e
    made = (Convolution(shapes.get(source.get(name, name), ()), moves) for name, moves in found)
    return [each for each in made if len(each.weights) > 1]


def has_free_sides(file: Path) -> bool:
    """Return whether a side of an ONNX file's inputs is free, such as a batch of any size; False also for no ONNX."""
    try:
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            sides = _inside(data, (0, len(data)), (GRAPH, GRAPH_INPUT, *TO_SIDES))
            return any(all(number != SIDE for number, *_ in _fields(data, *place)) for place in sides)
    except (OSError, ValueError, IndexError):
        return False  # whoever loads it says what is wrong


def _whole_numbers(data: mmap.mmap, start: int, end: int) -> tuple[bytes, list[int]]:
    """Return an attribute's name, and its numbers where it is a list of them."""
    name, numbers = b"", []
    for number, wire, _, begin, until in _fields(data, start, end):
        if number == ATTRIBUTE_NAME:
            name = data[begin:until]
        elif number == INTS:
            numbers += _repeated(data, wire, begin, until)
    return name, numbers


def _repeated(data: mmap.mmap, wire: int, start: int, end: int) -> list[int]:
    """The numbers of a field that may be there several times, each time with one or with many."""
    return [_number(data, start)[0]] if wire == 0 else _numbers(data, start, end)


def _not_onnx(file: Path, error: Exception) -> ArtefactError:
    return ArtefactError(f"expected an ONNX file, but {file} cannot be read as one: {error}")


def _inside(data: mmap.mmap, place: tuple[int, int], numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield where the messages lie that fields of these numbers lead to, one within the other."""
    if not numbers:
        yield place
        return
    for number, wire, _, start, end in _fields(data, *place):
        if (number, wire) == (numbers[0], 2):
            yield from _inside(data, (start, end), numbers[1:])


def _model(data: mmap.mmap, name: bytes) -> bytes | None:
    parts, moved = [], 0
    for number, wire, begin, start, end in _fields(data, 0, len(data)):
        if (number, wire) == (GRAPH, 2):
            graph = []
            for field in _fields(data, start, end):
                tensor, size = _tensor(data, field, name)
                graph.append(tensor)
                moved += size
            parts.append(_message(GRAPH, b"".join(graph)))
        else:
            parts.append(data[begin:end])
    return b"".join(parts) if moved >= LEAST_SUM else None


def _tensor(data: mmap.mmap, field: Field, name: bytes) -> tuple[bytes, int]:
    """Return a field of the graph, of a large tensor without its values, and how many bytes of them are left out.

    Raises:
        ValueError: a tensor of the file is outside already.
    """
    number, wire, begin, start, end = field
    if (number, wire) != (INITIALIZER, 2):
        return data[begin:end], 0
    kept, raw, sides, kind = [], (0, 0), [], 0
    for inner, inner_wire, inner_begin, inner_start, inner_end in _fields(data, start, end):
        if inner == RAW_DATA:
            raw = (inner_start, inner_end - inner_start)
            continue
        if inner in (EXTERNAL_DATA, DATA_LOCATION):
            raise ValueError("a tensor is in another file")
        if inner == DATA_TYPE:
            kind = _number(data, inner_start)[0]
        if inner == DIMS:
            sides += _repeated(data, inner_wire, inner_start, inner_end)
        kept.append(data[inner_begin:inner_end])
    offset, size = raw
    if kind != FLOAT or size < LEAST_TENSOR or size != 4 * math.prod(sides):
        return data[begin:end], 0
    facts = {b"location": name, b"offset": b"%d" % offset, b"length": b"%d" % size}
    kept += [_message(EXTERNAL_DATA, _message(1, key) + _message(2, value)) for key, value in facts.items()]
    kept.append(_varint(DATA_LOCATION << 3) + _varint(EXTERNAL))
    return _message(INITIALIZER, b"".join(kept)), size


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[Field]:
    """Yield the fields of a protobuf message.

    Raises:
        ValueError, IndexError: these bytes are none.
    """
    place = start
    while place < end:
        key, value = _number(data, place)
        wire, after = key & 7, value
        if wire == 0:
            after = _number(data, value)[1]
        elif wire == 2:
            size, value = _number(data, value)
            after = value + size
        elif wire in (1, 5):
            after = value + (8 if wire == 1 else 4)
        else:
            raise ValueError(f"no message has the wire type {wire}")
        if after > end:
            raise ValueError("a field ends after its message")
        yield key >> 3, wire, place, value, after
        place = after


def _number(data: mmap.mmap, place: int) -> tuple[int, int]:
    """Return the variable-length number at ``place``, and the place after it."""
    found = 0
    for shift in range(0, 70, 7):
        byte = data[place]
        place += 1
        found |= (byte & 127) << shift
        if byte < 128:
            return found, place
    raise ValueError("a number of more than ten bytes")


def _numbers(data: mmap.mmap, start: int, end: int) -> list[int]:
    found = []
    while start < end:
        value, start = _number(data, start)
        found.append(value)
    return found


def _message(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
