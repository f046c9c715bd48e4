"""The directory of a zip file, under limits: entries stored, inside the file, apart from each other, named once.

``zipfile`` believes what a directory says: it unpacks bombs, and entries may share bytes. torch stores its entries
uncompressed, so each is one span of the file. Source of the format: PKWARE's APPNOTE, 4.3.
"""

from __future__ import annotations

import itertools
import re
import struct
from collections.abc import Iterator
from io import BufferedReader
from typing import Any

from deploykit.errors import CheckpointError, UnsafeCheckpointError
from deploykit.models.checkpoint.stack_machine import damaged, unsafe
from deploykit.models.checkpoint.tensors import StorageSpan

__all__ = ["read_directory"]

MAX_ENTRIES = 100_000
MAX_NAME = 512

_END, _END64, _LOCATOR64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_HEADER, _LOCAL = struct.Struct("<4s6H3L5H2L"), struct.Struct("<4s5H3L2H")
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF
_ENCRYPTED = 0x2041

_OTHERS = (
    (r"[^/]+/code/.*", "a TorchScript program"),
    (
        r"(?:[^/]+/)?(?:models/[^/]+\.json|serialized_exported_program\.json|archive_format)",
        "a program of torch.export",
    ),
    (r"model\.weights\.h5", "a Keras model"),
    (r"(?:[^/]+/)*saved_model\.pb", "a TensorFlow SavedModel"),
    (r"MAR-INF/.*", "an archive of TorchServe"),
    (r"(?:[^/]+/)*(?:[^/]+\.mlmodel|com\.apple\.CoreML/.*)", "a Core ML model"),
    (r"[^/]+\.npy", "a numpy archive (.npz)"),
)
"""Pattern of an entry's name -> what the zip file is."""

_OF_TORCH = r"[^/]+/(?:data\.pkl|data/.*|version|byteorder|constants\.pkl|\..*)"
"""Pattern of the entries that torch writes."""


def read_directory(file: BufferedReader, size: int) -> dict[str, StorageSpan]:
    """Every entry of a zip file of ``size`` bytes, by name.

    Raises:
        CheckpointError: the file is truncated or damaged.
        UnsafeCheckpointError: an entry is compressed, encrypted, outside the file, over another one or named twice.
    """
    directory, count, start = _find_directory(file, size)
    for name, _, _ in _listed(directory, count):
        for pattern, what in _OTHERS:
            if re.fullmatch(pattern, name):
                raise CheckpointError(f"it is {what}, not weights; pass the checkpoint that it was made from")
    entries: dict[str, StorageSpan] = {}
    spans: list[tuple[int, int, str]] = []
    for name, fields, extra in _listed(directory, count):
        _check_stored(name, fields)
        if name in entries:
            raise unsafe(f"the zip file has two entries named {name!r}")
        packed, length, offset = _sizes(name, fields, extra)
        if packed != length:
            raise unsafe(f"entry {name!r} is stored as {packed:,} bytes and claims {length:,}")
        data = _data_start(file, offset, name, start)
        if data + length > start:
            raise unsafe(f"entry {name!r} of {length:,} bytes reaches outside the file's data")
        entries[name] = StorageSpan(data, length, fields[7])
        spans.append((offset, data + length, name))
    spans.sort()
    for (_, end, name), (begin, _, other) in itertools.pairwise(spans):
        if begin < end:
            raise unsafe(f"entries {name!r} and {other!r} of the zip file overlap")
    return entries


def _listed(directory: bytes, count: int) -> Iterator[tuple[str, tuple[Any, ...], bytes]]:
    """The name, the fields and the extra field of each entry of the directory."""
    position = 0
    for _ in range(count):
        if position + _HEADER.size > len(directory):
            raise damaged("the zip directory has fewer entries than it says")
        fields = _HEADER.unpack_from(directory, position)
        name_end = position + _HEADER.size + fields[10]
        yield (
            _name(directory[position + _HEADER.size : name_end], fields),
            fields,
            directory[name_end : name_end + fields[11]],
        )
        position = name_end + fields[11] + fields[12]


