"""The header of a safetensors file, under limits.

Source of the format: the README of safetensors: eight bytes of length, a JSON object, the tensors' bytes without holes.
"""

from __future__ import annotations

import math
from io import BufferedReader
from typing import Any, TypeGuard

import torch

from deploykit.errors import CheckpointError
from deploykit.models.checkpoint.stack_machine import damaged, unsafe, what_is
from deploykit.models.checkpoint.tensors import MAX_DIMENSIONS, MAX_SIZE, StorageSpan, StoredTensor, contiguous
from deploykit.strict_json import parse_json

__all__ = ["read_header"]

MAX_HEADER = 4 << 20  # JSON takes up to thirty times its length in memory; 4 MB describe 30,000 tensors
MAX_NAME = 1024

_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


def read_header(
    file: BufferedReader, size: int
) -> tuple[dict[str, StoredTensor], dict[str, StorageSpan], dict[str, str]]:
    """What a safetensors file of ``size`` bytes holds: its tensors, where their bytes are, and its metadata.

    Raises:
        CheckpointError: the file is truncated or damaged.
        UnsafeCheckpointError: the header is over the limit.
    """
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if length > size - 8:
        raise damaged(f"the safetensors header claims {length:,} bytes and the file has {size:,}")
    if length > MAX_HEADER:
        raise unsafe(f"the safetensors header has {length:,} bytes, the limit is {MAX_HEADER:,}")
    try:
        header = parse_json(file.read(length).decode("utf-8"), most=MAX_HEADER)
    except ValueError as e:
        raise damaged(f"the safetensors header is not JSON ({e})") from e
    if not isinstance(header, dict):
        raise damaged("the safetensors header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise damaged("the safetensors metadata is not an object of strings")
    tensors, spans = {}, {}
    for name, described in header.items():
        tensors[name], spans[name] = _tensor(name, described, 8 + length)
    _check_spans(spans, 8 + length, size)
    return tensors, spans, metadata


def _tensor(name: str, described: Any, start: int) -> tuple[StoredTensor, StorageSpan]:
    if len(name) > MAX_NAME or not name.isprintable():
        raise damaged(f"the safetensors header has a tensor named {name[:80]!r}, which is no name")
    if not isinstance(described, dict):
        raise damaged(f"the safetensors header does not describe {name!r}")
    kind, shape, offsets = described.get("dtype"), described.get("shape"), described.get("data_offsets")
    kind = kind if isinstance(kind, str) else what_is(kind)
    dtype = _DTYPES.get(kind)
    if dtype is None:
        known = ", ".join(_DTYPES)
        raise CheckpointError(f"{name!r} is of type {kind[:20]!r}, which is not read; expected one of {known}")
    if not _is_numbers(shape) or len(shape) > MAX_DIMENSIONS or not _is_numbers(offsets) or len(offsets) != 2:
        raise damaged(f"the safetensors header describes {name!r} with a shape or place that is none")
    begin, end = offsets
    if math.prod(n for n in shape if n) >= MAX_SIZE or end - begin != math.prod(shape) * dtype.itemsize:
        raise unsafe(f"{name!r} of type {kind} and shape {shape} does not fit {end - begin:,} bytes")
    size = tuple(shape)
    return StoredTensor(name, dtype, 0, size, contiguous(size)), StorageSpan(start + begin, end - begin)


def _is_numbers(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < MAX_SIZE for n in value)


def _check_spans(spans: dict[str, StorageSpan], start: int, size: int) -> None:
    """The format allows no hole, no overlap and nothing behind the last tensor."""
    position = start
    for name, span in sorted(spans.items(), key=lambda item: (item[1].start, item[1].size)):
        if span.start != position:
            raise unsafe(f"the place of {name!r} leaves a hole or overlaps another tensor's")
        position += span.size
    if position != size:
        raise damaged(f"the tensors end at byte {position:,} and the file has {size:,}")
