"""The header of a safetensors file, and the shards of one checkpoint, under limits.

Source of the format: the README of safetensors: eight bytes of length, a JSON object, the tensors' bytes without holes.
The index of shards is Hugging Face's ``model.safetensors.index.json``: its ``weight_map`` is tensor -> file name.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeGuard

import torch

from deploykit.errors import CheckpointError, NotFoundError
from deploykit.models.checkpoint.module_tree import MAX_TENSORS
from deploykit.models.checkpoint.stack_machine import damaged, unsafe, what_is
from deploykit.models.checkpoint.tensors import (
    MAX_DIMENSIONS,
    MAX_SIZE,
    StorageSpan,
    StoredTensor,
    TensorReader,
    contiguous,
)
from deploykit.strict_json import parse_json, read_json

__all__ = ["ShardReader", "Shards", "find_shards", "read_header", "read_shards"]

MAX_HEADER = 4 << 20  # JSON takes up to thirty times its length in memory; 4 MB describe 30,000 tensors
MAX_NAME = 1024
SHARD = re.compile(r"(.{1,200})-([0-9]{5})-of-([0-9]{5})\.safetensors")
INDEX = ".safetensors.index.json"
MAX_SHARDS = 256

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


@dataclass(frozen=True)
class Shards:
    """The safetensors files that one checkpoint is split into.

    Attributes:
        folder: where they are.
        files: their names, in the order of the names.
        index: tensor -> file, as the index says; None: there is no index.
        note: what was found, a sentence.
    """

    folder: Path
    files: tuple[str, ...]
    index: Mapping[str, str] | None
    note: str


def find_shards(path: Path) -> Shards | None:
    """The shards that an index, a folder with an index, or one of the shards stands for; None: it is another path.

    Raises:
        CheckpointError: the folder has no or several checkpoints, a shard is missing, or the index is not one.
        UnsafeCheckpointError: the index leads to another folder, or is over the limit.
    """
    if path.is_dir():
        return _of_folder(path)
    if path.name.endswith(INDEX):
        return _of_index(path, f"the shards that {path.name} lists are read")
    match = SHARD.fullmatch(path.name)
    if match is None:
        return None
    index, count = path.with_name(f"{match[1]}{INDEX}"), int(match[3])
    note = f"it is one of {count} shards: all of them are read"
    if index.is_file():
        return _of_index(index, note)
    if not 1 <= count <= MAX_SHARDS:
        raise unsafe(f"its name says that it is one of {count:,} shards, the limit is {MAX_SHARDS}")
    names = tuple(f"{match[1]}-{i:05}-of-{match[3]}.safetensors" for i in range(1, count + 1))
    return _present(Shards(path.parent, names, None, note))


def _of_folder(folder: Path) -> Shards:
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry, _ in zip(entries, range(10_000), strict=False))
    indexes = [name for name in names if name.endswith(INDEX)]
    if len(indexes) == 1:
        return _of_index(folder / indexes[0], f"the shards that {indexes[0]} lists are read")
    single = [name for name in names if name.endswith(".safetensors")]
    if len(single) == 1 and not indexes:
        return Shards(folder, (single[0],), None, f"{single[0]} of the folder is read")
    found = ", ".join((indexes or single)[:5]) or "none"
    raise CheckpointError(
        "it is a folder; expected the checkpoint file itself (.pt, .pth, .pkl or .safetensors), or a folder with one "
        f"safetensors file or one {INDEX[1:]} (it has {found})"
    )


def _of_index(path: Path, note: str) -> Shards:
    if not path.is_file():
        raise NotFoundError("there is no such file; expected the index of safetensors shards")
    try:
        index = read_json(path, most=MAX_HEADER)
    except ValueError as e:
        raise damaged(f"the index of the shards is not JSON ({e})") from e
    listed = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(listed, dict) or not listed:
        raise CheckpointError(f"{path.name} has no weight_map (tensor -> file), expected the index of shards")
    if not all(isinstance(name, str) for name in listed.values()):
        raise damaged("the index of the shards names a file that is no text")
    files = tuple(sorted(set(listed.values())))
    for name in files:
        if not name.isprintable() or len(name) > 255 or set(name) & set("/\\:") or not name.endswith(".safetensors"):
            raise unsafe(f"the index names the file {name[:80]!r}, which is no safetensors file beside it")
    if len(files) > MAX_SHARDS:
        raise unsafe(f"the index names {len(files):,} files, the limit is {MAX_SHARDS}")
    return _present(Shards(path.parent, files, listed, note))


def _present(shards: Shards) -> Shards:
    missing = [name for name in shards.files if not (shards.folder / name).is_file()]
    if missing:
        raise NotFoundError(
            f"{len(missing)} of its {len(shards.files)} shards are not in {shards.folder} ({', '.join(missing[:3])}): "
            "get them too"
        )
    return shards


class ShardReader(TensorReader):
    """Reads the tensors of several safetensors files, each from its own."""

    def __init__(self, readers: Mapping[str, TensorReader]) -> None:
        self._readers = readers

    def read(self, stored: StoredTensor) -> torch.Tensor:
        """See :meth:`deploykit.models.checkpoint.tensors.TensorReader.read`."""
        return self._readers[stored.key].read(stored)


def read_shards(
    shards: Shards, files: Sequence[BufferedReader]
) -> tuple[dict[str, StoredTensor], ShardReader, dict[str, str]]:
    """What the open files of ``shards`` hold together: the tensors, their reader, and the metadata of all.

    Raises:
        CheckpointError: a tensor is in two files, or not where the index says; a file is truncated or damaged.
        UnsafeCheckpointError: there are too many tensors, or a header is over the limit.
    """
    root: dict[str, StoredTensor] = {}
    readers: dict[str, TensorReader] = {}
    metadata: dict[str, str] = {}
    for name, file in zip(shards.files, files, strict=True):
        size = os.fstat(file.fileno()).st_size
        tensors, spans, told = read_header(file, size)
        for key in tensors:
            if key in root:
                raise CheckpointError(f"the tensor {key[:80]} is in two of its shards: they are not of one checkpoint")
            if shards.index is not None and shards.index.get(key) != name:
                said = shards.index.get(key)
                where = f"the index says {said[:80]}" if said else "the index does not list it"
                raise CheckpointError(f"the tensor {key[:80]} is in {name}, and {where}: get index and shards again")
        root |= tensors
        if len(root) > MAX_TENSORS:
            raise unsafe(f"its shards have more than {MAX_TENSORS:,} tensors, the limit")
        readers |= dict.fromkeys(tensors, TensorReader(file, size, spans))
        metadata |= told
    lost = [key for key in shards.index or () if key not in root]
    if lost:
        raise CheckpointError(
            f"{len(lost):,} tensors of the index are in no shard ({lost[0][:80]}): get index and shards again"
        )
    return root, ShardReader(readers), metadata