def _find_directory(file: BufferedReader, size: int) -> tuple[bytes, int, int]:
    """The central directory's bytes, the number of its entries and where it begins."""
    tail_start = max(0, size - 22 - _FULL16)
    tail = _read(file, tail_start, size - tail_start)
    end = tail.rfind(_END)
    if end < 0 or end + 22 > len(tail):
        raise damaged("it begins as a torch zip file and its end is missing")
    _, _, _, _, count, length, start, comment = struct.unpack_from("<4s4H2LH", tail, end)
    if end + 22 + comment != len(tail):
        raise damaged("something follows the end of the zip file")
    end += tail_start
    if end >= 20 and (count == _FULL16 or _FULL32 in (length, start) or _read(file, end - 20, 4) == _LOCATOR64):
        end, count, length, start = _find_directory64(file, end - 20)
    if start + length != end:
        raise damaged("the zip directory is not where it says")
    if count > MAX_ENTRIES:
        raise unsafe(f"the zip file has {count:,} entries, the limit is {MAX_ENTRIES:,}")
    return _read(file, start, length), count, start


def _find_directory64(file: BufferedReader, locator: int) -> tuple[int, int, int, int]:
    magic, _, end, _ = struct.unpack("<4sLQL", _read(file, locator, 20))
    if magic != _LOCATOR64 or end + 56 > locator:
        raise damaged("the zip file's large directory is missing")
    record = struct.unpack("<4sQ2H2L4Q", _read(file, end, 56))
    if record[0] != _END64:
        raise damaged("the zip file's large directory is missing")
    return end, record[7], record[8], record[9]


def _read(file: BufferedReader, start: int, count: int) -> bytes:
    file.seek(start)
    data = file.read(count)
    if len(data) != count:
        raise damaged(f"it has no {count:,} bytes at byte {start:,}")
    return data


def _name(raw: bytes, fields: tuple[Any, ...]) -> str:
    if fields[0] != b"PK\x01\x02":
        raise damaged("the zip directory has something else than entries")
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError as e:
        raise damaged("a zip entry's name is not UTF-8") from e
    parts = name.split("/")
    if not name.isprintable() or len(name) > MAX_NAME or "\\" in name or parts[0] == "" or ".." in parts:
        raise unsafe(f"the zip file has an entry named {name[:80]!r}, which is no plain path inside it")
    if fields[3] & _ENCRYPTED:
        raise unsafe(f"entry {name!r} is encrypted")
    return name


def _check_stored(name: str, fields: tuple[Any, ...]) -> None:
    if fields[4] != 0 and not re.fullmatch(_OF_TORCH, name):
        raise CheckpointError(
            f"it is a zip archive around something else than weights (it holds {name[:80]}); if there is a checkpoint "
            "in it, unpack it and pass that"
        )
    if fields[4] != 0:
        raise UnsafeCheckpointError(
            f"entry {name!r} is compressed, and torch stores its entries uncompressed: refused as unsafe; "
            "unpack the archive and zip it again without compression"
        )


def _sizes(name: str, fields: tuple[Any, ...], extra: bytes) -> tuple[int, int, int]:
    """Packed size, size and offset of the local header, from the extra field where they do not fit 32 bits."""
    packed, length, offset = fields[8], fields[9], fields[16]
    position = 0
    while _FULL32 in (packed, length, offset) and position + 4 <= len(extra):
        kind, count = struct.unpack_from("<2H", extra, position)
        if kind == 1:
            large = iter(struct.unpack_from(f"<{min(count, len(extra) - position - 4) // 8}Q", extra, position + 4))
            length = next(large, length) if length == _FULL32 else length
            packed = next(large, packed) if packed == _FULL32 else packed
            offset = next(large, offset) if offset == _FULL32 else offset
            break
        position += 4 + count
    return packed, length, offset


def _data_start(file: BufferedReader, offset: int, name: str, limit: int) -> int:
    """Where an entry's bytes begin: behind its local header, whose own copy of the name must agree."""
    if offset + _LOCAL.size > limit:
        raise unsafe(f"entry {name!r} begins outside the file's data")
    fields = _LOCAL.unpack(_read(file, offset, _LOCAL.size))
    encoded = name.encode()
    if fields[0] != b"PK\x03\x04" or fields[3] != 0 or fields[9] != len(encoded):
        raise damaged(f"entry {name!r} has another header than the directory says")
    if _read(file, offset + _LOCAL.size, len(encoded)) != encoded:
        raise damaged(f"entry {name!r} has another name in its header")
    return int(offset + _LOCAL.size + fields[9] + fields[10])
