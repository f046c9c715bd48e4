"""Checkpoints assembled byte by byte, so that they can say what no honest writer says."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

FLOATS = struct.pack("<4f", 1.0, 2.0, 3.0, 4.0)
PROTO, STOP = b"\x80\x02", b"."
MARK, REDUCE, BUILD, NEWOBJ, NONE = b"(", b"R", b"b", b"\x81", b"N"
CANARY = "deploykit_canary"


@dataclass(frozen=True)
class Case:
    """A file, made when asked for.

    ``expects`` is a regular expression that the error must match, or None where the file must load without harm.
    """

    name: str
    make: Callable[[], bytes]
    expects: str | None
    suffix: str = ".pt"


# Pickle


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def integer(value: int) -> bytes:
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def group(*items: bytes) -> bytes:
    return MARK + b"".join(items) + b"t"


def call(function: bytes, *args: bytes) -> bytes:
    return function + group(*args) + REDUCE


def mapping(**items: bytes) -> bytes:
    return b"}" + MARK + b"".join(text(key) + value for key, value in items.items()) + b"u"


def storage(kind: str = "FloatStorage", numel: int = 4, key: bytes = text("0"), *more: bytes) -> bytes:
    return group(text("storage"), name("torch", kind), key, text("cpu"), integer(numel), *more) + b"Q"


def tensor(
    size: tuple[int, ...] = (4,), stride: tuple[int, ...] = (1,), offset: int = 0, source: bytes | None = None
) -> bytes:
    return call(
        name("torch._utils", "_rebuild_tensor_v2"),
        storage() if source is None else source,
        integer(offset),
        group(*map(integer, size)),
        group(*map(integer, stride)),
        b"\x89",
        call(name("collections", "OrderedDict")),
    )


def module(kind: tuple[str, str] = ("models.yolo", "Model"), **state: bytes) -> bytes:
    own = {"_parameters": mapping(w=tensor()), "_buffers": mapping(), "_modules": mapping(), **state}
    return name(*kind) + b")" + NEWOBJ + mapping(**own) + BUILD


def beside(value: bytes) -> bytes:
    """A pickle of good weights with ``value`` beside them."""
    return PROTO + mapping(x=value, model=mapping(w=tensor())) + STOP


# Containers


@dataclass(frozen=True)
class ZipEntry:
    name: str
    data: bytes
    method: int = 0
    flags: int = 0
    claims: int | None = None
    offset: int | None = None
    inner_name: str | None = None
    crc: int | None = None


def zip_file(*entries: ZipEntry, count: int | None = None, comment: bytes = b"") -> bytes:
    body, directory = b"", b""
    for entry in entries:
        crc = zlib.crc32(entry.data) if entry.crc is None else entry.crc
        size = len(entry.data) if entry.claims is None else entry.claims
        offset = len(body) if entry.offset is None else entry.offset
        inner, outer = (entry.inner_name or entry.name).encode(), entry.name.encode()
        fields = (20, entry.flags, entry.method, 0, 0, crc, size, size, len(outer), 0)
        if entry.offset is None:
            body += b"PK\x03\x04" + struct.pack("<5H3L2H", *fields[:8], len(inner), 0) + inner + entry.data
        directory += b"PK\x01\x02" + struct.pack("<6H3L5H2L", 20, *fields, 0, 0, 0, 0, offset) + outer
    number = len(entries) if count is None else count
    end = struct.pack("<4H2LH", 0, 0, number, number, len(directory), len(body), len(comment))
    return body + directory + b"PK\x05\x06" + end + comment


def torch_zip(pickled: bytes, *more: ZipEntry, data: bytes = FLOATS) -> bytes:
    return zip_file(ZipEntry("archive/data.pkl", pickled), ZipEntry("archive/data/0", data), *more)


def torch_legacy(pickled: bytes, keys: bytes | None = None, storages: bytes | None = None) -> bytes:
    magic = PROTO + integer(0x1950A86A20F9469CFC6C) + STOP
    system = PROTO + mapping(little_endian=b"\x88") + STOP
    listed = PROTO + b"]" + MARK + text("0") + b"e" + STOP if keys is None else keys
    stored = struct.pack("<Q", 4) + FLOATS if storages is None else storages
    return magic + PROTO + integer(1001) + STOP + system + pickled + listed + stored


def safetensors(header: object, data: bytes = FLOATS, length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def described(shape: list[int], begin: int, end: int, dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


LEGACY_TENSOR = tensor(source=storage("FloatStorage", 4, text("0"), NONE))
GOOD_ZIP = torch_zip(PROTO + mapping(model=mapping(w=tensor())) + STOP)
GOOD_LEGACY = torch_legacy(PROTO + mapping(model=mapping(w=LEGACY_TENSOR)) + STOP)
GOOD_SAFETENSORS = safetensors({"w": described([4], 0, 16)})
