"""The kind and the contents of a checkpoint file: inert objects, and tensors that are read on request."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from io import BufferedReader
from typing import Any, Literal

from deploykit.errors import CheckpointError
from deploykit.models.checkpoint.pickle_opcodes import Interpreter
from deploykit.models.checkpoint.safetensors_file import read_header
from deploykit.models.checkpoint.stack_machine import Global, damaged, unsafe
from deploykit.models.checkpoint.tensors import BUILDERS, StorageRef, StorageSpan, TensorReader, storage_reference
from deploykit.models.checkpoint.zip_file import read_directory

__all__ = ["Contents", "Format", "read_contents"]

Format = Literal["torch-zip", "torch-legacy", "safetensors", "pickle"]

MAGIC = 0x1950A86A20F9469CFC6C  # the first object of a legacy torch file
PROTOCOL = 1001
_EXPECTED = "expected a checkpoint (.pt, .pth, .pkl or .safetensors)"
_AGAIN = "get the file again"
_TORCH = "pass the PyTorch checkpoint that it was made from"
_ONNX = "pass the checkpoint that it was made from; a file that ends in .onnx is run as it is"
_BIG_ENDIAN = "it was saved on a big-endian machine, which is not read; save it again on a little-endian one"

_KNOWN: tuple[tuple[bytes, str, str], ...] = (
    (rb"\xff\xd8\xff", "is a JPEG image", ""),
    (rb"\x89PNG", "is a PNG image", ""),
    (rb"GIF8", "is a GIF image", ""),
    (rb"RIFF....WEBP", "is a WebP image", ""),
    (rb"....ftyp", "is a video", ""),
    (rb"%PDF", "is a PDF document", ""),
    (rb"\s*<\?xml.{0,200}<net\s", "is an OpenVINO model", _TORCH),
    (rb"\s*(<!doctype|<html|<\?xml|<head)", "is a web page saved in place of the file", _AGAIN),
    (rb"version https://git-lfs", "is a git-LFS pointer, not the file that it stands for", "run 'git lfs pull'"),
    (rb"\x1f\x8b", "is a gzip archive", "unpack it first"),
    (rb"BZh", "is a bzip2 archive", "unpack it first"),
    (rb"\xfd7zXZ", "is an xz archive", "unpack it first"),
    (rb"7z\xbc\xaf", "is a 7-Zip archive", "unpack it first"),
    (rb"Rar!", "is a RAR archive", "unpack it first"),
    (rb".{257}ustar", "is a tar archive", "unpack it first"),
    (rb"\x89HDF", "is an HDF5 file (Keras)", _TORCH),
    (rb"\x93NUMPY", "is a numpy array", ""),
    (rb"....TFL3", "is a TensorFlow Lite model", _TORCH),
    (rb"....ET[0-9]{2}", "is an ExecuTorch program", _TORCH),
    (rb"GGUF", "is a GGUF file (quantized weights)", _TORCH),
    (rb"7767517\s", "is an ncnn model", _TORCH),
    (rb"\x00{4}[\x01\x02]\x00{3}", "is a Darknet weights file", _TORCH),
    (rb"ftrt|ptrt", "is a TensorRT engine", ""),
    (rb"\x08[\x01-\x0f][\x12\x1a\x22\x28\x32\x3a\x42]", "is an ONNX model, which is already exported", _ONNX),
    (rb"PK\x05\x06", "is an empty zip archive", _AGAIN),
    (rb"\x00{64}", "begins with zeros", _AGAIN),
    (rb"\s*[\[{]", "is JSON text", ""),
    (rb"[\t\n\r -~]{16}", "is text", ""),
)


@dataclass
class Contents:
    """What a file holds: its top-level object, the reader of its tensors, and what is unusual about it."""

    format: Format
    root: Any
    tensors: TensorReader
    metadata: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_contents(file: BufferedReader, size: int) -> Contents:
    """Read an open checkpoint of ``size`` bytes, without its tensors.

    Raises:
        CheckpointError: it is not a checkpoint, or truncated or damaged.
        UnsafeCheckpointError: it breaks a limit of the reader.
    """
    head = file.read(512)
    if not head:
        raise CheckpointError(f"the file is empty; {_EXPECTED}")
    if head.startswith(b"PK\x03\x04"):
        return _read_zip(file, size)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 40:
        root, spans, metadata = read_header(file, size)
        return Contents("safetensors", root, TensorReader(file, size, spans), dict(metadata))
    if head[0] == 0x80 and (len(head) == 1 or head[1] <= 5):
        return _read_pickle(file, size)
    for pattern, what, advice in _KNOWN:
        if re.match(pattern, head, re.DOTALL | re.IGNORECASE):
            raise CheckpointError(f"it {what}; {advice or _EXPECTED}")
    raise CheckpointError(f"it begins with {head[:8].hex(' ')}, which no checkpoint does; {_EXPECTED}")


def _read_zip(file: BufferedReader, size: int) -> Contents:
    entries = read_directory(file, size)
    pickles = [name for name in entries if re.fullmatch(r"[^/]+/data\.pkl", name)]
    if len(pickles) != 1:
        some = ", ".join(list(entries)[:3]) or "nothing"
        raise CheckpointError(
            f"the zip file has {len(pickles) or 'no'} data.pkl, expected one (it holds {some}); "
            "if it is an archive around a checkpoint, unpack it first"
        )
    root = pickles[0].removesuffix("data.pkl")
    order = entries.get(f"{root}byteorder")
    if order and _read_entry(file, StorageSpan(order.start, min(order.size, 16), 0)) != b"little":
        raise CheckpointError(_BIG_ENDIAN)
    data = f"{root}data/"
    spans = {name.removeprefix(data): span for name, span in entries.items() if name.startswith(data)}

    def storage(reference: Any) -> StorageRef:
        found = storage_reference(reference)
        span = spans.get(found.key)
        claimed = found.numel * (found.dtype.itemsize if found.dtype else 1)
        if span is None:
            raise damaged(f"the storage {found.key[:40]!r} is not in the file")
        if claimed != span.size:
            raise unsafe(f"the storage {found.key} claims {claimed:,} bytes and has {span.size:,}")
        return StorageRef(found.key, found.dtype, found.numel)

    interpreter = Interpreter(_read_entry(file, entries[pickles[0]]), BUILDERS, storage)
    value, _ = interpreter.run()
    return Contents("torch-zip", value, TensorReader(file, size, spans), notes=_notes(interpreter))


def _read_entry(file: BufferedReader, span: StorageSpan) -> bytes:
    file.seek(span.start)
    data = file.read(span.size)
    if len(data) != span.size or (span.crc and zlib.crc32(data) != span.crc):
        raise damaged("the zip file's data.pkl does not match its checksum")
    return data


def _notes(interpreter: Interpreter) -> list[str]:
    return _listed("names", interpreter.called, "not imported, not called")


def _listed(what: str, names: Iterable[str], done: str) -> list[str]:
    names = list(names)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return [f"{what} {', '.join(names[:5])}{more}: {done}"] if names else []


def _read_pickle(file: BufferedReader, size: int) -> Contents:
    """A legacy torch file, which begins with the pickle of a magic number, or any other pickle."""
    file.seek(0)
    legacy = _Legacy()
    # Not a byte more than was measured, should the file grow.
    interpreter = Interpreter(file.read(size), BUILDERS)
    value, position = interpreter.run()
    if type(value) is not int or value != MAGIC:
        if position != size:
            raise damaged(f"the pickle ends at byte {position:,} of {size:,}")
        return Contents("pickle", value, TensorReader(file, size, {}), notes=_notes(interpreter))
    interpreter.persistent = legacy.reference
    version, position = interpreter.run(position)
    if version != PROTOCOL:
        raise CheckpointError("it is a legacy torch file of an unknown version")
    system, position = interpreter.run(position)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise CheckpointError(_BIG_ENDIAN)
    value, position = interpreter.run(position)
    keys, position = interpreter.run(position)
    spans = legacy.spans(keys, interpreter.data, position)
    notes = [*_notes(interpreter), *legacy.notes()]
    return Contents("torch-legacy", value, TensorReader(file, size, spans), notes=notes)


class _Legacy:
    """The storages of a legacy torch file: referred to by the pickle first, then stored one after the other."""

    def __init__(self) -> None:
        self._sources: dict[str, None] = {}
        self._declared: dict[str, StorageRef] = {}

    def reference(self, reference: Any) -> Any:
        """What a persistent id stands for: a storage, or the class of a model with its source code."""
        if isinstance(reference, tuple) and len(reference) == 4 and reference[0] == "module":
            kind = reference[1]
            if not isinstance(kind, Global):
                raise damaged("it carries the source code of something that is no class")
            self._sources[kind.path] = None
            return kind
        found = storage_reference(reference)
        declared = self._declared.setdefault(found.key, StorageRef(found.key, found.dtype, found.numel))
        if (declared.dtype, declared.numel) != (found.dtype, found.numel) or found.dtype is None:
            raise damaged(f"the storage {found.key[:40]!r} is declared in two ways")
        if found.view is None:
            return declared
        if not isinstance(found.view, tuple) or len(found.view) != 3:
            raise damaged("a view of a storage has an unknown form")
        _, start, numel = found.view
        if type(start) is not int or type(numel) is not int or start < 0 or not 0 <= numel <= found.numel - start:
            raise unsafe(f"a view of the storage {found.key[:40]!r} reaches outside it")
        return StorageRef(found.key, found.dtype, numel, start)

    def spans(self, keys: Any, data: bytes, position: int) -> dict[str, StorageSpan]:
        """Where the storages are: each is its number of elements (8 bytes) and the elements."""
        names = keys if isinstance(keys, list) and all(type(key) is str for key in keys) else []
        if sorted(names) != sorted(self._declared):
            raise damaged("the list of storages does not agree with the tensors")
        spans = {}
        for key in names:
            declared = self._declared[key]
            assert declared.dtype is not None
            start, count = position + 8, declared.numel * declared.dtype.itemsize
            if start + count > len(data):
                raise damaged(f"the storage {key[:40]!r} has {start + count - len(data):,} bytes less than it needs")
            if int.from_bytes(data[position:start], "little") != declared.numel:
                raise unsafe(f"the storage {key[:40]!r} has another size than its tensors say")
            spans[key] = StorageSpan(start, count)
            position = start + count
        if position != len(data):
            raise damaged(f"{len(data) - position:,} bytes follow the last storage")
        return spans

    def notes(self) -> list[str]:
        """What is unusual about the file, a sentence each."""
        return _listed("embedded source code of", self._sources, "ignored")
