"""Tensors as a checkpoint describes them: checked against their storage first, read from the file on request.

The builders below stand in for the functions that torch and numpy name in a pickle. Sources: ``torch/_utils.py``,
``torch/serialization.py`` (the persistent ids) and ``numpy/core/multiarray`` (``__reduce__`` of arrays and dtypes).
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from typing import Any

import torch

from deploykit.errors import CheckpointError
from deploykit.models.checkpoint.refusals import why_not_read
from deploykit.models.checkpoint.stack_machine import (
    TEXT,
    Builder,
    Global,
    Record,
    StackMachine,
    damaged,
    unsafe,
    what_is,
)

__all__ = ["BUILDERS", "StorageRef", "StorageSpan", "StoredTensor", "TensorReader", "contiguous", "storage_reference"]

MAX_DIMENSIONS = 64  # torch's own limit
MAX_KEY = 256  # characters of a storage's name
MAX_SIZE = 1 << 48  # of a size, a stride, an offset: products of two stay far from what torch checks itself
ALLOWANCE = 64 << 20  # bytes that views of one storage may add up to, over the file's size

_STORAGES = {
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Float": torch.float32,
    "Double": torch.float64,
    "Char": torch.int8,
    "Short": torch.int16,
    "Int": torch.int32,
    "Long": torch.int64,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
}
_DTYPE = re.compile(r"uint(8|16|32|64)|int(8|16|32|64)|bfloat16|float(16|32|64|8_\w+)|complex(32|64|128)|bool")
_NUMPY = {
    "f2": torch.float16,
    "f4": torch.float32,
    "f8": torch.float64,
    "i1": torch.int8,
    "i2": torch.int16,
    "i4": torch.int32,
    "i8": torch.int64,
    "u1": torch.uint8,
    "u2": torch.uint16,
    "u4": torch.uint32,
    "u8": torch.uint64,
    "b1": torch.bool,
    "c8": torch.complex64,
    "c16": torch.complex128,
}


@dataclass(frozen=True, slots=True)
class StorageSpan:
    """Bytes of the file; ``crc`` is their CRC-32, 0 where the file has none."""

    start: int
    size: int
    crc: int = 0


class StorageRef(Record):
    """A reference to a storage: ``numel`` elements of ``dtype`` (None: bytes), from element ``start`` of it on."""

    __slots__ = ("dtype", "key", "numel", "start")

    def __init__(self, key: str, dtype: torch.dtype | None, numel: int, start: int = 0) -> None:
        super().__init__("torch.storage")
        self.key, self.dtype, self.numel, self.start = key, dtype, numel, start


class StoredTensor(Record):
    """A tensor in the file, not read yet: ``size`` and ``stride`` in elements from ``offset`` of a storage on.

    ``data`` holds the bytes where the pickle itself carries them (numpy); otherwise ``key`` names the storage. A numpy
    array of something else than numbers has no ``dtype``.
    """

    __slots__ = ("data", "dtype", "key", "offset", "size", "stride")

    def __init__(
        self, key: str, dtype: torch.dtype | None, offset: int, size: tuple[int, ...], stride: tuple[int, ...]
    ) -> None:
        super().__init__("torch.Tensor")
        self.key, self.dtype, self.offset, self.size, self.stride = key, dtype, offset, size, stride
        self.data: bytes | None = None

    @property
    def numel(self) -> int:
        """How many elements it has."""
        return math.prod(self.size)


class _Array(StoredTensor):
    """A numpy array, which the pickle makes empty and then gives its state."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__("", torch.uint8, 0, (0,), (1,))
        self.kind = "numpy.ndarray"
        self.data = b""

    def build(self, machine: StackMachine, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise damaged("a numpy array has a state of an unknown form")
        _, size, dtype, fortran, data = state
        if type(data) is str:  # written by Python 2
            data = _encode(machine, (data, "latin1"))
        self.fill(data, dtype, size, fortran is True or fortran == 1)

    def fill(self, data: Any, dtype: Any, size: Any, fortran: bool) -> None:
        """Take the content of the array; its bytes must be as many as its size and type say."""
        self.dtype = dtype.torch_dtype() if isinstance(dtype, _Dtype) else None
        if self.dtype is None or not isinstance(data, bytes):
            self.dtype = None  # an array of objects or of text
            return
        self.size = _dimensions(size, "size")
        if self.numel * self.dtype.itemsize != len(data):
            raise damaged(f"a numpy array of shape {list(self.size)} comes with {len(data):,} bytes")
        self.data = data
        self.stride = contiguous(self.size[::-1])[::-1] if fortran else contiguous(self.size)


class _Dtype(Record):
    """``numpy.dtype``: its code, such as ``f4``, and later its byte order."""

    __slots__ = ()

    def torch_dtype(self) -> torch.dtype | None:
        """The same type in torch; None for one that torch does not have."""
        code = self.args[0] if self.args else ""
        if type(code) is not str or len(code) > 8:
            return None
        order = self.state[1] if isinstance(self.state, tuple) and len(self.state) > 1 else "|"
        dtype = _NUMPY.get(code.lstrip("<|="))
        if order == ">" and dtype is not None and dtype.itemsize > 1:
            raise CheckpointError("a numpy array is big-endian, which is not read; save it on a little-endian machine")
        return dtype


class TensorReader:
    """Reads the tensors of one open file; tensors that share a storage in the file share it in memory too.

    Args:
        file: the checkpoint.
        size: its size in bytes.
        spans: storage key to its place in the file.
    """

    def __init__(self, file: BufferedReader, size: int, spans: Mapping[str, StorageSpan]) -> None:
        self._file = file
        self._spans = spans
        self._budget = size + ALLOWANCE
        self._storages: dict[str | int, bytearray] = {}
        self._tensors: dict[tuple[Any, ...], torch.Tensor] = {}

    def read(self, stored: StoredTensor) -> torch.Tensor:
        """The tensor, as stored.

        Raises:
            CheckpointError: its storage is truncated or damaged.
            UnsafeCheckpointError: views of the storages add up to much more than the file.
        """
        key = stored.key if stored.data is None else id(stored.data)
        view = (key, stored.dtype, stored.offset, stored.size, stored.stride)
        if view in self._tensors:
            return self._tensors[view]
        assert stored.dtype is not None
        self._budget -= stored.numel * stored.dtype.itemsize
        if self._budget < 0:
            raise unsafe("its tensors are views that add up to much more than the file")
        try:
            self._tensors[view] = tensor = self._view(stored, key)
        except (RuntimeError, TypeError, ValueError) as e:
            raise CheckpointError(f"torch cannot make a tensor of type {stored.dtype}: {e}") from e
        return tensor

    def _view(self, stored: StoredTensor, key: str | int) -> torch.Tensor:
        assert stored.dtype is not None
        if not stored.numel:
            return torch.empty(stored.size, dtype=stored.dtype)
        storage = self._storage(key, stored.data)
        elements = torch.frombuffer(storage, dtype=stored.dtype, count=len(storage) // stored.dtype.itemsize)
        return elements.as_strided(stored.size, stored.stride, stored.offset)

    def _storage(self, key: str | int, data: bytes | None) -> bytearray:
        if key not in self._storages:
            self._storages[key] = bytearray(data) if data is not None else self._load(self._spans[str(key)])
        return self._storages[key]

    def _load(self, span: StorageSpan) -> bytearray:
        storage = bytearray(span.size)
        self._file.seek(span.start)
        if self._file.readinto(storage) != span.size:
            raise damaged("it became shorter while it was read")
        if span.crc and zlib.crc32(storage) != span.crc:
            raise damaged(f"the {span.size:,} bytes at byte {span.start:,} do not match their checksum")
        return storage


@dataclass(frozen=True, slots=True)
class _Reference:
    """A persistent id of torch: ``('storage', class, key, location, numel[, view])``."""

    dtype: torch.dtype | None
    key: str
    numel: int
    view: Any


def storage_reference(reference: Any) -> _Reference:
    """Check a persistent id of torch.

    Raises:
        CheckpointError: it is of another form, or of a kind of storage that is not read.
    """
    if not isinstance(reference, tuple) or len(reference) not in (5, 6) or reference[0] != "storage":
        raise damaged("a persistent id is not torch's reference to a storage")
    _, kind, key, _, numel = reference[:5]
    if not (isinstance(kind, Global) and type(key) is str and type(numel) is int):
        raise damaged("torch's reference to a storage has parts of the wrong type")
    if len(key) > MAX_KEY or not 0 <= numel < MAX_SIZE:
        raise damaged("torch's reference to a storage has parts that make no sense")
    name = kind.path.removeprefix("torch.cuda.").removeprefix("torch.").removesuffix("Storage")
    if name == "storage.Untyped":
        dtype = None
    elif name in _STORAGES and kind.path.endswith("Storage"):
        dtype = _STORAGES[name]
    else:
        raise CheckpointError(f"a storage is that of {why_not_read(kind.path)}")
    return _Reference(dtype, key, numel, reference[5] if len(reference) == 6 else None)


def contiguous(size: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a tensor of that size whose last dimension is dense."""
    stride, step = [], 1
    for length in reversed(size):
        stride.append(step)
        step *= max(length, 1)
    return tuple(reversed(stride))


def _dimensions(value: Any, what: str) -> tuple[int, ...]:
    if not isinstance(value, (tuple, list)) or len(value) > MAX_DIMENSIONS:
        raise damaged(f"a tensor's {what} is not a tuple of at most {MAX_DIMENSIONS} numbers")
    for number in value:
        if type(number) is not int or not 0 <= number < MAX_SIZE:
            raise unsafe(f"a tensor's {what} holds {_short(number)}, expected a number from 0 to 2**48")
    size = tuple(value)
    if what == "size" and math.prod(n for n in size if n) >= MAX_SIZE:
        raise unsafe("a tensor's size multiplies to more than 2**48 elements")
    return size


def _short(value: Any) -> str:
    if type(value) is not int:
        return f"a {what_is(value)}"
    return str(value) if abs(value) < 1 << 64 else f"an integer of {value.bit_length()} bits"


def _make_tensor(storage: Any, dtype: Any, offset: Any, size: Any, stride: Any) -> StoredTensor:
    """The heart of the rebuild functions: nothing is made whose last element is not inside its storage."""
    if not isinstance(storage, StorageRef):
        raise CheckpointError(
            f"a tensor's storage is a {what_is(storage)}, which is not read; save the weights with torch.save"
        )
    if dtype is None:
        raise damaged("a tensor has a storage of bytes and no type")
    size, stride = _dimensions(size, "size"), _dimensions(stride, "stride")
    (offset,) = _dimensions((offset,), "offset")
    if len(size) != len(stride):
        raise damaged(f"a tensor has {len(size)} sizes and {len(stride)} strides")
    itemsize = storage.dtype.itemsize if storage.dtype else 1
    available = storage.numel * itemsize // dtype.itemsize
    if 0 not in size and offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) >= available:
        raise unsafe(
            f"a tensor of size {list(size)} and stride {list(stride)} from element {offset:,} on reaches outside its "
            f"storage of {available:,} elements"
        )
    return StoredTensor(storage.key, dtype, storage.start + offset, size, stride)


def _arguments(args: tuple[Any, ...], least: int, name: str) -> tuple[Any, ...]:
    if len(args) < least:
        raise damaged(f"{name} has {len(args)} arguments, expected at least {least}")
    return args


def _rebuild_tensor(_: StackMachine, args: tuple[Any, ...]) -> StoredTensor:
    storage, offset, size, stride = _arguments(args, 4, "a tensor")[:4]
    if len(args) > 6 and args[6]:
        raise CheckpointError("a tensor is a conjugate or negated view, which is not read; save a copy of it (clone())")
    return _make_tensor(storage, getattr(storage, "dtype", None), offset, size, stride)


def _rebuild_tensor_v3(_: StackMachine, args: tuple[Any, ...]) -> StoredTensor:
    storage, offset, size, stride, _, _, dtype = _arguments(args, 7, "a tensor")[:7]
    name = dtype.path.removeprefix("torch.") if isinstance(dtype, Global) else ""
    known = getattr(torch, name, None) if _DTYPE.fullmatch(name) else None
    if not isinstance(known, torch.dtype):
        raise CheckpointError(f"a tensor is of type {name or 'unknown'}, which is not read")
    return _make_tensor(storage, known, offset, size, stride)


def _rebuild_from_type(m: StackMachine, args: tuple[Any, ...]) -> Any:
    function, _, inner = _arguments(args, 3, "a tensor with attributes")[:3]
    return m.call(function, inner, noted=True)


def _first(m: StackMachine, args: tuple[Any, ...]) -> Any:
    return _arguments(args, 1, "a parameter")[0]


def _sequence(m: StackMachine, args: tuple[Any, ...]) -> Any:
    if len(args) > 1 or (args and not isinstance(args[0], (list, tuple, set))):
        raise m.malformed("makes a container of something else than a list")
    return args[0] if args else ()


def _size(m: StackMachine, args: tuple[Any, ...]) -> tuple[int, ...]:
    return _dimensions(_sequence(m, args), "size")


def _device(m: StackMachine, args: tuple[Any, ...]) -> str:
    name, index = (*args, "", "")[:2]
    if type(name) is not str or len(name) > 16 or not name.isalpha() or type(index) not in (int, str):
        raise m.malformed("has a torch.device of an unknown form")
    return f"{name}:{index}" if type(index) is int else name


def _encode(m: StackMachine, args: tuple[Any, ...]) -> Any:
    if len(args) != 2 or type(args[0]) is not str or args[1] not in ("latin1", "latin-1"):
        return Record("_codecs.encode", args)
    m.charge(TEXT + len(args[0]))
    try:
        return args[0].encode("latin-1")
    except UnicodeEncodeError as e:
        raise m.malformed("has bytes that are no bytes") from e


def _numpy_scalar(_: StackMachine, args: tuple[Any, ...]) -> Any:
    dtype = args[0].torch_dtype() if args and isinstance(args[0], _Dtype) else None
    if dtype is None or len(args) != 2 or not isinstance(args[1], bytes) or len(args[1]) != dtype.itemsize:
        return Record("numpy.scalar", args)
    return torch.frombuffer(bytearray(args[1]), dtype=dtype).item()


def _numpy_frombuffer(_: StackMachine, args: tuple[Any, ...]) -> _Array:
    data, dtype, size, order = _arguments(args, 4, "a numpy array")[:4]
    array = _Array()
    array.fill(data, dtype, size, order == "F")
    return array


BUILDERS: dict[str, Builder] = {
    "collections.OrderedDict": lambda m, args: m.make_dict(_sequence(m, args)),
    "collections.defaultdict": lambda m, args: m.make_dict(_sequence(m, args[1:])),
    "torch.Size": _size,
    "torch.device": _device,
    "torch.nn.parameter.Parameter": _first,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "_codecs.encode": _encode,
    "numpy.dtype": lambda m, args: _Dtype("numpy.dtype", args),
}
for _module in ("builtins", "__builtin__"):
    # Protocol 2 has no opcode for bytes: none at all are a call, others go through _codecs.encode.
    BUILDERS[f"{_module}.bytes"] = lambda m, args: Record("builtins.bytes", args) if args else b""
    BUILDERS[f"{_module}.set"] = lambda m, args: m.make_set(_sequence(m, args))
    BUILDERS[f"{_module}.frozenset"] = lambda m, args: frozenset(m.make_set(_sequence(m, args)))
for _module in ("numpy.core", "numpy._core"):
    BUILDERS[f"{_module}.multiarray._reconstruct"] = lambda m, args: _Array()
    BUILDERS[f"{_module}.multiarray.scalar"] = _numpy_scalar
    BUILDERS[f"{_module}.numeric._frombuffer"] = _numpy_frombuffer
