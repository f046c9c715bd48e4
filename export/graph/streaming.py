"""An ONNX file written weight by weight, byte for byte what protobuf would write from a copy of all weights.

protobuf builds a message with a copy of every weight, and then its bytes, another copy; checking those bytes takes a
third. Here the message holds empty tensors in place of large weights, whose bytes go from the graph to the file.
"""

from __future__ import annotations

import copy
from pathlib import Path

import onnx
import onnx_ir as ir

from deploykit.errors import ExportError

__all__ = ["write_streaming"]

LEAST = 2**16  # bytes of a weight that is written by itself
GRAPH, INITIALIZER, RAW_DATA = 7, 5, 9  # numbers of fields in ModelProto, GraphProto and TensorProto


def write_streaming(graph: ir.Model, file: Path, *, check: bool = True) -> None:
    """Check a graph, unless ``check`` is False, and write it to a file.

    Raises:
        onnx.checker.ValidationError: it is not valid ONNX. ExportError: a weight has other bytes than its shape says.
    """
    large = {name: tensor for name, value in graph.graph.initializers.items() if (tensor := _large(value.const_value))}
    model = _without(graph, large)
    if check:
        onnx.checker.check_model(_to_check(model, large))
    initializers = list(model.graph.initializer)
    before, after = _split(model.graph, INITIALIZER)
    first, last = _split(model, GRAPH)
    heads = [_head(tensor, large.get(tensor.name)) for tensor in initializers]
    sizes = [
        len(head) + (large[t.name].nbytes if t.name in large else 0)
        for t, head in zip(initializers, heads, strict=True)
    ]
    whole = len(before) + len(after) + sum(len(_tag(INITIALIZER, size)) + size for size in sizes)
    with file.open("wb") as out:
        out.write(first + _tag(GRAPH, whole) + before)
        for tensor, head, size in zip(initializers, heads, sizes, strict=True):
            out.write(_tag(INITIALIZER, size) + head)
            if tensor.name in large:
                data = large[tensor.name].tobytes()
                if len(data) != large[tensor.name].nbytes:
                    raise ExportError(f"the weight {tensor.name!r} has {len(data):,} bytes, its shape says otherwise")
                out.write(data)
        out.write(after + last)


def _large(tensor: ir.TensorProtocol | None) -> ir.TensorProtocol | None:
    """The tensor, if it is large and stored as plain bytes."""
    if tensor is None or tensor.nbytes < LEAST or tensor.doc_string or tensor.metadata_props:
        return None
    return None if isinstance(tensor, (ir.TensorProtoTensor, ir.ExternalTensor, ir.StringTensor)) else tensor


def _without(graph: ir.Model, large: dict[str, ir.TensorProtocol]) -> onnx.ModelProto:
    """The message of a graph in which the large tensors have no data."""
    values = graph.graph.initializers
    try:
        for name in large:
            values[name].const_value = ir.tensor([], dtype=ir.DataType.FLOAT, name=name)
        model = ir.to_proto(graph)
    finally:
        for name, tensor in large.items():
            values[name].const_value = tensor
            tensor.name = name
    for tensor in model.graph.initializer:
        if tensor.name in large:
            tensor.ClearField("dims")
            tensor.ClearField("raw_data")
            tensor.dims.extend(large[tensor.name].shape.numpy())
            tensor.data_type = large[tensor.name].dtype.value
    return model


def _to_check(model: onnx.ModelProto, large: dict[str, ir.TensorProtocol]) -> onnx.ModelProto:
    """The same for the checker: the tensors without data are inputs of the graph."""
    checked = onnx.ModelProto()
    checked.CopyFrom(model)
    kept = [tensor for tensor in checked.graph.initializer if tensor.name not in large]
    moved = [tensor for tensor in checked.graph.initializer if tensor.name in large]
    given = {value.name for value in checked.graph.input}
    checked.graph.input.extend(
        onnx.helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in moved if t.name not in given
    )
    del checked.graph.initializer[:]
    checked.graph.initializer.extend(kept)
    return checked


def _split(message: onnx.ModelProto | onnx.GraphProto, number: int) -> tuple[bytes, bytes]:
    """The bytes of the fields of a message before the one of this number, and of those after it."""
    before, after = copy.deepcopy(message), copy.deepcopy(message)
    for field, _ in message.ListFields():
        if field.number >= number:
            before.ClearField(field.name)
        if field.number <= number:
            after.ClearField(field.name)
    return before.SerializeToString(), after.SerializeToString()


def _head(tensor: onnx.TensorProto, data: ir.TensorProtocol | None) -> bytes:
    """The bytes of a tensor, up to its data if that is written by itself: no field follows the data."""
    head: bytes = tensor.SerializeToString()
    return head if data is None else head + _tag(RAW_DATA, data.nbytes)


def _tag(number: int, size: int) -> bytes:
    """What precedes a field of bytes: its number and its size, as varints."""
    return _varint(number << 3 | 2) + _varint(size)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))
